"""`meshforge health`: how store, broker and engines are, seen from outside."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import click
import trio
from rich.console import Console
from rich.table import Table

from meshforge_trio.broker.bridge import open_loop
from meshforge_trio.broker.survey import open_survey
from meshforge_trio.cli.options import (
    Common,
    common_options,
    print_json,
    store_option,
    url_option,
    workspaces_option,
)
from meshforge_trio.clock import SystemClock
from meshforge_trio.errors import MeshForgeError
from meshforge_trio.health.backlog import with_backlog
from meshforge_trio.health.figures import StoreFigures, read_figures
from meshforge_trio.health.report import (
    BrokerHealth,
    HealthReport,
    ScopeHealth,
    Status,
    as_documents,
    judge,
    overall,
)
from meshforge_trio.launch import connect_options
from meshforge_trio.policy import ExitCode
from meshforge_trio.sites import Site, sites
from meshforge_trio.subjects import Scope

__all__ = ["health"]

_BROKER_S: Final = 10.0
_COLOURS: Final[dict[Status, str]] = {"ok": "green", "degraded": "yellow", "failing": "red"}
_MIB: Final = 1 << 20
_PIPE_WIDTH: Final = 1_000


@click.command(short_help="Say how store, broker and engines are.")
@url_option
@store_option
@workspaces_option
@common_options
def health(**given: Any) -> int:
    """Look at the store and the broker, beside a running worker or without one.

    Nothing is changed: the store is read, a write is begun and taken back, the broker is asked; each of them, where
    tenants have their own. Exit code 0 when all is well, 1 when something is degraded or failing; what and what to do
    is said.
    """
    common = Common.take(given, log_level="error")
    reports = trio.run(_reports, common)
    if common.as_json:
        print_json(as_documents([(site.tenants, report) for site, report in reports]))
    for site, report in () if common.as_json else reports:
        _show(report, "" if site.alone else f"{site.name}: ")
    return ExitCode.OK if overall([report for _, report in reports]) == "ok" else ExitCode.FAILED


async def _reports(common: Common) -> Sequence[tuple[Site, HealthReport]]:
    """The report of each site, in the order of the workspaces; a site that hangs keeps no other waiting."""
    found = sites(common.settings)
    reports: dict[str, HealthReport] = {}

    async def one(site: Site) -> None:
        reports[site.name] = await _report(common, site)

    async with open_loop(), trio.open_nursery() as nursery:
        for site in found:
            nursery.start_soon(one, site)
    return [(site, reports[site.name]) for site in found]


async def _report(common: Common, site: Site) -> HealthReport:
    read = partial(read_figures, site.settings.store, SystemClock().now(), probe=True)
    figures: StoreFigures = await trio.to_thread.run_sync(read)
    scopes = {
        scope: found for scope, found in figures.scopes.items() if site.has(scope.tenant) and _asked_for(scope, common)
    }
    broker, listed = await _ask_broker(site, scopes)
    return judge(figures.store, broker, listed)


def _asked_for(scope: Scope, common: Common) -> bool:
    workspaces = common.flags.get("workspaces")
    return workspaces is None or f"{scope.tenant}/{scope.workspace}" in workspaces


async def _ask_broker(site: Site, scopes: dict[Scope, ScopeHealth]) -> tuple[BrokerHealth, Sequence[ScopeHealth]]:
    try:
        async with open_survey(connect_options(site.settings)) as survey:
            return await with_backlog(survey, scopes, _BROKER_S)
    except MeshForgeError as error:
        return BrokerHealth(str(error)), list(scopes.values())


def _show(report: HealthReport, title: str) -> None:
    # A pipe has no width: nothing is folded for it.
    console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=_PIPE_WIDTH)
    colour = _COLOURS[report.status]
    console.print(f"{title}[bold {colour}]{report.status}[/]")
    store, broker = report.store, report.broker
    console.print(
        f"store   {store.path}: {store.size / _MIB:,.1f} MiB, log {store.log_size / _MIB:,.1f} MiB, "
        f"{store.disk_free / _MIB:,.0f} MiB ({store.disk_free_share:.0%}) free",
        markup=False,
    )
    console.print(f"broker  {broker.problem or f'nats-server {broker.version}'}", markup=False)
    if report.scopes:
        console.print(_table(report.scopes))
    for reason in report.reasons:
        console.print(f"[{_COLOURS[reason.status]}]{reason.status}[/]: ", end="")
        console.print(f"{reason.what}. {reason.do}", markup=False)


def _table(scopes: Sequence[ScopeHealth]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("scope", "served by", "undecided", "oldest", "outbox", "parked", "next", "dead"):
        table.add_column(column, justify="left" if column in ("scope", "served by") else "right", overflow="fold")
    for scope in scopes:
        served = scope.holder if scope.holder_alive else "[red]nobody[/]"
        table.add_row(
            scope.scope,
            served,
            "?" if scope.undecided is None else str(scope.undecided),
            _seconds(scope.undecided_age_s),
            str(scope.outbox),
            str(scope.parked),
            _seconds(scope.parked_next_s),
            f"[yellow]{scope.dead}[/]" if scope.dead else "0",
        )
    return table


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f} s"
