"""Envelopes: what goes over the wire comes back equal, and what does not belong there is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, get_args

import attrs
import orjson
import pytest
from doubles import command, event
from hypothesis import example, given
from hypothesis import strategies as st

from meshforge_trio.envelope import (
    CommandEnvelope,
    EventEnvelope,
    PrincipalType,
    SecurityContext,
    canonical,
    decode_command,
    decode_event,
    decode_json,
    encode,
    encode_fields,
    holds_nan,
    payload_hash,
    traceparent,
)
from meshforge_trio.errors import Poison

texts = st.text(max_size=20)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
payloads = st.dictionaries(texts, json_values, max_size=5)
tokens = st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True)
ids = st.from_regex(r"[\x21-\x7e]{1,256}", fullmatch=True)
names = st.text(min_size=1, max_size=256)
contexts = st.builds(SecurityContext, names, st.sampled_from(get_args(PrincipalType)), st.none() | names)
common: dict[str, st.SearchStrategy[Any]] = {
    "id": ids,
    "tenant": tokens,
    "workspace": tokens,
    "agent": tokens,
    "idempotency_key": st.none() | names,
    "entity_id": st.none() | names,
    "payload": payloads,
    "security_context": st.none() | contexts,
    "trace_id": st.none() | st.from_regex(r"[0-9a-f]{32}", fullmatch=True),
    "span_id": st.none() | st.from_regex(r"[0-9a-f]{16}", fullmatch=True),
    "ts": st.none() | st.floats(allow_nan=False, allow_infinity=False),
    "causation_id": st.none() | names,
    "correlation_id": st.none() | names,
}
commands = st.builds(CommandEnvelope, action=tokens, expected_version=st.none() | st.integers(0, 2**63 - 1), **common)
events = st.builds(EventEnvelope, name=tokens, **common)
FIELDS = [a.name for a in attrs.fields(CommandEnvelope)]


def fields_of(envelope: CommandEnvelope | EventEnvelope) -> dict[str, Any]:
    value: dict[str, Any] = orjson.loads(encode(envelope))
    return value


def fault_of(call: Callable[[Any], object], argument: object) -> Poison | None:
    """The poison it raises, if it raises any; nothing else may come out."""
    try:
        call(argument)
    except Poison as poison:
        return poison
    return None


# --- there and back


@given(commands)
def test_a_command_comes_back_equal(sent: CommandEnvelope) -> None:
    assert decode_command(encode(sent)) == sent


@given(events)
def test_an_event_comes_back_equal(sent: EventEnvelope) -> None:
    assert decode_event(encode(sent)) == sent


@given(commands)
def test_absent_fields_are_left_out(sent: CommandEnvelope) -> None:
    fields = fields_of(sent)
    assert None not in fields.values()
    assert list(fields) == [name for name in FIELDS if getattr(sent, name) is not None]


# --- nothing but Poison


@given(st.binary(max_size=300))
def test_any_bytes_are_poison_or_an_envelope(body: bytes) -> None:
    for decode in (decode_command, decode_event):
        with pytest.raises(Poison) as caught:
            decode(body)
        assert caught.value.code in ("not_json", "bad_shape", "missing_field", "unknown_field")
        assert caught.value.field is not None


@given(json_values)
def test_any_json_is_poison_or_an_envelope(value: Any) -> None:
    with pytest.raises(Poison) as caught:
        decode_command(orjson.dumps(value))
    assert caught.value.field is not None


@given(st.sampled_from(FIELDS), json_values)
def test_any_value_in_any_field_is_taken_or_poison_naming_it(field: str, value: Any) -> None:
    body = orjson.dumps({**fields_of(command(1)), field: value})
    poison = fault_of(decode_command, body)
    if poison is not None:
        assert poison.field is not None
        assert poison.field.split(".")[0] == field
    elif field != "security_context":
        assert getattr(decode_command(body), field) == value


@given(st.text(max_size=120).filter(lambda name: name not in FIELDS), json_values)
def test_an_unknown_field_is_named(name: str, value: Any) -> None:
    with pytest.raises(Poison) as caught:
        decode_command(orjson.dumps({**fields_of(command(1)), name: value}))
    assert (caught.value.code, caught.value.field) == ("unknown_field", name[:100])


@pytest.mark.parametrize("field", ["id", "tenant", "workspace", "agent", "action"])
def test_a_missing_field_is_named(field: str) -> None:
    fields = fields_of(command(1))
    del fields[field]
    with pytest.raises(Poison) as caught:
        decode_command(orjson.dumps(fields))
    assert (caught.value.code, caught.value.field) == ("missing_field", field)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", 5),
        ("tenant", None),
        ("payload", []),
        ("payload", None),
        ("entity_id", 5),
        ("expected_version", 1.0),
        ("expected_version", True),
        ("expected_version", "1"),
        ("ts", "now"),
        ("ts", True),
        ("security_context", "kim"),
        ("security_context", {"principal_id": "kim"}),
        ("security_context", {"principal_id": "kim", "principal_type": "god"}),
        ("security_context", {"principal_id": "kim", "principal_type": "user", "more": 1}),
        ("security_context", {"principal_id": 5, "principal_type": "user"}),
        ("schema_version", "1"),
    ],
)
def test_a_wrong_type_names_the_field(field: str, value: Any) -> None:
    with pytest.raises(Poison) as caught:
        decode_command(orjson.dumps({**fields_of(command(1)), field: value}))
    assert caught.value.code == "wrong_type"
    assert caught.value.field is not None
    assert caught.value.field.split(".")[0] == field


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", "a b"),
        ("id", ""),
        ("id", "é"),
        ("id", "a" * 257),
        ("idempotency_key", ""),
        ("idempotency_key", "k" * 257),
        ("entity_id", ""),
        ("entity_id", "e" * 257),
        ("trace_id", "ab"),
        ("trace_id", "AB" * 16),
        ("span_id", "ab"),
        ("causation_id", ""),
        ("causation_id", "c" * 257),
        ("correlation_id", "c" * 100_000),
        ("expected_version", -1),
        ("schema_version", 2),
    ],
)
def test_a_value_out_of_range_names_the_field(field: str, value: Any) -> None:
    with pytest.raises(Poison) as caught:
        decode_command(orjson.dumps({**fields_of(command(1)), field: value}))
    assert (caught.value.code, caught.value.field) == (f"bad_{field}", field)
    assert field in caught.value.reason


@pytest.mark.parametrize("field", ["tenant", "workspace", "agent", "name"])
def test_tokens_of_an_event_are_checked(field: str) -> None:
    with pytest.raises(Poison) as caught:
        decode_event(orjson.dumps({**fields_of(event(1)), field: "a.b"}))
    assert (caught.value.code, caught.value.field) == ("bad_token", field)


# --- numbers, text and depth that JSON libraries disagree about


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "not_json"),
        (b"\xef\xbb\xbf{}", "not_json"),
        (b'{"a":NaN}', "not_json"),
        (b'{"a":1e999}', "not_json"),
        (b'{"a":"\\ud800"}', "not_json"),
        (b'{"a":"\xed\xa0\x80"}', "not_json"),
        (b"[]", "bad_shape"),
        (b'"text"', "bad_shape"),
        (b"5", "bad_shape"),
        (b"null", "bad_shape"),
        (b'{"a":18446744073709551616}', "huge_integer"),
        (b'{"a":-9223372036854775809}', "huge_integer"),
        (b'{"a":[' + b"9" * 300 + b"]}", "huge_integer"),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "not_json"),
        (
            b'{"n":"123456789012345678901","a":' + b"[" * 1000 + b"-123456789012345678901" + b"]" * 1000 + b"}",
            "huge_integer",
        ),
    ],
)
def test_json_that_is_none(body: bytes, code: str) -> None:
    with pytest.raises(Poison) as caught:
        decode_json(body)
    assert (caught.value.code, caught.value.field) == (code, "body")


@given(st.integers(-(2**70), 2**70))
@example(2**64)
@example(2**64 - 1)
@example(-(2**63))
def test_integers_pass_whole_or_not_at_all(number: int) -> None:
    body = json.dumps({"n": number}).encode()
    poison = fault_of(decode_json, body)
    assert (poison is None) == (-(2**63) <= number < 2**64)
    if poison is None:
        assert decode_json(body) == {"n": number}
    else:
        assert poison.code == "huge_integer"


def test_long_runs_of_digits_that_are_no_integer_pass() -> None:
    text = {"a": "12345678901234567890123", "b": 0.12345678901234567890123}
    assert decode_json(json.dumps(text).encode()) == text


@given(st.integers(-(2**70), 2**70))
@example(2**63 - 1)
@example(2**64)
@example(2**64 - 1)
@example(2**64)
@example(-(2**63) - 1)
def test_what_is_encoded_can_be_decoded(number: int) -> None:
    """A payload that its receiver would refuse must fail where it is made."""
    sent = command(1, payload={"n": number})
    poison = fault_of(encode, sent)
    assert (poison is None) == (-(2**63) <= number < 2**64)
    if poison is None:
        assert decode_command(encode(sent)) == sent
    else:
        assert poison.code in ("not_json", "huge_integer")


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), [float("-inf")], {"a": [float("nan")]}, (1, float("nan"))]
)
def test_nan_is_no_payload(value: Any) -> None:
    assert holds_nan(value)
    with pytest.raises(Poison, match="NaN or infinity"):
        encode(command(1, payload={"a": None, "b": value}))


@pytest.mark.parametrize("value", [object(), {1: 2}, "\ud800", 2**64, b"bytes", {1, 2}])
def test_what_json_cannot_carry_is_no_payload(value: Any) -> None:
    with pytest.raises(Poison):
        encode_fields({"payload": {"a": value}})


def test_null_is_a_payload() -> None:
    assert decode_command(encode(command(1, payload={"a": None, "text": "null"}))).payload["a"] is None


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def test_a_payload_too_deep_to_be_hashed_is_poison() -> None:
    """It can be read up to 1,024 levels, and written only up to 254."""
    body = orjson.dumps(fields_of(command(1)))[:-1].replace(
        b'"payload":{}', b'"payload":{"a":' + b"[" * 300 + b"]" * 300 + b"}"
    )
    read = decode_command(body + b"}")
    with pytest.raises(Poison) as caught:
        payload_hash(read)
    assert (caught.value.code, caught.value.field) == ("not_canonical", "payload")
    with pytest.raises(Poison):
        canonical(nested(255))
    assert canonical(nested(254))


# --- hashes


@given(commands, ids, st.floats(0, 1e10), st.from_regex(r"[0-9a-f]{32}", fullmatch=True), contexts)
def test_a_hash_stands_for_the_meaning_only(
    sent: CommandEnvelope, new_id: str, ts: float, trace: str, context: SecurityContext
) -> None:
    resent = attrs.evolve(
        sent,
        id=new_id,
        ts=ts,
        trace_id=trace,
        span_id=trace[:16],
        security_context=context,
        causation_id=new_id,
        correlation_id=new_id,
        idempotency_key="other",
    )
    assert payload_hash(resent) == payload_hash(sent)


@given(commands, st.sampled_from(["action", "entity_id", "expected_version", "payload"]))
def test_a_hash_depends_on_the_meaning(sent: CommandEnvelope, field: str) -> None:
    other: dict[str, Any] = {
        "action": f"{sent.action[:60]}x",
        "entity_id": f"{sent.entity_id}x",
        "expected_version": (sent.expected_version or 0) ^ 1,
        "payload": {**sent.payload, "one more field than the other may have": 1},
    }
    if getattr(sent, field) != other[field]:
        assert payload_hash(attrs.evolve(sent, **{field: other[field]})) != payload_hash(sent)


@given(commands)
def test_a_hash_survives_the_wire(sent: CommandEnvelope) -> None:
    assert payload_hash(decode_command(encode(sent))) == payload_hash(sent)


@given(payloads, st.randoms(use_true_random=False))
def test_canonical_does_not_depend_on_order(payload: dict[str, Any], chance: Any) -> None:
    shuffled = list(payload.items())
    chance.shuffle(shuffled)
    assert canonical(dict(shuffled)) == canonical(payload)
    assert orjson.loads(canonical(payload)) == payload


def test_traceparent() -> None:
    assert traceparent("ab" * 16, "cd" * 8) == f"00-{'ab' * 16}-{'cd' * 8}-01"
