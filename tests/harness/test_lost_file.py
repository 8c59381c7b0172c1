"""A store's file that is gone: what was committed by then is put back, and nothing that was written since."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from chaos.faults.lost_file import Loss, LostFile

LOSSES = pytest.mark.parametrize("how", ["unlink", "replace"])


@contextlib.contextmanager
def opened(path: Path) -> Iterator[apsw.Connection]:
    """A connection that leaves the write-ahead log as a killed process does."""
    connection = apsw.Connection(os.fspath(path))
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    connection.pragma("journal_mode", "wal")
    yield connection
    connection.close()


def rows(path: Path) -> list[int]:
    with opened(path) as connection:
        return [row[0] for row in connection.execute("SELECT x FROM t ORDER BY x")]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A database with a row in its file and another in its write-ahead log."""
    path = tmp_path / "store.db"
    with opened(path) as connection:
        connection.execute("CREATE TABLE t(x); INSERT INTO t VALUES (1)")
        connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        connection.execute("INSERT INTO t VALUES (2)")
    assert (tmp_path / "store.db-wal").stat().st_size
    return path


@LOSSES
def test_what_was_there_is_put_back(store: Path, tmp_path: Path, how: Loss) -> None:
    file = LostFile(store, tmp_path / "kept")
    with opened(store) as connection:
        connection.execute("SELECT * FROM t").fetchall()
        file.lose(how)
        assert store.exists() is (how == "replace")
        # Whoever has it open may go on, and nobody else sees it.
        connection.execute("INSERT INTO t VALUES (3)")
    file.put_back()
    assert rows(store) == [1, 2]
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".db-shm") == ["store.db", "store.db-wal"]
    assert store.stat().st_mode & 0o777 == 0o600


def test_nothing_is_left_of_what_took_its_place(store: Path, tmp_path: Path) -> None:
    """A log of another file, beside this one, would be taken for its own."""
    with contextlib.closing(apsw.Connection(os.fspath(store))) as connection:
        connection.execute("SELECT * FROM t").fetchall()
    assert not (tmp_path / "store.db-wal").exists()
    file = LostFile(store, tmp_path / "kept")
    file.lose("replace")
    with opened(store) as connection:
        connection.execute("CREATE TABLE t(x); INSERT INTO t VALUES (7)")
    assert (tmp_path / "store.db-wal").stat().st_size
    file.put_back()
    assert not (tmp_path / "store.db-wal").exists()
    assert rows(store) == [1, 2]


@LOSSES
def test_it_is_lost_until_it_is_back(store: Path, tmp_path: Path, how: Loss) -> None:
    file = LostFile(store, tmp_path / "kept")
    told = [file.lost]
    file.lose(how)
    told.append(file.lost)
    file.put_back()
    assert [*told, file.lost] == [False, True, False]


def test_another_file_has_taken_the_name(store: Path, tmp_path: Path) -> None:
    before = store.stat().st_ino
    LostFile(store, tmp_path / "kept").lose("replace")
    assert store.stat().st_size == 0
    assert store.stat().st_ino != before


@LOSSES
def test_it_can_be_lost_again_when_it_is_back(store: Path, tmp_path: Path, how: Loss) -> None:
    file = LostFile(store, tmp_path / "kept")
    file.lose(how)
    with pytest.raises(FileExistsError):
        file.lose(how)
    file.put_back()
    file.lose(how)
    file.put_back()
    assert rows(store) == [1, 2]


def test_there_must_be_one_to_lose(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        LostFile(tmp_path / "store.db", tmp_path / "kept").lose("unlink")
