"""The process world: workers that serve, stop and die, and nothing of them left when it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from chaos import world as module
from chaos.history import VERSION, History, Record, read_history
from chaos.observer import open_observer
from chaos.plan import parse_plan
from chaos.workload import every_path
from chaos.world import ProcessWorld, Tail, Worker, WorldError
from chaos.zygote import Zygote, open_zygote
from meshforge_trio.server import PrivateServer

DEADLINE_S = 60
APP = "chaos.agents:counter_only"
#: An agent whose import leaves a child behind, in the worker's process group: `%s` is where it writes its pid.
LEAKING = """
import os
import time

if os.path.exists({marker!r}) and os.fork() == 0:
    open({pid!r}, "w").write(str(os.getpid()))
    time.sleep(600)
    os._exit(0)

from chaos.agents import counter_only as app
"""
#: A process inside a write transaction.
WRITING = """
import sys, time
import apsw
connection = apsw.Connection(sys.argv[1])
list(connection.execute("PRAGMA journal_mode=WAL"))
connection.execute("BEGIN IMMEDIATE")
print("begun", flush=True)
time.sleep(600)
"""


@asynccontextmanager
async def open_world(
    home: Path, server: PrivateServer, zygote: Zygote, plan: str = "", app: str = APP, **more: Any
) -> AsyncIterator[ProcessWorld]:
    history = History.open(home / "history.jsonl", "harness")
    history.write("header", version=VERSION, scenario="test", plan=plan, app=app)
    async with ProcessWorld(
        app, url=server.url, zygote=zygote, home=home, scopes=1, plan=parse_plan(plan), **more
    ) as world:
        yield world
    history.close()


def of_kind(home: Path, *kinds: str) -> Sequence[Record]:
    return [record for record in read_history(home / "history.jsonl") if record.kind in kinds]


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def parent_of(worker: Worker) -> int:
    """The fork server."""
    return int(Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()[1])


async def stopped(world: ProcessWorld) -> None:
    """Return when a rule has fired."""
    while not world.fired():
        await trio.sleep(0.01)


# -- the course of things ------------------------------------------------------------------------------------------


async def test_a_worker_serves_and_drains(zygote: Zygote, nats_server: PrivateServer, tmp_path: Path) -> None:
    with trio.fail_after(DEADLINE_S):
        async with open_world(tmp_path, nats_server, zygote) as world, open_observer(nats_server.url) as observer:
            worker = await world.spawn()
            await world.serving(worker)
            await observer.send(every_path()[:8])
            await observer.drained()
            assert await world.drain(worker) == 0
            assert await world.ended(worker) == 0
            assert world.fired() == []
            assert "-- worker#1: 0" in world.logs()
            assert "drained" in world.logs()
    spawned, ended = of_kind(tmp_path, "spawn", "exit")
    assert (spawned.actor, spawned["pid"]) == ("worker#1", worker.pid)
    assert (ended.actor, ended["status"]) == ("worker#1", 0), "once, however often it is asked for"
    points = [record["point"] for record in of_kind(tmp_path, "point")]
    turn = ["received", "before_store", "in_store", "after_store", "before_publish", "in_publish"]
    first = points.index("received")
    assert [point for point in points[first:] if point in turn][:6] == turn
    calls = of_kind(tmp_path, "call", "decided")
    assert [record.kind for record in calls[:2]] == ["call", "decided"]
    assert calls[0]["key"] == calls[1]["key"] == "k1"


async def test_a_rule_kills_and_is_written_down_before(
    zygote: Zygote, nats_server: PrivateServer, tmp_path: Path
) -> None:
    plan = "worker#1:after_recovery@1=kill; worker#2:before_mark@1=kill"
    with trio.fail_after(DEADLINE_S):
        async with open_world(tmp_path, nats_server, zygote, plan) as world:
            worker = await world.spawn()
            assert await world.ended(worker) == -9
            await world.serving(worker)
            assert world.fired() == ["worker#1:after_recovery@1=kill"]
    *_, fault, ended = of_kind(tmp_path, "fault", "exit")
    assert (fault.actor, ended.actor, ended["status"]) == ("worker#1", "worker#1", -9)


async def test_a_worker_stopped_while_it_starts_is_not_waited_for(
    zygote: Zygote, nats_server: PrivateServer, tmp_path: Path
) -> None:
    with trio.fail_after(DEADLINE_S):
        async with open_world(tmp_path, nats_server, zygote, "worker#1:after_lease@1=stop") as world:
            worker = await world.spawn()
            await world.serving(worker)
            assert worker.frozen()
            await world.frozen(worker)


async def test_at_the_end_everything_is_dead(zygote: Zygote, nats_server: PrivateServer, tmp_path: Path) -> None:
    """Also one that was stopped; and each end is in the history."""
    with trio.fail_after(DEADLINE_S):
        async with open_world(tmp_path, nats_server, zygote) as world:
            workers = [await world.spawn(), await world.spawn()]
            workers[1].send_signal(signal.SIGSTOP)
            await world.frozen(workers[1])
    assert [worker.status for worker in workers] == [-9, -9]
    assert {record.actor for record in of_kind(tmp_path, "exit")} == {"worker#1", "worker#2"}


async def test_it_ends_everything_when_its_caller_fails_too(
    zygote: Zygote, nats_server: PrivateServer, tmp_path: Path
) -> None:
    workers = []

    async def fail() -> None:
        async with open_world(tmp_path, nats_server, zygote) as world:
            workers.append(await world.spawn())
            raise KeyError("of the caller")

    with trio.fail_after(DEADLINE_S), pytest.raises(KeyError, match="of the caller"):
        await fail()
    assert workers[0].killed


# -- a stop outside a transaction ----------------------------------------------------------------------------------


async def test_a_worker_that_holds_the_lock_is_let_go_until_it_does_not(
    zygote: Zygote, nats_server: PrivateServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that was stopped in a transaction would keep everybody else out."""
    with trio.fail_after(DEADLINE_S):
        async with open_world(tmp_path, nats_server, zygote) as world:
            worker = await world.spawn()
            asked: list[bool] = []

            def writing(one: Worker) -> bool:
                asked.append(one.frozen())
                return len(asked) < 3

            monkeypatch.setattr(world, "_writing", writing)
            worker.send_signal(signal.SIGSTOP)
            await world.frozen(worker)
            assert worker.frozen()
    assert asked == [True, True, True]


