"""The event store on SQLite: one file, one connection per process, every write one IMMEDIATE transaction.

Rows go in and keys are looked up many to a statement. apsw gives up the interpreter lock around each step of a
statement, so with a statement per row a commit beside a busy event loop waits for that lock a thousand times.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar, TypeVarTuple

import apsw
import trio

from meshforge_trio.errors import MeshForgeError, Misconfigured, StoreBroken
from meshforge_trio.store.lease import Clock, Term, boottime_ns
from meshforge_trio.store.schema import (
    SCOPE_SHIFT,
    Synchronous,
    connect,
    transaction,
    translated,
)
from meshforge_trio.subjects import Scope, is_token

__all__ = ["Offload", "SQLiteEventStore", "SQLiteScopeStore", "inline"]

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")
_Row = tuple[Any, ...]

# Write-ahead log pages (8 KiB each) from which on a commit is followed by a checkpoint.
_CHECKPOINT_PAGES: Final = 4_000
_N_MAX: Final = (1 << SCOPE_SHIFT) - 1
# Rows or keys per statement. Few sizes, so that the statements stay in the connection's cache.
_CHUNKS: Final = (64, 8, 1)

_MARKS_KEPT: Final = 10_000
_MARKS_KEPT_S: Final = 24 * 3600.0
# Marks are pruned when their number is a multiple of this, and older ones with such a number are kept for 24 hours.
_MARK_STRIDE: Final = 256

_OUTPUT: Final = "id, kind, key, event_id, name, subject, msg_id, body, entity_id, version, chain"
_HEAD: Final = (
    "SELECT h.entity_id, h.version, h.chain, s.state, s.version, s.schema FROM heads h"
    " LEFT JOIN snapshots s ON s.scope = h.scope AND s.entity_id = h.entity_id"
)


class Offload(Protocol):
    """Runs blocking calls of the store, one at a time, and waits for each to its end."""

    async def __call__(self, fn: Callable[[*_Ts], _T], *args: *_Ts) -> _T: ...


async def inline(fn: Callable[[*_Ts], _T], *args: *_Ts) -> _T:
    """An `Offload` that calls `fn` on the spot: for simulations, where a thread would break determinism."""
    return fn(*args)


def _threads() -> Offload:
    limiter = trio.CapacityLimiter(1)

    async def offload(fn: Callable[[*_Ts], _T], *args: *_Ts) -> _T:
        return await trio.to_thread.run_sync(fn, *args, limiter=limiter)

    return offload


class SQLiteEventStore:
    """An `EventStore` in one SQLite file. Several processes may open it; each opens it after its last fork."""

    def __init__(self, path: Path, connection: apsw.Connection, term: Term, offload: Offload) -> None:
        """Use `open`."""
        self.path = path
        self.connection = connection
        self.term = term
        self._offload = offload
        self._lock = trio.Lock()
        self._pid = os.getpid()
        self._refusal: MeshForgeError | None = None
        self._log_pages = 0
        # In place of SQLite's automatic checkpoint, which keeps a failed fsync to itself.
        connection.set_wal_hook(self._note_log_pages)

    @classmethod
    async def open(
        cls,
        path: str | os.PathLike[str],
        *,
        ttl_s: float = 5.0,
        synchronous: Synchronous = "FULL",
        offload: Offload | None = None,
        holder: str | None = None,
        clock: Clock = boottime_ns,
        vfs: str | None = None,
    ) -> SQLiteEventStore:
        """Open or create the store at `path`, and begin a term of `ttl_s` seconds.

        `holder` names this process among those that open the file (default: process id and random digits).
        `synchronous="NORMAL"` can lose the last commits with the power, "OFF" the file. `clock` and `vfs` (the name
        of a registered SQLite VFS) are for simulations and fault tests.

        Raises:
            Misconfigured, StoreBroken, StoreFull, Transient: as `schema.connect` says; `Misconfigured` also for a
                holder whose name is no token or already running.
        """
        name = holder or f"{os.getpid()}-{secrets.token_hex(8)}"
        if not is_token(name):
            raise Misconfigured(f"holder {name!r} must be 1 to 64 of A-Z a-z 0-9 _ -")
        run = offload or _threads()
        file = Path(path)

        def set_up() -> SQLiteEventStore:
            connection = connect(file, synchronous=synchronous, vfs=vfs)
            try:
                term = Term(Path(f"{file}-holders"), name, ttl_s, clock)
            except BaseException:
                connection.close()
                raise
            store = cls(file, connection, term, run)
            try:
                store._write(lambda: term.extend(term.begin(connection)))
            except BaseException as error:
                store._close_file(remove=True)
                if isinstance(error, apsw.Error):
                    raise translated(error, file) from error
                raise
            return store

        with trio.CancelScope(shield=True):
            return await run(set_up)

    def scope(self, scope: Scope) -> SQLiteScopeStore:
        """The rows of one scope."""
        return SQLiteScopeStore(self, scope)

    async def scopes(self) -> Sequence[Scope]:
        """Every scope that has ever been served, sorted."""
        sql = "SELECT tenant, workspace, agent FROM scopes ORDER BY 1, 2, 3"
        return [Scope(*row) for row in await self.run(self.rows, sql)]

    async def keep_alive(self) -> None:
        """Renew the term.

        Raises:
            Fenced: the term had run out and another process has taken a scope since. Nothing was renewed, and
                `lease_valid` stays false until that scope's engine calls `take_lease`.
        """
        await self.run(self._renew)

    def lease_valid(self) -> bool:
        """Whether the term, less a margin of a tenth, still runs. Reads a clock and nothing else."""
        return self._refusal is None and self.term.valid()

    async def close(self) -> None:
        """Give up the term, so that others may take over at once, and close the file. Never fails."""
        with trio.CancelScope(shield=True):
            async with self._lock:
                await self._offload(self._close)

    def abandon(self) -> None:
        """Let go of the file as a killed process would, its term and its write-ahead log left behind. Blocks.

        For simulations; nothing of the store works afterwards.
        """
        if not isinstance(self._refusal, Misconfigured):
            self._close_file(remove=False)

    async def run(self, fn: Callable[[*_Ts], _T], *args: *_Ts) -> _T:
        """Call `fn` where it may block, alone on the connection, and translate SQLite's errors.

        Once begun it is awaited to its end, cancelled or not: what was committed must be known.
        """
        async with self._lock:
            if os.getpid() != self._pid:
                raise Misconfigured(f"{self.path} was opened before a fork: open it again in the child")
            if self._refusal is not None:
                raise type(self._refusal)(str(self._refusal))
            with trio.CancelScope(shield=True):
                try:
                    return await self._offload(fn, *args)
                except apsw.Error as error:
                    ours = translated(error, self.path)
                    if isinstance(ours, StoreBroken):
                        self._refusal = ours
                    raise ours from error

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[_Row]:
        """All rows of a query."""
        return self.connection.execute(sql, values).fetchall()

    @contextlib.contextmanager
    def writing(self) -> Iterator[apsw.Connection]:
        """A write transaction, and a checkpoint after it when the write-ahead log has grown."""
        with transaction(self.connection, "IMMEDIATE"):
            yield self.connection
        if self._log_pages >= _CHECKPOINT_PAGES:
            # A reader or another writer in the way, or a full disk: the log goes on growing, the next commit tries.
            with contextlib.suppress(apsw.BusyError, apsw.LockedError, apsw.FullError):
                self.connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
