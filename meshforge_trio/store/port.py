"""The store port: what the protocol asks of a database.

Contract, held by `tests/conformance/test_store.py` on every adapter:

S1  `commit` writes everything in a `Commit` or nothing, and returns only when a process crash cannot undo it
    (with `synchronous=FULL` also a power loss).
S2  `commit` with an epoch that is not the scope's newest raises `Fenced` and writes nothing.
S3  `commit` of a key that exists, of an output number or an entity version that is not the next one, or of the fate
    of a dead letter that does not wait for one, raises `Stale` and writes nothing.
S4  What `read`, `outputs_after` and `history` return was committed, and stays as it was.
S5  Nothing reaches across scopes: a `ScopeStore` is made for one scope and has no argument to name another.
S6  `take_lease` raises the epoch by one, for ever; it refuses while another living holder's term runs.
S7  No space raises `StoreFull` with nothing written; an I/O error or corruption raises `StoreBroken`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import attrs

from meshforge_trio.points import Probe
from meshforge_trio.subjects import Scope

__all__ = [
    "Attempt",
    "Call",
    "Commit",
    "DeadLetter",
    "DeadState",
    "EventStore",
    "Head",
    "KeyRecord",
    "Kind",
    "Lease",
    "Mark",
    "Output",
    "Outcome",
    "Reading",
    "ScopeStore",
    "Snapshot",
    "state_of_heads",
]

#: `event` is a link in its entity's chain; `record` lies beside it (conflict, refusal, reply, violation);
#: `command` goes to another agent; `dead` is a dead letter.
Kind = Literal["event", "record", "command", "dead"]
Outcome = Literal["decided", "conflict", "refused", "violation", "dead"]
#: What has become of a dead letter since.
DeadState = Literal["waiting", "redriven", "discarded"]
#: A call of a handler that did not end well: when, and the error's text; "" where its process died.
Call = tuple[float, str]


@attrs.define
class Output:
    """One message a decision sends: event row and outbox row in one, so nothing has to keep in step.

    `n` counts the outputs of a scope from 1 and is their publishing order; 0 until its turn has numbered it.
    `version` and `chain` are set for events of an entity only: `chain` is
    SHA-256(chain of the version before, then `body`).
    """

    n: int
    kind: Kind
    key: str
    event_id: str
    name: str
    subject: str
    msg_id: str
    body: bytes
    entity_id: str | None = None
    version: int | None = None
    chain: bytes | None = None


@attrs.define
class KeyRecord:
    """The first decision under a key. Its outputs are those numbered `first_n` to `last_n` (none if last < first)."""

    key: str
    payload_hash: bytes
    outcome: Outcome
    first_n: int
    last_n: int
    generation: int = 0


@attrs.define
class Head:
    """Where an entity stands. `state` is the snapshot at `state_version`; `tail` the event bodies after it."""

    entity_id: str
    version: int
    chain: bytes
    state: bytes | None = None
    state_version: int = 0
    state_schema: int = 0
    tail: Sequence[bytes] = ()


@attrs.frozen
class Snapshot:
    """An entity's state as canonical JSON at a version, to spare reading its whole history."""

    entity_id: str
    version: int
    schema: int
    state: bytes


@attrs.frozen
class Attempt:
    """A command whose handler was called and did not end well, or is being called right now.

    `next_at` is the wall-clock second before which nobody tries again (0: at once). `calls` are the newest calls of
    the handler, oldest first.
    """

    key: str
    entity_id: str | None
    attempts: int
    next_at: float
    first_at: float
    last_at: float
    error: str
    calls: Sequence[Call] = ()


@attrs.frozen
class DeadLetter:
    """The original message of a dead letter, whole, with the story of its failure.

    `generation` is how often the key had been redriven before; `n` the number of its output.
    """

    key: str
    generation: int
    n: int
    subject: str
    headers: bytes
    body: bytes
    code: str
    reason: str
    attempts: int
    first_at: float
    last_at: float
    entity_id: str | None = None
    trace_id: str = ""
    calls: Sequence[Call] = ()
    state: DeadState = "waiting"

    def numbered(self, n: int) -> DeadLetter:
        """The same with the number its output was given."""
        return attrs.evolve(self, n=n)


@attrs.frozen
class Mark:
    """Everything through output `n` is published; the last of it in the event stream has Msg-Id `event_id`
    at sequence `event_seq`, in the failed stream `failed_id` at `failed_seq` (0 and "" where there is none)."""

    n: int
    event_seq: int
    event_id: str
    failed_seq: int
    failed_id: str
    at: float


@attrs.frozen
class Lease:
    """A term as the active engine of a scope, and what the store remembers of the one before.

    `clean` is whether it ended with nothing in hand; `server_id` the nats-server it last spoke to;
    `next_n` the number of the next output.
    """

    epoch: int
    clean: bool
    server_id: str
    next_n: int


