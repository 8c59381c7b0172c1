"""What the tests of the proxy share: one frame of every kind, and connections seen from both their ends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import trio

from chaos.faults.proxy import Proxy, open_proxy
from chaos.history import History
from chaos.plan import parse_plan
from meshforge_trio.broker.frames import hpub, pub

DEADLINE_S = 20
INBOX = "_INBOX.abc.1"
ACK = "$JS.ACK.COMMANDS.t_consumer.1.17.9.1700000000.0"
PULL = "$JS.API.CONSUMER.MSG.NEXT.COMMANDS.t_consumer"
PUBACK = b'{"stream":"EVENTS","seq":7}'
#: One frame of every kind, none like another.
FRAMES = {
    "publish": hpub("evt.t.w.a.done", "_INBOX.abc.2", "m2", {}, b'{"id":"e2"}', limit=1 << 20),
    "puback": b"MSG %b 7 %d\r\n%b\r\n" % (INBOX.encode(), len(PUBACK), PUBACK),
    "pull": pub(PULL, "_INBOX.pull", b'{"batch":1}'),
    "delivery": f'MSG cmd.t.w.a.do 8 {ACK} 11\r\n{{"id":"c1"}}\r\n'.encode(),
    "ack": pub(ACK, "", b"+ACK"),
    "nak": pub(ACK, "", b"-NAK"),
    "extend": pub(ACK, "", b"+WPI"),
}
TO_CLIENT = ("puback", "delivery")
#: Said before everything else: the publish that the puback answers.
HELLO = b"CONNECT {}\r\n" + pub("cmd.t.w.a.do", INBOX, b"x")
INFO = b'INFO {"server_id":"x"}\r\n'
BEFORE, AFTER = b"PING\r\n", b"PONG\r\n"


@attrs.define(eq=False)
class Line:
    """A connection, seen from both its ends."""

    client: trio.SocketStream
    server: trio.SocketStream

    async def greet(self) -> None:
        """Say what every connection begins with."""
        await self.server.send_all(INFO)
        await self.client.send_all(HELLO)
        assert await read(self.client, len(INFO)) == INFO
        assert await read(self.server, len(HELLO)) == HELLO

    async def works(self) -> None:
        """Frames come through, both ways."""
        for source, target in ((self.client, self.server), (self.server, self.client)):
            await source.send_all(AFTER)
            assert await read(target, len(AFTER)) == AFTER


@attrs.define(eq=False)
class Lines:
    """Makes connections through a proxy to a listener that is no server."""

    proxy: Proxy
    listener: trio.SocketListener
    streams: list[trio.SocketStream] = attrs.field(factory=list)

    async def dial(self) -> Line:
        client = await trio.open_tcp_stream("127.0.0.1", self.proxy.port)
        self.streams.append(client)
        server = await self.listener.accept()
        self.streams.append(server)
        return Line(client, server)


@asynccontextmanager
async def lines(*rules: str, history: History | None = None, record_frames: bool = False) -> AsyncIterator[Lines]:
    """A proxy with these rules; everything is closed at the end, and too long a wait fails the test."""
    with trio.fail_after(DEADLINE_S):
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]
        made: list[trio.SocketStream] = []
        try:
            async with open_proxy(port, parse_plan("; ".join(rules)).rules, history, record_frames) as proxy:
                yield Lines(proxy, listener, made)
        finally:
            with trio.CancelScope(shield=True):
                for stream in (listener, *made):
                    await trio.aclose_forcefully(stream)


async def read(stream: trio.SocketStream, size: int) -> bytes:
    """Exactly so many bytes, or fewer if the stream ends."""
    seen = b""
    while len(seen) < size and (chunk := await stream.receive_some(size - len(seen))):
        seen += chunk
    return seen


async def rest(stream: trio.SocketStream) -> tuple[bytes, str]:
    """Everything up to the end, and which end it was."""
    seen = bytearray()
    try:
        async for chunk in stream:
            seen += chunk
    except trio.BrokenResourceError:
        return bytes(seen), "reset"
    return bytes(seen), "end"


async def broken(stream: trio.SocketStream) -> bool:
    """Write until the other side is gone."""
    try:
        while True:
            await stream.send_all(AFTER)
            await trio.sleep(0.01)
    except trio.BrokenResourceError:
        return True
