"""From a delivery to something that can be decided: decode, check, name.

Every message gets a key here, also one that cannot be read: `raw:` and the SHA-256 of its subject, headers and body.
"""

from __future__ import annotations

import hashlib
from typing import Any

import attrs

from meshforge_trio.agent import AgentAdapter
from meshforge_trio.broker.port import Delivery
from meshforge_trio.envelope import (
    CommandEnvelope,
    EventEnvelope,
    canonical,
    decode_command,
    decode_event,
    payload_hash,
)
from meshforge_trio.errors import Poison
from meshforge_trio.security import OPEN, Access, Violation, check
from meshforge_trio.subjects import DELIVER, DISCARD, REDRIVE, SYSTEM_PREFIX, Scope, parse_subject

__all__ = ["OWN_PREFIXES", "Incoming", "event_key", "query_key", "read_delivery"]

#: How the runtime names what has no key of its own; no client's key may begin so.
OWN_PREFIXES = ("deadline:", "evt:", "query:", "raw:")
#: A key is part of every answer, and an envelope takes no longer one.
_LENGTH_MAX = 256


@attrs.define(eq=False)
class Incoming:
    """A delivery that has been read.

    `key` names its effect in the store, `hash` what the key stands for. `fault` is why it cannot be decided by the
    agent: a violation, or poison. `suspect` says that an earlier run of it may have died, `alone` that it is being
    run by itself therefore, `system` that the runtime decides it and not the agent.
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


def raw_key(delivery: Delivery) -> tuple[str, bytes]:
    """The name of a message by its bytes, for one that has no other."""
    total = hashlib.sha256()
    for part in (delivery.subject.encode(errors="surrogateescape"), delivery.headers, delivery.body):
        total.update(len(part).to_bytes(8, "big") + part)
    return f"raw:{total.hexdigest()}", total.digest()


def read_delivery(delivery: Delivery, scope: Scope, adapter: AgentAdapter[Any], access: Access = OPEN) -> Incoming:
    """Decode and check one delivery. Never raises for what a message contains."""
    try:
        address = parse_subject(delivery.subject)
        if address.kind == "cmd":
            return _read_command(delivery, adapter, access)
        return _read_event(delivery, adapter)
    except Poison as fault:
        key, digest = raw_key(delivery)
        # The server stores a subject in any encoding; from here on it is told in letters and events.
        subject = delivery.subject.encode(errors="surrogateescape").decode(errors="backslashreplace")
        delivery = attrs.evolve(delivery, subject=subject)
        if fault.field is not None and fault.field.split(".")[0] == "security_context":
            violation = Violation("bad_security_context", fault.reason, None)
            return Incoming(delivery, key, digest, fault=violation)
        return Incoming(delivery, key, digest, fault=fault)


def _read_command(delivery: Delivery, adapter: AgentAdapter[Any], access: Access) -> Incoming:
    command = decode_command(delivery.body)
    violation = check(parse_subject(delivery.subject), command, access.permissions)
    violation = violation or access.prove(delivery, command)
    if violation is not None:
        # Under its own bytes, not under the key it claims: a stranger must not occupy somebody's key.
        key, digest = raw_key(delivery)
        return Incoming(delivery, key, digest, command, fault=violation)
    if command.action == DELIVER:
        return _read_delivered(delivery, command, adapter)
    system = command.action in (REDRIVE, DISCARD)
    entity_id = None if system else _entity_for(command, adapter)
    query = not system and adapter.is_query(command.action)
    name = command.idempotency_key
    if query:
        return Incoming(delivery, query_key(command), b"", command, entity_id, query=True)
    if name is None or (name.startswith(OWN_PREFIXES) and not command.action.startswith(SYSTEM_PREFIX)):
        # It can be read, so its sender hears of its fate by its id.
        key, digest = raw_key(delivery)
        return Incoming(delivery, key, digest, command, fault=_unusable(name))
    return Incoming(delivery, name, payload_hash(command), command, entity_id, system=system)


def _read_delivered(delivery: Delivery, command: CommandEnvelope, adapter: AgentAdapter[Any]) -> Incoming:
    """A redriven event of another agent: from here on it is that event."""
    event = decode_event(canonical(command.payload.get("event")))
    if not any((event.agent, event.name) == (s.agent, s.name) for s in adapter.subscriptions):
        raise Poison(
            f"event {event.name!r} of {event.agent!r} is not one that {adapter.name!r} receives any more",
            code="not_subscribed",
        )
    if (event.tenant, event.workspace) != (command.tenant, command.workspace):
        raise Poison(f"event {event.id} is of another workspace", code="scope_mismatch")
    return _as_event(delivery, event, adapter)


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


def _read_event(delivery: Delivery, adapter: AgentAdapter[Any]) -> Incoming:
    event = decode_event(delivery.body)
    violation = check(parse_subject(delivery.subject), event)
    if violation is not None:
        key, digest = raw_key(delivery)
        return Incoming(delivery, key, digest, event, fault=violation)
    return _as_event(delivery, event, adapter)


def _as_event(delivery: Delivery, event: EventEnvelope, adapter: AgentAdapter[Any]) -> Incoming:
    try:
        entity: object = adapter.entity_of(event)
    except Exception as error:
        raise Poison(
            f"event {event.id}: choosing the entity failed: {type(error).__name__}: {error}", code="bad_entity"
        ) from error
    key = event_key(event)
    digest = hashlib.sha256(canonical([event.name, event.entity_id, event.payload])).digest()
    return Incoming(delivery, key, digest, event, _checked_entity(entity, f"event {event.id}"))


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
