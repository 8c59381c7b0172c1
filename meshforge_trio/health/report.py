"""The health report: what was found, and what it comes to.

The same report is made inside a running process, for its HTTP endpoint, and beside it or without one, by
`meshforge health`; only the first knows the process. Times are in seconds, sizes in bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal, get_args

import attrs

from meshforge_trio.metrics import Phase, WorkerMetrics

__all__ = [
    "BrokerHealth",
    "HealthReport",
    "WorkerHealth",
    "Reason",
    "ScopeHealth",
    "Status",
    "StoreHealth",
    "as_document",
    "as_documents",
    "judge",
    "not_ready",
    "overall",
]

#: Mildest first.
Status = Literal["ok", "degraded", "failing"]

_GIB: Final = 1 << 30
#: Free space below this many bytes, and below a tenth of the disk, is little.
_DISK_LOW_BYTES: Final = _GIB
_DISK_LOW_SHARE: Final = 0.1
#: Below this the next checkpoint of the store may not fit.
_DISK_GONE_BYTES: Final = 64 << 20
#: Publishing takes milliseconds; an output that is older has stopped on its way.
_OUTBOX_LATE_S: Final = 30.0
#: A command that waits for longer waits for something.
_UNDECIDED_LATE_S: Final = 60.0


@attrs.frozen
class Reason:
    """Why the status is not ok: what was found, and what to do about it."""

    status: Status
    what: str
    do: str


@attrs.frozen
class StoreHealth:
    """The store's file and its disk. `problem` says why it cannot be written or read, "" when it can."""

    path: str
    problem: str
    size: int = 0
    log_size: int = 0
    disk_free: int = 0
    disk_size: int = 0

    @property
    def disk_free_share(self) -> float:
        """The free part of the disk, 0 to 1."""
        return self.disk_free / self.disk_size if self.disk_size else 0.0


@attrs.frozen
class BrokerHealth:
    """The broker session. `live_s` is how long it has lived, `None` where nobody knows or it does not live."""

    problem: str
    live_s: float | None = None
    server: str = ""
    version: str = ""


@attrs.frozen
class ScopeHealth:
    """One scope: who serves it, and what waits.

    `holder` names who has its lease, living or not. `outbox` counts committed outputs that no mark confirms as
    published; `outbox_age_s` is the most that the oldest of them can be old. `parked` commands wait for their next
    attempt, the soonest in `parked_next_s`. `dead` letters wait for somebody's decision. `undecided` commands lie in
    the command stream, the first since `undecided_age_s`; both `None` where the broker did not tell.
    """

    scope: str
    holder: str | None = None
    holder_alive: bool = False
    epoch: int = 0
    phase: Phase | None = None
    outbox: int = 0
    outbox_age_s: float | None = None
    parked: int = 0
    parked_next_s: float | None = None
    dead: int = 0
    undecided: int | None = None
    undecided_age_s: float | None = None
    redelivered: int | None = None

    @property
    def waits(self) -> bool:
        """Whether something waits to be done."""
        return bool(self.undecided or self.undecided_age_s is not None or self.outbox or self.parked)


@attrs.frozen
class WorkerHealth:
    """The process that answers: what it counted since its start. `stopped` is why it serves the site no more, or ""."""

    worker: int
    up_s: float
    stopping: bool
    sessions: int
    sessions_lost: Mapping[str, int]
    crashes: int
    last_crash: str
    stopped: str = ""


@attrs.frozen
class HealthReport:
    """Everything, and what it comes to."""

    status: Status
    reasons: Sequence[Reason]
    store: StoreHealth
    broker: BrokerHealth
    scopes: Sequence[ScopeHealth]
    process: WorkerHealth | None


def judge(
    store: StoreHealth, broker: BrokerHealth, scopes: Sequence[ScopeHealth], process: WorkerHealth | None = None
) -> HealthReport:
    """What was found as a report: the worst reason decides its status."""
    stopped = process is not None and process.stopped
    # Without a session of its own it knows nothing of the broker.
    reasons = [*_of_store(store), *(() if stopped else _of_broker(broker)), *_of_process(process)]
    for scope in scopes:
        reasons += _of_scope(scope)
    reasons.sort(key=lambda reason: reason.status != "failing")
    status: Status = reasons[0].status if reasons else "ok"
    return HealthReport(status, reasons, store, broker, scopes, process)


