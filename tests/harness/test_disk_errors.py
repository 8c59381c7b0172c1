"""The failing disk: nothing until it is told to fail, SQLITE_IOERR of one kind from then on, and no other file's."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from chaos.faults.disk_errors import FILES, OPERATIONS, FailingDisk, Operation, StoreFile
from meshforge_trio.store.schema import extended_code

CODES = {
    "read": apsw.SQLITE_IOERR_READ,
    "write": apsw.SQLITE_IOERR_WRITE,
    "sync": apsw.SQLITE_IOERR_FSYNC,
}
# What each step of a database in WAL mode asks of which file, with an empty page cache.
STEPS: dict[str, set[tuple[Operation, StoreFile]]] = {
    "commit": {("read", "db"), ("read", "wal"), ("write", "wal"), ("sync", "wal")},
    "read": {("read", "db"), ("read", "wal")},
    "checkpoint": {("read", "wal"), ("write", "db"), ("sync", "wal"), ("sync", "db")},
}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[FailingDisk]:
    made = FailingDisk(tmp_path / "store.db")
    yield made
    made.unregister()


@contextlib.contextmanager
def database(path: Path) -> Iterator[apsw.Connection]:
    """A database with pages in its file and others in its write-ahead log."""
    connection = apsw.Connection(os.fspath(path))
    connection.pragma("journal_mode", "wal")
    connection.pragma("synchronous", "FULL")
    connection.execute("CREATE TABLE t(x); INSERT INTO t VALUES (zeroblob(100000))")
    connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
    connection.execute("INSERT INTO t VALUES (1)")
    yield connection
    connection.close()


def step(connection: apsw.Connection, name: str) -> int:
    """Do a step; the code of the error that ends it, or 0."""
    try:
        if name == "commit":
            connection.execute("INSERT INTO t VALUES (2)")
        elif name == "read":
            connection.release_memory()
            connection.execute("SELECT sum(length(x)) FROM t").fetchall()
        else:
            connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_FULL)
    except apsw.IOError as error:
        return extended_code(error)
    return apsw.SQLITE_OK


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("what", OPERATIONS)
@pytest.mark.parametrize("name", STEPS)
def test_a_step_fails_with_what_it_needs(
    tmp_path: Path, disk: FailingDisk, name: str, what: Operation, file: StoreFile
) -> None:
    asked = [kind for operation, kind in STEPS[name] if operation == what and file in (kind, "any")]
    with database(tmp_path / "store.db") as connection:
        assert (step(connection, name), disk.failures) == (apsw.SQLITE_OK, 0)
        connection.execute("INSERT INTO t VALUES (1)")
        disk.fail(what, file)
        assert step(connection, name) == (CODES[what] if asked else apsw.SQLITE_OK)
        assert (disk.failures > 0) == bool(asked)
        # It stays so: nothing heals by itself.
        assert step(connection, name) == (CODES[what] if asked else apsw.SQLITE_OK)
        disk.heal()
        assert step(connection, name) == apsw.SQLITE_OK
        assert connection.pragma("integrity_check") == "ok"


def test_what_is_cached_is_forgotten_when_reads_fail(tmp_path: Path, disk: FailingDisk) -> None:
    with database(tmp_path / "store.db") as connection:
        read = "SELECT sum(length(x)) FROM t"
        connection.execute(read).fetchall()
        disk.fail("read")
        with pytest.raises(apsw.IOError):
            connection.execute(read).fetchall()
        disk.heal()


def test_other_files_are_well(tmp_path: Path, disk: FailingDisk) -> None:
    for what in OPERATIONS:
        disk.fail(what)
    with database(tmp_path / "other.db") as connection:
        assert [step(connection, name) for name in STEPS] == [apsw.SQLITE_OK] * 3
    assert disk.failures == 0


def test_what_no_disk_does_is_refused(disk: FailingDisk) -> None:
    with pytest.raises(ValueError, match="forget of any: a disk fails to read, write, sync of db, wal, any"):
        disk.fail("forget")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="read of tape"):
        disk.fail("read", "tape")  # type: ignore[arg-type]
