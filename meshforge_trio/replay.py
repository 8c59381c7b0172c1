"""Rebuilding state from events: the proof that the store says what the program remembers.

Everything is recomputed from the bodies of the events: versions, hash chains, states. What differs from the rows is
named by its event. Conflicts, refusals and replies lie beside the entities' chains and take no part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, Final, Literal, Protocol

import attrs
import orjson

from meshforge_trio.agent import AgentAdapter, Event
from meshforge_trio.codec import ScopeSealer
from meshforge_trio.entities import hashed, replayed
from meshforge_trio.envelope import canonical
from meshforge_trio.store.port import Head, Output, state_of_heads
from meshforge_trio.subjects import Scope

__all__ = ["Difference", "EntityState", "ReplayReport", "StoredRows", "replay_scope", "state_at", "state_hash"]

_PAGE: Final = 500


class StoredRows(Protocol):
    """What of a `ScopeStore` a replay reads. One snapshot must answer all of it, or a running engine shows as a
    difference."""

    @property
    def scope(self) -> Scope: ...

    async def outputs_after(self, n: int, limit: int) -> Sequence[Output]: ...

    async def history(self, entity_id: str, after: int, limit: int) -> Sequence[Output]: ...

    async def heads(self, after: str, limit: int) -> Sequence[Head]: ...


@attrs.frozen
class Difference:
    """Where the rows and the replay part, at the first event that shows it.

    `kind` says what was compared: `version` (gap or fork, or an event that its head does not lead to), `identity` (the
    row and its body name different events), `chain`, `apply` (the agent cannot apply the event), `snapshot`, `head`,
    `headless` (events without a head), or `state_hash` (the states together, against what the last engine had in
    memory when it drained).
    """

    kind: Literal["version", "identity", "chain", "apply", "snapshot", "head", "headless", "state_hash"]
    scope: str
    entity_id: str
    version: int
    event_id: str | None
    expected: str
    got: str

    def __str__(self) -> str:
        if self.kind == "state_hash":
            return f"{self.scope}: the state rebuilt is not the state that was served: {self.expected}, got {self.got}"
        event = f", event {self.event_id}" if self.event_id is not None else ""
        return (
            f"{self.scope}: entity {self.entity_id!r} version {self.version}{event}: {self.kind} differs, "
            f"expected {self.expected}, got {self.got}"
        )


@attrs.frozen
class ReplayReport:
    """What a replay found. `state_hash` covers the replayed states of all entities, whatever differs."""

    scope: str
    entities: int
    events: int
    snapshots: int
    state_hash: str
    differences: int
    first_difference: Difference | None
    recorded: str | None = None

    def against(self, recorded: str | None) -> ReplayReport:
        """The same, compared with the hash that an engine recorded of what it had in memory."""
        if recorded is None or recorded == self.state_hash or self.first_difference is not None:
            return attrs.evolve(self, recorded=recorded)
        difference = Difference("state_hash", self.scope, "", 0, None, recorded, self.state_hash)
        return attrs.evolve(self, recorded=recorded, differences=1, first_difference=difference)


@attrs.frozen
class EntityState:
    """An entity as its events up to `version` leave it. `chain` is empty before the first."""

    version: int
    chain: bytes
    state: Any


class _Parted(Exception):
    def __init__(self, difference: Difference) -> None:
        super().__init__(str(difference))
        self.difference = difference


async def replay_scope(
    rows: StoredRows,
    adapter: AgentAdapter[Any],
    progress: Callable[[int], None] = lambda events: None,
    sealer: ScopeSealer | None = None,
) -> ReplayReport:
    """Rebuild every entity of a scope from its events and compare with heads and snapshots.

    `progress` is called with the number of events replayed since its last call. An entity's replay ends at its first
    difference; the others go on. `sealer` opens what is sealed.

    Raises:
        Poison: something is sealed and does not open.
    """
    found: list[Difference] = []
    states: list[tuple[str, int, bytes, bytes]] = []
    events = snapshots = 0
    last = ""
    while heads := await rows.heads(last, _PAGE):
        for head in heads:
            replay = _Replay(str(rows.scope), adapter, head, sealer)
            difference = await _replay_entity(rows, replay, progress)
            if difference is not None:
                found.append(difference)
            events += replay.version
            snapshots += replay.snapshots
            states.append((head.entity_id, replay.version, replay.chain, hashed(replay.dumped(), sealer)))
        last = heads[-1].entity_id
    parted = {difference.entity_id for difference in found}
    found += await _strays(rows, {entity_id: version for entity_id, version, *_ in states}, parted)
    return ReplayReport(
        scope=str(rows.scope),
        entities=len(states),
        events=events,
        snapshots=snapshots,
        state_hash=state_of_heads(states),
        differences=len(found),
        first_difference=found[0] if found else None,
    )


async def state_at(
    rows: StoredRows,
    adapter: AgentAdapter[Any],
    entity_id: str,
    version: int | None = None,
    sealer: ScopeSealer | None = None,
) -> EntityState:
    """The entity after its event of `version` (default: its last); that of an unknown entity is version 0.

    Where the entity has fewer events, the state after the last of them; compare versions to tell.

    Raises:
        Poison: the agent cannot apply an event, or it is sealed and does not open.
    """
    state, reached, chain, last = adapter.initial(), 0, b"", 0
    while page := await rows.history(entity_id, last, _PAGE):
        for output in page:
            if version is not None and reached >= version:
                return EntityState(reached, chain, state)
            state = replayed(adapter, state, [output.body], sealer)
            reached, chain = reached + 1, hashlib.sha256(chain + output.body).digest()
        last = page[-1].version or 0
    return EntityState(reached, chain, state)


async def state_hash(
    rows: StoredRows, adapter: AgentAdapter[Any], sealer: ScopeSealer | None = None
) -> tuple[str, int]:
    """`state_hash` of a scope and its number of entities, from heads, snapshots and the events after them.

    Raises:
        Poison: something is sealed and does not open.
    """
    states: list[tuple[str, int, bytes, bytes]] = []
    last = ""
    while heads := await rows.heads(last, _PAGE):
        for head in heads:
            state, version = adapter.initial(), 0
            if head.state is not None and head.state_schema == adapter.schema:
                state, version = adapter.load(orjson.loads(_saved(head, head.state, sealer))), head.state_version
            # A head at its snapshot's version has no events after it, which spares most heads a look.
            while version < head.version and (page := await rows.history(head.entity_id, version, _PAGE)):
                state = replayed(adapter, state, [output.body for output in page], sealer)
                version = page[-1].version or head.version
            dumped = hashed(canonical(adapter.dump(state)), sealer)
            states.append((head.entity_id, head.version, head.chain, dumped))
        last = heads[-1].entity_id
    return state_of_heads(states), len(states)


async def _replay_entity(rows: StoredRows, replay: _Replay, progress: Callable[[int], None]) -> Difference | None:
    try:
        while page := await rows.history(replay.head.entity_id, replay.version, _PAGE):
            for output in page:
                replay.take(output)
            progress(len(page))
        replay.finish()
    except _Parted as parted:
        return parted.difference
    return None


@attrs.define(eq=False)
class _Replay:
    """One entity, forward from nothing."""

    scope: str
    adapter: AgentAdapter[Any]
    head: Head
    sealer: ScopeSealer | None = None
    version: int = 0
    chain: bytes = b""
    snapshots: int = 0
    last_id: str | None = None
    state: Any = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.state = self.adapter.initial()

    def take(self, output: Output) -> None:
        """The next event. Raises `_Parted` at the first difference."""
        version = self.version + 1
        if output.version != version:
            raise self._parted("version", output, str(version), str(output.version))
        chain = hashlib.sha256(self.chain + output.body).digest()
        if output.chain != chain:
            raise self._parted("chain", output, chain.hex(), (output.chain or b"").hex() or "nothing")
        body = orjson.loads(output.body)
        told = {"id": body["id"], "name": body["name"], "entity_id": body.get("entity_id")}
        stored = {"id": output.event_id, "name": output.name, "entity_id": self.head.entity_id}
        if told != stored:
            raise self._parted("identity", output, str(told), str(stored))
        payload = body["payload"] if self.sealer is None else self.sealer.opened_payload(body)
        try:
            self.state = self.adapter.apply(self.state, Event(body["name"], payload))
        except Exception as error:
            raise self._parted("apply", output, "a state", f"{type(error).__name__}: {error}") from error
        self.version, self.chain, self.last_id = version, chain, output.event_id
        if self.head.state is not None and self.head.state_version == version:
            self._compare_snapshot(output, self.head.state)

    def finish(self) -> None:
        """After the last event. Raises `_Parted` when the head says otherwise."""
        replayed = f"version {self.version}, chain {self.chain.hex()}"
        recorded = f"version {self.head.version}, chain {self.head.chain.hex()}"
        if replayed != recorded:
            raise _Parted(self._difference("head", max(self.version, 1), self.last_id, replayed, recorded))

    def dumped(self) -> bytes:
        """The state as canonical JSON."""
        return canonical(self.adapter.dump(self.state))

    def _compare_snapshot(self, output: Output, recorded: bytes) -> None:
        if self.head.state_schema != self.adapter.schema:
            return  # of another shape of state; the engine ignores it too
        self.snapshots += 1
        rebuilt, recorded = self.dumped(), _saved(self.head, recorded, self.sealer)
        if rebuilt != recorded:
            raise self._parted(
                "snapshot", output, hashlib.sha256(rebuilt).hexdigest(), hashlib.sha256(recorded).hexdigest()
            )

    def _parted(
        self, kind: Literal["version", "identity", "chain", "apply", "snapshot"], at: Output, expected: str, got: str
    ) -> _Parted:
        return _Parted(self._difference(kind, at.version or self.version + 1, at.event_id, expected, got))

    def _difference(
        self,
        kind: Literal["version", "identity", "chain", "apply", "snapshot", "head"],
        version: int,
        event_id: str | None,
        expected: str,
        got: str,
    ) -> Difference:
        return Difference(kind, self.scope, self.head.entity_id, version, event_id, expected, got)


def _saved(head: Head, state: bytes, sealer: ScopeSealer | None) -> bytes:
    if sealer is None:
        return state
    return sealer.opened_state(head.entity_id, head.state_version, head.state_schema, state)


async def _strays(rows: StoredRows, replayed: Mapping[str, int], parted: Set[str]) -> list[Difference]:
    """The first event of each entity that no head leads to: the entity has none, or it leads past the event.

    `parted` are entities whose difference is known already. The outputs of a scope hold an entity's events in order,
    so an event out of order, or one too many, is a fork.
    """
    found: dict[str, Difference] = {}
    met: dict[str, int] = {}
    n = 0
    while page := await rows.outputs_after(n, _PAGE):
        for output in page:
            entity, version = output.entity_id, output.version
            if output.kind != "event" or entity is None or version is None or entity in parted or entity in found:
                continue
            met[entity] = met.get(entity, 0) + 1
            told = str(rows.scope), entity, version, output.event_id
            if entity not in replayed:
                found[entity] = Difference("headless", *told, "a head", "none")
            elif version != met[entity] or version > replayed[entity]:
                expected = str(met[entity]) if met[entity] <= replayed[entity] else "no event"
                found[entity] = Difference("version", *told, expected, str(version))
        n = page[-1].n
    return list(found.values())
