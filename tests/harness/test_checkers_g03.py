"""G3: nothing comes from nowhere."""

from __future__ import annotations

from typing import Any

import attrs
import orjson
import pytest

from chaos.evidence import Evidence, Sent, dumped_body
from chaos.workload import GARBAGE, command
from meshforge_trio.subjects import command_subject

from .crafted import (
    Broken,
    Cases,
    Sound,
    add_to,
    body_with,
    corpse,
    drop,
    edit,
    end,
    failed_query,
    key_of,
    noting,
    output_of,
    rows_of,
    streams,
    without_sent,
)
from .paper import AUDIT, COUNTER, Paper
from .redriving import BROKEN, RedrivingPaper, discard, redrive

CASES = Cases()


def get(number: int) -> Sent:
    return Sent(command(COUNTER, "get", number, entity_id="a", idempotency_key=None), query=True)


@CASES.breaks("G3", "evt.default.demo.counter.added at sequence 1 of MESHFORGE_EVENTS (Msg-Id ")
def published_before_it_was_committed() -> Evidence:
    return drop(end(), "outputs", output_of(end(), "k1"))


@CASES.breaks("G3", "differs from committed output 1 of default/demo/counter")
def published_in_another_form() -> Evidence:
    return streams(end(), "events", lambda all_: [attrs.evolve(all_[0], body=all_[0].body + b" "), *all_[1:]])


@CASES.breaks("G3", "a dead, which does not belong there")
def a_letter_among_the_events() -> Evidence:
    letter = end().failed[0]
    return streams(end(), "events", lambda messages: [*messages, attrs.evolve(letter, seq=len(messages) + 1)])


@CASES.breaks("G3", "failed.cmd.default.demo.counter.explode at sequence 1 of MESHFORGE_FAILED (Msg-Id ")
def a_letter_without_a_decision() -> Evidence:
    return drop(end(), "outputs", output_of(end(), "k7", "dead_letter"))


@CASES.breaks("G3", "counter.added (Msg-Id 00) was heard and never committed")
def heard_before_it_was_committed() -> Evidence:
    body = body_with(output_of(end(), "k1"), id="c8_added", idempotency_key="k8", causation_id="c8")
    return noting(corpse(), ("client", "heard", {"subject": "evt.x", "msg_id": "00", **dumped_body(body)}))


@CASES.breaks("G3", "default/demo/counter decided key 'k6', which nobody sent")
def decided_without_being_asked() -> Evidence:
    return without_sent(end(), lambda sent: (sent.scope, sent.key) == (COUNTER, "k6"))


@CASES.breaks("G3", "decided key 'k1', for ['c1'], under which nobody sent it")
def decided_for_a_sending_that_never_was() -> Evidence:
    return without_sent(end(), lambda sent: (sent.scope, sent.command.id) == (COUNTER, "c1"))


@CASES.breaks("G3", "decided key 'k6', for a payload that nobody sent under it")
def decided_for_another_payload() -> Evidence:
    return edit(end(), "keys", key_of(end(), "k6"), payload_hash=b"\0" * 32)


@CASES.breaks("G3", "for ['c77'], which nobody sent")
def a_violation_of_nobody() -> Evidence:
    return without_sent(end(), lambda sent: sent.at is not None)


@CASES.breaks("G3", ", which nobody sent")
def garbage_of_nobody() -> Evidence:
    paper = Paper()
    paper.send_raw(command_subject(COUNTER, "add"), GARBAGE)
    return without_sent(paper.drain(), lambda sent: True)


@CASES.breaks("G3", "and there is no such event")
def an_event_of_nobody_was_applied() -> Evidence:
    record = next(record for record in rows_of(end(), "keys", scope=AUDIT) if record.key.startswith("evt:"))
    return edit(end(), "keys", record, key="evt:counter:nothing:k1")


@CASES.breaks("G3", "a query that nobody sent")
def a_query_of_nobody_was_set_aside() -> Evidence:
    return without_sent(failed_query(), lambda sent: True)


@CASES.breaks("G3", "the answer to a query, which is stored nowhere")
def an_answer_to_a_query_was_stored() -> Evidence:
    evidence = failed_query()
    return edit(evidence, "keys", evidence.rows.keys[0], outcome="decided")


def answered_at(version: object, **fields: Any) -> Evidence:
    """With an answer heard to the query of entity `a`, which has four events."""
    answer = next(r for r in end().history if r.kind == "heard" and '"causation_id":"c11"' in r["body"])
    told = orjson.loads(answer["body"])
    told["payload"]["entity_version"] = version
    body = dumped_body(orjson.dumps({**told, **fields}))
    return noting(end(), ("client", "heard", {"subject": answer["subject"], "msg_id": "00", **body}))


@CASES.breaks("G3", "'a': a query was answered at version 5, and 4 is committed")
def a_query_was_answered_before_the_commit() -> Evidence:
    return answered_at(5)


@CASES.breaks("G3", "'z': a query was answered at version 1, and 0 is committed")
def a_query_was_answered_before_the_first_commit() -> Evidence:
    return answered_at(1, entity_id="z")


@CASES.holds("G3")
def a_query_was_answered_at_the_newest_version() -> Evidence:
    return answered_at(4)


@CASES.holds("G3")
def an_answer_about_no_entity_says_what_it_likes() -> Evidence:
    return answered_at(900, entity_id=None)


