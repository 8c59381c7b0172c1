"""Who may write, and what happens when nobody can: S2, S6 and S7 of `store/port.py`, through the port alone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import attrs
import pytest
import trio

from conformance.stores import OTHER, SCOPE, TTL_S, WORLDS, World, everything, serve
from meshforge_trio.errors import Fenced, StoreBroken, StoreFull
from meshforge_trio.points import no_probe
from meshforge_trio.store.port import Commit, EventStore, Lease


@pytest.fixture(params=WORLDS)
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    made = WORLDS[request.param](tmp_path)
    yield made
    await made.close()


# -- S2: only the newest epoch writes ----------------------------------------------------------------------------


async def test_a_commit_of_an_older_or_unknown_epoch_is_fenced(world: World) -> None:
    store = await world.open()
    first = await serve(store)
    second = await serve(store)
    assert second.lease.epoch == first.lease.epoch + 1
    for epoch in (first.lease.epoch, second.lease.epoch + 1, 0):
        commit = attrs.evolve(first.decision("k1", "e1"), epoch=epoch)
        with pytest.raises(Fenced):
            await first.rows.commit(commit, no_probe)
    assert await second.rows.outputs_after(0, 10) == []
    await second.commit(second.decision("k1", "e1"))


async def test_a_scope_without_lease_takes_no_commit(world: World) -> None:
    rows = (await world.open()).scope(SCOPE)
    for epoch in (0, 1):
        with pytest.raises(Fenced):
            await rows.commit(Commit(epoch), no_probe)


async def test_a_zombie_is_fenced_by_whoever_took_over(world: World) -> None:
    zombie_store, successor_store = await world.open(), await world.open()
    zombie = await serve(zombie_store)
    world.pass_time(TTL_S)
    successor = await serve(successor_store)
    with pytest.raises(Fenced):
        await zombie.rows.commit(zombie.decision("k1"), no_probe)
    await successor.commit(successor.decision("k1"))
    assert [output.key for output in await zombie.rows.outputs_after(0, 10)] == ["k1"]


async def test_after_a_clean_end_the_epoch_writes_no_more(world: World) -> None:
    serving = await serve(await world.open())
    await serving.rows.commit(Commit(serving.lease.epoch, clean=True), no_probe)
    with pytest.raises(Fenced):
        await serving.rows.commit(serving.decision("k1"), no_probe)


# -- S6: one holder, rising epochs -------------------------------------------------------------------------------


async def test_the_first_term_is_clean_and_each_lease_tells_of_the_one_before(world: World) -> None:
    store = await world.open()
    first = await serve(store, server_id="NATS1")
    assert first.lease == Lease(epoch=1, clean=True, server_id="", next_n=1)
    await first.commit(first.decision("k1", "e1", ("a", "b", "c")))
    second = await serve(store, server_id="NATS2")
    assert second.lease == Lease(epoch=2, clean=False, server_id="NATS1", next_n=4)
    await second.rows.commit(Commit(2, clean=True), no_probe)
    third = await serve(await world.open(), server_id="NATS3")
    assert third.lease == Lease(epoch=3, clean=True, server_id="NATS2", next_n=4)
    assert (await serve(store, OTHER)).lease == Lease(epoch=1, clean=True, server_id="", next_n=1)


async def test_two_processes_racing_for_a_lease_get_one(world: World) -> None:
    stores = [await world.open() for _ in range(4)]
    won: list[Lease] = []

    async def race(store: EventStore) -> None:
        lease = await store.scope(SCOPE).take_lease("NATS1")
        if lease is not None:
            won.append(lease)

    async with trio.open_nursery() as nursery:
        for store in stores:
            nursery.start_soon(race, store)
    assert [lease.epoch for lease in won] == [1]


async def test_a_living_holder_keeps_its_scope_until_its_term_ends(world: World) -> None:
    holder, standby = await world.open(), await world.open()
    await serve(holder)
    world.pass_time(TTL_S * 0.75)
    assert await standby.scope(SCOPE).take_lease("NATS1") is None
    await holder.keep_alive()
    world.pass_time(TTL_S * 0.75)
    assert await standby.scope(SCOPE).take_lease("NATS1") is None
    assert holder.lease_valid()
    world.pass_time(TTL_S * 0.5)
    assert not holder.lease_valid()
    assert (await serve(standby)).lease.epoch == 2


async def test_the_holder_distrusts_its_term_before_others_may_take_it(world: World) -> None:
    holder, standby = await world.open(), await world.open()
    await serve(holder)
    world.pass_time(TTL_S * 0.95)
    assert not holder.lease_valid()
    assert await standby.scope(SCOPE).take_lease("NATS1") is None


async def test_a_closed_store_leaves_its_scopes_at_once(world: World) -> None:
    holder, standby = await world.open(), await world.open()
    await serve(holder)
    await holder.close()
    await holder.close()
    assert not holder.lease_valid()
    assert (await serve(standby)).lease == Lease(2, False, "NATS1", 1)


async def test_a_killed_process_is_succeeded_at_once(world: World) -> None:
    standby = await world.open()
    source = f"""
