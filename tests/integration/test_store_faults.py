"""The store is in somebody else's hands for a while: nothing is lost, nobody gives up."""

from __future__ import annotations

import apsw
import trio

from chaos.observer import open_observer
from chaos.world import ProcessWorld, Zygote
from meshforge_trio.server import PrivateServer

from .rules_world import ALONE, adds, assert_holds, evidence_of, logged


async def test_a_locked_store_is_waited_for(zygote: Zygote, nats_server: PrivateServer) -> None:
    sent = adds(1, 3)
    async with (
        ProcessWorld(ALONE, server=nats_server, zygote=zygote) as world,
        open_observer(nats_server.url) as observer,
    ):
        with trio.fail_after(60):
            worker = await world.spawn()
            await world.serving(worker)
            assert await world.drain(worker) == 0
            await observer.send(sent)
            other = apsw.Connection(str(world.store))
            other.execute("BEGIN EXCLUSIVE")
            successor = await world.spawn()
            await logged(world, 2, "the store cannot be opened yet")
            other.close()
            await world.serving(successor)
            await observer.drained()
            assert await world.drain(successor) == 0
            assert_holds(await evidence_of(world, sent, observer))
