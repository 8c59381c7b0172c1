"""Entities in memory: the cache of a session, and the private copy a turn works on.

A turn moves its own copies forward; the cache takes them only after COMMIT returned. Any other end drops them.
"""

from __future__ import annotations

from collections.abc import KeysView, Mapping, Sequence
from typing import Any, Final

import attrs
import orjson
import structlog

from meshforge_trio.agent import AgentAdapter, Event
from meshforge_trio.codec import ScopeSealer
from meshforge_trio.envelope import canonical, holds_nan
from meshforge_trio.store.port import Commit, Head, Snapshot

__all__ = ["Cache", "Entities", "Entity", "hashed", "replayed", "restore"]

#: A snapshot is due when an entity has this many events after its last one.
SNAPSHOT_EVERY: Final = 64

_log = structlog.get_logger("meshforge")


@attrs.define
class Entity:
    """Where an entity stands. `chain` is empty before its first event; `saved` its snapshot's version."""

    version: int
    chain: bytes
    state: Any
    saved: int


class Cache:
    """The entities used last, at most `size` of them."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._entities: dict[str, Entity] = {}

    def get(self, entity_id: str) -> Entity | None:
        return self._entities.get(entity_id)

    def keys(self) -> KeysView[str]:
        """The entities at hand."""
        return self._entities.keys()

    def put(self, entities: Mapping[str, Entity]) -> None:
        """Take these as the newest."""
        for entity_id, entity in entities.items():
            self._entities.pop(entity_id, None)
            self._entities[entity_id] = entity
        while len(self._entities) > self._size:
            del self._entities[next(iter(self._entities))]

    def clear(self) -> None:
        """Forget all."""
        self._entities.clear()


class Entities:
    """The entities of one turn."""

    def __init__(
        self, cache: Cache, adapter: AgentAdapter[Any], heads: Mapping[str, Head], sealer: ScopeSealer | None = None
    ) -> None:
        self._cache = cache
        self._adapter = adapter
        self._heads = heads
        self._sealer = sealer
        self._read: dict[str, Entity] = {}
        self._changed: dict[str, Entity] = {}

    def working(self, entity_id: str | None) -> Entity:
        """The entity as this turn has left it so far."""
        if entity_id is None:
            return Entity(0, b"", self._adapter.initial(), 0)
        entity = self._changed.get(entity_id) or self._cache.get(entity_id) or self._read.get(entity_id)
        if entity is None:
            entity = self._read[entity_id] = restore(self._adapter, self._heads.get(entity_id), self._sealer)
        return entity

    def advance(self, entity_id: str | None, entity: Entity) -> None:
        """A decision moved it."""
        if entity_id is not None and entity is not self.working(entity_id):
            self._changed[entity_id] = entity

    def write_to(self, commit: Commit) -> None:
        """Heads of what changed, and snapshots that are due."""
        for entity_id, entity in self._changed.items():
            commit.heads.append(Head(entity_id, entity.version, entity.chain))
            if entity.version - entity.saved >= SNAPSHOT_EVERY:
                self._save(entity_id, entity, commit)

    def _save(self, entity_id: str, entity: Entity, commit: Commit) -> None:
        """Its state as a snapshot. One that JSON cannot carry is none: the whole history is read instead."""
        try:
            state = self._adapter.dump(entity.state)
            body = canonical(state)
        except Exception as error:
            _log.error("no snapshot: the state cannot be dumped", entity_id=entity_id, reason=str(error))
            return
        if b"null" in body and holds_nan(state):
            _log.error("no snapshot: the state holds NaN or infinity", entity_id=entity_id)
            return
        if self._sealer is not None:
            body = self._sealer.state(entity_id, entity.version, self._adapter.schema, body)
        commit.snapshots.append(Snapshot(entity_id, entity.version, self._adapter.schema, body))
        self._changed[entity_id] = attrs.evolve(entity, saved=entity.version)

    def moved(self) -> list[tuple[str, Any]]:
        """Entities that this turn has moved, with the states it leaves them in."""
        return [(entity_id, entity.state) for entity_id, entity in self._changed.items()]

    def keep(self) -> None:
        """The transaction is committed: the cache takes what was read and changed."""
        self._cache.put(self._read)
        self._cache.put(self._changed)


def restore(adapter: AgentAdapter[Any], head: Head | None, sealer: ScopeSealer | None = None) -> Entity:
    """An entity from its snapshot and the events after it.

    Raises:
        Poison: something of it is sealed and cannot be opened.
    """
    if head is None:
        return Entity(0, b"", adapter.initial(), 0)
    saved = head.state
    if saved is not None and sealer is not None:
        saved = sealer.opened_state(head.entity_id, head.state_version, head.state_schema, saved)
    state = adapter.initial() if saved is None else adapter.load(orjson.loads(saved))
    return Entity(head.version, head.chain, replayed(adapter, state, head.tail, sealer), head.state_version)


def hashed(state: bytes, sealer: ScopeSealer | None) -> bytes:
    """What of a dumped state goes into `state_hash`: its keyed digest, where a bare hash would tell what it is."""
    return state if sealer is None else sealer.digest(state)


def replayed(adapter: AgentAdapter[Any], state: Any, bodies: Sequence[bytes], sealer: ScopeSealer | None = None) -> Any:
    """`state` after the events of `bodies`. Raises `Poison` as `restore`."""
    for body in bodies:
        event = orjson.loads(body)
        payload = event["payload"] if sealer is None else sealer.opened_payload(event)
        state = adapter.apply(state, Event(event["name"], payload))
    return state
