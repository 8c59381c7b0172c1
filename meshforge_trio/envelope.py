"""What travels: commands and events, as attrs classes in the program and JSON on the wire.

Decoding is strict: no unknown field, no coerced type, no number that JSON libraries disagree about.
The fast converter decides; when it refuses, `_complain` walks the same bytes slowly to name the field.
"""

from __future__ import annotations

import hashlib
import math
import re
import typing
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from types import NoneType
from typing import Any, Final, Literal, get_origin

import attrs
import cattrs
import orjson
from cattrs.preconf.orjson import make_converter

from meshforge_trio.errors import Poison
from meshforge_trio.exact import add_exact_hooks
from meshforge_trio.subjects import check_token

__all__ = [
    "CommandEnvelope",
    "EventEnvelope",
    "JsonObject",
    "PrincipalType",
    "SecurityContext",
    "canonical",
    "converter",
    "decode_command",
    "decode_event",
    "decode_json",
    "encode",
    "encode_fields",
    "holds_nan",
    "payload_hash",
    "principal_fields",
    "traceparent",
]

JsonObject = dict[str, Any]
PrincipalType = Literal["user", "agent", "service", "system"]

_PRINCIPALS_MAX: Final = 1024
_KEY_LENGTH_MAX: Final = 256
_ID: Final = re.compile(r"[\x21-\x7e]{1,256}")
_TRACE: Final = re.compile(r"[0-9a-f]{32}")
_SPAN: Final = re.compile(r"[0-9a-f]{16}")
#: Maps every digit to 0, so that one search finds any run of 19 digits (cheaper than a regular expression).
_DIGITS_TO_ZERO: Final = bytes(48 if 48 <= i <= 57 else i for i in range(256))
_LONG_NUMBER: Final = b"0" * 19
_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*"')
_LONG_INTEGER: Final = re.compile(rb"(?<![0-9.eE+-])-?[0-9]{19,}(?![0-9.eE])")


@attrs.frozen
class SecurityContext:
    """Who sent it. `on_behalf_of` is the principal that a chain of agents goes back to."""

    principal_id: str
    principal_type: PrincipalType
    on_behalf_of: str | None = None


@attrs.frozen(kw_only=True)
class CommandEnvelope:
    """A request to one agent.

    `idempotency_key` names the effect: every command with the same key in a scope has one effect for ever.
    Queries need none. `id` names this sending of it; a deliberate re-send has a new id and the same key.
    `ts` is logical time in seconds since 1970 (UTC): kept if given, set by the runtime if not.
    `resource_id` and `fencing_token` say under which lease it is sent; an older one than the agent has seen is refused.
    They are no part of what the key stands for.
    """

    id: str
    tenant: str
    workspace: str
    agent: str
    action: str
    idempotency_key: str | None = None
    entity_id: str | None = None
    expected_version: int | None = None
    resource_id: str | None = None
    fencing_token: int | None = None
    payload: JsonObject = attrs.field(factory=dict)
    security_context: SecurityContext | None = None
    trace_id: str | None = None
    span_id: str | None = None
    ts: float | None = None
    causation_id: str | None = None
    correlation_id: str | None = None
    schema_version: int = 1


@attrs.frozen(kw_only=True)
class EventEnvelope:
    """A fact about one entity, or an answer.

    `id` is `<command id>_<name>`; `idempotency_key` is the key of the command it answers, so a caller
    matches answers by key whatever id its re-sends had.
    """

    id: str
    tenant: str
    workspace: str
    agent: str
    name: str
    idempotency_key: str | None = None
    entity_id: str | None = None
    payload: JsonObject = attrs.field(factory=dict)
    security_context: SecurityContext | None = None
    trace_id: str | None = None
    span_id: str | None = None
    ts: float | None = None
    causation_id: str | None = None
    correlation_id: str | None = None
    schema_version: int = 1


def _strict_float(value: Any, _: Any) -> float:
    if type(value) is float:
        return value
    # A larger integer would be rounded without a word.
    if type(value) is int and -(2**53) <= value <= 2**53:
        return float(value)
    raise TypeError(f"expected a number a double holds exactly, got {type(value).__name__}")


def converter(*, detailed: bool = False, forbid_extra_keys: bool = True) -> cattrs.Converter:
    """A cattrs converter that never coerces and, unless told otherwise, refuses unknown fields.

    `decimal.Decimal` is a string on the wire, as `"12.50"`: JSON libraries disagree about numbers with a point.
    `detailed` collects every error with its path; without it the first one is raised, faster.
    """
    made = make_converter(forbid_extra_keys=forbid_extra_keys, detailed_validation=detailed)
    add_exact_hooks(made)
    made.register_structure_hook(float, _strict_float)

    def sorted_list(values: AbstractSet[Any]) -> list[Any]:
        # The order of a set differs from process to process, and these bytes are hashed.
        return sorted((made.unstructure(value) for value in values), key=canonical)

    made.register_unstructure_hook_func(_is_set, sorted_list)
    return made


