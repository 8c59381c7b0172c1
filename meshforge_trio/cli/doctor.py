"""`meshforge doctor`: settings, store, server and streams held against what the guarantees need."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import attrs
import click
import trio
from rich.console import Console

from meshforge_trio.broker.bridge import open_loop
from meshforge_trio.broker.survey import Survey, open_survey
from meshforge_trio.cli.options import Common, common_options, print_json, store_option, url_option, workspaces_option
from meshforge_trio.config import Settings
from meshforge_trio.doctor.belonging import examine_belonging, read_marks
from meshforge_trio.doctor.local import examine_machine, examine_settings, examine_store
from meshforge_trio.doctor.rules import Finding, Severity
from meshforge_trio.doctor.streams import examine_consumers, examine_server, examine_streams
from meshforge_trio.doctor.syncing import Syncing, examine_syncing, of_config_file, of_monitor
from meshforge_trio.errors import MeshForgeError, SessionLost
from meshforge_trio.launch import connect_options, load_app, with_components
from meshforge_trio.policy import ExitCode, RetryPolicy, worst_code
from meshforge_trio.runtime import App, exit_code
from meshforge_trio.sites import Site, sites
from meshforge_trio.store.port import Mark
from meshforge_trio.subjects import Scope

__all__ = ["doctor"]

_COLOURS: Final[Mapping[Severity, str]] = {"ok": "green", "unknown": "cyan", "warn": "yellow", "refuse": "red"}
_PIPE_WIDTH: Final = 1_000


@attrs.frozen
class _Case:
    """What is examined."""

    settings: Settings
    app: App | None
    durable: bool
    syncing: Syncing | None

    @property
    def policies(self) -> Mapping[str, RetryPolicy]:
        """The policies of retries, by agent; of an app that is not named, only those of the settings."""
        if self.app is not None:
            return {agent.name: self.settings.retry_of(agent.name, agent.retry) for agent in self.app.agents}
        named = {name: self.settings.retry_of(name) for name in self.settings.agents}
        return {"every agent": self.settings.engine.retry, **named}

    def scopes(self, site: Site, marks: Mapping[Scope, Sequence[Mark]]) -> Sequence[Scope]:
        """Those of the app, and those of the store in the same workspaces."""
        workspaces = site.settings.workspaces
        of_store = {scope for scope in marks if f"{scope.tenant}/{scope.workspace}" in workspaces}
        of_app = set() if self.app is None else {scope for scope, _ in self.app.scopes(workspaces)}
        return sorted(of_store | of_app, key=str)


@click.command(short_help="Hold settings, store, server and streams against the guarantees.")
@click.option("--app", metavar="MODULE:ATTR", help="The app, so that its agents are known before they were served.")
@click.option("--durable", is_flag=True, help="Nothing that was confirmed may be lost with the power.")
@click.option("--strict", is_flag=True, help="Exit code 1 for warnings, too.")
@click.option("--server-config", type=click.Path(path_type=Path), metavar="FILE", help="The server's configuration.")
@click.option("--monitor", metavar="URL", help="The server's monitoring port, as http://127.0.0.1:8222.")
@url_option
@store_option
@workspaces_option
@common_options
def doctor(
    app: str | None, durable: bool, strict: bool, server_config: Path | None, monitor: str | None, **given: Any
) -> int:
    """Say which settings break a guarantee or may be a mistake, why, and what to do.

    Nothing is changed. Exit code 3 when something breaks a guarantee (`meshforge run` refuses it), 1 when the broker
    cannot be reached or, with --strict, for warnings, else 0.
    """
    common = Common.take(given, log_level="error")
    syncing = None
    if server_config is not None:
        syncing = of_config_file(server_config)
    elif monitor is not None:
        syncing = of_monitor(monitor)
    case = _Case(
        common.settings, None if app is None else with_components(load_app(app), common.settings), durable, syncing
    )
    findings, problems = trio.run(_examine, case)
    if common.as_json:
        for finding in findings:
            print_json(attrs.asdict(finding))
    else:
        _show(findings, problems)
    worst = {finding.severity for finding in findings}
    codes = [exit_code(error) for error in problems.values()]
    if "refuse" in worst:
        codes.append(ExitCode.MISCONFIGURED)
    if strict and "warn" in worst:
        codes.append(ExitCode.FAILED)
    return worst_code(codes)


async def _examine(case: _Case) -> tuple[Sequence[Finding], Mapping[str, MeshForgeError]]:
    """What was found, and what kept from looking further, by the name of the site ("" of the only one)."""
    found = sites(case.settings)
    findings = [
        *examine_settings(case.settings, case.policies),
        *[_of(site, finding) for site in found for finding in examine_store(site.settings.store, durable=case.durable)],
        *examine_machine(),
        examine_syncing(case.syncing, durable=case.durable),
    ]
    problems: dict[str, MeshForgeError] = {}
    async with open_loop():
        for site in found:
            try:
                findings += [_of(site, finding) for finding in await _examine_site(case, site)]
            except MeshForgeError as error:
                # A server that is away leaves the rest to be told; anything else does if there are others to examine.
                if site.alone and not isinstance(error, SessionLost):
                    raise
                problems["" if site.alone else site.name] = error
    return findings, problems


def _of(site: Site, finding: Finding) -> Finding:
    return finding if site.alone else attrs.evolve(finding, found=f"{site.name}: {finding.found}")


async def _examine_site(case: _Case, site: Site) -> Sequence[Finding]:
    marks = await trio.to_thread.run_sync(partial(read_marks, site.settings.store))
    async with open_survey(connect_options(site.settings)) as survey:
        return await _ask(survey, case, site, marks)


async def _ask(survey: Survey, case: _Case, site: Site, marks: Mapping[Scope, Sequence[Mark]]) -> Sequence[Finding]:
    settings, scopes = site.settings, case.scopes(site, marks)
    return [
        *await examine_server(survey, settings, durable=case.durable),
        *await examine_streams(survey, settings),
        *await examine_consumers(survey, settings, scopes),
        *await examine_belonging(survey, settings.store, marks, scopes),
    ]


def _show(findings: Sequence[Finding], problems: Mapping[str, MeshForgeError]) -> None:
    # A pipe has no width: nothing is folded for it.
    console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=_PIPE_WIDTH)
    for finding in findings:
        colour, the = _COLOURS[finding.severity], finding.rule
        console.print(f"[{colour}]{finding.severity:<8}[/]{the.id:<18}", end="")
        console.print(finding.found, markup=False)
        if finding.severity in ("warn", "refuse"):
            for name, text in (("why", f"{the.guards}. {the.why}"), ("do", finding.do), ("see", the.scenario)):
                console.print(f"        {name}: {text}", style="dim", markup=False)
        elif finding.do:
            console.print(f"        do: {finding.do}", style="dim", markup=False)
    for name, error in problems.items():
        console.print("[yellow]not examined: server, streams and consumers[/]: ", end="")
        console.print(f"{name}: {error}" if name else str(error), markup=False)
