"""What SQLite does to the files of one database, written on a tape: a layer over its file access."""

from __future__ import annotations

import itertools
import os
from typing import Final

import apsw

from chaos.power.tape import Delete, Sync, Tape, Truncate, Write

__all__ = ["RecordingDisk"]

_numbers: Final = itertools.count(1)
#: Files that survive a restart; the index of the log is made anew by whoever opens it first.
_DURABLE: Final = ("", "-wal", "-journal")


class RecordingDisk(apsw.VFS):
    """A VFS by the name of `name`, until `unregister`: open the database with it. It changes nothing.

    A step is written on the tape when the VFS below has returned, and so is what it left undone by raising: not.
    """

    def __init__(self, path: str | os.PathLike[str], tape: Tape) -> None:
        """Record the database at `path`, which need not exist yet. Keep a reference to this object."""
        self.tape = tape
        self.name = f"recording-disk-{next(_numbers)}"
        self._path = os.path.realpath(path)
        # By name, as the files below are opened by it.
        self._base = apsw.vfs_names()[0]
        super().__init__(self.name, self._base, maxpathname=0)

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> _File:  # noqa: N802
        """Open a file of the VFS below."""
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        return _File(self.tape, self._suffix(path), self._base, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802
        """Delete, and take it down."""
        super().xDelete(filename, syncdir)
        suffix = self._suffix(filename)
        if suffix is not None:
            self.tape.append(Delete(suffix, bool(syncdir)))

    def xFullPathname(self, name: str) -> str:  # noqa: N802
        """Resolve a path as the VFS below does. That one says besides that a link was followed; apsw takes it ill."""
        return os.path.realpath(name)

    def _suffix(self, path: str | None) -> str | None:
        """Which of the database's files this is; `None` for any other."""
        if path is None or not path.startswith(self._path):
            return None
        suffix = path.removeprefix(self._path)
        return suffix if suffix in _DURABLE else None


class _File(apsw.VFSFile):
    """A file of the VFS below; without a suffix it is none of the database's, and not taken down."""

    def __init__(
        self, tape: Tape, suffix: str | None, base: str, name: str | apsw.URIFilename | None, flags: list[int]
    ) -> None:
        self._tape = tape
        self._suffix = suffix
        super().__init__(base, name, flags)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        """Write, and take it down."""
        super().xWrite(data, offset)
        if self._suffix is not None:
            self._tape.append(Write(self._suffix, offset, bytes(data)))

    def xTruncate(self, newsize: int) -> None:  # noqa: N802
        """Cut, and take it down."""
        super().xTruncate(newsize)
        if self._suffix is not None:
            self._tape.append(Truncate(self._suffix, newsize))

    def xSync(self, flags: int) -> None:  # noqa: N802
        """Sync, and take it down."""
        super().xSync(flags)
        if self._suffix is not None:
            self._tape.append(Sync(self._suffix))
