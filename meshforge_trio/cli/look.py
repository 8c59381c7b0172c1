"""`meshforge events` and `meshforge state`: what the store holds."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import attrs
import click
import orjson
import trio
from rich.console import Console
from rich.table import Table

from meshforge_trio.cli.options import (
    Common,
    checked_scope,
    common_options,
    print_json,
    store_option,
    workspace_option,
)
from meshforge_trio.cli.reader import ScopeFile, read_store, read_stores
from meshforge_trio.codec import ScopeSealer
from meshforge_trio.launch import adapter_of, load_app, with_components
from meshforge_trio.policy import ExitCode
from meshforge_trio.replay import state_at
from meshforge_trio.store.port import Output

__all__ = ["events", "state"]

_PAGE: Final = 500
_PIPE_WIDTH: Final = 100_000


@click.command(short_help="List events of the store.")
@click.option("--agent", metavar="NAME", help="Of this agent; with --workspace, of that workspace.")
@click.option("--entity", metavar="ID", help="Of this entity.")
@click.option("--after", type=click.IntRange(0), default=0, metavar="N", help="Above this number (entity: version).")
@click.option("--all", "every", is_flag=True, help="Conflicts, refusals, replies, sent commands and dead letters too.")
@store_option
@workspace_option
@common_options
def events(agent: str | None, entity: str | None, after: int, every: bool, **given: Any) -> int:
    """List events as they are stored, in the order of their publication, or of one entity by version.

    Reads the file beside a running worker. With --json, one line per event: number, kind, version, chain and the
    envelope. Sealed payloads are opened with the key rings of the settings; the chain is over what is stored.
    """
    common = Common.take(given, log_level="warning")
    codecs = common.codecs()
    if entity is not None and agent is None:
        raise click.UsageError("--entity needs --agent")
    with read_stores(common.settings if agent is None else common.here) as store:
        scopes = [checked_scope(common, agent)] if agent is not None else store.scopes
        if "workspaces" in common.flags:
            scopes = [scope for scope in scopes if (scope.tenant, scope.workspace) == common.workspace]
        for scope in scopes:
            shown = partial(_shown, sealer=ScopeSealer.of_scope(codecs, scope))
            trio.run(_list, store.rows(scope), entity, after, every, common.as_json, shown)
    return ExitCode.OK


def _shown(output: Output, sealer: ScopeSealer | None) -> Output:
    return output if sealer is None else attrs.evolve(output, body=sealer.shown_body(output.body))


async def _list(
    rows: ScopeFile, entity: str | None, after: int, every: bool, as_json: bool, open_: Callable[[Output], Output]
) -> None:
    # A pipe has no width: nothing is folded for it.
    console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=_PIPE_WIDTH)
    while page := await _page(rows, entity, after):
        after = page[-1].n if entity is None else page[-1].version or 0
        shown = [open_(output) for output in page if every or output.kind == "event"]
        if as_json:
            for output in shown:
                print_json({"scope": str(rows.scope), **_as_document(output)})
        elif shown:
            console.print(_table(f"{rows.scope}", shown))


async def _page(rows: ScopeFile, entity: str | None, after: int) -> Sequence[Output]:
    if entity is None:
        return await rows.outputs_after(after, _PAGE)
    return await rows.history(entity, after, _PAGE)


def _as_document(output: Output) -> dict[str, Any]:
    return {
        "n": output.n,
        "kind": output.kind,
        "version": output.version,
        "chain": None if output.chain is None else output.chain.hex(),
        "subject": output.subject,
        "msg_id": output.msg_id,
        "envelope": orjson.Fragment(output.body),
    }


def _table(title: str, outputs: Sequence[Output]) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in ("n", "entity", "version", "name", "event id", "payload"):
        table.add_column(column, justify="right" if column in ("n", "version") else "left", overflow="fold")
    for output in outputs:
        payload = orjson.dumps(orjson.loads(output.body).get("payload")).decode()
        version = "" if output.version is None else str(output.version)
        name = output.name if output.kind == "event" else f"{output.name} ({output.kind})"
        table.add_row(str(output.n), output.entity_id or "", version, name, output.event_id, payload)
    return table


@click.command(short_help="Show an entity, as of now or of a version.")
@click.argument("agent")
@click.argument("entity")
@click.option("--app", required=True, metavar="MODULE:ATTR", help="The app, whose agents know how to apply events.")
@click.option("--at", "version", type=click.IntRange(1), metavar="VERSION", help="After its event of this version.")
@store_option
@workspace_option
@common_options
def state(agent: str, entity: str, app: str, version: int | None, **given: Any) -> int:
    """Rebuild the state of an ENTITY of an AGENT from its events.

    Reads the file beside a running worker. Exit code 1 when there is no such entity or version, or when its events
    are sealed and do not open.
    """
    common = Common.take(given, log_level="warning")
    scope = checked_scope(common, agent)
    loaded = with_components(load_app(app), common.settings)
    adapter = adapter_of(loaded, agent)
    sealer = ScopeSealer.of_scope(common.codecs(loaded), scope)
    with read_store(common.here.store) as store:
        found = trio.run(state_at, store.rows(scope), adapter, entity, version, sealer)
    if found.version == 0 or (version is not None and found.version < version):
        has = f"has version {found.version}, not {version}" if found.version else "has no events"
        click.echo(f"meshforge: {scope}: entity {entity!r} {has}", err=True)
        return ExitCode.FAILED
    document = {
        "scope": str(scope),
        "entity_id": entity,
        "entity_version": found.version,
        "chain": found.chain.hex(),
        "state": adapter.dump(found.state),
    }
    if common.as_json:
        print_json(document)
    else:
        click.echo(f"{scope} {entity} version {found.version}, chain {found.chain.hex()}")
        Console().print_json(orjson.dumps(document["state"]).decode())
    return ExitCode.OK
