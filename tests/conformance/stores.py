"""The stores of the conformance suite: how each is opened, and how its clock and its disk are interfered with."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

import apsw
import attrs

from meshforge_trio.points import no_probe
from meshforge_trio.store.lease import boottime_ns
from meshforge_trio.store.port import Commit, EventStore, Head, KeyRecord, Lease, Output, ScopeStore
from meshforge_trio.store.sqlite import SQLiteEventStore
from meshforge_trio.subjects import Scope

SCOPE: Final = Scope("acme", "main", "orders")
OTHER: Final = Scope("acme", "main", "billing")
TTL_S: Final = 600.0
HASH: Final = b"h" * 32


class World(Protocol):
    """One database, who opens it, and what befalls it."""

    async def open(self, holder: str | None = None) -> EventStore:
        """Open it as one more process would."""

    def pass_time(self, seconds: float) -> None:
        """Move the clock of every store opened here."""

    def fill_disk(self) -> None:
        """From now on there is no space."""

    def free_disk(self) -> None:
        """There is space again."""

    def fail_disk(self) -> None:
        """From now on every write fails."""

    def source(self) -> str:
        """Python source of an expression that opens the same database from another process."""

    async def close(self) -> None:
        """Close every store that was opened here."""


class _Disk(apsw.VFS):
    """A disk that fills up and breaks on demand."""

    def __init__(self) -> None:
        self.fault: apsw.Error | None = None
        self.name = f"disk-{id(self)}"
        super().__init__(self.name, base="")

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> _File:  # noqa: N802
        return _File(self, name, flags)


class _File(apsw.VFSFile):
    def __init__(self, disk: _Disk, name: str | apsw.URIFilename | None, flags: list[int]) -> None:
        self._disk = disk
        super().__init__("", name, flags)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        if self._disk.fault is not None:
            raise self._disk.fault
        super().xWrite(data, offset)

    def excepthook(self, *_: object) -> bool:
        """Keep quiet: the store sees SQLite's result code."""
        return True


class SQLiteWorld:
    """A file, and connections of this process as stand-ins for other processes."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "store.db"
        self._skipped_ns = 0
        self._disk = _Disk()
        self._opened: list[SQLiteEventStore] = []

    async def open(self, holder: str | None = None) -> SQLiteEventStore:
        store = await SQLiteEventStore.open(
            self._path,
            ttl_s=TTL_S,
            synchronous="OFF",
            holder=holder,
            clock=lambda: boottime_ns() + self._skipped_ns,
            vfs=self._disk.name,
        )
        self._opened.append(store)
        return store

    def pass_time(self, seconds: float) -> None:
        self._skipped_ns += round(seconds * 1e9)

    def fill_disk(self) -> None:
        self._disk.fault = apsw.FullError("no space left")

    def free_disk(self) -> None:
        self._disk.fault = None

    def fail_disk(self) -> None:
        self._disk.fault = apsw.IOError("the disk is gone")

    def source(self) -> str:
        return f"SQLiteEventStore.open({os.fspath(self._path)!r}, ttl_s={TTL_S}, offload=inline)"

    async def close(self) -> None:
        self.free_disk()
        for store in self._opened:
            await store.close()


WORLDS: dict[str, Callable[[Path], World]] = {"sqlite": SQLiteWorld}


@attrs.define
class Serving:
    """A scope under a lease, and the numbers its next decision needs."""

    rows: ScopeStore
    lease: Lease
    n: int = 0
    versions: dict[str, int] = attrs.field(factory=dict)
    chains: dict[str, bytes] = attrs.field(factory=dict)

    def decision(self, key: str, entity: str | None = None, names: tuple[str, ...] = ("created",)) -> Commit:
        """What a turn of one command commits: its events, its key and its entity's head."""
        commit = Commit(self.lease.epoch)
        version = self.versions.get(entity, 0) if entity is not None else 0
        chain = self.chains.get(entity, b"") if entity is not None else b""
        for i, name in enumerate(names, 1):
            output = output_of(self.n + i, key, name=name)
            if entity is not None:
                version += 1
                output = linked(output, entity, version, chain)
                chain = output.chain or b""
            commit.outputs.append(output)
        commit.keys.append(KeyRecord(key, HASH, "decided", self.n + 1, self.n + len(names)))
        if entity is not None:
            commit.heads.append(Head(entity, version, chain))
        return commit

    async def commit(self, commit: Commit) -> None:
        """Commit, and count on from there."""
        await self.rows.commit(commit, no_probe)
        self.n += len(commit.outputs)
        self.versions |= {head.entity_id: head.version for head in commit.heads}
        self.chains |= {head.entity_id: head.chain for head in commit.heads}


def output_of(n: int, key: str, kind: str = "event", name: str = "created") -> Output:
    subject = f"evt.acme.main.orders.{name}"
    return Output(n, kind, key, f"{key}_{name}", name, subject, f"msg-{key}-{n}", b'{"n":%d}' % n)  # type: ignore[arg-type]


def linked(output: Output, entity: str, version: int, before: bytes = b"") -> Output:
    """The same as the event of a version of an entity, after the chain `before`."""
    chain = hashlib.sha256(before + output.body).digest()
    return attrs.evolve(output, entity_id=entity, version=version, chain=chain)


async def serve(store: EventStore, scope: Scope = SCOPE, server_id: str = "NATS1") -> Serving:
    rows = store.scope(scope)
    lease = await rows.take_lease(server_id)
    assert lease is not None
    return Serving(rows, lease, lease.next_n - 1)


async def everything(rows: ScopeStore, keys: tuple[str, ...] = (), entities: tuple[str, ...] = ()) -> object:
    """All a scope holds that the port shows."""
    reading = await rows.read([(key, HASH) for key in keys], entities)
    outputs = [attrs.astuple(output) for output in await rows.outputs_after(0, 1000)]
    return reading, outputs, await rows.marks(), await rows.attempts(), await rows.heads("", 1000)
