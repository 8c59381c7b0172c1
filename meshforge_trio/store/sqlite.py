"""The event store on SQLite: one file, one connection per process, every write one IMMEDIATE transaction."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol, TypeVar, TypeVarTuple

import apsw
import structlog
import trio

from meshforge_trio.errors import Fenced, Misconfigured, StoreBroken, Transient
from meshforge_trio.points import IN_STORE, Probe
from meshforge_trio.store import rows
from meshforge_trio.store.lease import Clock, Term, boottime_ns
from meshforge_trio.store.links import Walk
from meshforge_trio.store.place import Place, identity, let_go
from meshforge_trio.store.port import Attempt, Commit, Head, Lease, Mark, Output, Reading
from meshforge_trio.store.schema import Synchronous, connect, transaction, translated
from meshforge_trio.subjects import Scope, is_token

__all__ = ["Offload", "SQLiteEventStore", "SQLiteScopeStore", "inline"]

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

# Pages of the write-ahead log (8 KiB each) from which on a write is followed by a checkpoint.
_CHECKPOINT_PAGES: Final = 4_000


#: A read of so few keys and entities from the page cache takes less time than waking a thread.
_FEW: Final = 8


class Offload(Protocol):
    """Runs blocking calls of the store, one at a time, and waits for each to its end."""

    async def __call__(self, fn: Callable[[*_Ts], _T], *args: *_Ts) -> _T: ...


async def inline(fn: Callable[[*_Ts], _T], *args: *_Ts) -> _T:
    """An `Offload` that calls `fn` on the spot: for simulations, where a thread would break determinism."""
    return fn(*args)


def _in_thread() -> Offload:
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
        self._place = Place(path)
        self._offload = offload
        self._lock = trio.Lock()
        self._pid = os.getpid()
        self._refusal: Exception | None = None
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
        `synchronous="NORMAL"` can lose the last commits with the power, "OFF" the file. `clock` and `vfs` (the
        name of a registered SQLite VFS) are for simulations and fault tests.

        Raises:
            Misconfigured, StoreBroken, StoreFull, Transient: as `schema.connect` says; `Misconfigured` also for a
                holder whose name is no token or already running.
        """
        name = holder or f"{os.getpid()}-{secrets.token_hex(8)}"
        if not is_token(name):
            raise Misconfigured(f"holder {name!r} must be 1 to 64 of A-Z a-z 0-9 _ -")
        run = offload or _in_thread()
        file = Path(path)

        def set_up() -> SQLiteEventStore:
            before = identity(file)
            connection = connect(file, synchronous=synchronous, vfs=vfs)
            with contextlib.ExitStack() as undo:
                undo.callback(let_go, connection)
                term = Term(Path(f"{file}-holders"), name, ttl_s, clock)
                undo.callback(term.end, remove=True)
                store = cls(file, connection, term, run)
                if before not in (None, store._place.database):
                    raise Transient(f"{file} was replaced while it was being opened")
                with store.writing():
                    expires_ns = term.begin(connection)
                term.extend(expires_ns)
                undo.pop_all()
            return store

        with trio.CancelScope(shield=True):
            try:
                store = await run(set_up)
            except (apsw.Error, OSError) as error:
                raise translated(error, file) from error
        return store

    def scope(self, scope: Scope) -> SQLiteScopeStore:
        """The rows of one scope."""
        return SQLiteScopeStore(self, scope)

    async def scopes(self) -> Sequence[Scope]:
        """Every scope that has ever been served, sorted."""
        return await self.run(self._scopes)

    async def keep_alive(self) -> None:
        """Renew the term.

        Raises:
            Fenced: the term had run out and another process has taken a scope since. Nothing was renewed, and
                `lease_valid` stays false until that scope's engine calls `take_lease`.
        """
        await self.run(self._keep_alive)

    def lease_valid(self) -> bool:
        """Whether the term, less a margin of a tenth, still runs. Reads a clock and nothing else."""
        return self._refusal is None and self.term.valid()

    async def close(self) -> None:
        """Give up the term, so that others may take over at once, and close the file. Again it does nothing."""
        with trio.CancelScope(shield=True):
            async with self._lock:
                if not isinstance(self._refusal, trio.ClosedResourceError):
                    await self._offload(self._close)

    def abandon(self) -> None:
        """Let go of the file as a killed process would: its term and its write-ahead log stay behind. Blocks.

        For simulations. Nothing of the store works afterwards.
        """
        self._refusal = trio.ClosedResourceError(f"{self.path} was abandoned")
        let_go(self.connection)
        self.term.end(remove=False)

    @property
    def place(self) -> str:
        """See `EventStore.place`."""
        return os.path.realpath(self.path)

    async def run(self, fn: Callable[[*_Ts], _T], *args: *_Ts, here: bool = False) -> _T:
        """Call `fn` where it may block, alone on the connection, and translate SQLite's errors.

        Once begun it is awaited to its end, cancelled or not: whether it was committed must be known. `here` calls it
        on the spot: for what is read from the page cache in less time than a thread takes to wake.
        """
        async with self._lock:
            if os.getpid() != self._pid:
                raise Misconfigured(f"{self.path} was opened before a fork: open it again in the child")
            if self._refusal is not None:
                raise type(self._refusal)(str(self._refusal))
            with trio.CancelScope(shield=True):
                try:
                    result = fn(*args) if here else await self._offload(fn, *args)
                except apsw.Error as error:
                    ours = translated(error, self.path)
                    if isinstance(ours, StoreBroken):
                        self._refusal = ours
                    raise ours from error
                except StoreBroken as error:
                    self._refusal = error
                    raise
        return result

    @contextlib.contextmanager
    def writing(self) -> Iterator[apsw.Connection]:
        """A write transaction, and a checkpoint after it when the write-ahead log has grown.

        Raises:
            StoreBroken: the store's files are not those that were opened. What was written, if anything, is in these.
        """
        with transaction(self.connection, "IMMEDIATE"):
            yield self.connection
            self._place.check()
        # COMMIT waits for the disk, the longest time in which they could be replaced.
        self._place.check()
        if self._log_pages >= _CHECKPOINT_PAGES:
            # With another process in the way or a full disk the log goes on growing; the next write tries again.
            with contextlib.suppress(apsw.BusyError, apsw.LockedError, apsw.FullError):
                self.connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)

    def _note_log_pages(self, _connection: apsw.Connection, _schema: str, pages: int) -> int:
        self._log_pages = pages
        return apsw.SQLITE_OK

    def _scopes(self) -> list[Scope]:
        sql = "SELECT tenant, workspace, agent FROM scopes ORDER BY 1, 2, 3"
        return [Scope(*row) for row in self.connection.execute(sql)]

    def _keep_alive(self) -> None:
        with self.writing():
            expires_ns = self.term.renew(self.connection)
        self.term.extend(expires_ns)

    def _close(self) -> None:
        broken = self._refusal is not None
        self._refusal = trio.ClosedResourceError(f"{self.path} is closed")
        given_up = not broken and self._give_up()
        with contextlib.suppress(apsw.Error):
            if given_up:
                self.connection.close()
            else:
                # What a failed disk holds is for the next process to judge: no checkpoint over it.
                let_go(self.connection)
        # Where the row could not be given up, the file stays with its lock dropped: that tells others that it is over.
        self.term.end(remove=given_up)

    def _give_up(self) -> bool:
        try:
            with self.writing():
                self.term.give_up(self.connection)
        except (apsw.Error, StoreBroken) as error:
            ours = error if isinstance(error, StoreBroken) else translated(error, self.path)
            structlog.get_logger("meshforge").warning("the term could not be given up", reason=str(ours))
            return False
        return True


