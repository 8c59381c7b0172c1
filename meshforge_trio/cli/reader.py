"""The store's file, read beside whoever writes it: no lease, no term, no row of ours, one snapshot."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Concatenate, Final, ParamSpec, TypeVar

import apsw
import attrs

from meshforge_trio.config import Settings
from meshforge_trio.errors import Misconfigured
from meshforge_trio.sites import stores
from meshforge_trio.store import rows
from meshforge_trio.store.lease import boot_id, boottime_ns
from meshforge_trio.store.links import Walk
from meshforge_trio.store.port import Attempt, DeadLetter, Head, Mark, Output, Reading
from meshforge_trio.store.schema import MIGRATIONS, SCOPE_SHIFT, translated
from meshforge_trio.subjects import Scope

__all__ = ["SealedRows", "StoreFile", "StoreFiles", "read_store", "read_stores"]

_T = TypeVar("_T")
_P = ParamSpec("_P")

_BUSY_TIMEOUT_MS: Final = 5_000
_PAGE: Final = 500


@attrs.frozen
class SealedRows:
    """How much of a scope only its tenant's keys can read."""

    outputs: int
    entities: int
    snapshots: int
    dead: int


class StoreFile:
    """Made by `read_store`."""

    def __init__(self, path: Path, connection: apsw.Connection) -> None:
        self.path = path
        self._connection = connection
        found = connection.execute("SELECT tenant, workspace, agent, id FROM scopes ORDER BY 1, 2, 3")
        self._numbers = {Scope(*row[:3]): row[3] for row in found}

    @property
    def scopes(self) -> Sequence[Scope]:
        """Every scope that has ever been served, sorted."""
        return list(self._numbers)

    def rows(self, scope: Scope) -> ScopeFile:
        """The rows of a scope.

        Raises:
            Misconfigured: it was never served from this store.
        """
        if scope not in self._numbers:
            known = ", ".join(str(each) for each in self._numbers) or "none"
            raise Misconfigured(f"{self.path} has no scope {scope}; it has: {known}")
        return ScopeFile(self.path, self._connection, scope, self._numbers[scope])


class StoreFiles:
    """The stores of all sites as one. Made by `read_stores`."""

    def __init__(self, files: Sequence[tuple[StoreFile, Callable[[str], bool]]]) -> None:
        self._paths = ", ".join(str(file.path) for file, _ in files)
        self._found = {scope: file for file, own in files for scope in file.scopes if own(scope.tenant)}

    def __str__(self) -> str:
        """Their paths."""
        return self._paths

    @property
    def scopes(self) -> Sequence[Scope]:
        """Every scope that has ever been served, sorted."""
        return sorted(self._found)

    def rows(self, scope: Scope) -> ScopeFile:
        """The rows of a scope, from the store of its tenant.

        Raises:
            Misconfigured: it was never served from there.
        """
        if scope not in self._found:
            known = ", ".join(str(each) for each in self.scopes) or "none"
            raise Misconfigured(f"{self} has no scope {scope}; it has: {known}")
        return self._found[scope].rows(scope)


