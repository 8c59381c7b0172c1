"""Two scopes of one process: what a flood of one, or its slow handlers, make the other wait. Counted, not timed."""

from __future__ import annotations

from asyncio import AbstractEventLoop
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import trio

from meshforge_trio.agent import AgentAdapter, Context, Decision, Event
from meshforge_trio.broker.jetstream import open_broker
from meshforge_trio.client import open_client
from meshforge_trio.config import EngineSettings, Settings
from meshforge_trio.engine import stream_specs
from meshforge_trio.envelope import CommandEnvelope, EventEnvelope, SecurityContext
from meshforge_trio.runtime import App, Runtime
from meshforge_trio.server import PrivateServer
from meshforge_trio.store.sqlite import SQLiteEventStore

USER: Final = SecurityContext("kim", "user")
FLOOD: Final = 20_000
#: Far above a slice, so that a single turn of this size stands out.
ENGINE: Final = EngineSettings(batch=4_096, max_ack_pending=16_384)
SLICE_MAX: Final = 4
#: Turns of the flood between a command's arrival and its decision: the one that is being decided, and those of the few
#: steps until the command comes to the turnstile, an idle scope's mark among them.
TURNS: Final = 64
DEADLINE_S: Final = 60


class Tally(AgentAdapter[int]):
    """Counts, and writes down what arrives (action `ask`) and whose commands are decided."""

    def __init__(self, name: str = "tally", *, concurrent: bool = False) -> None:
        self.name = name
        self.concurrent = concurrent
        self.log: list[str] = []
        self.called = trio.Event()
        self.released = trio.Event()

    def initial(self) -> int:
        return 0

    def is_query(self, action: str) -> bool:
        # The runtime asks this of each command once, when it reads it.
        if action == "ask":
            self.log.append("arrived")
        return False

    def receive(self, state: int, message: CommandEnvelope | EventEnvelope, ctx: Context) -> Any:
        self.log.append(message.tenant)
        self.called.set()
        decision = Decision(events=(Event("counted", {}),))
        return self._released(decision) if self.concurrent else decision

    async def _released(self, decision: Decision) -> Decision:
        await self.released.wait()
        return decision

    def apply(self, state: int, event: Event) -> int:
        return state + 1

    def passed(self) -> list[int]:
        """How many commands of the flood were decided between the arrival of each other one and its decision."""
        found: list[int] = []
        arrived: int | None = None
        for i, entry in enumerate(self.log):
            if entry == "arrived":
                arrived = i
            elif entry == "calm" and arrived is not None:
                found.append(self.log[arrived:i].count("loud"))
        return found


@asynccontextmanager
async def serving(server: PrivateServer, home: Path, *agents: Tally) -> AsyncIterator[None]:
    """A runtime that serves both tenants from one store, drained at the end."""
    store = await SQLiteEventStore.open(home / "store.db")
    settings = Settings(url=server.url, workspaces=("loud/w", "calm/w"), engine=ENGINE)
    runtime = Runtime(App(agents), settings, store, lambda: open_broker(server.url, pull_batch=ENGINE.batch))
    try:
        with trio.fail_after(DEADLINE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(runtime.run)
                yield
                runtime.stop()
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
            await store.close()


async def declare(url: str) -> None:
    async with open_broker(url) as broker:
        for spec in stream_specs(ENGINE):
            await broker.declare(spec)


async def test_a_flood_lets_the_other_tenant_in(
    nats_server: PrivateServer, tmp_path: Path, aio_loop: AbstractEventLoop
) -> None:
    await declare(nats_server.url)
    tally = Tally()
    async with (
        open_client(nats_server.url, tenant="loud", workspace="w", principal=USER) as loud,
        open_client(nats_server.url, tenant="calm", workspace="w", principal=USER) as calm,
    ):
        await loud.send_many([loud.command("tally", "add") for _ in range(FLOOD)])
        async with serving(nats_server, tmp_path, tally):
            await tally.called.wait()
            for _ in range(8):
                await calm.call("tally", "ask", resend_s=DEADLINE_S)
            assert tally.log.count("loud") < FLOOD, "the flood was over too soon to tell anything"
    # The first one found a flood that believed itself alone.
    passed = tally.passed()[1:]
    assert len(passed) == 7
    assert max(passed) <= TURNS * SLICE_MAX


async def test_a_handler_that_waits_holds_nobody_up(
    nats_server: PrivateServer, tmp_path: Path, aio_loop: AbstractEventLoop
) -> None:
    await declare(nats_server.url)
    slow, tally = Tally("slow", concurrent=True), Tally()
    async with (
        open_client(nats_server.url, tenant="calm", workspace="w", principal=USER) as calm,
        serving(nats_server, tmp_path, slow, tally),
    ):
        await calm.send("slow", "add")
        await slow.called.wait()
        answer = await calm.call("tally", "ask", resend_s=DEADLINE_S)
        slow.released.set()
    assert answer.name == "counted"
