"""What the rule tests share: a scope, its commands, and waiting for what workers do."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import trio

from chaos.checkers import judge
from chaos.evidence import Evidence, Sent, collect
from chaos.observer import Observer, open_observer
from chaos.workload import command
from chaos.world import ProcessWorld
from meshforge_trio.server import PrivateServer
from meshforge_trio.subjects import Scope

SCOPE = Scope("default", "demo", "counter")
APP = "chaos.agents:app"
ALONE = "chaos.agents:counter_only"


def adds(first: int, last: int, entity: str = "a") -> Sequence[Sent]:
    return [
        Sent(command(SCOPE, "add", n, {"amount": n, "tag": f"k{n}"}, entity_id=entity), expect=("decided",))
        for n in range(first, last + 1)
    ]


async def evidence_of(world: ProcessWorld, sent: Sequence[Sent], observer: Observer, *, final: bool = True) -> Evidence:
    return await collect(
        observer.broker, world.store, sent, final=final, limit=3, calls=world.calls(), received=tuple(observer.received)
    )


def assert_holds(evidence: Evidence) -> None:
    broken = [judgement for judgement in judge(evidence) if judgement.findings]
    assert not broken, "\n".join(map(str, broken))


async def logged(world: ProcessWorld, number: int, text: str) -> None:
    """Return when worker `number` has logged `text`."""
    worker = world.workers[number - 1]
    while text not in world.tail(worker, 10_000):
        assert not worker.ended.is_set(), world.tail(worker)
        await trio.sleep(0.01)


async def stopped(world: ProcessWorld) -> None:
    """Return when a rule has fired; what it says, another process wrote to a file."""
    while not world.fired():
        await trio.sleep(0.01)


def copy_of(server: PrivateServer, to: Path) -> None:
    """Copy the store of a server that has been killed."""
    shutil.copytree(server.store_dir, to)


async def decided(world: ProcessWorld, server: PrivateServer, sent: Sequence[Sent]) -> list[tuple[str, bytes]]:
    """Send and wait; a new observer each time, because the server dies in between."""
    async with open_observer(server.url) as observer:
        await observer.send(sent)
        await observer.drained()
        return list(observer.received)
