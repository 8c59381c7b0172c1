"""What every store must do with dead letters: their fates are part of a commit, and each has one (S1, S3)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import attrs
import pytest

from conformance.stores import HASH, WORLDS, World, output_of, serve
from meshforge_trio.errors import Stale
from meshforge_trio.points import no_probe
from meshforge_trio.store.port import Commit, DeadLetter, KeyRecord


@pytest.fixture(params=WORLDS)
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    made = WORLDS[request.param](tmp_path)
    yield made
    await made.close()


async def test_a_redriven_key_is_free_again_in_the_next_generation(world: World) -> None:
    serving = await serve(await world.open())
    dead = DeadLetter("k1", 0, 1, "cmd.t.w.a.b", b"", b"{}", "poison", "why", 1, 1.0, 2.0)
    first = Commit(serving.lease.epoch, [output_of(1, "k1", "dead")], [KeyRecord("k1", HASH, "dead", 1, 1)])
    first.dead = [dead]
    await serving.rows.commit(first, no_probe)
    redrive = Commit(serving.lease.epoch, redriven=[("k1", 0)])
    await serving.rows.commit(redrive, no_probe)
    reading = await serving.rows.read([("k1", HASH)], [])
    assert (reading.keys, reading.generations, reading.dead) == ({}, {"k1": 1}, {})
    with pytest.raises(Stale):
        await serving.rows.commit(redrive, no_probe)
    again = Commit(serving.lease.epoch, [output_of(2, "k1", "dead")], [KeyRecord("k1", HASH, "dead", 2, 2, 1)])
    again.dead = [attrs.evolve(dead, generation=1, n=2)]
    await serving.rows.commit(again, no_probe)
    reading = await serving.rows.read([("k1", HASH)], [])
    assert reading.dead == {"k1": again.dead[0]}, "the newest generation's"
    for wrong in (("k1", 0), ("k1", 2), ("k9", 0)):
        with pytest.raises(Stale):
            await serving.rows.commit(Commit(serving.lease.epoch, redriven=[wrong]), no_probe)
    assert (await serving.rows.read([("k1", HASH)], [])).generations == {"k1": 1}


async def test_a_decided_key_is_not_freed(world: World) -> None:
    serving = await serve(await world.open())
    await serving.commit(serving.decision("k1", "e1"))
    with pytest.raises(Stale):
        await serving.rows.commit(Commit(serving.lease.epoch, redriven=[("k1", 0)]), no_probe)
    assert "k1" in (await serving.rows.read([("k1", HASH)], [])).keys


async def test_a_discarded_dead_letter_keeps_its_key_and_waits_no_more(world: World) -> None:
    serving = await serve(await world.open())
    dead = DeadLetter("k1", 0, 1, "cmd.t.w.a.b", b"", b"{}", "poison", "why", 1, 1.0, 2.0)
    first = Commit(serving.lease.epoch, [output_of(1, "k1", "dead")], [KeyRecord("k1", HASH, "dead", 1, 1)])
    first.dead = [dead]
    await serving.rows.commit(first, no_probe)
    await serving.rows.commit(Commit(serving.lease.epoch, discarded=[("k1", 0)]), no_probe)
    reading = await serving.rows.read([("k1", HASH)], [])
    assert reading.dead["k1"].state == "discarded"
    for fate in (Commit(serving.lease.epoch, discarded=[("k1", 0)]), Commit(serving.lease.epoch, redriven=[("k1", 0)])):
        with pytest.raises(Stale):
            await serving.rows.commit(fate, no_probe)
