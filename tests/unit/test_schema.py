"""The exported JSON Schema says what decoding says."""

from __future__ import annotations

import json
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from meshforge_trio.cli.schema import envelope_schema
from meshforge_trio.envelope import decode_command, decode_event
from meshforge_trio.errors import Poison

VALIDATORS = {kind: Draft202012Validator(envelope_schema(kind)) for kind in ("command", "event")}
DECODERS = {"command": decode_command, "event": decode_event}

_TOKEN_LETTERS = string.ascii_letters + string.digits + "_-"
_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
_TOKENS = st.text(_TOKEN_LETTERS, min_size=1, max_size=64)
_KEYS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=256)
_JSON: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=6,
)
_PRINCIPALS = st.fixed_dictionaries(
    {"principal_id": _TEXT, "principal_type": st.sampled_from(["user", "agent", "service", "system"])},
    optional={"on_behalf_of": st.none() | _TEXT},
)
_COMMON_REQUIRED = {
    "id": st.text([chr(c) for c in range(0x21, 0x7F)], min_size=1, max_size=256),
    "tenant": _TOKENS,
    "workspace": _TOKENS,
    "agent": _TOKENS,
}
_COMMON_OPTIONAL: dict[str, st.SearchStrategy[Any]] = {
    "idempotency_key": st.none() | _KEYS,
    "entity_id": st.none() | _KEYS,
    "payload": st.dictionaries(_TEXT, _JSON, max_size=4),
    "security_context": st.none() | _PRINCIPALS,
    "trace_id": st.none() | st.text("0123456789abcdef", min_size=32, max_size=32),
    "span_id": st.none() | st.text("0123456789abcdef", min_size=16, max_size=16),
    "ts": st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.integers(0, 2**40),
    "causation_id": st.none() | _KEYS,
    "correlation_id": st.none() | _KEYS,
    "schema_version": st.just(1),
}
_VALID = {
    "command": st.fixed_dictionaries(
        {**_COMMON_REQUIRED, "action": _TOKENS},
        optional={**_COMMON_OPTIONAL, "expected_version": st.none() | st.integers(0, 2**63 - 1)},
    ),
    "event": st.fixed_dictionaries({**_COMMON_REQUIRED, "name": _TOKENS}, optional=_COMMON_OPTIONAL),
}
_BASE: dict[str, Any] = {"id": "c-1", "tenant": "t", "workspace": "w", "agent": "a"}
_LEAST: dict[str, dict[str, Any]] = {"command": {**_BASE, "action": "x"}, "event": {**_BASE, "name": "x"}}


def decodes(kind: str, envelope: Any) -> bool:
    try:
        DECODERS[kind](json.dumps(envelope).encode())
    except Poison:
        return False
    return True


@pytest.mark.parametrize("kind", ["command", "event"])
def test_the_schema_is_a_schema(kind: str) -> None:
    Draft202012Validator.check_schema(envelope_schema(kind))


@pytest.mark.parametrize("kind", ["command", "event"])
@given(data=st.data())
def test_what_is_valid_decodes_and_validates(kind: str, data: st.DataObject) -> None:
    envelope = data.draw(_VALID[kind])
    assert decodes(kind, envelope)
    VALIDATORS[kind].validate(envelope)


_NOT_TOKENS: list[Any] = ["", "a.b", "a*", ">", "a b", "x" * 65, "a\n", "ä", 3, None, ["a"]]
_BAD: dict[str, list[Any]] = {
    **dict.fromkeys(("tenant", "workspace", "agent", "verb"), _NOT_TOKENS),
    "id": ["", "a b", "x" * 257, "a\n", "ä", 1, None],
    "idempotency_key": ["", "x" * 257, 5, []],
    "entity_id": ["", "x" * 257, 5, []],
    "trace_id": ["", "0" * 31, "0" * 33, "G" * 32, "A" * 32, "0" * 32 + "\n", 5],
    "span_id": ["0" * 15, "0" * 16 + "\n", True],
    "payload": [None, [], "x", 1],
    "ts": ["1", True, []],
    "schema_version": [0, 2, None, "1"],
    "causation_id": ["", "x" * 257, 1, {}],
    "correlation_id": ["", "x" * 257, 1, {}],
    "security_context": [
        "me",
        {},
        {"principal_id": "me"},
        {"principal_id": "me", "principal_type": "god"},
        {"principal_id": 1, "principal_type": "user"},
        {"principal_id": "me", "principal_type": "user", "admin": True},
    ],
    "surprise": [1],
}


@pytest.mark.parametrize("kind", ["command", "event"])
@pytest.mark.parametrize(("field", "bad"), [(field, bad) for field, all_bad in _BAD.items() for bad in all_bad])
def test_what_is_bad_neither_decodes_nor_validates(kind: str, field: str, bad: Any) -> None:
    name = {"command": "action", "event": "name"}[kind] if field == "verb" else field
    envelope = {**_LEAST[kind], name: bad}
    assert not decodes(kind, envelope)
    assert not VALIDATORS[kind].is_valid(envelope)


@pytest.mark.parametrize("bad", [-1, 2**63, 1.5, "1", True])
def test_a_bad_expected_version_neither_decodes_nor_validates(bad: Any) -> None:
    envelope = {**_LEAST["command"], "entity_id": "e", "expected_version": bad}
    assert not decodes("command", envelope)
    assert not VALIDATORS["command"].is_valid(envelope)
    assert not VALIDATORS["event"].is_valid({**_LEAST["event"], "expected_version": 1})


@pytest.mark.parametrize("kind", ["command", "event"])
@pytest.mark.parametrize("field", [*_BASE, "verb"])
def test_a_missing_field_neither_decodes_nor_validates(kind: str, field: str) -> None:
    name = {"command": "action", "event": "name"}[kind] if field == "verb" else field
    envelope = {key: value for key, value in _LEAST[kind].items() if key != name}
    assert not decodes(kind, envelope)
    assert not VALIDATORS[kind].is_valid(envelope)