def _is_set(kind: Any) -> bool:
    origin = get_origin(kind) or kind
    return isinstance(origin, type) and issubclass(origin, AbstractSet)


def _structurer(kind: type) -> Callable[[Any, Any], Any]:
    """A structure function for an envelope: one look per field that is there, cheaper than a generated one."""
    hints = typing.get_type_hints(kind)
    allowed: dict[str, frozenset[type]] = {
        name: frozenset(typing.get_origin(part) or part for part in typing.get_args(hint) or (hint,))
        for name, hint in hints.items()
        if hint != JsonObject
    }
    allowed["payload"] = frozenset({dict})
    allowed["ts"] = frozenset({float, int, NoneType})
    allowed["security_context"] = frozenset({dict, NoneType})

    def structure(value: Any, _: Any) -> Any:
        for name, item in value.items():
            if type(item) not in allowed[name]:
                raise TypeError(name)
        context = value.get("security_context")
        if context is not None:
            value = {**value, "security_context": _principal(context)}
        ts = value.get("ts")
        if type(ts) is int:
            value = {**value, "ts": _strict_float(ts, float)}
        return kind(**value)

    return structure


def _principal(fields: JsonObject) -> SecurityContext:
    """Principals repeat, so those seen last are kept."""
    key = (fields.get("principal_id"), fields.get("principal_type"), fields.get("on_behalf_of"), len(fields))
    found = _principals.get(key)
    if found is None:
        found = _fast.structure(fields, SecurityContext)
        if len(_principals) >= _PRINCIPALS_MAX:
            _principals.clear()
        _principals[key] = found
    return found


_principals: dict[tuple[Any, ...], SecurityContext] = {}
_slow = converter(detailed=True)
_fast = converter()
_structure_command = _structurer(CommandEnvelope)
_structure_event = _structurer(EventEnvelope)
_COMMAND_FIELDS: Final = tuple(a.name for a in attrs.fields(CommandEnvelope))
_EVENT_FIELDS: Final = tuple(a.name for a in attrs.fields(EventEnvelope))


