"""The process world: workers that really die, over a store and a server, in a directory that keeps what they did.

Everything started here ends here: workers die with the fork server, which dies with this process, and `__aexit__`
kills what is left of their process groups and looks whether anything is.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import orjson
import trio

from chaos.history import History
from chaos.plan import Plan
from chaos.zygote import Worker, WorldError, Zygote

__all__ = ["FAST_ENGINE", "FAST_RETRY", "POLL_S", "ProcessWorld", "Worker", "WorldError"]

#: Settings that make faults show in a fraction of a second instead of half a minute.
FAST_ENGINE: Final[Mapping[str, Any]] = {
    "ack_wait_s": 2.0,
    "publish_burst": 1,
    "idle_mark_s": 0.05,
    "standby_poll_s": 0.02,
}
FAST_RETRY: Final[Mapping[str, Any]] = {"limit": 3, "delays_s": (0.05,), "handler_limit_s": 5.0}
#: How often what other processes did is looked at.
POLL_S: Final = 0.005
_END_S: Final = 10.0
#: Where SQLite locks the shared memory of a write-ahead log for writing.
_WAL_WRITE_LOCK: Final = 120


class ProcessWorld:
    """One run: a directory, a server's address, a store, workers one after another. Use as a context manager in Trio.

    `scopes` is how many engines a worker has. `home` holds history, logs and store; the history is begun by the
    caller.
    """

    def __init__(
        self,
        app: str,
        *,
        url: str,
        zygote: Zygote,
        home: Path,
        scopes: int,
        plan: Plan | None = None,
        workspaces: Sequence[str] = ("default/demo",),
        engine: Mapping[str, Any] | None = None,
        retry: Mapping[str, Any] | None = None,
        lease_ttl_s: float = 1.0,
        log_level: str = "info",
    ) -> None:
        self.plan = plan if plan is not None else Plan()
        self.home = home
        self.store = home / "store" / "meshforge.db"
        self.workers: list[Worker] = []
        self.events = Tail(home / "history.jsonl")
        self._history = History.open(home / "history.jsonl", "harness")
        self._zygote = zygote
        self.scopes = scopes
        self._order: dict[str, Any] = {
            "app": app,
            "url": url,
            "store": str(self.store),
            "history": str(home / "history.jsonl"),
            "path": str(Path.cwd()),
            "plan": str(self.plan),
            "workspaces": list(workspaces),
            "engine": {**FAST_ENGINE, **(engine or {})},
            "retry": {**FAST_RETRY, **(retry or {})},
            "lease_ttl_s": lease_ttl_s,
            "log_level": log_level,
            "health_port": 0,
            "environment": {},
        }

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with trio.CancelScope(shield=True):
            for worker in self.workers:
                worker.send_signal(signal.SIGKILL)
            with trio.move_on_after(_END_S):
                for worker in self.workers:
                    if worker.pid:
                        await self._ended(worker)
            left = [worker.name for worker in self.workers if not await _group_gone(worker)]
        self._history.close()
        if left and error is None:
            raise WorldError(f"processes of {', '.join(left)} are still there {_END_S:g} s after SIGKILL")

    async def spawn(self) -> Worker:
        """Start the next worker; returns when its process exists."""
        number = len(self.workers) + 1
        worker = Worker(number, self.home / f"worker-{number}.log")
        self.workers.append(worker)
        await self._zygote.spawn(worker, {**self._order, "number": number, "log": str(worker.log)})
        self._history.write("spawn", actor=worker.name, pid=worker.pid)
        return worker

    async def serving(self, worker: Worker) -> None:
        """Return when every engine of `worker` has recovered, or when it has ended or was stopped."""
        while not worker.ended.is_set():
            self.events.look()
            if self.events.points[worker.name, "after_recovery"] >= self.scopes or worker.frozen():
                return
            await trio.sleep(POLL_S)

    def recoveries(self, worker: Worker) -> int:
        """How often all engines of `worker` have recovered."""
        self.events.look()
        return self.events.points[worker.name, "after_recovery"] // self.scopes

    def has_begun(self, worker: Worker) -> bool:
        """Whether `worker` has come to any point of the protocol."""
        self.events.look()
        return any(name == worker.name for name, _ in self.events.points)

    async def ended(self, worker: Worker) -> int:
        """Wait for the end of `worker`; return its status. The caller sets the deadline.

        Raises:
            WorldError: nobody knows how it ended, since the fork server has died as well.
        """
        await self._ended(worker)
        if worker.status is None:
            raise WorldError(f"{worker.name}: the fork server has died, so nobody knows how it ended")
        return worker.status

    async def _ended(self, worker: Worker) -> None:
        await worker.ended.wait()
        if worker.status is not None and not self.events.exits_told(worker.name):
            self.events.tell_exit(worker.name)
            self._history.write("exit", actor=worker.name, status=worker.status)

    async def drain(self, worker: Worker, timeout_s: float = 15.0) -> int:
        """SIGTERM; returns the exit code.

        Raises:
            WorldError: it did not end in time.
        """
        worker.send_signal(signal.SIGTERM)
        with trio.move_on_after(timeout_s):
            return await self.ended(worker)
        raise WorldError(f"{worker.name} did not end within {timeout_s:g} s of SIGTERM\n{worker.tail()}")

    async def frozen(self, worker: Worker) -> None:
        """Return when SIGSTOP has taken hold of `worker` outside a write transaction, or when it has ended.

        A process stopped inside one keeps the database locked and nobody can go on, which is not what a stop is to
        show: it is let go and stopped again a moment later.
        """
        while not worker.ended.is_set():
            if not worker.frozen():
                await trio.sleep(POLL_S / 5)
                continue
            if not self._writing(worker):
                return
            worker.send_signal(signal.SIGCONT)
            await trio.sleep(POLL_S / 5)
            worker.send_signal(signal.SIGSTOP)

    def _writing(self, worker: Worker) -> bool:
        """Whether `worker` holds the write lock of the database: asked of the kernel, without touching a lock."""
        shared = self.store.with_name(self.store.name + "-shm")
        if not shared.exists():
            return False
        descriptor = os.open(shared, os.O_RDWR | os.O_CLOEXEC)
        try:
            question = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, _WAL_WRITE_LOCK, 1, 0)
            kind, _, _, _, holder = struct.unpack("hhqqi4x", fcntl.fcntl(descriptor, fcntl.F_GETLK, question))
        finally:
            os.close(descriptor)
        return bool(kind != fcntl.F_UNLCK and holder == worker.pid)

    def fired(self) -> Sequence[str]:
        """The rules that fired, in order, as their processes recorded them before acting."""
        self.events.look()
        return [rule for _, rule in self.events.faults]

    def logs(self) -> str:
        """The ends of all workers' logs."""
        return "\n".join(f"-- {worker.name}: {worker.status}\n{worker.tail()}" for worker in self.workers)


