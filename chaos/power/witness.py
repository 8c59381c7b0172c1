"""A broker session that is watched: whatever it tells the outside is written on a tape first."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, cast

from chaos.power.tape import Tape
from meshforge_trio.broker.port import Broker, Consumer, ConsumerSpec, Message, PubAck, Settlement

__all__ = ["watched"]

Dial = Callable[[], AbstractAsyncContextManager[Broker]]


def watched(dial: Dial, tape: Tape) -> Dial:
    """`dial`, with every session watched."""

    @asynccontextmanager
    async def open_watched() -> AsyncIterator[Broker]:
        async with dial() as broker:
            yield cast(Broker, _WatchedBroker(broker, tape))

    return open_watched


class _WatchedBroker:
    """A `Broker` that writes down what leaves it before it does; all else is the broker's own."""

    def __init__(self, broker: Broker, tape: Tape) -> None:
        self._broker = broker
        self._tape = tape

    def __getattr__(self, name: str) -> Any:
        return getattr(self._broker, name)

    async def consume(self, consumer: ConsumerSpec) -> Consumer:
        """See `Broker.consume`."""
        return cast(Consumer, _WatchedConsumer(await self._broker.consume(consumer), consumer.name, self._tape))

    async def publish(self, messages: Sequence[Message], timeout_s: float) -> Sequence[PubAck]:
        """See `Broker.publish`."""
        self._note("published", messages)
        return await self._broker.publish(messages, timeout_s)

    def echo(self, messages: Sequence[Message]) -> None:
        """See `Broker.echo`."""
        self._note("echoed", messages)
        self._broker.echo(messages)

    def _note(self, kind: str, messages: Sequence[Message]) -> None:
        for message in messages:
            self._tape.note(kind, msg_id=message.msg_id, subject=message.subject, body=message.body)


class _WatchedConsumer:
    """A `Consumer` that writes down its ACKs before they are sent; all else is the consumer's own."""

    def __init__(self, consumer: Consumer, name: str, tape: Tape) -> None:
        self._consumer = consumer
        self._name = name
        self._tape = tape

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consumer, name)

    def settle(self, settlements: Sequence[Settlement]) -> None:
        """See `Consumer.settle`."""
        for settlement in settlements:
            if settlement.delay_s is None:
                sent = settlement.delivery
                self._tape.note(
                    "acked", consumer=self._name, subject=sent.subject, headers=sent.headers, body=sent.body
                )
        self._consumer.settle(settlements)
