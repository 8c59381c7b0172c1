"""G11, where dead letters are redriven: each generation is set aside once, after attempts of its own."""

from __future__ import annotations

import attrs
import pytest

from chaos.evidence import Evidence, Sent
from chaos.history import Record
from chaos.workload import command

from .crafted import Broken, Cases, Sound, edit, key_of, noting, streams, without
from .paper import COUNTER
from .redriving import STUBBORN, RedrivingPaper, redrive

CASES = Cases()


def add_to(entity: str, number: int) -> Sent:
    return Sent(command(COUNTER, "add", number, {"amount": 1}, entity_id=entity), expect=("decided",))


def explode(entity: str, number: int) -> Sent:
    return Sent(command(COUNTER, "explode", number, entity_id=entity), expect=("dead",))


@CASES.holds("G11")
def an_innocent_that_was_redriven_and_decided() -> Evidence:
    paper = RedrivingPaper()
    paper.send(add_to("a", 1))
    for stage in ("received", "counted", "counted"):
        paper.turn(COUNTER, dies=stage)
    paper.drain()
    paper.send(redrive(COUNTER, 2, "k1"))
    evidence = paper.drain()
    assert key_of(evidence, "k1").outcome == "decided"
    return evidence


def given_up_twice(limit: int = 3) -> Evidence:
    """Set aside when it had failed as often as it may, redriven, and set aside again."""
    paper = RedrivingPaper((COUNTER,), limit=limit)
    paper.send(explode("a", 1))
    paper.drain()
    paper.send(redrive(COUNTER, 2, "k1"))
    return paper.drain()


@CASES.holds("G11")
def each_generation_has_attempts_of_its_own() -> Evidence:
    evidence = given_up_twice()
    assert [letter.attempts for letter in evidence.rows.dead] == [2, 2]
    assert evidence.calls[str(COUNTER), "k1"] == 4
    return evidence


@CASES.holds("G11")
def a_letter_was_redriven_and_nothing_decided_since() -> Evidence:
    paper = RedrivingPaper((COUNTER,))
    paper.send(explode("a", 1))
    paper.drain()
    paper.send(redrive(COUNTER, 2, "k1"))
    paper.turn(COUNTER, dies="committed")
    return paper.corpse


@CASES.breaks("G11", "key 'k1' was redriven, and its letter of generation 0 is not in MESHFORGE_FAILED")
def a_letter_that_was_redriven_is_not_in_the_stream() -> Evidence:
    return streams(given_up_twice(), "failed", lambda all_: all_[1:])


@CASES.breaks("G11", "key 'k1' is dead, and its letter is not in MESHFORGE_FAILED")
def the_letter_of_the_next_generation_is_not_in_the_stream() -> Evidence:
    return streams(given_up_twice(), "failed", lambda all_: all_[:1])


@CASES.breaks("G11", "key 'k1' is dead, and its letter is not in MESHFORGE_FAILED")
def the_letter_of_the_next_generation_was_taken_for_the_first() -> Evidence:
    evidence = given_up_twice()
    first, second = [row for row in evidence.rows.outputs if row.kind == "dead"]
    shared = edit(evidence, "outputs", second, msg_id=first.msg_id)
    return streams(shared, "failed", lambda all_: all_[:1])


@CASES.breaks("G11", "key 'k1' generation 1 was dead-lettered 2 times")
def set_aside_twice_in_one_generation() -> Evidence:
    letter = given_up_twice().failed[1]
    return streams(given_up_twice(), "failed", lambda all_: [*all_, attrs.evolve(letter, seq=9, msg_id="a" * 32)])


def calls_of(evidence: Evidence) -> list[Record]:
    return [r for r in evidence.history if r.kind == "call" and r["key"] == "k1"]


@CASES.breaks("G11", "key 'k1' was called 4 times since generation 1, the limit is 3")
def called_too_often_since_it_was_redriven() -> Evidence:
    evidence = given_up_twice()
    last = calls_of(evidence)[-1]
    return noting(evidence, *[(last.actor, "call", dict(last.fields))] * 2)


@CASES.breaks("G11", "key 'k1' was called 7 times, the limit is 6")
def called_too_often_in_all() -> Evidence:
    evidence = given_up_twice()
    first = calls_of(evidence)[0]
    return noting(evidence, *[(first.actor, "call", {**first.fields, "id": "c9"})] * 3)


@CASES.breaks("G11", "key 'k1' was given up for 4 attempts, and its handler was called 3 times")
def given_up_again_for_attempts_of_the_generation_before() -> Evidence:
    evidence = given_up_twice()
    last = calls_of(evidence)[-1]
    return without(evidence, lambda r: r is last)


@CASES.breaks("G11", "key 'k1' is dead, though nothing was wrong with it")
def an_innocent_was_dead_before_it_was_redriven() -> Evidence:
    evidence = an_innocent_that_was_redriven_and_decided()
    return edit(evidence, "dead", evidence.rows.dead[0], attempts=0)


@CASES.holds("G11")
def an_event_keeps_its_id_when_it_is_redriven() -> Evidence:
    """So its calls may be of any generation."""
    paper = RedrivingPaper((COUNTER, STUBBORN))
    paper.send(add_to("a", 1))
    paper.drain()
    paper.send(redrive(STUBBORN, 2, "evt:counter:c1_added:k1"))
    evidence = paper.drain()
    assert evidence.calls[str(STUBBORN), "evt:counter:c1_added:k1"] == 4
    return evidence


@CASES.holds("G11")
def a_command_that_came_back_when_it_had_been_redriven() -> Evidence:
    """Its worker died before the ACK, so it runs under its old id in the next generation."""
    paper = RedrivingPaper((COUNTER,))
    paper.send(explode("a", 1))
    paper.turn(COUNTER)
    paper.turn(COUNTER, dies="echoed")
    paper.send(redrive(COUNTER, 2, "k1"))
    paper.turn(COUNTER, dies="committed")
    evidence = paper.drain()
    assert {r["id"] for r in calls_of(evidence)} == {"c1"}
    assert evidence.calls[str(COUNTER), "k1"] == 4
    return evidence


@pytest.mark.parametrize("case", CASES.params(CASES.broken))
def test_what_is_wrong_is_found(case: Broken) -> None:
    case.check()


@pytest.mark.parametrize("case", CASES.params(CASES.sound))
def test_what_is_right_passes(case: Sound) -> None:
    case.check()
