"""Examples are played through: rules, reactions and invariants that contradict them are found."""

from __future__ import annotations

from decimal import Decimal

import pytest

from meshforge_trio.factory.interpret import World
from meshforge_trio.factory.model import Prd, Step
from meshforge_trio.factory.prd import read_prd
from meshforge_trio.factory.problems import PrdError, Problem

PURSE = """\
# Purses

## Agent: purse

### State

| field  | type    |
|--------|---------|
| coins  | integer |
| worth  | decimal |

### Command: fill

| field | type    | rule |
|-------|---------|------|
| coins | integer | 0..100 |

- entity: new
- emit `filled` with `coins`

### Command: give

| field | type    | rule |
|-------|---------|------|
| who   | id      |      |
| coins | integer |      |

- refuse `too_few` unless `coins <= state.coins`: only {state.coins} left
RULES
- emit `given` with `coins`
- send `purse.take` to `who` with `coins`

### Command: take

| field | type    | rule |
|-------|---------|------|
| coins | integer | >= 1 |

- entity: any
- internal
- emit `taken` with `coins`

### Event: filled

| field | type    |
|-------|---------|
| coins | integer |

- sets `coins`

### Event: given

| field | type    |
|-------|---------|
| coins | integer |

- `coins` becomes `state.coins - coins`
- `worth` becomes `0.10 * coins`

### Event: taken

| field | type    |
|-------|---------|
| coins | integer |

- `coins` becomes `state.coins + coins`

## Invariants

INVARIANTS

## Acceptance

### Example: from one to the other

- given `purse.fill` on `ada` with `coins` = `5`
STEPS
"""

GIVE = "- when `purse.give` on `ada` with `who` = `bob`, `coins` = `2`"


def problems_of(invariants: str = "", steps: str = GIVE, rules: str = "", then: str = "conflict") -> list[Problem]:
    text = PURSE.replace("INVARIANTS", invariants).replace("RULES", rules)
    with pytest.raises(PrdError) as caught:
        read_prd(text.replace("STEPS", f"{steps}\n- then {then}"))
    return list(caught.value.problems)


def test_the_example_holds() -> None:
    steps = f"{GIVE}\n- then `purse.taken` on `bob` with `coins` = `2`\n- then `purse` `ada` has `worth` = `0.2`"
    invariants = "- `sum(purse.coins)` is constant\n- purse: `coins >= 0`\n- `count(purse)` never decreases"
    assert read_prd(PURSE.replace("INVARIANTS", invariants).replace("STEPS", steps).replace("RULES", "")).examples


@pytest.mark.parametrize(
    ("invariant", "why"),
    [
        ("purse: `coins > 3`", "for purse ada"),
        ("purse: `coins` is constant", "for purse ada it was 5 and is 3"),
        ("purse: `coins` never decreases", "for purse ada it was 5 and is 3"),
        ("purse: `worth` never increases", "for purse ada it was 0 and is 0.20"),
        ("`sum(purse.coins) == 4`", "for all together"),
        ("`count(purse)` is constant", "for all together it was 1 and is 2"),
        ("`count(purse)` never increases", "for all together it was"),
        ("`sum(purse.worth)` is constant", "it was 0 and is 0.20"),
    ],
)
def test_an_invariant_that_breaks_is_told_once(invariant: str, why: str) -> None:
    text = PURSE.replace("INVARIANTS", f"- {invariant}").replace("RULES", "")
    again = "\n\n### Example: again\n\n- given `purse.fill` on `ada` with `coins` = `5`\n" + GIVE
    with pytest.raises(PrdError) as caught:
        read_prd(text.replace("STEPS", f"{GIVE}\n- then conflict{again}\n- then conflict"))
    broken = [problem for problem in caught.value.problems if "the invariant" in problem.what]
    assert len(broken) == 1
    assert why in broken[0].what
    # What is broken is found where it first happens, which may be what is given.
    assert broken[0].line in (PURSE.replace("STEPS", "").count("\n") - 1, PURSE.replace("STEPS", "").count("\n"))


def test_what_happens_instead_is_told() -> None:
    (problem,) = problems_of()
    assert problem.what == "there is no conflict"
    assert problem.suggestion == "what happens: purse.given on ada (coins = 2), purse.taken on bob (coins = 2)"


def test_why_it_is_refused_is_told() -> None:
    (problem,) = problems_of(steps=GIVE.replace("`2`", "`6`"))
    assert problem.suggestion == "the last command is refused as too_few: only 5 left"


def test_a_refusal_further_on_ends_that_branch_alone() -> None:
    steps = GIVE.replace("`2`", "`0`")
    (problem,) = problems_of(steps=steps)
    assert problem.suggestion == "what happens: purse.given on ada (coins = 0)"


def test_limits_come_before_rules() -> None:
    (problem,) = problems_of(steps="- when `purse.fill` on `bob` with `coins` = `101`")
    assert problem.suggestion == "the last command is refused as bad_payload: coins is above 100"


def test_a_rule_in_words_is_given_the_benefit_of_the_doubt() -> None:
    text = PURSE.replace("INVARIANTS", "- purse: `coins > 3`").replace("RULES", "- custom: not on Sundays")
    assert read_prd(text.replace("STEPS", f"{GIVE}\n- then refused `on_sunday`")).agents[0].commands[1].customs


def test_a_number_too_large_is_told_where_it_is_sent() -> None:
    steps = f"- when `purse.give` on `ada` with `who` = `bob`, `coins` = `{-(2**63 - 1)}`"
    (problem,) = problems_of(steps=steps)
    assert "coins becomes 9223372036854775812, which integer cannot hold" in problem.what


def _world() -> World:
    text = PURSE.replace("INVARIANTS", "").replace("RULES", "").replace("STEPS", f"{GIVE}\n- then `purse.taken`")
    prd: Prd = read_prd(text)
    return World(prd)


def test_versions_count_events() -> None:
    world = _world()
    assert world.send(Step("purse", "fill", "ada", (("coins", 5),), expected_version=0)).denied is None
    assert world.send(Step("purse", "fill", "ada", (("coins", 5),), expected_version=0)).conflict
    found = world.send(Step("purse", "fill", "ada", (("coins", 5),), expected_version=1))
    assert found.denied is not None
    assert found.denied.code == "already_exists"
    assert world.state("purse", "ada") == {"coins": 5, "worth": Decimal(0)}


NEVER_NEW = PURSE.replace("- entity: new", "").replace("- entity: any", "").replace("RULES", "")


def test_an_agent_without_a_beginning() -> None:
    with pytest.raises(PrdError) as caught:
        read_prd(NEVER_NEW.replace("INVARIANTS", "").replace("STEPS", f"{GIVE}\n- then conflict"))
    (problem,) = caught.value.problems
    assert (problem.line, problem.column) == (3, 11)
    assert "there will never be one" in problem.what


@pytest.mark.parametrize(("removed", "what"), [("when", "without 'when'"), ("then", "without 'then'")])
def test_an_example_has_all_its_parts(removed: str, what: str) -> None:
    text = PURSE.replace("INVARIANTS", "").replace("RULES", "").replace("STEPS", f"{GIVE}\n- then conflict")
    with pytest.raises(PrdError) as caught:
        read_prd("\n".join(line for line in text.split("\n") if not line.startswith(f"- {removed}")))
    (problem,) = caught.value.problems
    assert what in problem.what
