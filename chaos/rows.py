"""The store of a run as it lies on disk, read with SQL and nothing of the code under test.

It is read from a copy of the file and its write-ahead log, taken after the process was reaped: opening the live one
would run recovery and heal what is to be judged.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import apsw
import attrs

from meshforge_trio.subjects import Scope

__all__ = ["HeadRow", "KeyRow", "Letter", "MarkRow", "OutputRow", "Rows", "RowsError", "copy_store", "read_store"]

_KINDS: Final = ("event", "record", "command", "dead")
_OUTCOMES: Final = ("decided", "conflict", "refused", "violation", "dead")
_STATES: Final = ("waiting", "redriven", "discarded")


class RowsError(Exception):
    """The file is no store that can be read."""


@attrs.frozen
class OutputRow:
    """A row of `outputs`. `prev` is the number of the entity's event before (0: none)."""

    scope: Scope
    n: int
    kind: str
    key: str
    event_id: str
    name: str
    subject: str
    msg_id: str
    body: bytes
    entity_id: str | None
    version: int | None
    chain: bytes | None
    prev: int | None = None


@attrs.frozen
class KeyRow:
    """A row of `keys` or `mismatches`: outputs `first_n` to `last_n` are the decision of `key`."""

    scope: Scope
    key: str
    payload_hash: bytes
    outcome: str
    first_n: int
    last_n: int
    generation: int = 0


@attrs.frozen
class HeadRow:
    """A row of `heads`. `last_n` is the number of the entity's newest event."""

    version: int
    chain: bytes
    last_n: int = 0


@attrs.frozen
class MarkRow:
    """A row of `marks`."""

    scope: Scope
    n: int
    event_seq: int
    event_id: str
    failed_seq: int
    failed_id: str


@attrs.frozen
class Letter:
    """A row of `dead_letters`. `state` is its fate; `calls` are (time, error) of its handler's, oldest first."""

    scope: Scope
    key: str
    generation: int
    subject: str
    body: bytes
    code: str
    attempts: int
    headers: bytes = b""
    reason: str = ""
    entity_id: str | None = None
    trace_id: str = ""
    state: str = "waiting"
    calls: Sequence[tuple[float, str]] = ()


@attrs.frozen
class Rows:
    """Everything a checker may know of the store.

    `heads` is by (scope, entity), `attempts` the count by (scope, key), `state_hashes` what an engine recorded when
    its term ended cleanly, as (after output n, hash), `generations` how often each (scope, key) was redriven.
    """

    outputs: Sequence[OutputRow] = ()
    keys: Sequence[KeyRow] = ()
    mismatches: Sequence[KeyRow] = ()
    heads: Mapping[tuple[Scope, str], HeadRow] = attrs.field(factory=dict)
    marks: Sequence[MarkRow] = ()
    attempts: Mapping[tuple[Scope, str], int] = attrs.field(factory=dict)
    dead: Sequence[Letter] = ()
    state_hashes: Mapping[Scope, tuple[int, str]] = attrs.field(factory=dict)
    generations: Mapping[tuple[Scope, str], int] = attrs.field(factory=dict)


def copy_store(path: Path, to: Path) -> Mapping[str, int]:
    """Copy a database and its write-ahead log into the directory `to`; the size of each copy by its name.

    A file that does not exist is left out.
    """
    copied = {}
    for suffix in ("", "-wal"):
        part = path.with_name(path.name + suffix)
        if part.exists():
            copy = to / f"store.db{suffix}"
            shutil.copyfile(part, copy)
            copied[copy.name] = copy.stat().st_size
    return copied


def read_store(path: Path) -> Rows:
    """Read a copy. It is opened for writing, since a write-ahead log cannot be read otherwise: never the original.

    A file that does not exist, or in which no table was made yet, holds nothing.

    Raises:
        RowsError: it is no database, a damaged one, or one of another version.
    """
    if not path.exists():
        return Rows()
    try:
        with closing(apsw.Connection(str(path))) as connection:
            return _rows(connection)
    except (apsw.Error, LookupError, TypeError, ValueError) as error:
        raise RowsError(f"{path} cannot be read: {type(error).__name__}: {error}") from error


def _rows(connection: apsw.Connection) -> Rows:
    def query(sql: str) -> list[tuple[Any, ...]]:
        return list(connection.execute(sql))

    if not query("SELECT 1 FROM sqlite_schema WHERE name = 'outputs'"):
        return Rows()
    scopes = {i: Scope(t, w, a) for i, t, w, a in query("SELECT id, tenant, workspace, agent FROM scopes")}
    n_bits = (1 << 40) - 1
    outputs = [
        OutputRow(scopes[i >> 40], i & n_bits, _KINDS[kind], *rest)
        for i, kind, *rest in query(
            "SELECT id, kind, key, event_id, name, subject, msg_id, body, entity_id, version, chain, prev "
            "FROM outputs ORDER BY id"
        )
    ]
    keys = [
        KeyRow(scopes[s], key, digest, _OUTCOMES[outcome], *rest)
        for s, key, digest, outcome, *rest in query(
            "SELECT scope, key, payload_hash, outcome, first_n, last_n, generation FROM keys"
        )
    ]
    mismatches = [
        KeyRow(scopes[s], key, digest, "refused", first, last)
        for s, key, digest, first, last in query("SELECT scope, key, payload_hash, first_n, last_n FROM mismatches")
    ]
    marks = query("SELECT id, n, event_seq, event_id, failed_seq, failed_id FROM marks ORDER BY id")
    dead = query(
        "SELECT scope, key, generation, subject, body, code, attempts, headers, reason, entity_id, trace_id, state,"
        " calls FROM dead_letters ORDER BY scope, key, generation"
    )
    return Rows(
        outputs,
        keys,
        mismatches,
        {(scopes[s], e): HeadRow(*rest) for s, e, *rest in query("SELECT * FROM heads")},
        [MarkRow(scopes[i >> 40], *rest) for i, *rest in marks],
        {(scopes[s], key): count for s, key, count in query("SELECT scope, key, attempts FROM attempts")},
        [_letter(scopes[s], *rest) for s, *rest in dead],
        {scopes[s]: (n, value) for s, n, value in query("SELECT scope, n, state_hash FROM state_hashes")},
        {(scopes[s], key): count for s, key, count in query("SELECT scope, key, generation FROM generations")},
    )


def _letter(scope: Scope, *row: Any) -> Letter:
    *fields, state, calls = row
    made = tuple((at, error) for at, error in json.loads(calls))
    return attrs.evolve(Letter(scope, *fields), state=_STATES[state], calls=made)
