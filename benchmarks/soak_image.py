"""What a round of the soak left behind: cut out of a store and streams that hold all rounds before it.

Checkers read everything they are given, so they are given one round. It begins when everything before it is decided
and published, its entities are its own, and so what it left is whole by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import apsw
import attrs
import orjson

from chaos.evidence import dumped_body
from meshforge_trio.broker.port import Broker, StoredMessage
from meshforge_trio.subjects import COMMANDS, EVENTS, FAILED

__all__ = ["Bounds", "StoreSize", "bounds_now", "save_round_image", "size_of_store"]

_SHIFT: Final = 40
_PAGE: Final = 256
_FILES: Final = {COMMANDS: "commands.jsonl", EVENTS: "events.jsonl", FAILED: "failed.jsonl"}
#: Tables that stay small, and are copied whole.
_WHOLE: Final = ("scopes", "holders", "leases", "attempts", "generations")

#: Columns that hold the number of an output, or in `outputs.id` begin with the scope and end with it.
_NUMBERS: Final[Mapping[str, frozenset[str]]] = {
    "outputs": frozenset({"id", "prev"}),
    "keys": frozenset({"first_n", "last_n"}),
    "mismatches": frozenset({"first_n", "last_n"}),
    "dead_letters": frozenset({"n"}),
    "heads": frozenset({"last_n"}),
    "marks": frozenset({"n"}),
}


@attrs.frozen
class Bounds:
    """Where a round begins: the last output of each scope, by its number in the store, and the last sequences."""

    last_n: Mapping[int, int] = attrs.field(factory=dict)
    last_seq: Mapping[str, int] = attrs.field(factory=dict)


@attrs.frozen
class StoreSize:
    """Bytes of the database, as its pages tell, and of its write-ahead log; what is decided in it."""

    database: int
    log: int
    outputs: int


def _live(store: Path) -> str:
    return f"file:{store}?mode=ro"


def _open(path: str) -> apsw.Connection:
    flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_URI
    connection = apsw.Connection(path, flags=flags)
    connection.set_busy_timeout(10_000)
    return connection


def size_of_store(store: Path) -> StoreSize:
    """How large it is now. It is read as one more reader beside its workers."""
    log = store.with_name(f"{store.name}-wal")
    with closing(_open(_live(store))) as connection:
        pages, page = connection.pragma("page_count"), connection.pragma("page_size")
        outputs = sum(n for _, n in _last_numbers(connection, "main"))
    return StoreSize(pages * page, log.stat().st_size if log.exists() else 0, outputs)


def _last_numbers(connection: apsw.Connection, schema: str) -> Sequence[tuple[int, int]]:
    """The last output of each scope, by its number."""
    if not connection.execute(f"SELECT 1 FROM {schema}.sqlite_schema WHERE name = 'outputs'").fetchall():  # noqa: S608
        return []
    sql = (
        f"SELECT s.id, coalesce(max(o.id) & {(1 << _SHIFT) - 1}, 0) FROM {schema}.scopes s "  # noqa: S608
        f"LEFT JOIN {schema}.outputs o ON o.id BETWEEN s.id << {_SHIFT} AND ((s.id + 1) << {_SHIFT}) - 1 GROUP BY s.id"
    )
    return [(int(number), int(last)) for number, last in connection.execute(sql)]


async def bounds_now(broker: Broker, store: Path) -> Bounds:
    """Where the next round begins, when everything is decided and published."""
    last_seq = {stream: (await broker.stream_facts(stream)).last_seq for stream in (EVENTS, FAILED)}
    return Bounds(_numbers_now(store), last_seq)


def _numbers_now(store: Path) -> Mapping[int, int]:
    if not store.exists():
        return {}
    with closing(_open(_live(store))) as connection:
        return dict(_last_numbers(connection, "main"))


async def save_round_image(
    broker: Broker, store: Path, to: Path, bounds: Bounds, entities: str, *, final: bool
) -> None:
    """Put what was written since `bounds` into the directory `to`, in the form in which `load_image` reads it.

    `entities` is what the entities of the round begin with. The store is read first: what is published meanwhile was
    committed before.
    """
    _save_store(store, to, bounds, entities)
    facts: dict[str, Any] = {}
    copied: dict[str, int] = {}
    for stream, name in _FILES.items():
        found = await broker.stream_facts(stream)
        facts[stream] = attrs.asdict(found)
        messages = await _since(broker, stream, max(found.first_seq, bounds.last_seq.get(stream, 0) + 1))
        copied[stream] = len(messages)
        (to / name).write_bytes(b"".join(orjson.dumps(m, option=orjson.OPT_APPEND_NEWLINE) for m in messages))
    size = (to / "store.db").stat().st_size
    told = {"final": final, "facts": facts, "copied": copied, "store": {"store.db": size}}
    (to / "image.json").write_bytes(orjson.dumps(told))


def _save_store(store: Path, to: Path, bounds: Bounds, entities: str) -> None:
    to.mkdir(parents=True)
    with closing(_open(f"file:{to / 'store.db'}")) as connection:
        connection.pragma("synchronous", "OFF")
        connection.execute("ATTACH ? AS live", (_live(store),))
        connection.execute("BEGIN")
        _cut_out(connection, bounds, entities)
        connection.execute("COMMIT")
        connection.execute("DETACH live")


async def _since(broker: Broker, stream: str, seq: int) -> Sequence[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = []
    while page := await broker.read_back(stream, ">", seq, _PAGE):
        found.extend(map(_dumped, page))
        seq = page[-1].seq + 1
    return found


def _dumped(message: StoredMessage) -> Mapping[str, Any]:
    return {"seq": message.seq, "subject": message.subject, "msg_id": message.msg_id, **dumped_body(message.body)}


def _cut_out(connection: apsw.Connection, bounds: Bounds, entities: str) -> None:
    """Copy the schema of `live`, and of its rows those of the round, numbered as if nothing had been before."""
    for (sql,) in connection.execute("SELECT sql FROM live.sqlite_schema WHERE sql IS NOT NULL").fetchall():
        connection.execute(str(sql))
    for table in _WHOLE:
        connection.execute(f"INSERT INTO main.{table} SELECT * FROM live.{table}")  # noqa: S608
    above = entities[:-1] + chr(ord(entities[-1]) + 1)
    for scope in [int(str(number)) for (number,) in connection.execute("SELECT id FROM main.scopes")]:
        last = bounds.last_n.get(scope, 0)
        first, end = scope << _SHIFT, ((scope + 1) << _SHIFT) - 1
        conditions: Mapping[str, tuple[str, tuple[Any, ...]]] = {
            "outputs": ("id BETWEEN ? AND ?", (first + last + 1, end)),
            "keys": ("scope = ? AND first_n > ?", (scope, last)),
            "mismatches": ("scope = ? AND first_n > ?", (scope, last)),
            "dead_letters": ("scope = ? AND n > ?", (scope, last)),
            "heads": ("scope = ? AND entity_id >= ? AND entity_id < ?", (scope, entities, above)),
            "marks": ("id BETWEEN ? AND ? AND n > ?", (first, end, last)),
        }
        for table, (condition, values) in conditions.items():
            columns = ", ".join(_renumbered(table, name, last) for name in _columns(connection, table))
            connection.execute(f"INSERT INTO main.{table} SELECT {columns} FROM live.{table} WHERE {condition}", values)  # noqa: S608
    # What a mark says of messages before the round is nobody's to judge now: as if it said nothing.
    for stream, column in ((EVENTS, "event"), (FAILED, "failed")):
        connection.execute(
            f"UPDATE main.marks SET {column}_seq = 0, {column}_id = '' WHERE {column}_seq <= ?",  # noqa: S608
            (bounds.last_seq.get(stream, 0),),
        )


def _columns(connection: apsw.Connection, table: str) -> Sequence[str]:
    return [str(name) for (name,) in connection.execute("SELECT name FROM pragma_table_info(?, 'live')", (table,))]


def _renumbered(table: str, column: str, last: int) -> str:
    """The column, less the outputs before the round where it holds the number of one."""
    if column in _NUMBERS.get(table, ()):
        return f"CASE WHEN {column} > 0 THEN {column} - {last} ELSE {column} END"
    return column
