"""Another program that holds the write lock of a store: `python -m chaos.faults.locker PATH`, until its stdin ends.

It is a process of its own, as whoever opens a store with a SQL shell is: locks of one process do not stop each other.
It writes `locked` when it has the lock, changes nothing, and leaves the write-ahead log as it is.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Final

import apsw
import trio

__all__ = ["LockError", "hold_lock", "locked"]

_TOLD: Final = b"locked\n"
#: How long it waits for a transaction of somebody else to end.
_PATIENCE_MS: Final = 10_000
_START_S: Final = 20.0
_END_S: Final = 5.0


class LockError(Exception):
    """The lock could not be had."""


def hold_lock(path: Path) -> None:
    """Lock the store at `path`, say so on stdout, and hold it until stdin ends.

    Raises:
        apsw.Error: it cannot be opened, or is locked by others all the time.
    """
    with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)) as connection:
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        connection.set_busy_timeout(_PATIENCE_MS)
        connection.execute("BEGIN IMMEDIATE")
        sys.stdout.buffer.write(_TOLD)
        sys.stdout.buffer.flush()
        sys.stdin.buffer.read()
        connection.execute("ROLLBACK")


@asynccontextmanager
async def locked(path: Path) -> AsyncIterator[None]:
    """Have another process hold the write lock of the store at `path` for the block.

    Raises:
        LockError: it could not have the lock.
    """
    command = [sys.executable, "-m", "chaos.faults.locker", str(path)]
    locker = await trio.lowlevel.open_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert locker.stdin is not None
    assert locker.stdout is not None
    said: bytes = b""
    try:
        with trio.move_on_after(_START_S):
            said = bytes(await locker.stdout.receive_some(len(_TOLD)))
        if said != _TOLD:
            raise LockError(f"nobody could lock {path} within {_START_S:g} s: see stderr")
        yield
    finally:
        with trio.CancelScope(shield=True):
            await locker.stdin.aclose()
            # One that still waits for the lock does not see that its stdin has ended.
            with trio.move_on_after(_END_S if said == _TOLD else 0):
                await locker.wait()
            locker.kill()
            await locker.wait()
            await locker.stdout.aclose()


if __name__ == "__main__":
    hold_lock(Path(sys.argv[1]))
