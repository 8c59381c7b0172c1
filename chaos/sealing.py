"""The codec of one tenant of the harness, with keys that everybody may know: workers seal with it, checkers read.

Whoever is called `sealed` has it, in the apps that say so (`chaos.agents.counter_sealed`) and in every checker.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Final

import attrs

from meshforge_trio.codec import PayloadCodec, ScopeSealer, Sealer, is_sealed
from meshforge_trio.envelope import CommandEnvelope, payload_hash
from meshforge_trio.errors import Poison
from meshforge_trio.keyring import AesSiv, Key, Ring
from meshforge_trio.subjects import Scope

__all__ = ["TENANT", "codecs", "meaning_of", "opened", "original", "renamed", "sealer", "shown"]

TENANT: Final = "sealed"
_RING: Final = Ring(TENANT, b"h" * 32, (Key("k1", "2026-01-01", bytes(range(64))),))


@cache
def _codec() -> PayloadCodec:
    return AesSiv(_RING)


def codecs(tenant: str) -> PayloadCodec | None:
    """For an `App`."""
    return _codec() if tenant == TENANT else None


def sealer(tenant: str) -> Sealer | None:
    """What seals and opens envelopes of a tenant; `None` for all others."""
    return Sealer.of(codecs, tenant)


def opened(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """An envelope with its payload opened, if it is sealed and opens."""
    payload = fields.get("payload")
    if not isinstance(payload, dict) or not is_sealed(payload):
        return fields
    found = sealer(str(fields.get("tenant")))
    try:
        return fields if found is None else {**fields, "payload": found.opened_payload(fields)}
    except Poison:
        return fields


def original(scope: Scope, key: str, body: bytes) -> bytes:
    """The message of a dead letter, opened if it is sealed and opens."""
    found = ScopeSealer.of_scope(codecs, scope)
    try:
        return body if found is None else found.opened_body(key, body)
    except Poison:
        return body


def meaning_of(command: CommandEnvelope) -> bytes:
    """What the store should take the command's key to stand for."""
    found = sealer(command.tenant)
    return payload_hash(command) if found is None else payload_hash(found.shown(command), found.digest)


def renamed(command: CommandEnvelope, id_: str) -> CommandEnvelope:
    """The command under another id, sealed anew if it was sealed."""
    again = attrs.evolve(shown(command), id=id_)
    found = sealer(command.tenant) if is_sealed(command.payload) else None
    return again if found is None else found.sealed(again)


def shown(command: CommandEnvelope) -> CommandEnvelope:
    """The command with its payload opened, if it is sealed and opens."""
    found = sealer(command.tenant)
    return command if found is None else found.shown(command)
