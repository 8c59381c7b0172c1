"""Promises: what a store must hold because the outside was told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import orjson
import pytest

from chaos.evidence import Sent
from chaos.power.promises import Facts, Promises, facts_of
from chaos.power.tape import Note
from chaos.rows import HeadRow, KeyRow, OutputRow, Rows
from chaos.workload import SCOPE, command, garbage_key
from meshforge_trio.envelope import payload_hash
from meshforge_trio.subjects import Scope, command_subject, consumer_name

AUDIT = Scope("default", "demo", "audit")
ADD = Sent(command(SCOPE, "add", 1, {"amount": 5}, entity_id="a"))
GET = Sent(command(SCOPE, "get", 2, entity_id="a", idempotency_key=None), query=True)
ADDED = {
    "id": "c1_added",
    "tenant": "default",
    "workspace": "demo",
    "agent": "counter",
    "name": "added",
    "idempotency_key": "k1",
    "entity_id": "a",
    "payload": {"amount": 5, "entity_version": 1},
}
BODY = orjson.dumps(ADDED)
ROW = OutputRow(
    SCOPE, 1, "event", "k1", "c1_added", "added", "evt.default.demo.counter.added", "m1", BODY, "a", 1, b"c"
)
DECIDED = Rows(
    [ROW], [KeyRow(SCOPE, "k1", payload_hash(ADD.command), "decided", 1, 1)], heads={(SCOPE, "a"): HeadRow(1, b"c")}
)
WHOLE = facts_of(DECIDED)
READS = Promises([ADD, GET], {consumer_name(scope): scope for scope in (SCOPE, AUDIT)})


def acked(subject: str, body: bytes, scope: Scope = SCOPE, headers: bytes = b"") -> Note:
    return Note("acked", {"consumer": consumer_name(scope), "subject": subject, "headers": headers, "body": body})


def published(kind: str = "published", body: bytes = BODY, subject: str = ROW.subject, msg_id: str = "m1") -> Note:
    return Note(kind, {"msg_id": msg_id, "subject": subject, "body": body})


def faults(note: Note, facts: Facts = WHOLE) -> Sequence[tuple[str, str]]:
    promise = READS.of(note)
    assert promise is not None
    found = list(promise.broken(facts))
    assert {guarantee for guarantee, _ in found} <= set(promise.guarantees)
    return found


# -- ACKed ---------------------------------------------------------------------------------------------------------


def test_a_command_that_was_acked_is_decided() -> None:
    note = acked(ADD.subject, ADD.body)
    assert not faults(note)
    assert faults(note, Facts()) == [("G1", "cmd.default.demo.counter.add c1 (key 'k1') was ACKed, and is not decided")]


def test_the_decision_is_that_of_its_scope() -> None:
    elsewhere = attrs.evolve(WHOLE, records={(AUDIT, "k1"): payload_hash(ADD.command)})
    assert [guarantee for guarantee, _ in faults(acked(ADD.subject, ADD.body), elsewhere)] == ["G1"]


def test_another_payload_under_the_key_has_its_refusal() -> None:
    other = Sent(command(SCOPE, "add", 3, {"amount": 9}, entity_id="a", idempotency_key="k1"))
    note = acked(other.subject, other.body)
    assert faults(note) == [
        ("G1", "cmd.default.demo.counter.add c3 (key 'k1') was refused and ACKed, and its refusal is not stored")
    ]
    refusal = KeyRow(SCOPE, "k1", payload_hash(other.command), "refused", 2, 2)
    assert not faults(note, facts_of(attrs.evolve(DECIDED, mismatches=[refusal])))


def test_an_event_is_decided_by_whoever_acked_it() -> None:
    note = acked(ROW.subject, BODY, AUDIT)
    assert [guarantee for guarantee, _ in faults(note)] == ["G1"]
    key = "evt:counter:c1_added:k1"
    assert not faults(note, Facts(records={(AUDIT, key): b""}))


@pytest.mark.parametrize("body", [b"nonsense", command(AUDIT, "add", 1, entity_id="a")], ids=["garbage", "trespass"])
def test_what_has_no_key_here_is_known_by_its_bytes(body: Any) -> None:
    raw = body if isinstance(body, bytes) else Sent(body).body
    note = acked(command_subject(SCOPE, "add"), raw, headers=b"NATS/1.0")
    key = garbage_key(command_subject(SCOPE, "add"), raw, b"NATS/1.0")
    assert [guarantee for guarantee, _ in faults(note)] == ["G1"]
    assert not faults(note, Facts(records={(SCOPE, key): b""}))


def test_a_query_promises_nothing_by_its_ack() -> None:
    assert READS.of(acked(GET.subject, GET.body)) is None


def test_a_consumer_that_is_nobodys_is_an_error() -> None:
    with pytest.raises(KeyError):
        READS.of(acked(ADD.subject, ADD.body, Scope("a", "b", "c")))


# -- published -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["published", "echoed"])
def test_what_was_published_is_stored_with_its_key(kind: str) -> None:
    assert not faults(published(kind))
    assert [guarantee for guarantee, _ in faults(published(kind), Facts())] == ["G3", "G2"]


def test_an_output_without_its_key_will_be_decided_again() -> None:
    ((guarantee, what),) = faults(published(), attrs.evolve(WHOLE, records={}))
    assert guarantee == "G2"
    assert what.endswith("its key 'k1' is free: it will be decided a second time")


def test_another_body_is_no_comfort() -> None:
    ((guarantee, what),) = faults(published(), attrs.evolve(WHOLE, bodies={"m1": b"{}"}))
    assert (guarantee, what.rsplit(", ", 1)[1]) == ("G3", "and something else is stored")


@pytest.mark.parametrize("subject", ["cmd.default.demo.audit.note", "failed.cmd.default.demo.counter.add"])
def test_commands_and_letters_are_stored_too(subject: str) -> None:
    assert [guarantee for guarantee, _ in faults(published(subject=subject, msg_id="m2"))] == ["G3"]
    assert not faults(published(subject=subject))


def test_an_answer_tells_of_no_version_that_is_not_there() -> None:
    answer = orjson.dumps({**ADDED, "name": "found", "idempotency_key": "query:c2", "payload": {"entity_version": 1}})
    assert not faults(published("echoed", answer))
    ((guarantee, what),) = faults(published("echoed", answer), Facts())
    assert (guarantee, what) == (
        "G3",
        "default/demo/counter 'a': a query was answered at version 1, and 0 is stored",
    )


def test_other_notes_promise_nothing() -> None:
    assert READS.of(Note("point", {"point": "received"})) is None
    assert READS.of(Note("session", {"number": 1})) is None
