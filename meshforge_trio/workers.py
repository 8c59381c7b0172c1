"""Several worker processes under one parent: started, restarted, drained and ended together.

The parent serves nothing and holds no lease, so it has little to die of. A worker that dies is started again, with
back-off and a limit; meanwhile the others take its scopes over. When the parent dies, however it dies, its workers
end at once: the system tells them, and so does a pipe whose only writer the parent is.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Final

import attrs
import structlog
import trio

from meshforge_trio.errors import Misconfigured
from meshforge_trio.policy import ExitCode, backoff, worst_code
from meshforge_trio.runtime import Intensity, TooManyRestarts

__all__ = ["end_with_parent", "supervise"]

#: Exit codes that another start would only repeat.
_FINAL: Final = frozenset({ExitCode.MISCONFIGURED, ExitCode.STORE_BROKEN, ExitCode.TOO_MANY_RESTARTS})
#: A worker that ran this long before it died starts again without the back-off of its earlier deaths.
_STABLE_S: Final = 10.0
#: What a worker gets beyond its own drain deadline before it is killed, in seconds.
_GRACE_S: Final = 2.0
_PR_SET_PDEATHSIG: Final = 1


def supervise(command: Sequence[str], workers: int, drain_s: float) -> int:
    """Run `workers` processes of `command --worker <i> --parent-fd <fd>` until a signal; return the exit code.

    SIGTERM or SIGINT drains them: each gets SIGTERM, and SIGKILL when it takes longer than `drain_s` seconds and a
    moment. A second SIGINT kills them at once. The code is the severest of theirs, 5 when they die too often, 130
    for the second SIGINT. Call it from the main thread: Linux counts a parent as dead when that thread ends.
    """
    return trio.run(_Supervisor(command, workers, drain_s).run)


def end_with_parent(parent_fd: int) -> None:
    """Have this worker killed when its parent dies. `parent_fd` reads from a pipe that the parent never writes to."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        # Also right where the system has no such signal, or the parent died before it was asked for.
        os.read(parent_fd, 1)
        os._exit(ExitCode.FAILED)

    os.set_inheritable(parent_fd, False)
    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


@attrs.define(eq=False)
class _Worker:
    number: int
    process: subprocess.Popen[bytes]
    ended: trio.Event = attrs.field(factory=trio.Event)


class _Supervisor:
    def __init__(self, command: Sequence[str], workers: int, drain_s: float) -> None:
        self._command = command
        self._workers = workers
        self._drain_s = drain_s
        self._living: dict[int, _Worker] = {}
        self._codes: list[int] = []
        self._stopping = trio.Event()
        self._intensity = Intensity()
        self._parent_reads, self._parent_holds = os.pipe()
        self._log = structlog.get_logger("meshforge")

    async def run(self) -> int:
        """See `supervise`."""
        try:
            async with trio.open_nursery() as watchers:
                await watchers.start(self._watch_signals)
                await watchers.start(self._watch_children)
                watchers.start_soon(self._kill_late)
                async with trio.open_nursery() as nursery:
                    for number in range(self._workers):
                        nursery.start_soon(self._keep, number)
                watchers.cancel_scope.cancel()
        finally:
            self._kill()
            os.close(self._parent_holds)
            os.close(self._parent_reads)
        return worst_code(self._codes)

    async def _keep(self, number: int) -> None:
        """One worker, started again until everything stops."""
        waits = backoff()
        while not self._stopping.is_set():
            started = trio.current_time()
            worker = self._start(number)
            await worker.ended.wait()
            code = worker.process.returncode
            if self._stopping.is_set() and code == -signal.SIGTERM:
                code = ExitCode.OK  # it had not come far enough to have anything in hand
            if self._stopping.is_set() or code in _FINAL:
                self._codes.append(code)
                self._stop()
                return
            self._log.error("a worker ended; it is started again", worker=number, exit_code=code)
            try:
                self._intensity.crashed(f"worker {number}", RuntimeError(f"exit code {code}"))
            except TooManyRestarts as error:
                self._log.critical("the workers die too often", reason=str(error))
                self._codes.append(ExitCode.TOO_MANY_RESTARTS)
                self._stop()
                return
            if trio.current_time() - started > _STABLE_S:
                waits = backoff()
            with trio.move_on_after(next(waits)):
                await self._stopping.wait()

    def _start(self, number: int) -> _Worker:
        command = [*self._command, "--worker", str(number), "--parent-fd", str(self._parent_reads)]
        try:
            # A group of its own, so that Ctrl-C in a terminal reaches the parent alone, which then drains everyone.
            process = subprocess.Popen(command, process_group=0, pass_fds=[self._parent_reads])
        except OSError as error:
            raise Misconfigured(f"cannot start a worker: {error}") from error
        worker = self._living[number] = _Worker(number, process)
        self._log.info("worker started", worker=number, pid=process.pid)
        return worker

    async def _watch_children(self, task_status: trio.TaskStatus[None]) -> None:
        with trio.open_signal_receiver(signal.SIGCHLD) as signals:
            task_status.started()
            async for _ in signals:
                for worker in list(self._living.values()):
                    if worker.process.poll() is not None:
                        del self._living[worker.number]
                        worker.ended.set()

    async def _watch_signals(self, task_status: trio.TaskStatus[None]) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            task_status.started()
            interrupts = 0
            async for received in signals:
                interrupts += received == signal.SIGINT
                if interrupts > 1:
                    self._kill()
                    os._exit(ExitCode.INTERRUPTED)
                self._stop()

    async def _kill_late(self) -> None:
        await self._stopping.wait()
        await trio.sleep(self._drain_s + _GRACE_S)
        self._log.error("not drained in time; what was in hand comes again", workers=sorted(self._living))
        self._kill()

    def _stop(self) -> None:
        if not self._stopping.is_set():
            self._stopping.set()
            self._send(signal.SIGTERM)

    def _kill(self) -> None:
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        for worker in self._living.values():
            worker.process.send_signal(number)
