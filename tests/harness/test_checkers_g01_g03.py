"""G1, G2, G3: nothing forgotten, nothing twice, nothing from nowhere."""

from __future__ import annotations

from typing import Any

import attrs
import orjson
import pytest

from chaos.evidence import Evidence, Sent, dumped_body, envelope_of
from chaos.rows import OutputRow
from chaos.workload import GARBAGE, command, trespass
from meshforge_trio.subjects import Scope, command_subject

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
    judgement,
    key_of,
    noting,
    output_of,
    rows_of,
    streams,
    without,
    without_sent,
)
from .paper import AUDIT, COUNTER, OTHER, Paper

CASES = Cases()
FRAGILE = Scope("default", "demo", "fragile")


def add_to(entity: str, number: int, **more: Any) -> Sent:
    return Sent(command(COUNTER, "add", number, {"amount": 1}, entity_id=entity, **more))


def get(number: int) -> Sent:
    return Sent(command(COUNTER, "get", number, entity_id="a", idempotency_key=None), query=True)


def time_of(evidence: Evidence, kind: str, id_: str) -> int:
    """When the last record of a kind about a command was written."""
    return max(r.t for r in evidence.history if r.kind == kind and r["id"] == id_)


# -- G1 --------------------------------------------------------------------------------------------------------------


@CASES.breaks("G1", "key 'k2' (id c2) was accepted, is gone and undecided")
def a_key_record_is_lost() -> Evidence:
    return drop(end(), "keys", key_of(end(), "k2"))


@CASES.breaks("G1", "key 'k8' (id c8) was accepted, is gone and undecided")
def acked_before_it_was_decided() -> Evidence:
    return streams(corpse(), "commands", lambda messages: [m for m in messages if envelope_of(m)["id"] != "c8"])


@CASES.breaks("G1", "key 'k2' (id c12) was accepted, is gone and undecided")
def another_payload_was_acked_without_its_refusal() -> Evidence:
    return drop(end(), "mismatches", *rows_of(end(), "mismatches", scope=COUNTER))


@CASES.breaks("G1", "key 'trespass-77' (id c77) was accepted, is gone and undecided")
def a_violation_left_no_trace() -> Evidence:
    raw = [record for record in rows_of(end(), "keys", scope=COUNTER) if record.key.startswith("raw:")]
    return drop(end(), "keys", *raw)


@CASES.breaks("G1", "key 'trespass-1' (id c1) was accepted, is gone and undecided")
def a_violation_left_no_trace_and_its_id_is_in_use() -> Evidence:
    paper = Paper()
    paper.send(add_to("a", 1), trespass(COUNTER, OTHER, 1))
    evidence = paper.drain()
    (raw,) = [record for record in evidence.rows.keys if record.key.startswith("raw:")]
    return drop(evidence, "keys", raw)


@CASES.breaks("G1", "key '' (id c11) was accepted, is gone and was not answered")
def a_query_was_not_answered() -> Evidence:
    return without(end(), lambda r: r.kind == "heard" and '"causation_id":"c11"' in r["body"])


@CASES.breaks("G1", "key 'k6' (id c6) was accepted, is gone and undecided")
def forgotten_though_it_was_in_the_copy_that_was_put_back() -> Evidence:
    broken = drop(end(), "keys", key_of(end(), "k6"))
    broken = noting(broken, ("worker#1", "fault", {"rule": "nats:after_store@1=copy"}))
    return noting(
        broken, ("worker#1", "fault", {"rule": "nats:after_store@2=rollback"}), ("nats", "up", {}), ("h", "drained", {})
    )


@CASES.breaks("G1", "key 'k6' (id c6) was accepted, is gone and undecided")
def nobody_wrote_down_what_the_stream_said() -> Evidence:
    return without(drop(end(), "keys", key_of(end(), "k6")), lambda r: r.kind == "ok")


@CASES.holds("G1")
def sent_and_never_stored() -> Evidence:
    lost = add_to("z", 90, idempotency_key="k90")
    evidence = attrs.evolve(end(), sent=[*end().sent, attrs.evolve(lost, outcome="unknown")])
    return noting(
        evidence,
        ("client", "send", {"id": "c90", "key": "k90", "subject": lost.subject, "phase": "main"}),
        ("client", "unknown", {"id": "c90", "reason": "no answer"}),
    )


@CASES.holds("G1")
def the_answer_of_the_stream_is_still_under_way() -> Evidence:
    """Its outcome is known by the end of the run; when this image was taken nobody had heard yet."""
    late = add_to("z", 90, idempotency_key="k90")
    evidence = attrs.evolve(corpse(), sent=[*corpse().sent, late])
    return noting(evidence, ("client", "send", {"id": "c90", "key": "k90", "subject": late.subject, "phase": "main"}))


@CASES.holds("G1")
def still_in_the_stream_at_the_kill() -> Evidence:
    return corpse()


