"""The SQLite file: how it is created, opened, checked and brought to the current schema."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Literal

import apsw

from meshforge_trio.errors import MeshForgeError, Misconfigured, StoreBroken, StoreFull, Transient
from meshforge_trio.store.port import DeadState, Kind, Outcome

__all__ = [
    "APPLICATION_ID",
    "CODE_OF_KIND",
    "CODE_OF_OUTCOME",
    "CODE_OF_STATE",
    "KIND_OF_CODE",
    "MIGRATIONS",
    "OUTCOME_OF_CODE",
    "SCOPE_SHIFT",
    "STATE_OF_CODE",
    "Synchronous",
    "connect",
    "extended_code",
    "make_directories",
    "transaction",
    "translated",
]

Synchronous = Literal["EXTRA", "FULL", "NORMAL", "OFF"]

#: An output's row number is `scope << SCOPE_SHIFT | n`, so every scope appends in a range of its own.
SCOPE_SHIFT: Final = 40

CODE_OF_KIND: Final[dict[Kind, int]] = {"event": 0, "record": 1, "command": 2, "dead": 3}
KIND_OF_CODE: Final[tuple[Kind, ...]] = tuple(CODE_OF_KIND)
CODE_OF_OUTCOME: Final[dict[Outcome, int]] = {
    "decided": 0,
    "conflict": 1,
    "refused": 2,
    "violation": 3,
    "dead": 4,
}
OUTCOME_OF_CODE: Final[tuple[Outcome, ...]] = tuple(CODE_OF_OUTCOME)
CODE_OF_STATE: Final[dict[DeadState, int]] = {"waiting": 0, "redriven": 1, "discarded": 2}
STATE_OF_CODE: Final[tuple[DeadState, ...]] = tuple(CODE_OF_STATE)

#: "MFT1" in ASCII: tells this file from other programs' databases, and `file` what it is.
APPLICATION_ID: Final = 0x4D465431
# Two writers on an older SQLite can corrupt a WAL database: https://sqlite.org/wal.html#walresetbug
_SQLITE_MINIMUM: Final = (3, 51, 3)
_BUSY_TIMEOUT_S: Final = 5.0
_PAGE_BYTES: Final = 8_192
_CACHE_KIB: Final = 8_192
_JOURNAL_BYTES_MAX: Final = 64 << 20
# A quick check reads the whole file: about 1 ms per MB from the page cache, far more from a cold disk.
_QUICK_CHECK_BYTES_MAX: Final = 64 << 20
_LAST_ROWS_CHECKED: Final = 1_000

_VERSION_1: Final = """
CREATE TABLE scopes(
    id INTEGER PRIMARY KEY, tenant TEXT NOT NULL, workspace TEXT NOT NULL, agent TEXT NOT NULL,
    UNIQUE(tenant, workspace, agent)
) STRICT;
-- One row per process: its term ends at expires_ns on the boot-time clock of boot_id.
CREATE TABLE holders(
    holder TEXT PRIMARY KEY, boot_id TEXT NOT NULL, expires_ns INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
-- holder is NULL when nobody serves the scope; clean is 1 when the last term ended with nothing in hand.
CREATE TABLE leases(
    scope INTEGER PRIMARY KEY, epoch INTEGER NOT NULL, holder TEXT, clean INTEGER NOT NULL,
    server_id TEXT NOT NULL
) STRICT;
-- Event store and outbox in one. id = scope << 40 | n; kind: 0 event, 1 record, 2 command, 3 dead.
-- prev is the n of the entity's event before (0: none; NULL where version is). The body is last: whoever follows the
-- links need not read past it.
CREATE TABLE outputs(
    id INTEGER PRIMARY KEY, kind INTEGER NOT NULL, entity_id TEXT, version INTEGER, prev INTEGER, chain BLOB,
    key TEXT NOT NULL, event_id TEXT NOT NULL, name TEXT NOT NULL, subject TEXT NOT NULL, msg_id TEXT NOT NULL,
    body BLOB NOT NULL
) STRICT;
-- outcome: 0 decided, 1 conflict, 2 refused, 3 violation, 4 dead.
CREATE TABLE keys(
    scope INTEGER, key TEXT, payload_hash BLOB NOT NULL, outcome INTEGER NOT NULL,
    first_n INTEGER NOT NULL, last_n INTEGER NOT NULL, generation INTEGER NOT NULL,
    PRIMARY KEY(scope, key)
) STRICT, WITHOUT ROWID;
CREATE TABLE mismatches(
    scope INTEGER, key TEXT, payload_hash BLOB, first_n INTEGER NOT NULL, last_n INTEGER NOT NULL,
    PRIMARY KEY(scope, key, payload_hash)
) STRICT, WITHOUT ROWID;
-- last_n is the n of the entity's newest event.
CREATE TABLE heads(
    scope INTEGER, entity_id TEXT, version INTEGER NOT NULL, chain BLOB NOT NULL, last_n INTEGER NOT NULL,
    PRIMARY KEY(scope, entity_id)
) STRICT, WITHOUT ROWID;
CREATE TABLE snapshots(
    scope INTEGER, entity_id TEXT, version INTEGER NOT NULL, schema INTEGER NOT NULL, state BLOB NOT NULL,
    PRIMARY KEY(scope, entity_id)
) STRICT, WITHOUT ROWID;
CREATE TABLE attempts(
    scope INTEGER, key TEXT, entity_id TEXT, attempts INTEGER NOT NULL, next_at REAL NOT NULL,
    first_at REAL NOT NULL, last_at REAL NOT NULL, error TEXT NOT NULL,
    PRIMARY KEY(scope, key)
) STRICT, WITHOUT ROWID;
CREATE TABLE dead_letters(
    scope INTEGER, key TEXT, generation INTEGER, n INTEGER NOT NULL, subject TEXT NOT NULL,
    headers BLOB NOT NULL, body BLOB NOT NULL, code TEXT NOT NULL, reason TEXT NOT NULL,
    attempts INTEGER NOT NULL, first_at REAL NOT NULL, last_at REAL NOT NULL,
    PRIMARY KEY(scope, key, generation)
) STRICT, WITHOUT ROWID;
CREATE TABLE generations(
    scope INTEGER, key TEXT, generation INTEGER NOT NULL, PRIMARY KEY(scope, key)
) STRICT, WITHOUT ROWID;
-- id = scope << 40 | number of the mark, rising by one.
CREATE TABLE marks(
    id INTEGER PRIMARY KEY, n INTEGER NOT NULL, event_seq INTEGER NOT NULL, event_id TEXT NOT NULL,
    failed_seq INTEGER NOT NULL, failed_id TEXT NOT NULL, at REAL NOT NULL
) STRICT;
-- state_hash of all entities after output n, recorded when a term ended cleanly.
CREATE TABLE state_hashes(
    scope INTEGER PRIMARY KEY, n INTEGER NOT NULL, state_hash TEXT NOT NULL
) STRICT;
-- For people with a SQL shell.
CREATE VIEW events AS
    SELECT s.tenant, s.workspace, s.agent, o.entity_id, o.version, o.name, o.event_id,
           CAST(o.body AS TEXT) AS body
    FROM outputs o JOIN scopes s ON s.id = o.id >> 40
    WHERE o.kind = 0;
"""

# calls: the newest calls of the handler as [[second, error], ...]. state: 0 waiting, 1 redriven, 2 discarded.
_VERSION_2: Final = """
ALTER TABLE attempts ADD COLUMN calls TEXT NOT NULL DEFAULT '[]';
ALTER TABLE dead_letters ADD COLUMN entity_id TEXT;
ALTER TABLE dead_letters ADD COLUMN trace_id TEXT NOT NULL DEFAULT '';
ALTER TABLE dead_letters ADD COLUMN calls TEXT NOT NULL DEFAULT '[]';
ALTER TABLE dead_letters ADD COLUMN state INTEGER NOT NULL DEFAULT 0;
CREATE UNIQUE INDEX dead_letters_by_n ON dead_letters(scope, n);
"""

# The newest fencing token under which a scope was sent a command, by resource.
_VERSION_3: Final = """
CREATE TABLE fences(
    scope INTEGER, resource_id TEXT, token INTEGER NOT NULL, PRIMARY KEY(scope, resource_id)
) STRICT, WITHOUT ROWID;
"""

#: Migration i brings a file from `user_version` i to i + 1; published ones never change.
MIGRATIONS: Final[tuple[str, ...]] = (_VERSION_1, _VERSION_2, _VERSION_3)

# Serialises the creation of files within this process; see `_create`.
_creating = threading.Lock()


def connect(path: Path, *, synchronous: Synchronous, vfs: str | None) -> apsw.Connection:
    """Open the database at `path`, creating, checking and migrating it as needed. Blocks.

    The check is SQLite's `quick_check` of the whole file up to 64 MB; of a larger one it is `quick_check` of the
    small tables and a reading of the newest 1,000 outputs, so that start-up stays short.

    Raises:
        Misconfigured: SQLite is too old, or the file is another program's or newer than this one.
        StoreBroken: the file is damaged.
        apsw.Error, OSError: for `translated`.
    """
    found = tuple(int(part) for part in apsw.sqlite_lib_version().split("."))
    if found < _SQLITE_MINIMUM:
        raise Misconfigured(
            f"SQLite {apsw.sqlite_lib_version()} can corrupt a database with several writers; "
            "3.51.3 or newer is needed: run `pip install --upgrade apsw`"
        )
    _create(path)
    connection = apsw.Connection(os.fspath(path), vfs=vfs)
    try:
        _set_up(connection, path, synchronous)
    except BaseException:
        connection.close()
        raise
    return connection


def make_directories(path: Path) -> None:
    """Create the directories that are missing for a file at `path`, each for its owner alone (0700)."""
    missing = []
    for directory in path.absolute().parents:
        if directory.exists():
            break
        missing.append(directory)
    for directory in reversed(missing):
        directory.mkdir(mode=0o700, exist_ok=True)
        # Or a power loss takes the new directory, with a store in it that had promised something.
        _sync_directory(directory.parent)


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _create(path: Path) -> None:
    """Create missing directories (0700) and the file (0600), leaving existing ones as they are.

    SQLite gives the -wal and -shm files the mode of the database, so it has to be right before they exist.
    """
    make_directories(path)
    # Closing any descriptor of a file drops all POSIX locks this process has on it, so this one must be closed
    # before another thread can have opened a connection to the new file.
    with _creating, contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))


def _set_up(connection: apsw.Connection, path: Path, synchronous: Synchronous) -> None:
    connection.set_busy_handler(_patience())
    _refuse_foreign(connection, path)
    connection.pragma("page_size", _PAGE_BYTES)
    _enter_wal(connection)
    connection.pragma("synchronous", synchronous)
    connection.pragma("cache_size", -_CACHE_KIB)
    connection.pragma("temp_store", "MEMORY")
    connection.pragma("journal_size_limit", _JOURNAL_BYTES_MAX)
    if sys.platform == "darwin":  # fsync of macOS leaves the data in the drive's cache
        connection.pragma("fullfsync", 1)
        connection.pragma("checkpoint_fullfsync", 1)
    _migrate(connection, path)
    _check(connection, path)


def _patience() -> Callable[[int], bool]:
    """A busy handler that looks again every millisecond.

    SQLite's own backs off to 100 ms, and of four busy processes one then starves for a second.
    """
    since = 0.0

    def wait(tries: int) -> bool:
        nonlocal since
        if tries == 0:
            since = time.monotonic()
        if time.monotonic() - since >= _BUSY_TIMEOUT_S:
            return False
        time.sleep(0.001)
        return True

    return wait


def _refuse_foreign(connection: apsw.Connection, path: Path) -> None:
    # In one transaction, or a process that is creating the file right now would come in between.
    with transaction(connection, "DEFERRED"):
        application = connection.pragma("application_id")
        ((objects,),) = connection.execute("SELECT count(*) FROM sqlite_schema")
    if application != APPLICATION_ID and (application or objects):
        raise Misconfigured(f"{path} is another program's database: give the store a path of its own")


def _enter_wal(connection: apsw.Connection) -> None:
    """Switch to WAL. Two processes that create a file at once get BUSY here without a wait."""
    deadline = time.monotonic() + _BUSY_TIMEOUT_S
    while True:
        try:
            mode = connection.pragma("journal_mode", "WAL")
        except apsw.BusyError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
            continue
        if mode != "wal":
            raise Misconfigured(f"the file system does not support SQLite's WAL mode (journal_mode is {mode})")
        return


def _migrate(connection: apsw.Connection, path: Path) -> None:
    while (version := connection.pragma("user_version")) != len(MIGRATIONS):
        if version > len(MIGRATIONS):
            raise Misconfigured(
                f"{path} has schema version {version}, this program knows up to {len(MIGRATIONS)}: "
                "run `pip install --upgrade meshforge-trio`, or restore the copy made before the upgrade"
            )
        with transaction(connection, "IMMEDIATE"):
            # Another process may have done it while this one waited for the write lock.
            if connection.pragma("user_version") == version:
                connection.execute(MIGRATIONS[version])
                connection.pragma("application_id", APPLICATION_ID)
                connection.pragma("user_version", version + 1)


def _check(connection: apsw.Connection, path: Path) -> None:
    size = sum(p.stat().st_size for p in (path, Path(f"{path}-wal")) if p.exists())
    if size <= _QUICK_CHECK_BYTES_MAX:
        findings = [finding for (finding,) in connection.execute("PRAGMA quick_check(1)")]
    else:
        findings = []
        for table in ("scopes", "holders", "leases", "attempts", "generations"):
            findings += [finding for (finding,) in connection.execute(f"PRAGMA quick_check({table})")]
        newest = "SELECT length(body), length(chain) FROM outputs ORDER BY id DESC LIMIT ?"
        connection.execute(newest, (_LAST_ROWS_CHECKED,)).fetchall()
    for finding in findings:
        if finding != "ok":
            raise StoreBroken(_damaged(path, finding))


@contextlib.contextmanager
def transaction(connection: apsw.Connection, mode: Literal["DEFERRED", "IMMEDIATE"]) -> Iterator[None]:
    """BEGIN ... COMMIT, with ROLLBACK on any exception."""
    connection.execute(f"BEGIN {mode}")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # A full disk and INSERT OR ROLLBACK have rolled back already.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def translated(error: apsw.Error | OSError, path: Path) -> MeshForgeError:
    """The error of ours that says what the caller must do about SQLite's, or about a file's at opening."""
    if isinstance(error, OSError):
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return StoreFull(f"no space to create {path}")
        return Misconfigured(f"cannot create or open the store {path}: {error.strerror}")
    if isinstance(error, apsw.CantOpenError | apsw.PermissionsError):
        return Misconfigured(f"cannot open the store {path}: {error}")
    if isinstance(error, apsw.FullError):
        return StoreFull(f"no space for {path}: {error}")
    if isinstance(error, apsw.BusyError | apsw.LockedError):
        return Transient(f"{path} is locked by another process: {error}")
    if isinstance(error, apsw.NotADBError):
        return StoreBroken(_damaged(path, str(error)))
    if isinstance(error, apsw.IOError) and extended_code(error) == apsw.SQLITE_IOERR_SHMSIZE:
        return StoreFull(f"no space for the index of the write-ahead log of {path}")
    if isinstance(error, apsw.CorruptError):
        return StoreBroken(_damaged(path, str(error)))
    return StoreBroken(f"{path}: {type(error).__name__}: {error}")


def extended_code(error: apsw.Error) -> int:
    """SQLite's extended result code; apsw's type stubs do not know the attribute."""
    return getattr(error, "extendedresult", 0)


def _damaged(path: Path, finding: str) -> str:
    return (
        f"{path} is damaged or not a database: {finding}. Stop every process; `meshforge verify` lists what is "
        "damaged; `meshforge restore BACKUP` puts a backup in its place and keeps this file, from which "
        "`sqlite3 FILE .recover` may save the rest"
    )
