"""What every store must do with the fencing tokens of a commit: the newest stays, in its scope, for ever (S1, S5)."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from conformance.stores import SCOPE, WORLDS, Serving, World, serve
from meshforge_trio.errors import Fenced, Stale
from meshforge_trio.points import Point, no_probe
from meshforge_trio.store.port import Commit, EventStore
from meshforge_trio.subjects import Scope

NEIGHBOURS = [Scope("zeta", "main", "orders"), Scope("acme", "test", "orders"), Scope("acme", "main", "billing")]


@pytest.fixture(params=WORLDS)
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    made = WORLDS[request.param](tmp_path)
    yield made
    await made.close()


async def see(serving: Serving, **tokens: int) -> None:
    await serving.rows.commit(Commit(serving.lease.epoch, fences=tokens), no_probe)


async def seen(serving: Serving, *resources: str) -> Mapping[str, int]:
    return (await serving.rows.read([], [], resources)).fences


@pytest.mark.parametrize("order", [*itertools.permutations((1, 5, 3))], ids=str)
async def test_the_newest_token_stays_in_whatever_order_they_come(world: World, order: tuple[int, ...]) -> None:
    serving = await serve(await world.open())
    for i, token in enumerate(order, 1):
        await see(serving, door=token)
        assert await seen(serving, "door") == {"door": max(order[:i])}
    assert await seen(await again(world), "door") == {"door": 5}


async def again(world: World, scope: Scope = SCOPE) -> Serving:
    """The scope as another process meets it, once the one before has ended its term."""
    await world.close()
    return await serve(await world.open(), scope)


async def test_resources_have_tokens_of_their_own(world: World) -> None:
    serving = await serve(await world.open())
    await see(serving, door=7, gate=2)
    await see(serving, gate=3, hatch=1)
    assert await seen(serving, "door", "gate", "hatch", "never") == {"door": 7, "gate": 3, "hatch": 1}
    assert await seen(serving, "gate") == {"gate": 3}, "what is not asked for is not told"
    assert await seen(serving) == {}


async def test_any_text_is_a_resource(world: World) -> None:
    serving = await serve(await world.open())
    names = ["a/b", "a\0b", "a", "A", "ä", "a\N{COMBINING DIAERESIS}", "'", "x" * 256]
    tokens = {name: n for n, name in enumerate(names, 1)}
    await see(serving, **tokens)
    assert await seen(await again(world), *names) == tokens


@pytest.mark.parametrize("other", NEIGHBOURS, ids=str)
async def test_equal_resources_of_two_scopes_never_meet(world: World, other: Scope) -> None:
    store: EventStore = await world.open()
    mine, theirs = await serve(store, SCOPE), await serve(store, other)
    await see(mine, door=9)
    assert await seen(theirs, "door") == {}
    await see(theirs, door=4)
    assert (await seen(mine, "door"), await seen(theirs, "door")) == ({"door": 9}, {"door": 4})
    assert await seen(await again(world, other), "door") == {"door": 4}


async def test_a_commit_that_is_undone_leaves_no_token(world: World) -> None:
    serving = await serve(await world.open())
    await serving.commit(serving.decision("k1"))
    await see(serving, door=1)

    def fail(point: Point) -> None:
        assert point is Point.IN_STORE
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        await serving.rows.commit(Commit(serving.lease.epoch, fences={"door": 2}), fail)
    serving.n = 0
    stale = serving.decision("k1")
    stale.fences = {"door": 3}
    with pytest.raises(Stale):
        await serving.rows.commit(stale, no_probe)
    with pytest.raises(Fenced):
        await serving.rows.commit(Commit(serving.lease.epoch - 1, fences={"door": 4}), no_probe)
    assert await seen(serving, "door") == {"door": 1}


async def test_the_largest_token_there_can_be_is_kept(world: World) -> None:
    serving = await serve(await world.open())
    most = (1 << 63) - 1
    await see(serving, door=most)
    await see(serving, door=1)
    assert await seen(serving, "door") == {"door": most}
