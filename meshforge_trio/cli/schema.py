"""`meshforge schema`: JSON Schema of the envelopes, derived from their classes and the checks on their fields."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Mapping
from typing import Any, Final, Literal

import attrs
import click

from meshforge_trio import envelope, subjects
from meshforge_trio.cli.options import common_options, print_json
from meshforge_trio.envelope import CommandEnvelope, EventEnvelope, JsonObject
from meshforge_trio.policy import ExitCode

__all__ = ["envelope_schema", "schema"]

_ENVELOPES: Final[Mapping[str, type[attrs.AttrsInstance]]] = {"command": CommandEnvelope, "event": EventEnvelope}


def _pattern(expression: re.Pattern[str]) -> JsonObject:
    # Python's `$` also matches before a last newline; the lookahead makes every dialect mean the end.
    return {"pattern": f"^(?:{expression.pattern})$(?!\\n)"}


_TOKEN: Final = _pattern(subjects._TOKEN)
_KEY: Final[JsonObject] = {"minLength": 1, "maxLength": envelope._KEY_LENGTH_MAX}

#: What types cannot say, by field; the same limits that decoding checks.
_LIMITS: Final[Mapping[str, JsonObject]] = {
    "id": _pattern(envelope._ID),
    "tenant": _TOKEN,
    "workspace": _TOKEN,
    "agent": _TOKEN,
    "action": _TOKEN,
    "name": _TOKEN,
    "idempotency_key": _KEY,
    "entity_id": _KEY,
    "causation_id": _KEY,
    "correlation_id": _KEY,
    "expected_version": {"minimum": 0, "maximum": 2**63 - 1},
    "trace_id": _pattern(envelope._TRACE),
    "span_id": _pattern(envelope._SPAN),
    "schema_version": {"const": 1},
    "payload": {
        "description": "Numbers must be finite, integers must fit 64 bits. A sealed one is an object with the field "
        "$sealed alone: the id of its key, and bytes in base64url."
    },
}
_TYPES: Final[Mapping[Any, str]] = {str: "string", int: "integer", float: "number", JsonObject: "object"}


@click.command(short_help="Print the JSON Schema of an envelope.")
@click.argument("kind", type=click.Choice(list(_ENVELOPES)), required=False)
@common_options
def schema(kind: str | None, **_: Any) -> int:
    """Print the JSON Schema (2020-12) of the command or the event envelope, or of both in one document."""
    print_json(envelope_schema(kind) if kind else {name: envelope_schema(name) for name in _ENVELOPES})
    return ExitCode.OK


def envelope_schema(kind: str) -> JsonObject:
    """The schema of `command` or `event` as JSON values."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **_of_class(_ENVELOPES[kind])}


def _of_class(cls: type[attrs.AttrsInstance]) -> JsonObject:
    hints = typing.get_type_hints(cls)
    fields = attrs.fields(cls)
    return {
        "title": cls.__name__,
        "description": inspect.getdoc(cls),
        "type": "object",
        "properties": {field.name: {**_of_type(hints[field.name]), **_LIMITS.get(field.name, {})} for field in fields},
        "required": [field.name for field in fields if field.default is attrs.NOTHING],
        "additionalProperties": False,
    }


def _of_type(kind: Any) -> JsonObject:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        (rest,) = [arg for arg in typing.get_args(kind) if arg is not type(None)]
        inner = _of_type(rest)
        if not attrs.has(rest):
            return {**inner, "type": [inner["type"], "null"]}
        return {"anyOf": [inner, {"type": "null"}]}
    if typing.get_origin(kind) is Literal:
        return {"type": "string", "enum": list(typing.get_args(kind))}
    if attrs.has(kind):
        return _of_class(kind)
    return {"type": _TYPES[kind]}
