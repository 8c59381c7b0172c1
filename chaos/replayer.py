"""Rebuilds states somewhere else: another process, another hash seed, another time zone, another day.

A replayer is a process that forks a child per store, so that each rebuild imports the agents afresh and nothing else.
The clock of the children is shifted by `CLOCK_SHIFT_S`. What an agent's `apply` takes from any of these shows as a
different hash.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import trio

from chaos.forkserver import die_with_parent
from chaos.mutants.patch import Patch, install, patch_from_json, patch_to_json
from meshforge_trio.cli.reader import read_store
from meshforge_trio.launch import load_app
from meshforge_trio.replay import replay_scope
from meshforge_trio.subjects import Scope

__all__ = ["CLOCK_SHIFT_S", "Replayer", "ReplayerError", "main", "open_replayer"]

#: Agents that look at the clock see a day more than a year away.
CLOCK_SHIFT_S: Final = 400 * 86_400
_ANSWER_S: Final = 30.0


class ReplayerError(Exception):
    """A store could not be rebuilt: the app cannot be imported, or an event cannot be applied."""


class Replayer:
    """Made by `open_replayer`. One rebuild at a time."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        self._process = process
        self._answers = trio.lowlevel.FdStream(os.dup(process.stdout.fileno()))
        self._rest = b""
        self._turn = trio.Lock()

    async def rebuild(
        self, store: Path, app: str, workspaces: Sequence[str], *, patch: Patch | None = None
    ) -> Mapping[Scope, str]:
        """The state hash of every scope in the copy `store` of a database, from its events alone.

        Raises:
            ReplayerError: the app, the store or the replayer is at fault.
        """
        order = {
            "store": str(store),
            "app": app,
            "workspaces": list(workspaces),
            "path": str(Path.cwd()),
            "patch": None if patch is None else patch_to_json(patch),
        }
        async with self._turn:
            assert self._process.stdin is not None
            try:
                self._process.stdin.write(json.dumps(order).encode() + b"\n")
                self._process.stdin.flush()
            except BrokenPipeError as error:
                raise ReplayerError("the replayer has died: see what it wrote to stderr") from error
            with trio.move_on_after(_ANSWER_S):
                told = json.loads(await self._line())
                if "error" in told:
                    raise ReplayerError(f"{store} cannot be rebuilt: {told['error']}")
                return {Scope(*scope.split("/")): value for scope, value in told["hashes"].items()}
        raise ReplayerError(f"{store} was not rebuilt within {_ANSWER_S:g} s")

    async def _line(self) -> bytes:
        while b"\n" not in self._rest:
            chunk = await self._answers.receive_some()
            if not chunk:
                raise ReplayerError("the replayer has died: see what it wrote to stderr")
            self._rest += chunk
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    async def close(self) -> None:
        """End its process."""
        self._process.kill()
        self._process.wait()
        with trio.CancelScope(shield=True):
            await self._answers.aclose()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


@asynccontextmanager
async def open_replayer(hash_seed: int, zone: str) -> AsyncIterator[Replayer]:
    """Start a replayer with that PYTHONHASHSEED and TZ."""
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed), "TZ": zone}
    # Not through a thread: the kernel would take that thread's end for the end of the parent.
    process = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-m", "chaos.replayer"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        env=environment,
    )
    replayer = Replayer(process)
    try:
        yield replayer
    finally:
        await replayer.close()


def main() -> None:
    """Serve orders, one JSON object a line, until standard input ends."""
    die_with_parent()
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            try:
                _answer(order)
            finally:
                os._exit(0)
        _, status = os.waitpid(pid, 0)
        if status:
            _tell({"error": f"the rebuilding process ended with {os.waitstatus_to_exitcode(status)}"})


def _tell(message: Mapping[str, Any]) -> None:
    os.write(1, json.dumps(message).encode() + b"\n")


def _answer(order: Mapping[str, Any]) -> None:
    die_with_parent()
    _shift_clock()
    try:
        _plant(order["patch"])
        sys.path.insert(0, order["path"])
        os.chdir(order["path"])
        hashes = _hashes(Path(order["store"]), order["app"], order["workspaces"])
    except Exception as error:
        _tell({"error": f"{type(error).__name__}: {error}"})
    else:
        _tell({"hashes": hashes})


def _plant(told: Mapping[str, Any] | None) -> None:
    """A bug that is planted in the agents is rebuilt with; the runtime that rebuilds is the true one."""
    if told is None:
        return
    patch = patch_from_json(told)
    edits = [edit for edit in patch.edits if not edit.module.startswith("meshforge_trio")]
    if edits:
        install(Patch(patch.name, edits))


def _shift_clock() -> None:
    """Whoever asks `time` sees another day; `datetime` asks the system itself, and sees another time zone."""
    now, now_ns = time.time, time.time_ns
    time.time = lambda: now() + CLOCK_SHIFT_S
    time.time_ns = lambda: now_ns() + CLOCK_SHIFT_S * 1_000_000_000


def _hashes(store: Path, app: str, workspaces: Sequence[str]) -> Mapping[str, str]:
    adapters = dict(load_app(app).scopes(workspaces))
    hashes: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="meshforge-rebuild-") as home:
        copy = Path(home) / store.name
        for suffix in ("", "-wal"):
            part = store.with_name(store.name + suffix)
            if part.exists():
                shutil.copyfile(part, copy.with_name(copy.name + suffix))
        with read_store(copy) as opened:
            for scope in opened.scopes:
                if scope in adapters:
                    report = trio.run(replay_scope, opened.rows(scope), adapters[scope])
                    hashes[str(scope)] = report.state_hash
    return hashes


if __name__ == "__main__":
    main()
