"""The file of the SQLite store: who may read it, what is refused, how damage shows, how schemas change."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import apsw
import pytest
import trio

from chaos.faults.disk import FullDisk
from chaos.faults.disk_errors import FailingDisk
from meshforge_trio.errors import Misconfigured, StoreBroken, StoreFull
from meshforge_trio.points import no_probe
from meshforge_trio.store import schema
from meshforge_trio.store.port import Commit, Output
from meshforge_trio.store.sqlite import SQLiteEventStore, inline
from meshforge_trio.subjects import Scope

SCOPE = Scope("acme", "main", "orders")


async def filled(path: Path, count: int = 500) -> None:
    """A closed store with `count` outputs."""
    store = await SQLiteEventStore.open(path, synchronous="OFF")
    scope = store.scope(SCOPE)
    assert await scope.take_lease("NATS1") is not None
    body = b"x" * 700
    outputs = [Output(n, "event", f"k{n}", f"k{n}_e", "e", "evt.a.b.c.e", f"m{n}", body) for n in range(1, count + 1)]
    await scope.commit(Commit(1, outputs), no_probe)
    await store.close()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def chmod(path: Path, new: int) -> None:
    path.chmod(new)


def names(directory: Path) -> list[str]:
    return sorted(file.name for file in directory.iterdir())


# -- files and permissions ---------------------------------------------------------------------------------------


async def test_new_files_and_directories_are_the_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store = await SQLiteEventStore.open(tmp_path / "new" / "deep" / "store.db")
        await store.scope(SCOPE).take_lease("NATS1")
    finally:
        os.umask(before)
    directory = tmp_path / "new" / "deep"
    assert [mode(d) for d in (directory.parent, directory, directory / "store.db-holders")] == [0o700] * 3
    assert {file.name: mode(file) for file in directory.iterdir() if file.is_file()} == {
        "store.db": 0o600,
        "store.db-shm": 0o600,
        "store.db-wal": 0o600,
    }
    assert [mode(file) for file in (directory / "store.db-holders").iterdir()] == [0o600]
    await store.close()


async def test_an_existing_directory_and_file_keep_their_mode(tmp_path: Path) -> None:
    await filled(tmp_path / "store.db", 1)
    chmod(tmp_path, 0o755)
    chmod(tmp_path / "store.db", 0o640)
    await (await SQLiteEventStore.open(tmp_path / "store.db")).close()
    assert (mode(tmp_path), mode(tmp_path / "store.db")) == (0o755, 0o640)


async def test_the_connection_is_set_up_for_durability(tmp_path: Path) -> None:
    store = await SQLiteEventStore.open(tmp_path / "store.db")
    read = store.connection.pragma
    assert (read("journal_mode"), read("synchronous"), read("mmap_size")) == ("wal", 2, 0)
    assert (read("application_id"), read("user_version")) == (0x4D465431, len(schema.MIGRATIONS))
    await store.close()
    assert names(tmp_path) == ["store.db", "store.db-holders"]


async def test_a_directory_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Misconfigured, match="cannot create or open the store"):
        await SQLiteEventStore.open(tmp_path / "file" / "store.db")
    with pytest.raises(Misconfigured, match="cannot open the store"):
        await SQLiteEventStore.open(tmp_path)


async def test_no_space_at_creation_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "open", no_space)
    with pytest.raises(StoreFull):
        await SQLiteEventStore.open(tmp_path / "store.db", offload=inline)


# -- files that are not ours, not whole, not of this version -----------------------------------------------------


async def test_an_sqlite_that_can_corrupt_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apsw, "sqlite_lib_version", lambda: "3.51.2")
    with pytest.raises(Misconfigured, match=r"3\.51\.3 or newer.*pip install --upgrade apsw"):
        await SQLiteEventStore.open(tmp_path / "store.db")
    assert not names(tmp_path)
    monkeypatch.setattr(apsw, "sqlite_lib_version", lambda: "3.51.3")
    await (await SQLiteEventStore.open(tmp_path / "store.db")).close()


async def test_a_newer_schema_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    await filled(path, 1)
    with apsw.Connection(os.fspath(path)) as connection:
        connection.pragma("user_version", 99)
    connection.close()
    before = path.read_bytes()
    with pytest.raises(Misconfigured, match=r"schema version 99.*knows up to 3.*pip install --upgrade"):
        await SQLiteEventStore.open(path)
    assert path.read_bytes() == before


async def test_another_programs_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    connection = apsw.Connection(os.fspath(path))
    connection.execute("CREATE TABLE theirs(x)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(Misconfigured, match="another program's database"):
        await SQLiteEventStore.open(path)
    assert path.read_bytes() == before


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    path.write_bytes(b"not a database " * 1000)
    with pytest.raises(StoreBroken, match=r"damaged or not a database.*`meshforge restore BACKUP`"):
        await SQLiteEventStore.open(path)


def overwrite(path: Path, start: int) -> None:
    """Garbage over a third of the file from `start` on, the header and the schema spared."""
    with path.open("r+b") as file:
        file.seek(start)
        file.write(b"\xa5" * (path.stat().st_size // 3))


def overwrite_pages(path: Path) -> None:
    overwrite(path, path.stat().st_size // 3 // 8192 * 8192)


def overwrite_from_inside_a_page(path: Path) -> None:
    overwrite(path, path.stat().st_size // 3)


def cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("damage", [overwrite_pages, overwrite_from_inside_a_page, cut_off])
async def test_damage_is_found_at_start(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    path = tmp_path / "store.db"
    await filled(path)
    damage(path)
    with pytest.raises(StoreBroken, match="damaged"):
        await SQLiteEventStore.open(path)


async def test_of_a_large_file_the_newest_rows_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "_QUICK_CHECK_BYTES_MAX", 0)
    path = tmp_path / "store.db"
    await filled(path)
    await (await SQLiteEventStore.open(path)).close()
    cut_off(path)
    with pytest.raises(StoreBroken, match="damaged"):
        await SQLiteEventStore.open(path)


@pytest.mark.parametrize("damage", [overwrite_pages, overwrite_from_inside_a_page, cut_off])
async def test_damage_found_while_working_ends_the_store(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    path = tmp_path / "store.db"
    await filled(path)
    store = await SQLiteEventStore.open(path)
    damage(path)
    store.connection.pragma("shrink_memory")
    scope = store.scope(SCOPE)
    with pytest.raises(StoreBroken, match="damaged"):
        await scope.outputs_after(0, 1000)
    with pytest.raises(StoreBroken):
        await scope.take_lease("NATS1")
    await store.close()


# -- migrations --------------------------------------------------------------------------------------------------


async def test_concurrent_openers_of_a_new_file_agree(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    opened: list[SQLiteEventStore] = []

    async def open_one() -> None:
        opened.append(await SQLiteEventStore.open(path))

    source = f"""
