"""The store's files are deleted or replaced under a process: it says so, acknowledges nothing, and spoils nothing."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import pytest

from meshforge_trio.errors import StoreBroken, Transient
from meshforge_trio.points import Point, no_probe
from meshforge_trio.policy import ExitCode
from meshforge_trio.runtime import exit_code
from meshforge_trio.store import sqlite
from meshforge_trio.store.port import Commit, KeyRecord, Output
from meshforge_trio.store.schema import Synchronous, connect
from meshforge_trio.store.sqlite import SQLiteEventStore, SQLiteScopeStore, inline
from meshforge_trio.subjects import Scope

SCOPE = Scope("acme", "main", "orders")


def turn(n: int) -> Commit:
    output = Output(n, "record", f"k{n}", f"k{n}_r", "r", "evt.acme.main.orders.r", f"m{n}", b"{}")
    return Commit(1, [output], [KeyRecord(f"k{n}", b"h" * 32, "decided", n, n)])


async def served(path: Path) -> tuple[SQLiteEventStore, SQLiteScopeStore]:
    store = await SQLiteEventStore.open(path, offload=inline)
    rows = store.scope(SCOPE)
    assert await rows.take_lease("NATS1") is not None
    await rows.commit(turn(1), no_probe)
    return store, rows


def numbers(path: Path) -> list[int]:
    """Outputs that whoever opens the file now finds."""
    connection = apsw.Connection(os.fspath(path))
    rows = [int(n) for (n,) in connection.execute("SELECT id & 0xffff FROM outputs ORDER BY id")]
    connection.close()
    return rows


def unlink(path: Path) -> None:
    path.unlink()


def rename(path: Path) -> None:
    path.rename(f"{path}.old")


def put_back(path: Path) -> None:
    Path(f"{path}.old").rename(path)


def rename_over(path: Path) -> None:
    other = Path(f"{path}.other")
    shutil.copyfile(path, other)
    other.replace(path)


def remake(path: Path) -> None:
    path.unlink()
    path.touch()


CHANGES: tuple[Callable[[Path], None], ...] = (unlink, rename, rename_over, remake)


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm"])
@pytest.mark.parametrize("change", CHANGES)
async def test_nothing_is_committed_to_what_is_not_there_any_more(
    tmp_path: Path, suffix: str, change: Callable[[Path], None]
) -> None:
    store, rows = await served(tmp_path / "store.db")
    change(Path(f"{tmp_path / 'store.db'}{suffix}"))
    said = "deleted or moved" if change in (unlink, rename) else "replaced"
    with pytest.raises(StoreBroken, match=rf"store\.db{suffix} was {said} under this process") as caught:
        await rows.commit(turn(2), no_probe)
    assert exit_code(caught.value) == ExitCode.STORE_BROKEN
    assert "put the file back or run `meshforge restore`" in str(caught.value)
    assert not store.lease_valid()
    # Put back in between, it stays as it was said: what was written meanwhile is unknown.
    with pytest.raises(StoreBroken, match="under this process"):
        await rows.read([], [])
    await store.close()


@pytest.mark.parametrize("work", ["keep_alive", "take_lease"])
async def test_who_is_idle_notices_too(tmp_path: Path, work: str) -> None:
    store, rows = await served(tmp_path / "store.db")
    unlink(tmp_path / "store.db")
    with pytest.raises(StoreBroken, match="deleted or moved under this process"):
        await (store.keep_alive() if work == "keep_alive" else rows.take_lease("NATS1"))
    await store.close()


async def test_what_happens_during_commit_is_noticed_before_it_is_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    store, rows = await served(path)

    def rename_and_commit() -> bool:
        rename(path)
        return False

    store.connection.set_commit_hook(rename_and_commit)
    with pytest.raises(StoreBroken, match="deleted or moved"):
        await rows.commit(turn(2), no_probe)
    await store.close()
    put_back(path)
    # It is in the file that was moved: a successor on that one publishes it.
    assert numbers(path) == [1, 2]


async def test_a_file_that_is_put_back_has_everything_and_its_turn_is_decided_once(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    store, rows = await served(path)

    def move(point: Point) -> None:
        rename(path)

    with pytest.raises(StoreBroken, match="deleted or moved"):
        await rows.commit(turn(2), move)
    await store.close()
    put_back(path)
    again, rows = await served_again(path)
    assert [output.n for output in await rows.outputs_after(0, 10)] == [1]
    commit = turn(2)
    commit.epoch = 2
    await rows.commit(commit, no_probe)
    await again.close()
    assert numbers(path) == [1, 2]


async def served_again(path: Path) -> tuple[SQLiteEventStore, SQLiteScopeStore]:
    store = await SQLiteEventStore.open(path, offload=inline)
    rows = store.scope(SCOPE)
    lease = await rows.take_lease("NATS1")
    assert lease is not None
    assert lease.epoch == 2
    return store, rows


LIVE = """
import sys, trio
from pathlib import Path
from meshforge_trio.points import no_probe
from meshforge_trio.store.port import Commit, Output
from meshforge_trio.store.sqlite import SQLiteEventStore
from meshforge_trio.subjects import Scope

