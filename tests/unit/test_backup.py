"""Making copies of a store: of one moment, private, and whole before they have a name."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import apsw
import pytest
import trio
from kept import ONE, copied, dump, keep, names, tampered

from chaos.faults.disk import FullDisk
from meshforge_trio import backup as module
from meshforge_trio.backup import ScopeCopy, back_up
from meshforge_trio.errors import Misconfigured, StoreBroken, StoreFull
from meshforge_trio.store.schema import MIGRATIONS
from meshforge_trio.store.sqlite import SQLiteEventStore, inline


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


# -- making one --------------------------------------------------------------------------------------------------


def test_a_copy_holds_everything_and_is_one_private_file(path: Path, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        made = copied(path, tmp_path / "b.db")
    finally:
        os.umask(before)
    assert dump(tmp_path / "b.db") == dump(path)
    assert names(tmp_path) == ["b.db", "lives"]
    assert stat.S_IMODE((tmp_path / "b.db").stat().st_mode) == 0o600
    assert made == module.Backup(
        path=str(tmp_path / "b.db"),
        store=str(path),
        bytes=(tmp_path / "b.db").stat().st_size,
        schema=len(MIGRATIONS),
        outputs=192,
        scopes=[ScopeCopy(f"t/{w}/counter", 96, 96, 2, 3) for w in ("other", "w")],
        verified=True,
    )


async def test_a_copy_is_of_one_moment_beside_a_writer(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages that were copied already change meanwhile, and the copy neither holds half of it nor begins anew."""
    monkeypatch.setattr(module, "_STEP", 1)
    before = dump(path)
    store = await SQLiteEventStore.open(path, synchronous="OFF", offload=inline)
    rows = store.scope(ONE)
    assert await rows.take_lease("NATS1") is not None
    done: list[int] = []

    def write_meanwhile(what: str, pages: int, total: int) -> None:
        if what != "pages copied":
            return
        done.append(pages)
        if len(done) > 5:
            return
        other = apsw.Connection(os.fspath(path))
        other.execute("UPDATE scopes SET tenant = tenant || 'x'; UPDATE heads SET version = version + 1")
        other.close()

    made = back_up(path, tmp_path / "b.db", force=False, verify=True, progress=write_meanwhile)
    await store.close()
    assert made.verified
    assert done == list(range(1, len(done) + 1)), "it began anew"
    assert dump(tmp_path / "b.db") == before != dump(path)


async def test_nobody_serves_a_copy(path: Path, tmp_path: Path) -> None:
    store = await SQLiteEventStore.open(path, ttl_s=600)
    lease = await store.scope(ONE).take_lease("NATS1")
    assert lease is not None
    store.connection.execute("UPDATE leases SET clean = 1")
    copied(path, tmp_path / "b.db")
    assert dump(tmp_path / "b.db", "holders") == []
    assert dump(tmp_path / "b.db", "leases") == [(1, lease.epoch, None, 0, "NATS1"), (2, 1, None, 0, "NATS1")]
    assert store.lease_valid()
    await store.close()
    other = await SQLiteEventStore.open(tmp_path / "b.db", ttl_s=600)
    taken = await other.scope(ONE).take_lease("NATS1")
    assert taken is not None
    assert (taken.epoch, taken.clean) == (lease.epoch + 1, False)
    await other.close()


def test_what_exists_is_replaced_by_force_alone(path: Path, tmp_path: Path) -> None:
    there = tmp_path / "b.db"
    there.write_text("precious")
    with pytest.raises(Misconfigured, match=r"b\.db exists: `--force` replaces it"):
        copied(path, there)
    assert there.read_text() == "precious"
    copied(path, there, force=True)
    assert dump(there) == dump(path)
    copied(path, there, force=True)
    assert names(tmp_path) == ["b.db", "lives"]


def come_into_being(path: Path) -> Callable[[str, int, int], None]:
    def write(what: str, done: int, total: int) -> None:
        path.write_text("precious")

    return write


def test_what_comes_into_being_meanwhile_is_not_replaced(path: Path, tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="has come into being meanwhile"):
        back_up(path, tmp_path / "b.db", force=False, verify=True, progress=come_into_being(tmp_path / "b.db"))
    assert (tmp_path / "b.db").read_text() == "precious"
    assert names(tmp_path) == ["b.db", "lives"]


def test_places_that_are_no_backup_are_refused(path: Path, tmp_path: Path) -> None:
    before = path.read_bytes()
    for to in (path, path.parent / ".." / "lives" / "store.db"):
        with pytest.raises(Misconfigured, match="is the store itself"):
            copied(path, to, force=True)
    with pytest.raises(Misconfigured, match="is a directory: name a file in it"):
        copied(path, tmp_path)
    with pytest.raises(Misconfigured, match="there is no directory"):
        copied(path, tmp_path / "nowhere" / "b.db")
    (tmp_path / "live.db-wal").write_text("")
    with pytest.raises(Misconfigured, match=r"live\.db-wal says that .*live\.db is a database in use"):
        copied(path, tmp_path / "live.db", force=True)
    with pytest.raises(Misconfigured, match="there is no store"):
        copied(tmp_path / "nothing.db", tmp_path / "b.db")
    assert path.read_bytes() == before
    assert names(tmp_path) == ["live.db-wal", "lives"]


def test_a_damaged_store_leaves_no_copy(path: Path, tmp_path: Path) -> None:
    tampered(path, "UPDATE outputs SET body = x'7b7d' WHERE key = 'k100'")
    with pytest.raises(StoreBroken, match=r"damaged, and nothing was kept of the copy: \d+ findings, the first: chain"):
        copied(path, tmp_path / "b.db")
    assert names(tmp_path) == ["lives"]
    assert not copied(path, tmp_path / "b.db", verify=False).verified


def test_without_space_there_is_no_copy(path: Path, tmp_path: Path) -> None:
    disk = FullDisk(tmp_path / ".b.db")
    try:
        disk.fill(600)
        with pytest.raises(StoreFull, match=r"no space for .*b\.db"):
            copied(path, tmp_path / "b.db")
    finally:
        disk.unregister()
    assert names(tmp_path) == ["lives"]


def test_a_copy_has_its_name_only_once_it_is_on_the_disk(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there: list[tuple[str, list[str]]] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        kind = "directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        there.append((kind, [name for name in names(tmp_path) if name != "lives"]))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    copied(path, tmp_path / "b.db")
    (first, before), (second, after) = there
    assert (first, second, after) == ("file", "directory", ["b.db"])
    assert len(before) == 1
    assert before[0].startswith(".b.db.")

    def fails(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(Misconfigured, match="Input/output error"):
        copied(path, tmp_path / "c.db")
    assert names(tmp_path) == ["b.db", "lives"]
