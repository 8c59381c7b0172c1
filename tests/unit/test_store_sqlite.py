"""What is particular to the SQLite store: its locks, its disk, its statements."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar, TypeVarTuple

import apsw
import attrs
import pytest
import trio

from meshforge_trio.errors import Misconfigured, Stale, StoreBroken, Transient
from meshforge_trio.points import no_probe
from meshforge_trio.store import lease, rows, schema, sqlite
from meshforge_trio.store.port import Commit, Head, KeyRecord, Mark, Output
from meshforge_trio.store.sqlite import SQLiteEventStore, inline
from meshforge_trio.subjects import Scope

SCOPE = Scope("acme", "main", "orders")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")


def decisions(epoch: int, first: int, count: int, body: bytes = b"{}") -> Commit:
    """`count` commands, each with one event of an entity of its own."""
    commit, chain = Commit(epoch), hashlib.sha256(body).digest()
    for n in range(first, first + count):
        name = f"{n:09d}"
        event = (f"{name}_created", "created", "evt.acme.main.orders.created")
        commit.outputs.append(Output(n, "event", name, *event, name, body, name, 1, chain))
        commit.keys.append(KeyRecord(name, b"h", "decided", n, n))
        commit.heads.append(Head(name, 1, chain))
    return commit


def names(directory: Path) -> list[str]:
    return sorted(file.name for file in directory.iterdir())


# -- holders -----------------------------------------------------------------------------------------------------


async def test_a_holder_runs_once_and_is_named_by_a_token(tmp_path: Path) -> None:
    store = await SQLiteEventStore.open(tmp_path / "store.db", holder="worker-1")
    with pytest.raises(Misconfigured, match="already running as holder 'worker-1'"):
        await SQLiteEventStore.open(tmp_path / "store.db", holder="worker-1")
    with pytest.raises(Misconfigured, match=r"holder '\.\./x' must be"):
        await SQLiteEventStore.open(tmp_path / "store.db", holder="../x")
    await store.close()
    await (await SQLiteEventStore.open(tmp_path / "store.db", holder="worker-1")).close()


async def test_what_dead_processes_left_is_removed_at_start(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    living = await SQLiteEventStore.open(path, holder="living")
    for dying in [await SQLiteEventStore.open(path, holder=holder) for holder in ("dead-1", "dead-2")]:
        dying.abandon()
    directory = tmp_path / "store.db-holders"
    assert names(directory) == ["dead-1.lock", "dead-2.lock", "living.lock"]
    last = await SQLiteEventStore.open(path, holder="last")
    assert names(directory) == ["last.lock", "living.lock"]
    assert last.connection.execute("SELECT holder FROM holders ORDER BY 1").fetchall() == [("last",), ("living",)]
    await living.close()
    await last.close()
    assert not names(directory)


async def test_an_abandoned_store_is_succeeded_at_once_and_works_no_more(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    dead = await SQLiteEventStore.open(path, ttl_s=600)
    assert await dead.scope(SCOPE).take_lease("NATS1") is not None
    successor = await SQLiteEventStore.open(path)
    dead.abandon()
    assert not dead.lease_valid()
    with pytest.raises(trio.ClosedResourceError):
        await dead.keep_alive()
    taken = await successor.scope(SCOPE).take_lease("NATS1")
    assert taken is not None
    assert (taken.epoch, taken.clean) == (2, False)
    await successor.close()
    await dead.close()


async def test_without_its_lock_file_a_holder_is_left_to_its_term(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    now = lease.boottime_ns()
    early = await SQLiteEventStore.open(path, ttl_s=60, clock=lambda: now)
    assert await early.scope(SCOPE).take_lease("NATS1") is not None
    shutil.rmtree(tmp_path / "store.db-holders")
    before = await SQLiteEventStore.open(path, clock=lambda: now + 59 * 10**9)
    assert await before.scope(SCOPE).take_lease("NATS1") is None
    after = await SQLiteEventStore.open(path, clock=lambda: now + 60 * 10**9)
    assert await after.scope(SCOPE).take_lease("NATS1") is not None
    for store in (early, before, after):
        await store.close()


async def test_a_term_of_another_boot_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "store.db"
    before = await SQLiteEventStore.open(path, ttl_s=600, holder="before")
    assert await before.scope(SCOPE).take_lease("NATS1") is not None
    standby = await SQLiteEventStore.open(path)
    standby.connection.execute("UPDATE holders SET boot_id = 'another' WHERE holder = 'before'")
    assert await standby.scope(SCOPE).take_lease("NATS1") is not None
    await before.close()
    await standby.close()


FORKING = """
import os, signal, sys, trio
from meshforge_trio.errors import Misconfigured
from meshforge_trio.store.sqlite import SQLiteEventStore, inline
from meshforge_trio.subjects import Scope