async def _group_gone(worker: Worker) -> bool:
    """Kill what a worker's process group still has; say whether it is empty."""
    if not worker.pid:
        return True
    with trio.move_on_after(_END_S):
        while True:
            try:
                os.killpg(worker.pid, signal.SIGKILL)
            except ProcessLookupError:
                return True
            except PermissionError:
                return False
            await trio.sleep(POLL_S)
    return False


class Tail:
    """What has been written to a history since: hits of points, and faults in order, as (actor, rule)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._exits: set[str] = set()
        self.points: Counter[tuple[str, str]] = Counter()
        self.records: Counter[str] = Counter()
        self.faults: list[tuple[str, str]] = []

    def look(self) -> None:
        """Read on to the last whole line."""
        with contextlib.suppress(FileNotFoundError), self._path.open("rb") as file:
            file.seek(self._offset)
            text = file.read()
            end = text.rfind(b"\n") + 1
            self._offset += end
            for line in text[:end].splitlines():
                record = orjson.loads(line)
                actor = record["actor"]
                self.records[actor] += 1
                if record["kind"] == "point":
                    self.points[actor, record["point"]] += 1
                elif record["kind"] == "fault":
                    self.faults.append((actor, record["rule"]))

    def exits_told(self, name: str) -> bool:
        """Whether the end of a worker is written already."""
        return name in self._exits

    def tell_exit(self, name: str) -> None:
        """Its end is being written."""
        self._exits.add(name)
