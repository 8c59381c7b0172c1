"""What the store's file tells of its scopes, read beside whoever writes it.

Everything here blocks: call it in a thread. The connection is read-only, but for one write transaction that is rolled
back where somebody asks whether the store can be written.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import apsw
import attrs
import orjson

from meshforge_trio.errors import MeshForgeError, Misconfigured
from meshforge_trio.health.report import ScopeHealth, StoreHealth
from meshforge_trio.store.lease import boot_id, boottime_ns
from meshforge_trio.store.schema import MIGRATIONS, SCOPE_SHIFT, transaction, translated
from meshforge_trio.subjects import Scope

__all__ = ["StoreFigures", "read_figures"]

_BUSY_TIMEOUT_MS: Final = 2_000
_N_MAX: Final = (1 << SCOPE_SHIFT) - 1


@attrs.frozen
class StoreFigures:
    """The store and its scopes, as the file tells."""

    store: StoreHealth
    scopes: dict[Scope, ScopeHealth]


def read_figures(path: Path, now: float, *, probe: bool) -> StoreFigures:
    """Read the figures of a store at wall-clock second `now`.

    With `probe` a write transaction is begun and rolled back, which tells whether another program holds the lock, or
    whether the file may not be written. What stops the reading is told in `store.problem`, never raised.
    """
    scopes: dict[Scope, ScopeHealth] = {}
    problem = ""
    try:
        with _opened(path) as connection:
            scopes = {scope: _of_scope(connection, path, number, scope, now) for scope, number in _scopes(connection)}
        if probe:
            _try_to_write(path)
    except MeshForgeError as error:
        problem = str(error)
    try:
        return StoreFigures(_of_files(path, problem), scopes)
    except OSError as error:
        return StoreFigures(StoreHealth(str(path), problem or f"{path}: {error.strerror}"), scopes)


@contextmanager
def _opened(path: Path, flags: int = apsw.SQLITE_OPEN_READONLY) -> Iterator[apsw.Connection]:
    try:
        there = path.is_file()
    except OSError as error:
        raise Misconfigured(f"{path} cannot be looked at: {error.strerror}") from error
    if not there:
        raise Misconfigured(f"there is no store {path}; `meshforge run` makes it")
    try:
        connection = apsw.Connection(str(path), flags=flags)
        try:
            connection.set_busy_timeout(_BUSY_TIMEOUT_MS)
            # Leaves the write-ahead log to those who serve, also as the last one to close the file.
            connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            version = connection.pragma("user_version")
            if version != len(MIGRATIONS):
                raise Misconfigured(f"{path} has schema version {version}, this program reads {len(MIGRATIONS)}")
            yield connection
        finally:
            connection.close()
    except apsw.Error as error:
        raise translated(error, path) from error


def _try_to_write(path: Path) -> None:
    with (
        _opened(path, apsw.SQLITE_OPEN_READWRITE) as connection,
        suppress(_RolledBack),
        transaction(connection, "IMMEDIATE"),
    ):
        connection.execute("UPDATE leases SET epoch = epoch")
        raise _RolledBack


class _RolledBack(Exception):
    """Ends the probe's transaction."""


def _scopes(connection: apsw.Connection) -> Sequence[tuple[Scope, int]]:
    found = connection.execute("SELECT tenant, workspace, agent, id FROM scopes ORDER BY 1, 2, 3")
    return [(Scope(tenant, workspace, agent), number) for tenant, workspace, agent, number in found]


def _of_scope(connection: apsw.Connection, path: Path, number: int, scope: Scope, now: float) -> ScopeHealth:
    with transaction(connection, "DEFERRED"):
        epoch, holder, alive = _holder(connection, path, number)
        outbox, outbox_age_s = _outbox(connection, number, now)
        sql = "SELECT count(*), min(next_at) FROM attempts WHERE scope = ?"
        ((parked, next_at),) = connection.execute(sql, (number,))
        sql = "SELECT count(*) FROM dead_letters WHERE scope = ? AND state = 0"
        ((dead,),) = connection.execute(sql, (number,))
    return ScopeHealth(
        scope=str(scope),
        holder=holder,
        holder_alive=alive,
        epoch=epoch,
        outbox=outbox,
        outbox_age_s=outbox_age_s,
        parked=parked,
        parked_next_s=None if next_at is None else max(0.0, next_at - now),
        dead=dead,
    )


def _holder(connection: apsw.Connection, path: Path, number: int) -> tuple[int, str | None, bool]:
    """Epoch of the newest term, who has it, and whether that process lives and its term runs."""
    sql = (
        "SELECT l.epoch, l.holder, h.boot_id, h.expires_ns FROM leases l"
        " LEFT JOIN holders h ON h.holder = l.holder WHERE l.scope = ?"
    )
    row = connection.execute(sql, (number,)).fetchone()
    if row is None:
        return 0, None, False
    epoch, holder, boot, expires_ns = row
    alive = boot == boot_id() and boottime_ns() < (expires_ns or 0)
    return epoch, holder, alive and not _dead(Path(f"{path}-holders") / f"{holder}.lock")


def _dead(lock_file: Path) -> bool:
    """Whether nobody holds the lock of a holder: the kernel drops it when a process dies."""
    try:
        fd = os.open(lock_file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False  # another user's, or gone; its term decides
    try:
        # Shared and for a moment, so that whoever probes at the same time is not told that we are the holder.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def _outbox(connection: apsw.Connection, number: int, now: float) -> tuple[int, float | None]:
    """How many outputs lie above the newest mark, and the most that the oldest can be old in seconds.

    Rows carry no time. The oldest was committed after its command was sent, and after the mark below it was made.
    """
    base = number << SCOPE_SHIFT
    span = (base, base + _N_MAX)
    ((newest,),) = connection.execute("SELECT max(id) FROM outputs WHERE id BETWEEN ? AND ?", span)
    sql = "SELECT n, at FROM marks WHERE id BETWEEN ? AND ? ORDER BY id DESC LIMIT 1"
    marked, at = connection.execute(sql, span).fetchone() or (0, 0.0)
    count = 0 if newest is None else newest - base - marked
    if count <= 0:
        return 0, None
    sql = "SELECT body FROM outputs WHERE id > ? AND id <= ? ORDER BY id LIMIT 1"
    ((body,),) = connection.execute(sql, (base + marked, base + _N_MAX))
    since = at
    with suppress(orjson.JSONDecodeError):  # a dead letter that was never JSON
        told = orjson.loads(body)
        if isinstance(told, dict) and isinstance(told.get("ts"), float | int):
            since = max(since, told["ts"])
    return count, max(0.0, now - since)


def _of_files(path: Path, problem: str) -> StoreHealth:
    place = path.absolute()
    while not place.exists():
        place = place.parent
    usage = shutil.disk_usage(place)
    return StoreHealth(
        path=str(path),
        problem=problem,
        size=_size(path),
        log_size=_size(Path(f"{path}-wal")),
        disk_free=usage.free,
        disk_size=usage.total,
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
