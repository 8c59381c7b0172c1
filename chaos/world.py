"""The process world: a nats-server, workers that really die, and what they leave behind.

Everything started here ends here: servers and the zygote are told to die with this process, workers with the zygote,
and `close` kills what is left of their process groups.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import attrs
import trio

from chaos.plan import Plan
from meshforge_trio.launch import load_app
from meshforge_trio.server import PrivateServer

__all__ = ["ProcessWorld", "Worker", "WorldError", "Zygote", "open_zygote"]

#: Settings that make faults show in a fraction of a second instead of half a minute.
FAST_ENGINE: Final[Mapping[str, Any]] = {
    "ack_wait_s": 2.0,
    "publish_burst": 1,
    "idle_mark_s": 0.05,
    "standby_poll_s": 0.02,
}
FAST_RETRY: Final[Mapping[str, Any]] = {"limit": 3, "delays_s": (0.05,), "handler_limit_s": 5.0}


class WorldError(Exception):
    """The world did not do what it was told: the run says nothing about the runtime."""


@attrs.define(eq=False)
class Worker:
    """One worker process. `ended` is set when it is reaped; `status` is then its exit code, or minus its signal."""

    number: int
    log: Path
    pid: int = 0
    status: int | None = None
    started: trio.Event = attrs.field(factory=trio.Event)
    ended: trio.Event = attrs.field(factory=trio.Event)

    @property
    def killed(self) -> bool:
        """Whether it died of SIGKILL."""
        return self.status == -signal.SIGKILL

    def send_signal(self, number: signal.Signals) -> None:
        """Signal it, if it still runs. It may just have died of its plan, and the word of it be under way."""
        if self.pid and self.status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


class ProcessWorld:
    """One run: a directory, a server, a store, workers one after another. Use as a context manager in Trio."""

    def __init__(
        self,
        app: str,
        *,
        server: PrivateServer,
        zygote: Zygote,
        plan: Plan | None = None,
        workspaces: Sequence[str] = ("default/demo",),
        engine: Mapping[str, Any] | None = None,
        retry: Mapping[str, Any] | None = None,
        lease_ttl_s: float = 1.0,
        log_level: str = "info",
    ) -> None:
        self.server = server
        self.plan = plan if plan is not None else Plan()
        self._zygote = zygote
        self._home = tempfile.TemporaryDirectory(prefix="meshforge-world-", ignore_cleanup_errors=True)
        self.home = Path(self._home.name)
        self.store = self.home / "store" / "meshforge.db"
        self.record = self.home / "fired"
        self.workers: list[Worker] = []
        self._scopes = len(load_app(app).scopes(workspaces))
        self._order: dict[str, Any] = {
            "app": app,
            "url": server.url,
            "store": str(self.store),
            "record": str(self.record),
            "path": str(Path.cwd()),
            "plan": str(self.plan),
            "workspaces": list(workspaces),
            "engine": {**FAST_ENGINE, **(engine or {})},
            "retry": {**FAST_RETRY, **(retry or {})},
            "lease_ttl_s": lease_ttl_s,
            "log_level": log_level,
            "environment": {"CHAOS_CALLS": str(self.home / "calls")},
        }

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with trio.CancelScope(shield=True):
            for worker in self.workers:
                worker.send_signal(signal.SIGKILL)
            with trio.move_on_after(10):
                for worker in self.workers:
                    await worker.ended.wait()
        self._home.cleanup()

    async def spawn(self) -> Worker:
        """Start the next worker; returns when its process exists."""
        number = len(self.workers) + 1
        worker = Worker(number, self.home / f"worker-{number}.log")
        self.workers.append(worker)
        await self._zygote.spawn(worker, {**self._order, "number": number, "log": str(worker.log)})
        return worker

    async def serving(self, worker: Worker) -> None:
        """Return when every engine of `worker` has recovered and pulls, or when it has ended."""
        while not worker.ended.is_set():
            served = {line.split("scope=")[1] for line in self.tail(worker, 10_000).splitlines() if " serving " in line}
            if len(served) >= self._scopes:
                return
            await trio.sleep(0.01)

    async def drain(self, worker: Worker, timeout_s: float = 15.0) -> int:
        """SIGTERM; returns the exit code.

        Raises:
            WorldError: it did not end in time.
        """
        worker.send_signal(signal.SIGTERM)
        with trio.move_on_after(timeout_s):
            await worker.ended.wait()
        if worker.status is None:
            raise WorldError(
                f"worker#{worker.number} did not end within {timeout_s:g} s of SIGTERM\n{self.tail(worker)}"
            )
        return worker.status

    def fired(self) -> Sequence[str]:
        """The rules that fired, in order, as their processes recorded them before acting."""
        return self.record.read_text().splitlines() if self.record.exists() else []

    def calls(self) -> Mapping[str, int]:
        """How often each key's handler was called, as `chaos.agents` wrote it down."""
        path = self.home / "calls"
        return Counter(path.read_text().splitlines()) if path.exists() else {}

    def tail(self, worker: Worker, lines: int = 30) -> str:
        """The end of a worker's log."""
        return "\n".join(worker.log.read_text().splitlines()[-lines:]) if worker.log.exists() else "(no log)"


@asynccontextmanager
async def open_zygote() -> AsyncIterator[Zygote]:
    """Start the fork server; at the end it and every worker it forked are killed."""
    zygote = Zygote(_fork_server())
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(zygote.listen)
            yield zygote
            nursery.cancel_scope.cancel()
    finally:
        zygote.end()


def _fork_server() -> subprocess.Popen[bytes]:
    # Not through a thread: the kernel would take that thread's end for the end of the parent.
    return subprocess.Popen(
        [sys.executable, "-m", "chaos.zygote"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )


class Zygote:
    """The fork server, and the workers it reports on."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        """Use `open_zygote`."""
        self._process = process
        self._workers: dict[int, Worker] = {}
        self._waiting: dict[int, Worker] = {}
        self._ended_early: dict[int, int] = {}

    def end(self) -> None:
        """Kill it and every worker that still runs."""
        for worker in self._workers.values():
            worker.send_signal(signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    async def spawn(self, worker: Worker, order: Mapping[str, Any]) -> None:
        """Fork `worker`. Raises `WorldError` if the zygote is gone."""
        assert self._process.stdin is not None
        self._waiting[worker.number] = worker
        try:
            self._process.stdin.write(json.dumps({"spawn": order}).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise WorldError("the zygote has died; can the app be imported?") from error
        with trio.move_on_after(10):
            await worker.started.wait()
        if not worker.pid:
            raise WorldError(f"worker#{worker.number} was not forked within 10 s")

    async def listen(self) -> None:
        """Take note of what it reports, until it is gone."""
        assert self._process.stdout is not None
        stream = trio.lowlevel.FdStream(os.dup(self._process.stdout.fileno()))
        rest = b""
        async with stream:
            async for chunk in stream:
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self._hear(json.loads(line))

    def _hear(self, message: Mapping[str, Any]) -> None:
        if "spawned" in message:
            number, pid = message["spawned"]
            worker = self._waiting.pop(number)
            worker.pid = pid
            self._workers[pid] = worker
            worker.started.set()
            if pid in self._ended_early:
                self._end(worker, self._ended_early.pop(pid))
            return
        pid, status = message["ended"]
        worker_or_none = self._workers.get(pid)
        if worker_or_none is None:
            self._ended_early[pid] = status
        else:
            self._end(worker_or_none, status)

    def _end(self, worker: Worker, status: int) -> None:
        worker.status = status
        self._workers.pop(worker.pid, None)
        worker.ended.set()
