"""Payload codecs: what a tenant's payloads look like where they rest and travel, and what it takes to read them.

A tenant may have a codec. The payload of each of its envelopes is then `{"$sealed": {"key": "k3f9a", "bytes": "..."}}`:
sealed before it is hashed into a chain, stored or published, opened where a handler, a state or a caller needs it. Ids,
subjects, entity ids, keys and principals stay readable. What else is made of payloads is sealed as well: snapshots,
errors of handlers, what dead letters hold. Hashes of payloads are keyed, so that nobody can guess their way back.

Sealing is deterministic, as deciding is: the same payload of the same envelope gives the same bytes under one key.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol, TypeVar

import attrs
import orjson

from meshforge_trio.envelope import (
    CommandEnvelope,
    EventEnvelope,
    JsonObject,
    canonical,
    decode_json,
    encode_fields,
)
from meshforge_trio.errors import Misconfigured, Poison
from meshforge_trio.subjects import Scope

__all__ = ["Codecs", "PayloadCodec", "ScopeSealer", "Sealed", "Sealer", "is_sealed"]

_MARK: Final = "$sealed"
_TEXT: Final = "sealed:"
_IDENTITY: Final = ("tenant", "workspace", "agent", "id", "idempotency_key", "entity_id", "expected_version")

E = TypeVar("E", CommandEnvelope, EventEnvelope)


@attrs.frozen
class Sealed:
    """What a codec makes of bytes. `key` is the id of the key that opens it."""

    key: str
    content: bytes

    def as_json(self) -> JsonObject:
        """As it stands in place of a payload."""
        return {_MARK: {"key": self.key, "bytes": base64.urlsafe_b64encode(self.content).decode()}}

    @staticmethod
    def of(value: object) -> Sealed:
        """Read `as_json`. Raises `Poison`: it is no such thing."""
        inner = value.get(_MARK) if isinstance(value, Mapping) else None
        if isinstance(inner, Mapping) and inner.keys() == {"key", "bytes"}:
            key, text = inner["key"], inner["bytes"]
            if isinstance(key, str) and isinstance(text, str):
                try:
                    return Sealed(key, base64.b64decode(text, altchars=b"-_", validate=True))
                except (binascii.Error, ValueError) as error:
                    raise _malformed() from error
        raise _malformed()


def _malformed() -> Poison:
    return Poison("the sealed payload is not what a codec makes", code="bad_seal", field="payload")


class PayloadCodec(Protocol):
    """Seals and opens for one tenant. Pure: the same arguments give the same result, and nothing waits.

    `context` says where the bytes belong. What was sealed under one does not open under another.
    """

    @property
    def erased(self) -> str | None:
        """Why nothing can be read any more; `None` while the keys are there."""

    def seal(self, plain: bytes, *, context: bytes) -> Sealed:
        """Seal under the newest key. Raises `Erased`."""

    def open(self, sealed: Sealed, *, context: bytes) -> bytes:
        """The reverse, under whichever key. Raises `Erased`; `Poison`: an unknown key, other bytes or context."""

    def digest(self, content: bytes) -> bytes:
        """32 bytes that stand for `content`, keyed by a secret that never rotates. Raises `Erased`."""


#: The codec of a tenant as of now, `None` for one without. Asked once per batch, so it may notice changed keys.
Codecs = Callable[[str], PayloadCodec | None]


def is_sealed(payload: Mapping[str, Any]) -> bool:
    """Whether a payload is one that nobody has opened."""
    return payload.keys() == {_MARK}


class Sealer:
    """The codec of one tenant at work on envelopes."""

    def __init__(self, codecs: Codecs, tenant: str, codec: PayloadCodec) -> None:
        self._codecs = codecs
        self._tenant = tenant
        self._codec = codec

    @staticmethod
    def of(codecs: Codecs | None, tenant: str) -> Sealer | None:
        """The sealer of a tenant; `None` where it has no codec."""
        codec = None if codecs is None else codecs(tenant)
        return None if codecs is None or codec is None else Sealer(codecs, tenant, codec)

    @property
    def erased(self) -> str | None:
        """Why nothing can be read; `None` while the keys are there."""
        return self._codec.erased

    def refresh(self) -> bool:
        """Use the keys there are by now. False if they were destroyed, or come back: what was read must be dropped.

        Raises:
            Misconfigured: the tenant has no codec any more, or its keys cannot be read.
        """
        codec = self._newest()
        if (codec.erased is None) != (self._codec.erased is None):
            return False
        self._codec = codec
        return True

    def follow(self) -> None:
        """The same for who keeps nothing of what it has read: keys that are gone are gone. Raises as `refresh`."""
        self._codec = self._newest()

    def _newest(self) -> PayloadCodec:
        codec = self._codecs(self._tenant)
        if codec is None:
            raise Misconfigured(f"tenant {self._tenant!r} has no codec any more, and its payloads are sealed")
        return codec

    def digest(self, content: bytes) -> bytes:
        """See `PayloadCodec.digest`."""
        return self._codec.digest(content)

    def payload(self, fields: Mapping[str, Any], payload: JsonObject) -> JsonObject:
        """A payload sealed for the envelope that has these fields.

        Raises:
            Poison: it holds what JSON cannot carry.
            Erased: the keys were destroyed.
        """
        return self._codec.seal(encode_fields(payload), context=_identity(fields)).as_json()

    def opened_payload(self, fields: Mapping[str, Any]) -> JsonObject:
        """The payload of an envelope that was read from JSON, opened if it is sealed.

        Raises:
            Poison: it cannot be opened, or belongs to another envelope.
            Erased: the keys were destroyed.
        """
        payload: JsonObject = fields["payload"]
        if not is_sealed(payload):
            return payload
        return decode_json(self._codec.open(Sealed.of(payload), context=_identity(fields)))

    def sealed(self, envelope: E) -> E:
        """The envelope with its payload sealed. Raises as `payload`."""
        return attrs.evolve(envelope, payload=self.payload(_fields(envelope), envelope.payload))

    def opened(self, envelope: E) -> E:
        """The envelope with its payload opened; as it is, if that is not sealed. Raises as `opened_payload`."""
        if not is_sealed(envelope.payload):
            return envelope
        return attrs.evolve(envelope, payload=self.opened_payload(_fields(envelope)))

    def shown(self, envelope: E) -> E:
        """`opened` where that is possible, else the envelope as it is; keys may have changed since the last look.

        Raises:
            Misconfigured: as `refresh`.
        """
        try:
            return self.opened(envelope)
        except Poison:
            self.follow()
        try:
            return self.opened(envelope)
        except Poison:
            return envelope


class ScopeSealer(Sealer):
    """The same with what the store of one scope keeps beside envelopes."""

    def __init__(self, codecs: Codecs, scope: Scope, codec: PayloadCodec) -> None:
        super().__init__(codecs, scope.tenant, codec)
        self._scope = scope

    @staticmethod
    def of_scope(codecs: Codecs | None, scope: Scope) -> ScopeSealer | None:
        """The sealer of a scope; `None` where its tenant has no codec."""
        codec = None if codecs is None else codecs(scope.tenant)
        return None if codecs is None or codec is None else ScopeSealer(codecs, scope, codec)

    def shown_body(self, body: bytes) -> bytes:
        """An output's body with its payload opened where that is possible, else as it is."""
        if not _payload_is_sealed(body):
            return body
        fields = orjson.loads(body)
        try:
            return encode_fields({**fields, "payload": self.opened_payload(fields)})
        except Poison:
            return body

    def state(self, entity_id: str, version: int, schema: int, state: bytes) -> bytes:
        """A snapshot, as JSON again. Raises `Erased`."""
        sealed = self._codec.seal(state, context=_place("state", self._scope, entity_id, version, schema))
        return orjson.dumps(sealed.as_json())

    def opened_state(self, entity_id: str, version: int, schema: int, state: bytes) -> bytes:
        """The reverse; a snapshot from before there was a codec is as it was. Raises as `opened_payload`."""
        return self._opened_json(state, _place("state", self._scope, entity_id, version, schema))

    def body(self, key: str, body: bytes, *, readable: bool) -> bytes:
        """The message of a dead letter: as it is, if it is an envelope whose payload is sealed. Raises `Erased`."""
        if not body or (readable and _payload_is_sealed(body)):
            return body
        return orjson.dumps(self._codec.seal(body, context=_place("body", self._scope, key)).as_json())

    def opened_body(self, key: str, body: bytes) -> bytes:
        """The message of a dead letter, its payload opened as well. Raises as `opened_payload`."""
        body = self._opened_json(body, _place("body", self._scope, key))
        if not _payload_is_sealed(body):
            return body
        fields = orjson.loads(body)
        return encode_fields({**fields, "payload": self.opened_payload(fields)})

    def text(self, key: str, text: str) -> str:
        """What is told of a command under `key`: an error may quote its payload. Raises `Erased`."""
        if not text:
            return text
        sealed = self._codec.seal(text.encode(), context=_place("text", self._scope, key))
        return f"{_TEXT}{sealed.key}:{base64.urlsafe_b64encode(sealed.content).decode()}"

    def opened_text(self, key: str, text: str) -> str:
        """The reverse; a text that is not sealed, or cannot be opened, is as it is."""
        if not text.startswith(_TEXT):
            return text
        name, _, content = text.removeprefix(_TEXT).partition(":")
        try:
            sealed = Sealed(name, base64.b64decode(content, altchars=b"-_", validate=True))
            return self._codec.open(sealed, context=_place("text", self._scope, key)).decode()
        except (Poison, ValueError):
            return text

    def _opened_json(self, body: bytes, context: bytes) -> bytes:
        try:
            value = orjson.loads(body)
        except orjson.JSONDecodeError:
            return body
        if not isinstance(value, dict) or not is_sealed(value):
            return body
        return self._codec.open(Sealed.of(value), context=context)


def _fields(envelope: CommandEnvelope | EventEnvelope) -> JsonObject:
    fields = {name: getattr(envelope, name, None) for name in _IDENTITY}
    verb = "action" if isinstance(envelope, CommandEnvelope) else "name"
    return {**fields, verb: getattr(envelope, verb), "payload": envelope.payload}


def _identity(fields: Mapping[str, Any]) -> bytes:
    """What a payload belongs to: the envelope by every field that says what it does, and to whom."""
    verb = ["cmd", fields["action"]] if "action" in fields else ["evt", fields.get("name")]
    return canonical([*verb, *(fields.get(name) for name in _IDENTITY)])


def _place(kind: str, scope: Scope, *parts: str | int) -> bytes:
    return canonical([kind, scope.tenant, scope.workspace, scope.agent, *parts])


def _payload_is_sealed(body: bytes) -> bool:
    if _MARK.encode() not in body:
        return False
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return False
    payload = value.get("payload") if isinstance(value, dict) else None
    return isinstance(payload, dict) and is_sealed(payload)
