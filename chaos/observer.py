"""The client and witness of a run: sends the workload, hears what core subscribers hear, sees what is left.

It outlives the server: when its connection ends it dials again, and writes down for how long it was deaf.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

import attrs
import trio

from chaos.evidence import Sent, dumped_body
from chaos.history import History
from chaos.sealing import renamed
from meshforge_trio.broker.api import JetStreamApi, headers_of
from meshforge_trio.broker.bridge import Connection, ConnectOptions, connect
from meshforge_trio.broker.jetstream import JetStreamBroker
from meshforge_trio.broker.port import Message
from meshforge_trio.config import EngineSettings
from meshforge_trio.engine import stream_specs
from meshforge_trio.errors import Misconfigured, SessionLost
from meshforge_trio.subjects import COMMANDS, EVENTS, FAILED
from meshforge_trio.uplink import Wire

__all__ = ["Observer", "open_observer"]

_POLL_S: Final = 0.02
_ROUND_TRIP_S: Final = 5.0
#: What the server says when it may store no more. It is asked again, as after no answer.
_NO_ROOM: Final = 10023
_T = TypeVar("_T")


class Observer:
    """Made by `open_observer`. `received` are (Msg-Id, body) of every event a core subscriber was sent."""

    def __init__(
        self,
        url: str,
        history: History | None,
        duplicate_window_s: float,
        hear: Callable[[str], None] | None,
        overhear: Callable[[str, bytes], None] | None,
    ) -> None:
        self._options = ConnectOptions(urls=(url,))
        self._history = history
        self._specs = stream_specs(EngineSettings(duplicate_window_s=duplicate_window_s))
        self._tell = hear
        self._overhear = overhear
        self._wire: Wire | None = None
        self._api: JetStreamApi | None = None
        self._connected = trio.Event()
        self.received: list[tuple[str, bytes]] = []

    async def keep_connected(self, wire: Wire) -> None:
        """Hold one connection after another, `wire` the first, until cancelled."""
        while True:
            self._write("deaf", reason=await wire.connection.wait_lost())
            await self._hang_up()
            wire = await self._dialled_again()

    async def _dialled_again(self) -> Wire:
        while True:
            try:
                return await self.dial()
            except (SessionLost, Misconfigured):
                await trio.sleep(_POLL_S)

    async def dial(self) -> Wire:
        """Connect, declare the streams, and listen.

        Raises:
            SessionLost, Misconfigured: the server cannot be reached, or has streams of another kind.
        """
        connection = await connect(self._options)
        try:
            wire = Wire.over(connection)
            for spec in self._specs:
                await wire.broker.declare(spec)
            connection.subscribe("evt.>", self._hear)
            if self._overhear is not None:
                connection.subscribe("cmd.>", self._pass_on)
            await connection.round_trip(_ROUND_TRIP_S)
        except BaseException:
            await _closed(connection)
            raise
        self._write("listening")
        self._wire, self._api = wire, JetStreamApi(connection)
        self._connected.set()
        return wire

    async def _hang_up(self) -> None:
        wire, self._wire = self._wire, None
        self._connected = trio.Event()
        if wire is not None:
            await _closed(wire.connection)

    async def close(self) -> None:
        """Hang up for good."""
        await self._hang_up()

    def _hear(self, subject: bytes, reply: bytes, headers: bytes | None, body: bytes) -> None:
        msg_id = headers_of(headers).get("Nats-Msg-Id", "")
        self.received.append((msg_id, body))
        self._write("heard", subject=subject.decode(errors="backslashreplace"), msg_id=msg_id, **dumped_body(body))
        if self._tell is not None:
            self._tell(msg_id)

    def _pass_on(self, subject: bytes, reply: bytes, headers: bytes | None, body: bytes) -> None:
        assert self._overhear is not None
        self._overhear(subject.decode(errors="backslashreplace"), body)

    def _write(self, kind: str, **fields: Any) -> None:
        if self._history is not None:
            self._history.write(kind, **fields)

    async def broker(self) -> JetStreamBroker:
        """The session that is up. Waits while there is none: the caller sets the deadline."""
        while self._wire is None or self._wire.connection.lost is not None:
            await self._connected.wait()
            if self._wire is not None and self._wire.connection.lost is not None:
                await trio.sleep(_POLL_S)
        return self._wire.broker

    async def _asking(self, question: Callable[[JetStreamBroker, JetStreamApi], Awaitable[_T]]) -> _T:
        """Ask until a connection lives long enough to answer."""
        while True:
            broker = await self.broker()
            assert self._api is not None
            try:
                return await question(broker, self._api)
            except SessionLost:
                await trio.sleep(_POLL_S)

    async def caught_up(self) -> None:
        """Return when everything the server had sent before is heard."""

        async def ask(broker: JetStreamBroker, api: JetStreamApi) -> None:
            assert self._wire is not None
            await self._wire.connection.round_trip(_ROUND_TRIP_S)

        await self._asking(ask)

    async def send(self, sent: Sequence[Sent]) -> None:
        """Put commands into the command stream, in order, as a client does: what is unanswered is sent again.

        Raises:
            RuntimeError: the stream refused one.
        """
        for each in sent:
            self._write("send", id=each.command.id, key=each.key, subject=each.subject, phase=each.phase)
        # The same id may be used in several scopes.
        messages = [Message(each.subject, each.body, f"{each.scope}/{each.command.id}") for each in sent]
        while messages:
            broker = await self.broker()
            try:
                acks = await broker.publish(messages, 10.0)
            except SessionLost as error:
                for each in sent:
                    self._write("unknown", id=each.command.id, reason=str(error))
                continue
            if any(ack.error_code == _NO_ROOM for ack in acks):
                await trio.sleep(_POLL_S)
                continue
            for each, ack in zip(sent, acks, strict=True):
                if ack.error:
                    self._write("failed", id=each.command.id, reason=ack.error)
                    raise RuntimeError(f"the command stream refused {each.command.id}: {ack.error}")
                self._write("ok", id=each.command.id, seq=ack.seq)
            return

    async def pending(self, *, first: bool = False) -> Sequence[str]:
        """What has not been decided yet, in words; empty when everything is. `first`: no more than one thing of it."""

        async def ask(broker: JetStreamBroker, api: JetStreamApi) -> Sequence[str]:
            left: list[str] = []
            commands = await broker.stream_facts(COMMANDS)
            if commands.messages:
                left.append(f"{commands.messages} messages in {COMMANDS}")
            if first and left:
                return left
            for name in (await api.request(f"CONSUMER.NAMES.{EVENTS}")).get("consumers") or []:
                info = await api.request(f"CONSUMER.INFO.{EVENTS}.{name}")
                waiting = info["num_pending"] + info["num_ack_pending"]
                if waiting:
                    left.append(f"{waiting} events for {name}")
            return left

        return await self._asking(ask)

    async def in_hand(self) -> int:
        """How many messages consumers have been given and not settled."""

        async def ask(broker: JetStreamBroker, api: JetStreamApi) -> int:
            total = 0
            for stream in (COMMANDS, EVENTS):
                for name in (await api.request(f"CONSUMER.NAMES.{stream}")).get("consumers") or []:
                    total += (await api.request(f"CONSUMER.INFO.{stream}.{name}"))["num_ack_pending"]
            return total

        return await self._asking(ask)

    async def drained(self) -> None:
        """Return when nothing is pending, twice in a row: a decision may just be sending the next command."""
        calm = 0
        while calm < 2:
            calm = 0 if await self.pending(first=True) else calm + 1
            await trio.sleep(_POLL_S)

    async def drained_or(self, *ends: trio.Event) -> None:
        """Return when nothing is pending, or when one of `ends` is set."""
        async with trio.open_nursery() as nursery:
            for end in ends:
                nursery.start_soon(_cancel_after, end.wait, nursery.cancel_scope)
            await self.drained()
            nursery.cancel_scope.cancel()

    async def forget(self) -> None:
        """Delete the three streams with their consumers, so that the server can serve another run."""

        async def ask(broker: JetStreamBroker, api: JetStreamApi) -> None:
            for stream in (COMMANDS, EVENTS, FAILED):
                await api.request(f"STREAM.DELETE.{stream}")

        await self._asking(ask)


async def _cancel_after(wait: Callable[[], Awaitable[None]], scope: trio.CancelScope) -> None:
    await wait()
    scope.cancel()


async def _closed(connection: Connection) -> None:
    with trio.CancelScope(shield=True):
        await connection.aclose()


@asynccontextmanager
async def open_observer(
    url: str,
    *,
    history: History | None = None,
    duplicate_window_s: float = 120.0,
    hear: Callable[[str], None] | None = None,
    overhear: Callable[[str, bytes], None] | None = None,
) -> AsyncIterator[Observer]:
    """Declare the streams and start listening. The bridge's loop must be open.

    `hear` is called with the Msg-Id of every event a core subscriber is sent, `overhear` with the subject and body of
    every command, whoever sent it.

    Raises:
        SessionLost, Misconfigured: the server cannot be reached, or has streams of another kind.
    """
    observer = Observer(url, history, duplicate_window_s, hear, overhear)
    wire = await observer.dial()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(observer.keep_connected, wire)
        try:
            yield observer
        finally:
            nursery.cancel_scope.cancel()
            await observer.close()


def resent(sent: Sent, number: int) -> Sent:
    """The same command as a client that never saw its answer sends it: a new id, the same key."""
    command = renamed(sent.command, f"{sent.command.id}-again{number}")
    return attrs.evolve(sent, command=command, key=sent.key, digest=sent.digest)
