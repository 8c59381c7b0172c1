"""What health figures come to."""

from __future__ import annotations

from typing import Any

import attrs
import orjson
import pytest

from meshforge_trio.health.report import (
    BrokerHealth,
    ScopeHealth,
    StoreHealth,
    WorkerHealth,
    as_document,
    judge,
    not_ready,
)
from meshforge_trio.metrics import ScopeMetrics, WorkerMetrics
from meshforge_trio.subjects import Scope

GIB = 1 << 30
STORE = StoreHealth("x.db", "", 8192, 0, 50 * GIB, 100 * GIB)
BROKER = BrokerHealth("", 5.0, "S", "2.15.1")
SCOPE = ScopeHealth("t/w/a", "1-x", True, 3, undecided=0)
PROCESS = WorkerHealth(0, 10.0, False, 1, {}, 0, "")


def judged(**changed: Any) -> tuple[str, list[str]]:
    store = attrs.evolve(STORE, **changed.get("store", {}))
    broker = attrs.evolve(BROKER, **changed.get("broker", {}))
    scope = attrs.evolve(SCOPE, **changed.get("scope", {}))
    process = attrs.evolve(PROCESS, **changed["process"]) if "process" in changed else None
    report = judge(store, broker, [scope], process)
    assert all(reason.what and reason.do for reason in report.reasons)
    return report.status, [reason.what for reason in report.reasons]


def test_nothing_amiss_is_ok() -> None:
    assert judged() == ("ok", [])
    assert judged(process={}) == ("ok", [])


@pytest.mark.parametrize(
    ("changed", "status", "what"),
    [
        ({"store": {"problem": "locked"}}, "failing", "the store cannot be written: locked"),
        ({"store": {"disk_free": 9 << 20}}, "failing", "9 MiB are free on the disk of x.db"),
        ({"store": {"disk_free": 900 << 20}}, "degraded", "900 MiB (0.9%) are free on the disk of x.db"),
        ({"broker": {"problem": "gone"}}, "failing", "the broker: gone"),
        ({"scope": {"holder_alive": False}}, "degraded", "t/w/a: nobody serves it"),
        (
            {"scope": {"holder_alive": False, "undecided": 2}},
            "failing",
            "t/w/a: nobody serves it, and work waits",
        ),
        (
            {"scope": {"holder_alive": False, "undecided": None, "undecided_age_s": 1.0}},
            "failing",
            "t/w/a: nobody serves it, and work waits",
        ),
        ({"scope": {"phase": "recovering"}}, "degraded", "t/w/a: recovering, it does not serve yet"),
        (
            {"scope": {"outbox": 3, "outbox_age_s": 31.0}},
            "degraded",
            "t/w/a: 3 committed outputs are not confirmed, the oldest up to 31 s old",
        ),
        (
            {"scope": {"undecided": 7, "undecided_age_s": 61.0, "parked": 2}},
            "degraded",
            "t/w/a: 7 commands are undecided, the first for 61 s; 2 of them failed and wait for their next attempt",
        ),
        ({"scope": {"dead": 4}}, "degraded", "t/w/a: 4 dead letters wait for a decision"),
        (
            {"process": {"crashes": 2, "last_crash": "KeyError: 'x'"}},
            "degraded",
            "2 crashes since the process began; the last: KeyError: 'x'",
        ),
        ({"process": {"stopping": True}}, "degraded", "the process is ending"),
    ],
)
def test_each_thing_amiss_is_told(changed: dict[str, Any], status: str, what: str) -> None:
    assert judged(**changed) == (status, [what])


@pytest.mark.parametrize(
    "changed",
    [
        {"store": {"disk_free": 2 * GIB}},
        {"store": {"disk_free": 900 << 20, "disk_size": 2 * GIB}},
        {"scope": {"outbox": 3, "outbox_age_s": 1.0}},
        {"scope": {"undecided": 7, "undecided_age_s": 1.0}},
        {"scope": {"parked": 3, "parked_next_s": 5.0}},
        {"scope": {"holder_alive": False, "phase": "standing_by"}},
    ],
)
def test_what_passes_by_itself_is_ok(changed: dict[str, Any]) -> None:
    assert judged(**changed) == ("ok", [])


def test_the_worst_reason_comes_first_and_decides() -> None:
    status, reasons = judged(store={"disk_free": 900 << 20}, broker={"problem": "gone"})
    assert status == "failing"
    assert reasons[0] == "the broker: gone"


def test_the_document_is_json() -> None:
    report = judge(STORE, BROKER, [SCOPE], PROCESS)
    document = orjson.loads(orjson.dumps(as_document(report)))
    assert document["status"] == "ok"
    assert document["store"]["disk_free_share"] == 0.5
    assert document["scopes"][0]["scope"] == "t/w/a"


def ready(**changed: Any) -> WorkerMetrics:
    metrics = WorkerMetrics(store_open=True, broker_since=1.0)
    metrics.scopes[Scope("t", "w", "a")] = ScopeMetrics(phase="serving")
    metrics.scopes[Scope("t", "w", "b")] = ScopeMetrics(phase="standing_by")
    for name, value in changed.items():
        setattr(metrics, name, value)
    return metrics


def test_serving_and_standing_by_are_ready() -> None:
    assert not not_ready(ready(), 0.0)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"stopping": True}, "the process is ending"),
        ({"store_open": False}, "the store is not open yet"),
        ({"store_refused": "locked"}, "the store cannot be written: locked"),
        ({"broker_since": None, "broker_error": "refused"}, "no broker session: refused"),
        ({"scopes": {Scope("t", "w", "a"): ScopeMetrics(phase="recovering")}}, "t/w/a: recovering"),
    ],
)
def test_each_reason_not_to_be_ready(changed: dict[str, Any], told: str) -> None:
    assert list(not_ready(ready(**changed), 0.0)) == [told]
