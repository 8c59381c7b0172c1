"""What every store must do: S1, S3, S4 and S5 of `store/port.py`, through the port alone.

S2, S6 and S7 are in `test_store_lease.py`; `stores.py` says what is tested.
"""

from __future__ import annotations

import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import attrs
import hypothesis.strategies as st
import pytest
import trio
from hypothesis import given, settings

from conformance.stores import HASH, OTHER, SCOPE, WORLDS, Serving, World, everything, linked, output_of, serve
from meshforge_trio.errors import Stale
from meshforge_trio.points import Point, no_probe
from meshforge_trio.store.port import Attempt, Commit, DeadLetter, Head, KeyRecord, Mark, Reading, Snapshot
from meshforge_trio.store.sqlite import SQLiteEventStore, inline
from meshforge_trio.subjects import Scope


@pytest.fixture(params=WORLDS)
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    made = WORLDS[request.param](tmp_path)
    yield made
    await made.close()


# -- S1: all of a commit or nothing ------------------------------------------------------------------------------


async def test_a_commit_is_read_back_whole_by_another_process(world: World) -> None:
    serving = await serve(await world.open())
    event = linked(output_of(1, "k1"), "e1", 1)
    assert event.chain is not None
    outputs = [
        event,
        attrs.evolve(output_of(2, "k1", "record"), entity_id="e1"),
        output_of(3, "k1", "command"),
        output_of(4, "k2", "dead"),
        output_of(5, "k1", "record"),
    ]
    keys = [
        KeyRecord("k1", HASH, "decided", 1, 3),
        KeyRecord("k2", b"x" * 32, "dead", 4, 4, 7),
        KeyRecord("none", HASH, "refused", 5, 4),
        KeyRecord("conflict", HASH, "conflict", 5, 4),
        KeyRecord("violation", HASH, "violation", 5, 4),
    ]
    refusal = KeyRecord("k1", b"other", "refused", 5, 5)
    calls = ((1.25, ""), (2.5, "ValueError: no \N{SNOWMAN}"))
    attempt = Attempt("k3", "e1", 2, 10.5, 1.25, 2.5, "ValueError: no", calls)
    anonymous = Attempt("k4", None, 1, 0.0, 1.0, 1.0, "")
    dead = DeadLetter(
        "k2", 7, 4, "cmd.acme.main.orders.create", b"h", b"b", "poison", "why", 4, 1.0, 2.0, "e1", "t1", calls
    )
    mark = Mark(3, 17, "msg-k1-3", 2, "msg-k0-1", 99.5)
    snapshot = Snapshot("e1", 1, 3, b'{"total":1}')
    commit = Commit(serving.lease.epoch, outputs, keys, [refusal], [Head("e1", 1, event.chain)], [snapshot])
    commit.attempts, commit.dead, commit.mark = [attempt, anonymous], [dead], mark
    await serving.rows.commit(commit, no_probe)

    rows = (await world.open()).scope(SCOPE)
    reading = await rows.read([("k1", b"other"), ("k2", b"x" * 32), ("k9", HASH)], ["e1", "e9"])
    assert reading == Reading(
        keys={"k1": (keys[0], outputs[:3]), "k2": (keys[1], outputs[3:4])},
        mismatches={("k1", b"other"): outputs[4:]},
        heads={"e1": Head("e1", 1, event.chain, b'{"total":1}', 1, 3)},
        generations={},
        dead={"k2": dead},
    )
    reading = await rows.read([(key.key, HASH) for key in keys], [])
    assert [record for record, _ in reading.keys.values()] == sorted(keys, key=lambda k: k.key)
    assert not reading.mismatches, "k1 has no refusal under its own hash, and nobody sent k2 with this one"
    assert await rows.outputs_after(0, 10) == outputs
    assert await rows.history("e1", 0, 10) == [event]
    assert await rows.heads("", 10) == [Head("e1", 1, event.chain, b'{"total":1}', 1, 3)]
    assert await rows.attempts() == [attempt, anonymous]
    assert await rows.marks() == [mark]