@CASES.holds("G1")
def only_outcomes_are_known() -> Evidence:
    return without(end(), lambda r: r.kind == "ok")


@CASES.holds("G1")
def a_query_was_asked_while_the_client_was_deaf() -> Evidence:
    unheard = without(end(), lambda r: r.kind == "heard" and '"causation_id":"c11"' in r["body"])
    return noting(unheard, ("client", "deaf", {"reason": "lost"}), ("client", "listening", {}))


@CASES.holds("G1")
def a_query_was_answered_to_nobody() -> Evidence:
    return without(end(), lambda r: r.kind in ("heard", "listening"))


@CASES.holds("G1")
def the_server_died_after_a_query() -> Evidence:
    unheard = without(end(), lambda r: r.kind == "heard" and '"causation_id":"c11"' in r["body"])
    asked = time_of(unheard, "send", "c11")
    return noting(unheard, ("nats", "down", {"why": "kill"}), ("nats", "up", {}), at=asked + 1)


@CASES.holds("G1")
def the_proxy_swallowed_an_answer() -> Evidence:
    unheard = without(end(), lambda r: r.kind == "heard" and '"causation_id":"c11"' in r["body"])
    return noting(unheard, ("proxy", "fault", {"rule": "proxy:publish@3=swallow"}))


@CASES.holds("G1")
def a_query_failed_until_it_was_set_aside() -> Evidence:
    paper = Paper((FRAGILE,))
    paper.send(Sent(command(FRAGILE, "peek", 1, entity_id="a", idempotency_key=None), query=True))
    return paper.drain()


@CASES.holds("G1")
def the_broker_forgot_what_came_after_the_copy() -> Evidence:
    paper = Paper()
    paper.send(add_to("a", 1))
    paper.history.write("fault", rule="nats:after_store@1=copy")
    paper.send(add_to("a", 2))
    paper.history.write("fault", rule="nats:after_store@2=rollback")
    del paper.commands[2]
    paper.history.write("up", actor="nats")
    return paper.drain()


@CASES.holds("G1")
def a_command_that_is_no_envelope() -> Evidence:
    paper = Paper()
    paper.send_raw(command_subject(COUNTER, "add"), GARBAGE)
    paper.send_raw(command_subject(COUNTER, "add"), b"\xff\xfe")
    return paper.drain()


@CASES.holds("G1")
def what_is_no_envelope_still_waits() -> Evidence:
    paper = Paper()
    paper.send_raw(command_subject(COUNTER, "add"), GARBAGE)
    paper.turn(COUNTER, dies="received")
    return paper.corpse


@CASES.holds("G1")
def a_key_of_the_runtimes_own_shape() -> Evidence:
    paper = Paper()
    paper.send(add_to("a", 1, idempotency_key="evt:forged"), add_to("a", 2, idempotency_key=None))
    return paper.drain()


# -- G2 --------------------------------------------------------------------------------------------------------------


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
    paper = Paper()
    paper.send(Sent(command(COUNTER, "explode", 1, entity_id="a"), expect=("dead",)))
    paper.drain()
    paper.redrive(COUNTER, "k1")
    paper.send(Sent(command(COUNTER, "explode", 2, entity_id="a", idempotency_key="k1"), expect=("dead",)))
    return attrs.evolve(paper.drain(), limit=0)


@CASES.breaks("G2", "key 'k1' took effect again: its decision is outputs 3 to 4, and there are [2] beside")
def redriven_though_it_had_taken_effect() -> Evidence:
    evidence = redriven()
    row = next(row for row in evidence.rows.outputs if row.n == 2)
    return edit(evidence, "outputs", row, name="added")


@CASES.breaks("G2", "key 'k1' took effect again: its decision is outputs 3 to 3, and there are [4] beside")
def redriven_and_decided_twice() -> Evidence:
    evidence = redriven()
    return edit(evidence, "keys", evidence.rows.keys[0], last_n=3)


@CASES.holds("G2")
def a_dead_letter_was_redriven() -> Evidence:
    return redriven()


# -- G3 --------------------------------------------------------------------------------------------------------------


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
    return without_sent(a_query_failed_until_it_was_set_aside(), lambda sent: True)


@CASES.breaks("G3", "the answer to a query, which is stored nowhere")
def an_answer_to_a_query_was_stored() -> Evidence:
    evidence = a_query_failed_until_it_was_set_aside()
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


@pytest.mark.parametrize("case", CASES.params(CASES.broken))
def test_what_is_wrong_is_found(case: Broken) -> None:
    case.check()


@pytest.mark.parametrize("case", CASES.params(CASES.sound))
def test_what_is_right_passes(case: Sound) -> None:
    case.check()


def test_findings_name_keys_and_scope() -> None:
    (finding,) = [f for f in judgement(drop(end(), "keys", key_of(end(), "k6")), "G1").findings if "k6" in f.what]
    assert (list(finding.keys), finding.scope) == (["k6"], "default/demo/counter")
