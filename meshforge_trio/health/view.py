"""What a process finds at one of its sites: the figures of the store, what waits at the broker, a report of both.

Read beside the runtime, on connections of its own, at most once a second whoever asks. A disk or a broker that hangs
is told in the report, so that the other sites of the process still are seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import attrs
import trio

from meshforge_trio.broker.bridge import ConnectOptions
from meshforge_trio.broker.survey import Survey, dial_survey
from meshforge_trio.clock import Clock, SystemClock
from meshforge_trio.errors import MeshForgeError
from meshforge_trio.health.backlog import with_backlog
from meshforge_trio.health.figures import StoreFigures, read_figures
from meshforge_trio.health.report import (
    BrokerHealth,
    HealthReport,
    ScopeHealth,
    StoreHealth,
    WorkerHealth,
    judge,
    not_ready,
)
from meshforge_trio.metrics import WorkerMetrics
from meshforge_trio.sites import Site
from meshforge_trio.subjects import Scope

__all__ = ["SiteView"]

_BROKER_S: Final = 2.0
#: Below the deadline of a guest of the endpoint, above the time for which a locked store is waited for.
_STORE_S: Final = 4.0
#: What was found is good for so long, in seconds.
_FRESH_S: Final = 1.0


class SiteView:
    """One site as its process sees it. `options` says how to dial its broker, and may raise `Misconfigured`."""

    def __init__(self, site: Site, metrics: WorkerMetrics, options: Callable[[], ConnectOptions]) -> None:
        self.site = site
        self.metrics = metrics
        self._options = options
        self._clock: Clock = SystemClock()
        self._reading = trio.Lock()
        self._thread = trio.CapacityLimiter(1)
        self._figures: tuple[float, StoreFigures] | None = None
        self._report: tuple[float, HealthReport] | None = None
        self._survey: Survey | None = None

    async def aclose(self) -> None:
        """End the connection to the broker."""
        survey, self._survey = self._survey, None
        if survey is not None:
            await survey.aclose()

    def not_ready(self) -> Sequence[str]:
        """Why the site is not served as it should be; empty when it is."""
        return not_ready(self.metrics, self._clock.now())

    async def figures(self) -> StoreFigures:
        """The store's figures, not older than a second."""
        async with self._reading:
            return await self._fresh_figures()

    async def report(self) -> HealthReport:
        """What is found, not older than a second."""
        async with self._reading:
            if self._report is None or trio.current_time() - self._report[0] > _FRESH_S:
                self._report = (trio.current_time(), await self._take_report())
            return self._report[1]

    async def _fresh_figures(self) -> StoreFigures:
        """The caller holds `_reading`."""
        now = trio.current_time()
        if self._figures is None or now - self._figures[0] > _FRESH_S:
            path = self.site.settings.store
            figures = StoreFigures(StoreHealth(str(path), f"its disk did not answer within {_STORE_S:g} s"), {})
            # The runtime's own writes tell whether the store can be written, so nothing is tried here.
            read: Callable[[], StoreFigures] = partial(read_figures, path, self._clock.now(), probe=False)
            with trio.move_on_after(_STORE_S):
                figures = await trio.to_thread.run_sync(read, abandon_on_cancel=True, limiter=self._thread)
            self._figures = (now, figures)
        return self._figures[1]

    async def _take_report(self) -> HealthReport:
        metrics, now = self.metrics, self._clock.now()
        figures = await self._fresh_figures()
        store = figures.store
        problem = metrics.store_problem(now)
        if problem or not metrics.store_open:
            store = attrs.evolve(store, problem=problem or store.problem or "it is not open yet")
        # Of one that was stopped the store tells who serves it now, if anybody does.
        scopes = {
            scope: attrs.evolve(
                figures.scopes.get(scope, ScopeHealth(str(scope))), phase=None if metrics.stopped else counted.phase
            )
            for scope, counted in metrics.scopes.items()
        }
        broker, listed = await self._broker(scopes, now)
        process = WorkerHealth(
            worker=metrics.worker,
            up_s=now - metrics.started_at,
            stopping=metrics.stopping,
            stopped=metrics.stopped,
            sessions=metrics.broker_sessions,
            sessions_lost=dict(metrics.broker_lost),
            crashes=metrics.crashes,
            last_crash=metrics.last_crash,
        )
        return judge(store, broker, listed, process)

    async def _broker(self, scopes: dict[Scope, ScopeHealth], now: float) -> tuple[BrokerHealth, Sequence[ScopeHealth]]:
        since = self.metrics.broker_since
        if since is None:
            return BrokerHealth(self.metrics.broker_error or "not connected yet"), list(scopes.values())
        live_s = max(0.0, now - since)
        try:
            with trio.fail_after(_BROKER_S):
                if self._survey is None or self._survey.lost is not None:
                    await self.aclose()
                    self._survey = await dial_survey(self._options())
        except (MeshForgeError, trio.TooSlowError) as error:
            return BrokerHealth(str(error) or "no connection in time", live_s), list(scopes.values())
        broker, listed = await with_backlog(self._survey, scopes, _BROKER_S)
        return attrs.evolve(broker, live_s=live_s), listed
