"""Who may serve a scope: the term of a process, kept in the database and proven by a file lock.

A term belongs to a process (its holder row), and the leases of its scopes point at it, so one small write renews
them all. A successor takes a scope at once when the holder is dead, which its file lock tells, else when the term
has run out. Whatever clocks and locks get wrong, the epoch in the lease row fences the old engine's commits.
"""

from __future__ import annotations

import fcntl
import os
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Final

import apsw

from meshforge_trio.errors import Fenced, Misconfigured
from meshforge_trio.store.port import Lease
from meshforge_trio.store.rows import last_n
from meshforge_trio.subjects import Scope

__all__ = ["Clock", "HolderLock", "Term", "boot_id", "boottime_ns"]

#: Nanoseconds since boot, suspension included.
Clock = Callable[[], int]

# Share of the term that `valid` keeps back for what happens between the check and the act.
_MARGIN: Final = 0.1
_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


def boottime_ns() -> int:
    """The clock of terms. It counts suspension where the system can; it is the same for every process."""
    return time.clock_gettime_ns(_CLOCK)


def boot_id() -> str:
    """What tells this boot from the next; "" where the system does not say (the file lock then decides)."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


class HolderLock:
    """A file lock held for the life of a process. The kernel drops it on any death, so it never lies about one."""

    def __init__(self, directory: Path, holder: str) -> None:
        self.path = directory / f"{holder}.lock"
        while True:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if not _try_lock(fd):
                os.close(fd)
                raise Misconfigured(f"a process is already running as holder {holder!r}: choose another name")
            if _is_linked(fd, self.path):
                break
            os.close(fd)  # the last holder of this name removed it in between
        self._fd = fd
        _held_locks.add(self)

    def release(self) -> None:
        """Remove the file and drop the lock."""
        self.path.unlink(missing_ok=True)
        self.drop()

    def drop(self) -> None:
        """Drop the lock and leave the file, as death does."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


_held_locks: weakref.WeakSet[HolderLock] = weakref.WeakSet()


def _drop_after_fork() -> None:
    # A lock lives as long as any copy of its descriptor: a child would keep its dead parent alive.
    for lock in list(_held_locks):
        lock.drop()


