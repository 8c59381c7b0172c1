"""G4: everything committed is delivered once."""

from __future__ import annotations

import attrs
import pytest

from chaos.checkers import judge
from chaos.evidence import Evidence, Sent, envelope_of
from chaos.rows import MarkRow, OutputRow
from chaos.workload import command
from meshforge_trio.broker.port import StoredMessage
from meshforge_trio.subjects import EVENTS, FAILED, Scope, command_subject

from .crafted import (
    Broken,
    Cases,
    Sound,
    add,
    add_to,
    corpse,
    drop,
    edit,
    end,
    judgement,
    key_of,
    output_of,
    rows_of,
    streams,
)
from .paper import AUDIT, COUNTER, Paper
from .redriving import RedrivingPaper, redrive

CASES = Cases()


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
    back = {name: getattr(first, name) for name in ("event_seq", "event_id")}
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
def unpublished_in_a_run_that_had_drained_before() -> Evidence:
    paper = Paper()
    paper.send(add_to("a", 1))
    paper.drain()
    paper.send(add_to("a", 2))
    paper.turn(COUNTER, dies="committed")
    return paper.corpse


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


def damaged(how: str) -> Evidence:
    """The newest event is gone; a mark names it still, and recovery has not run."""
    paper = Paper()
    for number in (1, 2):
        paper.send(add_to("a", number))
        paper.turn(COUNTER)
    paper.send(add_to("a", 3))
    paper.turn(COUNTER)
    paper.history.write("fault", rule=f"nats:after_ack@3={how}")
    del paper.streams[EVENTS][1:]
    paper.history.write("up", actor="nats")
    paper.kill("after_ack")
    return paper.corpse


@CASES.holds("G4")
def the_end_of_the_stream_was_cut_off() -> Evidence:
    return damaged("truncate")


@CASES.breaks("G4", "names what its streams do not hold")
def gone_though_nothing_was_cut_off() -> Evidence:
    return damaged("full(1)")


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


@CASES.breaks("G4", "and its body the id ")
def a_command_that_names_another_id() -> Evidence:
    row = output_of(end(), "k10", "note")
    return edit(end(), "outputs", row, msg_id="0" * 32)


@CASES.breaks("G4", "a mark goes back")
def marks_go_back_among_the_letters() -> Evidence:
    before, newest = rows_of(end(), "marks", scope=COUNTER)[-2:]
    assert before.failed_seq, "a letter was published before"
    return edit(end(), "marks", newest, failed_seq=0, failed_id="")


@CASES.holds("G4")
def a_session_that_began_twice() -> Evidence:
    """Nothing was published in between, so the same mark is written again."""
    first = rows_of(end(), "marks", scope=COUNTER)[0]
    return attrs.evolve(end(), rows=attrs.evolve(end().rows, marks=[first, *end().rows.marks]))


@CASES.holds("G4")
def a_scope_that_began_when_others_had_published() -> Evidence:
    """Its first mark names where the stream stood, which is another's event."""
    paper = Paper((COUNTER,))
    paper.send(add_to("a", 1), add_to("a", 2))
    paper.drain()
    paper.join(AUDIT)
    evidence = paper.drain()
    first: MarkRow = rows_of(evidence, "marks", scope=AUDIT)[0]
    assert (first.n, first.event_id) == (0, output_of(evidence, "k2").msg_id)
    return evidence


@CASES.holds("G4")
def killed_between_two_events_of_a_receiver() -> Evidence:
    paper = Paper()
    paper.send(add_to("a", 1), add_to("a", 2))
    paper.turn(COUNTER)
    paper.turn(AUDIT, 1, dies="acked")
    return paper.corpse


def redriven_twice() -> RedrivingPaper:
    """Set aside, redriven, set aside again; the second redrive is committed by a worker that died of it."""
    paper = RedrivingPaper((COUNTER,))
    paper.send(Sent(command(COUNTER, "explode", 1, entity_id="a"), expect=("dead",)))
    paper.drain()
    paper.send(redrive(COUNTER, 2, "k1"))
    paper.drain()
    paper.send(redrive(COUNTER, 3, "k1", 1))
    paper.turn(COUNTER, dies="committed")
    return paper


@CASES.breaks("G4", "cmd.default.demo.counter.explode, is committed and reached nobody")
def what_was_redriven_is_not_sent_again() -> Evidence:
    """The key is dead as before, which answers for what was sent before it was redriven."""
    evidence = redriven_twice().drain()
    record = key_of(evidence, "k1")
    letters = [letter for letter in evidence.rows.dead if letter.generation == 2]
    return drop(edit(evidence, "keys", record, generation=1), "dead", *letters)


@CASES.breaks("G4", "belongs to default/demo/counter output 1, default/demo/counter output 5")
def two_letters_of_one_key_share_an_id() -> Evidence:
    evidence = redriven_twice().drain()
    first, second, _ = [row for row in evidence.rows.outputs if row.kind == "dead"]
    return edit(evidence, "outputs", second, msg_id=first.msg_id)


@CASES.holds("G4")
def redriven_and_free_again() -> Evidence:
    """The command that the first redrive sent was decided; its key is free, because there was a second one."""
    corpse = redriven_twice().corpse
    assert not rows_of(corpse, "keys", key="k1")
    return corpse


@CASES.holds("G4")
def redriven_until_it_was_given_up() -> Evidence:
    return redriven_twice().drain()


@pytest.mark.parametrize("case", CASES.params(CASES.broken))
def test_what_is_wrong_is_found(case: Broken) -> None:
    case.check()


@pytest.mark.parametrize("case", CASES.params(CASES.sound))
def test_what_is_right_passes(case: Sound) -> None:
    case.check()


def test_the_keys_of_a_copy_are_named() -> None:
    found = [f for f in judgement(published_twice(), "G4").findings if "2 times" in f.what]
    assert [list(finding.keys) for finding in found] == [["k1"]]