async def test_more_rows_than_any_statement_takes_are_all_there(world: World) -> None:
    serving = await serve(await world.open())
    names = [f"{i * 7919 % 1009:04d}" for i in range(333)]
    commit = Commit(serving.lease.epoch)
    for n, name in enumerate(names, 1):
        commit.outputs.append(linked(output_of(n, name), name, 1))
        commit.keys.append(KeyRecord(name, HASH, "decided", n, n))
        commit.heads.append(Head(name, 1, commit.outputs[-1].chain or b""))
    await serving.rows.commit(commit, no_probe)

    for asked in (names, names[:70], names[:9], names[:4], names[:1]):
        reading = await serving.rows.read([(name, HASH) for name in asked], asked)
        assert {key: record.first_n for key, (record, _) in reading.keys.items()} == {
            name: n for n, name in enumerate(names, 1) if name in asked
        }
        assert {name: list(head.tail) for name, head in reading.heads.items()} == {
            name: [b'{"n":%d}' % n] for n, name in enumerate(names, 1) if name in asked
        }


async def test_a_probe_that_raises_inside_the_transaction_undoes_all_of_it(world: World) -> None:
    serving = await serve(await world.open())
    await serving.commit(serving.decision("k1", "e1"))
    before = await everything(serving.rows, ("k1", "k2"), ("e1",))
    seen: list[Point] = []

    def probe(point: Point) -> None:
        seen.append(point)
        raise ArithmeticError

    commit = serving.decision("k2", "e1")
    commit.mark, commit.clean = Mark(1, 1, "m", 0, "", 1.0), True
    with pytest.raises(ArithmeticError):
        await serving.rows.commit(commit, probe)
    assert seen == [Point.IN_STORE]
    assert await everything(serving.rows, ("k1", "k2"), ("e1",)) == before
    await serving.commit(serving.decision("k2", "e1"))


KILLED = """
import os, signal, sys, trio
from meshforge_trio.points import Point, no_probe
from meshforge_trio.store.port import Commit, KeyRecord
from meshforge_trio.store.sqlite import SQLiteEventStore, inline
from meshforge_trio.subjects import Scope

def die(point=None):
    os.kill(os.getpid(), signal.SIGKILL)

async def main():
    store = await {source}
    rows = store.scope(Scope("acme", "main", "orders"))
    lease = await rows.take_lease("NATS1")
    commit = Commit(lease.epoch, keys=[KeyRecord("k1", b"h" * 32, "decided", 1, 0)])
    await rows.commit(commit, {probe})
    die()

trio.run(main)
"""


async def run_until_killed(world: World, probe: str) -> None:
    source = KILLED.format(source=world.source(), probe=probe)
    died = await trio.run_process([sys.executable, "-c", source], check=False)
    assert died.returncode == -signal.SIGKILL


@pytest.mark.parametrize(("probe", "kept"), [("die", False), ("no_probe", True)])
async def test_a_commit_survives_the_process_from_its_return_on_and_not_before(
    world: World, probe: str, kept: bool
) -> None:
    await run_until_killed(world, probe)
    reading = await (await world.open()).scope(SCOPE).read([("k1", HASH)], [])
    assert ("k1" in reading.keys) is kept


# -- S3: what exists or is not next is stale ---------------------------------------------------------------------


def same_key(serving: Serving) -> Commit:
    return serving.decision("k1", "e2")


def same_output(serving: Serving) -> Commit:
    serving.n = 0
    return serving.decision("k2")


def output_gap(serving: Serving) -> Commit:
    serving.n += 1
    return serving.decision("k2")


def same_version(serving: Serving) -> Commit:
    serving.versions["e1"] = 1
    return serving.decision("k2", "e1")


def version_gap(serving: Serving) -> Commit:
    serving.versions["e1"] = 3
    return serving.decision("k2", "e1")


def first_version_is_not_one(serving: Serving) -> Commit:
    serving.versions["new"] = 1
    return serving.decision("k2", "new")


def version_skipped_inside(serving: Serving) -> Commit:
    commit = serving.decision("k2", "e1", ("paid", "sent"))
    commit.outputs[1] = attrs.evolve(commit.outputs[1], version=5)
    commit.heads = [Head("e1", 5, b"c5")]
    return commit


def head_without_event(serving: Serving) -> Commit:
    commit = serving.decision("k2")
    commit.heads = [Head("e1", 3, b"c3")]
    return commit


def event_without_head(serving: Serving) -> Commit:
    commit = serving.decision("k2", "e1")
    commit.heads = []
    return commit


def head_behind_event(serving: Serving) -> Commit:
    commit = serving.decision("k2", "e1", ("paid", "sent"))
    commit.heads = [Head("e1", 3, b"c3")]
    return commit


