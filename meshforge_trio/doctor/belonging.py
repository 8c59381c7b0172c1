"""Whether a store belongs to the streams: its marks are held against what the streams hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import apsw

from meshforge_trio.broker.survey import Survey
from meshforge_trio.doctor.rules import Finding, rule
from meshforge_trio.errors import Misconfigured
from meshforge_trio.store import rows
from meshforge_trio.store.port import Mark
from meshforge_trio.store.schema import MIGRATIONS, translated
from meshforge_trio.subjects import EVENTS, FAILED, Scope, event_filter

__all__ = ["examine_belonging", "read_marks"]

_BUSY_TIMEOUT_MS: Final = 2_000


def read_marks(path: Path) -> Mapping[Scope, Sequence[Mark]]:
    """The marks of every scope of a store, newest first; empty without a store. Blocks.

    Raises:
        Misconfigured, StoreBroken, Transient: the file is none of ours, of another version, damaged or locked.
    """
    if not path.is_file():
        return {}
    try:
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            connection.set_busy_timeout(_BUSY_TIMEOUT_MS)
            version = connection.pragma("user_version")
            if version != len(MIGRATIONS):
                raise Misconfigured(
                    f"{path} has schema version {version}, this program reads {len(MIGRATIONS)}; "
                    "`meshforge run` brings an older one up to date"
                )
            found = list(connection.execute("SELECT tenant, workspace, agent, id FROM scopes ORDER BY 1, 2, 3"))
            return {Scope(*names): rows.marks(connection, number) for *names, number in found}
        finally:
            connection.close()
    except apsw.Error as error:
        raise translated(error, path) from error


async def examine_belonging(
    survey: Survey, path: Path, marks: Mapping[Scope, Sequence[Mark]], scopes: Sequence[Scope]
) -> Sequence[Finding]:
    """Each scope's marks against the streams."""
    last = {}
    for stream in (EVENTS, FAILED):
        info = await survey.stream(stream)
        last[stream] = (0, 0) if info is None else (info["state"]["first_seq"], info["state"]["last_seq"])
    return [await _scope(survey, path, scope, marks.get(scope, ()), last) for scope in scopes]


async def _scope(
    survey: Survey, path: Path, scope: Scope, marks: Sequence[Mark], last: Mapping[str, tuple[int, int]]
) -> Finding:
    the = rule("store-streams")
    if not marks or marks[0].n == 0:
        own = await survey.first_from(EVENTS, event_filter(scope), 1)
        if own is None or (marks and own.seq <= marks[0].event_seq):
            return Finding(the, "ok", f"{scope}: nothing published yet")
        what = f"{scope}: {path} has published nothing, and {EVENTS} holds its events from sequence {own.seq} on"
        return Finding(the, "refuse", what, "name the store that belongs to these streams (`--store`), or restore it")
    # One made over an empty stream would be confirmed by any stream made anew.
    usable = [mark for mark in marks if mark.event_seq > 0 or mark.n == marks[0].n]
    if await _confirmed(survey, usable[0], last):
        return Finding(the, "ok", f"{scope}: the streams confirm the newest mark, output {marks[0].n}")
    if not await _confirmed(survey, usable[-1], last):
        what = f"{scope}: the streams confirm none of {len(marks)} marks of {path}: it published to others"
        return Finding(the, "refuse", what, "restore the streams, or run `meshforge reconcile --dry-run`")
    newest = await _newest_confirmed(survey, usable, last)
    what = f"{scope}: the streams are older than {path}: outputs above {newest.n} are to be published again"
    return Finding(the, "warn", what, "nothing: the next session does; find out why the server went back")


async def _newest_confirmed(survey: Survey, marks: Sequence[Mark], last: Mapping[str, tuple[int, int]]) -> Mark:
    """Where confirmed marks begin: the first of `marks` is not, the last is, and a stream goes back as a whole."""
    unconfirmed, confirmed = 0, len(marks) - 1
    while confirmed - unconfirmed > 1:
        middle = (confirmed + unconfirmed) // 2
        if await _confirmed(survey, marks[middle], last):
            confirmed = middle
        else:
            unconfirmed = middle
    return marks[confirmed]


async def _confirmed(survey: Survey, mark: Mark, last: Mapping[str, tuple[int, int]]) -> bool:
    for stream, seq, msg_id in ((EVENTS, mark.event_seq, mark.event_id), (FAILED, mark.failed_seq, mark.failed_id)):
        first_seq, last_seq = last[stream]
        if seq == 0:
            continue
        if seq > last_seq:
            return False
        if seq >= first_seq:
            found = await survey.message(stream, seq)
            # What somebody deleted contradicts nothing.
            if found is not None and found.msg_id != msg_id:
                return False
    return True
