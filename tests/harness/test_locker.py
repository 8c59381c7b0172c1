"""Another program that holds the write lock: nobody writes meanwhile, everybody reads, and nothing is changed by it."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import apsw
import pytest
import trio

from chaos.faults import locker as module
from chaos.faults.locker import LockError, locked


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "store.db"
    with closing(apsw.Connection(os.fspath(path))) as connection:
        connection.pragma("journal_mode", "wal")
        connection.execute("CREATE TABLE t(x); INSERT INTO t VALUES (1)")
    return path


def lockers() -> int:
    """How many such programs the threads of this process have started."""
    mine = [pid for task in Path("/proc/self/task").glob("*/children") for pid in task.read_text().split()]
    return sum(b"chaos.faults.locker" in Path(f"/proc/{pid}/cmdline").read_bytes() for pid in mine)


async def test_nobody_writes_while_it_is_held(store: Path) -> None:
    with closing(apsw.Connection(os.fspath(store))) as connection:
        connection.execute("INSERT INTO t VALUES (2)")
        log = store.with_name("store.db-wal").read_bytes()
        async with locked(store):
            assert lockers() == 1
            with pytest.raises(apsw.BusyError):
                connection.execute("INSERT INTO t VALUES (3)")
            assert connection.execute("SELECT count(*) FROM t").fetchall() == [(2,)]
        assert lockers() == 0
        assert store.with_name("store.db-wal").read_bytes() == log
        connection.execute("INSERT INTO t VALUES (3)")


async def test_it_leaves_the_log_of_a_dead_process_as_it_is(store: Path) -> None:
    """What recovery would do to it is for the next worker, and for whoever judges the corpse."""
    with closing(apsw.Connection(os.fspath(store))) as connection:
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        connection.execute("INSERT INTO t VALUES (2)")
    log = store.with_name("store.db-wal").read_bytes()
    assert log
    async with locked(store):
        assert lockers() == 1
    assert store.with_name("store.db-wal").read_bytes() == log


async def test_it_ends_with_the_block_however_that_ends(store: Path) -> None:
    with pytest.raises(KeyError):
        async with locked(store):
            raise KeyError("k")
    assert lockers() == 0
    with trio.move_on_after(0.01) as waited:
        async with locked(store):
            await trio.sleep_forever()
    assert waited.cancelled_caught
    assert lockers() == 0


async def test_it_waits_for_a_transaction_to_end(store: Path) -> None:
    with closing(apsw.Connection(os.fspath(store))) as connection:
        connection.execute("BEGIN IMMEDIATE")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_commit_when_it_waits, connection)
            async with locked(store):
                assert not connection.in_transaction


async def _commit_when_it_waits(connection: apsw.Connection) -> None:
    while not lockers():
        await trio.sleep(0.01)
    connection.execute("COMMIT")


@pytest.mark.parametrize("name", ["missing.db", "nowhere/store.db"])
async def test_a_store_that_is_not_there_is_not_made(tmp_path: Path, name: str) -> None:
    with pytest.raises(LockError, match="see stderr"):
        async with locked(tmp_path / name):
            pytest.fail("there is nothing to lock")
    assert not (tmp_path / name).exists()
    assert lockers() == 0


async def test_one_that_is_locked_all_the_time_is_given_up(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched, closing(apsw.Connection(os.fspath(store))) as connection:
        patched.setattr(module, "_START_S", 0.2)
        connection.execute("BEGIN IMMEDIATE")
        with pytest.raises(LockError, match="nobody could lock"):
            async with locked(store):
                pytest.fail("it is locked by somebody else")
        connection.execute("ROLLBACK")
    assert lockers() == 0
