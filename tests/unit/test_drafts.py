"""The bytes of outputs: ids that follow from the command alone, within what the broker and its readers take."""

from __future__ import annotations

import base64
import hashlib
from typing import Any, cast

import orjson
import pytest
from doubles import SCOPE, Desk, command, event
from hypothesis import given
from hypothesis import strategies as st

from meshforge_trio.agent import Send
from meshforge_trio.drafts import Cause, Drafter, as_message, headers_of, told
from meshforge_trio.envelope import SecurityContext, decode_command, decode_event
from meshforge_trio.errors import Poison
from meshforge_trio.intake import Incoming
from meshforge_trio.store.port import Kind, Output
from meshforge_trio.subjects import Scope

LIMIT = 10_000
DRAFTER = Drafter(SCOPE, LIMIT)


def cause_of(incoming: Incoming | None = None, generation: int = 0, drafter: Drafter = DRAFTER) -> Cause:
    return drafter.cause(incoming or Desk().read(command(1)), 99.0, generation)


def drafted(incoming: Incoming | None = None, *names: str) -> list[Output]:
    cause = cause_of(incoming)
    return [DRAFTER.event(cause, name, {"n": 1}, entity_id="a") for name in names or ("added",)]


# --- ids


def test_event_ids_count_from_the_second_of_a_name() -> None:
    ids = [output.event_id for output in drafted(None, "added", "noted", "added", "added", "noted")]
    assert ids == ["c1_added", "c1_noted", "c1_added_2", "c1_added_3", "c1_noted_2"]


@given(st.integers(1, 256))
def test_an_event_id_is_an_id_whatever_the_command_was_called(length: int) -> None:
    incoming = Desk().read(command(1, id="i" * length))
    (output,) = drafted(incoming, "n" * 64)
    assert decode_event(output.body).id == output.event_id
    assert length > 160 or output.event_id.startswith("i" * length)


msg_id_parts = st.tuples(
    st.sampled_from(["t", "t2"]),
    st.sampled_from(["w", "w2"]),
    st.sampled_from(["counter", "other"]),
    st.sampled_from(["k", "k\0event", "k\0", "\0k"]),
    st.sampled_from(["event", "record", "command", "dead"]),
    st.integers(0, 2),
    st.integers(0, 2),
)


