"""Copies of a store: made beside running workers, put back while nobody runs.

A copy is made under another name, checked, flushed to the disk and only then given its own name, so a name never stands
for half a copy. It is of one moment, and nobody serves it: terms of processes are not copied.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import apsw
import attrs

from meshforge_trio.clock import SystemClock
from meshforge_trio.errors import Misconfigured, StoreBroken
from meshforge_trio.store.audit import Progress
from meshforge_trio.store.place import let_go
from meshforge_trio.store.rows import last_n
from meshforge_trio.store.schema import make_directories, translated
from meshforge_trio.verify import VerifyReport, opened_read_only, verify_store

__all__ = ["Backup", "Restored", "ScopeCopy", "back_up", "restore"]

# Pages to a step of a copy.
_STEP: Final = 2_048
_BUSY_TIMEOUT_MS: Final = 5_000
_COMPANIONS: Final = ("-wal", "-shm", "-journal")


@attrs.frozen
class ScopeCopy:
    """What a copy holds of a scope: its newest output, and up to which the newest mark says it is published."""

    scope: str
    outputs: int
    published: int
    entities: int
    dead_letters: int


@attrs.frozen
class Backup:
    """A copy that was made. `bytes` is its size; `verified` whether it was checked from end to end."""

    path: str
    store: str
    bytes: int
    schema: int
    outputs: int
    scopes: Sequence[ScopeCopy]
    verified: bool


@attrs.frozen
class Restored:
    """A backup that was put in a store's place. `aside` is where the store was moved, "" if there was none."""

    store: str
    backup: str
    aside: str
    bytes: int
    outputs: int
    scopes: Sequence[ScopeCopy]


def back_up(store: Path, to: Path, *, force: bool, verify: bool, progress: Progress) -> Backup:
    """Copy the store to the file `to`, which only its owner may read. Workers go on meanwhile.

    Raises:
        Misconfigured: there is no such store, `to` exists and `force` is not given, or it cannot be a backup.
        StoreBroken: the store, or with `verify` the copy, is damaged.
        StoreFull: no space for the copy.
    """
    _refuse_target(store, to, force=force)
    with _copied(store, to, progress) as made:
        if verify:
            _refuse_damaged(verify_store(made, progress), store, "nothing was kept of the copy")
        scopes, schema = _contents(made)
        if not force and to.exists():
            raise Misconfigured(f"{to} has come into being meanwhile: `--force` replaces it")
        size = made.stat().st_size
        try:
            _name(made, to)
        except OSError as error:
            raise translated(error, to) from error
    return Backup(
        path=str(to),
        store=str(store),
        bytes=size,
        schema=schema,
        outputs=sum(scope.outputs for scope in scopes),
        scopes=scopes,
        verified=verify,
    )


def restore(backup: Path, store: Path, *, progress: Progress) -> Restored:
    """Put a backup in the place of the store, which is moved aside, never deleted.

    Raises:
        Misconfigured: there is no such backup, or a process lives on the store.
        StoreBroken: the backup is damaged. Nothing was changed.
        StoreFull: no space for a second copy. Nothing was changed.
    """
    if store.exists() and backup.exists() and store.samefile(backup):
        raise Misconfigured(f"{backup} is the store itself: a backup is another file")
    with _alone(store):
        pass
    _refuse_damaged(verify_store(backup, progress), backup, "nothing was changed")
    # Through a link, what it leads to is replaced.
    place = Path(os.path.realpath(store))
    make_directories(place)
    with _copied(backup, place, progress) as made:
        scopes, _ = _contents(made)
        size = made.stat().st_size
        # Whoever starts now waits for the lock, and finds another file when it has it.
        with _alone(store):
            aside = _swap(made, place)
    return Restored(
        store=str(store),
        backup=str(backup),
        aside="" if aside is None else str(aside),
        bytes=size,
        outputs=sum(scope.outputs for scope in scopes),
        scopes=scopes,
    )


# -- copies ----------------------------------------------------------------------------------------------------