@attrs.frozen
class Reading:
    """What one turn needs to know: found keys with their outputs, and the heads of the entities asked for.

    `mismatches` holds the refusals stored for (key, payload hash) pairs that differ from the first.
    `generations` is how often a key was redriven; absent means never. `dead` are the dead letters of found keys,
    `fences` the newest fencing tokens of resources.
    """

    keys: Mapping[str, tuple[KeyRecord, Sequence[Output]]]
    mismatches: Mapping[tuple[str, bytes], Sequence[Output]]
    heads: Mapping[str, Head]
    generations: Mapping[str, int]
    dead: Mapping[str, DeadLetter] = attrs.field(factory=dict)
    fences: Mapping[str, int] = attrs.field(factory=dict)


@attrs.define
class Commit:
    """One transaction of a turn. `heads` carry version and chain only; `ended` are attempt rows to delete.

    `mismatches` are refusals under (key, payload hash, first_n, last_n); `clean` ends the term (shutdown);
    `fences` are newest fencing tokens by resource;
    `redriven` and `discarded` are (key, generation) of waiting dead letters: a redriven key is free again;
    `state_hash` is (n, hash): `state_of_heads` of all entities as outputs up to `n` leave them.
    """

    epoch: int
    outputs: list[Output] = attrs.field(factory=list)
    keys: list[KeyRecord] = attrs.field(factory=list)
    mismatches: list[KeyRecord] = attrs.field(factory=list)
    heads: list[Head] = attrs.field(factory=list)
    snapshots: list[Snapshot] = attrs.field(factory=list)
    attempts: list[Attempt] = attrs.field(factory=list)
    ended: list[str] = attrs.field(factory=list)
    dead: list[DeadLetter] = attrs.field(factory=list)
    redriven: list[tuple[str, int]] = attrs.field(factory=list)
    discarded: list[tuple[str, int]] = attrs.field(factory=list)
    fences: dict[str, int] = attrs.field(factory=dict)
    mark: Mark | None = None
    state_hash: tuple[int, str] | None = None
    clean: bool = False


class ScopeStore(Protocol):
    """The store as one scope sees it."""

    @property
    def scope(self) -> Scope: ...

    async def take_lease(self, server_id: str) -> Lease | None:
        """Become the active engine; `None` while another living holder has the scope."""

    async def read(
        self, keys: Sequence[tuple[str, bytes]], entities: Sequence[str], resources: Sequence[str] = ()
    ) -> Reading:
        """One read for a turn. `keys` are (key, payload hash) pairs; `resources` are those whose fences are asked."""

    async def commit(self, commit: Commit, at: Probe) -> None:
        """One transaction; calls `at(Point.IN_STORE)` before COMMIT. Raises `Fenced`, `Stale`, `StoreFull`,
        `StoreBroken`."""

    async def outputs_after(self, n: int, limit: int) -> Sequence[Output]:
        """Outputs numbered above `n`, in order."""

    async def marks(self) -> Sequence[Mark]:
        """Newest first."""

    async def attempts(self) -> Sequence[Attempt]:
        """Every attempt row of the scope."""

    async def history(self, entity_id: str, after: int, limit: int) -> Sequence[Output]:
        """Events of an entity with a version above `after`, in order."""

    async def heads(self, after: str, limit: int) -> Sequence[Head]:
        """Heads with an entity id above `after`, in order of it; without `tail`."""


class EventStore(Protocol):
    """A database that several processes may open."""

    @property
    def place(self) -> str:
        """Where it writes: stores that name the same place wait for each other's transactions."""

    def scope(self, scope: Scope) -> ScopeStore:
        """The only way to reach rows."""

    async def scopes(self) -> Sequence[Scope]:
        """Every scope that has ever been served."""

    async def keep_alive(self) -> None:
        """Renew this process's term; a process that stops doing so loses its scopes.

        Raises:
            Fenced: one has been taken over. `lease_valid` stays false until its engine calls `take_lease` again.
        """

    def lease_valid(self) -> bool:
        """Whether the term, as last renewed, still runs. A clock that counts suspension decides."""

    async def close(self) -> None:
        """Give up the term and close the file."""


def state_of_heads(heads: Sequence[tuple[str, int, bytes, bytes]]) -> str:
    """`state_hash`: SHA-256 over sorted (entity, version, chain, canonical state), as hex."""
    total = hashlib.sha256()
    for entity, version, chain, state in sorted(heads):
        name = entity.encode()
        total.update(len(name).to_bytes(4, "big") + name + version.to_bytes(8, "big") + chain)
        total.update(hashlib.sha256(state).digest())
    return total.hexdigest()
