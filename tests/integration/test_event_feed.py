"""`MeshClient.events`: each event once, in order, over restarts, echoes and a broker that lost its memory."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from meshforge_trio.broker.jetstream import open_broker
from meshforge_trio.broker.port import Message
from meshforge_trio.client import MeshClient
from meshforge_trio.envelope import EventEnvelope, encode
from meshforge_trio.feed import EventFeed
from meshforge_trio.server import PrivateServer
from meshforge_trio.subjects import Scope, event_subject

from .client_world import DEADLINE_S, declare_streams, dial, serving


@pytest.fixture
async def server(aio_loop: asyncio.AbstractEventLoop, nats_server: PrivateServer) -> PrivateServer:
    """A server with the streams and nobody who serves."""
    await declare_streams(nats_server.url)
    return nats_server


@pytest.fixture
async def mesh(server: PrivateServer) -> AsyncIterator[MeshClient]:
    async with dial(server.url) as client:
        yield client


async def publish(url: str, *ids: str, agent: str = "order", name: str = "created", tenant: str = "t") -> None:
    """Events as a runtime would publish them; the Msg-Id is the id."""
    messages = []
    for event_id in ids:
        event = EventEnvelope(id=event_id, tenant=tenant, workspace="w", agent=agent, name=name)
        messages.append(Message(event_subject(Scope("t", "w", agent), name), encode(event), event_id))
    async with open_broker(url) as broker:
        assert not [ack.error for ack in await broker.publish(messages, 5) if ack.error]


async def ids(feed: EventFeed, count: int) -> list[str]:
    return [(await anext(feed)).id for _ in range(count)]


async def test_it_begins_where_it_is_told(server: PrivateServer, mesh: MeshClient) -> None:
    with trio.fail_after(DEADLINE_S):
        await publish(server.url, "e-1", "e-2", "e-3")
        async with (
            mesh.events() as later,
            mesh.events(from_start=True) as all_of_them,
            mesh.events(after_seq=1) as rest,
        ):
            await publish(server.url, "e-4")
            assert await ids(later, 1) == ["e-4"]
            assert await ids(all_of_them, 4) == ["e-1", "e-2", "e-3", "e-4"]
            assert await ids(rest, 3) == ["e-2", "e-3", "e-4"]
            assert rest.last_seq == 4


async def test_it_takes_what_was_asked_for(server: PrivateServer, mesh: MeshClient) -> None:
    with trio.fail_after(DEADLINE_S):
        await publish(server.url, "o-1", "o-2")
        await publish(server.url, "p-1", agent="payment")
        await publish(server.url, "p-2", agent="payment", name="refused")
        await publish(server.url, "other", agent="payment", tenant="somebody_else")
        await publish(server.url, "o-3", name="refused")
        async with mesh.events("payment", from_start=True) as feed:
            assert await ids(feed, 2) == ["p-1", "p-2"]
        async with mesh.events(name="refused", from_start=True) as feed:
            assert await ids(feed, 2) == ["p-2", "o-3"]
        async with mesh.events("order", "refused", from_start=True) as feed:
            assert await ids(feed, 1) == ["o-3"]
        async with mesh.events(from_start=True) as feed:
            # The one whose envelope names another tenant is nobody's.
            assert await ids(feed, 5) == ["o-1", "o-2", "p-1", "p-2", "o-3"]


async def test_what_is_unreadable_is_passed_over(server: PrivateServer, mesh: MeshClient) -> None:
    with trio.fail_after(DEADLINE_S):
        async with open_broker(server.url) as broker:
            await broker.publish([Message("evt.t.w.order.created", b"{", "broken")], 5)
        await publish(server.url, "e-1")
        async with mesh.events(from_start=True) as feed:
            assert await ids(feed, 1) == ["e-1"]


async def test_a_repeated_answer_is_no_event(server: PrivateServer, mesh: MeshClient, tmp_path: Path) -> None:
    with trio.fail_after(DEADLINE_S):
        async with serving(server, tmp_path), mesh.events() as feed:
            for _ in range(3):
                await mesh.call("order", "create", entity_id="o", idempotency_key="k")
            await mesh.call("order", "delete", entity_id="o")
            assert [(await anext(feed)).name, (await anext(feed)).name] == ["created", "deleted"]


@pytest.mark.parametrize("waiting", [True, False])
async def test_it_goes_on_after_a_restart(server: PrivateServer, mesh: MeshClient, waiting: bool) -> None:
    heard: list[str] = []

    async def read(feed: EventFeed) -> None:
        heard.extend(await ids(feed, 3))

    with trio.fail_after(DEADLINE_S):
        await publish(server.url, "e-1", "e-2")
        async with mesh.events(from_start=True) as feed:
            heard.extend(await ids(feed, 2))
            async with trio.open_nursery() as nursery:
                if waiting:
                    nursery.start_soon(read, feed)
                    await trio.testing.wait_all_tasks_blocked()
                server.kill()
                server.restart()
                await publish(server.url, "e-3", "e-4", "e-5")
                if not waiting:
                    nursery.start_soon(read, feed)
    assert heard == ["e-1", "e-2", "e-3", "e-4", "e-5"]


async def test_it_finds_its_place_in_a_broker_that_lost_its_memory(server: PrivateServer, mesh: MeshClient) -> None:
    with trio.fail_after(DEADLINE_S):
        await publish(server.url, "e-1", "e-2", "e-3")
        async with mesh.events(from_start=True) as feed:
            assert await ids(feed, 3) == ["e-1", "e-2", "e-3"]
            server.kill()
            shutil.rmtree(server.store_dir)
            server.restart()
            await declare_streams(server.url)
            # Sequence 2 again, which would lie behind the reader.
            await publish(server.url, "e-1", "e-new", "e-3")
            await publish(server.url, "e-4")
            assert await ids(feed, 2) == ["e-new", "e-4"]


async def test_a_cancelled_reader_misses_nothing(server: PrivateServer, mesh: MeshClient) -> None:
    with trio.fail_after(DEADLINE_S):
        async with mesh.events() as feed:
            for n in range(3):
                with trio.move_on_after(0) as scope:
                    await anext(feed)
                assert scope.cancelled_caught
                await publish(server.url, f"e-{n}")
            assert await ids(feed, 3) == ["e-0", "e-1", "e-2"]
