"""One process, two tenants: what a flood of one makes the other wait, counted in decisions."""

from __future__ import annotations

from asyncio import AbstractEventLoop
from pathlib import Path
from typing import Any

import pytest
import trio

from meshforge_trio.agent import AgentAdapter, Context, Decision, Event
from meshforge_trio.broker.jetstream import open_broker
from meshforge_trio.broker.port import Message
from meshforge_trio.client import MeshClient, open_client
from meshforge_trio.config import EngineSettings, Settings
from meshforge_trio.engine import stream_specs
from meshforge_trio.envelope import CommandEnvelope, EventEnvelope, SecurityContext, encode
from meshforge_trio.runtime import App, Runtime
from meshforge_trio.server import PrivateServer
from meshforge_trio.store.sqlite import SQLiteEventStore
from meshforge_trio.subjects import Scope, command_subject

USER = SecurityContext("kim", "user")
LOUD = Scope("loud", "w", "tally")
CALM = Scope("calm", "w", "tally")
FLOOD = 12_000
BATCH = 2_048
#: Turns of the flood that may come between a command's arrival and its decision: the one that is being decided, and
#: one more that began before the command had been read.
TURNS = 3
SLICE_MAX = 64


class Tally(AgentAdapter[int]):
    """Writes down, for both tenants, what is read and what is decided; `concurrent` has the flood's handler wait."""

    name = "tally"

    def __init__(self, *, concurrent: bool = False) -> None:
        self.concurrent = concurrent
        self.log: list[str] = []
        self.released = trio.Event()

    def initial(self) -> int:
        return 0

    def is_query(self, action: str) -> bool:
        # Asked of each command when it has arrived.
        if action == "ask":
            self.log.append("arrived")
        return False

    def receive(self, state: int, message: CommandEnvelope | EventEnvelope, ctx: Context) -> Any:
        self.log.append(message.tenant)
        decision = Decision(events=(Event("counted", {}),))
        return self._later(decision) if self.concurrent and message.tenant == LOUD.tenant else decision

    async def _later(self, decision: Decision) -> Decision:
        await self.released.wait()
        return decision

    def apply(self, state: int, event: Event) -> int:
        return state + 1

    @property
    def flooded(self) -> int:
        """How much of the flood has been decided."""
        return self.log.count(LOUD.tenant)


async def flood(url: str, engine: EngineSettings, count: int) -> None:
    """Have `count` commands of the loud tenant in the stream."""
    async with open_broker(url) as broker:
        for spec in stream_specs(engine):
            await broker.declare(spec)
        for begin in range(0, count, 1_000):
            named = [f"f{i}" for i in range(begin, min(begin + 1_000, count))]
            bodies = [
                CommandEnvelope(name, *LOUD.parts, action="add", idempotency_key=name, security_context=USER, ts=1.0)
                for name in named
            ]
            await broker.publish(
                [Message(command_subject(LOUD, "add"), encode(body), body.id) for body in bodies], 30.0
            )
