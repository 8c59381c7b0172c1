"""The lock manager over a real JetStream: leases that end by themselves, once, whoever restarts in between.

What it answers to whom is in `tests/unit/test_locks.py`.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from integration.client_world import DEADLINE_S, KIM, dial, serving

from meshforge_trio.broker.jetstream import open_broker
from meshforge_trio.client import HeldLock, LockDenied, LockLost, MeshClient
from meshforge_trio.config import Settings
from meshforge_trio.crud import crud_agent
from meshforge_trio.envelope import EventEnvelope, SecurityContext, decode_event
from meshforge_trio.launch import with_components
from meshforge_trio.locks import LOCK_MANAGER, LockManagerAdapter
from meshforge_trio.runtime import App
from meshforge_trio.server import PrivateServer
from meshforge_trio.subjects import EVENTS

LEE = SecurityContext("lee", "user")


async def events_of(server: PrivateServer, subject: str = "evt.t.w.lock.>") -> list[EventEnvelope]:
    """What the stream holds of the lock manager."""
    async with open_broker(server.url) as broker:
        return [decode_event(message.body) for message in await broker.read_back(EVENTS, subject, 1, 1000)]


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    with trio.fail_after(DEADLINE_S):
        while not await holds():
            await trio.sleep(0.05)


async def acquire(mesh: MeshClient, owner: str, ttl_s: float, resource: str = "r") -> EventEnvelope:
    payload = {"resource_id": resource, "owner_id": owner, "ttl_seconds": ttl_s}
    return await mesh.call(LOCK_MANAGER, "acquire", payload, answers=("acquired", "denied"))


async def test_a_lock_is_held_within_a_block_and_free_after_it(
    aio_loop: object, nats_server: PrivateServer, tmp_path: Path
) -> None:
    async with serving(nats_server, tmp_path, LockManagerAdapter()), dial(nats_server.url) as mesh:
        async with mesh.lock("door", ttl_s=5.0) as held:
            assert held.fencing_token == 1
            assert 0 < held.left_s <= 5.0
            with pytest.raises(LockDenied) as denied:
                async with mesh.lock("door", ttl_s=5.0):
                    raise AssertionError("both hold it")
            assert denied.value.current_owner == held.owner_id
        async with mesh.lock("door", ttl_s=5.0) as again:
            assert again.fencing_token == 2
    names = [event.name for event in await events_of(nats_server)]
    assert names == ["acquired", "denied", "released", "acquired", "released"]


async def test_a_lock_is_kept_for_longer_than_its_lease(
    aio_loop: object, nats_server: PrivateServer, tmp_path: Path
) -> None:
    async with serving(nats_server, tmp_path, LockManagerAdapter()), dial(nats_server.url) as mesh:
        held = await keep_for(mesh, 0.6, lambda: _refreshed(nats_server, 3))
        assert held.left_s > 0


async def keep_for(mesh: MeshClient, ttl_s: float, holds: Callable[[], Awaitable[bool]]) -> HeldLock:
    """Hold the lock of the door until something holds; nobody else gets it meanwhile."""
    async with mesh.lock("door", ttl_s=ttl_s) as held:
        await until(holds)
        assert (await acquire(mesh, "lee", 1.0, "door")).name == "denied"
        return held


async def _refreshed(server: PrivateServer, times: int) -> bool:
    return sum(event.name == "refreshed" for event in await events_of(server)) >= times


async def test_whoever_waits_gets_it_when_it_is_free(
    aio_loop: object, nats_server: PrivateServer, tmp_path: Path
) -> None:
    order: list[str] = []

    async def hold(mesh: MeshClient, name: str) -> None:
        async with mesh.lock("door", ttl_s=5.0, wait_s=20.0):
            order.append(f"{name} in")
            await trio.sleep(0.05)
            order.append(f"{name} out")

    async with serving(nats_server, tmp_path, LockManagerAdapter()), dial(nats_server.url) as mesh:
        with trio.fail_after(DEADLINE_S):
            async with trio.open_nursery() as nursery:
                for name in "abcd":
                    nursery.start_soon(hold, mesh, name)
    assert len(order) == 8
    assert all(order[i][0] == order[i + 1][0] for i in range(0, 8, 2)), "one at a time"


async def test_the_body_ends_with_the_lease(aio_loop: object, nats_server: PrivateServer, tmp_path: Path) -> None:
    """The runtime ends it before the client thinks so, as when the client was suspended."""
    served = serving(nats_server, tmp_path, LockManagerAdapter())
    system = SecurityContext("deadlines", "system")
    async with served, dial(nats_server.url) as mesh, dial(nats_server.url, system) as runtime:
        with trio.fail_after(DEADLINE_S), pytest.raises(LockLost, match="nobody holds it"):
            await lose(nats_server, mesh, runtime)


async def lose(server: PrivateServer, mesh: MeshClient, runtime: MeshClient) -> None:
    async with mesh.lock("door", ttl_s=1.5):
        (event,) = await events_of(server)
        payload = {name: event.payload[name] for name in ("fencing_token", "expires_at")}
        await runtime.call(LOCK_MANAGER, "sys_expire", payload, entity_id="door")
        await trio.sleep_forever()


@pytest.mark.parametrize("fails", [False, True])
async def test_a_block_that_ends_after_its_lease_says_so(
    aio_loop: object, nats_server: PrivateServer, tmp_path: Path, fails: bool
) -> None:
    """As when a process is suspended within the block and wakes up at its end, before any timer is looked at."""
    async with serving(nats_server, tmp_path, LockManagerAdapter()), dial(nats_server.url) as mesh:
        with pytest.raises(LockLost, match="its time ran out before the block ended") as lost:
            await outstay(mesh, fails=fails)
        assert isinstance(lost.value.__cause__, ZeroDivisionError) is fails
        await until(lambda: _expired(nats_server))
    assert [event.name for event in await events_of(nats_server)] == ["acquired", "expired"], "not released as if held"


async def outstay(mesh: MeshClient, *, fails: bool) -> None:
    async with mesh.lock("door", ttl_s=0.3) as held:
        stand_still(held)
        if fails:
            raise ZeroDivisionError


def stand_still(held: HeldLock) -> None:
    """Nothing of this process moves until the lease is over."""
    while held.left_s > 0:
        time.sleep(0.01)


async def test_an_error_of_the_body_frees_the_lock_and_is_raised_as_it_is(
    aio_loop: object, nats_server: PrivateServer, tmp_path: Path
) -> None:
    async with serving(nats_server, tmp_path, LockManagerAdapter()), dial(nats_server.url) as mesh:
        with pytest.raises(ZeroDivisionError):
            async with mesh.lock("door"):
                raise ZeroDivisionError
        with trio.move_on_after(0.5):
            async with mesh.lock("door"):
                await trio.sleep_forever()
        assert (await acquire(mesh, "lee", 1.0, "door")).name == "acquired", "freed when it was cancelled, too"


async def test_a_lease_nobody_asks_for_ends_by_itself_once(
    aio_loop: object, nats_server: PrivateServer, tmp_path: Path
) -> None:
    async with serving(nats_server, tmp_path, LockManagerAdapter()), dial(nats_server.url) as mesh:
        for resource in ("a", "b"):
            await acquire(mesh, "kim", 0.3, resource)
        await acquire(mesh, "kim", 600.0, "c")

        async def both() -> bool:
            return sum(event.name == "expired" for event in await events_of(nats_server)) >= 2

        await until(both)
    expired = [event for event in await events_of(nats_server) if event.name == "expired"]
    assert sorted(event.payload["resource_id"] for event in expired) == ["a", "b"]


async def test_a_lease_that_ran_out_while_nobody_served_ends_at_the_next_start(
    aio_loop: object, nats_server: PrivateServer, tmp_path: Path
) -> None:
    async with serving(nats_server, tmp_path, LockManagerAdapter()), dial(nats_server.url) as mesh:
        await acquire(mesh, "kim", 0.4)
    await trio.sleep(0.5)
    for _ in range(3):
        async with serving(nats_server, tmp_path, LockManagerAdapter()):
            await until(lambda: _expired(nats_server))
    assert [event.name for event in await events_of(nats_server)] == ["acquired", "expired"]


async def _expired(server: PrivateServer) -> bool:
    return any(event.name == "expired" for event in await events_of(server))


async def test_a_holder_that_woke_up_too_late_is_refused_by_what_it_guarded(
    aio_loop: object, nats_server: PrivateServer, tmp_path: Path
) -> None:
    """Kleppmann's schedule: the first holder goes on after its lease ended and a second one has written."""
    agents = (LockManagerAdapter(), crud_agent("order"))
    async with serving(nats_server, tmp_path, *agents), dial(nats_server.url) as mesh:
        first = await acquire(mesh, "kim", 0.1)
        await until(lambda: _expired(nats_server))
        async with mesh.lock("r", ttl_s=5.0) as second:
            assert second.fencing_token == first.payload["fencing_token"] + 1
            created = await mesh.call("order", "create", {"by": "second"}, entity_id="o1", **second.fence)
            assert created.name == "created"
            late = await mesh.call("order", "update", {"by": "first"}, entity_id="o1", resource_id="r", fencing_token=1)
    assert (late.name, late.payload["code"]) == ("refused", "stale_fencing_token")


async def test_without_the_lock_manager_nothing_answers(
    aio_loop: object, nats_server: PrivateServer, tmp_path: Path
) -> None:
    async with serving(nats_server, tmp_path), dial(nats_server.url, KIM) as mesh:
        with trio.move_on_after(1.0) as waited:
            await acquire(mesh, "kim", 1.0)
    assert waited.cancelled_caught
    assert await events_of(nats_server) == []


def test_the_lock_manager_is_there_where_the_settings_say_so() -> None:
    app = App([crud_agent("order")])
    assert with_components(app, Settings()) is app
    names = [agent.name for agent in with_components(app, Settings(lock_manager=True)).agents]
    assert names == ["order", LOCK_MANAGER]
    own = App([crud_agent("order"), LockManagerAdapter(ttl_max_s=5.0)])
    assert with_components(own, Settings(lock_manager=True)) is own, "an app may bring its own"
