"""Beside the workload: two client processes that hold one lock in turn, the first of which is stopped while it has it.

    client#1 holds the lock and acts; SIGSTOP
    client#2 waits until that lease is over, holds the lock and acts
    client#1 SIGCONT: its block is cancelled, and what it tries all the same is refused
    client#2 lets go

`ONE_ACTS` judges what they did by what they wrote down.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import trio

from chaos.checkers import Checker
from chaos.checkers.base import Finding
from chaos.evidence import Evidence
from chaos.history import History
from chaos.world import POLL_S, WorldError
from chaos.zygote import kernel_state

__all__ = ["ONE_ACTS", "in_turn"]

_STEP_S: Final = 25.0
_END_S: Final = 10.0
_STALE: Final = "stale_fencing_token"


async def in_turn(url: str, home: Path, history: History) -> None:
    """Play it against the server at `url`, in the directory of a run.

    Raises:
        WorldError: one of them did not come to its step in time, or ended in bad order.
    """
    async with _holder(url, home, 1) as first:
        await _acted(first, 1)
        first.send_signal(signal.SIGSTOP)
        await _frozen(first)
        history.write("stopped", actor="client#1")
        async with _holder(url, home, 2) as second:
            await _acted(second, 2)
            history.write("woken", actor="client#1")
            first.send_signal(signal.SIGCONT)
            await _ended(first, 1)
            second.send_signal(signal.SIGTERM)
            await _ended(second, 2)


@asynccontextmanager
async def _holder(url: str, home: Path, number: int) -> AsyncIterator[trio.Process]:
    """A process of its own, in a group of its own, of which nothing is left."""
    command = [sys.executable, "-m", "chaos.holder", url, str(home / "history.jsonl"), str(number)]
    with (home / f"client-{number}.log").open("wb") as log:
        process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE, stderr=log, process_group=0)
    try:
        yield process
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + _END_S):
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
            assert process.stdout is not None
            await process.stdout.aclose()


async def _acted(process: trio.Process, number: int) -> None:
    assert process.stdout is not None
    with trio.move_on_after(_STEP_S) as waited:
        if await process.stdout.receive_some(1):
            return
    how = f"did not within {_STEP_S:g} s" if waited.cancelled_caught else "ended before it could"
    raise WorldError(f"client#{number} was to hold the lock and act, and {how}: see client-{number}.log")


async def _frozen(process: trio.Process) -> None:
    """Return when SIGSTOP has taken hold."""
    while True:
        # It is not yet reaped, so it is there.
        state = kernel_state(Path(f"/proc/{process.pid}/stat"))
        if state == "T":
            return
        if state in "ZX":
            raise WorldError("client#1 ended before it could be stopped: see client-1.log")
        await trio.sleep(POLL_S)


async def _ended(process: trio.Process, number: int) -> None:
    with trio.move_on_after(_STEP_S) as waited:
        await process.wait()
    if waited.cancelled_caught or process.returncode != 0:
        how = "is still there" if waited.cancelled_caught else f"ended with {process.returncode}"
        raise WorldError(f"client#{number} was to let go and end, and {how}: see client-{number}.log")


def _look(evidence: Evidence) -> Iterator[Finding | int]:
    """What every holder did against what the newer ones did before."""
    holds: dict[int, int] = {}
    # Whoever is suspended between asking and being answered may have been in time.
    known: dict[str, int] = {}
    acted = 0
    for record in evidence.history:
        match record.kind:
            case "holds":
                yield 1
                if record["token"] in holds:
                    yield Finding(f"token {record['token']} was given twice, the second time to {record.actor}")
                holds[record["token"]] = record.t
            case "looks" if record["left_s"] > 0:
                yield from _beside_newer(holds, record.actor, record["token"], record["at"])
            case "tries":
                known[record.actor] = acted
            case "acts":
                yield 1
                token, answer = record["token"], record["answer"]
                newest = known[record.actor]
                if token < newest and answer != _STALE:
                    yield Finding(f"{record.actor} acted under token {token} after {newest}: {answer}")
                if token >= acted and answer == _STALE:
                    yield Finding(f"{record.actor} was refused under token {token}, and none newer had been seen")
                acted = max(acted, token)
    yield from _of_the_stopped(evidence)


def _beside_newer(holds: dict[int, int], actor: str, token: int, at: int) -> Iterator[Finding]:
    for newer, since in holds.items():
        if newer > token and since <= at:
            yield Finding(f"{actor} has token {token} and time left by its clock, while {newer} is held")


def _of_the_stopped(evidence: Evidence) -> Iterator[Finding | int]:
    """Who went on after a newer holder had come must have been told so."""
    for woken in (record for record in evidence.history if record.kind == "woken"):
        ends = [r for r in evidence.history if r.actor == woken.actor and r.kind == "lets_go"]
        yield len(ends)
        for record in ends:
            if record["why"] != "lost":
                yield Finding(f"{record.actor} was stopped beyond its lease, and its block ended as if it had held it")


ONE_ACTS: Final = Checker(
    "one acts",
    "Who looks at a lease that has time left holds the lock; who acts under an older token than another is refused.",
    _look,
)