def two_heads(serving: Serving) -> Commit:
    commit = serving.decision("k2", "e1")
    commit.heads.append(attrs.evolve(commit.heads[0], chain=b"other"))
    return commit


def event_twice(serving: Serving) -> Commit:
    commit = serving.decision("k2", "e1", ("paid", "sent"))
    commit.outputs[1] = attrs.evolve(commit.outputs[1], version=3)
    commit.heads = [Head("e1", 3, b"c3")]
    return commit


def same_refusal(serving: Serving) -> Commit:
    commit = serving.decision("k2")
    commit.mismatches = [KeyRecord("k1", b"other", "refused", 3, 3)]
    return commit


def same_dead_letter(serving: Serving) -> Commit:
    commit = serving.decision("k2")
    commit.dead = [DeadLetter("k0", 0, 3, "s", b"", b"", "c", "r", 1, 0.0, 0.0)]
    return commit


@pytest.mark.parametrize(
    "stale",
    [
        same_key,
        same_output,
        output_gap,
        same_version,
        version_gap,
        first_version_is_not_one,
        version_skipped_inside,
        head_without_event,
        event_without_head,
        head_behind_event,
        two_heads,
        event_twice,
        same_refusal,
        same_dead_letter,
    ],
)
async def test_a_commit_that_does_not_continue_what_is_there_is_stale(
    world: World, stale: Callable[[Serving], Commit]
) -> None:
    serving = await serve(await world.open())
    first = serving.decision("k1", "e1", ("created", "renamed"))
    first.mismatches = [KeyRecord("k1", b"other", "refused", 1, 1)]
    first.dead = [DeadLetter("k0", 0, 1, "s", b"", b"", "c", "r", 1, 0.0, 0.0)]
    await serving.commit(first)
    before = await everything(serving.rows, ("k1", "k2"), ("e1", "e2", "new"))

    commit = stale(attrs.evolve(serving, versions=dict(serving.versions)))
    commit.attempts = [Attempt("k9", None, 1, 0.0, 0.0, 0.0, "")]
    commit.mark = Mark(1, 1, "m", 0, "", 1.0)
    with pytest.raises(Stale):
        await serving.rows.commit(commit, no_probe)

    assert await everything(serving.rows, ("k1", "k2"), ("e1", "e2", "new")) == before
    await serving.commit(serving.decision("k2", "e1"))


# -- S4: what was read stays -------------------------------------------------------------------------------------


async def test_outputs_history_and_heads_come_in_order_and_in_pages(world: World) -> None:
    serving = await serve(await world.open())
    for i in range(7):
        await serving.commit(serving.decision(f"k{i}", f"e{i % 3}", ("a", "b")))
    rows = serving.rows
    assert [o.n for o in await rows.outputs_after(3, 4)] == [4, 5, 6, 7]
    assert [o.n for o in await rows.outputs_after(-5, 2)] == [1, 2]
    assert await rows.outputs_after(14, 10) == []
    assert await rows.outputs_after(1 << 60, 10) == []
    assert [o.version for o in await rows.history("e0", 0, 100)] == [1, 2, 3, 4, 5, 6]
    assert [(o.version, o.n) for o in await rows.history("e0", 2, 3)] == [(3, 7), (4, 8), (5, 13)]
    assert await rows.history("e9", 0, 10) == []
    assert [head.entity_id for head in await rows.heads("", 2)] == ["e0", "e1"]
    assert [(head.entity_id, head.version) for head in await rows.heads("e1", 2)] == [("e2", 4)]


async def test_a_head_brings_its_newest_snapshot_and_the_events_after_it(world: World) -> None:
    serving = await serve(await world.open())
    bodies: list[bytes] = []
    for i in range(6):
        commit = serving.decision(f"k{i}", "e1")
        bodies.append(commit.outputs[0].body)
        if i in (1, 3):
            commit.snapshots = [Snapshot("e1", i + 1, i, b'{"at":%d}' % (i + 1))]
        await serving.commit(commit)
        (head,) = (await serving.rows.read([], ["e1"])).heads.values()
        saved = 0 if i < 1 else 2 if i < 3 else 4
        assert (head.version, head.state_version, head.state_schema) == (i + 1, saved, max(saved - 1, 0))
        assert head.state == (b'{"at":%d}' % saved if saved else None)
        assert list(head.tail) == bodies[saved:]


