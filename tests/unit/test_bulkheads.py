"""What ends one site is kept there; a site that is alone has nobody to be kept from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import structlog.testing

from meshforge_trio.bulkheads import Bulkheads
from meshforge_trio.config import Settings
from meshforge_trio.errors import Misconfigured, StoreBroken, Transient
from meshforge_trio.metrics import ScopeMetrics, WorkerMetrics
from meshforge_trio.policy import ExitCode
from meshforge_trio.runtime import NotDrained, TooManyRestarts, exit_code
from meshforge_trio.sites import Site
from meshforge_trio.subjects import Scope

ACME, ZETA = (Site((tenant,), Settings(workspaces=(f"{tenant}/shop",)), alone=False) for tenant in ("acme", "zeta"))


def counted(site: Site) -> WorkerMetrics:
    metrics = WorkerMetrics(store_open=True, broker_since=1.0)
    metrics.scopes[Scope(site.tenants[0], "shop", "order")] = ScopeMetrics(phase="serving")
    return metrics


def goes_down(error: BaseException) -> None:
    raise error


def told(logs: list[Any]) -> list[Mapping[str, Any]]:
    return [{name: line.get(name) for name in ("tenants", "reason", "exit_code", "log_level")} for line in logs]


def test_what_is_raised_behind_a_wall_is_told_once_and_shown() -> None:
    walls, acme, zeta = Bulkheads(alone=False), counted(ACME), counted(ZETA)
    with structlog.testing.capture_logs() as logs:
        with walls.around(ACME, acme):
            goes_down(ExceptionGroup("nursery", [Transient("lost"), Misconfigured("no account")]))
        with walls.around(ZETA, zeta):
            pass
    assert told(logs) == [{"tenants": "acme", "reason": "no account", "exit_code": 3, "log_level": "critical"}]
    assert (acme.stopped, acme.broker_since) == ("no account", None)
    assert {scope.phase for scope in acme.scopes.values()} == {"starting"}
    assert (zeta.stopped, zeta.broker_since) == ("", 1.0)
    assert {scope.phase for scope in zeta.scopes.values()} == {"serving"}


def test_a_store_that_breaks_stops_all_on_it_that_were_left() -> None:
    walls, acme, zeta = Bulkheads(alone=False), counted(ACME), counted(ZETA)
    with structlog.testing.capture_logs() as logs, walls.around_store([(ACME, acme), (ZETA, zeta)]):
        with walls.around(ACME, acme):
            goes_down(Misconfigured("no account"))
        with walls.around(ZETA, zeta):
            goes_down(ExceptionGroup("nursery", [StoreBroken("both are on it")]))
    assert [(line["tenants"], line["reason"]) for line in told(logs)] == [
        ("acme", "no account"),
        ("zeta", "both are on it"),
    ]
    assert acme.stopped == "no account"


def test_an_error_that_nobody_foresaw_is_told_with_its_traceback() -> None:
    walls = Bulkheads(alone=False)
    with structlog.testing.capture_logs() as logs:
        with walls.around(ACME, counted(ACME)):
            goes_down(KeyError("a defect"))
        with walls.around(ZETA, counted(ZETA)):
            goes_down(TooManyRestarts("again and again"))
    assert [bool(line["exc_info"]) for line in logs] == [True, False]


@pytest.mark.parametrize(
    ("errors", "code"),
    [
        ([NotDrained("late"), TooManyRestarts("crashed")], ExitCode.TOO_MANY_RESTARTS),
        ([Misconfigured("no account"), TooManyRestarts("crashed")], ExitCode.MISCONFIGURED),
        ([StoreBroken("damaged"), Misconfigured("no account")], ExitCode.STORE_BROKEN),
        ([KeyError("a defect")], ExitCode.FAILED),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else "-".join(type(each).__name__ for each in value),
)
def test_the_end_has_the_severest_code(errors: list[Exception], code: int) -> None:
    walls = Bulkheads(alone=False)
    for error in errors:
        acme = counted(ACME)
        with structlog.testing.capture_logs(), walls.around_store([(ACME, acme)]), walls.around(ACME, acme):
            goes_down(error)
    with pytest.raises(Exception, match=r".+") as caught:
        walls.end()
    assert exit_code(caught.value) == code


def test_where_nothing_ended_the_end_is_quiet() -> None:
    walls = Bulkheads(alone=False)
    with walls.around(ACME, counted(ACME)):
        pass
    walls.end()


@pytest.mark.parametrize("error", [StoreBroken("damaged"), Misconfigured("no account")], ids=["store", "settings"])
def test_nothing_is_kept_from_ending_a_site_that_is_alone(error: Exception) -> None:
    walls, metrics = Bulkheads(alone=True), counted(ACME)
    with structlog.testing.capture_logs() as logs:
        with pytest.raises(type(error)), walls.around(ACME, metrics):
            goes_down(error)
        with pytest.raises(type(error)), walls.around_store([(ACME, metrics)]):
            goes_down(error)
    assert (logs, metrics.stopped) == ([], "")


def test_a_broken_store_goes_through_the_wall_of_its_site() -> None:
    """Whoever else is on that store has to hear of it."""
    walls, metrics = Bulkheads(alone=False), counted(ACME)
    with pytest.raises(StoreBroken), walls.around(ACME, metrics):
        goes_down(StoreBroken("damaged"))
    assert metrics.stopped == ""


def test_a_signal_passes_every_wall() -> None:
    with pytest.raises(KeyboardInterrupt), Bulkheads(alone=False).around(ACME, counted(ACME)):
        goes_down(KeyboardInterrupt())
