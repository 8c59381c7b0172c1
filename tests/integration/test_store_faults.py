"""The store is in somebody else's hands for a while: nothing is lost, nobody gives up."""

from __future__ import annotations

from pathlib import Path

import apsw

from chaos.zygote import Zygote
from meshforge_trio.server import PrivateServer

from .rules_world import ALONE, adds, logged, open_world


async def test_a_locked_store_is_waited_for(zygote: Zygote, nats_server: PrivateServer, tmp_path: Path) -> None:
    async with open_world(tmp_path, nats_server, zygote, ALONE) as stage:
        world = stage.world
        assert await world.drain(await stage.served()) == 0
        other = apsw.Connection(str(world.store))
        other.execute("BEGIN EXCLUSIVE")
        successor = await world.spawn()
        await logged(successor, "the store cannot be opened yet")
        other.close()
        await stage.decided(adds(1, 3))
        assert await world.drain(successor) == 0
        await stage.end()