def decode_json(body: bytes) -> JsonObject:
    """Parse one JSON object.

    Raises:
        Poison: not JSON, not an object, or an integer outside 64 bits (which parsers round differently).
            What is nested deeper than 254 levels may pass here and not be encoded again: see `canonical`.
    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Poison(f"body is not JSON: {error}", code="not_json", field="body") from error
    if type(value) is not dict:
        raise Poison(f"body is a JSON {type(value).__name__}, not an object", code="bad_shape", field="body")
    if _LONG_NUMBER in body.translate(_DIGITS_TO_ZERO):
        _refuse_huge_integers(body)
    return value


def _refuse_huge_integers(body: bytes) -> None:
    """Look at every long integer outside strings, without a second parse: `body` is known to be JSON."""
    for found in _LONG_INTEGER.finditer(_STRING.sub(b'""', body)):
        digits = found.group()
        if len(digits) > 20 or not -(2**63) <= int(digits) < 2**64:
            text = digits[:24].decode()
            raise Poison(f"integer {text}... does not fit 64 bits", code="huge_integer", field="body")


def decode_command(body: bytes) -> CommandEnvelope:
    """Read a command from the wire.

    Raises:
        Poison: naming the field that is missing, unknown, of another type or out of range.
    """
    value = decode_json(body)
    try:
        command: CommandEnvelope = _structure_command(value, CommandEnvelope)
    except Exception as error:
        raise _complain(value, CommandEnvelope, error) from error
    check_command(command)
    return command


def decode_event(body: bytes) -> EventEnvelope:
    """Read an event from the wire. Raises `Poison` like `decode_command`."""
    value = decode_json(body)
    try:
        event: EventEnvelope = _structure_event(value, EventEnvelope)
    except Exception as error:
        raise _complain(value, EventEnvelope, error) from error
    _check_common(event)
    check_token(event.name, "name")
    return event


def check_command(command: CommandEnvelope) -> None:
    """Check what types cannot say: tokens, lengths, ranges. Raises `Poison` naming the field."""
    _check_common(command)
    check_token(command.action, "action")
    token, resource = command.fencing_token, command.resource_id
    if resource is not None and (token is None or not 1 <= len(resource) <= _KEY_LENGTH_MAX):
        raise _bad("resource_id", f"must be 1 to {_KEY_LENGTH_MAX} characters, and fencing_token be with it")
    if token is not None and (resource is None or not 1 <= token < 2**63):
        raise _bad("fencing_token", f"is {token}; it must be positive and fit 64 bits, and resource_id be with it")
    version = command.expected_version
    if version is not None and not 0 <= version < 2**63:
        raise Poison(
            f"expected_version {version} is negative or too large",
            code="bad_expected_version",
            field="expected_version",
        )


def _check_common(envelope: CommandEnvelope | EventEnvelope) -> None:
    check_token(envelope.tenant, "tenant")
    check_token(envelope.workspace, "workspace")
    check_token(envelope.agent, "agent")
    if _ID.fullmatch(envelope.id) is None:
        raise _bad("id", "must be 1 to 256 printable ASCII characters without spaces")
    key = envelope.idempotency_key
    if key is not None and not 1 <= len(key) <= _KEY_LENGTH_MAX:
        raise _bad("idempotency_key", f"must be 1 to {_KEY_LENGTH_MAX} characters")
    entity = envelope.entity_id
    if entity is not None and not 1 <= len(entity) <= _KEY_LENGTH_MAX:
        raise _bad("entity_id", f"must be 1 to {_KEY_LENGTH_MAX} characters")
    if envelope.trace_id is not None and _TRACE.fullmatch(envelope.trace_id) is None:
        raise _bad("trace_id", "must be 32 hexadecimal digits (W3C trace context)")
    if envelope.span_id is not None and _SPAN.fullmatch(envelope.span_id) is None:
        raise _bad("span_id", "must be 16 hexadecimal digits (W3C trace context)")
    if envelope.causation_id is not None and not 1 <= len(envelope.causation_id) <= _KEY_LENGTH_MAX:
        raise _bad("causation_id", f"must be 1 to {_KEY_LENGTH_MAX} characters")
    if envelope.correlation_id is not None and not 1 <= len(envelope.correlation_id) <= _KEY_LENGTH_MAX:
        raise _bad("correlation_id", f"must be 1 to {_KEY_LENGTH_MAX} characters")
    if envelope.schema_version != 1:
        raise _bad("schema_version", f"is {envelope.schema_version}; this runtime reads version 1")


def _bad(field: str, reason: str) -> Poison:
    return Poison(f"{field} {reason}", code=f"bad_{field}", field=field)


def _complain(value: JsonObject, kind: type, first: Exception) -> Poison:
    """Turn a structure error into one sentence with the field at fault."""
    known = {a.name: a for a in attrs.fields(kind)}
    for name in value:
        if name not in known:
            return Poison(f"unknown field {name!r:.100}", code="unknown_field", field=name[:100])
    for name, attribute in known.items():
        if name not in value and attribute.default is attrs.NOTHING:
            return Poison(f"field {name!r} is missing", code="missing_field", field=name)
    try:
        _slow.structure(value, kind)
    except cattrs.BaseValidationError as error:
        lines = cattrs.transform_error(error)
        path = re.search(r"@ \$\.([A-Za-z_.]+)", lines[0])
        field = path.group(1) if path else None
        return Poison(lines[0], code="wrong_type", field=field)
    return Poison(f"body does not fit {kind.__name__}: {first}", code="bad_shape", field=None)


def encode(envelope: CommandEnvelope | EventEnvelope) -> bytes:
    """The envelope as it goes on the wire: fields in the order of the class, absent ones left out.

    Raises:
        Poison: the payload holds what JSON cannot carry (NaN, integers over 64 bits, foreign objects).
    """
    names = _COMMAND_FIELDS if type(envelope) is CommandEnvelope else _EVENT_FIELDS
    fields = {name: value for name in names if (value := getattr(envelope, name)) is not None}
    if envelope.security_context is not None:
        fields["security_context"] = principal_fields(envelope.security_context)
    return encode_fields(fields)


def principal_fields(context: SecurityContext) -> JsonObject:
    """A security context as JSON values."""
    fields: JsonObject = {"principal_id": context.principal_id, "principal_type": context.principal_type}
    if context.on_behalf_of is not None:
        fields["on_behalf_of"] = context.on_behalf_of
    return fields


def encode_fields(fields: JsonObject) -> bytes:
    """`encode`, for a caller that has the fields of an envelope at hand."""
    try:
        body = orjson.dumps(fields)
    except (TypeError, ValueError, RecursionError) as error:
        raise Poison(f"payload is not JSON: {error}", code="not_json", field="payload") from error
    # orjson writes NaN as null without a word, so a null is worth a look.
    if b"null" in body and holds_nan(fields):
        raise Poison("payload holds NaN or infinity", code="not_json", field="payload")
    return body


def holds_nan(value: object) -> bool:
    """Whether there is a float in it that JSON cannot carry."""
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, Mapping):
        return any(holds_nan(v) for v in value.values())
    if isinstance(value, list | tuple):
        return any(holds_nan(v) for v in value)
    return False


def canonical(value: object) -> bytes:
    """JSON with sorted keys and no spaces: equal values have equal bytes.

    Raises:
        Poison: it holds what JSON cannot carry, or is nested deeper than 254 levels.
    """
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except TypeError as error:
        raise Poison(f"payload has no canonical form: {error}", code="not_canonical", field="payload") from error


def payload_hash(command: CommandEnvelope, digest: Callable[[bytes], bytes] | None = None) -> bytes:
    """SHA-256, or `digest`, of what a key stands for: action, entity, expected version and payload.

    Id, time and trace are left out: a re-send has its own.
    """
    meaning = canonical([command.action, command.entity_id, command.expected_version, command.payload])
    return hashlib.sha256(meaning).digest() if digest is None else digest(meaning)


def traceparent(trace_id: str, span_id: str) -> str:
    """W3C Trace Context header value, sampled."""
    return f"00-{trace_id}-{span_id}-01"
