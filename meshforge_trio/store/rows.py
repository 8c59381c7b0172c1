"""The rows of one scope: what the port's classes look like in SQL.

Every function takes the connection, inside the caller's transaction, and the number that stands for the scope.
"""
# ruff: noqa: S608  (SQL is put together from constants of this module; every value is bound)

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import apsw
import attrs

from meshforge_trio.errors import Fenced, Stale
from meshforge_trio.store import links
from meshforge_trio.store.port import (
    Attempt,
    Call,
    Commit,
    DeadLetter,
    DeadState,
    Head,
    KeyRecord,
    Mark,
    Output,
    Reading,
)
from meshforge_trio.store.schema import (
    CODE_OF_KIND,
    CODE_OF_OUTCOME,
    CODE_OF_STATE,
    KIND_OF_CODE,
    OUTCOME_OF_CODE,
    SCOPE_SHIFT,
    STATE_OF_CODE,
    extended_code,
)
from meshforge_trio.store.statements import insert, select_in

__all__ = [
    "attempts",
    "check_epoch",
    "dead_letters",
    "end_cleanly",
    "heads_after",
    "history",
    "last_n",
    "marks",
    "outputs_after",
    "read",
    "write",
]

_Row = tuple[Any, ...]

_N_MAX: Final = (1 << SCOPE_SHIFT) - 1

_MARKS_KEPT: Final = 10_000
_OLD_MARKS_KEPT_S: Final = 24 * 3600.0
# Marks are pruned whenever their number is a multiple of this; of the old ones those with such a number stay.
_MARK_STRIDE: Final = 256

_OUTPUT: Final = "id, kind, key, event_id, name, subject, msg_id, body, entity_id, version, chain"
_EVENTS: Final = f"SELECT {_OUTPUT} FROM outputs WHERE id IN (SELECT value FROM json_each(?)) ORDER BY id"
_ATTEMPT: Final = "key, entity_id, attempts, next_at, first_at, last_at, error, calls"
_LETTER: Final = (
    "key, generation, n, subject, headers, body, code, reason, attempts, first_at, last_at, entity_id, trace_id,"
    " calls, state"
)
_KEY: Final = "key, payload_hash, outcome, first_n, last_n, generation"
_HEAD: Final = (
    "h.entity_id, h.version, h.chain, s.state, coalesce(s.version, 0), coalesce(s.schema, 0) FROM heads h"
    " LEFT JOIN snapshots s ON s.scope = h.scope AND s.entity_id = h.entity_id"
)


def read(
    connection: apsw.Connection,
    number: int,
    keys: Sequence[tuple[str, bytes]],
    entities: Sequence[str],
    resources: Sequence[str] = (),
) -> Reading:
    """See `ScopeStore.read`."""
    names = [key for key, _ in keys]
    records: dict[str, tuple[KeyRecord, Sequence[Output]]] = {}
    for row in select_in(connection, f"SELECT {_KEY} FROM keys WHERE scope = ? AND key IN", number, names):
        key, payload_hash, outcome, first_n, last_n, generation = row
        record = KeyRecord(key, payload_hash, OUTCOME_OF_CODE[outcome], first_n, last_n, generation)
        records[key] = (record, _outputs_between(connection, number, first_n, last_n))
    mismatches: dict[tuple[str, bytes], Sequence[Output]] = {}
    for pair in keys:
        if pair[0] in records and records[pair[0]][0].payload_hash != pair[1]:
            found = "SELECT first_n, last_n FROM mismatches WHERE scope = ? AND key = ? AND payload_hash = ?"
            for first_n, last_n in connection.execute(found, (number, *pair)):
                mismatches[pair] = _outputs_between(connection, number, first_n, last_n)
    generations: dict[str, int] = {}
    # Next to nothing is ever redriven, so one probe spares most reads the look-ups.
    if connection.execute("SELECT 1 FROM generations WHERE scope = ? LIMIT 1", (number,)).fetchall():
        sql = "SELECT key, generation FROM generations WHERE scope = ? AND key IN"
        generations = dict(select_in(connection, sql, number, names))
    dead = [key for key, (record, _) in records.items() if record.outcome == "dead"]
    found_dead = {letter.key: letter for letter in _letters_of(connection, number, dead)}
    select = "SELECT resource_id, token FROM fences WHERE scope = ? AND resource_id IN"
    fences = dict(select_in(connection, select, number, resources))
    return Reading(records, mismatches, _heads_of(connection, number, entities), generations, found_dead, fences)


