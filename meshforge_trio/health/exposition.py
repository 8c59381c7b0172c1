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
from meshforge_trio.health.report import StoreHealth
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


#: A site as it is shown: its name, what its process counted there, what its store tells.
Shown = tuple[str, WorkerMetrics, StoreFigures]


def exposition(sites: Sequence[Shown]) -> bytes:
    """The page that Prometheus reads: counts of the process at each site, figures of its store, the process itself."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(sites))
    ProcessCollector(registry=registry)
    return generate_latest(registry)


class _Families(Collector):
    def __init__(self, sites: Sequence[Shown]) -> None:
        self._sites = sites
        self._scopes = {scope: counted for _, metrics, _ in sites for scope, counted in metrics.scopes.items()}
        # A single site needs no name.
        self._labels = ("tenants",) if len(sites) > 1 else ()

    def collect(self) -> Iterator[Metric]:
        """Every family, the process first."""
        yield from self._process()
        yield from self._turns()
        yield from self._sessions()
        yield from self._waiting()

    def _process(self) -> Iterator[Metric]:
        gauges: Sequence[tuple[str, str, Callable[[WorkerMetrics, StoreHealth], float]]] = (
            ("meshforge_stopped", "1 once the process serves these tenants no more", lambda m, _: bool(m.stopped)),
            ("meshforge_broker_connected", "1 while a broker session lives", lambda m, _: m.broker_since is not None),
            ("meshforge_store_bytes", "Size of the store's file", lambda _, store: store.size),
            ("meshforge_store_log_bytes", "Size of the store's write-ahead log", lambda _, store: store.log_size),
            ("meshforge_disk_free_bytes", "Free space on the disk of the store", lambda _, store: store.disk_free),
        )
        sessions = CounterMetricFamily("meshforge_broker_sessions", "Broker sessions begun", labels=self._labels)
        crashes = CounterMetricFamily(
            "meshforge_crashes", "Errors of engines and sessions that nobody foresaw", labels=self._labels
        )
        lost = CounterMetricFamily(
            "meshforge_broker_sessions_lost",
            "Broker sessions ended by an error, and dials that failed",
            labels=(*self._labels, "reason"),
        )
        for name, metrics, _ in self._sites:
            sessions.add_metric(self._named(name), metrics.broker_sessions)
            crashes.add_metric(self._named(name), metrics.crashes)
            for reason, count in metrics.broker_lost.items():
                lost.add_metric((*self._named(name), reason), count)
        yield from (sessions, crashes, lost)
        for family, text, value in gauges:
            gauge = GaugeMetricFamily(family, text, labels=self._labels)
            for name, metrics, figures in self._sites:
                gauge.add_metric(self._named(name), float(value(metrics, figures.store)))
            yield gauge
        # Resident memory keeps to the largest that was ever in use; a leak shows here.
        blocks = GaugeMetricFamily("meshforge_allocated_blocks", "Blocks of memory in use by the interpreter")
        blocks.add_metric((), sys.getallocatedblocks())
        yield blocks

    def _named(self, name: str) -> Sequence[str]:
        return (name,) if self._labels else ()

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
        for scope, counted in self._scopes.items():
            serving.add_metric(_labels(scope), float(counted.phase == "serving"))
        yield serving

    def _waiting(self) -> Iterator[Metric]:
        for name, text in _GAUGES:
            gauge = GaugeMetricFamily(f"meshforge_{name}", text, labels=_SCOPE)
            for _, metrics, figures in self._sites:
                for scope in metrics.scopes.keys() & figures.scopes.keys():
                    gauge.add_metric(_labels(scope), getattr(figures.scopes[scope], name))
            yield gauge

    def _count(self, name: str, text: str, value: Callable[[ScopeMetrics], int]) -> Metric:
        family = CounterMetricFamily(name, text, labels=_SCOPE)
        for scope, counted in self._scopes.items():
            family.add_metric(_labels(scope), value(counted))
        return family

    def _counts(self, name: str, text: str, label: str, values: Callable[[ScopeMetrics], Mapping[str, int]]) -> Metric:
        family = CounterMetricFamily(name, text, labels=(*_SCOPE, label))
        for scope, counted in self._scopes.items():
            for word, count in values(counted).items():
                family.add_metric((*_labels(scope), word), count)
        return family

    def _histogram(self, name: str, text: str, value: Callable[[ScopeMetrics], Histogram]) -> Metric:
        family = HistogramMetricFamily(name, text, labels=_SCOPE)
        for scope, counted in self._scopes.items():
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
