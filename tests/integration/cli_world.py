"""What tests of the command line stand on: an app on disk, commands as processes, workers that never outlive a test."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import attrs

T = TypeVar("T")

DEADLINE_S: Final = 60.0
_POLL_S: Final = 0.02

APP: Final = """
import os, pathlib, time
from meshforge_trio.crud import crud_agent
from meshforge_trio.runtime import App

order, inventory = crud_agent("order"), crud_agent("inventory")


@order.command("slow")
def slow(state, payload: dict, ctx):
    pathlib.Path(f"slow-{ctx.entity_id}").touch()
    time.sleep(payload["s"])
    return ()


@order.command("die")
def die(state, payload: dict, ctx):
    os._exit(7)


app = App([order, inventory])
"""


def eventually(found: Callable[[], T | None], what: str) -> T:
    """What `found` returns once it is true."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        value = found()
        if value:
            return value
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(_POLL_S)


def alive(pid: int) -> bool:
    """Whether a process runs; one that is dead and not yet reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def free_ports() -> int:
    """The first of two ports that nobody has."""
    while True:
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            port: int = one.getsockname()[1]
            try:
                two.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port


@attrs.frozen
class Result:
    """What a command came to."""

    code: int
    out: str
    err: str

    @property
    def documents(self) -> list[Any]:
        """The JSON lines of stdout."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def document(self) -> Any:
        """The one JSON line of stdout."""
        (document,) = self.documents
        return document


@attrs.define(eq=False)
class Running:
    """A command that runs, with its log."""

    process: subprocess.Popen[bytes]
    log: Path

    def lines(self) -> list[dict[str, Any]]:
        """The log lines so far. What is no JSON is a traceback or the like."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def said(self, event: str, times: int = 1) -> list[dict[str, Any]]:
        """Wait for so many log lines of `event`, and return all there are."""
        return eventually(
            lambda: found if len(found := [x for x in self.lines() if x["event"] == event]) >= times else None,
            f"{times} x {event!r} in {self.log.read_text()}",
        )

    def ended(self) -> int:
        """Wait for its end; the exit code."""
        return self.process.wait(DEADLINE_S)


@attrs.frozen
class Shop:
    """A directory with an app, where commands run."""

    home: Path
    url: str

    @property
    def store(self) -> Path:
        """The event store."""
        return self.home / "store" / "shop.db"

    def environment(self, more: dict[str, str] | None = None) -> dict[str, str]:
        """Of every command: settings from the environment, none of the caller's."""
        own = {name: value for name, value in os.environ.items() if not name.startswith("MESHFORGE_")}
        return own | {"MESHFORGE_URL": self.url, "MESHFORGE_STORE": str(self.store)} | (more or {})

    def command(self, *args: str) -> list[str]:
        """The command line of `meshforge`."""
        return [sys.executable, "-m", "meshforge_trio", *args]

    def does(self, *args: str, stdin: str = "", env: dict[str, str] | None = None) -> Result:
        """Run a command to its end."""
        done = subprocess.run(
            self.command(*args),
            cwd=self.home,
            env=self.environment(env),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def answers(self, *args: str) -> Any:
        """The one document that a command which goes well prints."""
        result = self.does(*args, "--json")
        assert result.code == 0, result
        return result.document

    @contextmanager
    def starts(self, *args: str, env: dict[str, str] | None = None) -> Iterator[Running]:
        """Run a command beside the test; killed with its whole group at the end."""
        log = self.home / f"log-{time.monotonic_ns()}"
        with log.open("wb") as written:
            process = subprocess.Popen(
                self.command(*args),
                cwd=self.home,
                env=self.environment(env),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=written,
                process_group=0,
            )
        running = Running(process, log)
        try:
            yield running
        finally:
            pids = [line["pid"] for line in running.lines() if line["event"] == "worker started"]
            for pid in [process.pid, *pids]:
                try:
                    os.killpg(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue  # it is gone, as it should be
            if process.stdout is not None:
                process.stdout.close()
            process.wait(DEADLINE_S)

    @contextmanager
    def served(self, *args: str, env: dict[str, str] | None = None) -> Iterator[Running]:
        """`meshforge run` with both agents of the app being served."""
        with self.starts("run", "shop:app", "--json", *args, env=env) as running:
            running.said("serving", 2)
            yield running


def shop(home: Path, url: str) -> Shop:
    """Write the app."""
    (home / "shop.py").write_text(APP)
    return Shop(home, url)
