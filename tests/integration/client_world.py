"""What tests of the clients stand on: a served agent, a listener, a proxy that swallows a PubAck."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import attrs
import trio

from meshforge_trio.agent import AgentAdapter
from meshforge_trio.broker.bridge import ConnectOptions, connect
from meshforge_trio.broker.jetstream import JetStreamBroker, open_broker
from meshforge_trio.client import MeshClient, open_client
from meshforge_trio.config import EngineSettings, Settings
from meshforge_trio.crud import crud_agent
from meshforge_trio.engine import stream_specs
from meshforge_trio.envelope import CommandEnvelope, SecurityContext, decode_command
from meshforge_trio.runtime import App, Runtime
from meshforge_trio.server import PrivateServer
from meshforge_trio.store.sqlite import SQLiteEventStore
from meshforge_trio.subjects import COMMANDS, EVENTS

DEADLINE_S: Final = 30
KIM: Final = SecurityContext("kim", "user")
_PUBACK: Final = f'"stream":"{COMMANDS}"'.encode()


def dial(url: str, principal: SecurityContext = KIM) -> AbstractAsyncContextManager[MeshClient]:
    """A client of the workspace that `serving` serves."""
    return open_client(ConnectOptions(urls=(url,), probe_s=0.3), tenant="t", workspace="w", principal=principal)


async def declare_streams(url: str) -> None:
    """The streams of the project, as a runtime would create them."""
    async with open_broker(url) as broker:
        for spec in stream_specs(EngineSettings()):
            await broker.declare(spec)


@asynccontextmanager
async def serving(
    server: PrivateServer, home: Path, *agents: AgentAdapter[Any], settings: EngineSettings | None = None
) -> AsyncIterator[Runtime]:
    """A runtime that serves `agents` (else the agent `order`) in t/w, drained at the end."""
    store = await SQLiteEventStore.open(home / "store.db")
    chosen = Settings(url=server.url, workspaces=("t/w",), engine=settings or EngineSettings())

    def session() -> AbstractAsyncContextManager[JetStreamBroker]:
        return open_broker(ConnectOptions(urls=(server.url,), probe_s=0.3))

    runtime = Runtime(App(agents or [crud_agent("order")]), chosen, store, session)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(runtime.run)
            for engine in runtime.engines:
                await engine.serving.wait()
            yield runtime
            runtime.stop()
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
            await store.close()


@asynccontextmanager
async def overhearing(url: str) -> AsyncIterator[trio.MemoryReceiveChannel[CommandEnvelope]]:
    """Every command that passes, whether or not a stream stores it."""
    send, receive = trio.open_memory_channel[CommandEnvelope](math.inf)

    def heard(_subject: bytes, _reply: bytes, _headers: bytes | None, body: bytes) -> None:
        send.send_nowait(decode_command(body))

    connection = await connect(ConnectOptions(urls=(url,)))
    try:
        connection.subscribe("cmd.>", heard)
        await connection.round_trip(5)
        yield receive
    finally:
        await connection.aclose()


async def stored(url: str, stream: str = COMMANDS) -> int:
    """How many messages a stream holds."""
    async with open_broker(url) as broker:
        return (await broker.stream_facts(stream)).messages


async def event_names(url: str) -> list[str]:
    """Names of all stored events, in order."""
    async with open_broker(url) as broker:
        return [m.subject.rpartition(".")[2] for m in await broker.read_back(EVENTS, "evt.>", 1, 1000)]


@attrs.define(eq=False)
class PubAckThief:
    """A TCP proxy. The `nth` PubAck of a command is swallowed, `then` is called, and the connection is cut."""

    port: int
    then: Callable[[], None]
    nth: int = 1
    passed: int = 0
    stolen: bool = False

    async def run(self, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Carry until cancelled; reports the URL to dial."""
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, self._carry, listeners)
            task_status.started(f"nats://127.0.0.1:{listeners[0].socket.getsockname()[1]}")

    async def _carry(self, client: trio.SocketStream) -> None:
        try:
            server = await trio.open_tcp_stream("127.0.0.1", self.port)
        except OSError:
            return  # it is down: so is this
        async with server, trio.open_nursery() as nursery:
            nursery.start_soon(self._pump, client, server, nursery.cancel_scope, False)
            nursery.start_soon(self._pump, server, client, nursery.cancel_scope, True)

    async def _pump(
        self, source: trio.SocketStream, sink: trio.SocketStream, both: trio.CancelScope, from_server: bool
    ) -> None:
        try:
            async for chunk in source:
                self.passed += bytes(chunk).count(_PUBACK) if from_server else 0
                if self.passed >= self.nth and not self.stolen:
                    self.stolen = True
                    self.then()
                    break
                await sink.send_all(chunk)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # one side is gone, the other goes with it
        both.cancel()