class SQLiteScopeStore:
    """A `ScopeStore` on a `SQLiteEventStore`."""

    def __init__(self, store: SQLiteEventStore, scope: Scope) -> None:
        """Use `SQLiteEventStore.scope`."""
        self._store = store
        self._scope = scope
        self._number = 0
        self._walk = Walk()

    @property
    def scope(self) -> Scope:
        """Whose rows these are."""
        return self._scope

    async def take_lease(self, server_id: str) -> Lease | None:
        """Become the active engine and renew the term; `None` while another living holder has the scope."""
        return await self._store.run(self._take_lease, server_id)

    async def read(
        self, keys: Sequence[tuple[str, bytes]], entities: Sequence[str], resources: Sequence[str] = ()
    ) -> Reading:
        """One read for a turn, from one snapshot. `keys` are (key, payload hash) pairs; `resources` have fences."""
        few = len(keys) + len(entities) + len(resources) <= _FEW
        return await self._store.run(self._read, keys, entities, resources, here=few)

    async def commit(self, commit: Commit, at: Probe) -> None:
        """One transaction; calls `at(IN_STORE)`, in the thread that writes, before COMMIT.

        Raises:
            Fenced: another epoch is the newest, or this one was given up.
            Stale: a key exists, or an output number or an entity version is not the next one.
            StoreFull, Transient: nothing was written.
            StoreBroken: whether it was written is unknown.
        """
        await self._store.run(self._commit, commit, at)

    async def outputs_after(self, n: int, limit: int) -> Sequence[Output]:
        """Outputs numbered above `n`, in order."""
        return await self._rows(rows.outputs_after, n, limit)

    async def marks(self) -> Sequence[Mark]:
        """Newest first: the newest 10,000, and of older ones every 256th for 24 hours."""
        return await self._rows(rows.marks)

    async def attempts(self) -> Sequence[Attempt]:
        """Every attempt row of the scope, by key."""
        return await self._rows(rows.attempts)

    async def history(self, entity_id: str, after: int, limit: int) -> Sequence[Output]:
        """Events of an entity with a version above `after`, in order."""
        return await self._rows(self._history, entity_id, after, limit)

    async def heads(self, after: str, limit: int) -> Sequence[Head]:
        """Heads with an entity id above `after`, in code point order, with their snapshots, without `tail`."""
        return await self._rows(rows.heads_after, after, limit)

    def _history(
        self, connection: apsw.Connection, number: int, entity_id: str, after: int, limit: int
    ) -> Sequence[Output]:
        found = rows.history(connection, number, self._walk, entity_id, after, limit)
        self._walk.check(connection, found)
        return found

    async def _rows(self, query: Callable[[apsw.Connection, int, *_Ts], _T], *args: *_Ts) -> _T:
        def call() -> _T:
            return query(self._store.connection, self._known(), *args)

        return await self._store.run(call)

    def _known(self) -> int:
        """The number that stands for the scope in the rows; while it was never served 0, which no row has."""
        if not self._number:
            self._number = self._find()
        return self._number

    def _find(self) -> int:
        scope = self._scope
        sql = "SELECT id FROM scopes WHERE tenant = ? AND workspace = ? AND agent = ?"
        row = self._store.connection.execute(sql, (scope.tenant, scope.workspace, scope.agent)).fetchone()
        return row[0] if row else 0

    def _take_lease(self, server_id: str) -> Lease | None:
        term = self._store.term
        scope = self._scope
        with self._store.writing() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO scopes(tenant, workspace, agent) VALUES (?, ?, ?)",
                (scope.tenant, scope.workspace, scope.agent),
            )
            number = self._find()
            lease = term.take(connection, number, server_id)
            expires_ns = term.renew_with(connection, number)
        self._number = number
        term.extend(expires_ns)
        if lease is None:
            term.forget(number)
        else:
            term.remember(number, lease.epoch, scope)
        return lease

    def _read(self, keys: Sequence[tuple[str, bytes]], entities: Sequence[str], resources: Sequence[str]) -> Reading:
        with transaction(self._store.connection, "DEFERRED"):
            return rows.read(self._store.connection, self._known(), keys, entities, resources)

    def _commit(self, commit: Commit, at: Probe) -> None:
        term = self._store.term
        number = self._known()
        try:
            with self._store.writing() as connection:
                rows.check_epoch(connection, number, term.holder, commit.epoch)
                rows.write(connection, number, commit)
                if commit.clean:
                    rows.end_cleanly(connection, number)
                at(IN_STORE)
        except Fenced:
            term.forget(number, commit.epoch)
            raise
        if commit.clean:
            term.forget(number, commit.epoch)