@CASES.holds("G3")
def stored_though_the_client_did_not_hear_of_it() -> Evidence:
    paper = Paper()
    paper.send(attrs.evolve(add_to("a", 1), outcome="unknown"), attrs.evolve(get(2), outcome="unknown"))
    return paper.drain()


@CASES.holds("G3")
def only_the_history_knows_that_it_was_sent() -> Evidence:
    paper = Paper()
    paper.send(add_to("a", 1), add_to("a", 2))
    return attrs.evolve(paper.drain(), sent=paper.sent[:1])


@CASES.holds("G3")
def a_query_was_answered_without_a_trace() -> Evidence:
    answers = [r for r in end().history if r.kind == "heard" and '"idempotency_key":"query:c11"' in r["body"]]
    assert len(answers) == 2, "one in each tenant"
    return end()


@CASES.holds("G3")
def an_answer_without_a_payload() -> Evidence:
    answer = next(r for r in end().history if r.kind == "heard" and '"causation_id":"c11"' in r["body"])
    told = {**orjson.loads(answer["body"]), "payload": None}
    body = dumped_body(orjson.dumps(told))
    return noting(end(), ("client", "heard", {"subject": answer["subject"], "msg_id": "00", **body}))


def redriven() -> Evidence:
    """A command that was set aside and redriven, an event that was, and another one that was discarded."""
    paper = RedrivingPaper((COUNTER, BROKEN))
    paper.send(Sent(command(COUNTER, "explode", 1, entity_id="a"), expect=("dead",)), add_to("a", 2), add_to("b", 3))
    paper.drain()
    of_event = sorted(letter.key for letter in paper.desks[BROKEN].dead)
    orders = [redrive(COUNTER, 4, "k1"), redrive(BROKEN, 5, of_event[0]), discard(BROKEN, 6, of_event[1])]
    paper.send(*orders)
    return paper.drain()


def order(evidence: Evidence, number: int, **payload: Any) -> Evidence:
    """As if something else had been asked of command `c<number>`."""
    sent = [each for each in evidence.sent if each.command.id != f"c{number}"]
    (mine,) = [each for each in evidence.sent if each.command.id == f"c{number}"]
    asked = attrs.evolve(mine.command, payload={**mine.command.payload, **payload})
    return attrs.evolve(evidence, sent=[*sent, attrs.evolve(mine, command=asked)])


@CASES.breaks("G3", "is about key 'k1', generation 0, which nobody asked for: [('sys_redrive', 'k1', 1)]")
def another_generation_was_redriven_than_asked_for() -> Evidence:
    return order(redriven(), 4, generation=1)


@CASES.breaks("G3", "is about key 'k1', generation 0, which nobody asked for: [('sys_redrive', 'k2', 0)]")
def another_dead_letter_was_redriven_than_asked_for() -> Evidence:
    return order(redriven(), 4, key="k2")


@CASES.breaks("G3", "which nobody asked for: [('sys_discard', ")
def discarded_though_it_was_to_be_redriven() -> Evidence:
    evidence = redriven()
    row = output_of(evidence, "k6", "discarded", BROKEN)
    return edit(evidence, "outputs", row, name="redriven", body=body_with(row, name="redriven"))


@CASES.breaks("G3", "is about key 'k1', generation 0, of which there is no dead letter")
def redriven_what_was_never_set_aside() -> Evidence:
    evidence = redriven()
    return drop(evidence, "dead", evidence.rows.dead[0])


@CASES.breaks("G3", "sends something else again than the dead letter of key 'k1', generation 0")
def another_payload_was_sent_again() -> Evidence:
    evidence = redriven()
    row = next(each for each in rows_of(evidence, "outputs", key="k4") if each.kind == "command")
    return edit(evidence, "outputs", row, body=body_with(row, payload={"more": 1}))


@CASES.breaks("G3", "sends something else again than the dead letter of key 'k1', generation 0")
def sent_again_under_the_old_id() -> Evidence:
    evidence = redriven()
    row = next(each for each in rows_of(evidence, "outputs", key="k4") if each.kind == "command")
    return edit(evidence, "outputs", row, body=body_with(row, id="c1"))


@CASES.breaks("G3", "sends something else again than the dead letter of key 'evt:counter:c2_added:k2', generation 0")
def another_event_was_sent_again() -> Evidence:
    evidence = redriven()
    row = next(each for each in rows_of(evidence, "outputs", key="k5") if each.kind == "command")
    return edit(evidence, "outputs", row, body=body_with(row, payload={"event": {}}))


@CASES.breaks("G3", "sends something else again than the dead letter of key 'k1', generation 0")
def garbage_was_sent_again() -> Evidence:
    evidence = redriven()
    row = next(each for each in rows_of(evidence, "outputs", key="k4") if each.kind == "command")
    return edit(evidence, "outputs", row, body=b"{}")


@CASES.holds("G3")
def sent_again_what_had_been_set_aside() -> Evidence:
    evidence = redriven()
    assert [letter.state for letter in evidence.rows.dead].count("redriven") == 2
    return evidence


@pytest.mark.parametrize("case", CASES.params(CASES.broken))
def test_what_is_wrong_is_found(case: Broken) -> None:
    case.check()


@pytest.mark.parametrize("case", CASES.params(CASES.sound))
def test_what_is_right_passes(case: Sound) -> None:
    case.check()
