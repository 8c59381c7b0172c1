"""Whether a store is whole: SQLite's own check of its pages, then everything its rows say of each other.

What a page check cannot see, a changed bit in an event, its hash chain shows. The file is read as of one moment, beside
whoever writes it, and nothing of it is changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import apsw
import attrs

from meshforge_trio.errors import Misconfigured
from meshforge_trio.store.audit import Audit, Finding, Progress
from meshforge_trio.store.place import let_go
from meshforge_trio.store.schema import APPLICATION_ID, MIGRATIONS, translated

__all__ = ["Progress", "VerifyReport", "opened_read_only", "verify_store"]

_BUSY_TIMEOUT_MS: Final = 5_000
_CACHE_KIB: Final = 65_536
_PAGE_FINDINGS_MAX: Final = 1_000
# Steps of SQLite's virtual machine between two calls of `Progress`.
_STEPS: Final = 1_000_000


@attrs.frozen
class VerifyReport:
    """What was looked at, and everything that was found wrong."""

    path: str
    bytes: int
    schema: int
    scopes: int
    entities: int
    outputs: int
    events: int
    keys: int
    dead_letters: int
    snapshots: int
    findings: Sequence[Finding]

    @property
    def whole(self) -> bool:
        """Whether nothing was found."""
        return not self.findings


def _silent(what: str, done: int, total: int) -> None:
    pass


def verify_store(path: Path, progress: Progress = _silent) -> VerifyReport:
    """Check the store at `path` from end to end. Blocks: about 15 s for a million events of half a kilobyte.

    Raises:
        Misconfigured: there is no such file, it is no store, or of a newer version.
        StoreBroken: it is no database at all.
    """
    with opened_read_only(path) as connection:
        findings = list(_pages(connection, progress))
        audit = Audit(connection, progress)
        findings += audit.findings()
        size = connection.pragma("page_count") * connection.pragma("page_size")
        return VerifyReport(
            path=str(path),
            bytes=size,
            schema=connection.pragma("user_version"),
            scopes=audit.counts["scopes"],
            entities=audit.counts["entities"],
            outputs=audit.counts["outputs"],
            events=audit.counts["events"],
            keys=audit.counts["keys"],
            dead_letters=audit.counts["dead_letters"],
            snapshots=audit.counts["snapshots"],
            findings=findings,
        )


@contextmanager
def opened_read_only(path: Path) -> Iterator[apsw.Connection]:
    """A connection that sees the store as of one moment, and holds its write-ahead log back meanwhile.

    Raises:
        Misconfigured: there is no such file, it is no store, or of a newer version.
        StoreBroken: it is no database at all.
    """
    if not path.is_file():
        raise Misconfigured(f"there is no store {path}")
    try:
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    except apsw.Error as error:
        raise translated(error, path) from error
    try:
        connection.set_busy_timeout(_BUSY_TIMEOUT_MS)
        connection.pragma("cache_size", -_CACHE_KIB)
        connection.execute("BEGIN")
        _refuse_foreign(connection, path)
        yield connection
    except apsw.Error as error:
        raise translated(error, path) from error
    finally:
        # It could not write a checkpoint, and need not ask for the lock.
        let_go(connection)


def _refuse_foreign(connection: apsw.Connection, path: Path) -> None:
    version = connection.pragma("user_version")
    if connection.pragma("application_id") != APPLICATION_ID or not version:
        raise Misconfigured(f"{path} is no event store")
    if version > len(MIGRATIONS):
        raise Misconfigured(
            f"{path} has schema version {version}, this program knows up to {len(MIGRATIONS)}: "
            "run `pip install --upgrade meshforge-trio`"
        )


def _pages(connection: apsw.Connection, progress: Progress) -> Iterator[Finding]:
    """SQLite's check of every page, index and constraint."""
    turns = 0

    def still_there() -> bool:
        nonlocal turns
        turns += 1
        progress("pages", turns, 0)
        return False

    connection.set_progress_handler(still_there, _STEPS)
    try:
        for (finding,) in connection.execute(f"PRAGMA integrity_check({_PAGE_FINDINGS_MAX})"):
            if finding != "ok":
                yield Finding("pages", finding)
    except (apsw.CorruptError, apsw.IOError) as error:
        yield Finding("pages", str(error))
    finally:
        connection.set_progress_handler(None)
