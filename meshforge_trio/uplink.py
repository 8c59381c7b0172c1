"""One connection at a time, dialled again whenever it ends: what a client stands on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Final, NoReturn

import attrs
import structlog
import trio
import trio_asyncio

from meshforge_trio.broker.bridge import Connection, ConnectOptions, Receiver, connect, open_loop
from meshforge_trio.broker.jetstream import JetStreamBroker, JetStreamEventBus
from meshforge_trio.broker.port import ServerFacts
from meshforge_trio.errors import Misconfigured, SessionLost
from meshforge_trio.policy import backoff

__all__ = ["Uplink", "Wire", "running_loop"]

_BACKOFF_MAX_S: Final = 2.0
_ROUND_TRIP_S: Final = 5.0
_PUBACK_S: Final = 5.0

_log = structlog.get_logger("meshforge.client")


@asynccontextmanager
async def running_loop() -> AsyncIterator[None]:
    """The loop the bridge needs: the one that is running, else one that runs for the block."""
    if trio_asyncio.current_loop.get() is not None:  # type: ignore[attr-defined]
        yield
        return
    async with open_loop():
        yield


@attrs.define(eq=False)
class Wire:
    """One connection, and what was set up on it. It is never repaired; `Uplink.wire` gives the next one."""

    connection: Connection
    broker: JetStreamBroker
    bus: JetStreamEventBus
    _asked: set[str] = attrs.field(factory=set)
    _listening: set[str] = attrs.field(factory=set)

    @staticmethod
    def over(connection: Connection) -> Wire:
        """A wire over a connection that was just made."""
        info = connection.info
        facts = ServerFacts(info["server_id"], info["version"], info["max_payload"])
        # It never pulls: a client publishes, listens and reads back.
        broker = JetStreamBroker(connection, facts, pull_batch=1, pull_expires_s=1.0)
        return Wire(connection, broker, JetStreamEventBus(broker, _PUBACK_S))

    async def listen(self, subject: str, receiver: Receiver) -> None:
        """Subscribe, once per wire; returns when the server has the subscription, after `_ROUND_TRIP_S` at most.

        Raises:
            SessionLost: the connection ended.
        """
        if subject in self._listening:
            return
        if subject not in self._asked:
            self._asked.add(subject)
            self.connection.subscribe(subject, receiver)
        await self.connection.round_trip(_ROUND_TRIP_S)
        self._listening.add(subject)


class Uplink:
    """Keeps a wire up. `last_failure` says why there is none, or why the last one ended."""

    def __init__(self, options: ConnectOptions) -> None:
        self._options = options
        self._wire: Wire | None = None
        self._changed = trio.Event()
        self._closed = False
        self.last_failure = ""

    async def wire(self) -> Wire:
        """The wire that is up. Waits as long as there is none, so the caller sets the deadline.

        Raises:
            trio.ClosedResourceError: the client was closed.
        """
        while True:
            if self._closed:
                raise trio.ClosedResourceError("the client is closed")
            if self._wire is not None and self._wire.connection.lost is None:
                return self._wire
            await self._changed.wait()

    async def keep(self, connection: Connection) -> NoReturn:
        """Hold `connection`, then one after another, until cancelled."""
        waits = backoff(_BACKOFF_MAX_S)
        try:
            while True:
                since = trio.current_time()
                self.last_failure = await self._hold(connection)
                if trio.current_time() - since > _BACKOFF_MAX_S:
                    waits = backoff(_BACKOFF_MAX_S)
                connection = await self._dial(waits)
        finally:
            self._closed = True
            self._tell_all()

    async def _hold(self, connection: Connection) -> str:
        self._wire = Wire.over(connection)
        self._tell_all()
        try:
            return await connection.wait_lost()
        finally:
            self._wire = None
            await connection.aclose()

    async def _dial(self, waits: Iterator[float]) -> Connection:
        while True:
            await trio.sleep(next(waits))
            try:
                return await connect(self._options)
            except (SessionLost, Misconfigured) as error:
                # Also credentials that are refused now may be good again before a caller's deadline; it will be told.
                self.last_failure = str(error)
                _log.info("dial_failed", reason=self.last_failure)

    def _tell_all(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