def _letters_of(connection: apsw.Connection, number: int, keys: Sequence[str]) -> Iterator[DeadLetter]:
    """The dead letters of keys, for each in the order of their generations."""
    select = f"SELECT {_LETTER} FROM dead_letters WHERE scope = ? AND key IN"
    for row in select_in(connection, select, number, keys, " ORDER BY key, generation"):
        yield _letter_of(row)


def dead_letters(connection: apsw.Connection, number: int, after: int, limit: int) -> list[DeadLetter]:
    """Dead letters whose output is numbered above `after`, in that order."""
    sql = f"SELECT {_LETTER} FROM dead_letters WHERE scope = ? AND n > ? ORDER BY n LIMIT ?"
    return [_letter_of(row) for row in connection.execute(sql, (number, after, limit))]


def _letter_of(row: _Row) -> DeadLetter:
    return DeadLetter(*[*row[:-2], _calls_in(row[-2]), STATE_OF_CODE[row[-1]]])


def _calls_in(text: str) -> Sequence[Call]:
    return tuple((at, error) for at, error in json.loads(text))


def _heads_of(connection: apsw.Connection, number: int, entities: Sequence[str]) -> dict[str, Head]:
    sql = f"SELECT {_HEAD} WHERE h.scope = ? AND h.entity_id IN"
    heads = {row[0]: Head(*row) for row in select_in(connection, sql, number, entities)}
    lengths = {e: head.version - head.state_version for e, head in heads.items() if head.version > head.state_version}
    found = links.tails(connection, number, lengths)
    return heads | {entity: attrs.evolve(heads[entity], tail=tail) for entity, tail in found.items()}


def check_epoch(connection: apsw.Connection, number: int, holder: str, epoch: int) -> None:
    """Raises `Fenced` unless `holder` has the scope under `epoch`."""
    row = connection.execute("SELECT epoch, holder FROM leases WHERE scope = ?", (number,)).fetchone()
    if row != (epoch, holder):
        newest, by = row or (0, None)
        raise Fenced(f"epoch {epoch} of {holder} is over: the newest is {newest}, held by {by or 'nobody'}")


def end_cleanly(connection: apsw.Connection, number: int) -> None:
    """End the term of the scope with nothing in hand."""
    connection.execute("UPDATE leases SET clean = 1, holder = NULL WHERE scope = ?", (number,))


def last_n(connection: apsw.Connection, number: int) -> int:
    """Number of the newest output; 0 where there is none."""
    base = number << SCOPE_SHIFT
    sql = "SELECT max(id) FROM outputs WHERE id BETWEEN ? AND ?"
    ((newest,),) = connection.execute(sql, (base, base + _N_MAX))
    return 0 if newest is None else newest - base


def write(connection: apsw.Connection, number: int, commit: Commit) -> None:
    """Write all of a `Commit` but the end of the term. Raises `Stale`; the caller rolls back."""
    if commit.outputs:
        _check_numbers(commit.outputs, last_n(connection, number))
    prevs, newest = links.link(connection, number, commit)
    base = number << SCOPE_SHIFT
    code = CODE_OF_KIND
    outputs = [
        (
            base + o.n,
            code[o.kind],
            o.key,
            o.event_id,
            o.name,
            o.subject,
            o.msg_id,
            o.body,
            o.entity_id,
            o.version,
            o.chain,
            prev,
        )
        for o, prev in zip(commit.outputs, prevs, strict=True)
    ]
    # Sorted, so that neighbours in the table are written one after the other.
    keys = sorted(
        (number, k.key, k.payload_hash, CODE_OF_OUTCOME[k.outcome], k.first_n, k.last_n, k.generation)
        for k in commit.keys
    )
    heads = sorted((number, h.entity_id, h.version, h.chain, newest[h.entity_id]) for h in commit.heads)
    replace = (
        " ON CONFLICT(scope, entity_id) DO UPDATE"
        " SET version = excluded.version, chain = excluded.chain, last_n = excluded.last_n"
    )
    try:
        insert(connection, f"outputs({_OUTPUT}, prev)", outputs)
        insert(connection, f"keys(scope, {_KEY})", keys)
        insert(connection, "heads(scope, entity_id, version, chain, last_n)", heads, replace)
        _write_seldom(connection, number, commit)
    except apsw.ConstraintError as error:
        if extended_code(error) == apsw.SQLITE_CONSTRAINT_PRIMARYKEY:
            raise Stale(f"already committed: {error}") from error
        raise


