"""A guest of the health endpoint, and an endpoint for it."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import trio
import trio.testing

from meshforge_trio.broker.bridge import ConnectOptions
from meshforge_trio.config import Settings
from meshforge_trio.health.view import SiteView
from meshforge_trio.health_server import serve_health
from meshforge_trio.metrics import ScopeMetrics, WorkerMetrics
from meshforge_trio.sites import sites
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


def view_of(settings: Settings, metrics: WorkerMetrics, url: str = "nats://127.0.0.1:9") -> SiteView:
    (site,) = sites(settings)
    return SiteView(site, metrics, lambda: ConnectOptions(urls=(url,)))


@asynccontextmanager
async def endpoint(store: Path, url: str = "nats://127.0.0.1:9") -> AsyncIterator[Guest]:
    """One that answers for a process whose engine serves."""
    metrics = WorkerMetrics(started_at=1.0, store_open=True, broker_since=1.0)
    metrics.scopes[SCOPE] = ScopeMetrics(phase="serving", epoch=1)
    settings = Settings(store=store, health_port=free_port())
    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            port = await nursery.start(serve_health, settings, [view_of(settings, metrics, url)], 0)
            yield Guest(port, metrics)
            nursery.cancel_scope.cancel()
