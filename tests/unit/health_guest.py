"""Who asks the health endpoint, byte by byte."""

from __future__ import annotations

import socket

import attrs
import trio

from meshforge_trio.metrics import WorkerMetrics
from meshforge_trio.subjects import Scope

SCOPE = Scope("t", "w", "a")
DEADLINE_S = 30


@attrs.define(eq=False)
class Guest:
    """Speaks to the endpoint byte by byte."""

    port: int
    metrics: WorkerMetrics

    async def sends(self, request: bytes) -> bytes:
        """All that comes back until the endpoint closes."""
        async with await trio.open_tcp_stream("127.0.0.1", self.port) as stream:
            await stream.send_all(request)
            return await self.hears(stream)

    async def hears(self, stream: trio.SocketStream) -> bytes:
        answer = b""
        try:
            async for chunk in stream:
                answer += chunk
        except trio.BrokenResourceError:
            return answer
        return answer

    async def gets(self, path: str, method: str = "GET") -> tuple[int, bytes]:
        """Status and body."""
        answer = await self.sends(f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), body


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port
