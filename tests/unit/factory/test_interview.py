"""Questions in the terminal: answers that make no sense are asked for again, and what is written can be read."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from meshforge_trio.factory.interview import interview
from meshforge_trio.factory.prd import load_prd, read_prd
from meshforge_trio.factory.problems import PrdError

ROOT = Path(__file__).parents[3]

PETS = [
    "Pet shop",
    "",
    "",
    *["pet", "An animal.", "name text", "age integer", "owner optional id", ""],
    *["create", "new", "name text", "age integer", "", "refuse `young` if `age < 1`: {name} is too young", ""],
    *["", "sets `name`, `age`", ""],
    *["sell", "", "owner id", "", "", "sold", "sets `owner`", "", ""],
    *[
        "keeper",
        "A person.",
        "pets integer",
        "",
        "adopt",
        "any",
        "",
        "",
        "adopted",
        "`pets` becomes `pets + 1`",
        "",
        "",
        "",
    ],
    *["", "`pet.sold`: `adopt` on `owner`", ""],
    *["pet: `age >= 0`", ""],
    # The examples that are proposed, and one more.
    *["", "", "", ""],
    *["too young", "", '`pet.create` on `rex` with `name` = `"Rex"`, `age` = `0`', "", "then refused `young`", "", ""],
]


HEARD = PETS.index("`pet.sold`: `adopt` on `owner`")
EXAMPLES = PETS.index("pet: `age >= 0`") + 2


class Script:
    """Answers in order; an empty one takes what is proposed."""

    def __init__(self, answers: Sequence[str]) -> None:
        self._answers = list(answers)
        self.told: list[str] = []

    def ask(self, question: str, default: str = "") -> str:
        return self._answers.pop(0) or default

    def tell(self, text: str) -> None:
        self.told.append(text)

    @property
    def left(self) -> int:
        return len(self._answers)


def test_what_is_answered_is_written() -> None:
    script = Script(PETS)
    prd = read_prd(interview(script))
    assert script.left == 0
    assert (prd.title, prd.tenant, prd.workspace) == ("Pet shop", "default", "main")
    pet, keeper = prd.agents
    assert [(field.name, str(field.kind)) for field in pet.state] == [
        ("name", "text"),
        ("age", "integer"),
        ("owner", "optional id"),
    ]
    assert [(command.name, command.entity) for command in pet.commands] == [("create", "new"), ("sell", "existing")]
    assert [event.name for event in pet.events] == ["created", "sold"]
    assert pet.commands[0].refusals[0].code == "young"
    assert [change.field for change in pet.event("sold").changes] == ["owner"]
    assert keeper.reactions[0].event == "sold"
    assert prd.invariants[0].expression.text == "age >= 0"


@pytest.mark.parametrize(
    ("at", "rubbish", "said"),
    [
        (0, "../../etc", "looks like a path"),
        (1, "two words", "cannot be the name of a tenant"),
        (3, "", "say something"),
        (3, "class", "Python has it already"),
        (5, "name", "expected a type"),
        (5, "name string", "did you mean 'text'?"),
        (6, "name integer", "the same name as the field"),
        (9, "pet", "the same name as the agent"),
        (10, "old", "expected 'new'"),
        (14, "refuse `young` if `agee < 1`: no", "did you mean 'age'?"),
        (14, "reject it", "expected 'entity'"),
        (16, "pet", "the same name as the agent"),
        (17, "sets `nme`", "unknown field 'nme'"),
        (HEARD, "`pet.solt`: `adopt` on `owner`", "did you mean 'sold'?"),
        (HEARD + 2, "pet: `age`", "it is integer, not boolean"),
        (EXAMPLES, "`pet.crate` on `rex`", "did you mean 'create'?"),
        (EXAMPLES, "`pet.create` on `rex`", "lacks `name`, `age`"),
        (EXAMPLES + 1, "it is sold", "expected an event"),
        (EXAMPLES + 4, "create pet", "a second example"),
        (EXAMPLES + 6, "`pet.sell` on `rex` with `owner` = `x` and so on", "expected a field"),
    ],
)
def test_rubbish_is_asked_for_again(at: int, rubbish: str, said: str) -> None:
    script = Script([*PETS[:at], rubbish, *PETS[at:]])
    assert read_prd(interview(script)) == read_prd(interview(Script(PETS)))
    assert script.left == 0
    assert any(said in told for told in script.told)


def test_an_agent_needs_a_beginning() -> None:
    first = PETS.index("new")
    answers = [*PETS[:first], "existing", *PETS[first + 1 :]]
    # The second command is proposed as one for a new entity then, and taken so.
    script = Script(answers)
    assert [command.entity for command in read_prd(interview(script)).agents[0].commands] == ["existing", "new"]


def test_what_shows_only_in_the_whole_is_told_and_written() -> None:
    rule = PETS.index("refuse `young` if `age < 1`: {name} is too young")
    script = Script([*PETS[:rule], "internal", *PETS[rule:]])
    text = interview(script)
    assert any("nobody asks for the internal command pet.create" in told for told in script.told)
    with pytest.raises(PrdError):
        read_prd(text)


def test_examples_are_proposed_and_asked_for() -> None:
    prd = read_prd(interview(Script(PETS)))
    create, adopt, young = prd.examples
    assert (create.name, create.when[0].entity, dict(create.when[0].payload)) == (
        "create pet",
        "pet-1",
        {"name": "name", "age": 1},
    )
    assert (create.then[0].name, adopt.then[0].name) == ("created", "adopted")
    assert (young.name, young.then[0].what, young.then[0].name) == ("too young", "refused", "young")


YOUNG = '`pet.create` on `rex` with `name` = `"Rex"`, `age` = `0`'


@pytest.mark.parametrize(
    ("at", "answers", "said"),
    [
        (EXAMPLES, [YOUNG, "`pet.created`"], "pet.created does not happen"),
        (
            EXAMPLES + 4,
            ["sold", "`pet.sell` on `rex` with `owner` = `ada`", "", YOUNG, "", "conflict", ""],
            "not_found",
        ),
    ],
    ids=["proposed", "own"],
)
def test_an_example_that_does_not_hold_is_told_and_left_out(at: int, answers: list[str], said: str) -> None:
    script = Script([*PETS[:at], *answers, *PETS[at:]])
    assert read_prd(interview(script)) == read_prd(interview(Script(PETS)))
    assert script.left == 0
    assert any("That does not hold" in told and said in told for told in script.told)


@pytest.mark.parametrize(
    ("rules", "fields", "proposed"),
    [
        ([], ["free text"], '`free` = `"free"`'),
        (["refuse `low` if `many < 100`: no"], ["many integer"], "`many` = `100`"),
        (["refuse `odd` unless `one > other`: no"], ["one integer", "other integer"], "`one` = `1`, `other` = `0`"),
        (["refuse `past` if `due <= now`: no"], ["due time"], '`due` = `"2026-01-02T00:00:00Z"`'),
        (["refuse `no` unless `sure`: no"], ["sure boolean", "more optional text"], "`sure` = `true`"),
        (["refuse `no` unless `all_of == [1]`: no"], ["all_of list of integer"], "`all_of` = `[1]`"),
        (["custom: only on Sundays", "refuse `low` if `many < 100`: no"], ["many integer"], "`many` = `100`"),
        (["refuse `no` unless `many == 77`: no"], ["many integer"], ""),
    ],
    ids=["text", "least", "pair", "time", "boolean", "list", "words", "never"],
)
def test_what_is_proposed_passes_the_rules(rules: list[str], fields: list[str], proposed: str) -> None:
    command = ["make", "new", *fields, "", *rules, "", "", "", ""]
    ends = [""] * (4 if proposed else 2)
    script = Script(["Shop", "", "", *["thing", "", "held text", ""], *command, "", *ends])
    text = interview(script)
    assert script.left == 0
    assert (f"- when `thing.make` on `thing-1` with {proposed}\n" in text) == bool(proposed)
    assert any("A workspace needs one" in told for told in script.told) != bool(proposed)


def run(*arguments: str, typed: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "meshforge_trio", *arguments]
    return subprocess.run(
        command, input=typed, capture_output=True, text=True, check=False, timeout=120, env=environment
    )


def test_new_takes_piped_answers(tmp_path: Path) -> None:
    file = tmp_path / "pets.md"
    done = run("new", str(file), typed="".join(f"{answer}\n" for answer in PETS))
    assert done.returncode == 0, done.stderr
    assert f"meshforge generate --prd {file}" in done.stdout
    assert load_prd(file) == read_prd(interview(Script(PETS)))
    made = run("generate", "--prd", str(file), "--output", str(tmp_path / "pets"))
    assert made.returncode == 0, made.stderr
    assert "async def lead" in (tmp_path / "pets/tests/smoke_test.py").read_text()
    again = run("new", str(file))
    assert again.returncode == 2
    assert "exists already" in again.stderr


def test_new_writes_nothing_before_the_last_answer(tmp_path: Path) -> None:
    done = run("new", str(tmp_path / "pets.md"), typed="Pets\n\n\npet\n")
    assert done.returncode == 130
    assert "nothing was written" in done.stderr
    assert not list(tmp_path.iterdir())
