"""From a delivery to something that can be decided: decode, check, name.

Every message gets a key here, also one that cannot be read: `raw:` and the SHA-256 of its subject, headers and body.
"""

from __future__ import annotations

import hashlib
from typing import Any, TypeVar

import attrs

from meshforge_trio.agent import AgentAdapter
from meshforge_trio.broker.port import Delivery
from meshforge_trio.codec import Sealer
from meshforge_trio.envelope import (
    CommandEnvelope,
    EventEnvelope,
    canonical,
    decode_command,
    decode_event,
    payload_hash,
)
from meshforge_trio.errors import Erased, Poison
from meshforge_trio.security import OPEN, Access, Violation, check
from meshforge_trio.subjects import DELIVER, DISCARD, REDRIVE, SYSTEM_PREFIX, Scope, parse_subject

__all__ = ["OWN_PREFIXES", "Incoming", "event_key", "query_key", "read_delivery", "unkeyed_hash"]

E = TypeVar("E", CommandEnvelope, EventEnvelope)

#: How the runtime names what has no key of its own; no client's key may begin so.
OWN_PREFIXES = ("deadline:", "evt:", "query:", "raw:")
#: A key is part of every answer, and an envelope takes no longer one.
_LENGTH_MAX = 256


@attrs.define(eq=False)
class Incoming:
    """A delivery that has been read.

    `key` names its effect in the store, `hash` what the key stands for; it is empty where that cannot be told. `fault`
    is why it cannot be decided by the agent: a violation, or poison. `suspect` says that an earlier run of it may have
    died, `alone` that it is being run by itself therefore, `system` that the runtime decides it and not the agent.
    """

    delivery: Delivery
    key: str
    hash: bytes
    message: CommandEnvelope | EventEnvelope | None = None
    entity_id: str | None = None
    query: bool = False
    fault: Violation | Poison | None = None
    suspect: bool = False
    alone: bool = False
    system: bool = False


def raw_key(delivery: Delivery, sealer: Sealer | None = None) -> tuple[str, bytes]:
    """The name of a message by its bytes, for one that has no other."""
    parts = (delivery.subject.encode(errors="surrogateescape"), delivery.headers, delivery.body)
    content = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    keyed = sealer is not None and sealer.erased is None
    digest = sealer.digest(content) if sealer is not None and keyed else hashlib.sha256(content).digest()
    return f"raw:{digest.hex()}", digest


def read_delivery(
    delivery: Delivery,
    scope: Scope,
    adapter: AgentAdapter[Any],
    access: Access = OPEN,
    sealer: Sealer | None = None,
) -> Incoming:
    """Decode and check one delivery, and open its payload. Never raises for what a message contains."""
    try:
        address = parse_subject(delivery.subject)
        if address.kind == "cmd":
            return _read_command(delivery, adapter, access, sealer)
        return _read_event(delivery, adapter, sealer)
    except Poison as poison:
        # Of an erased tenant nothing more can be set aside: it would have to be sealed.
        fault = poison if sealer is None or sealer.erased is None else Erased(sealer.erased)
        key, digest = raw_key(delivery, sealer)
        # The server stores a subject in any encoding; from here on it is told in letters and events.
        subject = delivery.subject.encode(errors="surrogateescape").decode(errors="backslashreplace")
        delivery = attrs.evolve(delivery, subject=subject)
        if fault.field is not None and fault.field.split(".")[0] == "security_context":
            violation = Violation("bad_security_context", fault.reason, None)
            return Incoming(delivery, key, digest, fault=violation)
        return Incoming(delivery, key, digest, fault=fault)


def _read_command(delivery: Delivery, adapter: AgentAdapter[Any], access: Access, sealer: Sealer | None) -> Incoming:
    command = decode_command(delivery.body)
    violation = check(parse_subject(delivery.subject), command, access.permissions)
    violation = violation or access.prove(delivery, command)
    if violation is not None:
        # Under its own bytes, not under the key it claims: a stranger must not occupy somebody's key.
        key, digest = raw_key(delivery, sealer)
        return Incoming(delivery, key, digest, command, fault=violation)
    if sealer is not None:
        try:
            command = _opened(command, sealer)
        except Poison as fault:
            return _unopened(delivery, command, adapter, fault)
    if command.action == DELIVER:
        return _read_delivered(delivery, command, adapter, sealer)
    system = command.action in (REDRIVE, DISCARD)
    entity_id = None if system else _entity_for(command, adapter)
    query = not system and adapter.is_query(command.action)
    name = command.idempotency_key
    if query:
        return Incoming(delivery, query_key(command), b"", command, entity_id, query=True)
    if name is None or (name.startswith(OWN_PREFIXES) and not command.action.startswith(SYSTEM_PREFIX)):
        # It can be read, so its sender hears of its fate by its id.
        key, digest = raw_key(delivery, sealer)
        return Incoming(delivery, key, digest, command, fault=_unusable(name))
    if sealer is not None:
        return Incoming(delivery, name, payload_hash(command, sealer.digest), command, entity_id, system=system)
    return Incoming(delivery, name, payload_hash(command), command, entity_id, system=system)


