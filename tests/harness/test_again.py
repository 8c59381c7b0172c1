"""A run from its directory: what was run is run again exactly, and what a rule sent again is left to the rule."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import orjson
import pytest

from chaos.again import discard, load_past
from chaos.builtin import CRASH_MATRIX
from chaos.case import Case
from chaos.checkers import Checker
from chaos.mutants.patch import Edit, Patch, patch_to_json
from chaos.observer import resent
from chaos.verdict import RunError

from .drill import case_of, happens
from .report_world import passing_run

PLAN = "worker#1:after_store@2=stop; client:worker#2.received@1=resend"


def directory(tmp_path: Path, case: Case, *, again: int = 0) -> Path:
    """A run of `case` in which the first commands were sent again."""
    home = passing_run(tmp_path / "run")
    sent = [*case.sent, *(resent(each, 1) for each in case.sent[:again])]
    (home / "run.json").write_bytes(orjson.dumps(case.as_run(sent)))
    return home


def test_it_is_the_same_case(tmp_path: Path) -> None:
    case = case_of(
        PLAN,
        engine={"batch": 3, "ack_wait_s": 0.5},
        retry={"limit": 3, "delays_s": [0.05]},
        limit=5,
        workspaces=("default/demo", "other/demo"),
        lease_ttl_s=0.25,
        deadline_s=12.0,
        paced=True,
        mortal=True,
        must_fire=False,
        record_frames=True,
        claims=("G1", "G8"),
    )
    past = load_past(directory(tmp_path, case))
    assert past.case == case
    assert (past.patch, past.broken, past.lacking) == (None, [], "")


def test_what_a_rule_sent_again_is_left_to_the_rule(tmp_path: Path) -> None:
    case = case_of(PLAN)
    past = load_past(directory(tmp_path, case, again=5))
    assert [sent.command.id for sent in past.case.sent] == [sent.command.id for sent in case.sent]


def test_the_bug_that_was_planted_is_planted_again(tmp_path: Path) -> None:
    home = directory(tmp_path, case_of(""))
    patch = Patch("bug", [Edit("meshforge_trio.protocol", "one", "two")])
    (home / "patch.json").write_bytes(orjson.dumps(patch_to_json(patch)))
    assert load_past(home).patch == patch


def test_what_fell_is_read_from_the_verdict(tmp_path: Path) -> None:
    home = directory(tmp_path, case_of(""))
    verdict = happens(case_of(""), fell=["G4", "ledger"]).verdict
    (home / "verdict.json").write_bytes(orjson.dumps(verdict.to_json()))
    assert load_past(home).broken == ["G4", "ledger"]
    (home / "verdict.json").unlink()
    assert load_past(home).broken == ()


def test_invariants_come_from_the_scenario(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "import attrs\nfrom chaos.builtin import CRASH_MATRIX\nfrom chaos.checkers import Checker\n"
        "few = Checker('few', 'Few: not many.', lambda evidence: [1])\n"
        "SCENARIO = attrs.evolve(CRASH_MATRIX, name='mine', invariants=[few], source='')\n"
    )
    home = directory(tmp_path, case_of("", source="mine.py"))
    past = load_past(home)
    [few] = past.case.invariants
    assert (few.id, past.lacking) == ("few", "")
    (tmp_path / "judged").mkdir()
    home = directory(tmp_path / "judged", case_of("", source="mine.py", invariants=[few]))
    (tmp_path / "mine.py").unlink()
    past = load_past(home)
    assert past.case.invariants == ()
    assert past.lacking.startswith("not judged again: few: there is no scenario script")


@pytest.mark.parametrize("source", ["", "--app own:app --workload work.jsonl"])
def test_without_a_scenario_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.chdir(tmp_path)
    past = load_past(directory(tmp_path, case_of("", source=source)))
    assert (past.case.invariants, past.lacking) == ((), "")
    many = Checker("many", "Many: they are not few.", lambda evidence: [1])
    (tmp_path / "judged").mkdir()
    past = load_past(directory(tmp_path / "judged", case_of("", source=source, invariants=[many])))
    assert past.lacking.startswith("not judged again: many: ")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("run.json", lambda told: {name: value for name, value in told.items() if name != "paced"}),
        ("run.json", lambda told: {**told, "workspaces": None}),
        ("run.json", lambda told: {**told, "source": "a 'quote"}),
        ("verdict.json", lambda told: {}),
        ("verdict.json", lambda told: []),
        ("patch.json", lambda told: {"name": "bug"}),
    ],
    ids=["no field", "another type", "unquoted", "empty verdict", "no verdict", "half a patch"],
)
def test_a_directory_that_is_damaged(tmp_path: Path, name: str, change: Callable[[Any], Any]) -> None:
    home = directory(tmp_path, case_of(""))
    path = home / name
    told = orjson.loads(path.read_bytes()) if path.exists() else {}
    path.write_bytes(orjson.dumps(change(told)))
    with pytest.raises(RunError, match="cannot be"):
        load_past(home)


def test_what_is_thrown_away_is_gone(tmp_path: Path) -> None:
    home = tmp_path / "run"
    (home / "image-1").mkdir(parents=True)
    outcome = happens(CRASH_MATRIX.case(case_of("").plan))
    assert discard(attrs.evolve(outcome, home=home)) == outcome
    assert not home.exists()
    assert discard(outcome) == outcome
