"""G4, G5: everything committed is delivered once, and committed as a whole."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from chaos.checkers import judge
from chaos.evidence import Evidence, Sent, envelope_of
from chaos.rows import KeyRow, MarkRow, OutputRow
from chaos.workload import command
from meshforge_trio.broker.port import StoredMessage
from meshforge_trio.subjects import EVENTS, FAILED, Scope, command_subject

from .crafted import (
    Broken,
    Cases,
    Sound,
    add,
    body_with,
    corpse,
    drop,
    edit,
    end,
    key_of,
    noting,
    output_of,
    rows_of,
    streams,
)
from .paper import AUDIT, COUNTER, OTHER, Paper

CASES = Cases()
FRAGILE = Scope("default", "demo", "fragile")


def add_to(entity: str, number: int, **more: Any) -> Sent:
    return Sent(command(COUNTER, "add", number, {"amount": 1}, entity_id=entity, **more))


def without_message(evidence: Evidence, name: str, row: OutputRow) -> Evidence:
    return streams(evidence, name, lambda messages: [m for m in messages if m.msg_id != row.msg_id])


def newest_mark(evidence: Evidence, scope: Scope = COUNTER) -> MarkRow:
    mark: MarkRow = rows_of(evidence, "marks", scope=scope)[-1]
    return mark


def first_seq(evidence: Evidence, stream: str, seq: int) -> Evidence:
    """With a stream whose beginning has expired."""
    facts = dict(evidence.facts)
    facts[stream] = attrs.evolve(facts[stream], first_seq=seq)
    name = "events" if stream == EVENTS else "failed"
    return streams(attrs.evolve(evidence, facts=facts), name, lambda messages: [m for m in messages if m.seq >= seq])


# -- G4 --------------------------------------------------------------------------------------------------------------


@CASES.breaks("G4", "evt.default.demo.counter.conflict, is committed and is not in MESHFORGE_EVENTS")
def missing_at_the_end() -> Evidence:
    return without_message(end(), "events", output_of(end(), "k4"))


@CASES.breaks("G4", "failed.cmd.default.demo.counter.explode, is committed and is not in MESHFORGE_FAILED")
def a_letter_is_missing_at_the_end() -> Evidence:
    return without_message(end(), "failed", output_of(end(), "k7", "dead_letter"))


@CASES.breaks(
    "G4", "output 1, evt.default.demo.counter.added, is committed and marked published (through 3) and is not"
)
def missing_though_a_mark_claims_it() -> Evidence:
    return without_message(corpse(), "events", output_of(corpse(), "k1"))


@CASES.breaks("G4", "cmd.default.demo.audit.note, is committed and reached nobody")
def a_command_was_not_sent_on() -> Evidence:
    told = envelope_of(output_of(end(), "k10", "note"))
    return drop(end(), "keys", key_of(end(), str(told["idempotency_key"]), AUDIT))


@CASES.breaks("G4", "is in MESHFORGE_EVENTS 2 times")
def published_twice() -> Evidence:
    return streams(end(), "events", lambda all_: [*all_, attrs.evolve(all_[0], seq=len(all_) + 1)])


@CASES.breaks("G4", "and was published as ffff")
def published_under_another_id() -> Evidence:
    first = end().events[0]
    again = StoredMessage(99, first.subject, "ffff", first.body)
    return streams(end(), "events", lambda all_: [*all_, again])


@CASES.breaks("G4", "belongs to default/demo/counter output 1, default/demo/counter output 2")
def two_outputs_of_one_id() -> Evidence:
    return edit(end(), "outputs", output_of(end(), "k2"), msg_id=output_of(end(), "k1").msg_id)


@CASES.breaks("G4", "a mark says published through output 900, there are 1")
def a_mark_claims_what_does_not_exist() -> Evidence:
    return edit(end(), "marks", newest_mark(end()), n=900)


@CASES.breaks("G4", "names what its streams do not hold")
def a_mark_names_another_message() -> Evidence:
    return edit(end(), "marks", newest_mark(end()), event_id="0" * 32)


@CASES.breaks("G4", "names what its streams do not hold")
def a_mark_names_another_letter() -> Evidence:
    return edit(end(), "marks", newest_mark(end()), failed_seq=7)


@CASES.breaks("G4", "a mark goes back")
def marks_go_back_in_the_stream() -> Evidence:
    first, second = rows_of(end(), "marks", scope=COUNTER)[-3:-1]
    back = {name: getattr(first, name) for name in ("event_seq", "event_id", "failed_seq", "failed_id")}
    assert second.event_seq > first.event_seq
    return edit(end(), "marks", newest_mark(end()), **back)


@CASES.breaks("G4", "follows one through")
def marks_go_back_in_the_store() -> Evidence:
    return edit(end(), "marks", newest_mark(end()), n=1)


@CASES.breaks("G4", "as its last")
def a_mark_names_what_it_does_not_cover() -> Evidence:
    return edit(end(), "marks", newest_mark(end()), n=newest_mark(end()).n - 1)


@CASES.breaks("G4", "never applied evt.default.demo.counter.added (output ")
def a_receiver_missed_an_event() -> Evidence:
    record = next(r for r in rows_of(end(), "keys", scope=AUDIT) if r.key.startswith("evt:counter:c2"))
    return drop(end(), "keys", record)


@CASES.breaks("G4", "applied event c1_added 2 times")
def a_receiver_applied_an_event_twice() -> Evidence:
    record = next(r for r in rows_of(end(), "keys", scope=AUDIT) if r.key.startswith("evt:counter:c1"))
    row = output_of(end(), record.key, scope=AUDIT)
    last = max(each.n for each in rows_of(end(), "outputs", scope=AUDIT))
    again = attrs.evolve(row, n=last + 1, key="evt:counter:1", msg_id="e" * 32)
    return add(end(), "outputs", again)


@CASES.breaks("G4", "is committed and is not in MESHFORGE_EVENTS")
def missing_above_what_expired() -> Evidence:
    """A stream loses its beginning; what was stored later cannot have expired before it."""
    expired = first_seq(end(), EVENTS, 2)
    return without_message(expired, "events", output_of(end(), "k13"))


@CASES.holds("G4")
def unpublished_above_the_mark() -> Evidence:
    published = {message.msg_id for message in corpse().events}
    assert any(row.msg_id not in published for row in corpse().rows.outputs)
    return corpse()


@CASES.holds("G4")
def a_stream_that_never_held_anything() -> Evidence:
    """The server calls the first sequence of such a stream 0."""
    paper = Paper()
    paper.send(add_to("a", 1))
    evidence = paper.drain()
    return first_seq(evidence, FAILED, 0)


@CASES.holds("G4")
def a_mark_before_which_everything_expired() -> Evidence:
    paper = Paper()
    paper.send(add_to("a", 1), add_to("a", 2))
    return first_seq(paper.drain(), EVENTS, 4)


@CASES.holds("G4")
def a_command_sent_on_waits() -> Evidence:
    paper = Paper((COUNTER,))
    paper.send(Sent(command(COUNTER, "tell", 1, entity_id="a")))
    paper.recover()
    paper.turn(COUNTER)
    paper.send(add_to("a", 2))
    paper.turn(COUNTER, dies="committed")
    assert paper.corpse.commands[0].subject == command_subject(AUDIT, "note")
    return paper.corpse


@CASES.holds("G4")
def the_broker_went_back_behind_a_mark() -> Evidence:
    """The copy holds the first event only; marks claim more, and recovery has not run."""
    paper = Paper()
    paper.send(add_to("a", 1))
    paper.recover()
    paper.turn(COUNTER)
    paper.send(add_to("a", 2))
    paper.turn(COUNTER)
    paper.history.write("fault", rule="nats:after_ack@1=copy")
    paper.send(add_to("a", 3))
    paper.turn(COUNTER)
    paper.send(add_to("a", 4))
    paper.turn(COUNTER)
    paper.history.write("fault", rule="nats:after_ack@2=rollback")
    del paper.streams[EVENTS][1:]
    paper.history.write("up", actor="nats")
    paper.kill("after_ack")
    marks = rows_of(paper.corpse, "marks", scope=COUNTER)
    assert [mark.n for mark in marks] == [0, 1, 2, 3]
    return paper.corpse


@CASES.breaks("G4", "is committed and marked published (through 1) and is not in MESHFORGE_EVENTS")
def lost_though_the_broker_went_back_to_after_it() -> Evidence:
    evidence = the_broker_went_back_behind_a_mark()
    mark = rows_of(evidence, "marks", scope=COUNTER)[1]
    evidence = edit(evidence, "marks", mark, event_id="0" * 32)
    gone = attrs.evolve(evidence.events[0], msg_id="0" * 32)
    return streams(evidence, "events", lambda _: [gone])


@CASES.holds("G4")
def two_agents_of_one_name_in_two_tenants_apply_their_own() -> Evidence:
    keys = {
        scope: {r.key for r in rows_of(end(), "keys", scope=scope)}
        for scope in (AUDIT, attrs.evolve(AUDIT, tenant="acme"))
    }
    assert any(key.startswith("evt:") for key in set.intersection(*keys.values()))
    return end()


@CASES.holds("G4")
def an_event_with_a_long_name_is_applied() -> Evidence:
    paper = Paper()
    paper.send(add_to("a", 1, idempotency_key="k" * 256))
    evidence = paper.drain()
    assert any(len(r.key) == 68 for r in rows_of(evidence, "keys", scope=AUDIT)), "its hash"
    return evidence


def test_an_end_that_did_not_drain_is_judged_as_a_corpse() -> None:
    evidence = attrs.evolve(corpse(), final=True)
    assert [each.id for each in judge(evidence) if not each.holds] == ["G12"]


# -- G5 --------------------------------------------------------------------------------------------------------------


@CASES.breaks("G5", "key 'k1' is recorded, its output 1 is missing")
def a_record_without_its_output() -> Evidence:
    return drop(end(), "outputs", output_of(end(), "k1"))


@CASES.breaks("G5", "output 1 (added) has no key record")
def an_output_without_its_record() -> Evidence:
    return drop(end(), "keys", key_of(end(), "k1"))


@CASES.breaks("G5", "key 'k1' claims output 2, which belongs to 'k2'")
def a_record_claims_anothers_output() -> Evidence:
    return edit(end(), "keys", key_of(end(), "k1"), first_n=2, last_n=2)


@CASES.breaks("G5", "output 1 belongs to 2 decisions, of ['k1', 'k2']")
def two_records_claim_one_output() -> Evidence:
    return edit(end(), "keys", key_of(end(), "k2"), first_n=1)


@CASES.breaks("G5", "key 'k1' is recorded, and has no outputs")
def a_command_without_an_answer() -> Evidence:
    return edit(end(), "keys", key_of(end(), "k1"), last_n=0)


@CASES.breaks("G5", "where 2 should be there is 3")
def numbers_with_a_gap() -> Evidence:
    return drop(drop(end(), "outputs", output_of(end(), "k2")), "keys", key_of(end(), "k2"))


@CASES.breaks("G5", "key 'k4' is recorded as decided, its outputs are [('record', 'conflict')]")
def a_conflict_recorded_as_decided() -> Evidence:
    return edit(end(), "keys", key_of(end(), "k4"), outcome="decided")


@CASES.breaks("G5", "key 'k1' is recorded as conflict, its outputs are [('event', 'added')]")
def a_decision_recorded_as_conflict() -> Evidence:
    return edit(end(), "keys", key_of(end(), "k1"), outcome="conflict")


@CASES.breaks("G5", "key 'k1' is recorded as refused, its outputs are [('event', 'added')]")
def a_decision_recorded_as_refused() -> Evidence:
    return edit(end(), "keys", key_of(end(), "k1"), outcome="refused")


@CASES.breaks("G5", "key 'k1' is recorded as dead, its outputs are [('event', 'added')]")
def a_decision_recorded_as_dead() -> Evidence:
    return edit(end(), "keys", key_of(end(), "k1"), outcome="dead")


@CASES.breaks("G5", "is recorded as mismatch, its outputs are [('record', 'refused')]")
def a_refusal_for_another_reason() -> Evidence:
    (refusal,) = rows_of(end(), "mismatches", scope=COUNTER)
    row = next(r for r in rows_of(end(), "outputs", scope=COUNTER) if r.n == refusal.first_n)
    return edit(end(), "outputs", row, body=body_with(row, payload={"code": "no"}))


@CASES.breaks("G5", "output 1 is id 'c1_added', its body says 'c9'")
def a_body_of_another_event() -> Evidence:
    row = output_of(end(), "k1")
    return edit(end(), "outputs", row, body=body_with(row, id="c9"))


@CASES.breaks("G5", "is key 'k7', its body says 'k8'")
def a_letter_of_another_key() -> Evidence:
    row = output_of(end(), "k7", "dead_letter")
    return edit(end(), "outputs", row, body=body_with(row, key="k8"))


@CASES.breaks("G5", "is action 'note', its body says 'nope'")
def a_command_of_another_action() -> Evidence:
    row = output_of(end(), "k10", "note")
    return edit(end(), "outputs", row, body=body_with(row, action="nope"))


@CASES.breaks("G5", "key 'k7' is dead, and its letter of generation 0 is missing")
def dead_without_a_letter() -> Evidence:
    return drop(end(), "dead", *rows_of(end(), "dead", scope=COUNTER))


@CASES.breaks("G5", "key 'k7' is decided, and has a dead letter of the same generation")
def alive_with_a_letter() -> Evidence:
    return edit(end(), "keys", key_of(end(), "k7"), outcome="decided")


@CASES.breaks("G5", "key 'k7' has a dead letter and no record")
def a_letter_without_a_record() -> Evidence:
    return drop(end(), "keys", key_of(end(), "k7"))


@CASES.breaks("G5", "the letter sent is not the one stored: attempts, payload differ")
def a_letter_of_another_command() -> Evidence:
    (letter,) = rows_of(end(), "dead", scope=COUNTER)
    return edit(end(), "dead", letter, body=b"{}", attempts=9)


def binary_letter(body_max: int = 100_000) -> Evidence:
    paper = Paper(body_max=body_max)
    paper.send_raw(command_subject(COUNTER, "add"), b"\xff\xfe" + b"x" * 1000)
    return paper.drain()


@CASES.breaks("G5", "the letter sent is not the one stored: payload_base64 differ")
def a_letter_of_other_bytes() -> Evidence:
    evidence = binary_letter()
    return edit(evidence, "dead", evidence.rows.dead[0], body=b"")


@CASES.breaks("G5", "the letter sent is not the one stored: payload_sha256 differ")
def a_long_letter_of_other_bytes() -> Evidence:
    evidence = binary_letter(800)
    return edit(evidence, "dead", evidence.rows.dead[0], body=b"")


@CASES.breaks("G5", "key 'k6' is decided and still counts attempts")
def a_decided_command_counts_attempts() -> Evidence:
    return attrs.evolve(end(), rows=attrs.evolve(end().rows, attempts={(COUNTER, "k6"): 1}))


@CASES.breaks("G5", "key 'k1' is decided and still counts attempts")
def at_the_end_also_one_that_was_sent_again() -> Evidence:
    return attrs.evolve(end(), rows=attrs.evolve(end().rows, attempts={(COUNTER, "k1"): 1}))


@CASES.breaks("G5", "key 'k3' is decided and still counts attempts")
def on_a_corpse_one_that_was_sent_once() -> Evidence:
    return attrs.evolve(corpse(), rows=attrs.evolve(corpse().rows, attempts={(COUNTER, "k3"): 1}))


@CASES.holds("G5")
def killed_between_counting_and_calling_a_command_just_decided() -> Evidence:
    """Both sendings of a key were in hand at a kill. The first is decided; the second was told to run alone before."""
    evidence = attrs.evolve(corpse(), rows=attrs.evolve(corpse().rows, attempts={(COUNTER, "k1"): 1}))
    return noting(evidence, ("worker#1", "point", {"point": "in_attempt", "nth": 1}))


@CASES.holds("G5")
def a_letter_in_bytes() -> Evidence:
    return binary_letter()


@CASES.holds("G5")
def a_letter_too_long_to_be_sent_whole() -> Evidence:
    return binary_letter(800)


@CASES.holds("G5")
def an_event_that_leads_to_nothing() -> Evidence:
    paper = Paper((COUNTER, FRAGILE))
    paper.send(add_to("a", 1))
    evidence = paper.drain()
    record: KeyRow
    (record,) = rows_of(evidence, "keys", scope=FRAGILE)
    assert record.last_n < record.first_n
    return evidence


@CASES.holds("G5")
def two_scopes_count_from_one() -> Evidence:
    assert output_of(end(), "k1", scope=OTHER).n == output_of(end(), "k1").n == 1
    return end()


@pytest.mark.parametrize("case", CASES.params(CASES.broken))
def test_what_is_wrong_is_found(case: Broken) -> None:
    case.check()


@pytest.mark.parametrize("case", CASES.params(CASES.sound))
def test_what_is_right_passes(case: Sound) -> None:
    case.check()
