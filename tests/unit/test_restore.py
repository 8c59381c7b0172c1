"""Putting a backup in a store's place: only where nobody lives, and with the one before kept."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import apsw
import attrs
import pytest
import trio
from kept import ONE, OTHER, copied, decide, dump, keep, names, silent, tampered

from meshforge_trio import backup as module
from meshforge_trio.backup import restore
from meshforge_trio.errors import Misconfigured, StoreBroken
from meshforge_trio.points import no_probe
from meshforge_trio.store import schema
from meshforge_trio.store.lease import HolderLock
from meshforge_trio.store.port import Commit, Output
from meshforge_trio.store.sqlite import SQLiteEventStore
from meshforge_trio.verify import verify_store


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "store.db"
    trio.run(keep, path)
    return path


@pytest.fixture
def path(whole: Path, tmp_path: Path) -> Path:
    """A store of one's own, in a directory of its own."""
    (tmp_path / "lives").mkdir()
    return Path(shutil.copyfile(whole, tmp_path / "lives" / "store.db"))


async def more(store: SQLiteEventStore, count: int = 1) -> None:
    """Commit outputs that belong to nothing."""
    rows = store.scope(ONE)
    lease = await rows.take_lease("NATS1")
    assert lease is not None
    outputs = [
        Output(lease.next_n + i, "record", f"x{i}", f"x{i}", "x", "evt.t.w.counter.x", f"x{i}", b"{}")
        for i in range(count)
    ]
    await rows.commit(Commit(lease.epoch, outputs), no_probe)


def contents(path: Path) -> tuple[bytes, bytes]:
    """A database and its write-ahead log, as they are on the disk."""
    return path.read_bytes(), path.with_name(f"{path.name}-wal").read_bytes()


# -- putting it back ---------------------------------------------------------------------------------------------


async def test_a_restored_store_is_what_the_backup_was_and_the_one_before_is_kept(path: Path, tmp_path: Path) -> None:
    copied(path, tmp_path / "b.db")
    before = dump(path)
    store = await SQLiteEventStore.open(path)
    await more(store, 3)
    # As a killed process leaves it: what was committed last is in the write-ahead log alone.
    store.abandon()
    files = contents(path)
    done = restore(tmp_path / "b.db", path, progress=silent)
    aside = Path(done.aside)
    assert contents(aside) == files
    assert aside.name.startswith("store.db.before-restore-2")
    assert (done.store, done.backup, done.outputs) == (str(path), str(tmp_path / "b.db"), 192)
    assert dump(path) == before
    assert len(dump(aside, "outputs")) == len(dump(path, "outputs")) + 3
    assert not [name for name in names(path.parent) if name.endswith(".part")]
    assert verify_store(path).whole
    again = await SQLiteEventStore.open(path)
    assert await again.scope(ONE).take_lease("NATS1") is not None
    await again.close()


def test_a_store_that_is_gone_is_made(path: Path, tmp_path: Path) -> None:
    copied(path, tmp_path / "b.db")
    done = restore(tmp_path / "b.db", tmp_path / "new" / "deep" / "store.db", progress=silent)
    assert done.aside == ""
    assert dump(tmp_path / "new" / "deep" / "store.db") == dump(path)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


async def test_a_log_without_its_database_is_no_part_of_the_restored_one(path: Path, tmp_path: Path) -> None:
    copied(path, tmp_path / "b.db")
    store = await SQLiteEventStore.open(path)
    await more(store)
    store.abandon()
    remove(path)
    done = restore(tmp_path / "b.db", path, progress=silent)
    assert names(Path(done.aside).parent)[-2:] == [f"{Path(done.aside).name}-shm", f"{Path(done.aside).name}-wal"]
    assert dump(path) == dump(tmp_path / "b.db")


def remove(path: Path) -> None:
    path.unlink()


def test_two_restores_within_a_second_keep_both(path: Path, tmp_path: Path) -> None:
    copied(path, tmp_path / "b.db")
    asides = {restore(tmp_path / "b.db", path, progress=silent).aside for _ in range(3)}
    assert len(asides) == 3
    assert all(Path(aside).exists() for aside in asides)


async def test_it_is_refused_while_somebody_lives_on_the_store(path: Path, tmp_path: Path) -> None:
    copied(path, tmp_path / "b.db")
    store = await SQLiteEventStore.open(path, holder="kim")
    begun: list[str] = []
    with pytest.raises(Misconfigured, match=r"is in use, by kim: stop every process on it first"):
        restore(tmp_path / "b.db", path, progress=lambda what, done, total: begun.append(what))
    assert not begun
    assert store.lease_valid()
    await store.keep_alive()
    await store.close()
    restore(tmp_path / "b.db", path, progress=silent)


def test_somebody_whose_store_was_deleted_lives_on_it_all_the_same(path: Path, tmp_path: Path) -> None:
    copied(path, tmp_path / "b.db")
    Path(f"{path}-holders").mkdir()
    lock = HolderLock(Path(f"{path}-holders"), "lee")
    path.unlink()
    with pytest.raises(Misconfigured, match="in use, by lee"):
        restore(tmp_path / "b.db", path, progress=silent)
    lock.drop()
    restore(tmp_path / "b.db", path, progress=silent)


async def test_who_begins_to_live_there_during_the_check_stops_it(path: Path, tmp_path: Path) -> None:
    copied(path, tmp_path / "b.db")
    opened: list[HolderLock] = []

    def begin(what: str, done: int, total: int) -> None:
        if not opened:
            directory = Path(f"{path}-holders")
            directory.mkdir()
            opened.append(HolderLock(directory, "lee"))

    before = dump(path)
    with pytest.raises(Misconfigured, match="in use, by lee"):
        restore(tmp_path / "b.db", path, progress=begin)
    opened[0].drop()
    assert dump(path) == before
    assert not [name for name in names(path.parent) if "restore" in name or name.endswith(".part")]


