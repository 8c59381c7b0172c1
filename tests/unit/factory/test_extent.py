"""PRDs that are too long, or that are none: refused with what is wrong, however much of it there is."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from meshforge_trio.factory.prd import problems_of_sentences, read_prd
from meshforge_trio.factory.problems import PROBLEMS_MAX, PrdError, Problem

TITLE = "# Shop\n\n"
AGENT = TITLE + "## Agent: box\n\n### State\n\n| field | type |\n|-------|------|\n| count | integer |\n\n"
COMMAND = (
    AGENT
    + "### Command: put\n\n- entity: any\n- emit `filled`\n\n### Event: filled\n\n- `count` becomes `count + 1`\n\n"
)
#: More of one kind of rubbish than is told.
MANY = 1_500


def problems(text: str) -> Sequence[Problem]:
    with pytest.raises(PrdError) as refused:
        read_prd(text)
    return refused.value.problems


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (TITLE + "".join(f"## Agent: a{number}\n\n" for number in range(MANY)), "has no state"),
        (AGENT + "".join(f"### Evnt: e{number}\n\n" for number in range(MANY)), "unknown heading 'evnt'"),
        (AGENT + "### Command: put\n\n" + "- frob\n" * MANY, "expected 'entity'"),
        (TITLE + "\x01" * MANY, "is not text"),
        (TITLE + "### x\n" * MANY, "a heading of level 3"),
        (AGENT + "".join(f"### Command: c{n}\n\n- emit `e{n}`\n\n" for n in range(MANY)), "unknown event"),
    ],
    ids=["agents", "headings", "sentences", "characters", "titles", "events"],
)
def test_of_a_thousand_problems_no_more_are_told(text: str, said: str) -> None:
    *told, last = problems(text)
    assert len(told) == PROBLEMS_MAX
    assert (last.what, last.line) == ("there are more than 1000 problems", text.count("\n") + 1)
    assert sum(said in problem.what for problem in told) > PROBLEMS_MAX / 2
    assert len(problems_of_sentences(text)) == PROBLEMS_MAX


def example(steps: int) -> str:
    return "## Acceptance\n\n### Example: one\n\n" + "- when `box.put` on `a`\n" * steps + "- then `box.filled`\n"


@pytest.mark.parametrize(
    ("before", "line", "most", "after", "said"),
    [
        (COMMAND + "## Invariants\n\n", "- box: `count >= 0`\n", 500, "", "more than 500 invariants"),
        (
            COMMAND + "## Acceptance\n\n### Example: one\n\n",
            "- when `box.put` on `a`\n",
            199,
            "- then `box.filled`\n",
            "an example of more than 200 sentences",
        ),
        (
            AGENT + "### Command: put\n\n- entity: any\n",
            "- emit `filled`\n",
            199,
            "\n### Event: filled\n",
            "a command of more than 200 sentences",
        ),
    ],
    ids=["invariants", "example", "command"],
)
def test_what_is_too_long_is_told_alone(before: str, line: str, most: int, after: str, said: str) -> None:
    read_prd(before + line * most + after)
    (problem,) = problems(before + line * (most + 1) + after)
    assert said in problem.what


def test_commands_that_lead_back_are_told_fifty_times() -> None:
    commands = "".join(
        f"### Command: c{n}\n\n- entity: any\n"
        f"- send `box.c{(n + 1) % 99}` to `id`\n- send `box.c{(n - 1) % 99}` to `id`\n\n"
        for n in range(99)
    )
    assert sum("may never end" in problem.what for problem in problems(AGENT + commands)) == 50


def test_an_invariant_is_asked_again_where_something_has_happened() -> None:
    """Of many entities the one that breaks it, in an example of many steps."""
    steps = "".join(f"- when `box.put` on `b{number}`\n" for number in range(99)) + "- when `box.put` on `b7`\n"
    text = COMMAND + "## Invariants\n\n- box: `count <= 1`\n- `sum(box.count)` never decreases\n\n## Acceptance\n\n"
    (problem,) = problems(f"{text}### Example: twice\n\n{steps}- then `box.filled`\n")
    assert "does not hold: for box b7" in problem.what


def test_an_invariant_that_never_held_is_told_at_the_first_step() -> None:
    other = (
        AGENT.removeprefix(TITLE).replace("box", "other") + "### Command: begin\n\n- entity: new\n- emit `begun`\n\n"
    )
    text = f"{COMMAND}{other}### Event: begun\n\n## Invariants\n\n- `count(other) >= 1`\n\n{example(1)}"
    (problem,) = problems(text)
    assert "does not hold: for all together" in problem.what
