"""What befalls the store's file under a worker: another program's lock is waited out, the rest ends the process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from shutil import move
from typing import Any, Final

import apsw
import pytest

from chaos.zygote import Zygote
from meshforge_trio.policy import ExitCode
from meshforge_trio.server import PrivateServer

from .cli_world import DEADLINE_S, Shop, shop
from .rules_world import ALONE, adds, logged, open_world

# -- in somebody else's hands for a while ------------------------------------------------------------------------


async def test_a_locked_store_is_waited_for(zygote: Zygote, nats_server: PrivateServer, tmp_path: Path) -> None:
    async with open_world(tmp_path, nats_server, zygote, ALONE) as stage:
        world = stage.world
        assert await world.drain(await stage.served()) == 0
        other = apsw.Connection(str(world.store))
        other.execute("BEGIN EXCLUSIVE")
        successor = await world.spawn()
        await logged(successor, "the store cannot be opened yet")
        other.close()
        await stage.decided(adds(1, 3))
        assert await world.drain(successor) == 0
        await stage.end()


async def test_a_store_that_is_locked_under_a_worker_is_waited_for(
    zygote: Zygote, nats_server: PrivateServer, tmp_path: Path
) -> None:
    """Longer than SQLite waits for it, and than the lease lasts: the worker says so and goes on by itself."""
    async with open_world(tmp_path, nats_server, zygote, ALONE) as stage:
        world = stage.world
        worker = await stage.served()
        await stage.decided(adds(1, 3))
        other = apsw.Connection(str(world.store))
        # The worker may be writing a mark just now.
        other.set_busy_timeout(10_000)
        other.execute("BEGIN IMMEDIATE")
        meanwhile = adds(4, 9)
        stage.sent += meanwhile
        await stage.observer.send(meanwhile)
        await logged(worker, "the lease could not be renewed: the store is full or locked")
        await logged(worker, "is locked by another process")
        assert other.execute("SELECT count(*) FROM keys").fetchall() == [(3,)]
        other.close()
        await stage.observer.drained()
        assert len(world.workers) == 1
        assert await world.drain(worker) == 0
        await stage.end()


# -- taken away under a worker -----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", "-wal"])
async def test_a_file_that_was_moved_away_ends_the_worker_and_nothing_is_lost_once_it_is_back(
    zygote: Zygote, nats_server: PrivateServer, tmp_path: Path, suffix: str
) -> None:
    """Exit code 4. The commands in flight are decided once, by whoever has the file again."""
    async with open_world(tmp_path, nats_server, zygote, ALONE) as stage:
        world = stage.world
        worker = await stage.served()
        await stage.decided(adds(1, 3))
        file = Path(f"{world.store}{suffix}")
        move(file, f"{file}.kept")
        meanwhile = adds(4, 9)
        stage.sent += meanwhile
        await stage.observer.send(meanwhile)
        assert await world.ended(worker) == ExitCode.STORE_BROKEN, worker.tail()
        assert f"{file.name} was deleted or moved under this process" in worker.tail()
        move(f"{file}.kept", file)
        successor = await stage.served()
        await stage.observer.drained()
        assert await world.drain(successor) == 0
        await stage.end()


# -- on a failing disk -------------------------------------------------------------------------------------------

# A worker whose disk fails from a point on. What it prints at its end: the exit code, how many operations failed, and
# whether the database was written to after the first.
WORKER: Final = """
import json, os, sys
from chaos.faults.disk_errors import FailingDisk
from meshforge_trio.config import load_settings
from meshforge_trio.launch import load_app, serve
from meshforge_trio.store import sqlite
from meshforge_trio.telemetry import set_up_logging

what, file, place, pages = sys.argv[1:]
set_up_logging("info", as_json=True)
settings = load_settings(None, flags={})
sqlite._CHECKPOINT_PAGES = int(pages)
disk = FailingDisk(settings.store)
before = []


def probe(point):
    if point.value == place and not before:
        disk.fail(what, file)
        before.append(os.stat(settings.store).st_mtime_ns)


code = serve(load_app("shop:app"), settings, probe=probe)
written = os.stat(settings.store).st_mtime_ns != before[0]
print(json.dumps({"code": code, "failures": disk.failures, "written": written}))
sys.exit(code)
"""


@pytest.fixture
def at(tmp_path: Path, nats_server: PrivateServer) -> Shop:
    made = shop(tmp_path, nats_server.url)
    (tmp_path / "failing.py").write_text(WORKER)
    return made


def served_on_a_failing_disk(at: Shop, *args: str) -> tuple[int, Any, str]:
    """Its exit code, what it printed, and its log."""
    done = subprocess.run(
        [sys.executable, "failing.py", *args],
        cwd=at.home,
        env=at.environment(),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout), done.stderr


# At which point what of which file fails, and with how many pages in the log a checkpoint follows.
FAILURES: Final[Sequence[tuple[str, str, str, str]]] = [
    ("read", "wal", "received", "4000"),
    ("write", "wal", "before_store", "4000"),
    ("sync", "wal", "in_store", "4000"),
    ("read", "wal", "in_store", "1"),
    ("write", "db", "in_store", "1"),
    ("sync", "db", "in_store", "1"),
]


@pytest.mark.parametrize("failure", FAILURES, ids=" ".join)
def test_an_io_error_ends_the_process_at_once_and_its_successor_goes_on(
    at: Shop, failure: tuple[str, str, str, str]
) -> None:
    """Exit code 4; the operation is never tried again, and nothing is written over what the disk may have kept."""
    with at.served() as worker:
        at.answers("call", "order", "create", '{"items": 0}', "--entity", "o-1", "--key", "k-0")
        # Its end empties the log, so what is read next is read from both files.
        worker.process.send_signal(signal.SIGTERM)
        assert worker.ended() == ExitCode.OK
    for n in (1, 2):
        at.answers("send", "order", "update", f'{{"items": {n}}}', "--entity", "o-1", "--key", f"k-{n}")
    code, told, log = served_on_a_failing_disk(at, *failure)
    # A checkpoint has written before it syncs.
    written = failure[:2] == ("sync", "db")
    assert told == {"code": ExitCode.STORE_BROKEN, "failures": 1, "written": written}, log
    assert code == ExitCode.STORE_BROKEN
    assert "the runtime ended" in log
    with at.served() as worker:
        for n in (1, 2):
            again = at.answers("call", "order", "update", f'{{"items": {n}}}', "--entity", "o-1", "--key", f"k-{n}")
            assert again["payload"] == {"items": n, "entity_version": n + 1}
        worker.process.send_signal(signal.SIGTERM)
        assert worker.ended() == ExitCode.OK
    events = at.does("events", "--agent", "order", "--json").documents
    assert [event["envelope"]["idempotency_key"] for event in events] == ["k-0", "k-1", "k-2"]
    assert at.answers("verify")["whole"]