async def take():
    store = await SQLiteEventStore.open(sys.argv[1], ttl_s=600, offload=inline)
    assert await store.scope(Scope("acme", "main", "orders")).take_lease("NATS1") is not None
    return store

async def use(store):
    try:
        await store.keep_alive()
    except Misconfigured as error:
        return "before a fork" in str(error)

store = trio.run(take)
child = os.fork()
if child == 0:
    os.write(1, b"refused" if trio.run(use, store) else b"allowed")
    signal.pause()
signal.pause()
"""


async def test_a_forked_child_is_refused_and_does_not_keep_its_parent_alive(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    command = [sys.executable, "-c", FORKING, os.fspath(path)]
    async with trio.open_nursery() as nursery:
        start = partial(trio.run_process, command, stdout=subprocess.PIPE, check=False, start_new_session=True)
        parent = await nursery.start(start)
        try:
            assert await parent.stdout.receive_some() == b"refused"
            standby = await SQLiteEventStore.open(path)
            assert await standby.scope(SCOPE).take_lease("NATS2") is None
            parent.kill()
            await parent.wait()
            assert await standby.scope(SCOPE).take_lease("NATS2") is not None
            await standby.close()
        finally:
            os.killpg(parent.pid, signal.SIGKILL)
        await parent.stdout.aclose()


def test_the_clock_of_terms_counts_suspension_and_boots_have_names() -> None:
    assert lease.boottime_ns() >= 0
    if sys.platform == "linux":
        assert len(lease.boot_id()) == 36


def test_a_system_without_boot_ids_has_an_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_BOOT_ID", tmp_path / "missing")
    assert lease.boot_id() == ""


async def test_lock_files_are_touched_under_the_write_lock_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a process that probes would find the file of one that starts before it is locked, and call it dead."""
    path = tmp_path / "store.db"
    await (await SQLiteEventStore.open(path)).close()
    other = apsw.Connection(os.fspath(path))
    touched = 0

    def watched(fd: int, lock: Callable[[int], bool] = lease._try_lock) -> bool:
        nonlocal touched
        touched += 1
        with pytest.raises(apsw.BusyError):
            other.execute("BEGIN IMMEDIATE")
        return lock(fd)

    monkeypatch.setattr(lease, "_try_lock", watched)
    first, second = [await SQLiteEventStore.open(path) for _ in range(2)]
    assert await first.scope(SCOPE).take_lease("NATS1") is not None
    assert await second.scope(SCOPE).take_lease("NATS1") is None
    assert touched == 4
    other.close()
    await first.close()
    await second.close()


async def test_a_cancelled_offload_is_awaited_to_its_end(tmp_path: Path) -> None:
    async def offload(fn: Callable[[*Ts], T], *args: *Ts) -> T:
        await trio.lowlevel.checkpoint()
        result = fn(*args)
        await trio.lowlevel.checkpoint()
        return result

    store = await SQLiteEventStore.open(tmp_path / "store.db", offload=offload)
    scope = store.scope(SCOPE)
    await scope.take_lease("NATS1")
    returned = False
    with trio.CancelScope() as cancelling:
        await scope.commit(decisions(1, 1, 1), lambda _: cancelling.cancel())
        returned = True
    assert returned, "what was committed must be known"
    assert len(await scope.outputs_after(0, 10)) == 1
    await store.close()


# -- the disk ----------------------------------------------------------------------------------------------------