async def main():
    store = await SQLiteEventStore.open(sys.argv[1])
    rows = store.scope(Scope("acme", "main", "orders"))
    await rows.take_lease("NATS1")
    await rows.commit(Commit(1, [Output(1, "record", "k", "e", "r", "evt.a.b.c.r", "m", b"{}")]), no_probe)
    print("committed", flush=True)
    await trio.sleep_forever()

trio.run(main)
"""


@contextlib.contextmanager
def living_on(path: Path) -> Iterator[None]:
    """A process that has made a store there and committed to it; killed at the end."""
    process = subprocess.Popen([sys.executable, "-c", LIVE, os.fspath(path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"committed\n"
        yield
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def files(directory: Path) -> dict[str, bytes]:
    """The store's files, but for the index of the log."""
    return {file.name: file.read_bytes() for file in directory.iterdir() if file.name in ("store.db", "store.db-wal")}


@pytest.mark.parametrize("noticed", [True, False])
async def test_what_has_come_in_its_place_is_not_touched(tmp_path: Path, noticed: bool) -> None:
    """Another log has the name of the one that was opened. To end with a checkpoint would write the old one over the
    database and remove the other, with what was committed to it."""
    path = tmp_path / "store.db"
    store, rows = await served(path)
    await rows.commit(turn(2), no_probe)
    for suffix in ("-wal", "-shm"):
        rename(Path(f"{path}{suffix}"))
    with living_on(path):
        before = files(tmp_path)
    if noticed:
        with pytest.raises(StoreBroken, match="was replaced under this process"):
            await store.keep_alive()
    await store.close()
    assert files(tmp_path) == before
    assert numbers(path) == [1]


async def test_a_store_that_is_replaced_while_it_is_opened_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "store.db"
    store, _ = await served(path)
    await store.close()

    def connect_and_replace(place: Path, *, synchronous: Synchronous, vfs: str | None) -> apsw.Connection:
        connection = connect(place, synchronous=synchronous, vfs=vfs)
        rename_over(path)
        return connection

    with monkeypatch.context() as patched:
        patched.setattr(sqlite, "connect", connect_and_replace)
        with pytest.raises(Transient, match="was replaced while it was being opened"):
            await SQLiteEventStore.open(path, offload=inline)
    again, _ = await served_again(path)
    await again.close()


async def test_a_link_that_leads_elsewhere_is_another_file(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    link = tmp_path / "store.db"
    link.symlink_to(tmp_path / "a" / "real.db")
    (tmp_path / "a" / "real.db").touch()
    store, rows = await served(link)
    await rows.commit(turn(2), no_probe)
    shutil.copyfile(tmp_path / "a" / "real.db", tmp_path / "a" / "other.db")
    link.unlink()
    link.symlink_to(tmp_path / "a" / "other.db")
    with pytest.raises(StoreBroken, match="was replaced under this process"):
        await rows.commit(turn(3), no_probe)
    await store.close()
    assert numbers(tmp_path / "a" / "real.db") == [1, 2]