def _of_store(store: StoreHealth) -> Iterator[Reason]:
    if store.problem:
        yield Reason("failing", f"the store cannot be written: {store.problem}", "nothing is decided until it can")
    elif store.disk_free < _DISK_GONE_BYTES:
        what = f"{store.disk_free >> 20} MiB are free on the disk of {store.path}"
        yield Reason("failing", what, "make room: the store stops taking commits when none is left")
    elif store.disk_free < _DISK_LOW_BYTES and store.disk_free_share < _DISK_LOW_SHARE:
        what = f"{store.disk_free >> 20} MiB ({store.disk_free_share:.1%}) are free on the disk of {store.path}"
        yield Reason("degraded", what, "make room before the store stops taking commits")


def _of_broker(broker: BrokerHealth) -> Iterator[Reason]:
    if broker.problem:
        yield Reason("failing", f"the broker: {broker.problem}", "look after nats-server and the way to it")


def _of_process(process: WorkerHealth | None) -> Iterator[Reason]:
    if process is None:
        return
    if process.stopped:
        what = f"it is no longer served: {process.stopped}"
        yield Reason("failing", what, "mend it, then restart the process; its other tenants go on meanwhile")
    if process.crashes:
        what = f"{process.crashes} crashes since the process began; the last: {process.last_crash}"
        yield Reason("degraded", what, "read the log: a crash is a defect or a resource that is missing")
    if process.stopping:
        yield Reason("degraded", "the process is ending", "nothing, if somebody stopped it")


def _of_scope(scope: ScopeHealth) -> Iterator[Reason]:
    if not scope.holder_alive and scope.phase is None:
        status: Status = "failing" if scope.waits else "degraded"
        what = f"{scope.scope}: nobody serves it" + (", and work waits" if scope.waits else "")
        yield Reason(status, what, "start `meshforge run` for its workspace")
    if scope.phase in ("starting", "recovering"):
        what = f"{scope.scope}: {scope.phase}, it does not serve yet"
        yield Reason("degraded", what, "nothing, if it does in a moment; else the log says why")
    if scope.outbox and (scope.outbox_age_s or 0.0) > _OUTBOX_LATE_S:
        what = f"{scope.scope}: {scope.outbox} committed outputs are not confirmed, the oldest up to "
        yield Reason(
            "degraded", f"{what}{scope.outbox_age_s:.0f} s old", "the next session publishes them; see why none begins"
        )
    if scope.undecided_age_s is not None and scope.undecided_age_s > _UNDECIDED_LATE_S:
        count = "some" if scope.undecided is None else scope.undecided
        what = f"{scope.scope}: {count} commands are undecided, the first for {scope.undecided_age_s:.0f} s"
        waiting = f"; {scope.parked} of them failed and wait for their next attempt" if scope.parked else ""
        yield Reason("degraded", what + waiting, "look in the log for failing handlers, or add a worker")
    if scope.dead:
        what = f"{scope.scope}: {scope.dead} dead letters wait for a decision"
        yield Reason("degraded", what, "`meshforge dlq list`, then redrive or discard them")


def not_ready(metrics: WorkerMetrics, at: float) -> Sequence[str]:
    """Why a process cannot do its work at second `at`; empty when every engine serves or stands by."""
    found = []
    if metrics.stopping:
        found.append("the process is ending")
    if metrics.stopped:
        return [*found, f"no longer served until the process is restarted: {metrics.stopped}"]
    if not metrics.store_open:
        found.append("the store is not open yet")
    if problem := metrics.store_problem(at):
        found.append(f"the store cannot be written: {problem}")
    if metrics.broker_since is None:
        found.append("no broker session" + (f": {metrics.broker_error}" if metrics.broker_error else ""))
    found += [
        f"{scope}: {counted.phase.replace('_', ' ')}"
        for scope, counted in metrics.scopes.items()
        if counted.phase not in ("serving", "standing_by")
    ]
    return found


def as_document(report: HealthReport) -> dict[str, Any]:
    """The report as JSON shows it."""
    document = attrs.asdict(report)
    document["store"]["disk_free_share"] = round(report.store.disk_free_share, 4)
    return document


def overall(reports: Sequence[HealthReport]) -> Status:
    """What several sites come to: the worst of them."""
    ranks: Sequence[Status] = get_args(Status)
    return max((report.status for report in reports), key=ranks.index)


def as_documents(reports: Sequence[tuple[Sequence[str], HealthReport]]) -> dict[str, Any]:
    """The reports of sites, each with its tenants, as JSON shows them; of a single site its report alone."""
    if len(reports) == 1:
        return as_document(reports[0][1])
    return {
        "status": overall([report for _, report in reports]),
        "reasons": [
            {"tenants": tenants, **attrs.asdict(reason)} for tenants, report in reports for reason in report.reasons
        ],
        "sites": [{"tenants": tenants, **as_document(report)} for tenants, report in reports],
    }
