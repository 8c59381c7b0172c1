"""A store that holds one of everything a scope can decide, as the decider makes it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import apsw
import attrs
from doubles import Desk, command, counter, event

from meshforge_trio.backup import Backup, back_up
from meshforge_trio.envelope import CommandEnvelope, EventEnvelope, SecurityContext
from meshforge_trio.points import no_probe
from meshforge_trio.store.port import Mark
from meshforge_trio.store.sqlite import SQLiteEventStore, SQLiteScopeStore
from meshforge_trio.subjects import DISCARD, REDRIVE, Scope

ONE: Final = Scope("t", "w", "counter")
OTHER: Final = Scope("t", "other", "counter")
BASE: Final = 1 << 40
SYSTEM: Final = SecurityContext("ops", "system")


def fate(number: int, action: str, key: str) -> CommandEnvelope:
    """What an operator says of the dead letter of `key`."""
    payload = {"key": key, "generation": 0, "actor": "kim", "reason": "mended"}
    return command(number, action, entity_id=None, payload=payload, security_context=SYSTEM)


def story() -> list[CommandEnvelope | EventEnvelope]:
    """Commands and an event, one turn each, that between them take every path to the store."""
    return [
        command(1),
        command(2, "twice"),
        command(3, entity_id="b"),
        command(4, expected_version=9),
        command(5, "refuse"),
        command(1, "twice", id="again"),
        command(6, "send", payload={"count": 2}),
        command(7, "poison"),
        command(8, "poison", entity_id="b"),
        command(9, "poison", entity_id=None),
        command(10, "nothing"),
        command(11, security_context=None),
        event(12),
        fate(20, REDRIVE, "k7"),
        fate(21, DISCARD, "k8"),
        command(7, id="redriven"),
        *[command(100 + n) for n in range(70)],
    ]


async def decide(rows: SQLiteScopeStore, scope: Scope, *, first_n: int = 1) -> None:
    """Serve the whole story under a lease."""
    lease = await rows.take_lease("NATS1")
    assert lease is not None
    desk = Desk(counter(), scope)
    for message in story():
        plan = await desk.turn(desk.read(attrs.evolve(message, tenant=scope.tenant, workspace=scope.workspace)))
        plan.commit.epoch = lease.epoch
        last = len(desk.outputs)
        plan.commit.mark = Mark(last, last, f"m{last}", 0, "", 1.0)
        await rows.commit(plan.commit, no_probe)


async def keep(path: Path) -> None:
    """Make the store, with two scopes, and close it."""
    store = await SQLiteEventStore.open(path, synchronous="OFF")
    for scope in (ONE, OTHER):
        await decide(store.scope(scope), scope)
    await store.close()


def tampered(path: Path, *statements: str) -> None:
    """Change a closed store behind everybody's back."""
    connection = apsw.Connection(str(path))
    for sql in statements:
        connection.execute(sql)
        assert connection.changes(), sql
    connection.close()


def silent(what: str, done: int, total: int) -> None:
    pass


def copied(store: Path, to: Path, *, force: bool = False, verify: bool = True) -> Backup:
    return back_up(store, to, force=force, verify=verify, progress=silent)


def names(directory: Path) -> list[str]:
    return sorted(file.name for file in directory.iterdir())


def dump(path: Path, *tables: str) -> list[tuple[object, ...]]:
    """The rows of tables; of all that a copy must keep as they are, unless they are named."""
    kept = ("scopes", "outputs", "keys", "mismatches", "heads", "snapshots", "attempts", "dead_letters", "marks")
    connection = apsw.Connection(os.fspath(path))
    rows: list[tuple[object, ...]] = []
    for table in tables or (*kept, "generations", "state_hashes"):
        rows += connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall()
    connection.close()
    return rows
