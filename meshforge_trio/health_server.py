"""The health endpoint: `/livez`, `/readyz`, `/healthz` and `/metrics` over HTTP, on the loopback interface alone.

It shares the process with the runtime and must never disturb it: few connections, short requests, one deadline for
each, one answer and the connection is closed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import Final, TypeVar

import attrs
import h11
import orjson
import structlog
import trio

from meshforge_trio.config import Settings
from meshforge_trio.errors import Misconfigured
from meshforge_trio.health.exposition import exposition
from meshforge_trio.health.report import as_documents, overall
from meshforge_trio.health.view import SiteView

__all__ = ["serve_health"]

_T = TypeVar("_T")

_PORT_MAX: Final = 65_535
_CONNECTIONS_MAX: Final = 16
_REQUEST_BYTES_MAX: Final = 8_192
_CONNECTION_S: Final = 5.0
_TEXT: Final = "text/plain; charset=utf-8"
_JSON: Final = "application/json"
_PROMETHEUS: Final = "text/plain; version=0.0.4; charset=utf-8"


@attrs.frozen
class _Answer:
    status: HTTPStatus
    body: bytes
    kind: str = _TEXT
    allow: str = ""


async def serve_health(
    settings: Settings,
    views: Sequence[SiteView],
    worker: int,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer for the sites of a process on `settings.health_host`, port `settings.health_port` + `worker`.

    Runs until cancelled. Reports `started` with the port. The loop of the bridge must be running around the caller.

    Raises:
        Misconfigured: the port cannot be had.
    """
    port = settings.health_port + worker
    try:
        if port > _PORT_MAX:
            raise OSError("there is no such port")
        listeners = await trio.open_tcp_listeners(port, host=settings.health_host)
    except OSError as error:
        raise Misconfigured(
            f"the health endpoint cannot listen on {settings.health_host} port {port}: {error}; "
            "`health_port` names another, or 0 for none"
        ) from error
    structlog.get_logger("meshforge").info("health endpoint", host=settings.health_host, port=port)
    endpoint = _Endpoint(views)
    try:
        await trio.serve_listeners(endpoint.guest, listeners, task_status=_Started(task_status, port))
    finally:
        for view in views:
            await view.aclose()


@attrs.frozen
class _Started:
    """Reports the port instead of the listeners."""

    outer: trio.TaskStatus[int]
    port: int

    def started(self, _listeners: object = None) -> None:
        """Pass it on."""
        self.outer.started(self.port)


class _Endpoint:
    def __init__(self, views: Sequence[SiteView]) -> None:
        self._views = views
        self._guests = 0
        self._log = structlog.get_logger("meshforge.health")

    async def guest(self, stream: trio.SocketStream) -> None:
        """Answer one request and close. Whatever goes wrong ends this connection and nothing else."""
        async with stream:
            if self._guests >= _CONNECTIONS_MAX:
                return
            self._guests += 1
            try:
                with trio.move_on_after(_CONNECTION_S):
                    await self._converse(stream)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                self._log.debug("a guest of the health endpoint went away", reason=str(error))
            finally:
                self._guests -= 1

    async def _converse(self, stream: trio.SocketStream) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_REQUEST_BYTES_MAX)
        try:
            request = await _request(connection, stream)
        except h11.RemoteProtocolError as error:
            status = HTTPStatus(error.error_status_hint)
            await _send(connection, stream, _Answer(status, f"{error}\n".encode()), head=False)
            return
        if request is not None:
            answer = await self._answer(request)
            await _send(connection, stream, answer, head=request.method == b"HEAD")

    async def _answer(self, request: h11.Request) -> _Answer:
        if request.method not in (b"GET", b"HEAD"):
            return _Answer(HTTPStatus.METHOD_NOT_ALLOWED, b"only GET and HEAD\n", allow="GET, HEAD")
        try:
            return await self._page(request.target.partition(b"?")[0])
        except Exception as error:
            # A defect here is no reason to end what the process is there for.
            self._log.error("the health endpoint failed", exc_info=error)
            return _Answer(HTTPStatus.INTERNAL_SERVER_ERROR, b"failed; the log says why\n")

    async def _page(self, path: bytes) -> _Answer:
        match path:
            case b"/livez":
                ending = any(view.metrics.stopping for view in self._views)
                return _verdict(["the process is ending"] if ending else [], "alive")
            case b"/readyz":
                return _verdict(self._not_ready(), "ready")
            case b"/healthz":
                reports = await self._each(SiteView.report)
                status = HTTPStatus.SERVICE_UNAVAILABLE if overall(reports) == "failing" else HTTPStatus.OK
                document = as_documents([(v.site.tenants, r) for v, r in zip(self._views, reports, strict=True)])
                return _Answer(status, orjson.dumps(document) + b"\n", _JSON)
            case b"/metrics":
                figures = await self._each(SiteView.figures)
                page = exposition([(v.site.name, v.metrics, f) for v, f in zip(self._views, figures, strict=True)])
                return _Answer(HTTPStatus.OK, page, _PROMETHEUS)
            case _:
                return _Answer(HTTPStatus.NOT_FOUND, b"/livez /readyz /healthz /metrics\n")

    async def _each(self, ask: Callable[[SiteView], Awaitable[_T]]) -> Sequence[_T]:
        """What every view says, asked all at once: one that takes its time keeps no other waiting."""
        found: dict[SiteView, _T] = {}

        async def one(view: SiteView) -> None:
            found[view] = await ask(view)

        async with trio.open_nursery() as nursery:
            for view in self._views:
                nursery.start_soon(one, view)
        return [found[view] for view in self._views]

    def _not_ready(self) -> Sequence[str]:
        if len(self._views) == 1:
            return self._views[0].not_ready()
        return [f"{view.site.name}: {reason}" for view in self._views for reason in view.not_ready()]


def _verdict(reasons: Sequence[str], fine: str) -> _Answer:
    if not reasons:
        return _Answer(HTTPStatus.OK, f"{fine}\n".encode())
    return _Answer(HTTPStatus.SERVICE_UNAVAILABLE, "".join(f"{reason}\n" for reason in reasons).encode())


async def _request(connection: h11.Connection, stream: trio.SocketStream) -> h11.Request | None:
    """The head of a request; `None` where the guest left before it was whole. A body is not read."""
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Request):
            return event
        if event is not h11.NEED_DATA:
            return None
        connection.receive_data(await stream.receive_some(_REQUEST_BYTES_MAX))


async def _send(connection: h11.Connection, stream: trio.SocketStream, answer: _Answer, *, head: bool) -> None:
    headers = [
        ("Content-Type", answer.kind),
        ("Content-Length", str(len(answer.body))),
        ("Cache-Control", "no-store"),
        ("Connection", "close"),
    ]
    if answer.allow:
        headers.append(("Allow", answer.allow))
    frames = [connection.send(h11.Response(status_code=answer.status, reason=answer.status.phrase, headers=headers))]
    if not head:
        frames.append(connection.send(h11.Data(data=answer.body)))
    frames.append(connection.send(h11.EndOfMessage()))
    await stream.send_all(b"".join(frame or b"" for frame in frames))