import trio
from meshforge_trio.store.sqlite import SQLiteEventStore

async def main():
    await (await SQLiteEventStore.open({os.fspath(path)!r})).close()

trio.run(main)
"""
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(open_one)
            nursery.start_soon(trio.run_process, [sys.executable, "-c", source])
    assert {store.connection.pragma("user_version") for store in opened} == {len(schema.MIGRATIONS)}
    for store in opened:
        await store.close()


async def test_processes_that_start_together_all_open(tmp_path: Path) -> None:
    for i in range(10):
        opened: list[SQLiteEventStore] = []

        async def open_one(path: Path, opened: list[SQLiteEventStore]) -> None:
            opened.append(await SQLiteEventStore.open(path, synchronous="OFF"))

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(open_one, tmp_path / f"store-{i % 5}.db", opened)
        assert len(opened) == 8
        for store in opened:
            store.abandon()


async def test_a_migration_runs_once_however_many_openers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "store.db"
    await filled(path, 3)
    added = "CREATE TABLE added(x INTEGER) STRICT; INSERT INTO added VALUES (1);"
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, added))
    opened: list[SQLiteEventStore] = []

    async def open_one() -> None:
        opened.append(await SQLiteEventStore.open(path))

    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(open_one)
    for store in opened:
        assert store.connection.execute("SELECT count(*) FROM added").fetchall() == [(1,)]
        assert store.connection.pragma("user_version") == len(schema.MIGRATIONS)
        assert len(await store.scope(SCOPE).outputs_after(0, 10)) == 3
        await store.close()


async def test_a_migration_that_fails_leaves_the_old_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "store.db"
    await filled(path, 3)
    with monkeypatch.context() as patched:
        patched.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, "CREATE TABLE half(x); SELECT no_such_function();"))
        with pytest.raises(StoreBroken, match="no_such_function"):
            await SQLiteEventStore.open(path)
    store = await SQLiteEventStore.open(path)
    assert not store.connection.table_exists(None, "half")
    await store.close()


async def test_the_events_view_shows_scopes_names_and_text(tmp_path: Path) -> None:
    await filled(tmp_path / "store.db", 2)
    connection = apsw.Connection(os.fspath(tmp_path / "store.db"))
    found = connection.execute("SELECT * FROM events ORDER BY event_id").fetchall()
    assert [row[:7] for row in found] == [("acme", "main", "orders", None, None, "e", f"k{n}_e") for n in (1, 2)]
    assert found[0][7] == "x" * 700
    connection.close()


async def test_a_disk_that_fails_at_the_end_gets_no_checkpoint(tmp_path: Path) -> None:
    """The log stays as it is: what of it the disk has kept is for the next process to find out."""
    path = tmp_path / "store.db"
    disk = FailingDisk(path)
    try:
        store = await SQLiteEventStore.open(path, ttl_s=600)
        assert await store.scope(SCOPE).take_lease("NATS1") is not None
        disk.fail("sync", "wal")
        before = path.read_bytes()
        await store.close()
    finally:
        disk.unregister()
    assert (disk.failures, path.read_bytes()) == (1, before)
    assert "store.db-wal" in names(tmp_path)
    successor = await SQLiteEventStore.open(path, ttl_s=600)
    lease = await successor.scope(SCOPE).take_lease("NATS1")
    assert lease is not None
    assert (lease.epoch, lease.clean) == (2, False)
    await successor.close()


async def test_a_store_closed_on_a_full_disk_is_taken_over_at_once(tmp_path: Path) -> None:
    """Its term cannot be given up in the database then; the lock file that stays behind, unlocked, tells of its end."""
    disk = FullDisk(tmp_path / "store.db")
    try:
        store = await SQLiteEventStore.open(tmp_path / "store.db", ttl_s=600)
        assert await store.scope(SCOPE).take_lease("NATS1") is not None
        disk.fill(60)
        await store.close()
    finally:
        disk.unregister()
    successor = await SQLiteEventStore.open(tmp_path / "store.db", ttl_s=600)
    assert await successor.scope(SCOPE).take_lease("NATS1") is not None
    await successor.close()
