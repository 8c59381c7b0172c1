"""G1: nothing the stream accepted is forgotten."""

from __future__ import annotations

import attrs
import pytest

from chaos.evidence import Evidence, Sent, envelope_of
from chaos.rows import KeyRow
from chaos.workload import GARBAGE, command, trespass
from meshforge_trio.subjects import command_subject

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
    failed_query,
    judgement,
    key_of,
    noting,
    rows_of,
    streams,
    without,
)
from .paper import COUNTER, OTHER, Paper
from .redriving import RedrivingPaper, redrive

CASES = Cases()


def time_of(evidence: Evidence, kind: str, id_: str) -> int:
    """When the last record of a kind about a command was written."""
    return max(r.t for r in evidence.history if r.kind == kind and r["id"] == id_)


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
    return failed_query()


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


@CASES.holds("G1")
def a_query_was_set_aside_and_nobody_heard_of_it() -> Evidence:
    return without(failed_query(), lambda r: r.kind == "heard")


@CASES.holds("G1")
def a_query_was_answered_and_the_client_has_not_read_it_yet() -> Evidence:
    paper = Paper()
    paper.send(Sent(command(COUNTER, "get", 1, entity_id="a", idempotency_key=None), query=True), add_to("a", 2))
    paper.turn(COUNTER, 1, dies="acked")
    return without(paper.corpse, lambda r: r.kind == "heard")


@CASES.holds("G1")
def the_broker_went_back_and_nobody_knows_when_a_command_was_stored() -> Evidence:
    return without(the_broker_forgot_what_came_after_the_copy(), lambda r: r.kind == "ok")


def set_aside_and_redriven() -> RedrivingPaper:
    """A command was set aside, and its redrive is decided by a worker that died before it sent it again."""
    paper = RedrivingPaper((COUNTER,))
    paper.send(Sent(command(COUNTER, "explode", 1, entity_id="a"), expect=("dead",)))
    paper.drain()
    paper.send(redrive(COUNTER, 2, "k1"))
    paper.turn(COUNTER, dies="committed")
    return paper


@CASES.breaks("G1", "key 'k1': its dead letter of generation 0 was redriven, and is not decided since")
def redriven_and_forgotten() -> Evidence:
    evidence = set_aside_and_redriven().drain()
    again = next(letter for letter in evidence.rows.dead if letter.generation == 1)
    return drop(drop(evidence, "keys", key_of(evidence, "k1")), "dead", again)


@CASES.breaks("G1", "key 'k1': its dead letter of generation 0 was redriven, and is not decided since")
def redriven_and_its_key_not_freed() -> Evidence:
    evidence = redriven_and_forgotten()
    first = next(row for row in evidence.rows.outputs if row.kind == "dead")
    return add(evidence, "keys", KeyRow(COUNTER, "k1", evidence.sent[0].digest, "dead", first.n, first.n + 1))


@CASES.breaks("G1", "key 'k1' (id c1) was accepted, is gone and undecided")
def a_dead_letter_lost_its_key_without_being_redriven() -> Evidence:
    evidence = set_aside_and_redriven().corpse
    return edit(evidence, "dead", evidence.rows.dead[0], state="waiting")


@CASES.holds("G1")
def redriven_and_not_decided_again_yet() -> Evidence:
    evidence = set_aside_and_redriven().corpse
    assert not rows_of(evidence, "keys", key="k1")
    return evidence


@CASES.holds("G1")
def redriven_and_set_aside_again() -> Evidence:
    evidence = set_aside_and_redriven().drain()
    assert key_of(evidence, "k1").generation == 1
    return evidence


@pytest.mark.parametrize("case", CASES.params(CASES.broken))
def test_what_is_wrong_is_found(case: Broken) -> None:
    case.check()


@pytest.mark.parametrize("case", CASES.params(CASES.sound))
def test_what_is_right_passes(case: Sound) -> None:
    case.check()


def test_findings_name_keys_and_scope() -> None:
    (finding,) = [f for f in judgement(drop(end(), "keys", key_of(end(), "k6")), "G1").findings if "k6" in f.what]
    assert (list(finding.keys), finding.scope) == (["k6"], "default/demo/counter")
