"""States rebuilt elsewhere: sound agents give one hash wherever they are asked, and what an engine recorded."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import apsw
import pytest
import trio

from chaos.mutants.patch import Edit, Patch
from chaos.replayer import Replayer, ReplayerError, open_replayer
from chaos.workload import every_path
from meshforge_trio.points import no_probe
from meshforge_trio.store.port import Commit
from meshforge_trio.store.sqlite import SQLiteEventStore
from meshforge_trio.subjects import Scope

from .paper import COUNTER, Paper

APP = "chaos.agents:app"
DEMO = ("default/demo",)
#: Never the same date, and never that of the machine.
ELSEWHERE = ((101, "Pacific/Kiritimati"), (202, "Etc/GMT+12"))
AGENT = """
import datetime, os, random, sys, time
from time import time as now
from meshforge_trio.agent import Agent
counter = Agent("counter", state=list, initial=list)
print("an app may say what it likes")
{setup}
for name in ("added", "rolled"):
    @counter.event(name)
    def apply(state, payload):
        return [*state, {value}]
"""
#: What `apply` must not read, or do.
UNSOUND = {
    "clock": "int(time.time()) // 86400",
    "clock_by_name": "int(now()) // 86400",
    "clock_ns": "time.time_ns() // 86400_000_000_000",
    "calendar": "time.strftime('%Y-%j')",
    "calendar_of": "time.strftime('%Y-%j', time.gmtime())",
    "date": "time.localtime().tm_yday",
    "text": "time.asctime()[:10] + time.ctime()[:10]",
    "local_date": "datetime.datetime.now().strftime('%j')",
    "sets": "list({str(n) for n in range(20)})",
    "hash": "hash('a')",
    "chance": "random.random()",
    "process": "os.getppid()",
}
SOUND = {
    "payload": "payload",
    "sorted_sets": "sorted({str(n) for n in range(20)})",
    "a_given_time": "time.strftime('%H', time.gmtime(0)) + time.asctime(time.gmtime(0)) + str(time.gmtime(0.0))",
}


def write_app(home: Path, name: str, value: str, setup: str = "") -> str:
    (home / f"{name}.py").write_text(AGENT.format(value=value, setup=setup))
    return f"{name}:counter"


async def stored(home: Path) -> tuple[Path, Mapping[Scope, str]]:
    """A store with the end of a run, and the hashes that its engines recorded."""
    paper = Paper()
    paper.send(*every_path(COUNTER))
    evidence = paper.drain()
    path = home / "store.db"
    store = await SQLiteEventStore.open(path, ttl_s=30)
    for desk in paper.desks.values():
        rows = store.scope(desk.scope)
        lease = await rows.take_lease("server")
        assert lease is not None
        commit = Commit(lease.epoch, outputs=desk.outputs, keys=[*desk.keys.values()], heads=[*desk.heads.values()])
        commit.state_hash = desk.state_hash
        await rows.commit(commit, no_probe)
    await store.close()
    return path, {scope: value for scope, (_, value) in evidence.rows.state_hashes.items()}


def contents(home: Path) -> Mapping[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in home.iterdir() if path.is_file()}


async def test_the_same_everywhere(tmp_path: Path) -> None:
    path, recorded = await stored(tmp_path)
    before = contents(tmp_path)
    async with AsyncExitStack() as stack:
        for seed, zone in ELSEWHERE:
            replayer = await stack.enter_async_context(open_replayer(seed, zone))
            rebuilt = await replayer.rebuild(path, APP, DEMO)
            assert rebuilt == {scope: value for scope, value in recorded.items() if scope.tenant == "default"}
            assert len(rebuilt) == 2
            assert await replayer.rebuild(path, APP, ["nobody/demo"]) == {}
    assert contents(tmp_path) == before, "the store is the caller's"


async def test_what_reads_the_world_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = await stored(tmp_path)
    monkeypatch.chdir(tmp_path)
    apps = {name: write_app(tmp_path, f"{name}_app", value) for name, value in {**UNSOUND, **SOUND}.items()}
    rebuilt: dict[str, list[str]] = {name: [] for name in apps}
    async with AsyncExitStack() as stack:
        for seed, zone in ELSEWHERE:
            replayer = await stack.enter_async_context(open_replayer(seed, zone))
            for name, app in apps.items():
                values = await replayer.rebuild(*only_counter(path), app, DEMO)
                rebuilt[name].append(values[COUNTER])
    assert {name for name, (one, other) in rebuilt.items() if one != other} == set(UNSOUND)
    assert all(len(value) == 64 for values in rebuilt.values() for value in values)


def only_counter(path: Path) -> tuple[Path]:
    """The store with the one scope that these apps have an agent for."""
    reduced = path.with_name("counter.db")
    if not reduced.exists():
        source = apsw.Connection(str(path))
        source.execute("VACUUM INTO ?", (str(reduced),))
        source.close()
        target = apsw.Connection(str(reduced))
        target.execute("DELETE FROM scopes WHERE agent != 'counter' OR tenant != 'default'")
        target.close()
    return (reduced,)


async def test_what_cannot_be_rebuilt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, recorded = await stored(tmp_path)
    (reduced,) = only_counter(path)
    monkeypatch.chdir(tmp_path)
    write_app(tmp_path, "broken", "payload", setup="raise RuntimeError('no such luck')")
    write_app(tmp_path, "exits", "payload", setup="sys.exit(3)")
    write_app(tmp_path, "dies", "os._exit(7)")
    write_app(tmp_path, "leaves", "sys.exit(3)")
    (tmp_path / "text.db").write_text("no database at all, and long enough to be looked at")
    (tmp_path / "empty.db").write_bytes(b"")
    apsw.Connection(str(tmp_path / "other.db")).execute("CREATE TABLE outputs(x)")
    async with open_replayer(1, "UTC") as replayer:
        for store, app, reason in (
            (reduced, "nothing:app", "there is no module|cannot be imported"),
            (reduced, "broken:counter", "RuntimeError: no such luck"),
            (reduced, "exits:counter", "cannot be imported: SystemExit: 3"),
            (reduced, "dies:counter", "its process ended with 7 and without an answer"),
            (reduced, "leaves:counter", "SystemExit: 3"),
            (path, "chaos.agents:counter_only", "the app has no agent 'audit'"),
            (tmp_path / "text.db", APP, "NotADBError|file is not a database"),
            (tmp_path / "other.db", APP, "is no event store of this version"),
        ):
            with pytest.raises(ReplayerError, match=reason):
                await replayer.rebuild(store, app, DEMO)
        # A worker that was killed before its first commit leaves no tables, or not even a file.
        assert await replayer.rebuild(tmp_path / "empty.db", APP, DEMO) == {}
        assert await replayer.rebuild(tmp_path / "missing.db", APP, DEMO) == {}
        assert await replayer.rebuild(path, APP, ["acme/demo"]) == {
            scope: value for scope, value in recorded.items() if scope.tenant == "acme"
        }


async def test_what_is_not_as_it_was_stored_is_told_in_words(tmp_path: Path) -> None:
    path, recorded = await stored(tmp_path)
    connection = apsw.Connection(str(path))
    connection.execute("UPDATE heads SET version = version + 1 WHERE entity_id = 'b' AND scope = 1")
    connection.execute("UPDATE outputs SET chain = x'00' WHERE name = 'seen'")
    connection.close()
    async with open_replayer(1, "UTC") as replayer:
        values = await replayer.rebuild(path, APP, DEMO)
    assert values[COUNTER].startswith("default/demo/counter: StoreBroken: "), "its rows do not hang together"
    audit = Scope("default", "demo", "audit")
    assert values[audit].startswith("default/demo/audit: entity 'a' version 1, event c1_added_seen: chain differs")
    assert values.keys() == {scope for scope in recorded if scope.tenant == "default"}


async def test_an_order_that_takes_too_long_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, recorded = await stored(tmp_path)
    (reduced,) = only_counter(path)
    monkeypatch.chdir(tmp_path)
    here = tmp_path / "here"
    app = write_app(tmp_path, "endless", f"open({str(here)!r}, 'a').write(f'{{os.getpid()}}\\n') and time.sleep(3600)")
    async with open_replayer(1, "UTC") as replayer:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(replayer.rebuild, reduced, app, DEMO)
            with trio.fail_after(20):
                while not here.exists() or not here.read_text().endswith("\n"):
                    await trio.sleep(0.01)
            assert (await replayer.rebuild(path, APP, DEMO))[COUNTER] == recorded[COUNTER], "beside it"
            nursery.cancel_scope.cancel()
        pid = int(here.read_text())
        with trio.fail_after(20):
            while alive(pid):
                await trio.sleep(0.01)
        assert (await replayer.rebuild(path, APP, DEMO))[COUNTER] == recorded[COUNTER], "after it"


def alive(pid: int) -> bool:
    """Whether there is such a process, and it is more than a corpse."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


