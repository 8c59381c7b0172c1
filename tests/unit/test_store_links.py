"""The links of an entity's events: who may add one, how they are walked, what becomes of a broken one."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import apsw
import attrs
import pytest

from meshforge_trio.cli.reader import ScopeFile, read_store
from meshforge_trio.errors import Stale, StoreBroken
from meshforge_trio.points import no_probe
from meshforge_trio.store.port import Commit, Head, Output, Snapshot
from meshforge_trio.store.sqlite import SQLiteEventStore, SQLiteScopeStore, inline
from meshforge_trio.subjects import Scope

SCOPE = Scope("acme", "main", "orders")
BASE = 1 << 40
History = Callable[[str, int, int], Awaitable[Sequence[Output]]]


@attrs.define
class Served:
    """A scope, and what was committed to it."""

    store: SQLiteEventStore
    rows: SQLiteScopeStore
    outputs: list[Output] = attrs.field(factory=list)
    heads: dict[str, Head] = attrs.field(factory=dict)

    def turn(self, *entities: str) -> Commit:
        """A commit of one event for each name."""
        commit, heads = Commit(1), dict(self.heads)
        for n, entity in enumerate(entities, len(self.outputs) + 1):
            version = heads[entity].version + 1 if entity in heads else 1
            output = Output(n, "event", f"k{n}", f"k{n}_e", "e", "evt.a.b.c.e", f"m{n}", b'{"n":%d}' % n)
            chain = hashlib.sha256((heads[entity].chain if entity in heads else b"") + output.body).digest()
            commit.outputs.append(attrs.evolve(output, entity_id=entity, version=version, chain=chain))
            heads[entity] = Head(entity, version, chain)
        commit.heads = [heads[entity] for entity in dict.fromkeys(entities)]
        return commit

    async def commit(self, commit: Commit) -> None:
        await self.rows.commit(commit, no_probe)
        self.outputs += commit.outputs
        self.heads |= {head.entity_id: head for head in commit.heads}

    def of(self, entity: str) -> list[Output]:
        return [output for output in self.outputs if output.entity_id == entity]

    def tampered(self, sql: str) -> None:
        self.store.connection.execute(sql)
        assert self.store.connection.changes() == 1


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    store = await SQLiteEventStore.open(tmp_path / "store.db", synchronous="OFF", offload=inline)
    rows = store.scope(SCOPE)
    assert await rows.take_lease("NATS1") is not None
    yield Served(store, rows)
    await store.close()


async def test_events_are_linked_to_the_one_before_and_heads_to_the_newest(served: Served) -> None:
    await served.commit(served.turn("a", "b", "a", "a"))
    beside = Output(5, "record", "k5", "k5_r", "r", "evt.a.b.c.r", "m5", b"{}", entity_id="a")
    commit = served.turn("b")
    commit.outputs = [beside, attrs.evolve(commit.outputs[0], n=6)]
    await served.commit(commit)
    query = served.store.connection.execute
    assert query("SELECT id - ?, prev FROM outputs", (BASE,)).fetchall() == [
        (1, 0),
        (2, 0),
        (3, 1),
        (4, 3),
        (5, None),
        (6, 2),
    ]
    assert query("SELECT entity_id, version, last_n FROM heads").fetchall() == [("a", 3, 4), ("b", 2, 6)]


# -- forks -------------------------------------------------------------------------------------------------------


async def test_a_second_head_is_impossible_and_one_moved_by_another_hand_makes_a_commit_stale(served: Served) -> None:
    await served.commit(served.turn("a"))
    with pytest.raises(apsw.ConstraintError):
        served.store.connection.execute("INSERT INTO heads VALUES (1, 'a', 2, x'00', 1)")
    fork = served.turn("a")
    served.tampered("UPDATE heads SET version = 2")
    with pytest.raises(Stale, match="version 2 of 'a' is not the next: 3"):
        await served.rows.commit(fork, no_probe)
    served.tampered("UPDATE heads SET version = 1")
    served.tampered("DELETE FROM heads")
    with pytest.raises(Stale, match="version 2 of 'a' is not the next: 1"):
        await served.rows.commit(fork, no_probe)
    assert len(await served.rows.outputs_after(0, 10)) == 1


async def test_of_two_processes_that_continue_an_entity_one_is_stale(served: Served, tmp_path: Path) -> None:
    await served.commit(served.turn("a", "b"))
    mine, theirs = served.turn("a"), served.turn("a", "a")
    await served.rows.commit(theirs, no_probe)
    for n in (3, 5):
        mine.outputs[0].n = n
        with pytest.raises(Stale):
            await served.rows.commit(mine, no_probe)
    assert await served.rows.history("a", 1, 9) == theirs.outputs


# -- broken links ------------------------------------------------------------------------------------------------

BREAKS = {
    "event gone": f"DELETE FROM outputs WHERE id = {BASE + 3}",
    "first event gone": f"DELETE FROM outputs WHERE id = {BASE + 1}",
    "newest event gone": f"DELETE FROM outputs WHERE id = {BASE + 7}",
    "no link": f"UPDATE outputs SET prev = NULL WHERE id = {BASE + 5}",
    "to nowhere": f"UPDATE outputs SET prev = 99 WHERE id = {BASE + 5}",
    "to another entity of that version": f"UPDATE outputs SET prev = 4 WHERE id = {BASE + 5}",
    "two back": f"UPDATE outputs SET prev = 1 WHERE id = {BASE + 5}",
    "to itself": f"UPDATE outputs SET prev = 5 WHERE id = {BASE + 5}",
    "forward": f"UPDATE outputs SET prev = 7 WHERE id = {BASE + 5}",
    "row given to another entity": f"UPDATE outputs SET entity_id = 'b' WHERE id = {BASE + 3}",
    "version changed": f"UPDATE outputs SET version = 9 WHERE id = {BASE + 3}",
    "head at an older event": "UPDATE heads SET last_n = 5 WHERE entity_id = 'a'",
    "head at another entity": "UPDATE heads SET last_n = 8 WHERE entity_id = 'a'",
    "head too far": "UPDATE heads SET version = 5 WHERE entity_id = 'a'",
}


@pytest.mark.parametrize("sql", BREAKS.values(), ids=BREAKS)
@pytest.mark.parametrize("limit", [1, 10])
async def test_a_chain_that_does_not_hold_is_damage(served: Served, tmp_path: Path, sql: str, limit: int) -> None:
    await served.commit(served.turn("a", "b", "a", "b", "a", "b", "a", "b"))
    await served.rows.history("b", 0, 10)
    served.tampered(sql)
    other = await SQLiteEventStore.open(tmp_path / "store.db", synchronous="OFF", offload=inline)
    with pytest.raises(StoreBroken, match=r"damaged.*(hang together|missing|is not version)"):
        await other.scope(SCOPE).read([], ["a"])
    with pytest.raises(StoreBroken, match="damaged"):
        await served.rows.history("a", 0, limit)
    with read_store(tmp_path / "store.db") as file, pytest.raises(StoreBroken, match="damaged"):
        await file.rows(SCOPE).history("a", 0, limit)
    await other.close()


@pytest.mark.parametrize("last_n", [2, 3, 6, 99])
async def test_a_head_that_leads_elsewhere_is_damage_however_short_its_tail(served: Served, last_n: int) -> None:
    commit = served.turn(*"ababab")
    commit.snapshots = [Snapshot("a", 2, 1, b"{}")]
    await served.commit(commit)
    served.tampered(f"UPDATE heads SET last_n = {last_n} WHERE entity_id = 'a'")
    with pytest.raises(StoreBroken, match="of the newest 1 events of entity 'a' of scope 1 only 0 hang together"):
        await served.rows.read([], ["a"])


async def test_a_link_that_breaks_after_it_was_walked_is_found_by_the_next_page(served: Served) -> None:
    await served.commit(served.turn(*"aaaaaa"))
    assert await served.rows.history("a", 0, 2) == served.outputs[:2]
    served.tampered(f"UPDATE outputs SET entity_id = 'b' WHERE id = {BASE + 3}")
    with pytest.raises(StoreBroken, match="is not version 3 of 'a'"):
        await served.rows.history("a", 2, 2)


# -- changed bits ------------------------------------------------------------------------------------------------

FLIPS = {
    "body": f"UPDATE outputs SET body = x'7b7d' WHERE id = {BASE + 3}",
    "chain": f"UPDATE outputs SET chain = x'00' WHERE id = {BASE + 3}",
    "body of the newest": f"UPDATE outputs SET body = x'7b7d' WHERE id = {BASE + 5}",
    "chain of the newest": f"UPDATE outputs SET chain = x'00' WHERE id = {BASE + 5}",
    "head": "UPDATE heads SET chain = x'00' WHERE entity_id = 'a'",
}
SAID = r"damaged.*(version [23] of entity 'a'|hang together|ends at version 3)"


@pytest.mark.parametrize("sql", FLIPS.values(), ids=FLIPS)
@pytest.mark.parametrize("saved", [0, 1])
async def test_what_was_not_written_so_is_not_read(served: Served, sql: str, saved: int) -> None:
    """With a snapshot of version 1 the chain goes on from its event."""
    commit = served.turn(*"ababab")
    commit.snapshots = [Snapshot("a", saved, 1, b"{}")] if saved else []
    await served.commit(commit)
    assert len((await served.rows.read([], ["a", "b"])).heads) == 2
    served.tampered(sql)
    assert (await served.rows.read([], ["b"])).heads["b"].version == 3
    with pytest.raises(StoreBroken, match=SAID):
        await served.rows.read([], ["a"])


@pytest.mark.parametrize("sql", FLIPS.values(), ids=FLIPS)
@pytest.mark.parametrize("limit", [1, 2, 10])
@pytest.mark.parametrize("after", [0, 1])
async def test_a_history_ends_at_what_was_not_written_so(served: Served, sql: str, limit: int, after: int) -> None:
    await served.commit(served.turn(*"ababab"))
    served.tampered(sql)

    async def read_on() -> None:
        read = after
        while page := await served.rows.history("a", read, limit):
            read += len(page)

    with pytest.raises(StoreBroken, match=SAID):
        await read_on()


async def test_a_snapshot_without_its_event_is_no_beginning(served: Served) -> None:
    commit = served.turn(*"aaa")
    commit.snapshots = [Snapshot("a", 1, 1, b"{}")]
    await served.commit(commit)
    served.tampered(f"DELETE FROM outputs WHERE id = {BASE + 1}")
    with pytest.raises(StoreBroken, match="the event of version 2 of entity 'a'"):
        await served.rows.read([], ["a"])
    served.tampered("DELETE FROM snapshots")


async def read_all(history: History, limit: int) -> list[Output]:
    found: list[Output] = []
    while page := await history("a", len(found), limit):
        found += page
    return found


# -- reading -----------------------------------------------------------------------------------------------------


async def test_every_tail_begins_after_its_own_snapshot(served: Served) -> None:
    await served.commit(served.turn(*"abcabcabcabd"))
    commit = served.turn("d")
    commit.snapshots = [Snapshot(entity, version, 1, b"{}") for entity, version in (("a", 2), ("b", 4), ("c", 2))]
    await served.commit(commit)
    heads = (await served.rows.read([], ["d", "c", "b", "a", "nobody"])).heads
    assert {entity: (head.version, list(head.tail)) for entity, head in heads.items()} == {
        entity: (len(served.of(entity)), [output.body for output in served.of(entity)[saved:]])
        for entity, saved in (("a", 2), ("b", 4), ("c", 2), ("d", 0))
    }


async def test_what_was_walked_is_remembered_only_while_it_holds(served: Served) -> None:
    history = served.rows.history
    await served.commit(served.turn(*"aabab"))
    assert await history("a", 2, 9) == served.of("a")[2:]
    assert await history("a", 0, 2) == served.of("a")[:2]
    await served.commit(served.turn("a", "b"))
    assert await history("a", 1, 9) == served.of("a")[1:]
    assert await history("b", 1, 9) == served.of("b")[1:]
    assert await history("b", 9, 9) == await history("c", 0, 9) == []
    assert await history("a", 0, 2) == served.of("a")[:2]
    # Heads are moved by hand: what is remembered lies beside the chain, first at its height, then above it.
    third, moved = served.of("a")[2], served.outputs[6]
    chain = hashlib.sha256((third.chain or b"") + moved.body).hexdigest()
    served.tampered(
        f"UPDATE outputs SET entity_id = 'a', version = 4, prev = 4, chain = x'{chain}' WHERE id = {BASE + 7}"
    )
    served.tampered(f"UPDATE heads SET last_n = 7, chain = x'{chain}' WHERE entity_id = 'a'")
    assert [output.n for output in await history("a", 0, 9)] == [1, 2, 4, 7]
    chain = (third.chain or b"").hex()
    served.tampered(f"UPDATE heads SET version = 3, last_n = 4, chain = x'{chain}' WHERE entity_id = 'a'")
    assert await history("a", 0, 9) == served.of("a")[:3]


async def test_a_long_history_is_read_in_linear_time(served: Served, tmp_path: Path) -> None:
    """Counted in steps of SQLite's virtual machine. From the head again for every page it would be 13 times as many."""
    steps = 0

    def count() -> bool:
        nonlocal steps
        steps += 1
        return False

    async def steps_of(history: History, connection: apsw.Connection, expected: int) -> int:
        nonlocal steps
        steps = 0
        connection.set_progress_handler(count, 1)
        assert await read_all(history, 100) == served.of("a")[:expected]
        connection.set_progress_handler(None)
        return steps

    for size in (1250, 2500):
        await served.commit(served.turn(*["a", "b"] * 1250))
        if size == 1250:
            half = await steps_of(served.store.scope(SCOPE).history, served.store.connection, size)
    fresh = await steps_of(served.store.scope(SCOPE).history, served.store.connection, 2500)
    assert fresh < 2.2 * half
    with read_store(tmp_path / "store.db") as file:
        rows: ScopeFile = file.rows(SCOPE)
        assert await steps_of(rows.history, rows._connection, 2500) <= fresh
    once = await served.rows.history("a", 0, 2500)
    assert once == served.of("a")