async def test_who_has_opened_the_store_before_finds_another_file(path: Path, tmp_path: Path) -> None:
    """It waits for the lock under which the files change places; its first transaction notices."""
    copied(path, tmp_path / "b.db")
    store = await SQLiteEventStore.open(path, holder="kim")
    # No lock file says that it lives: the moment before it has made one.
    assert store.term._lock is not None
    store.term._lock.drop()
    restore(tmp_path / "b.db", path, progress=silent)
    with pytest.raises(StoreBroken, match="was replaced under this process"):
        await store.keep_alive()
    await store.close()
    assert verify_store(path).whole


def test_a_store_that_is_locked_is_left_alone(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BUSY_TIMEOUT_MS", 1)
    copied(path, tmp_path / "b.db")
    other = apsw.Connection(os.fspath(path))
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Misconfigured, match="locked by another program"):
        restore(tmp_path / "b.db", path, progress=silent)
    other.close()


def test_a_damaged_backup_is_refused_and_nothing_is_changed(path: Path, tmp_path: Path) -> None:
    copied(path, tmp_path / "b.db")
    tampered(tmp_path / "b.db", "UPDATE outputs SET body = x'7b7d' WHERE key = 'k100'")
    before = path.read_bytes()
    with pytest.raises(StoreBroken, match=r"b\.db is damaged, and nothing was changed.*`meshforge verify .*b\.db`"):
        restore(tmp_path / "b.db", path, progress=silent)
    with pytest.raises(Misconfigured, match="there is no store"):
        restore(tmp_path / "nothing.db", path, progress=silent)
    with pytest.raises(Misconfigured, match="is the store itself"):
        restore(path, path, progress=silent)
    assert path.read_bytes() == before


@pytest.mark.parametrize("garbage", [b"", b"not a database " * 1000])
def test_a_store_that_is_past_reading_is_moved_aside_as_it_is(path: Path, tmp_path: Path, garbage: bytes) -> None:
    copied(path, tmp_path / "b.db")
    rows = dump(path)
    path.write_bytes(garbage)
    done = restore(tmp_path / "b.db", path, progress=silent)
    assert Path(done.aside).read_bytes() == garbage
    assert dump(path) == rows


def test_a_link_stays_a_link(path: Path, tmp_path: Path) -> None:
    copied(path, tmp_path / "b.db")
    link = tmp_path / "link.db"
    link.symlink_to(path)
    tampered(path, "DELETE FROM marks")
    restore(tmp_path / "b.db", link, progress=silent)
    assert link.is_symlink()
    assert dump(path) == dump(tmp_path / "b.db")


def test_what_a_crash_on_the_way_leaves_is_a_store_or_none(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log goes first: a database beside the log of another would be neither."""
    copied(path, tmp_path / "b.db")
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).write_bytes(b"")
    rename, seen = Path.rename, list[list[str]]()

    def noted(self: Path, target: Path) -> Path:
        seen.append([name for name in names(path.parent) if name.startswith("store.db") and "-restore-" not in name])
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", noted)
    restore(tmp_path / "b.db", path, progress=silent)
    assert [[name for name in there if name != "store.db-holders"] for there in seen] == [
        ["store.db", "store.db-shm", "store.db-wal"],
        ["store.db", "store.db-shm"],
        ["store.db"],
    ]


@pytest.mark.parametrize("nth", [1, 2, 3, 4])
def test_what_cannot_be_moved_stays_and_so_does_the_rest(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    copied(path, tmp_path / "b.db")
    tampered(path, "DELETE FROM marks")
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).write_bytes(b"")
    before, rows = names(path.parent), dump(tmp_path / "b.db")
    moved: list[Path] = []

    def until(work: Callable[[Path, Path], Path]) -> Callable[[Path, Path], Path]:
        def moves(self: Path, target: Path) -> Path:
            moved.append(self)
            if len(moved) == nth:
                raise PermissionError(errno.EPERM, "Operation not permitted")
            return work(self, target)

        return moves

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", until(Path.rename))
        patched.setattr(Path, "replace", until(Path.replace))
        with pytest.raises(Misconfigured, match=r"cannot be replaced.*not permitted. Nothing was changed"):
            restore(tmp_path / "b.db", path, progress=silent)
    assert names(path.parent) == before
    assert dump(path) != rows
    restore(tmp_path / "b.db", path, progress=silent)
    assert dump(path) == rows


# -- older files -------------------------------------------------------------------------------------------------


async def test_a_backup_of_an_older_schema_is_restored_and_brought_up_to_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as before:
        before.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:1])
        store = await SQLiteEventStore.open(tmp_path / "old.db", synchronous="OFF")
        await store.scope(OTHER).take_lease("NATS1")
        await store.close()
    assert copied(tmp_path / "old.db", tmp_path / "b.db").schema == 1
    restore(tmp_path / "b.db", tmp_path / "store.db", progress=silent)
    store = await SQLiteEventStore.open(tmp_path / "store.db", synchronous="OFF")
    await decide(store.scope(OTHER), OTHER)
    await store.close()
    report = verify_store(tmp_path / "store.db")
    assert (report.schema, report.outputs, report.findings) == (len(schema.MIGRATIONS), 96, [])
    assert attrs.asdict(report)["path"] == str(tmp_path / "store.db")
