"""G11: poison is set aside once, and alone."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from chaos.checkers.struck import Strikes
from chaos.evidence import Evidence, Sent
from chaos.history import Record
from chaos.workload import command
from meshforge_trio.subjects import FAILED

from .crafted import (
    Broken,
    Cases,
    Sound,
    drop,
    edit,
    end,
    judgement,
    key_of,
    noting,
    rows_of,
    streams,
    without,
)
from .paper import COUNTER, OTHER, Paper

CASES = Cases()


def add_to(entity: str, number: int, **more: Any) -> Sent:
    return Sent(command(COUNTER, "add", number, {"amount": 1}, entity_id=entity, **more), expect=("decided",))


def explode(entity: str, number: int) -> Sent:
    return Sent(command(COUNTER, "explode", number, entity_id=entity), expect=("dead",))


def expecting(evidence: Evidence, key: str, *outcomes: str) -> Evidence:
    """As if the workload had known other outcomes of a key."""
    sent = [attrs.evolve(s, expect=outcomes) if (s.scope, s.key) == (COUNTER, key) else s for s in evidence.sent]
    return attrs.evolve(evidence, sent=sent)


@CASES.breaks("G11", "failed.cmd.default.demo.counter.explode key 'k7' generation 0 was dead-lettered 2 times")
def set_aside_twice() -> Evidence:
    letter = end().failed[0]
    return streams(end(), "failed", lambda all_: [*all_, attrs.evolve(letter, seq=9, msg_id="a" * 32)])


@CASES.breaks("G11", "key 'k7' was dead-lettered, and no record says so")
def set_aside_without_a_record() -> Evidence:
    return drop(end(), "keys", key_of(end(), "k7"))


@CASES.breaks("G11", "key 'k7' was dead-lettered and is decided")
def set_aside_and_decided() -> Evidence:
    return edit(end(), "keys", key_of(end(), "k7"), outcome="decided")


@CASES.breaks("G11", "key 'k7' is dead, and its letter is not in MESHFORGE_FAILED")
def dead_and_not_in_the_stream() -> Evidence:
    return streams(end(), "failed", lambda all_: [m for m in all_ if ".default." not in m.subject])


@CASES.breaks("G11", "key 'k1' is poison and was decided")
def poison_was_decided() -> Evidence:
    return expecting(end(), "k1", "dead")


@CASES.breaks("G11", "key 'k7' is dead, though nothing was wrong with it")
def an_innocent_is_dead() -> Evidence:
    return expecting(end(), "k7", "decided")


@CASES.breaks("G11", "key 'k2' is dead, though nothing was wrong with it")
def neighbours_pay_for_a_killer() -> Evidence:
    """Worker after worker dies of one command, and the one behind it is counted as well."""
    return _killed_by("k1", blamed="k2")


def _killed_by(key: str, *, blamed: str) -> Evidence:
    """Three workers die in calls of `key`; the command of `blamed` ends as a dead letter of two attempts."""
    paper = Paper((COUNTER,), limit=3)
    paper.send(Sent(command(COUNTER, "explode", 2, entity_id="b"), expect=("decided",)))
    evidence = paper.drain()
    call = {"scope": str(COUNTER), "id": "c9", "action": "die", "entity": "a", "version": 0, "before": "b"}
    dead = [
        record
        for n in (7, 8, 9)
        for record in (
            (f"worker#{n}", "point", {"point": "before_attempt", "nth": 1}),
            (f"worker#{n}", "call", {**call, "key": key}),
            (f"worker#{n}", "exit", {"status": -9}),
        )
    ]
    assert rows_of(evidence, "dead")[0].key == blamed
    return noting(evidence, *dead)


@CASES.breaks("G11", "key 'k8' was called 4 times, the limit is 3")
def called_more_often_than_the_limit() -> Evidence:
    call = next(r for r in end().history if r.kind == "call" and r["key"] == "k8")
    return noting(end(), *[(call.actor, "call", dict(call.fields))] * 3)


@CASES.breaks("G11", "key 'k7' was given up after 1 attempts, the limit is 3")
def given_up_too_early() -> Evidence:
    (letter,) = rows_of(end(), "dead", scope=COUNTER)
    return edit(end(), "dead", letter, attempts=1)


@CASES.breaks("G11", "key 'k7' was given up for 2 attempts, and its handler was called 1 times")
def given_up_for_attempts_that_were_none() -> Evidence:
    paper = Paper()
    paper.send(attrs.evolve(explode("c", 7)))
    evidence = paper.drain()
    first = next(r for r in evidence.history if r.kind == "call")
    return without(evidence, lambda r: r is first)


@CASES.breaks("G11", "['k1'] failed again and again, and key 'k2' of another entity was never called")
def one_entity_stops_another() -> Evidence:
    return _while_one_fails("b", limit=5)


def _while_one_fails(entity: str, *, limit: int) -> Evidence:
    """The end of a run in which time was up while one command failed and another one waited."""
    paper = Paper((COUNTER,), limit=limit)
    paper.send(explode("a", 1))
    paper.recover()
    paper.turn(COUNTER)
    paper.turn(COUNTER)
    paper.send(add_to(entity, 2))
    return paper.image(final=True)


@CASES.holds("G11")
def an_innocent_whose_workers_were_killed_each_time() -> Evidence:
    """Killed in its first run, and between counting and calling from then on: it was counted, and by right."""
    paper = Paper()
    paper.send(add_to("a", 1))
    paper.recover()
    for stage in ("decided", "counted", "counted"):
        paper.turn(COUNTER, dies=stage)
    evidence = paper.drain()
    assert key_of(evidence, "k1").outcome == "dead"
    return evidence


@CASES.holds("G11")
def an_innocent_whose_workers_were_stopped_each_time() -> Evidence:
    evidence = an_innocent_whose_workers_were_killed_each_time()
    history = [
        attrs.evolve(r, fields={"rule": str(r["rule"]).replace("=kill", "=stop")}) if r.kind == "fault" else r
        for r in evidence.history
        if r.kind != "exit"
    ]
    return attrs.evolve(evidence, history=history)


@CASES.holds("G11")
def poison_and_its_neighbours() -> Evidence:
    assert key_of(end(), "k8").outcome == "decided"
    return end()


@CASES.holds("G11")
def calls_beyond_the_limit_that_nobody_could_count() -> Evidence:
    """The disk was full when the failure of a call was to be stored."""
    paper = Paper()
    paper.send(explode("a", 1))
    evidence = paper.drain()
    call = next(r for r in evidence.history if r.kind == "call")
    again = [("worker#1", "call", dict(call.fields))] * 2
    return noting(evidence, ("worker#1", "fault", {"rule": "worker#1:before_hold@1=full(0.2)"}), *again)


@CASES.holds("G11")
def killed_before_a_call_that_was_counted() -> Evidence:
    paper = Paper(limit=4)
    paper.send(explode("a", 1))
    paper.recover()
    paper.turn(COUNTER, dies="decided")
    paper.turn(COUNTER, dies="counted")
    return paper.drain()


@CASES.holds("G11")
def poison_that_no_handler_ever_saw() -> Evidence:
    paper = Paper()
    paper.send(Sent(command(COUNTER, "add", 1, {"amount": 1}, idempotency_key=None), expect=("dead",)))
    return paper.drain()


def test_what_waits_behind_its_own_entity_is_not_blocked() -> None:
    for evidence in (_while_one_fails("a", limit=5), corpse_that_failed_once()):
        assert judgement(evidence, "G11").holds


def corpse_that_failed_once() -> Evidence:
    paper = Paper((COUNTER,), limit=5)
    paper.send(explode("a", 1))
    paper.recover()
    paper.turn(COUNTER)
    paper.send(add_to("b", 2))
    return paper.image(final=True)


def test_without_a_limit_calls_are_not_counted() -> None:
    evidence = attrs.evolve(called_more_often_than_the_limit(), limit=0)
    assert judgement(evidence, "G11").holds


def test_letters_that_expired_are_not_missed() -> None:
    evidence = dead_and_not_in_the_stream()
    facts = {**evidence.facts, FAILED: attrs.evolve(evidence.facts[FAILED], first_seq=3)}
    assert judgement(attrs.evolve(evidence, facts=facts), "G11").holds


@CASES.breaks("G11", "key 'k1' is dead, though nothing was wrong with it")
def an_innocent_is_dead_without_having_been_tried() -> Evidence:
    evidence = an_innocent_whose_workers_were_killed_each_time()
    return edit(evidence, "dead", evidence.rows.dead[0], attempts=0)


@CASES.holds("G11")
def an_innocent_that_was_counted_as_often_as_workers_died() -> Evidence:
    paper = Paper()
    paper.send(add_to("a", 1))
    for stage in ("received", "counted", "counted"):
        paper.turn(COUNTER, dies=stage)
    evidence = paper.drain()
    assert [letter.attempts for letter in evidence.rows.dead] == [2]
    return evidence


@CASES.holds("G11")
def a_letter_is_not_yet_published() -> Evidence:
    paper = Paper()
    paper.send(explode("a", 1))
    paper.turn(COUNTER)
    paper.turn(COUNTER, dies="committed")
    assert key_of(paper.corpse, "k1").outcome == "dead"
    return paper.corpse


@CASES.holds("G11")
def a_query_asked_for_ever() -> Evidence:
    call = next(r for r in end().history if r.kind == "call" and r["key"] == "query:c11")
    return noting(end(), *[(call.actor, "call", dict(call.fields))] * 9)


@pytest.mark.parametrize("case", CASES.params(CASES.broken))
def test_what_is_wrong_is_found(case: Broken) -> None:
    case.check()


@pytest.mark.parametrize("case", CASES.params(CASES.sound))
def test_what_is_right_passes(case: Sound) -> None:
    case.check()


def test_who_waits_for_another_reason_is_not_blocked() -> None:
    blocked = one_entity_stops_another()
    assert not judgement(blocked, "G11").holds
    elsewhere = streams(
        blocked, "commands", lambda all_: [attrs.evolve(m, subject=m.subject.replace("default", "acme")) for m in all_]
    )
    assert judgement(elsewhere, "G11").holds, "of another scope"
    call = next(r for r in blocked.history if r.kind == "call")
    called = noting(blocked, (call.actor, "call", {**call.fields, "key": "k2"}))
    assert judgement(called, "G11").holds, "it had its turn"
    of_another = {(OTHER, "k1"): 1}
    assert judgement(attrs.evolve(blocked, rows=attrs.evolve(blocked.rows, attempts=of_another)), "G11").holds


def _death_after(*records: Record) -> Strikes:
    """A worker that dies having done this; both of its scopes call handlers at some time."""
    before = [call("counter", "k1"), call("audit", "k9")]
    told = [attrs.evolve(record, t=t) for t, record in enumerate([*before, *records], 1)]
    return Strikes([*told, Record(99, "worker#1", "exit", {"status": -9})])


def call(agent: str, key: str) -> Record:
    fields = {"scope": f"default/demo/{agent}", "key": key, "id": key, "action": "add", "entity": None, "version": 0}
    return Record(0, "worker#1", "call", {**fields, "before": ""})


def at(point: str) -> Record:
    return Record(0, "worker#1", "point", {"point": point, "nth": 1})


def test_an_attempt_that_was_counted_may_be_anybodys_until_every_scope_has_called() -> None:
    """A point does not say whose it is, and another agent of the worker may call its handler in between."""
    (incident,) = _death_after(at("before_attempt"), call("audit", "k10")).incidents
    assert incident.concerns("default/demo/counter", "k7"), "its call was counted, and may not have been made"
    (incident,) = _death_after(at("in_attempt"), call("audit", "k10"), call("counter", "k7")).incidents
    assert incident.concerns("default/demo/counter", "k7")
    assert not incident.concerns("default/demo/counter", "k1"), "every scope has called since"
