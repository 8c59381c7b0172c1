"""The health endpoint: `/livez`, `/readyz`, `/healthz` and `/metrics` over HTTP, on the loopback interface alone.

It shares the process with the runtime and must never disturb it: few connections, short requests, one deadline for
each, one answer and the connection is closed. What is read of store and broker is read beside the runtime, at most
once a second whoever asks, on connections of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from http import HTTPStatus
from typing import Final

import attrs
import h11
import orjson
import structlog
import trio

from meshforge_trio.broker.bridge import ConnectOptions
from meshforge_trio.broker.survey import Survey, dial_survey
from meshforge_trio.clock import Clock, SystemClock
from meshforge_trio.config import Settings
from meshforge_trio.errors import MeshForgeError, Misconfigured
from meshforge_trio.health.backlog import with_backlog
from meshforge_trio.health.exposition import exposition
from meshforge_trio.health.figures import StoreFigures, read_figures
from meshforge_trio.health.report import (
    BrokerHealth,
    HealthReport,
    ScopeHealth,
    WorkerHealth,
    as_document,
    judge,
    not_ready,
)
from meshforge_trio.metrics import WorkerMetrics
from meshforge_trio.subjects import Scope

__all__ = ["serve_health"]

_PORT_MAX: Final = 65_535
_CONNECTIONS_MAX: Final = 16
_REQUEST_BYTES_MAX: Final = 8_192
_CONNECTION_S: Final = 5.0
_BROKER_S: Final = 2.0
#: What was found is good for so long, in seconds.
_FRESH_S: Final = 1.0
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
    metrics: WorkerMetrics,
    options: ConnectOptions,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer on `settings.health_host`, port `settings.health_port` + the number of the worker, until cancelled.

    Reports `started` with the port. The loop of the bridge must be running around the caller.

    Raises:
        Misconfigured: the port cannot be had.
    """
    port = settings.health_port + metrics.worker
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
    endpoint = _Endpoint(settings, metrics, options)
    try:
        await trio.serve_listeners(endpoint.guest, listeners, task_status=_Started(task_status, port))
    finally:
        await endpoint.aclose()


@attrs.frozen
class _Started:
    """Reports the port instead of the listeners."""

    outer: trio.TaskStatus[int]
    port: int

    def started(self, _listeners: object = None) -> None:
        """Pass it on."""
        self.outer.started(self.port)


class _Endpoint:
    def __init__(self, settings: Settings, metrics: WorkerMetrics, options: ConnectOptions) -> None:
        self._settings = settings
        self._metrics = metrics
        self._options = options
        self._clock: Clock = SystemClock()
        self._guests = 0
        self._reading = trio.Lock()
        self._thread = trio.CapacityLimiter(1)
        self._figures: tuple[float, StoreFigures] | None = None
        self._report: tuple[float, HealthReport] | None = None
        self._survey: Survey | None = None
        self._log = structlog.get_logger("meshforge.health")

    async def aclose(self) -> None:
        """End the connection to the broker."""
        survey, self._survey = self._survey, None
        if survey is not None:
            await survey.aclose()

    # -- HTTP --------------------------------------------------------------------------------------------------

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
                return _verdict(["the process is ending"] if self._metrics.stopping else [], "alive")
            case b"/readyz":
                return _verdict(not_ready(self._metrics, self._clock.now()), "ready")
            case b"/healthz":
                report = await self._fresh_report()
                status = HTTPStatus.SERVICE_UNAVAILABLE if report.status == "failing" else HTTPStatus.OK
                return _Answer(status, orjson.dumps(as_document(report)) + b"\n", _JSON)
            case b"/metrics":
                async with self._reading:
                    page = exposition(self._metrics, await self._fresh_figures())
                return _Answer(HTTPStatus.OK, page, _PROMETHEUS)
            case _:
                return _Answer(HTTPStatus.NOT_FOUND, b"/livez /readyz /healthz /metrics\n")

    # -- what is found -----------------------------------------------------------------------------------------

    async def _fresh_figures(self) -> StoreFigures:
        """The store's figures, not older than a second. The caller holds `_reading`."""
        now = trio.current_time()
        if self._figures is None or now - self._figures[0] > _FRESH_S:
            # The runtime's own writes tell whether the store can be written, so nothing is tried here.
            read: Callable[[], StoreFigures] = partial(
                read_figures, self._settings.store, self._clock.now(), probe=False
            )
            figures = await trio.to_thread.run_sync(read, abandon_on_cancel=True, limiter=self._thread)
            self._figures = (now, figures)
        return self._figures[1]

    async def _fresh_report(self) -> HealthReport:
        async with self._reading:
            if self._report is None or trio.current_time() - self._report[0] > _FRESH_S:
                self._report = (trio.current_time(), await self._take_report())
            return self._report[1]

    async def _take_report(self) -> HealthReport:
        metrics, now = self._metrics, self._clock.now()
        figures = await self._fresh_figures()
        store = figures.store
        problem = metrics.store_problem(now)
        if problem or not metrics.store_open:
            store = attrs.evolve(store, problem=problem or store.problem or "it is not open yet")
        scopes = {
            scope: attrs.evolve(figures.scopes.get(scope, ScopeHealth(str(scope))), phase=counted.phase)
            for scope, counted in metrics.scopes.items()
        }
        broker, listed = await self._broker(scopes, now)
        process = WorkerHealth(
            worker=metrics.worker,
            up_s=now - metrics.started_at,
            stopping=metrics.stopping,
            sessions=metrics.broker_sessions,
            sessions_lost=dict(metrics.broker_lost),
            crashes=metrics.crashes,
            last_crash=metrics.last_crash,
        )
        return judge(store, broker, listed, process)

    async def _broker(self, scopes: dict[Scope, ScopeHealth], now: float) -> tuple[BrokerHealth, Sequence[ScopeHealth]]:
        since = self._metrics.broker_since
        if since is None:
            return BrokerHealth(self._metrics.broker_error or "not connected yet"), list(scopes.values())
        live_s = max(0.0, now - since)
        try:
            with trio.fail_after(_BROKER_S):
                if self._survey is None or self._survey.lost is not None:
                    await self.aclose()
                    self._survey = await dial_survey(self._options)
        except (MeshForgeError, trio.TooSlowError) as error:
            return BrokerHealth(str(error) or "no connection in time", live_s), list(scopes.values())
        broker, listed = await with_backlog(self._survey, scopes, _BROKER_S)
        return attrs.evolve(broker, live_s=live_s), listed


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
