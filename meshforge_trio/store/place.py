"""Where the files of an open store are: noticed when others are there instead, and left alone then.

SQLite goes on with the files it has opened. Those of a store that was deleted or replaced meanwhile nobody finds any
more: what is committed there is lost, and a checkpoint from there would ruin what has come in their place.
"""

from __future__ import annotations

import os
from pathlib import Path

import apsw

from meshforge_trio.errors import StoreBroken

__all__ = ["Place", "identity", "let_go"]


class Place:
    """The files of a store as they were found when it was opened."""

    def __init__(self, path: Path) -> None:
        """Look at the database `path`, its write-ahead log and the log's index, which all exist by now."""
        self._path = path
        real = os.path.realpath(path)
        self._files = (os.fspath(path), f"{real}-wal", f"{real}-shm")
        self._found = [identity(file) for file in self._files]

    @property
    def database(self) -> tuple[int, int] | None:
        """Device and inode of the database."""
        return self._found[0]

    def check(self) -> None:
        """Three looks at a directory, about a microsecond each.

        Raises:
            StoreBroken: a file is not the one that was opened.
        """
        for file, before in zip(self._files, self._found, strict=True):
            now = identity(file)
            if now != before:
                what = "deleted or moved" if now is None else "replaced"
                raise StoreBroken(
                    f"{file} was {what} under this process, which has acknowledged nothing since. Stop every process "
                    f"on {self._path}, put the file back or run `meshforge restore`, and start again"
                )


def identity(file: str | os.PathLike[str]) -> tuple[int, int] | None:
    """Device and inode of a file; `None` if there is none."""
    try:
        found = os.stat(file)  # noqa: PTH116  (every transaction calls it; a Path would take twice as long)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def let_go(connection: apsw.Connection) -> None:
    """Close without a checkpoint, and without removing the write-ahead log, which may be another's by now."""
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    connection.close()
