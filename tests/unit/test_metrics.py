"""What a process counts."""

from __future__ import annotations

import pytest

from meshforge_trio.errors import Fenced, SessionLost, StoreFull, Transient
from meshforge_trio.metrics import Histogram, ScopeMetrics, WorkerMetrics, reason_of
from meshforge_trio.subjects import Scope

SCOPE = Scope("t", "w", "a")


def test_a_value_on_a_bound_belongs_below_it() -> None:
    histogram = Histogram((1.0, 4.0))
    for value in (0.5, 1.0, 1.5, 4.0, 4.5, 100.0):
        histogram.add(value)
    assert histogram.counts == [2, 2, 2]
    assert histogram.total == 111.5


def test_a_committed_turn_is_counted_by_outcome_and_code() -> None:
    scope = ScopeMetrics()
    scope.committed(["decided", "decided", "duplicate"], [], wrote=True)
    scope.committed(["dead", "failed"], ["attempts_exhausted"], wrote=True)
    assert dict(scope.outcomes) == {"decided": 2, "duplicate": 1, "dead": 1, "failed": 1}
    assert dict(scope.dead) == {"attempts_exhausted": 1}


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (SessionLost("gone"), "SessionLost"),
        (Fenced("other"), "Fenced"),
        (StoreFull("full"), "StoreFull"),
        (KeyError("x"), "crashed"),
        (type("AnyName", (Exception,), {})(), "crashed"),
    ],
)
def test_reasons_are_few(error: Exception, reason: str) -> None:
    assert reason_of(error) == reason


@pytest.mark.parametrize("error", [StoreFull("no space"), Transient("locked by another process")])
def test_a_refused_commit_turns_red_until_one_goes_well(error: Exception) -> None:
    process, scope = WorkerMetrics(), ScopeMetrics()
    process.scopes[SCOPE] = scope
    scope.ended(error, 100.0)
    assert process.store_problem(101.0) == str(error)
    scope.committed(["duplicate"], [], wrote=False)
    assert process.store_problem(101.0) == str(error)
    scope.committed(["decided"], [], wrote=True)
    assert process.store_problem(101.0) == ""


def test_a_refusal_that_is_not_repeated_is_over() -> None:
    process, scope = WorkerMetrics(), ScopeMetrics()
    process.scopes[SCOPE] = scope
    scope.ended(StoreFull("no space"), 100.0)
    assert process.store_problem(110.0)
    assert not process.store_problem(120.0)


def test_a_lost_broker_says_nothing_about_the_store() -> None:
    process, scope = WorkerMetrics(), ScopeMetrics(phase="serving")
    process.scopes[SCOPE] = scope
    scope.ended(SessionLost("gone"), 100.0)
    process.disconnected(SessionLost("gone"))
    assert process.store_problem(100.0) == ""
    assert (process.broker_since, process.broker_error) == (None, "gone")
    assert scope.phase == "starting"
    assert dict(scope.lost) == dict(process.broker_lost) == {"SessionLost": 1}


def test_a_lease_that_cannot_be_renewed_is_told() -> None:
    process = WorkerMetrics()
    process.store_refused = "locked"
    assert process.store_problem(0.0) == "locked"
