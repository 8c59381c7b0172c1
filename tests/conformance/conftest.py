"""Fixtures of the broker suite; the parameter names the brokers it runs on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from meshforge_trio.broker.port import Broker
from meshforge_trio.server import PrivateServer

from .broker_world import COMMANDS, EVENTS, JetStreamWorld, World


@pytest.fixture(params=["jetstream"])
async def world(aio_loop: asyncio.AbstractEventLoop, nats_server: PrivateServer) -> World:
    return JetStreamWorld(nats_server)


@pytest.fixture
async def broker(world: World) -> AsyncIterator[Broker]:
    """A session with both streams declared."""
    async with world.session() as session:
        await session.declare(COMMANDS)
        await session.declare(EVENTS)
        yield session