import sys, trio
from meshforge_trio.store.sqlite import SQLiteEventStore, inline
from meshforge_trio.subjects import Scope

async def main():
    store = await {world.source()}
    assert await store.scope(Scope("acme", "main", "orders")).take_lease("NATS1") is not None
    print("serving", flush=True)
    sys.stdin.read()

trio.run(main)
"""
    async with trio.open_nursery() as nursery:
        start = partial(trio.run_process, [sys.executable, "-c", source], stdout=subprocess.PIPE, check=False)
        holder = await nursery.start(partial(start, stdin=subprocess.PIPE))
        assert (await holder.stdout.receive_some()).startswith(b"serving")
        assert await standby.scope(SCOPE).take_lease("NATS2") is None
        holder.kill()
        await holder.wait()
        assert (await serve(standby)).lease == Lease(2, False, "NATS1", 1)
        await holder.stdout.aclose()
        await holder.stdin.aclose()


async def test_a_term_that_ran_out_unnoticed_is_renewed(world: World) -> None:
    store = await world.open()
    serving = await serve(store)
    world.pass_time(TTL_S * 3)
    assert not store.lease_valid()
    await store.keep_alive()
    assert store.lease_valid()
    await serving.commit(serving.decision("k1"))


async def test_a_process_that_lost_a_scope_is_told_and_stays_invalid_until_it_asks_again(world: World) -> None:
    loser, winner = await world.open(), await world.open()
    lost, kept = await serve(loser, SCOPE), await serve(loser, OTHER)
    world.pass_time(TTL_S * 2)
    taken = await serve(winner, SCOPE)
    for _ in range(2):
        with pytest.raises(Fenced, match=str(SCOPE)):
            await loser.keep_alive()
    assert await loser.scope(OTHER).take_lease("NATS1") is not None
    assert not loser.lease_valid(), "the engine of the lost scope still believes"
    await winner.keep_alive()
    assert await lost.rows.take_lease("NATS1") is None
    await loser.keep_alive()
    assert loser.lease_valid()
    with pytest.raises(Fenced):
        await kept.rows.commit(kept.decision("k1"), no_probe)
    await taken.commit(taken.decision("k1"))


async def test_a_clean_end_leaves_the_scope_to_a_standby_and_the_rest_of_the_term_in_force(world: World) -> None:
    store, standby = await world.open(), await world.open()
    ended, kept = await serve(store, SCOPE), await serve(store, OTHER)
    await ended.rows.commit(Commit(ended.lease.epoch, clean=True), no_probe)
    assert (await serve(standby, SCOPE)).lease.epoch == 2
    assert await standby.scope(OTHER).take_lease("NATS1") is None
    await store.keep_alive()
    assert store.lease_valid()
    await kept.commit(kept.decision("k1"))


# -- S7: no space, no disk ---------------------------------------------------------------------------------------


async def test_a_full_disk_writes_nothing_and_work_goes_on_when_space_returns(world: World) -> None:
    store = await world.open()
    serving = await serve(store)
    await serving.commit(serving.decision("k1", "e1"))
    before = await everything(serving.rows, ("k1", "k2"), ("e1",))
    world.fill_disk()
    for _ in range(2):
        with pytest.raises(StoreFull):
            await serving.rows.commit(serving.decision("k2", "e1"), no_probe)
        with pytest.raises(StoreFull):
            await store.keep_alive()
    assert await everything(serving.rows, ("k1", "k2"), ("e1",)) == before
    world.free_disk()
    await store.keep_alive()
    await serving.commit(serving.decision("k2", "e1"))
    assert [o.n for o in await serving.rows.outputs_after(0, 10)] == [1, 2]


async def test_a_failed_disk_ends_the_store_for_good(world: World) -> None:
    store = await world.open()
    serving = await serve(store)
    world.fail_disk()
    with pytest.raises(StoreBroken):
        await serving.rows.commit(serving.decision("k1"), no_probe)
    world.free_disk()
    with pytest.raises(StoreBroken):
        await serving.rows.commit(serving.decision("k1"), no_probe)
    with pytest.raises(StoreBroken):
        await store.keep_alive()
    assert not store.lease_valid()


async def test_stores_of_one_database_name_one_place(world: World) -> None:
    """Who takes turns for its one writer can tell by it."""
    here, beside = await world.open(), await world.open()
    assert here.place == beside.place
    await here.close()
    await beside.close()