async def test_the_holder_of_the_lock_is_known(zygote: Zygote, nats_server: PrivateServer, tmp_path: Path) -> None:
    with trio.fail_after(DEADLINE_S):
        async with open_world(tmp_path, nats_server, zygote) as world:
            me = Worker(9, tmp_path / "nothing", os.getpid())
            assert not world._writing(me), "there is no database yet"
            worker = await world.spawn()
            await world.serving(worker)
            assert await world.drain(worker) == 0
            writer = [sys.executable, "-c", WRITING, str(world.store)]
            other = await trio.lowlevel.open_process(writer, stdout=subprocess.PIPE)
            assert other.stdout is not None
            await other.stdout.receive_some()
            assert world._writing(Worker(9, tmp_path / "nothing", other.pid))
            assert not world._writing(me), "somebody else holds it"
            other.kill()
            await other.wait()
            assert not world._writing(Worker(9, tmp_path / "nothing", other.pid))


# -- leaks ---------------------------------------------------------------------------------------------------------


async def test_a_child_a_worker_left_behind_is_killed(
    zygote: Zygote, nats_server: PrivateServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker itself is long dead: its process group tells."""
    app = tmp_path / "leaking.py"
    app.write_text(LEAKING.format(marker=str(tmp_path), pid=str(tmp_path / "child.pid")))
    monkeypatch.chdir(tmp_path)
    with trio.fail_after(DEADLINE_S):
        async with open_world(tmp_path, nats_server, zygote, app="leaking:app") as world:
            worker = await world.spawn()
            await world.serving(worker)
            assert await world.drain(worker) == 0
            child = int((tmp_path / "child.pid").read_text())
            assert alive(child)
            assert os.getpgid(child) == worker.pid
        while alive(child):
            await trio.sleep(0.01)


@pytest.mark.parametrize("outcome", [PermissionError("not ours"), None])
async def test_a_child_that_cannot_be_killed_is_an_error(
    zygote: Zygote,
    nats_server: PrivateServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    outcome: OSError | None,
) -> None:
    """It may belong to somebody else, or just stay."""

    def killpg(group: int, number: int) -> None:
        if outcome is not None:
            raise outcome

    async def leave() -> None:
        async with open_world(tmp_path, nats_server, zygote) as world:
            worker = await world.spawn()
            worker.send_signal(signal.SIGKILL)
            await world.ended(worker)
            monkeypatch.setattr(module, "_END_S", 0.02)
            monkeypatch.setattr("chaos.world.os.killpg", killpg)

    with trio.fail_after(DEADLINE_S), pytest.raises(WorldError, match=r"of worker#1 are still there 0\.02 s after"):
        await leave()


# -- what goes wrong -----------------------------------------------------------------------------------------------


async def test_a_worker_that_does_not_drain_is_an_error(
    zygote: Zygote, nats_server: PrivateServer, tmp_path: Path
) -> None:
    with trio.fail_after(DEADLINE_S):
        async with open_world(tmp_path, nats_server, zygote, "worker#1:after_recovery@1=stop") as world:
            worker = await world.spawn()
            await stopped(world)
            await world.frozen(worker)
            with pytest.raises(WorldError, match=r"worker#1 did not end within 0\.05 s of SIGTERM"):
                await world.drain(worker, 0.05)


async def test_nobody_serves_an_app_that_is_not_there(
    zygote: Zygote, nats_server: PrivateServer, tmp_path: Path
) -> None:
    with trio.fail_after(DEADLINE_S):
        async with open_world(tmp_path, nats_server, zygote, app="nowhere:app") as world:
            worker = await world.spawn()
            await world.serving(worker)
            assert await world.ended(worker) == 3
            assert "nowhere" in worker.tail()


async def test_a_fork_server_that_dies_takes_its_workers_along(
    aio_loop: object, nats_server: PrivateServer, tmp_path: Path
) -> None:
    """Nobody can say how they ended, and no end is written down."""
    with trio.fail_after(DEADLINE_S):
        async with open_zygote() as zygote, open_world(tmp_path, nats_server, zygote) as world:
            worker = await world.spawn()
            os.kill(parent_of(worker), signal.SIGKILL)
            with pytest.raises(WorldError, match="worker#1: the fork server has died, so nobody knows how it ended"):
                await world.ended(worker)
            with pytest.raises(WorldError, match="the fork server has died"):
                await world.spawn()
    assert of_kind(tmp_path, "exit") == []


# -- the tail of a history -----------------------------------------------------------------------------------------


def test_a_line_is_taken_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    tail = Tail(path)
    tail.look()
    with path.open("ab", buffering=0) as file:
        file.write(b'{"t":1,"actor":"worker#1","kind":"point","point":"received","nth":1}\n{"t":2,"actor":"wor')
        tail.look()
        assert (tail.points, tail.faults) == ({("worker#1", "received"): 1}, [])
        file.write(b'ker#1","kind":"fault","rule":"r"}\n{"t":3,"actor":"nats","kind":"up"}\n')
        tail.look()
        tail.look()
    assert tail.faults == [("worker#1", "r")]
    assert tail.records == {"worker#1": 2, "nats": 1}
