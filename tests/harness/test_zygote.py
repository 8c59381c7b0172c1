"""The fork server: workers are forked, watched and killed; what goes wrong with it is said, and nothing hangs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from chaos import zygote as module
from chaos.forkserver import die_with_parent
from chaos.mutants.patch import Edit, Patch
from chaos.zygote import NEVER_A_WORKER, Worker, WorldError, Zygote, open_zygote
from meshforge_trio.server import PrivateServer

DEADLINE_S = 30
#: An order whose worker cannot reach a server and ends by itself, since it cannot load its app either.
LOST: Mapping[str, Any] = {
    "url": "nats://127.0.0.1:1",
    "plan": "",
    "workspaces": ["default/demo"],
    "engine": {},
    "retry": {},
    "lease_ttl_s": 1.0,
    "log_level": "info",
    "health_port": 0,
    "environment": {},
}


def order(home: Path, number: int = 1, app: str = "chaos.agents:app") -> dict[str, Any]:
    """A worker that serves until it is told to stop: it waits for a server that is not there."""
    return {
        **LOST,
        "app": app,
        "number": number,
        "path": str(Path.cwd()),
        "store": str(home / "store.db"),
        "history": str(home / "history.jsonl"),
        "log": str(home / f"worker-{number}.log"),
    }


def worker(home: Path, number: int = 1) -> Worker:
    return Worker(number, home / f"worker-{number}.log")


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def parent_of(one: Worker) -> int:
    """The fork server."""
    return int(Path(f"/proc/{one.pid}/stat").read_text().rpartition(")")[2].split()[1])


async def gone(*pids: int) -> None:
    """Return when none of the processes runs any more."""
    while any(alive(pid) for pid in pids):
        await trio.sleep(0.01)


async def logged(one: Worker, text: str) -> None:
    while text not in one.tail(1000):
        assert not one.ended.is_set(), one.tail()
        await trio.sleep(0.01)


# -- what it is for ------------------------------------------------------------------------------------------------


async def test_a_worker_is_forked_and_reaped(tmp_path: Path) -> None:
    one = worker(tmp_path)
    with trio.fail_after(DEADLINE_S):
        async with open_zygote() as zygote:
            assert one.tail() == "(no log)"
            await zygote.spawn(one, order(tmp_path))
            assert alive(one.pid)
            assert (one.name, one.killed, one.status) == ("worker#1", False, None)
            await logged(one, "worker")
            assert os.getpgid(one.pid) == one.pid, "it leads a process group, so that what it starts is found"
            one.send_signal(signal.SIGKILL)
            await one.ended.wait()
            assert (one.status, one.killed) == (-9, True)
            one.send_signal(signal.SIGKILL)


async def test_several_at_a_time_each_with_its_own_end(tmp_path: Path) -> None:
    workers = [worker(tmp_path, number) for number in range(1, 6)]
    with trio.fail_after(DEADLINE_S):
        async with open_zygote() as zygote, trio.open_nursery() as nursery:
            for one in workers:
                nursery.start_soon(zygote.spawn, one, order(tmp_path, one.number))
            for one in workers:
                await one.started.wait()
                await logged(one, f"number={one.number}")
            for one in workers:
                one.send_signal(signal.SIGTERM if one.number % 2 else signal.SIGKILL)
            for one in workers:
                await one.ended.wait()
            assert len({one.pid for one in workers}) == 5
            assert [one.killed for one in workers] == [False, True, False, True, False]


async def test_a_worker_stopped_by_a_signal_is_seen_to_be(tmp_path: Path) -> None:
    one = worker(tmp_path)
    with trio.fail_after(DEADLINE_S):
        async with open_zygote() as zygote:
            await zygote.spawn(one, order(tmp_path))
            assert not one.frozen()
            one.send_signal(signal.SIGSTOP)
            while not one.frozen():
                await trio.sleep(0.01)
            one.send_signal(signal.SIGKILL)
            await one.ended.wait()
            assert not one.frozen()


async def test_at_the_end_nothing_is_left(tmp_path: Path) -> None:
    """Neither a worker nor the fork server, nor one that was stopped."""
    one, other = worker(tmp_path, 1), worker(tmp_path, 2)
    with trio.fail_after(DEADLINE_S):
        async with open_zygote() as zygote:
            await zygote.spawn(one, order(tmp_path, 1))
            await zygote.spawn(other, order(tmp_path, 2))
            other.send_signal(signal.SIGSTOP)
            parent = parent_of(one)
            assert alive(parent)
        await gone(one.pid, other.pid, parent)


async def test_a_planted_bug_is_in_its_workers_and_nowhere_else(nats_server: PrivateServer, tmp_path: Path) -> None:
    patch = Patch("says so", [Edit("meshforge_trio.launch", 'log.info("drained")', 'log.info("drained, they say")')])
    one, other = worker(tmp_path, 1), worker(tmp_path, 2)
    with trio.fail_after(DEADLINE_S):
        async with open_zygote(patch) as patched, open_zygote() as plain:
            for zygote, each in ((patched, one), (plain, other)):
                await zygote.spawn(each, {**order(tmp_path, each.number), "url": nats_server.url})
                await logged(each, "serving")
                each.send_signal(signal.SIGTERM)
                await each.ended.wait()
    assert "drained, they say" in one.tail()
    assert "drained, they say" not in other.tail()


# -- the process itself --------------------------------------------------------------------------------------------


def by_hand() -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "chaos.forkserver"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def test_it_ends_with_its_input_and_the_workers_with_it(tmp_path: Path) -> None:
    process = by_hand()
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps({"spawn": {**order(tmp_path), "ticket": 7}}).encode() + b"\n")
    process.stdin.flush()
    ticket, pid = json.loads(process.stdout.readline())["spawned"]
    assert ticket == 7
    assert alive(pid)
    other = json.dumps({"spawn": {**order(tmp_path, 2, "nowhere:app"), "ticket": 8}}).encode() + b"\n"
    # An order that comes in pieces.
    process.stdin.write(other[:20])
    process.stdin.flush()
    process.stdin.write(other[20:])
    process.stdin.flush()
    told = [json.loads(process.stdout.readline()) for _ in range(2)]
    second = told[0]["spawned"][1]
    assert told == [{"spawned": [8, second]}, {"ended": [second, 3]}]
    process.stdin.close()
    assert process.wait(DEADLINE_S) == 0
    deadline = time.monotonic() + DEADLINE_S
    while alive(pid):
        assert time.monotonic() < deadline, "the worker outlived the fork server"
        time.sleep(0.01)
    process.stdout.close()


async def test_it_dies_with_its_parent(tmp_path: Path) -> None:
    """Whoever is killed cannot tidy up: the kernel does. Its input stays open here, so that is not what ends it."""
    script = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-m', 'chaos.forkserver'], stdin=0, stdout=1)\n"
        "print(child.pid, file=sys.stderr, flush=True)\n"
        "time.sleep(600)\n"
    )
    process = await trio.lowlevel.open_process(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    with trio.fail_after(DEADLINE_S):
        child = int(await process.stderr.receive_some())
        # When it serves it has asked for it.
        await process.stdin.send_all(json.dumps({"spawn": {**order(tmp_path), "ticket": 1}}).encode() + b"\n")
        _, worker_pid = json.loads(await process.stdout.receive_some())["spawned"]
        process.kill()
        await process.wait()
        await gone(child, worker_pid)
    for pipe in (process.stdin, process.stdout, process.stderr):
        await pipe.aclose()


@pytest.mark.parametrize(("there", "status"), [(True, 0), (False, -signal.SIGKILL)])
def test_a_worker_whose_parent_is_gone_already_ends_at_once(there: bool, status: int) -> None:
    """The fork server may die between forking it and its asking to die with it."""
    pid = os.fork()
    if pid == 0:
        # Nobody is his own parent.
        die_with_parent(os.getppid() if there else os.getpid())
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == status


# -- what goes wrong -----------------------------------------------------------------------------------------------


async def test_an_app_that_cannot_be_imported_ends_its_worker_with_the_reason(tmp_path: Path) -> None:
    one = worker(tmp_path)
    with trio.fail_after(DEADLINE_S):
        async with open_zygote() as zygote:
            await zygote.spawn(one, order(tmp_path, app="nowhere.at_all:app"))
            await one.ended.wait()
    assert one.status == 3
    assert "the app cannot be loaded" in one.tail()
    assert "nowhere" in one.tail()


@pytest.mark.parametrize("broken", [{"retry": {"nonsense": 1}}, {"plan": "nonsense"}, {"path": "/nowhere/at/all"}])
async def test_an_order_that_makes_no_sense_ends_its_worker(tmp_path: Path, broken: Mapping[str, Any]) -> None:
    """With exit code 70 and a trace in its log; the fork server forks the next one."""
    one, other = worker(tmp_path, 1), worker(tmp_path, 2)
    with trio.fail_after(DEADLINE_S):
        async with open_zygote() as zygote:
            await zygote.spawn(one, {**order(tmp_path), **broken})
            await one.ended.wait()
            await zygote.spawn(other, order(tmp_path, 2))
            assert alive(other.pid)
    assert one.status == NEVER_A_WORKER
    assert "Error" in one.tail()


async def test_a_fork_server_that_was_killed_is_no_hang(tmp_path: Path) -> None:
    one, other, last = (worker(tmp_path, number) for number in (1, 2, 3))
    with trio.fail_after(DEADLINE_S):
        async with open_zygote() as zygote:
            await zygote.spawn(one, order(tmp_path))
            os.kill(parent_of(one), signal.SIGKILL)
            with pytest.raises(WorldError, match="the fork server has died"):
                await zygote.spawn(other, order(tmp_path, 2))
            with pytest.raises(WorldError, match="the fork server has died"):
                await zygote.spawn(last, order(tmp_path, 3))
            await one.ended.wait()
            assert zygote.gone
            assert one.status is None, "nobody knows"
        await gone(one.pid)


@asynccontextmanager
async def around(process: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Zygote]:
    """What talks to a fork server, talking to something else."""
    real = subprocess.Popen

    def fake(command: Sequence[str], **more: Any) -> subprocess.Popen[bytes]:
        return real([sys.executable, "-c", *process], **more)

    monkeypatch.setattr("chaos.zygote.subprocess.Popen", fake)
    async with open_zygote() as zygote:
        yield zygote


async def test_a_fork_server_that_cannot_start_is_no_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with trio.fail_after(DEADLINE_S):
        async with around(["raise SystemExit(1)"], monkeypatch) as zygote:
            with pytest.raises(WorldError, match="the fork server has died"):
                await zygote.spawn(worker(tmp_path), order(tmp_path))


async def test_a_fork_server_that_says_nothing_is_no_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FORK_S", 0.05)
    with trio.fail_after(DEADLINE_S):
        async with around(["import time; time.sleep(600)"], monkeypatch) as zygote:
            with pytest.raises(WorldError, match=r"worker#1: not forked within 0\.05 s"):
                await zygote.spawn(worker(tmp_path), order(tmp_path))


async def test_a_patch_that_does_not_fit_is_no_hang(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    patch = Patch("of another day", [Edit("meshforge_trio.protocol", "this is not in there", "")])
    with trio.fail_after(DEADLINE_S):
        async with open_zygote(patch) as zygote:
            with pytest.raises(WorldError, match="the fork server has died"):
                await zygote.spawn(worker(tmp_path), order(tmp_path))
    assert "of another day" in capfd.readouterr().err


async def test_an_end_that_is_told_before_the_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker may die before the fork server has told that it was forked."""
    script = (
        "import json, sys\n"
        "ticket = json.loads(sys.stdin.readline())['spawn']['ticket']\n"
        "print(json.dumps({'ended': [99999999, -9]}), flush=True)\n"
        "print(json.dumps({'spawned': [ticket, 99999999]}), flush=True)\n"
        "sys.stdin.read()\n"
    )
    one = worker(tmp_path)
    with trio.fail_after(DEADLINE_S):
        async with around([script], monkeypatch) as zygote:
            await zygote.spawn(one, order(tmp_path))
            await one.ended.wait()
    assert one.killed
