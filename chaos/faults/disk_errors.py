"""A disk that fails under one store: a layer over SQLite's file access whose reads, writes or syncs end in an error."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from typing import Final, Literal, get_args

import apsw

__all__ = ["FILES", "OPERATIONS", "FailingDisk", "Operation", "StoreFile"]

#: What can fail. `sync` is fsync of either file.
Operation = Literal["read", "write", "sync"]
#: Which file of the store: the database, its write-ahead log, or both of them and a rollback journal.
StoreFile = Literal["db", "wal", "any"]

OPERATIONS: Final[tuple[Operation, ...]] = get_args(Operation)
FILES: Final[tuple[StoreFile, ...]] = get_args(StoreFile)

_CODES: Final[dict[Operation, int]] = {
    "read": apsw.SQLITE_IOERR_READ,
    "write": apsw.SQLITE_IOERR_WRITE,
    "sync": apsw.SQLITE_IOERR_FSYNC,
}
_numbers: Final = itertools.count(1)


class FailingDisk(apsw.VFS):
    """SQLite's default VFS of this process from now on, until `unregister`. It changes nothing until told to fail.

    From then on every operation of that kind on the store's files fails with SQLITE_IOERR, as on a disk with a bad
    spot: nothing is read, written or synced. It never heals by itself; a process that goes on has hidden it. The mapped
    index of the write-ahead log can still be read and written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Be the disk of the database at `path`, which need not exist yet. Keep a reference to this object."""
        self._database = os.path.realpath(path)
        self._failing: dict[Operation, StoreFile] = {}
        self._failures = 0
        self._lock = threading.Lock()
        # By name: as an empty one it would mean this very VFS, once it is the default.
        self._base = apsw.vfs_names()[0]
        super().__init__(f"failing-disk-{next(_numbers)}", self._base, makedefault=True, maxpathname=0)

    @property
    def failures(self) -> int:
        """How many operations have failed."""
        return self._failures

    def fail(self, what: Operation, file: StoreFile = "any") -> None:
        """Let every operation `what` on `file` fail from now on.

        For reads the page caches of this process are emptied, or it would go on with what it has read before. One that
        another thread uses right now is left, and so are pages of a transaction that writes.

        Raises:
            ValueError: there is no such operation or file.
        """
        if what not in OPERATIONS or file not in FILES:
            raise ValueError(f"{what} of {file}: a disk fails to {', '.join(OPERATIONS)} of {', '.join(FILES)}")
        self._failing[what] = file
        if what == "read":
            for connection in apsw.connections():
                with contextlib.suppress(apsw.ThreadingViolationError):
                    connection.release_memory()

    def heal(self) -> None:
        """Let everything succeed again: another disk, for whoever comes next."""
        self._failing.clear()

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> _File:  # noqa: N802
        """Open a file of the VFS below."""
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        return _File(self, self._kind_of(path), self._base, name, flags)

    def xFullPathname(self, name: str) -> str:  # noqa: N802
        """Resolve a path as the VFS below does. That one says besides that a link was followed; apsw takes it ill."""
        return os.path.realpath(name)

    def meet(self, what: Operation, kind: str | None) -> None:
        """Called before each operation on a file of `kind`, which is `None` for files of others.

        Raises:
            apsw.IOError: it fails.
        """
        if kind is None or self._failing.get(what) not in ("any", kind):
            return
        with self._lock:
            self._failures += 1
        error = apsw.IOError(f"the disk fails to {what}: by plan")
        error.extendedresult = _CODES[what]  # type: ignore[attr-defined]  # the stubs do not know it
        raise error

    def _kind_of(self, path: str | None) -> str | None:
        if path is None or not path.startswith(self._database):
            return None
        return {"": "db", "-wal": "wal", "-journal": "journal"}.get(path.removeprefix(self._database))


class _File(apsw.VFSFile):
    """A file of the VFS below. `disk` is asked before each operation."""

    def __init__(
        self, disk: FailingDisk, kind: str | None, base: str, name: str | apsw.URIFilename | None, flags: list[int]
    ) -> None:
        self._disk = disk
        self._kind = kind
        super().__init__(base, name, flags)

    def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802
        """Read, if the disk does."""
        self._disk.meet("read", self._kind)
        return super().xRead(amount, offset)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        """Write, if the disk does."""
        self._disk.meet("write", self._kind)
        super().xWrite(data, offset)

    def xSync(self, flags: int) -> None:  # noqa: N802
        """Sync, if the disk does."""
        self._disk.meet("sync", self._kind)
        super().xSync(flags)