class _Disk(apsw.VFS):
    """A disk whose fsync of the database itself fails on demand; the write-ahead log is spared."""

    def __init__(self) -> None:
        self.fault: apsw.Error | None = None
        self.name = f"fsync-{id(self)}"
        super().__init__(self.name, base="")

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> _File:  # noqa: N802
        return _File(self, name, flags)


class _File(apsw.VFSFile):
    def __init__(self, disk: _Disk, name: str | apsw.URIFilename | None, flags: list[int]) -> None:
        self._disk = disk
        self._is_database = bool(flags[0] & apsw.SQLITE_OPEN_MAIN_DB)
        super().__init__("", name, flags)

    def xSync(self, flags: int) -> None:  # noqa: N802
        if self._is_database and self._disk.fault is not None:
            raise self._disk.fault
        super().xSync(flags)

    def excepthook(self, *_: object) -> bool:
        """Keep quiet: the store sees SQLite's result code."""
        return True


@pytest.mark.parametrize(
    ("fault", "raised"), [(apsw.IOError("fsync"), StoreBroken), (apsw.FullError("fsync"), None), (None, None)]
)
async def test_a_checkpoint_that_cannot_fsync_breaks_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: apsw.Error | None, raised: type[Exception] | None
) -> None:
    monkeypatch.setattr(sqlite, "_CHECKPOINT_PAGES", 40)
    disk = _Disk()
    store = await SQLiteEventStore.open(tmp_path / "store.db", vfs=disk.name)
    scope = store.scope(SCOPE)
    await scope.take_lease("NATS1")
    size = (tmp_path / "store.db").stat().st_size
    disk.fault = fault
    if raised is None:
        await scope.commit(decisions(1, 1, 200, b"x" * 700), no_probe)
        await scope.commit(decisions(1, 201, 1), no_probe)
        assert ((tmp_path / "store.db").stat().st_size > size) or fault is not None
    else:
        with pytest.raises(raised):
            await scope.commit(decisions(1, 1, 200, b"x" * 700), no_probe)
        with pytest.raises(raised):
            await scope.read([], [])
    disk.fault = None
    await store.close()
    again = await SQLiteEventStore.open(tmp_path / "store.db")
    assert len(await again.scope(SCOPE).outputs_after(0, 1000)) == (200 if raised else 201)
    await again.close()


async def test_a_writer_in_the_way_is_transient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "_BUSY_TIMEOUT_S", 0.0)
    store = await SQLiteEventStore.open(tmp_path / "store.db")
    other = apsw.Connection(os.fspath(tmp_path / "store.db"))
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Transient, match="locked by another process") as caught:
        await store.keep_alive()
    assert type(caught.value) is Transient
    other.execute("COMMIT")
    await store.keep_alive()
    other.close()
    await store.close()


# -- rows --------------------------------------------------------------------------------------------------------


async def test_a_turn_is_few_statements(tmp_path: Path) -> None:
    store = await SQLiteEventStore.open(tmp_path / "store.db", synchronous="OFF", offload=inline)
    scope = store.scope(SCOPE)
    await scope.take_lease("NATS1")
    steps: list[str] = []

    def trace(_cursor: apsw.Cursor, sql: str, _bindings: apsw.Bindings | None) -> bool:
        steps.append(sql[:40])
        return True

    store.connection.exec_trace = trace
    turn = decisions(1, 1, 256)
    await scope.read([(key.key, b"h") for key in turn.keys], [head.entity_id for head in turn.heads])
    await scope.commit(turn, no_probe)
    assert len(steps) < 40, steps
    await store.close()