async def test_an_attempt_is_replaced_and_ended(world: World) -> None:
    serving = await serve(await world.open())
    first = Attempt("k1", "e1", 1, 5.0, 1.0, 1.0, "boom")
    second = attrs.evolve(first, attempts=2, last_at=7.0)
    other = attrs.evolve(first, key="k2")
    await serving.rows.commit(Commit(serving.lease.epoch, attempts=[first, other]), no_probe)
    await serving.rows.commit(Commit(serving.lease.epoch, attempts=[second]), no_probe)
    assert await serving.rows.attempts() == [second, other]
    await serving.rows.commit(Commit(serving.lease.epoch, ended=["k1", "unknown"]), no_probe)
    assert await serving.rows.attempts() == [other]


async def test_marks_come_newest_first_even_for_one_output(world: World) -> None:
    serving = await serve(await world.open())
    written = [Mark(n, seq, f"m{n}", 0, "", float(seq)) for n, seq in ((0, 0), (5, 3), (5, 4), (2, 1))]
    for mark in written:
        await serving.rows.commit(Commit(serving.lease.epoch, mark=mark), no_probe)
    assert await serving.rows.marks() == written[::-1]


async def test_a_cancelled_commit_is_awaited_to_its_end(world: World) -> None:
    serving = await serve(await world.open())
    with trio.CancelScope() as scope:

        def probe(_: Point) -> None:
            trio.from_thread.run_sync(scope.cancel)

        await serving.rows.commit(serving.decision("k1"), probe)
        serving.n += 1
    assert scope.cancel_called
    assert serving.n == 1, "the result of the commit must reach the caller"
    assert [o.key for o in await serving.rows.outputs_after(0, 10)] == ["k1"]


# -- S5: nothing reaches across scopes ---------------------------------------------------------------------------

NAMES = st.lists(st.text(min_size=1, max_size=4), min_size=1, max_size=6, unique=True)


@settings(max_examples=40, deadline=None)
@given(mine=NAMES, shared=NAMES, scopes=st.permutations([SCOPE, OTHER, Scope("zeta", "main", "orders")]))
def test_equal_keys_and_entities_of_two_scopes_never_meet(
    mine: list[str], shared: list[str], scopes: list[Scope]
) -> None:
    """Any text is a key or an entity: empty-looking, with NUL, not normalised, equal in another scope."""

    async def main() -> None:
        with tempfile.TemporaryDirectory() as directory:
            store = await SQLiteEventStore.open(Path(directory) / "store.db", synchronous="OFF", offload=inline)
            first, second, third = [await serve(store, scope) for scope in scopes]
            for name in dict.fromkeys([*mine, *shared]):
                await first.commit(first.decision(name, name))
            for name in shared:
                await second.commit(second.decision(name, name, ("a", "b")))
            asked = list(dict.fromkeys([*mine, *shared]))
            for serving, own, per_key in ((first, asked, 1), (second, shared, 2), (third, [], 0)):
                reading = await serving.rows.read([(name, HASH) for name in asked], asked)
                assert sorted(reading.keys) == sorted(reading.heads) == sorted(own)
                assert [o.n for o in await serving.rows.outputs_after(0, 99)] == list(range(1, len(own) * per_key + 1))
                for key, (record, outputs) in reading.keys.items():
                    assert [(o.key, o.entity_id) for o in outputs] == [(key, key)] * per_key
                    assert [o.n for o in outputs] == list(range(record.first_n, record.last_n + 1))
                    assert len(await serving.rows.history(key, 0, 9)) == reading.heads[key].version == per_key
                assert [head.entity_id for head in await serving.rows.heads("", 99)] == sorted(own)
            assert await store.scopes() == sorted(scopes)
            await store.close()

    trio.run(main)


async def test_marks_attempts_and_leases_belong_to_one_scope(world: World) -> None:
    store = await world.open()
    first, second = await serve(store, SCOPE), await serve(store, OTHER)
    attempt, mark = Attempt("k1", None, 1, 0.0, 0.0, 0.0, ""), Mark(0, 1, "m", 0, "", 1.0)
    await first.rows.commit(Commit(first.lease.epoch, attempts=[attempt], mark=mark), no_probe)
    await second.rows.commit(Commit(second.lease.epoch, ended=["k1"], clean=True), no_probe)
    assert (await first.rows.attempts(), await first.rows.marks()) == ([attempt], [mark])
    assert (await second.rows.attempts(), await second.rows.marks()) == ([], [])
    await first.commit(first.decision("k2"))
