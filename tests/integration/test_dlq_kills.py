"""Redriving while something dies on the way: each dead letter has its one effect all the same."""

from __future__ import annotations

import signal
from pathlib import Path

import orjson
import pytest

from meshforge_trio.policy import ExitCode
from meshforge_trio.server import PrivateServer

from .cli_world import Shop, eventually
from .dlq_world import dead_shop, events, listed, mend, outcomes, redrive, send, stop, total_of, waits


@pytest.fixture
def at(tmp_path: Path, nats_server: PrivateServer) -> Shop:
    return dead_shop(tmp_path, nats_server.url)


def test_killed_half_way_and_run_again(at: Shop) -> None:
    keys = [f"k-{n:02}" for n in range(20)]
    with at.served() as worker:
        send(at, *keys)
        waits(at, 20)
        stop(worker)
    mend(at)
    with at.served():
        command = ("dlq", "redrive", "--all", "--reason", "first try", "--rate", "20/s", "--json")
        with at.starts(*command) as running:
            assert running.process.stdout is not None
            for _ in range(5):
                assert orjson.loads(running.process.stdout.readline())["outcome"] == "done"
            running.process.kill()
            assert running.ended() == -signal.SIGKILL
        left = [d["key"] for d in listed(at)]
        assert 0 < len(left) <= 15
        again = redrive(at, "--all", reason="second try")
        assert again.code == ExitCode.OK, again
        assert set(outcomes(again)) == set(left)
        assert total_of(at) == 40
        assert sorted(e["payload"]["key"] for e in events(at, "redriven")) == keys


def test_interrupted_it_says_how_to_go_on(at: Shop) -> None:
    with at.served():
        send(at, "k-1", "k-2", action="explode")
        waits(at, 2)
        with at.starts("dlq", "redrive", "--all", "--reason", "x", "--rate", "1/h", "--json") as running:
            assert running.process.stdout is not None
            assert running.process.stdout.readline()
            running.process.send_signal(signal.SIGINT)
            assert running.ended() == ExitCode.INTERRUPTED
            assert "1 not asked for: run this again to go on" in running.log.read_text()


def test_the_worker_is_killed_on_the_way(at: Shop) -> None:
    keys = [f"k-{n:02}" for n in range(12)]
    with at.served() as worker:
        send(at, *keys)
        waits(at, 12)
        stop(worker)
    mend(at)
    command = ("dlq", "redrive", "--all", "--reason", "mended", "--rate", "10/s", "--timeout", "60", "--json")
    with at.served() as first, at.starts(*command) as running:
        assert running.process.stdout is not None
        for _ in range(3):
            running.process.stdout.readline()
        first.process.kill()
        assert first.ended() == -signal.SIGKILL
        with at.served():
            assert running.ended() == ExitCode.OK
            assert total_of(at) == 24
    assert sorted(e["payload"]["key"] for e in events(at, "redriven")) == keys


def test_nobody_serves(at: Shop) -> None:
    with at.served() as worker:
        send(at, "k-1", "k-2")
        waits(at, 2)
        stop(worker)
    mend(at)
    sent = redrive(at, "--all", "--timeout", "0.5")
    assert (sent.code, outcomes(sent)) == (ExitCode.OUTCOME_UNKNOWN, {"k-1": "unknown", "k-2": "unknown"})
    assert "no answer within 0.5 s" in sent.documents[0]["text"]
    assert "the stream has it" in sent.documents[1]["text"], "the second one is not waited for"
    again = redrive(at, "--all", "--timeout", "0.5", reason="again")
    assert again.code == ExitCode.OUTCOME_UNKNOWN
    with at.served():
        eventually(lambda: not listed(at), "they take effect")
        assert total_of(at) == 4
        assert len(events(at, "redriven")) == 2
        late = redrive(at, "k-1", "k-2")
        assert (late.code, set(outcomes(late).values())) == (ExitCode.OK, {"already"})


def test_two_at_once(at: Shop) -> None:
    keys = [f"k-{n}" for n in range(8)]
    with at.served() as worker:
        send(at, *keys)
        waits(at, 8)
        stop(worker)
    mend(at)
    with at.served():
        command = ("dlq", "redrive", "--all", "--rate", "20/s", "--json", "--reason")
        with at.starts(*command, "one") as one, at.starts(*command, "other") as other:
            assert (one.ended(), other.ended()) == (ExitCode.OK, ExitCode.OK)
        assert total_of(at) == 16
        assert sorted(e["payload"]["key"] for e in events(at, "redriven")) == keys
