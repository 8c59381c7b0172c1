"""Several workers under one parent: restarts, drains, deaths, and scopes that change hands."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from meshforge_trio.policy import ExitCode, worst_code
from meshforge_trio.server import PrivateServer

from .cli_world import DEADLINE_S, Running, Shop, alive, eventually, shop


@pytest.fixture
def at(tmp_path: Path, nats_server: PrivateServer) -> Shop:
    return shop(tmp_path, nats_server.url)


def script(text: str) -> list[str]:
    """A command in Python."""
    return [sys.executable, "-c", f"import os, pathlib, signal, sys, time\n{text}"]


def worker(text: str) -> list[str]:
    """The command of a worker that serves nothing; its number is `sys.argv[2]`. It ends with its parent."""
    watch = "from meshforge_trio.workers import end_with_parent\nend_with_parent(int(sys.argv[4]))\n"
    return script(watch + text)


@contextmanager
def supervising(command: list[str], workers: int, drain_s: float) -> Iterator[subprocess.Popen[bytes]]:
    """A parent of such workers."""
    text = f"from meshforge_trio.workers import supervise\nsys.exit(supervise({command!r}, {workers}, {drain_s}))"
    process = subprocess.Popen(script(text), process_group=0)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def pids(parent: Running, times: int) -> dict[int, int]:
    """Process ids of the workers started last, by number."""
    return {line["worker"]: line["pid"] for line in parent.said("worker started", times)}


# --- the parent alone


@pytest.mark.parametrize(
    ("codes", "worst"),
    [
        ([], 0),
        ([0, 0], 0),
        ([0, 1], 1),
        ([1, 5], 5),
        ([5, 3], 3),
        ([3, 4, 0], 4),
        ([0, -9], 1),
        ([0, 77], 1),
    ],
)
def test_the_severest_code_wins(codes: list[int], worst: int) -> None:
    assert worst_code(codes) == worst


@pytest.mark.parametrize("code", [ExitCode.MISCONFIGURED, ExitCode.STORE_BROKEN, ExitCode.TOO_MANY_RESTARTS])
def test_what_a_restart_would_only_repeat_ends_everything(code: int, tmp_path: Path) -> None:
    tally = tmp_path / "starts"
    command = worker(
        f"with open({str(tally)!r}, 'a') as starts: starts.write(sys.argv[2])\n"
        f"while '0' not in pathlib.Path({str(tally)!r}).read_text(): time.sleep(0.01)\n"
        f"if sys.argv[2] == '1': sys.exit({code})\n"
        "time.sleep(3600)"
    )
    with supervising(command, 2, 5) as parent:
        assert parent.wait(DEADLINE_S) == code
    assert sorted(tally.read_text()) == ["0", "1"]


def test_workers_that_die_too_often_end_everything(tmp_path: Path) -> None:
    tally = tmp_path / "starts"
    command = worker(f"with open({str(tally)!r}, 'a') as starts: starts.write(sys.argv[2])\nsys.exit(7)")
    with supervising(command, 1, 5) as parent:
        assert parent.wait(DEADLINE_S) == ExitCode.TOO_MANY_RESTARTS
    assert tally.read_text() == "0" * 6


def test_a_worker_that_does_not_drain_is_killed(tmp_path: Path) -> None:
    deaf = worker(
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"(pathlib.Path({str(tmp_path)!r}) / sys.argv[2]).write_text(str(os.getpid()))\n"
        "time.sleep(3600)"
    )
    with supervising(deaf, 2, 0.1) as parent:
        marks = [tmp_path / "0", tmp_path / "1"]
        eventually(lambda: all(mark.exists() and mark.read_text() for mark in marks), "both workers are deaf")
        parent.send_signal(signal.SIGTERM)
        assert parent.wait(DEADLINE_S) == ExitCode.FAILED
        assert not any(alive(int(mark.read_text())) for mark in marks)


# --- real workers


def test_sigterm_drains_all_and_ends_with_zero(at: Shop) -> None:
    with at.served("--workers", "2") as parent:
        workers = pids(parent, 2)
        assert sorted(workers) == [0, 1]
        # Each serves what it claims first.
        assert {(line["worker"], line["scope"]) for line in parent.said("serving", 2)} == {
            (0, "default/demo/order"),
            (1, "default/demo/inventory"),
        }
        # Groups of their own: Ctrl-C in a terminal reaches the parent alone.
        assert {os.getpgid(pid) for pid in workers.values()} == set(workers.values())
        at.answers("send", "order", "slow", '{"s": 1}', "--entity", "o-1", "--key", "k-1")
        eventually((at.home / "slow-o-1").exists, "a command is in hand")
        parent.process.send_signal(signal.SIGTERM)
        assert parent.ended() == ExitCode.OK
        assert {line["worker"] for line in parent.said("drained", 2)} == {0, 1}
        assert not any(map(alive, workers.values()))
    (kept,) = at.does("events", "--all", "--json").documents
    assert kept["envelope"]["idempotency_key"] == "k-1"


def test_scopes_of_a_killed_worker_are_taken_over(at: Shop, record_property: Callable[[str, object], None]) -> None:
    with at.served("--workers", "2") as parent:
        serving = {line["scope"]: line["worker"] for line in parent.said("serving", 2)}
        at.answers("call", "order", "create", '{"items": 1}', "--entity", "o-1", "--key", "k-1")
        killed_at = datetime.now(UTC)
        os.kill(pids(parent, 2)[serving["default/demo/order"]], signal.SIGKILL)
        answer = at.answers("call", "order", "update", '{"items": 2}', "--entity", "o-1")
        assert answer["payload"] == {"items": 2, "entity_version": 2}
        # The one that was decided before is still decided once.
        again = at.answers("call", "order", "create", '{"items": 1}', "--entity", "o-1", "--key", "k-1")
        assert again["payload"]["entity_version"] == 1
        successor = next(x for x in parent.said("serving", 3) if (x["scope"], x["epoch"]) == ("default/demo/order", 2))
        took_s = (datetime.fromisoformat(successor["timestamp"]) - killed_at).total_seconds()
        record_property("takeover_s", took_s)
        record_property("taken_by_another", successor["worker"] != serving["default/demo/order"])
        # The dead one is started again, and the parent drains both.
        assert len(parent.said("worker started", 3)) == 3
        parent.process.send_signal(signal.SIGTERM)
        assert parent.ended() == ExitCode.OK


def test_workers_do_not_outlive_a_killed_parent(at: Shop) -> None:
    with at.served("--workers", "2") as parent:
        workers = pids(parent, 2)
        parent.process.kill()
        parent.ended()
        eventually(lambda: not any(map(alive, workers.values())), "the workers end")


def test_a_worker_whose_loop_is_blocked_does_not_outlive_its_parent(at: Shop) -> None:
    with at.served("--workers", "2") as parent:
        workers = pids(parent, 2)
        at.answers("send", "order", "slow", '{"s": 3600}', "--entity", "o-1")
        eventually((at.home / "slow-o-1").exists, "a handler blocks a worker")
        parent.process.kill()
        parent.ended()
        eventually(lambda: not any(map(alive, workers.values())), "the workers end")


def test_the_pipe_alone_ends_a_worker(tmp_path: Path) -> None:
    """Its parent lives, so the system has nothing to tell; what ends it works on every system."""
    reads, holds = os.pipe()
    text = "from meshforge_trio.workers import end_with_parent\n"
    text += f"end_with_parent({reads})\npathlib.Path({str(tmp_path / 'up')!r}).touch()\ntime.sleep(3600)"
    child = subprocess.Popen(script(text), pass_fds=[reads], process_group=0)
    try:
        os.close(reads)
        eventually((tmp_path / "up").exists, "it watches")
        assert child.poll() is None
        os.close(holds)
        assert child.wait(DEADLINE_S) == ExitCode.FAILED
    finally:
        child.kill()
        child.wait()


def test_the_second_interrupt_ends_all_at_once(at: Shop) -> None:
    with at.served("--workers", "2") as parent:
        workers = pids(parent, 2)
        at.answers("send", "order", "slow", '{"s": 3600}', "--entity", "o-1")
        eventually((at.home / "slow-o-1").exists, "a handler blocks a worker")

        def interrupted() -> bool:
            parent.process.send_signal(signal.SIGINT)
            return parent.process.poll() is not None

        eventually(interrupted, "its end")
        assert parent.ended() == ExitCode.INTERRUPTED
        eventually(lambda: not any(map(alive, workers.values())), "the workers end")


def test_a_command_that_kills_its_worker_is_given_up_and_the_others_are_served(at: Shop) -> None:
    env = {"MESHFORGE_ENGINE__RETRY__LIMIT": "3"}
    with at.served("--workers", "2", env=env) as parent:
        dead = at.does("call", "order", "die", "--entity", "o-1", "--json", "--timeout", "60")
        assert (dead.code, dead.document["name"]) == (ExitCode.FAILED, "dead_lettered")
        assert at.answers("call", "order", "create", "--entity", "o-1")["name"] == "created"
        ended = parent.said("a worker ended; it is started again", 2)
        assert [line["exit_code"] for line in ended] == [7] * len(ended)
        assert 2 <= len(ended) <= 3
        parent.process.send_signal(signal.SIGTERM)
        assert parent.ended() == ExitCode.OK
