"""The client and witness of a run: sends the workload, hears what core subscribers hear, sees what is left."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import trio

from chaos.evidence import Sent
from chaos.workload import wire
from meshforge_trio.broker.api import JetStreamApi, headers_of
from meshforge_trio.broker.bridge import Connection, ConnectOptions, connect
from meshforge_trio.broker.jetstream import JetStreamBroker, open_broker
from meshforge_trio.broker.port import Message
from meshforge_trio.config import EngineSettings
from meshforge_trio.engine import stream_specs
from meshforge_trio.subjects import COMMANDS, EVENTS

__all__ = ["Observer", "open_observer"]

_POLL_S = 0.02


class Observer:
    """Made by `open_observer`. `received` are (Msg-Id, body) of every event a core subscriber was sent."""

    def __init__(self, broker: JetStreamBroker, connection: Connection, hear: Callable[[str], None] | None) -> None:
        self.broker = broker
        self._connection = connection
        self._tell = hear
        self.received: list[tuple[str, bytes]] = []
        self._api = JetStreamApi(connection)
        connection.subscribe("evt.>", self._hear)

    def _hear(self, subject: bytes, reply: bytes, headers: bytes | None, body: bytes) -> None:
        msg_id = headers_of(headers).get("Nats-Msg-Id", "")
        self.received.append((msg_id, body))
        if self._tell is not None:
            self._tell(msg_id)

    async def caught_up(self) -> None:
        """Return when everything the server had sent before is heard."""
        await self._connection.round_trip(5.0)

    async def send(self, sent: Sequence[Sent]) -> None:
        """Put the workload into the command stream, in order; the same id may be used in several scopes."""
        messages = [
            Message(subject, body, f"{each.scope}/{each.command.id}")
            for each in sent
            for subject, body in (wire(each),)
        ]
        for ack in await self.broker.publish(messages, 10.0):
            if ack.error:
                raise RuntimeError(f"the command stream refused the workload: {ack.error}")

    async def pending(self) -> Sequence[str]:
        """What has not been decided yet, in words; empty when everything is."""
        left: list[str] = []
        commands = await self.broker.stream_facts(COMMANDS)
        if commands.messages:
            left.append(f"{commands.messages} messages in {COMMANDS}")
        names = (await self._api.request(f"CONSUMER.NAMES.{EVENTS}")).get("consumers") or []
        for name in names:
            info = await self._api.request(f"CONSUMER.INFO.{EVENTS}.{name}")
            waiting = info["num_pending"] + info["num_ack_pending"]
            if waiting:
                left.append(f"{waiting} events for {name}")
        return left

    async def in_hand(self) -> int:
        """How many messages consumers have been given and not settled."""
        total = 0
        for stream in (COMMANDS, EVENTS):
            for name in (await self._api.request(f"CONSUMER.NAMES.{stream}")).get("consumers") or []:
                total += (await self._api.request(f"CONSUMER.INFO.{stream}.{name}"))["num_ack_pending"]
        return total

    async def drained(self) -> None:
        """Return when nothing is pending, twice in a row: a decision may just be sending the next command."""
        calm = 0
        while calm < 2:
            calm = 0 if await self.pending() else calm + 1
            await trio.sleep(_POLL_S)

    async def drained_or(self, ended: trio.Event) -> None:
        """Return when nothing is pending, or when `ended` is set."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._drained_then_cancel, nursery.cancel_scope)
            await ended.wait()
            nursery.cancel_scope.cancel()

    async def _drained_then_cancel(self, scope: trio.CancelScope) -> None:
        await self.drained()
        scope.cancel()


@asynccontextmanager
async def open_observer(
    url: str, hear: Callable[[str], None] | None = None, duplicate_window_s: float = 120.0
) -> AsyncIterator[Observer]:
    """Declare the streams and start listening. The bridge's loop must be open.

    `hear` is called with the Msg-Id of every event a core subscriber is sent.
    """
    async with open_broker(url) as broker:
        for spec in stream_specs(EngineSettings(duplicate_window_s=duplicate_window_s)):
            await broker.declare(spec)
        connection = await connect(ConnectOptions(urls=(url,)))
        try:
            observer = Observer(broker, connection, hear)
            await connection.round_trip(5.0)
            yield observer
        finally:
            await connection.aclose()
