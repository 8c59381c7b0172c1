"""The brokers the conformance suite runs on, and what its tests say to them.

A `World` is one broker with its outside: further sessions, other clients, and the faults that can befall it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

import attrs
import orjson
import pytest
import trio

from meshforge_trio.broker.api import headers_of
from meshforge_trio.broker.bridge import ConnectOptions, connect, pub
from meshforge_trio.broker.jetstream import open_broker
from meshforge_trio.broker.port import (
    Broker,
    Consumer,
    ConsumerSpec,
    Delivery,
    Message,
    PubAck,
    Settlement,
    StoredMessage,
    StreamSpec,
)
from meshforge_trio.errors import SessionLost
from meshforge_trio.server import PrivateServer

DEADLINE_S = 20
COMMANDS = StreamSpec("COMMANDS", ("cmd.>",), work_queue=True)
EVENTS = StreamSpec("EVENTS", ("evt.>",), max_msg_size=10_000)
CONSUMER = ConsumerSpec("COMMANDS", "t_consumer", ("cmd.t.>",))


class World(Protocol):
    """One broker, its other clients, and its faults."""

    def session(self) -> AbstractAsyncContextManager[Broker]:
        """A further session."""

    def listener(self, subject: str) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[tuple[str, bytes]]]:
        """A core subscriber: (Msg-Id, body) of whatever passes on `subject`."""

    async def steal(self, consumer: ConsumerSpec, count: int) -> None:
        """Pull `count` deliveries as somebody else, and keep them."""

    async def purge(self, stream: str, below: int) -> None:
        """Remove every message with a sequence under `below`."""

    async def unsettled(self, consumer: ConsumerSpec) -> int:
        """How many deliveries of the consumer nobody has settled yet."""

    def kill(self) -> None:
        """The broker dies."""

    def pause(self) -> None:
        """The broker stops answering; connections stay open."""

    def resume(self) -> None:
        """It goes on."""


@attrs.frozen
class JetStreamWorld:
    """A private nats-server. Probes and pulls are short-lived, so that tests of silence are short."""

    server: PrivateServer

    @property
    def options(self) -> ConnectOptions:
        return ConnectOptions(urls=(self.server.url,), probe_s=0.3)

    def session(self) -> AbstractAsyncContextManager[Broker]:
        return open_broker(self.options, pull_batch=16, pull_expires_s=1.0)

    @asynccontextmanager
    async def listener(self, subject: str) -> AsyncIterator[trio.MemoryReceiveChannel[tuple[str, bytes]]]:
        send, receive = trio.open_memory_channel[tuple[str, bytes]](100)
        connection = await connect(self.options)

        def note(_subject: bytes, _reply: bytes, headers: bytes | None, body: bytes) -> None:
            send.send_nowait((headers_of(headers).get("Nats-Msg-Id", ""), body))

        connection.subscribe(subject, note)
        await connection.round_trip(DEADLINE_S)
        try:
            yield receive
        finally:
            await connection.aclose()

    async def steal(self, consumer: ConsumerSpec, count: int) -> None:
        connection = await connect(self.options)
        inbox = connection.new_inbox()
        send, receive = trio.open_memory_channel[bytes](count)
        connection.subscribe(inbox, lambda _s, _r, _h, body: send.send_nowait(body))
        verb = f"$JS.API.CONSUMER.MSG.NEXT.{consumer.stream}.{consumer.name}"
        connection.write(pub(verb, inbox, orjson.dumps({"batch": count, "no_wait": True})))
        with trio.fail_after(DEADLINE_S):
            for _ in range(count):
                await receive.receive()
        await connection.aclose()

    async def purge(self, stream: str, below: int) -> None:
        async with open_broker(self.options) as broker:
            reply = await broker._api.request(f"STREAM.PURGE.{stream}", {"seq": below})
            assert reply["success"]

    async def unsettled(self, consumer: ConsumerSpec) -> int:
        async with open_broker(self.options) as broker:
            info = await broker._api.request(f"CONSUMER.INFO.{consumer.stream}.{consumer.name}")
            return int(info["num_ack_pending"])

    def kill(self) -> None:
        self.server.kill()

    def pause(self) -> None:
        self.server.pause()

    def resume(self) -> None:
        self.server.resume()


def messages(prefix: str, numbers: Sequence[int], subject: str = "cmd.t.w.a.do") -> list[Message]:
    return [Message(subject, f"body {n}".encode(), f"{prefix}{n}") for n in numbers]


async def publish(broker: Broker, batch: Sequence[Message]) -> Sequence[PubAck]:
    acks = await broker.publish(batch, DEADLINE_S)
    assert [ack.error for ack in acks] == [""] * len(batch)
    return acks


async def take(consumer: Consumer, count: int) -> list[Delivery]:
    """Exactly `count` deliveries, within the deadline."""
    taken: list[Delivery] = []
    with trio.fail_after(DEADLINE_S):
        while len(taken) < count:
            consumer.pull()
            taken += await consumer.take(count - len(taken))
    return taken


async def lost_in_take(consumer: Consumer) -> str:
    """Take until the session is lost; the reason."""
    with trio.fail_after(DEADLINE_S), pytest.raises(SessionLost) as lost:
        await take(consumer, 1_000_000)
    return str(lost.value)


def ack(deliveries: Sequence[Delivery]) -> list[Settlement]:
    return [Settlement(delivery) for delivery in deliveries]


async def until(number: Callable[[], Awaitable[int]], wanted: int) -> None:
    """Poll until `number` is `wanted`: a broker reads ACKs in order and acts on them in its own time."""
    with trio.fail_after(DEADLINE_S):
        while True:
            if await number() == wanted:
                return
            await trio.sleep(0.01)


async def messages_left(broker: Broker, stream: str) -> int:
    """How many messages the stream holds."""
    return (await broker.stream_facts(stream)).messages


def bodies(deliveries: Sequence[Delivery] | Sequence[StoredMessage]) -> list[bytes]:
    return [delivery.body for delivery in deliveries]