def _write_seldom(connection: apsw.Connection, number: int, commit: Commit) -> None:
    """What few commits carry: refusals, snapshots, attempts, dead letters, marks."""
    insert(
        connection,
        "mismatches(scope, key, payload_hash, first_n, last_n)",
        [(number, k.key, k.payload_hash, k.first_n, k.last_n) for k in commit.mismatches],
    )
    insert(
        connection,
        "snapshots(scope, entity_id, version, schema, state)",
        sorted((number, s.entity_id, s.version, s.schema, s.state) for s in commit.snapshots),
        " ON CONFLICT(scope, entity_id) DO UPDATE"
        " SET version = excluded.version, schema = excluded.schema, state = excluded.state",
    )
    for key in commit.ended:
        connection.execute("DELETE FROM attempts WHERE scope = ? AND key = ?", (number, key))
    for a in commit.attempts:
        fields = (a.key, a.entity_id, a.attempts, a.next_at, a.first_at, a.last_at, a.error, json.dumps(a.calls))
        connection.execute(
            f"INSERT OR REPLACE INTO attempts(scope, {_ATTEMPT}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (number, *fields),
        )
    for d in commit.dead:
        *first, calls, state = attrs.astuple(d, recurse=False)
        connection.execute(
            f"INSERT INTO dead_letters(scope, {_LETTER}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (number, *first, json.dumps(calls), CODE_OF_STATE[state]),
        )
    for resource, token in commit.fences.items():
        sql = (
            "INSERT INTO fences VALUES (?, ?, ?) ON CONFLICT(scope, resource_id) DO UPDATE"
            " SET token = max(token, excluded.token)"
        )
        connection.execute(sql, (number, resource, token))
    for key, generation in commit.redriven:
        _redrive(connection, number, key, generation)
    for key, generation in commit.discarded:
        _end_letter(connection, number, key, generation, "discarded")
    if commit.mark is not None:
        _write_mark(connection, number, commit.mark)
    if commit.state_hash is not None:
        connection.execute("INSERT OR REPLACE INTO state_hashes VALUES (?, ?, ?)", (number, *commit.state_hash))


def _redrive(connection: apsw.Connection, number: int, key: str, generation: int) -> None:
    """Free the key of a waiting dead letter; what is decided under it next has ids of its own."""
    _end_letter(connection, number, key, generation, "redriven")
    sql = "DELETE FROM keys WHERE scope = ? AND key = ? AND generation = ? AND outcome = ?"
    connection.execute(sql, (number, key, generation, CODE_OF_OUTCOME["dead"]))
    if connection.changes() != 1:
        raise Stale(f"{key!r} is not dead in generation {generation}")
    sql = "INSERT OR REPLACE INTO generations(scope, key, generation) VALUES (?, ?, ?)"
    connection.execute(sql, (number, key, generation + 1))


def _end_letter(connection: apsw.Connection, number: int, key: str, generation: int, state: DeadState) -> None:
    sql = "UPDATE dead_letters SET state = ? WHERE scope = ? AND key = ? AND generation = ? AND state = ?"
    connection.execute(sql, (CODE_OF_STATE[state], number, key, generation, CODE_OF_STATE["waiting"]))
    if connection.changes() != 1:
        raise Stale(f"no dead letter of {key!r}, generation {generation}, waits")


