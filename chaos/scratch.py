"""Where runs happen: in memory, if the machine has a file system there, else with the system's temporary files.

A SIGKILL keeps the page cache, so a process crash looks the same on either; a file system in memory has no disk to
wait for. All of a process's runs are in one directory, which is locked while it lives and goes when it ends; one that
was killed leaves it, and the next process finds that nobody holds the lock any more.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final

__all__ = ["file_name", "scratch_directory"]

_IN_MEMORY: Final = Path("/dev/shm")  # noqa: S108
#: What some runs at a time need, with room to spare; containers often have less.
_BYTES_MIN: Final = 1 << 30
_PREFIX: Final = "meshforge-scratch-"
_OWNER: Final = "owner"


def scratch_directory() -> Path:
    """This process's directory for temporary files that are written much; those of processes that are gone go."""
    return _own(_where())


@cache
def _own(where: Path) -> Path:
    _clear(where)
    made = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=where))
    # Locked before it has its name: who sees the name and gets the lock knows that the owner is gone.
    owner = os.open(made / f"{_OWNER}.new", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(owner, fcntl.LOCK_EX)
    (made / f"{_OWNER}.new").rename(made / _OWNER)
    atexit.register(_leave, made, os.getpid())
    return made


def _where() -> Path:
    usable = _IN_MEMORY.is_dir() and os.access(_IN_MEMORY, os.W_OK | os.X_OK)
    if usable and shutil.disk_usage(_IN_MEMORY).free >= _BYTES_MIN:
        return _IN_MEMORY
    return Path(tempfile.gettempdir())


def _clear(where: Path) -> None:
    """Remove what processes have left that were killed."""
    for left in where.glob(f"{_PREFIX}*"):
        # Somebody else's, or just being made or removed.
        with suppress(OSError), (left / _OWNER).open("r+b") as owner:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)


def _leave(made: Path, pid: int) -> None:
    # A fork of this process is not its end.
    if os.getpid() == pid:
        shutil.rmtree(made, ignore_errors=True)


def file_name(text: str) -> str:
    """A text as the name of a file, whatever characters it has."""
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in text)[:60]
