"""G2: nothing takes effect twice."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from chaos.evidence import Evidence, Sent
from chaos.rows import OutputRow
from chaos.workload import command

from .crafted import (
    Broken,
    Cases,
    Sound,
    add,
    add_to,
    body_with,
    drop,
    edit,
    end,
    key_of,
    output_of,
    rows_of,
)
from .paper import AUDIT, COUNTER, OTHER, Paper
from .redriving import RedrivingPaper, redrive

CASES = Cases()


def more_effects(evidence: Evidence, like: OutputRow, **fields: Any) -> Evidence:
    """With an output like this one at the end of its scope."""
    last = max(row.n for row in rows_of(evidence, "outputs", scope=like.scope))
    return add(evidence, "outputs", attrs.evolve(like, n=last + 1, msg_id="f" * 32, **fields))


@CASES.breaks("G2", "key 'k1' took effect 2 times, for the commands ['c1', 'c5']")
def decided_for_the_first_sending_and_the_second() -> Evidence:
    first = output_of(end(), "k1")
    body = body_with(first, causation_id="c5", id="c5_added")
    return more_effects(end(), first, body=body, event_id="c5_added")


@CASES.breaks("G2", "key 'k1' took effect again: its decision is outputs 1 to 1, and there are [")
def decided_for_one_sending_twice() -> Evidence:
    return more_effects(end(), output_of(end(), "k1"))


@CASES.breaks("G2", "key 'k1' was decided twice: two outputs each are ['c1_added']")
def an_event_twice_in_one_decision() -> Evidence:
    return more_effects(end(), output_of(end(), "k1"))


@CASES.breaks("G2", "key 'k4' has 2 committed decisions")
def two_records_of_a_key() -> Evidence:
    return add(end(), "keys", key_of(end(), "k4"))


@CASES.breaks("G2", "key 'k2' was refused 2 times for one payload")
def refused_twice() -> Evidence:
    return add(end(), "mismatches", *rows_of(end(), "mismatches", scope=COUNTER))


@CASES.breaks("G2", "key 'k2' was refused as used for something else, and was decided for the same payload")
def refused_for_its_own_payload() -> Evidence:
    (refusal,) = rows_of(end(), "mismatches", scope=COUNTER)
    return edit(end(), "mismatches", refusal, payload_hash=key_of(end(), "k2").payload_hash)


@CASES.breaks("G2", "key 'k2' was refused as used for something else, and has no decision")
def refused_as_used_by_nobody() -> Evidence:
    return drop(end(), "keys", key_of(end(), "k2"))


@CASES.holds("G2")
def the_same_key_in_two_tenants() -> Evidence:
    assert key_of(end(), "k1", COUNTER).payload_hash == key_of(end(), "k1", OTHER).payload_hash
    return end()


@CASES.holds("G2")
def the_same_key_for_another_agent() -> Evidence:
    paper = Paper()
    paper.send(add_to("a", 1), Sent(command(AUDIT, "note", 1, {"text": "x"}, entity_id="a")))
    return paper.drain()


def redriven() -> Evidence:
    """Set aside, redriven, set aside again: outputs 1 and 2, 3 and 4 of the redrive, 5 and 6."""
    paper = RedrivingPaper((COUNTER,))
    paper.send(Sent(command(COUNTER, "explode", 1, entity_id="a"), expect=("dead",)))
    paper.drain()
    paper.send(redrive(COUNTER, 2, "k1"))
    return paper.drain()


@CASES.breaks("G2", "key 'k1' took effect again: its decision is outputs 5 to 6, and there are [1, 2] beside")
def set_aside_again_without_being_redriven() -> Evidence:
    evidence = redriven()
    return edit(evidence, "dead", evidence.rows.dead[0], state="waiting")


@CASES.breaks("G2", "key 'k1' took effect again: its decision is outputs 5 to 6, and there are [2] beside")
def redriven_though_it_had_taken_effect() -> Evidence:
    evidence = redriven()
    row = next(row for row in evidence.rows.outputs if row.n == 2)
    return edit(evidence, "outputs", row, name="added")


@CASES.breaks("G2", "key 'k1' took effect again: its decision is outputs 5 to 5, and there are [6] beside")
def redriven_and_decided_twice() -> Evidence:
    evidence = redriven()
    return edit(evidence, "keys", key_of(evidence, "k1"), last_n=5)


def asked_twice(evidence: Evidence, name: str) -> Evidence:
    """As if another command had sealed the same dead letter."""
    first = output_of(evidence, "k2", "redriven")
    return more_effects(evidence, first, key="k3", name=name, body=body_with(first, name=name))


@CASES.breaks("G2", "the dead letter of key 'k1', generation 0, was redriven and redriven")
def redriven_twice() -> Evidence:
    return asked_twice(redriven(), "redriven")


@CASES.breaks("G2", "the dead letter of key 'k1', generation 0, was redriven and discarded")
def redriven_and_discarded() -> Evidence:
    return asked_twice(redriven(), "discarded")


@CASES.holds("G2")
def a_dead_letter_was_redriven() -> Evidence:
    assert [letter.state for letter in redriven().rows.dead] == ["redriven", "waiting"]
    return redriven()


@CASES.holds("G2")
def redriven_twice_has_one_effect() -> Evidence:
    paper = RedrivingPaper((COUNTER,))
    paper.send(Sent(command(COUNTER, "explode", 1, entity_id="a"), expect=("dead",)))
    paper.drain()
    first = redrive(COUNTER, 2, "k1")
    again = attrs.evolve(first, command=attrs.evolve(first.command, id="c2-again"))
    paper.send(first, again, redrive(COUNTER, 3, "k1", expect=["refused"]))
    return paper.drain()


@CASES.breaks("G2", "key 'k7' took effect again: its decision is outputs")
def set_aside_twice_without_being_redriven() -> Evidence:
    record = key_of(end(), "k7")
    return edit(end(), "keys", record, first_n=record.first_n + 1)


@pytest.mark.parametrize("case", CASES.params(CASES.broken))
def test_what_is_wrong_is_found(case: Broken) -> None:
    case.check()


@pytest.mark.parametrize("case", CASES.params(CASES.sound))
def test_what_is_right_passes(case: Sound) -> None:
    case.check()
