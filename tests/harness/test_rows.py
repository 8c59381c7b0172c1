"""The store as the harness reads it: from a copy, without the code under test, and never healed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import apsw
import attrs
import pytest

from chaos.rows import HeadRow, KeyRow, Letter, MarkRow, OutputRow, Rows, RowsError, copy_store, read_store
from meshforge_trio.points import no_probe
from meshforge_trio.store.port import Attempt, Commit, DeadLetter, Head, KeyRecord, Kind, Mark, Output
from meshforge_trio.store.sqlite import SQLiteEventStore
from meshforge_trio.subjects import Scope

SCOPE = Scope("acme", "main", "orders")
OTHER = Scope("acme", "main", "billing")
KINDS: Sequence[Kind] = ("event", "record", "command", "dead")
CALLS = ((1.0, "boom"), (2.5, ""))
ORIGINAL = Letter(
    SCOPE, "k4", 0, "cmd.acme.main.orders.add", b"\xff", "never", 2, b"h", "not ever", "a", "t1", "waiting", CALLS
)


def output(n: int, kind: Kind = "event", *, entity: str | None = None, version: int | None = None) -> Output:
    chain = None if version is None else b"c%d" % version
    return Output(n, kind, f"k{n}", f"c{n}_made", "made", "evt.s", f"m{n}", b'{"n":%d}' % n, entity, version, chain)


def letter_of(generation: int) -> DeadLetter:
    n, subject, body = 3 + generation, ORIGINAL.subject, ORIGINAL.body
    return DeadLetter("k4", generation, n, subject, b"h", body, "never", "not ever", 2, 0.0, 0.0, "a", "t1", CALLS)


async def write(path: Path) -> None:
    """A store with a row of each kind in each table that is read."""
    store = await SQLiteEventStore.open(path, synchronous="OFF")
    for scope in (SCOPE, OTHER):
        rows = store.scope(scope)
        lease = await rows.take_lease("N1")
        assert lease is not None
        outputs = [output(n, kind) for n, kind in enumerate(KINDS, 1)]
        outputs += [output(5, entity="a", version=1), output(6, entity="a", version=2)]
        commit = Commit(lease.epoch, outputs, heads=[Head("a", 2, b"c2")])
        commit.keys = [
            KeyRecord("k1", b"h" * 32, "decided", 1, 3),
            KeyRecord("k4", b"h" * 32, "dead", 4, 4, 1),
            KeyRecord("k5", b"h" * 32, "conflict", 5, 6),
        ]
        commit.mismatches = [KeyRecord("k1", b"i" * 32, "refused", 2, 2)]
        commit.attempts = [Attempt("k9", "a", 2, 0.0, 0.0, 0.0, "boom")]
        commit.dead = [letter_of(0), letter_of(1)]
        commit.mark = Mark(6, 5, "m6", 1, "m4", 0.0)
        commit.state_hash = (6, "f" * 64)
        await rows.commit(commit, no_probe)
    await store.close()


async def test_every_table_is_read(tmp_path: Path) -> None:
    await write(tmp_path / "store.db")
    rows = read_store(tmp_path / "store.db")
    assert [(row.scope, row.n) for row in rows.outputs] == [(s, n) for s in (SCOPE, OTHER) for n in range(1, 7)]
    assert [row.kind for row in rows.outputs[:4]] == list(KINDS)
    second = OutputRow(SCOPE, 6, "event", "k6", "c6_made", "made", "evt.s", "m6", b'{"n":6}', "a", 2, b"c2", 5)
    assert rows.outputs[5] == second
    assert [row.prev for row in rows.outputs[:6]] == [None, None, None, None, 0, 5]
    ours = [row for row in rows.keys if row.scope == SCOPE]
    assert ours == [
        KeyRow(SCOPE, "k1", b"h" * 32, "decided", 1, 3),
        KeyRow(SCOPE, "k4", b"h" * 32, "dead", 4, 4, 1),
        KeyRow(SCOPE, "k5", b"h" * 32, "conflict", 5, 6),
    ]
    assert rows.mismatches[0] == KeyRow(SCOPE, "k1", b"i" * 32, "refused", 2, 2)
    assert rows.heads == {(scope, "a"): HeadRow(2, b"c2", 6) for scope in (SCOPE, OTHER)}
    assert rows.marks == [MarkRow(scope, 6, 5, "m6", 1, "m4") for scope in (SCOPE, OTHER)]
    assert rows.attempts == {(scope, "k9"): 2 for scope in (SCOPE, OTHER)}
    assert rows.dead == [
        attrs.evolve(ORIGINAL, scope=scope, generation=generation) for scope in (SCOPE, OTHER) for generation in (0, 1)
    ]
    assert rows.generations == {}
    assert rows.state_hashes == dict.fromkeys((SCOPE, OTHER), (6, "f" * 64))


async def test_fates_are_read(tmp_path: Path) -> None:
    await write(tmp_path / "store.db")
    store = await SQLiteEventStore.open(tmp_path / "store.db", synchronous="OFF")
    rows = store.scope(SCOPE)
    lease = await rows.take_lease("N1")
    assert lease is not None
    commit = Commit(lease.epoch, redriven=[("k4", 1)], discarded=[("k4", 0)])
    await rows.commit(commit, no_probe)
    await store.close()
    found = read_store(tmp_path / "store.db")
    states = {(letter.scope, letter.generation): letter.state for letter in found.dead}
    assert states == {(SCOPE, 0): "discarded", (SCOPE, 1): "redriven", (OTHER, 0): "waiting", (OTHER, 1): "waiting"}
    assert found.generations == {(SCOPE, "k4"): 2}
    assert (SCOPE, "k4") not in {(row.scope, row.key) for row in found.keys}


def contents(directory: Path) -> dict[str, bytes]:
    return {part.name: part.read_bytes() for part in directory.glob("store.db*") if part.is_file()}


async def test_the_write_ahead_log_is_copied_and_the_original_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    await write(path)
    # As a killed process leaves it: the last commit is in the log, and nobody has carried it over.
    holder = apsw.Connection(str(path))
    for statement in ("PRAGMA journal_mode=WAL", "PRAGMA wal_autocheckpoint=0", "UPDATE attempts SET attempts = 7"):
        list(holder.execute(statement))
    before = contents(tmp_path)
    assert before["store.db-wal"]
    (tmp_path / "copy").mkdir()
    copy_store(path, tmp_path / "copy")
    assert set(read_store(tmp_path / "copy" / "store.db").attempts.values()) == {7}
    assert contents(tmp_path) == before
    holder.close()


def test_a_store_that_is_not_there_yet_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    copy_store(tmp_path / "store.db", tmp_path / "copy")
    assert list((tmp_path / "copy").iterdir()) == []
    assert read_store(tmp_path / "copy" / "store.db") == Rows()
    # Killed between making the file and making its tables.
    apsw.Connection(str(tmp_path / "store.db")).execute("CREATE TABLE other(a)")
    assert read_store(tmp_path / "store.db") == Rows()


# -- what is no store -----------------------------------------------------------------------------------------------


def refused(path: Path) -> str:
    with pytest.raises(RowsError, match="cannot be read") as caught:
        read_store(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


async def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    await write(path)
    whole = path.read_bytes()
    path.write_bytes(b"no database at all, but long enough to have a header of its own " * 20)
    refused(path)
    path.write_bytes(whole[: len(whole) // 2])
    refused(path)
    path.unlink()
    path.mkdir()
    refused(path)


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE outputs DROP COLUMN prev",
        "ALTER TABLE heads ADD COLUMN more ANY",
        "DROP TABLE marks",
        "UPDATE outputs SET kind = 9",
        "UPDATE keys SET outcome = 9",
        "UPDATE dead_letters SET state = 9",
        "UPDATE dead_letters SET calls = 'no json'",
        "DELETE FROM scopes",
    ],
)
async def test_a_store_of_another_make_is_refused(tmp_path: Path, change: str) -> None:
    path = tmp_path / "store.db"
    await write(path)
    apsw.Connection(str(path)).execute(change)
    refused(path)
