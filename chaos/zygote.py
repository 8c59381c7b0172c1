"""The fork server as the harness sees it: orders workers, and hears of their ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import attrs
import trio

from chaos.mutants.patch import Patch, patch_to_json

__all__ = ["NEVER_A_WORKER", "Worker", "WorldError", "Zygote", "kernel_state", "open_zygote"]

#: The exit code of a forked process that could not become a worker; its log says why.
NEVER_A_WORKER: Final = 70
_FORK_S: Final = 20.0


class WorldError(Exception):
    """The world did not do what it was told: the run says nothing about the runtime."""


@attrs.define(eq=False)
class Worker:
    """One worker process. `ended` is set when it is reaped; `status` is then its exit code, or minus its signal.

    When the fork server dies nobody reaps: `ended` is set and `status` stays `None`.
    """

    number: int
    log: Path
    pid: int = 0
    status: int | None = None
    started: trio.Event = attrs.field(factory=trio.Event)
    ended: trio.Event = attrs.field(factory=trio.Event)

    @property
    def name(self) -> str:
        """As plans and histories call it."""
        return f"worker#{self.number}"

    @property
    def killed(self) -> bool:
        """Whether it died of SIGKILL."""
        return self.status == -signal.SIGKILL

    def send_signal(self, number: signal.Signals) -> None:
        """Signal it, if it still runs. It may just have died of its plan, and the word of it be under way."""
        if self.pid and self.status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def frozen(self) -> bool:
        """Whether SIGSTOP has stopped it, every thread of it."""
        try:
            # Mostly it runs, and asked is often.
            if kernel_state(Path(f"/proc/{self.pid}/stat")) != "T":
                return False
            threads = list(Path(f"/proc/{self.pid}/task").glob("*/stat"))
            states = {kernel_state(thread) for thread in threads}
        except (FileNotFoundError, ProcessLookupError):
            # A thread, or all of it, ended meanwhile.
            return False
        return "T" in states and states <= set("TZX")

    def last_words(self) -> str:
        """The line of its log that mostly names the cause, and then the end of the log."""
        tail = self.tail()
        # The message of an error may go on below, with a caret.
        last = [line for line in tail.splitlines() if line[:1].strip()][-1:]
        return f"{''.join(last)}\nits log:\n{tail}"

    def tail(self, lines: int = 30) -> str:
        """The end of its log."""
        if not self.log.exists():
            return "(no log)"
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def kernel_state(stat: Path) -> str:
    """The kernel's letter for what a process or a thread does."""
    return stat.read_text().rpartition(")")[2].split()[0]


@asynccontextmanager
async def open_zygote(patch: Patch | None = None) -> AsyncIterator[Zygote]:
    """Start a fork server, with a planted bug if one is given; at the end it and every worker it forked are killed."""
    zygote = Zygote(_fork_server(patch))
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(zygote.listen)
            yield zygote
            nursery.cancel_scope.cancel()
    finally:
        zygote.end()


def _fork_server(patch: Patch | None) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "chaos.forkserver"]
    if patch is not None:
        command.append(json.dumps(patch_to_json(patch)))
    # Not through a thread: the kernel would take that thread's end for the end of the parent.
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)


class Zygote:
    """The fork server, and the workers it reports on."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        """Use `open_zygote`."""
        self._process = process
        self._tickets = 0
        self._workers: dict[int, Worker] = {}
        self._waiting: dict[int, Worker] = {}
        self._ended_early: dict[int, int] = {}
        self._gone = trio.Event()

    def end(self) -> None:
        """Kill it and every worker that still runs, with what these have started."""
        for worker in self._workers.values():
            worker.send_signal(signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    async def spawn(self, worker: Worker, order: Mapping[str, Any]) -> None:
        """Fork `worker`.

        Raises:
            WorldError: the fork server is gone, or takes too long.
        """
        assert self._process.stdin is not None
        self._tickets += 1
        self._waiting[self._tickets] = worker
        try:
            self._process.stdin.write(json.dumps({"spawn": {**order, "ticket": self._tickets}}).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise WorldError("the fork server has died: see what it wrote to stderr") from error
        with trio.move_on_after(_FORK_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._cancel_when_gone, nursery.cancel_scope)
                await worker.started.wait()
                nursery.cancel_scope.cancel()
        if not worker.pid:
            why = "the fork server has died" if self.gone else f"not forked within {_FORK_S:g} s"
            raise WorldError(f"{worker.name}: {why}")

    async def _cancel_when_gone(self, scope: trio.CancelScope) -> None:
        await self._gone.wait()
        scope.cancel()

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
        self._gone.set()
        for worker in self._workers.values():
            worker.ended.set()

    @property
    def gone(self) -> bool:
        """Whether the fork server has died: its workers with it, and there will be no other."""
        return self._gone.is_set()

    def _hear(self, message: Mapping[str, Any]) -> None:
        if "spawned" in message:
            ticket, pid = message["spawned"]
            worker = self._waiting.pop(ticket)
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