async def test_a_process_that_died_is_started_anew(tmp_path: Path) -> None:
    path, recorded = await stored(tmp_path)
    async with open_replayer(1, "UTC") as replayer:
        assert (await replayer.rebuild(path, APP, DEMO))[COUNTER] == recorded[COUNTER]
        (pid,) = pids_of(replayer)
        os.kill(pid, signal.SIGSTOP)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refused, replayer, path)
            await trio.testing.wait_all_tasks_blocked()
            os.kill(pid, signal.SIGKILL)
        assert (await replayer.rebuild(path, APP, DEMO))[COUNTER] == recorded[COUNTER]
        (second,) = pids_of(replayer)
        assert second != pid
    assert not alive(second)


async def refused(replayer: Replayer, path: Path) -> None:
    with pytest.raises(ReplayerError, match="the process has died"):
        await replayer.rebuild(path, APP, DEMO)


def pids_of(replayer: Replayer) -> list[int]:
    return [process.pid for process in replayer.processes]


async def test_a_process_that_cannot_start_says_so() -> None:
    async with open_replayer(-1, "UTC") as replayer:
        for _ in range(2):
            with pytest.raises(ReplayerError, match="the process has died"):
                await replayer.rebuild(Path("store.db"), APP, DEMO)


async def test_planted_bugs_have_processes_of_their_own(tmp_path: Path) -> None:
    path, recorded = await stored(tmp_path)
    edits = [
        Edit("chaos.agents", "    return event.total\n\n\n@counter", f"    return event.total + {n}\n\n\n@counter")
        for n in range(1, 7)
    ]
    hashes = []
    async with open_replayer(1, "UTC") as replayer:
        for n, edit in enumerate(edits):
            hashes.append((await replayer.rebuild(path, APP, DEMO, patch=Patch(f"off by {n}", [edit])))[COUNTER])
        assert (await replayer.rebuild(path, APP, DEMO))[COUNTER] == recorded[COUNTER]
        assert len(set(hashes) | {recorded[COUNTER]}) == 7
        again = await replayer.rebuild(path, APP, DEMO, patch=Patch("off by 0", [edits[0]]))
        assert again[COUNTER] == hashes[0]
        assert len(replayer.processes) <= 6, "those that nobody needs any more are ended"