def _write_mark(connection: apsw.Connection, number: int, mark: Mark) -> None:
    base = number << SCOPE_SHIFT
    sql = "SELECT max(id) FROM marks WHERE id BETWEEN ? AND ?"
    ((newest,),) = connection.execute(sql, (base, base + _N_MAX))
    row = (newest or base) + 1
    connection.execute(
        "INSERT INTO marks VALUES (?, ?, ?, ?, ?, ?, ?)",
        (row, mark.n, mark.event_seq, mark.event_id, mark.failed_seq, mark.failed_id, mark.at),
    )
    if row % _MARK_STRIDE == 0:
        connection.execute(
            "DELETE FROM marks WHERE id BETWEEN ? AND ? AND (id % ? OR at < ?)",
            (base, row - _MARKS_KEPT, _MARK_STRIDE, mark.at - _OLD_MARKS_KEPT_S),
        )


def _check_numbers(outputs: Sequence[Output], newest: int) -> None:
    for n, output in enumerate(outputs, newest + 1):
        if output.n != n:
            raise Stale(f"output {output.n} is not the next one, which is {n}")


def outputs_after(connection: apsw.Connection, number: int, n: int, limit: int) -> list[Output]:
    """See `ScopeStore.outputs_after`."""
    first = max(n, 0) + 1
    return _outputs_between(connection, number, first, min(last_n(connection, number), first + limit - 1))


def _outputs_between(connection: apsw.Connection, number: int, first: int, last: int) -> list[Output]:
    """Outputs numbered `first` to `last`, which must all be there: SQLite takes some damage for emptiness."""
    if last < first:
        return []
    base = number << SCOPE_SHIFT
    sql = f"SELECT {_OUTPUT} FROM outputs WHERE id BETWEEN ? AND ? ORDER BY id"
    found = _outputs(base, connection.execute(sql, (base + first, base + last)))
    if [output.n for output in found] != list(range(first, last + 1)):
        raise apsw.CorruptError(f"of outputs {first} to {last} of scope {number} only {len(found)} are left")
    return found


def history(
    connection: apsw.Connection, number: int, walk: links.Walk, entity_id: str, after: int, limit: int
) -> list[Output]:
    """See `ScopeStore.history`. Whoever reads page after page passes the same `walk`."""
    after = max(after, 0)
    base = number << SCOPE_SHIFT
    numbers = walk.numbers(connection, number, entity_id, after, limit)
    found = _outputs(base, connection.execute(_EVENTS, (json.dumps([base + n for n in numbers]),)))
    for version, output in enumerate(found, after + 1):
        if (output.entity_id, output.version) != (entity_id, version):
            raise apsw.CorruptError(f"output {output.n} of scope {number} is not version {version} of {entity_id!r}")
    if len(found) != len(numbers):
        raise apsw.CorruptError(f"events of {entity_id!r} of scope {number} are missing")
    return found


def _outputs(base: int, rows: Iterable[_Row]) -> list[Output]:
    return [Output(row[0] - base, KIND_OF_CODE[row[1]], *row[2:]) for row in rows]


def heads_after(connection: apsw.Connection, number: int, after: str, limit: int) -> list[Head]:
    """See `ScopeStore.heads`."""
    sql = f"SELECT {_HEAD} WHERE h.scope = ? AND h.entity_id > ? ORDER BY h.entity_id LIMIT ?"
    return [Head(*row) for row in connection.execute(sql, (number, after, limit))]


def marks(connection: apsw.Connection, number: int) -> list[Mark]:
    """See `ScopeStore.marks`."""
    base = number << SCOPE_SHIFT
    sql = (
        "SELECT n, event_seq, event_id, failed_seq, failed_id, at FROM marks WHERE id BETWEEN ? AND ? ORDER BY id DESC"
    )
    return [Mark(*row) for row in connection.execute(sql, (base, base + _N_MAX))]


def attempts(connection: apsw.Connection, number: int) -> list[Attempt]:
    """See `ScopeStore.attempts`."""
    sql = f"SELECT {_ATTEMPT} FROM attempts WHERE scope = ? ORDER BY key"
    return [Attempt(*[*row[:-1], _calls_in(row[-1])]) for row in connection.execute(sql, (number,))]
