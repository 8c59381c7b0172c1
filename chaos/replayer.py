"""Rebuilds states elsewhere: in processes with a clock, a hash seed and a time zone of their own.

    async with open_replayer(hash_seed=101, tz="Pacific/Kiritimati") as replayer:
        hashes = await replayer.rebuild(image / "store.db", "chaos.agents:app", ["default/demo"])

Equal events have equal states, so two replayers agree with each other and with what an engine recorded, or the agent
reads what it must not.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import trio

from chaos.mutants.patch import Patch, patch_to_json
from meshforge_trio.subjects import Scope

__all__ = ["Replayer", "ReplayerError", "open_replayer"]

#: Processes with a planted bug that are kept for the next order.
_PATCHED_MAX: Final = 4


class ReplayerError(Exception):
    """Nothing could be rebuilt, for a reason that says nothing of the runtime: no such app, a process that died."""


class Replayer:
    """Made by `open_replayer`. One process for the code as it is, and one for each bug planted in it."""

    def __init__(self, environment: Mapping[str, str], nursery: trio.Nursery) -> None:
        self._environment = environment
        self._nursery = nursery
        self._processes: dict[Patch | None, _Process] = {}

    async def rebuild(
        self, store: Path, app: str, workspaces: Sequence[str], *, patch: Patch | None = None
    ) -> Mapping[Scope, str]:
        """Rebuild every scope of `workspaces` that `store` has, from a copy of it and its write-ahead log.

        The value is the scope's state hash, or in words what cannot be replayed as it is stored. Takes as long as it
        takes: set a deadline. `app` is looked for in the working directory first.

        Raises:
            ReplayerError: the app cannot be loaded, an agent of the store is not in it, the file is no store, or the
                process died.
        """
        order = {"store": str(store), "app": app, "workspaces": list(workspaces), "path": str(Path.cwd())}
        answer = await self._process(patch).ask(order)
        if "error" in answer:
            raise ReplayerError(f"{store} cannot be rebuilt: {answer['error']}")
        values: dict[Scope, str] = {Scope(*scope.split("/")): value for scope, value in answer["hashes"].items()}
        for difference in answer["differences"]:
            values[Scope(*difference.split(": ", 1)[0].split("/"))] = difference
        return values

    @property
    def processes(self) -> Sequence[subprocess.Popen[bytes]]:
        """Those that are there, without what they fork."""
        return [process.popen for process in self._processes.values()]

    def end(self) -> None:
        """Kill every process."""
        for process in self._processes.values():
            process.end()
        self._processes.clear()

    def _process(self, patch: Patch | None) -> _Process:
        found = self._processes.get(patch)
        if found is not None and not found.gone:
            return found
        if found is not None:
            found.end()
        idle = [each for each, process in self._processes.items() if each is not None and not process.asked]
        for each in idle[: len(self._processes) - _PATCHED_MAX]:
            self._processes.pop(each).end()
        made = self._processes[patch] = _Process(_started(patch, self._environment))
        self._nursery.start_soon(made.listen)
        return made


def _started(patch: Patch | None, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "chaos.rebuild"]
    if patch is not None:
        command.append(json.dumps(patch_to_json(patch)))
    # Not through a thread: the kernel would take that thread's end for the end of the parent.
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True
    )


class _Asked:
    """An order under way."""

    def __init__(self) -> None:
        self.answered = trio.Event()
        self.answer: Mapping[str, Any] = {"error": "the process has died: see what it wrote to stderr"}


class _Process:
    """One process of `chaos.rebuild`. `asked` are the orders under way."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        assert popen.stdout is not None
        self.popen = popen
        self._answers = trio.lowlevel.FdStream(os.dup(popen.stdout.fileno()))
        self._orders = 0
        self.asked: dict[int, _Asked] = {}
        self.gone = False

    async def ask(self, order: Mapping[str, Any]) -> Mapping[str, Any]:
        """The answer to an order; one that nobody waits for any more is taken back."""
        self._orders += 1
        number = self._orders
        asked = self.asked[number] = _Asked()
        try:
            if self._write({"id": number, **order}):
                await asked.answered.wait()
            return asked.answer
        finally:
            del self.asked[number]
            if not asked.answered.is_set():
                self._write({"cancel": number})

    def _write(self, message: Mapping[str, Any]) -> bool:
        """Whether it could be written."""
        assert self.popen.stdin is not None
        try:
            self.popen.stdin.write(json.dumps(message).encode() + b"\n")
            self.popen.stdin.flush()
        except BrokenPipeError:
            self.gone = True
            return False
        return True

    async def listen(self) -> None:
        """Take answers until the process is gone; whoever still waits then gets none."""
        rest = b""
        async with self._answers:
            async for chunk in self._answers:
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    answer = json.loads(line)
                    asked = self.asked.get(answer["id"])
                    if asked is not None:
                        asked.answer = answer
                        asked.answered.set()
        self.gone = True
        for asked in self.asked.values():
            asked.answered.set()

    def end(self) -> None:
        """Kill it, and with it what it has forked."""
        self.popen.kill()
        self.popen.wait()
        for pipe in (self.popen.stdin, self.popen.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


@asynccontextmanager
async def open_replayer(hash_seed: int, tz: str) -> AsyncIterator[Replayer]:
    """Rebuild under this hash seed (0 to 4294967295) and time zone; at the end every process is killed.

    Two of them show more than one, and most where their zones never agree on the date: `Pacific/Kiritimati` and
    `Etc/GMT+12` are 26 hours apart.
    """
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed), "TZ": tz}
    async with trio.open_nursery() as nursery:
        replayer = Replayer(environment, nursery)
        try:
            yield replayer
        finally:
            nursery.cancel_scope.cancel()
            replayer.end()