@given(msg_id_parts, msg_id_parts)
def test_msg_ids_differ_by_scope_key_kind_generation_and_number(one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    def msg_id(parts: tuple[Any, ...]) -> str:
        tenant, workspace, agent, key, kind, generation, number = parts
        drafter = Drafter(Scope(tenant, workspace, agent), LIMIT)
        cause = Cause(key, "c", 0.0, "ab" * 16, None, generation, number=number)
        return drafter.msg_id(cause, cast(Kind, kind))

    assert (msg_id(one) == msg_id(other)) == (one == other)


def test_msg_ids_do_not_depend_on_what_a_resend_changes() -> None:
    desk = Desk()
    first = desk.read(command(1))
    again = desk.read(command(1, id="c7", ts=7.0, trace_id="ab" * 16))
    assert [o.msg_id for o in drafted(first)] == [o.msg_id for o in drafted(again)]


# --- what an output takes from its cause


def test_trace_time_and_cause_are_handed_on() -> None:
    incoming = Desk().read(command(1, trace_id="ab" * 16, correlation_id="chain"))
    read = decode_event(drafted(incoming)[0].body)
    assert (read.trace_id, read.ts, read.causation_id, read.correlation_id) == ("ab" * 16, 1.0, "c1", "chain")
    assert read.idempotency_key == "k1"
    assert read.security_context == SecurityContext("counter", "agent", "kim")


def test_a_chain_begins_with_its_first_command() -> None:
    assert decode_event(drafted()[0].body).correlation_id == "c1"


def test_time_is_the_runtimes_where_the_command_has_none() -> None:
    assert decode_event(drafted(Desk().read(command(1, ts=None)))[0].body).ts == 99.0


def test_every_output_has_its_own_span() -> None:
    spans = [decode_event(output.body).span_id for output in drafted(None, "added", "noted")]
    assert len(set(spans)) == 2


@pytest.mark.parametrize(
    ("headers", "trace"),
    [
        (b"NATS/1.0\r\ntraceparent: 00-" + b"ab" * 16 + b"-" + b"cd" * 8 + b"-01\r\n\r\n", "ab" * 16),
        (b"NATS/1.0\r\nTraceparent:00-" + b"AB" * 16 + b"-" + b"cd" * 8 + b"-01 \r\n\r\n", "ab" * 16),
        (b"NATS/1.0\r\ntraceparent: 00-ab-cd-01\r\n\r\n", hashlib.sha256(b"k1").hexdigest()[:32]),
        (b"", hashlib.sha256(b"k1").hexdigest()[:32]),
    ],
)
def test_a_trace_comes_from_the_header_else_from_the_key(headers: bytes, trace: str) -> None:
    read = decode_event(drafted(Desk().read(command(1), headers=headers))[0].body)
    assert read.trace_id == trace


@given(st.text(max_size=40), st.text(min_size=1, max_size=60))
def test_the_trace_header_is_read_from_the_body_whatever_else_is_in_it(payload: str, chain: str) -> None:
    lure = '"trace_id":"ffffffffffffffffffffffffffffffff'
    incoming = Desk().read(command(1, trace_id="ab" * 16, correlation_id=f"{chain}{lure}"))
    cause = cause_of(incoming)
    output = DRAFTER.event(cause, "added", {payload: lure, "trace_id": "00" * 16}, entity_id=None)
    message = as_message(output)
    assert message.headers == {"traceparent": f"00-{'ab' * 16}-{output.msg_id[:16]}-01"}
    assert (message.subject, message.msg_id, message.body) == (output.subject, output.msg_id, output.body)


def test_the_chain_of_an_entity_links_bodies() -> None:
    cause = cause_of()
    first = DRAFTER.event(cause, "added", {}, entity_id="a", version=1, chain=b"")
    second = DRAFTER.event(cause, "added", {}, entity_id="a", version=2, chain=first.chain)
    assert first.chain == hashlib.sha256(first.body).digest()
    assert second.chain == hashlib.sha256(first.chain + second.body).digest()


# --- commands to other agents


def sent(send: Send, incoming: Incoming | None = None) -> Output:
    return DRAFTER.command(cause_of(incoming), send)


def test_a_command_derives_its_key_from_its_cause() -> None:
    output = sent(Send("other", "do", {"n": 1}, entity_id="x", expected_version=3))
    read = decode_command(output.body)
    assert output.subject == "cmd.t.w.other.do"
    assert (read.tenant, read.workspace, read.agent, read.action) == ("t", "w", "other", "do")
    assert (read.entity_id, read.expected_version, read.payload) == ("x", 3, {"n": 1})
    assert (read.id, read.idempotency_key) == (output.msg_id, f"k1~{output.msg_id[:24]}")
    assert (read.causation_id, read.correlation_id) == ("c1", "c1")
    assert read.security_context == SecurityContext("counter", "agent", "kim")
    again = sent(Send("other", "do", {"n": 1}, entity_id="x", expected_version=3))
    assert again.body == output.body


def test_two_commands_of_one_decision_have_two_keys() -> None:
    cause = cause_of()
    outputs = [DRAFTER.command(cause, Send("other", "do")) for _ in range(3)]
    assert len({decode_command(output.body).idempotency_key for output in outputs}) == 3


def test_on_behalf_of_survives_the_chain() -> None:
    incoming = Desk().read(command(1, security_context=SecurityContext("third", "agent", "ann")))
    read = decode_command(sent(Send("other", "do"), incoming).body)
    assert read.security_context == SecurityContext("counter", "agent", "ann")


@pytest.mark.parametrize("name", ["raw", "query", "evt", "source"])
@pytest.mark.parametrize("event_id", ["e1", "raw:1", "query:1", "evt:1"])
def test_the_key_of_a_command_that_an_event_causes_is_one_its_receiver_takes(name: str, event_id: str) -> None:
    incoming = Desk().read(event(1, agent=name, id=event_id))
    assert incoming.fault is None
    output = DRAFTER.command(cause_of(incoming), Send("counter", "add"))
    received = Desk().arrive(output.subject, output.body)
    assert received.fault is None
    assert "~" in received.key


@pytest.mark.parametrize(
    ("send", "code", "field"),
    [
        (Send("a.b", "do"), "bad_token", "agent"),
        (Send("security", "do"), "reserved_agent", "agent"),
        (Send("lock", "do"), "reserved_agent", "agent"),
        (Send("other", "*"), "bad_token", "action"),
        (Send("other", "do", cast(Any, "text")), "nonsense", "payload"),
        (Send("other", "do", {"n": float("nan")}), "not_json", "payload"),
        (Send("other", "do", {"n": 2**64}), "not_json", "payload"),
        (Send("other", "do", entity_id=""), "bad_entity_id", "entity_id"),
        (Send("other", "do", entity_id="e" * 257), "bad_entity_id", "entity_id"),
        (Send("other", "do", entity_id=cast(Any, 5)), "bad_entity_id", "entity_id"),
        (Send("other", "do", entity_id="x", expected_version=-1), "bad_expected_version", "expected_version"),
        (Send("other", "do", entity_id="x", expected_version=True), "bad_expected_version", "expected_version"),
        (Send("other", "do", expected_version=1), "bad_expected_version", "expected_version"),
        (Send("other", "do", {"text": "x" * LIMIT}), "oversized", "payload"),
    ],
)
def test_what_the_receiver_would_not_take_is_not_sent(send: Send, code: str, field: str) -> None:
    with pytest.raises(Poison) as caught:
        sent(send)
    assert (caught.value.code, caught.value.field) == (code, field)


# --- events that nobody could read


@pytest.mark.parametrize(
    ("name", "payload", "code"),
    [
        ("added", "text", "nonsense"),
        ("added", ["a"], "nonsense"),
        ("added", None, "nonsense"),
        ("added", {"n": float("nan")}, "not_json"),
        ("added", {"n": object()}, "not_json"),
        ("added", {1: 2}, "not_json"),
        ("added", {"text": "\ud800"}, "not_json"),
        ("added", {"n": 2**64}, "not_json"),
        ("added", {"text": "x" * LIMIT}, "oversized"),
        ("a.b", {}, "bad_token"),
        ("", {}, "bad_token"),
    ],
)
def test_an_event_that_could_not_be_read_is_poison(name: str, payload: Any, code: str) -> None:
    with pytest.raises(Poison) as caught:
        DRAFTER.event(cause_of(), name, payload, entity_id=None)
    assert caught.value.code == code


def test_a_body_may_be_as_large_as_the_limit() -> None:
    room = LIMIT - len(DRAFTER.event(cause_of(), "added", {"text": ""}, entity_id=None).body)
    body = DRAFTER.event(cause_of(), "added", {"text": "x" * room}, entity_id=None).body
    assert len(body) == LIMIT
    with pytest.raises(Poison, match=f"has {LIMIT + 1} bytes; the broker takes {LIMIT}"):
        DRAFTER.event(cause_of(), "added", {"text": "x" * (room + 1)}, entity_id=None)


# --- dead letters


def letter_of(incoming: Incoming, drafter: Drafter = DRAFTER) -> tuple[Output, dict[str, Any]]:
    output = drafter.dead_letter(cause_of(incoming), incoming, {"code": "never", "attempts": 2})
    return output, orjson.loads(output.body)


def test_a_dead_letter_carries_the_original_and_its_story() -> None:
    desk = Desk()
    incoming = desk.read(command(1), headers=b"NATS/1.0\r\na: b\xff\r\n\r\n")
    output, letter = letter_of(incoming)
    assert output.subject == "failed.cmd.t.w.counter.add"
    assert headers_of(output) == {}
    assert letter["payload"].encode() == incoming.delivery.body
    assert letter["headers"] == "NATS/1.0\r\na: b\xff\r\n\r\n"
    assert (letter["subject"], letter["key"], letter["code"]) == ("cmd.t.w.counter.add", "k1", "never")


def test_bytes_that_are_no_text_are_kept_in_base64() -> None:
    _, letter = letter_of(Desk().arrive("cmd.t.w.counter.add", b"\xff\x00"))
    assert base64.b64decode(letter["payload_base64"]) == b"\xff\x00"


@pytest.mark.parametrize("body", [b"x" * LIMIT, b"\xff" * LIMIT, b"\n" * (LIMIT - 100)])
def test_a_letter_too_large_names_the_original_instead(body: bytes) -> None:
    """JSON may need more bytes for a body than it has."""
    output, letter = letter_of(Desk().arrive("cmd.t.w.counter.add", body, b"h" * 100))
    assert len(output.body) <= LIMIT
    assert (letter["payload_sha256"], letter["payload_bytes"]) == (hashlib.sha256(body).hexdigest(), len(body))
    assert not {"payload", "payload_base64"} & letter.keys()


@given(st.binary(max_size=60), st.binary(max_size=60), st.binary(max_size=60))
def test_any_message_has_a_dead_letter(verb: bytes, body: bytes, headers: bytes) -> None:
    subject = (b"cmd.t.w.counter." + verb).decode(errors="surrogateescape")
    output, letter = letter_of(Desk().arrive(subject, body, headers))
    output.subject.encode("ascii")
    original = letter["payload"].encode() if "payload" in letter else base64.b64decode(letter["payload_base64"])
    assert original == body


@given(st.text(max_size=3000) | st.just("\udcff"))
def test_the_text_of_an_error_can_be_stored_and_is_bounded(text: str) -> None:
    stored = told(ValueError(text))
    orjson.dumps(stored)
    assert len(stored) <= 2000 * 6
    assert len(text) > 2000 or "\udcff" in text or stored == text


def test_a_message_without_envelope_is_named_by_its_key() -> None:
    incoming = Desk().arrive("cmd.t.w.counter.add", b"garbage")
    cause = cause_of(incoming)
    assert cause.stem == incoming.key
    read = decode_event(DRAFTER.event(cause, "dead_lettered", {}, entity_id=None, kind="record").body)
    assert (read.causation_id, read.correlation_id, read.ts) == (None, None, 99.0)
    assert read.security_context == SecurityContext("counter", "agent")


def test_a_generation_gives_new_msg_ids_and_the_same_event_ids() -> None:
    incoming = Desk().read(command(1))
    first, second = (DRAFTER.event(cause_of(incoming, g), "added", {}, entity_id="a") for g in (0, 1))
    assert first.event_id == second.event_id
    assert first.msg_id != second.msg_id