async def test_every_look_up_is_by_an_index(tmp_path: Path) -> None:
    store = await SQLiteEventStore.open(tmp_path / "store.db", synchronous="OFF", offload=inline)
    scope = store.scope(SCOPE)
    await scope.take_lease("NATS1")
    asked: list[tuple[str, apsw.Bindings | None]] = []

    def trace(_cursor: apsw.Cursor, sql: str, bindings: apsw.Bindings | None) -> bool:
        asked.append((sql, bindings))
        return True

    store.connection.exec_trace = trace
    await scope.commit(decisions(1, 1, 3), no_probe)
    await scope.read([("000000001", b"other")], ["000000002"])
    await scope.outputs_after(0, 10)
    await scope.history("000000001", 0, 10)
    await scope.heads("", 10)
    await scope.marks()
    await scope.attempts()
    store.connection.exec_trace = None
    queries = [(sql, bindings) for sql, bindings in asked if sql.lstrip().startswith(("SELECT", "WITH"))]
    assert len(queries) > 10
    # What a walk has come to so far, and the list of numbers a statement is given.
    own = ("SCAN walk", "SCAN json_each")
    for sql, bindings in queries:
        for *_, step in store.connection.execute(f"EXPLAIN QUERY PLAN {sql}", bindings):
            assert step.startswith(own) or not step.startswith("SCAN"), (sql, step)
            assert "TEMP B-TREE" not in step, (sql, step)
    await store.close()


async def test_old_marks_are_thinned_and_the_newest_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "_MARKS_KEPT", 100)
    monkeypatch.setattr(rows, "_MARK_STRIDE", 8)
    monkeypatch.setattr(rows, "_OLD_MARKS_KEPT_S", 200.0)
    store = await SQLiteEventStore.open(tmp_path / "store.db", synchronous="OFF", offload=inline)
    scope, other = store.scope(SCOPE), store.scope(attrs.evolve(SCOPE, tenant="zeta"))
    for served in (scope, other):
        await served.take_lease("NATS1")
        await served.commit(Commit(1, mark=Mark(0, 0, "", 0, "", 0.0)), no_probe)
    for n in range(2, 402):
        await scope.commit(Commit(1, mark=Mark(n, n, f"m{n}", 0, "", float(n))), no_probe)
    kept = [mark.n for mark in await scope.marks()]
    recent = list(range(401, 300, -1))
    assert kept[:101] == recent
    assert kept[101:] == [n for n in range(300, 199, -1) if n % 8 == 0]
    await scope.commit(Commit(1, mark=Mark(402, 402, "m", 0, "", 1e9)), no_probe)
    assert len(await scope.marks()) == len(kept) + 1
    assert len(await other.marks()) == 1
    await store.close()


async def test_a_redriven_key_brings_its_generation(tmp_path: Path) -> None:
    store = await SQLiteEventStore.open(tmp_path / "store.db", offload=inline)
    scope = store.scope(SCOPE)
    await scope.take_lease("NATS1")
    store.connection.execute("INSERT INTO generations VALUES (1, 'k1', 2), (2, 'k2', 1)")
    reading = await scope.read([("k1", b"h"), ("k2", b"h"), ("k3", b"h")], [])
    assert reading.generations == {"k1": 2}
    await store.close()


async def test_rows_of_a_wrong_type_are_refused_and_nothing_is_kept(tmp_path: Path) -> None:
    store = await SQLiteEventStore.open(tmp_path / "store.db", offload=inline)
    scope = store.scope(SCOPE)
    await scope.take_lease("NATS1")
    commit = decisions(1, 1, 2)
    commit.keys[1] = attrs.evolve(commit.keys[1], payload_hash=None)  # type: ignore[arg-type]
    with pytest.raises(StoreBroken, match=r"NOT NULL constraint failed: keys\.payload_hash"):
        await scope.commit(commit, no_probe)
    await store.close()
    again = await SQLiteEventStore.open(tmp_path / "store.db")
    assert await again.scope(SCOPE).outputs_after(0, 10) == []
    await again.close()


async def test_stale_says_what_was_expected(tmp_path: Path) -> None:
    store = await SQLiteEventStore.open(tmp_path / "store.db", offload=inline)
    scope = store.scope(SCOPE)
    await scope.take_lease("NATS1")
    await scope.commit(decisions(1, 1, 2), no_probe)
    with pytest.raises(Stale, match="output 1 is not the next one, which is 3"):
        await scope.commit(decisions(1, 1, 1), no_probe)
    again = decisions(1, 3, 1)
    again.outputs[0] = attrs.evolve(again.outputs[0], version=4)
    with pytest.raises(Stale, match="version 4 of '000000003' is not the next: 1"):
        await scope.commit(again, no_probe)
    await store.close()
