"""A full disk for one store: a layer over SQLite's file access that refuses to write for a while."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable
from typing import Final

import apsw

__all__ = ["FullDisk"]

_numbers: Final = itertools.count(1)


class FullDisk(apsw.VFS):
    """SQLite's default VFS of this process from now on, until `unregister`. It changes nothing while it is not filled.

    While it is, every write to a file whose name begins with `path` (the database, its journal, its write-ahead log)
    fails with SQLITE_FULL; reading and deleting go on. Space returns by itself when the time is over: each write looks
    at the clock, so a process that was stopped in between wakes to a disk with space.

    Unlike on a real full disk, closing the last connection meanwhile raises `apsw.FullError` too, for the checkpoint
    that was to come with it; the connection is closed all the same.

    `on_healed` is called once after each filling, by the thread whose write is the first to come through again.
    """

    def __init__(self, path: str | os.PathLike[str], on_healed: Callable[[], None] = lambda: None) -> None:
        """Fill it for the database at `path`, which need not exist yet. Keep a reference to this object."""
        self.on_healed = on_healed
        self._prefix = os.path.realpath(path)
        self._until: float | None = None
        self._lock = threading.Lock()
        # By name: as an empty one it would mean this very VFS, once it is the default.
        self._base = apsw.vfs_names()[0]
        super().__init__(f"full-disk-{next(_numbers)}", self._base, makedefault=True, maxpathname=0)

    @property
    def full(self) -> bool:
        """Whether a write would fail now."""
        until = self._until
        return until is not None and time.monotonic() < until

    def fill(self, seconds: float) -> None:
        """Leave no space for `seconds` from now on. Filled already, it is full until the later end."""
        with self._lock:
            self._until = max(time.monotonic() + seconds, self._until or 0.0)

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> _File:  # noqa: N802
        """Open a file of the VFS below."""
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        ours = path is not None and path.startswith(self._prefix)
        return _File(self if ours else None, self._base, name, flags)

    def xFullPathname(self, name: str) -> str:  # noqa: N802
        """Resolve a path as the VFS below does. That one says besides that a link was followed; apsw takes it ill."""
        return os.path.realpath(name)

    def recovering(self) -> bool:
        """Whether the time is over, and no write has come through since.

        Raises:
            apsw.FullError: it is not over.
        """
        if self._until is None:
            return False
        if self.full:
            raise apsw.FullError("the disk is full: it was filled by plan")
        return True

    def recovered(self) -> None:
        """Take note that a write came through."""
        with self._lock:
            if self._until is None or self.full:
                return
            self._until = None
        self.on_healed()


class _File(apsw.VFSFile):
    """A file of the VFS below; `disk` is who is asked before it is written, if anybody.

    SQLite grows files by writing alone, so that is all there is to refuse.
    """

    def __init__(self, disk: FullDisk | None, base: str, name: str | apsw.URIFilename | None, flags: list[int]) -> None:
        self._disk = disk
        super().__init__(base, name, flags)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        """Write, if there is space."""
        recovering = self._disk is not None and self._disk.recovering()
        super().xWrite(data, offset)
        if self._disk is not None and recovering:
            self._disk.recovered()
