"""The full disk: nothing while it is not filled, SQLITE_FULL while it is, and a store that comes through it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import apsw
import pytest

from chaos.faults import disk as module
from chaos.faults.disk import FullDisk
from chaos.rows import Rows, copy_store, read_store
from meshforge_trio.errors import StoreFull
from meshforge_trio.points import Point, no_probe
from meshforge_trio.store.port import Commit, KeyRecord, Output, ScopeStore
from meshforge_trio.store.sqlite import SQLiteEventStore
from meshforge_trio.subjects import Scope

SCOPE: Final = Scope("default", "demo", "counter")
LONG: Final = 1_000.0


class FakeTime:
    """A clock that stands still until it is told otherwise."""

    def __init__(self) -> None:
        self.now = 500.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    fake = FakeTime()
    monkeypatch.setattr(module, "time", fake)
    return fake


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[FullDisk]:
    made = FullDisk(tmp_path / "store.db")
    yield made
    made.unregister()


def commit(lease_epoch: int, first: int, count: int = 1, body: bytes = b"{}") -> Commit:
    made = Commit(lease_epoch)
    for n in range(first, first + count):
        made.outputs.append(
            Output(n, "event", f"k{n}", f"e{n}", "added", "evt.default.demo.counter.added", f"m{n}", body)
        )
        made.keys.append(KeyRecord(f"k{n}", b"h" * 32, "decided", n, n))
    return made


async def opened(path: Path) -> tuple[SQLiteEventStore, ScopeStore, int]:
    store = await SQLiteEventStore.open(path, ttl_s=LONG)
    rows = store.scope(SCOPE)
    lease = await rows.take_lease("NATS1")
    assert lease is not None
    return store, rows, lease.epoch


def is_full(disk: FullDisk) -> bool:
    """Asked anew each time, which a type checker does not expect of an attribute."""
    return disk.full


def seen(path: Path) -> Rows:
    """What a copy of the files holds: what a process that died now would leave."""
    home = Path(tempfile.mkdtemp(dir=path.parent))
    copy_store(path, home)
    return read_store(home / "store.db")


# -- not filled ------------------------------------------------------------------------------------------------------


def history_of(path: Path) -> list[object]:
    """What can be seen of a database while it is made, used by two connections, and closed."""
    noted: list[object] = []
    one, two = apsw.Connection(str(path)), apsw.Connection(str(path))
    noted.append(one.pragma("journal_mode", "wal"))
    one.execute("CREATE TABLE t(a, b); BEGIN")
    for i in range(2_000):
        one.execute("INSERT INTO t VALUES (?, ?)", (i, "x" * (i % 97)))
    noted.append(two.execute("SELECT count(*) FROM t").get)
    with pytest.raises(apsw.BusyError):
        two.execute("BEGIN IMMEDIATE")
    one.execute("COMMIT")
    noted += [two.execute("SELECT count(*), sum(length(b)) FROM t").get, two.changes()]
    noted += [one.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE), one.pragma("integrity_check")]
    two.execute("DELETE FROM t WHERE a % 3 = 0")
    noted.append(sorted((p.name, p.stat().st_size, oct(p.stat().st_mode)) for p in path.parent.iterdir()))
    for name in ("page_size", "mmap_size", "synchronous", "journal_size_limit", "locking_mode"):
        noted.append(one.pragma(name))
    one.close()
    two.close()
    noted.append(sorted((p.name, p.stat().st_size, oct(p.stat().st_mode)) for p in path.parent.iterdir()))
    return noted


def test_a_disk_that_is_not_filled_changes_nothing(tmp_path: Path) -> None:
    plain, below = tmp_path / "plain" / "store.db", tmp_path / "below" / "store.db"
    for path in (plain, below):
        path.parent.mkdir()
    names = apsw.vfs_names()
    expected = history_of(plain)
    healed: list[int] = []
    disk = FullDisk(below, lambda: healed.append(1))
    assert not disk.full
    assert history_of(below) == expected
    assert below.read_bytes() == plain.read_bytes()
    details = {vfs["zName"]: (vfs["mxPathname"], vfs["iVersion"]) for vfs in apsw.vfs_details()}
    assert details[apsw.vfs_names()[0]] == details[names[0]]
    disk.unregister()
    assert apsw.vfs_names() == names
    assert not healed


def test_it_is_the_default_of_the_process(tmp_path: Path, disk: FullDisk) -> None:
    connection = apsw.Connection(str(tmp_path / "store.db"))
    assert connection.open_vfs == apsw.vfs_names()[0]
    assert connection.open_vfs.startswith("full-disk-")
    connection.close()


def test_processes_without_it_share_the_database(tmp_path: Path, disk: FullDisk) -> None:
    path = tmp_path / "store.db"
    script = f"import apsw; c = apsw.Connection({str(path)!r}); c.execute('INSERT INTO t VALUES (7)')"
    connection = apsw.Connection(str(path))
    connection.pragma("journal_mode", "wal")
    connection.execute("CREATE TABLE t(a)")

    def other() -> str:
        return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False).stderr

    assert other() == ""
    connection.execute("BEGIN IMMEDIATE; INSERT INTO t VALUES (8)")
    assert "BusyError" in other()
    connection.execute("COMMIT")
    disk.fill(LONG)
    assert other() == ""
    assert [a for (a,) in connection.execute("SELECT a FROM t")] == [7, 8, 7]
    with pytest.raises(apsw.FullError):
        connection.execute("INSERT INTO t VALUES (9)")
    with pytest.raises(apsw.FullError):
        connection.close()


# -- filled ----------------------------------------------------------------------------------------------------------


async def test_nothing_is_half_written_and_work_goes_on_when_space_returns(
    tmp_path: Path, clock: FakeTime, disk: FullDisk
) -> None:
    path = tmp_path / "store.db"
    healed: list[float] = []
    disk.on_healed = lambda: healed.append(clock.now)
    store, rows, epoch = await opened(path)
    await rows.commit(commit(epoch, 1), no_probe)
    before = seen(path)
    disk.fill(2.0)
    assert is_full(disk)
    for _ in range(2):
        with pytest.raises(StoreFull, match="filled by plan"):
            await rows.commit(commit(epoch, 2), no_probe)
        with pytest.raises(StoreFull):
            await store.keep_alive()
        with pytest.raises(StoreFull):
            await rows.take_lease("NATS1")
        clock.now += 0.999
    assert [output.n for output in await rows.outputs_after(0, 10)] == [1]
    assert seen(path) == before
    assert not healed
    clock.now += 0.002
    assert not is_full(disk)
    assert not healed, "nothing was written yet"
    await rows.commit(commit(epoch, 2), no_probe)
    await rows.commit(commit(epoch, 3), no_probe)
    assert healed == [clock.now]
    assert [output.n for output in await rows.outputs_after(0, 10)] == [1, 2, 3]
    await store.close()
    assert [output.n for output in seen(path).outputs] == [1, 2, 3]


async def test_a_transaction_that_outgrew_the_page_cache_leaves_nothing(
    tmp_path: Path, clock: FakeTime, disk: FullDisk
) -> None:
    """Its first pages are in the write-ahead log already when the disk fills up."""
    path = tmp_path / "store.db"
    store, rows, epoch = await opened(path)
    await rows.commit(commit(epoch, 1), no_probe)
    before = seen(path)
    log = path.with_name("store.db-wal")
    sizes = [log.stat().st_size]

    def fill(_: Point) -> None:
        sizes.append(log.stat().st_size)
        disk.fill(1.0)

    with pytest.raises(StoreFull):
        await rows.commit(commit(epoch, 2, 20, b"x" * 1_000_000), fill)
    assert sizes[1] > sizes[0] + 5_000_000
    assert seen(path) == before
    clock.now += 1
    await store.close()
    again, rows, epoch = await opened(path)
    await rows.commit(commit(epoch, 2), no_probe)
    await again.close()
    assert [(output.n, output.body) for output in seen(path).outputs] == [(1, b"{}"), (2, b"{}")]


async def test_a_store_closed_on_a_full_disk_is_whole(tmp_path: Path, disk: FullDisk) -> None:
    path = tmp_path / "store.db"
    store, rows, epoch = await opened(path)
    await rows.commit(commit(epoch, 1), no_probe)
    assert [file for file in open_files() if file.startswith(str(path))]
    disk.fill(LONG)
    await store.close()
    assert not [file for file in open_files() if file.startswith(str(path))]
    assert [output.n for output in seen(path).outputs] == [1]


def open_files() -> list[str]:
    """What this process has open."""
    files = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the listing itself
            files.append(str(link.readlink()))
    return files


async def test_a_store_cannot_be_made_on_a_full_disk(tmp_path: Path, clock: FakeTime, disk: FullDisk) -> None:
    disk.fill(1.0)
    with pytest.raises(StoreFull):
        await SQLiteEventStore.open(tmp_path / "store.db")
    clock.now += 2
    store, _, _ = await opened(tmp_path / "store.db")
    await store.close()


def test_other_files_have_space(tmp_path: Path, disk: FullDisk) -> None:
    disk.fill(LONG)
    for name in (str(tmp_path / "other.db"), ":memory:", ""):
        connection = apsw.Connection(name)
        connection.pragma("cache_size", 5)
        connection.execute("CREATE TABLE t(a); INSERT INTO t VALUES (zeroblob(1000000))")
        connection.close()


@pytest.mark.parametrize("mode", ["wal", "delete", "truncate"])
def test_any_journal(tmp_path: Path, clock: FakeTime, disk: FullDisk, mode: str) -> None:
    connection = apsw.Connection(str(tmp_path / "store.db"))
    connection.pragma("journal_mode", mode)
    connection.pragma("cache_size", 5)
    connection.execute("CREATE TABLE t(a); INSERT INTO t VALUES (1); BEGIN IMMEDIATE; INSERT INTO t VALUES (2)")
    disk.fill(1.0)
    with pytest.raises(apsw.FullError):
        connection.execute("INSERT INTO t VALUES (zeroblob(1000000)); COMMIT")
    assert not connection.in_transaction
    assert connection.execute("SELECT a FROM t").get == 1
    clock.now += 1.5
    connection.execute("INSERT INTO t VALUES (3)")
    assert [a for (a,) in connection.execute("SELECT a FROM t")] == [1, 3]
    assert connection.pragma("integrity_check") == "ok"
    connection.close()


@pytest.mark.parametrize("spelling", ["relative", "link", "dots"])
def test_however_the_path_is_spelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "link").symlink_to(home)
    monkeypatch.chdir(tmp_path)
    spelled = {"relative": "home/store.db", "link": f"{tmp_path}/link/store.db", "dots": "link/../home/./store.db"}
    for given, used in ((spelled[spelling], str(home / "store.db")), (str(home / "store.db"), spelled[spelling])):
        disk = FullDisk(given)
        connection = apsw.Connection(used)
        disk.fill(LONG)
        with pytest.raises(apsw.FullError):
            connection.execute("CREATE TABLE t(a)")
        connection.close()
        disk.unregister()


# -- and whole again -------------------------------------------------------------------------------------------------


def test_it_heals_once_for_each_filling(tmp_path: Path, clock: FakeTime, disk: FullDisk) -> None:
    healed: list[float] = []
    disk.on_healed = lambda: healed.append(clock.now)
    path = str(tmp_path / "store.db")
    connections = [apsw.Connection(path), apsw.Connection(path)]
    connections[0].execute("CREATE TABLE t(a)")
    for _ in range(2):
        disk.fill(1.0)
        clock.now += 1.0
        for connection in connections * 2:
            connection.execute("INSERT INTO t VALUES (1)")
    assert healed == [501.0, 502.0]


def test_by_the_clock_of_the_machine_space_returns_too(tmp_path: Path, disk: FullDisk) -> None:
    healed = threading.Event()
    disk.on_healed = healed.set
    connection = apsw.Connection(str(tmp_path / "store.db"))
    disk.fill(0.01)
    while not healed.is_set():
        with contextlib.suppress(apsw.FullError):
            connection.execute("CREATE TABLE IF NOT EXISTS t(a); INSERT INTO t VALUES (1)")
    connection.close()


def test_filled_twice_it_is_full_until_the_later_end(tmp_path: Path, clock: FakeTime, disk: FullDisk) -> None:
    disk.fill(3.0)
    disk.fill(1.0)
    clock.now += 2.0
    assert is_full(disk)
    disk.fill(2.0)
    clock.now += 1.5
    assert is_full(disk)
    clock.now += 0.5
    assert not is_full(disk)


def test_filled_again_while_a_write_is_under_way_it_is_not_healed(clock: FakeTime, disk: FullDisk) -> None:
    healed: list[int] = []
    disk.on_healed = lambda: healed.append(1)
    disk.fill(1.0)
    clock.now += 1.0
    assert disk.recovering()
    disk.fill(1.0)
    disk.recovered()
    assert not healed
    assert disk.full
    clock.now += 1.0
    assert disk.recovering()
    disk.recovered()
    disk.recovered()
    assert healed == [1]


def test_what_is_called_when_it_heals_may_fail_and_is_heard_of(tmp_path: Path, clock: FakeTime, disk: FullDisk) -> None:
    def fail() -> None:
        raise LookupError("nobody listens")

    disk.on_healed = fail
    connection = apsw.Connection(str(tmp_path / "store.db"))
    disk.fill(1.0)
    clock.now += 1.0
    with pytest.raises(LookupError, match="nobody listens"):
        connection.execute("CREATE TABLE t(a)")
    connection.execute("CREATE TABLE t(a)")
    connection.close()


def test_it_needs_no_thread(disk: FullDisk) -> None:
    before = threading.active_count()
    disk.fill(LONG)
    assert threading.active_count() == before