os.register_at_fork(after_in_child=_drop_after_fork)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_linked(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def _bury(path: Path) -> bool:
    """Whether the process whose lock file this is is dead; if so its file is removed.

    A missing file proves nothing, so its holder is left to its term.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        if not _try_lock(fd):
            return False
        if _is_linked(fd, path):
            path.unlink()
        return True
    finally:
        os.close(fd)


class Term:
    """This process's term: its holder row, its lock, the scopes it serves and the moment it ends.

    Methods that take a connection run inside the caller's write transaction; the caller calls `extend` once it is
    committed.
    """

    def __init__(self, directory: Path, holder: str, ttl_s: float, clock: Clock) -> None:
        """`ttl_s` is the length of the term in seconds, counted from each renewal."""
        self.holder = holder
        self._directory = directory
        self._lock: HolderLock | None = None
        self._boot_id = boot_id()
        self._ttl_ns = round(ttl_s * 1e9)
        self._margin_ns = round(ttl_s * 1e9 * _MARGIN)
        self._clock = clock
        self._expires_ns = 0
        self._epochs: dict[int, tuple[int, Scope]] = {}

    def valid(self) -> bool:
        """Whether the term still runs, less a margin. Reads a clock and nothing else."""
        return self._clock() < self._expires_ns - self._margin_ns

    def extend(self, expires_ns: int) -> None:
        """Remember the end of the term as it was committed."""
        self._expires_ns = expires_ns

    def begin(self, connection: apsw.Connection) -> int:
        """Lock the holder's file, write its row, remove what dead processes left. Returns the end of the term.

        Files are locked and probed inside write transactions only, so no probe can meet a file before its lock.

        Raises:
            Misconfigured: a process is running under this name.
            OSError: no space or no right to make the file.
        """
        self._directory.mkdir(mode=0o700, exist_ok=True)
        self._lock = HolderLock(self._directory, self.holder)
        for path in self._directory.glob("*.lock"):
            if path != self._lock.path and _bury(path):
                connection.execute("DELETE FROM holders WHERE holder = ?", (path.stem,))
        connection.execute("DELETE FROM holders WHERE boot_id <> ? OR expires_ns <= ?", (self._boot_id, self._clock()))
        return self._write(connection)

    def renew(self, connection: apsw.Connection) -> int:
        """Write a new end of the term and return it.

        Raises:
            Fenced: a scope has been taken over; an engine of this process still thinks that it serves it.
        """
        if lost := self._lost(connection):
            raise Fenced(f"taken over by another process: {', '.join(str(scope) for scope in lost)}")
        return self._write(connection)

    def take(self, connection: apsw.Connection, number: int, server_id: str) -> Lease | None:
        """Take the lease of the scope numbered `number`; `None` while another living holder has it."""
        row = connection.execute(
            "SELECT l.epoch, l.clean, l.server_id, l.holder, h.boot_id, h.expires_ns"
            " FROM leases l LEFT JOIN holders h ON h.holder = l.holder WHERE l.scope = ?",
            (number,),
        ).fetchone()
        epoch, clean, server_before, holder, boot, expires_ns = row or (0, 1, "", None, None, 0)
        if boot is not None and holder != self.holder:
            if _bury(self._directory / f"{holder}.lock"):
                connection.execute("DELETE FROM holders WHERE holder = ?", (holder,))
            elif boot == self._boot_id and self._clock() < expires_ns:
                return None
        connection.execute(
            "INSERT OR REPLACE INTO leases(scope, epoch, holder, clean, server_id) VALUES (?, ?, ?, 0, ?)",
            (number, epoch + 1, self.holder, server_id),
        )
        return Lease(epoch + 1, bool(clean), server_before, last_n(connection, number) + 1)

    def renew_with(self, connection: apsw.Connection, number: int) -> int:
        """Write a new end of the term together with a `take` of scope `number`, and return it.

        Where another scope of this process has been lost meanwhile it is 0: its engine must find out first.
        """
        expires_ns = self._write(connection)
        return 0 if self._lost(connection, besides=number) else expires_ns

    def remember(self, number: int, epoch: int, scope: Scope) -> None:
        """Take note of a committed `take`."""
        self._epochs[number] = (epoch, scope)

    def forget(self, number: int, epoch: int | None = None) -> None:
        """Take note that the scope was given up or lost; with `epoch` only if it is still held under that one."""
        if number in self._epochs and epoch in (None, self._epochs[number][0]):
            del self._epochs[number]

    def give_up(self, connection: apsw.Connection) -> None:
        """Leave every scope to whoever wants it."""
        connection.execute("UPDATE leases SET holder = NULL WHERE holder = ?", (self.holder,))
        connection.execute("DELETE FROM holders WHERE holder = ?", (self.holder,))

    def end(self, *, remove: bool) -> None:
        """Drop the file lock, and with `remove` its file; nothing is valid any more."""
        self._expires_ns = 0
        if self._lock is not None:
            if remove:
                self._lock.release()
            else:
                self._lock.drop()

    def _write(self, connection: apsw.Connection) -> int:
        expires_ns = self._clock() + self._ttl_ns
        connection.execute(
            "INSERT OR REPLACE INTO holders(holder, boot_id, expires_ns) VALUES (?, ?, ?)",
            (self.holder, self._boot_id, expires_ns),
        )
        return expires_ns

    def _lost(self, connection: apsw.Connection, besides: int = 0) -> list[Scope]:
        ours = dict(connection.execute("SELECT scope, epoch FROM leases WHERE holder = ?", (self.holder,)))
        return [
            scope for number, (epoch, scope) in self._epochs.items() if number != besides and ours.get(number) != epoch
        ]
