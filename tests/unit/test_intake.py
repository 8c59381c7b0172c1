"""From a delivery to something that can be decided: every message gets a key, none raises."""

from __future__ import annotations

from typing import Any

import attrs
import orjson
import pytest
from doubles import SCOPE, Desk, command, counter, delivery, event
from hypothesis import given
from hypothesis import strategies as st

from meshforge_trio.agent import Agent, Context, Event
from meshforge_trio.envelope import EventEnvelope, JsonObject, decode_event, encode, payload_hash
from meshforge_trio.errors import Poison
from meshforge_trio.intake import Incoming, event_key, raw_key, read_delivery
from meshforge_trio.security import Violation

ADD = "cmd.t.w.counter.add"


def read(subject: str, body: bytes, *, headers: bytes = b"") -> Incoming:
    return read_delivery(delivery(subject, body, headers=headers), SCOPE, counter())


def poison_of(incoming: Incoming) -> tuple[str, str | None]:
    assert isinstance(incoming.fault, Poison), incoming.fault
    return incoming.fault.code, incoming.fault.field


@given(st.one_of(st.just(ADD), st.just("evt.t.w.source.added"), st.text(max_size=40)), st.binary(max_size=80))
def test_no_message_raises_and_each_has_a_key(subject: str, body: bytes) -> None:
    incoming = read(subject, body)
    assert incoming.key == raw_key(delivery(subject, body))[0]
    assert incoming.fault is not None
    incoming.delivery.subject.encode()


def test_a_command_is_keyed_by_its_idempotency_key() -> None:
    sent = command(1)
    incoming = read(ADD, encode(sent))
    assert (incoming.key, incoming.hash, incoming.message) == ("k1", payload_hash(sent), sent)
    assert (incoming.entity_id, incoming.query, incoming.fault) == ("a", False, None)


def test_a_query_is_keyed_by_its_id() -> None:
    incoming = read("cmd.t.w.counter.get", encode(command(1, "get", idempotency_key=None)))
    assert (incoming.key, incoming.query) == ("query:c1", True)


def test_a_command_without_key_is_poison() -> None:
    assert poison_of(read(ADD, encode(command(1, idempotency_key=None)))) == ("missing_field", "idempotency_key")


@pytest.mark.parametrize("prefix", ["evt:", "query:", "raw:"])
def test_keys_of_the_runtime_are_not_for_clients(prefix: str) -> None:
    incoming = read(ADD, encode(command(1, idempotency_key=f"{prefix}1")))
    assert poison_of(incoming) == ("bad_idempotency_key", "idempotency_key")
    assert incoming.key.startswith("raw:")


def test_a_violation_does_not_occupy_the_key_it_claims() -> None:
    body = encode(command(1, tenant="other"))
    incoming = read(ADD, body)
    assert isinstance(incoming.fault, Violation)
    assert incoming.key == raw_key(delivery(ADD, body))[0]


@pytest.mark.parametrize(
    ("context", "code"),
    [
        ("kim", "bad_security_context"),
        ({}, "bad_security_context"),
        ({"principal_id": "kim", "principal_type": "god"}, "bad_security_context"),
        ({"principal_id": "kim", "principal_type": "user", "more": 1}, "bad_security_context"),
    ],
)
def test_a_malformed_principal_is_a_violation(context: Any, code: str) -> None:
    fields = {**orjson.loads(encode(command(1))), "security_context": context}
    fault = read(ADD, orjson.dumps(fields)).fault
    assert isinstance(fault, Violation)
    assert fault.code == code


def test_an_unknown_field_is_none_whatever_it_is_called() -> None:
    fields = {**orjson.loads(encode(command(1))), "security_contexts": []}
    assert poison_of(read(ADD, orjson.dumps(fields))) == ("unknown_field", "security_contexts")


def test_a_payload_too_deep_for_its_hash_is_poison() -> None:
    body = encode(command(1)).replace(b'"payload":{}', b'"payload":{"a":' + b"[" * 400 + b"]" * 400 + b"}")
    assert poison_of(read(ADD, body)) == ("not_canonical", "payload")
    asked = encode(event(1)).replace(b'"payload":{}', b'"payload":{"a":' + b"[" * 400 + b"]" * 400 + b"}")
    assert poison_of(read("evt.t.w.source.added", asked)) == ("not_canonical", "payload")