class ScopeFile:
    """The reading part of a `ScopeStore`."""

    def __init__(self, path: Path, connection: apsw.Connection, scope: Scope, number: int) -> None:
        self._path = path
        self._connection = connection
        self._scope = scope
        self._number = number
        self._walk = Walk()

    @property
    def scope(self) -> Scope:
        """Whose rows these are."""
        return self._scope

    async def outputs_after(self, n: int, limit: int) -> Sequence[Output]:
        """Outputs numbered above `n`, in order."""
        return self._call(rows.outputs_after, n, limit)

    async def marks(self) -> Sequence[Mark]:
        """What was published, newest first."""
        return self._call(rows.marks)

    def last_server(self) -> str:
        """Id of the nats-server that the scope was last served from; "" where it never was."""
        row = self._connection.execute("SELECT server_id FROM leases WHERE scope = ?", (self._number,)).fetchone()
        return "" if row is None else str(row[0])

    async def history(self, entity_id: str, after: int, limit: int) -> Sequence[Output]:
        """Events of an entity with a version above `after`, in order."""
        return self._call(rows.history, self._walk, entity_id, after, limit)

    async def heads(self, after: str, limit: int) -> Sequence[Head]:
        """Heads with an entity id above `after`, in order of it; without `tail`."""
        return self._call(rows.heads_after, after, limit)

    def recorded_state_hash(self) -> str | None:
        """What the last engine had in memory when its term ended cleanly; `None` once there are later outputs."""
        base = self._number << SCOPE_SHIFT
        sql = (
            "SELECT state_hash FROM state_hashes WHERE scope = ? AND NOT EXISTS"
            " (SELECT 1 FROM outputs WHERE id > ? + state_hashes.n AND id < ?)"
        )
        row = self._connection.execute(sql, (self._number, base, base + (1 << SCOPE_SHIFT))).fetchone()
        return None if row is None else str(row[0])

    def event_count(self) -> int:
        """Events of all entities, as their heads count them."""
        sql = "SELECT coalesce(sum(version), 0) FROM heads WHERE scope = ?"
        ((count,),) = self._connection.execute(sql, (self._number,))
        return int(count)

    def sealed(self) -> SealedRows:
        """How many of the rows are sealed."""
        base = self._number << SCOPE_SHIFT
        span = (base, base + (1 << SCOPE_SHIFT))
        outputs = (
            "SELECT count(*), count(DISTINCT entity_id) FROM outputs"
            ' WHERE id > ? AND id < ? AND instr(body, CAST(\'"payload":{"$sealed":\' AS BLOB))'
        )
        (found,) = self._connection.execute(outputs, span)
        counts = []
        for table, column in (("snapshots", "state"), ("dead_letters", "body")):
            sql = f"SELECT count(*) FROM {table} WHERE scope = ? AND instr({column}, CAST('{{\"$sealed\":' AS BLOB))"  # noqa: S608
            ((count,),) = self._connection.execute(sql, (self._number,))
            counts.append(count)
        return SealedRows(*found, *counts)

    def read(self, key: str, entity_id: str | None) -> Reading:
        """The record of a key and the head of an entity, so far as there are such."""
        return self._call(rows.read, [(key, b"")], [] if entity_id is None else [entity_id])

    def attempts(self) -> Sequence[Attempt]:
        """Commands whose handler failed or is being called, sorted by key."""
        return self._call(rows.attempts)

    def dead_letters(self) -> Iterator[DeadLetter]:
        """Every dead letter, whatever became of it, in the order in which they died."""
        after = 0
        while page := self._call(rows.dead_letters, after, _PAGE):
            yield from page
            after = page[-1].n

    def is_served(self) -> bool:
        """Whether a process holds the lease and its term runs. One that died just now may still seem to."""
        sql = (
            "SELECT 1 FROM leases l JOIN holders h ON h.holder = l.holder"
            " WHERE l.scope = ? AND h.boot_id = ? AND h.expires_ns > ?"
        )
        found = self._connection.execute(sql, (self._number, boot_id(), boottime_ns()))
        return found.fetchone() is not None

    def _call(
        self, query: Callable[Concatenate[apsw.Connection, int, _P], _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        try:
            return query(self._connection, self._number, *args, **kwargs)
        except apsw.Error as error:
            raise translated(error, self._path) from error


@contextmanager
def read_store(path: Path) -> Iterator[StoreFile]:
    """Open the store read-only. All that is read is of one moment, which holds the write-ahead log back meanwhile.

    Raises:
        Misconfigured: there is no such file, it is no store, or of another version.
        StoreBroken: the file is damaged.
    """
    if not path.is_file():
        raise Misconfigured(
            f"there is no store {path}: `--store` or the key `store` names it, `meshforge run` makes it"
        )
    try:
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    except apsw.Error as error:
        raise translated(error, path) from error
    try:
        connection.set_busy_timeout(_BUSY_TIMEOUT_MS)
        connection.execute("BEGIN")
        yield _opened(path, connection)
    except apsw.Error as error:
        raise translated(error, path) from error
    finally:
        connection.close()


@contextmanager
def read_stores(settings: Settings) -> Iterator[StoreFiles]:
    """Open the store of every site of the settings' workspaces, as `read_store` does."""
    with ExitStack() as stack:
        yield StoreFiles([(stack.enter_context(read_store(path)), own) for path, own in stores(settings)])


def _opened(path: Path, connection: apsw.Connection) -> StoreFile:
    version = connection.pragma("user_version")
    if version != len(MIGRATIONS):
        raise Misconfigured(
            f"{path} is no event store of this version (schema {version}, this program reads {len(MIGRATIONS)}); "
            "`meshforge run` brings an older one up to date"
        )
    return StoreFile(path, connection)
