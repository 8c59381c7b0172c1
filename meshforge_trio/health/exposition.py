"""What a process counts, in the text format of Prometheus.

The counts are plain numbers elsewhere; this makes families of them when they are asked for. Labels name the scope.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from meshforge_trio.health.figures import StoreFigures
from meshforge_trio.metrics import Histogram, ScopeMetrics, WorkerMetrics
from meshforge_trio.subjects import Scope

__all__ = ["exposition"]

_SCOPE: Final = ("tenant", "workspace", "agent")
#: What only the store's file knows: name, meaning, value.
_GAUGES: Final[Sequence[tuple[str, str]]] = (
    ("outbox", "Committed outputs that no mark confirms as published"),
    ("parked", "Commands that wait for their next attempt"),
    ("dead", "Dead letters that nobody has redriven or discarded"),
)


def exposition(metrics: WorkerMetrics, figures: StoreFigures) -> bytes:
    """The page that Prometheus reads: counts of the process, figures of the store, the process itself."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(metrics, figures))
    ProcessCollector(registry=registry)
    return generate_latest(registry)


class _Families(Collector):
    def __init__(self, metrics: WorkerMetrics, figures: StoreFigures) -> None:
        self._metrics = metrics
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        """Every family, the process first."""
        yield from self._process()
        yield from self._turns()
        yield from self._sessions()
        yield from self._waiting()

    def _process(self) -> Iterator[Metric]:
        metrics, store = self._metrics, self._figures.store
        connected = GaugeMetricFamily("meshforge_broker_connected", "1 while a broker session lives")
        connected.add_metric((), float(metrics.broker_since is not None))
        sessions = CounterMetricFamily("meshforge_broker_sessions", "Broker sessions begun")
        sessions.add_metric((), metrics.broker_sessions)
        yield from (connected, sessions)
        lost = CounterMetricFamily(
            "meshforge_broker_sessions_lost",
            "Broker sessions ended by an error, and dials that failed",
            labels=("reason",),
        )
        for reason, count in metrics.broker_lost.items():
            lost.add_metric((reason,), count)
        crashes = CounterMetricFamily("meshforge_crashes", "Errors of engines and sessions that nobody foresaw")
        crashes.add_metric((), metrics.crashes)
        yield from (lost, crashes)
        for name, text, value in (
            ("meshforge_store_bytes", "Size of the store's file", store.size),
            ("meshforge_store_log_bytes", "Size of the store's write-ahead log", store.log_size),
            ("meshforge_disk_free_bytes", "Free space on the disk of the store", store.disk_free),
            # Resident memory keeps to the largest that was ever in use; a leak shows here.
            ("meshforge_allocated_blocks", "Blocks of memory in use by the interpreter", sys.getallocatedblocks()),
        ):
            gauge = GaugeMetricFamily(name, text)
            gauge.add_metric((), value)
            yield gauge

    def _turns(self) -> Iterator[Metric]:
        yield self._counts(
            "meshforge_commands", "Deliveries by what became of them", "outcome", lambda scope: scope.outcomes
        )
        yield self._counts("meshforge_dead_letters", "Dead letters written", "code", lambda scope: scope.dead)
        yield self._histogram("meshforge_turn_commands", "Deliveries in one turn", lambda scope: scope.sizes)
        yield self._histogram(
            "meshforge_turn_seconds", "From deciding a turn to its last ACK", lambda scope: scope.durations
        )

    def _sessions(self) -> Iterator[Metric]:
        yield self._count("meshforge_engine_sessions", "Sessions of the engine begun", lambda scope: scope.sessions)
        yield self._counts(
            "meshforge_engine_sessions_lost", "Sessions ended by an error", "reason", lambda scope: scope.lost
        )
        yield self._count(
            "meshforge_lease_takeovers",
            "Leases taken from a holder that ended uncleanly",
            lambda scope: scope.takeovers,
        )
        yield self._count(
            "meshforge_republished",
            "Outputs that recovery found missing and published",
            lambda scope: scope.republished,
        )
        serving = GaugeMetricFamily("meshforge_serving", "1 while this process serves the scope", labels=_SCOPE)
        for scope, counted in self._metrics.scopes.items():
            serving.add_metric(_labels(scope), float(counted.phase == "serving"))
        yield serving

    def _waiting(self) -> Iterator[Metric]:
        for name, text in _GAUGES:
            gauge = GaugeMetricFamily(f"meshforge_{name}", text, labels=_SCOPE)
            for scope in self._metrics.scopes:
                if scope in self._figures.scopes:
                    gauge.add_metric(_labels(scope), getattr(self._figures.scopes[scope], name))
            yield gauge

    def _count(self, name: str, text: str, value: Callable[[ScopeMetrics], int]) -> Metric:
        family = CounterMetricFamily(name, text, labels=_SCOPE)
        for scope, counted in self._metrics.scopes.items():
            family.add_metric(_labels(scope), value(counted))
        return family

    def _counts(self, name: str, text: str, label: str, values: Callable[[ScopeMetrics], Mapping[str, int]]) -> Metric:
        family = CounterMetricFamily(name, text, labels=(*_SCOPE, label))
        for scope, counted in self._metrics.scopes.items():
            for word, count in values(counted).items():
                family.add_metric((*_labels(scope), word), count)
        return family

    def _histogram(self, name: str, text: str, value: Callable[[ScopeMetrics], Histogram]) -> Metric:
        family = HistogramMetricFamily(name, text, labels=_SCOPE)
        for scope, counted in self._metrics.scopes.items():
            histogram = value(counted)
            family.add_metric(_labels(scope), _buckets(histogram), histogram.total)
        return family


def _labels(scope: Scope) -> tuple[str, str, str]:
    return scope.tenant, scope.workspace, scope.agent


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    """Cumulated, as the format wants them."""
    found: list[tuple[str, float]] = []
    below = 0
    for bound, count in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
        below += count
        found.append(("+Inf" if bound == float("inf") else str(bound), float(below)))
    return found