def test_raw_keys_tell_subject_headers_and_body_apart() -> None:
    messages = [("a", b"b", b"c"), ("ab", b"", b"c"), ("a", b"", b"bc"), ("a", b"bc", b""), ("abc", b"", b"")]
    keys = {raw_key(delivery(subject, body, headers=headers)) for subject, headers, body in messages}
    assert len(keys) == len(messages)


def test_a_subject_in_another_encoding_is_poison_and_can_be_told() -> None:
    """The server stores any bytes as a subject."""
    subject = b"cmd.t.w.counter.a\xffb".decode(errors="surrogateescape")
    incoming = read(subject, b"{}")
    assert poison_of(incoming) == ("bad_token", "subject verb")
    assert incoming.delivery.subject == "cmd.t.w.counter.a\\xffb"
    assert incoming.key != read("cmd.t.w.counter.a\\xffb", b"{}").key


# --- events of other agents


def test_an_event_is_keyed_by_agent_id_and_cause() -> None:
    desk = Desk()
    keys = {
        desk.read(sent).key
        for sent in (
            event(1, idempotency_key="k"),
            event(2, idempotency_key="k"),
            event(1, idempotency_key="other"),
            event(1),
            event(1, agent="third", idempotency_key="k"),
        )
    }
    assert "evt:source:e1:k" in keys
    assert len(keys) == 5


@given(st.integers(1, 256), st.integers(1, 256))
def test_the_key_of_an_event_fits_into_an_envelope_again(id_length: int, key_length: int) -> None:
    """A chain of agents would otherwise grow it past what the next one reads."""
    key = Desk().read(event(1, id="i" * id_length, idempotency_key="k" * key_length)).key
    decode_event(encode(event(2, idempotency_key=key)))
    assert key.startswith("evt:")


def test_long_keys_of_events_stay_apart() -> None:
    desk = Desk()
    keys = {desk.read(event(1, idempotency_key="k" * length)).key for length in range(200, 257)}
    assert len(keys) == 57


def chooser(choice: Any) -> Agent[int]:
    agent: Agent[int] = Agent("counter", state=int, initial=int)

    def choose(_: EventEnvelope) -> str | None:
        if isinstance(choice, Exception):
            raise choice
        chosen: str | None = choice
        return chosen

    @agent.on("source", "added", entity=choose)
    def heard(total: int, payload: JsonObject, ctx: Context) -> Event:
        return Event("noted")

    return agent


@pytest.mark.parametrize("choice", [5, "", "e" * 257, ["a"], KeyError("amount")])
def test_choosing_what_is_no_entity_is_poison(choice: Any) -> None:
    incoming = read_delivery(delivery("evt.t.w.source.added", encode(event(1))), SCOPE, chooser(choice))
    assert poison_of(incoming) == ("bad_entity", None)
    assert isinstance(incoming.fault, Poison)
    assert "e1" in incoming.fault.reason


def test_an_event_may_concern_another_entity_or_none() -> None:
    for choice in ("other", None):
        body = encode(event(1))
        assert read_delivery(delivery("evt.t.w.source.added", body), SCOPE, chooser(choice)).entity_id == choice
    assert Desk().read(event(1)).entity_id == "a"


def test_an_event_under_a_foreign_subject_is_a_violation() -> None:
    assert isinstance(Desk().read(event(1, agent="third"), subject="evt.t.w.source.added").fault, Violation)


def test_the_key_of_an_event_stays_within_the_limit() -> None:
    """Whoever records calls names them as the engine does, however long the chain of agents."""
    event = EventEnvelope(
        id="e" * 250, tenant="t", workspace="w", agent="counter", name="added", idempotency_key="k" * 250
    )
    assert len(event_key(event)) <= 256
    assert event_key(attrs.evolve(event, id="e1", idempotency_key="k1")) == "evt:counter:e1:k1"