@contextmanager
def _copied(source: Path, to: Path, progress: Progress) -> Iterator[Path]:
    """A finished copy of `source` beside `to`, under a name of its own; removed unless it was given another."""
    made = to.with_name(f".{to.name}.{secrets.token_hex(4)}.part")
    try:
        with opened_read_only(source) as connection:
            try:
                os.close(os.open(made, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
                _copy_pages(connection, made, progress)
                _sync(made)
            except (OSError, apsw.FullError) as error:
                raise translated(error, to) from error
        yield made
    finally:
        for suffix in ("", *_COMPANIONS):
            made.with_name(made.name + suffix).unlink(missing_ok=True)


def _copy_pages(source: apsw.Connection, made: Path, progress: Progress) -> None:
    # SQLite keeps to the moment of an open transaction; without one a copy begins anew whenever somebody writes.
    source.execute("SELECT count(*) FROM sqlite_schema").fetchall()
    target = apsw.Connection(os.fspath(made))
    try:
        target.pragma("synchronous", "OFF")
        with target.backup("main", source, "main") as copying:
            while not copying.done:
                copying.step(_STEP)
                progress("pages copied", copying.page_count - copying.remaining, copying.page_count)
        # No write-ahead log beside a copy: it is one file, and can be read where nothing can be written.
        target.pragma("journal_mode", "DELETE")
        target.execute("BEGIN; DELETE FROM holders; UPDATE leases SET holder = NULL, clean = 0; COMMIT")
    finally:
        target.close()


def _contents(path: Path) -> tuple[Sequence[ScopeCopy], int]:
    """What a store holds, and the version of its schema."""
    with opened_read_only(path) as connection:

        def one(sql: str, number: int) -> int:
            row = connection.execute(sql, (number,)).fetchone()
            return 0 if row is None else int(row[0])

        scopes = [
            ScopeCopy(
                scope="/".join(names),
                outputs=last_n(connection, number),
                published=one("SELECT n FROM marks WHERE id >> 40 = ? ORDER BY id DESC LIMIT 1", number),
                entities=one("SELECT count(*) FROM heads WHERE scope = ?", number),
                dead_letters=one("SELECT count(*) FROM dead_letters WHERE scope = ?", number),
            )
            for number, *names in connection.execute("SELECT id, tenant, workspace, agent FROM scopes ORDER BY 2, 3, 4")
        ]
        return scopes, connection.pragma("user_version")


# -- who may be there --------------------------------------------------------------------------------------------


def _refuse_target(store: Path, to: Path, *, force: bool) -> None:
    if to.is_dir():
        raise Misconfigured(f"{to} is a directory: name a file in it")
    if not to.absolute().parent.is_dir():
        raise Misconfigured(f"there is no directory {to.parent} to put the backup in")
    if to.exists() and store.exists() and to.samefile(store):
        raise Misconfigured(f"{to} is the store itself: name another file for the backup")
    for suffix in _COMPANIONS:
        if to.with_name(to.name + suffix).exists():
            raise Misconfigured(f"{to}{suffix} says that {to} is a database in use: name another file for the backup")
    if to.exists() and not force:
        raise Misconfigured(f"{to} exists: `--force` replaces it")


def _refuse_damaged(report: VerifyReport, path: Path, so: str) -> None:
    if not report.whole:
        raise StoreBroken(
            f"{path} is damaged, and {so}: {len(report.findings)} findings, the first: {report.findings[0]}. "
            f"`meshforge verify {path}` lists them all"
        )


@contextmanager
def _alone(store: Path) -> Iterator[None]:
    """The write lock of a store on which no process lives, so that none begins to meanwhile.

    Raises:
        Misconfigured: somebody lives on it, or holds its lock.
    """
    connection = _lock(store) if store.is_file() else None
    try:
        # Lock files are probed under the write lock alone: a process that starts takes its own there.
        living = sorted(path.stem for path in Path(f"{store}-holders").glob("*.lock") if _is_held(path))
        if living:
            raise Misconfigured(f"{store} is in use, by {', '.join(living)}: stop every process on it first")
        yield
    finally:
        if connection is not None:
            # Its files may have other names by now: nothing is written to them, or removed.
            let_go(connection)


def _lock(store: Path) -> apsw.Connection | None:
    """A connection with the write lock; `None` for a file that is too damaged to be locked."""
    connection = apsw.Connection(os.fspath(store))
    try:
        connection.set_busy_timeout(_BUSY_TIMEOUT_MS)
        connection.execute("BEGIN IMMEDIATE")
    except (apsw.BusyError, apsw.LockedError) as error:
        let_go(connection)
        raise Misconfigured(f"{store} is locked by another program: stop it first") from error
    except (apsw.CorruptError, apsw.NotADBError, apsw.IOError):
        let_go(connection)
        return None
    return connection


def _is_held(path: Path) -> bool:
    """Whether a process lives that has locked this file."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _swap(made: Path, place: Path) -> Path | None:
    """Give the store's files another name and the copy theirs; where that fails, none has another name.

    The log goes first, and goes even without a database: a crash in between leaves an older store, which is noticed,
    and no log beside another's database.
    """
    aside = _aside(place)
    moved: list[tuple[Path, Path]] = []
    try:
        for suffix in (*_COMPANIONS, ""):
            part, there = place.with_name(place.name + suffix), aside.with_name(aside.name + suffix)
            if part.exists():
                part.rename(there)
                moved.append((part, there))
        _name(made, place)
    except OSError as error:
        for part, there in reversed(moved):
            there.replace(part)
        raise Misconfigured(f"{place} cannot be replaced: {error}. Nothing was changed") from error
    return aside if moved else None


def _aside(place: Path) -> Path:
    """A name that is free, with the time in it."""
    at = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(SystemClock().now()))
    aside = place.with_name(f"{place.name}.before-restore-{at}")
    taken = any(aside.with_name(aside.name + suffix).exists() for suffix in ("", *_COMPANIONS))
    return aside.with_name(f"{aside.name}-{secrets.token_hex(2)}") if taken else aside


def _name(made: Path, to: Path) -> None:
    """Give a copy its name, for good."""
    made.replace(to)
    _sync(to.absolute().parent)


def _sync(path: Path) -> None:
    """Have a file, or the names in a directory, on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
