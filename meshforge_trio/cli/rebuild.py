"""`meshforge replay` and `meshforge hash`: state rebuilt from events, and the one number that stands for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import click
import trio
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from meshforge_trio.agent import AgentAdapter
from meshforge_trio.cli.options import Common, common_options, print_json, store_option, workspaces_option
from meshforge_trio.cli.reader import ScopeFile, StoreFiles, read_stores
from meshforge_trio.codec import ScopeSealer
from meshforge_trio.config import Settings
from meshforge_trio.errors import Misconfigured, Poison
from meshforge_trio.launch import adapter_of, load_app, with_components
from meshforge_trio.policy import ExitCode
from meshforge_trio.replay import ReplayReport, replay_scope, state_hash
from meshforge_trio.subjects import Scope

__all__ = ["hash_", "replay"]

_APP = click.option(
    "--app", required=True, metavar="MODULE:ATTR", help="The app, whose agents know how to apply events."
)
_SCOPE = click.option("--scope", metavar="T/W/AGENT", help="Only this scope.")


@click.command(short_help="Rebuild everything from events and compare.")
@_APP
@_SCOPE
@store_option
@workspaces_option
@common_options
def replay(app: str, scope: str | None, **given: Any) -> int:
    """Rebuild every entity from its events and compare with what the store recorded: chains, versions, snapshots,
    and the state the last engine had in memory when it drained.

    Exit code 1 when something differs, the first event that does is named; or when payloads are sealed and do not open.
    """
    common = Common.take(given, log_level="warning")
    loaded = with_components(load_app(app), common.settings)
    reports: list[ReplayReport] = []
    closed: list[str] = []
    with read_stores(_meant(scope, common)) as store:
        chosen = [store.rows(each) for each in _chosen(store, scope, common)]
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        console = Console(stderr=True)
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
            for rows in chosen:
                task = bar.add_task(str(rows.scope), total=rows.event_count())
                adapter = adapter_of(loaded, rows.scope.agent)
                sealer = ScopeSealer.of_scope(common.codecs(loaded), rows.scope)
                try:
                    report = trio.run(
                        replay_scope, rows, adapter, lambda events, t=task: bar.advance(t, events), sealer
                    )
                except Poison as error:
                    closed.append(f"{rows.scope} cannot be replayed: {error.reason}")
                    continue
                reports.append(report.against(rows.recorded_state_hash()))
    _report(reports, as_json=common.as_json)
    for line in closed:
        click.echo(f"meshforge: {line}", err=True)
    return ExitCode.FAILED if closed or any(report.first_difference for report in reports) else ExitCode.OK


def _report(reports: Sequence[ReplayReport], *, as_json: bool) -> None:
    if as_json:
        for report in reports:
            print_json(attrs.asdict(report))
        return
    for report in reports:
        click.echo(
            f"{report.scope}: {report.entities} entities, {report.events} events, {report.snapshots} snapshots, "
            f"state_hash {report.state_hash}{'' if report.recorded is None else ', as it was served'}"
        )
        if report.first_difference is not None:
            click.echo(f"DIFFERS ({report.differences} entities): {report.first_difference}")


@click.command("hash", short_help="Print the state_hash of each scope.")
@_APP
@_SCOPE
@store_option
@workspaces_option
@common_options
def hash_(app: str, scope: str | None, **given: Any) -> int:
    """Print the state_hash of each scope: SHA-256 over its entities' versions, chains and states.

    Equal histories have equal hashes, in whatever process they are computed. Where payloads are sealed the states in it
    are keyed digests, so it needs the key ring; exit code 1 where that is gone.
    """
    common = Common.take(given, log_level="warning")
    loaded = with_components(load_app(app), common.settings)
    code = ExitCode.OK
    with read_stores(_meant(scope, common)) as store:
        for each in _chosen(store, scope, common):
            sealer = ScopeSealer.of_scope(common.codecs(loaded), each)
            try:
                _print_hash(store.rows(each), adapter_of(loaded, each.agent), sealer, as_json=common.as_json)
            except Poison as error:
                click.echo(f"meshforge: {each} has no state_hash: {error.reason}", err=True)
                code = ExitCode.FAILED
    return code


def _print_hash(rows: ScopeFile, adapter: AgentAdapter[Any], sealer: ScopeSealer | None, *, as_json: bool) -> None:
    digest, entities = trio.run(state_hash, rows, adapter, sealer)
    if as_json:
        print_json({"scope": str(rows.scope), "entities": entities, "state_hash": digest})
    else:
        click.echo(f"{digest}  {rows.scope}")


def _meant(scope: str | None, common: Common) -> Settings:
    """The settings whose stores are read: those of the scope's tenant, where one is named."""
    return common.settings if scope is None else common.settings.of_tenant(scope.partition("/")[0])


def _chosen(store: StoreFiles, scope: str | None, common: Common) -> Sequence[Scope]:
    """The scopes asked for: one by name, those of the workspaces given, or all of the stores."""
    if scope is not None:
        parts = scope.split("/")
        if len(parts) != 3:
            raise click.UsageError(f"--scope {scope!r} is not <tenant>/<workspace>/<agent>")
        return [Scope(*parts)]
    wanted = common.flags.get("workspaces")
    found = [each for each in store.scopes if wanted is None or f"{each.tenant}/{each.workspace}" in wanted]
    if not found:
        raise Misconfigured(f"{store} holds no scope{' of that workspace' if wanted else ''}")
    return found