async def test_a_bug_that_cannot_be_planted(tmp_path: Path) -> None:
    path, _ = await stored(tmp_path)
    async with open_replayer(1, "UTC") as replayer:
        with pytest.raises(ReplayerError, match="this is there 0 times instead of once"):
            await replayer.rebuild(path, APP, DEMO, patch=Patch("x", [Edit("chaos.agents", "nowhere", "y")]))


def started(script: str, home: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=home)


async def test_it_dies_with_its_parent_and_so_does_what_it_forked(tmp_path: Path) -> None:
    (reduced,) = only_counter((await stored(tmp_path))[0])
    here = tmp_path / "here"
    app = write_app(tmp_path, "endless", f"open({str(here)!r}, 'a').write(f'{{os.getpid()}}\\n') and time.sleep(3600)")
    script = f"""
import trio
from pathlib import Path
from chaos.replayer import open_replayer
async def main():
    async with open_replayer(1, "UTC") as replayer:
        await replayer.rebuild(Path("nothing.db"), "chaos.agents:app", [])
        print(replayer.processes[0].pid, flush=True)
        await replayer.rebuild(Path({str(reduced)!r}), {app!r}, {DEMO!r})
trio.run(main)
"""
    parent = started(script, tmp_path)
    try:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        with trio.fail_after(20):
            while not here.exists() or not here.read_text().endswith("\n"):
                await trio.sleep(0.01)
        child = int(here.read_text())
        assert alive(pid)
        assert alive(child)
    finally:
        parent.kill()
        parent.communicate()
    with trio.fail_after(20):
        while alive(pid) or alive(child):
            await trio.sleep(0.01)


def test_every_way_to_tell_the_date_is_shifted() -> None:
    """In one zone: between zones far apart the date differs by itself."""
    script = """
import time
from chaos.rebuild import shift_clock
tell = {
    "asctime": lambda: int(time.asctime()[-4:]),
    "ctime": lambda: int(time.ctime()[-4:]),
    "gmtime": lambda: time.gmtime().tm_year,
    "localtime": lambda: time.localtime().tm_year,
    "strftime": lambda: int(time.strftime("%Y")),
    "time": lambda: int(time.time() / (366 * 24 * 3600)),
    "time_ns": lambda: int(time.time_ns() / (366 * 24 * 3600 * 10**9)),
}
before = {name: read() for name, read in tell.items()}
shift_clock(days=10 * 366)
print(sorted(name for name, read in tell.items() if read() - before[name] not in (10, 11)))
"""
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert told.stdout == "[]\n"