def _opened(message: E, sealer: Sealer) -> E:
    """Raises `Poison`: its payload cannot be opened; `Erased`: no payload of the tenant can be sealed any more."""
    if sealer.erased is not None:
        raise Erased(sealer.erased)
    return sealer.opened(message)


def _unopened(delivery: Delivery, command: CommandEnvelope, adapter: AgentAdapter[Any], fault: Poison) -> Incoming:
    """A command whose payload stays sealed: under its key, whose first outcome is told whatever it stands for."""
    name = command.idempotency_key
    if adapter.is_query(command.action):
        return Incoming(delivery, query_key(command), b"", command, command.entity_id, query=True, fault=fault)
    if name is None or name.startswith(OWN_PREFIXES):
        raise fault
    return Incoming(delivery, name, b"", command, command.entity_id, fault=fault)


def _read_delivered(
    delivery: Delivery, command: CommandEnvelope, adapter: AgentAdapter[Any], sealer: Sealer | None
) -> Incoming:
    """A redriven event of another agent: from here on it is that event."""
    event = decode_event(canonical(command.payload.get("event")))
    if not any((event.agent, event.name) == (s.agent, s.name) for s in adapter.subscriptions):
        raise Poison(
            f"event {event.name!r} of {event.agent!r} is not one that {adapter.name!r} receives any more",
            code="not_subscribed",
        )
    if (event.tenant, event.workspace) != (command.tenant, command.workspace):
        raise Poison(f"event {event.id} is of another workspace", code="scope_mismatch")
    return _as_event(delivery, event, adapter, sealer)


def _entity_for(command: CommandEnvelope, adapter: AgentAdapter[Any]) -> str | None:
    try:
        entity: object = adapter.entity_for(command)
    except Exception as error:
        raise Poison(
            f"command {command.id}: choosing the entity failed: {type(error).__name__}: {error}", code="bad_entity"
        ) from error
    return _checked_entity(entity, f"command {command.id}")


def _checked_entity(entity: object, whose: str) -> str | None:
    if entity is None or (isinstance(entity, str) and 1 <= len(entity) <= _LENGTH_MAX):
        return entity
    raise Poison(f"{whose}: {entity!r:.100} is chosen as entity, which is no id", code="bad_entity")


def _unusable(key: str | None) -> Poison:
    if key is None:
        return Poison("field 'idempotency_key' is missing", code="missing_field", field="idempotency_key")
    return Poison(
        f"idempotency_key may not begin with {' or '.join(OWN_PREFIXES)}: the runtime uses these",
        code="bad_idempotency_key",
        field="idempotency_key",
    )


def _read_event(delivery: Delivery, adapter: AgentAdapter[Any], sealer: Sealer | None) -> Incoming:
    event = decode_event(delivery.body)
    violation = check(parse_subject(delivery.subject), event)
    if violation is not None:
        key, digest = raw_key(delivery, sealer)
        return Incoming(delivery, key, digest, event, fault=violation)
    return _as_event(delivery, event, adapter, sealer)


def _as_event(delivery: Delivery, event: EventEnvelope, adapter: AgentAdapter[Any], sealer: Sealer | None) -> Incoming:
    if sealer is not None:
        try:
            event = _opened(event, sealer)
        except Poison as fault:
            return Incoming(delivery, event_key(event), b"", event, event.entity_id, fault=fault)
    try:
        entity: object = adapter.entity_of(event)
    except Exception as error:
        raise Poison(
            f"event {event.id}: choosing the entity failed: {type(error).__name__}: {error}", code="bad_entity"
        ) from error
    entity_id = _checked_entity(entity, f"event {event.id}")
    meaning = _meaning(event)
    digest = hashlib.sha256(meaning).digest() if sealer is None else sealer.digest(meaning)
    return Incoming(delivery, event_key(event), digest, event, entity_id)


def _meaning(event: EventEnvelope) -> bytes:
    return canonical([event.name, event.entity_id, event.payload])


def unkeyed_hash(message: CommandEnvelope | EventEnvelope) -> bytes:
    """What its key stood for before its tenant had a codec."""
    if isinstance(message, CommandEnvelope):
        return payload_hash(message)
    return hashlib.sha256(_meaning(message)).digest()


def query_key(command: CommandEnvelope) -> str:
    """What a query is known by: its id, since it needs no key."""
    return f"query:{command.id}"


def event_key(event: EventEnvelope) -> str:
    """What another agent's event is known by.

    Two agents, or two commands that share an id, may publish events of one id; the cause's key tells them apart.
    """
    key = f"evt:{event.agent}:{event.id}:{event.idempotency_key or ''}"
    if len(key) > _LENGTH_MAX:
        # Each agent of a chain adds to it.
        key = f"evt:{hashlib.sha256(key.encode()).hexdigest()}"
    return key
