"""`meshforge reconcile`: store and streams side by side, and what makes them agree again."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import click
import trio
from rich.console import Console
from rich.progress import Progress as Bar
from rich.table import Table

from meshforge_trio.broker.bridge import open_loop
from meshforge_trio.broker.jetstream import JetStreamBroker, open_broker
from meshforge_trio.cli.options import (
    Common,
    checked_scope,
    common_options,
    print_json,
    store_option,
    url_option,
    workspace_option,
)
from meshforge_trio.cli.reader import read_store
from meshforge_trio.clock import SystemClock
from meshforge_trio.codec import ScopeSealer
from meshforge_trio.engine import stream_specs
from meshforge_trio.errors import Poison
from meshforge_trio.launch import connect_options
from meshforge_trio.policy import ExitCode
from meshforge_trio.reconcile import Comparison, Done, InUse, Progress, Reconciler, Right, Side, compare
from meshforge_trio.sites import Site, sites
from meshforge_trio.store.port import Mark, Output
from meshforge_trio.store.sqlite import SQLiteEventStore
from meshforge_trio.subjects import EVENTS, FAILED, Scope, parse_subject

__all__ = ["reconcile"]

#: Long enough for any pause between two renewals. A successor need not wait for it: it sees that this process ended.
_TTL_S: Final = 60.0
_LISTED_MAX: Final = 20

_NEEDS: Final = {
    "nothing": "agree",
    "mark": "agree; what was published is to be marked anew",
    "refill": "the streams lack what the store holds; publishing it makes them agree",
    "decision": "do not fit together: say which side is right",
}
_CHOICE: Final = """\
  --accept-store   the store is right. It publishes everything the streams lack and have not let expire, also what was
                   purged. Given up: other programs see those events again, at new sequences; what the store does not
                   know stays in the stream, and versions of its entities will come a second time.
  --accept-stream  the stream is right. The store takes over the decisions that it does not know. Given up: payload
                   hashes of their keys (a re-send with any payload gets the first outcome), commands they sent to
                   other agents (not sent again), and what the streams lack of the store (not published)."""


@click.command(short_help="Make store and streams agree again.")
@click.option("--dry-run", is_flag=True, help="Only show; nothing is written, a running worker is no hindrance.")
@click.option("--accept-store", is_flag=True, help="The store is right: publish what the streams lack.")
@click.option("--accept-stream", is_flag=True, help="The stream is right: take over what the store does not know.")
@click.option("--agent", metavar="NAME", help="Only this agent; with --workspace, of that workspace.")
@url_option
@store_option
@workspace_option
@common_options
def reconcile(dry_run: bool, accept_store: bool, accept_stream: bool, agent: str | None, **given: Any) -> int:
    """Compare store and streams, and make them agree again: for when `meshforge run` refuses to start.

    Without a flag it publishes again what the streams lost, where they are known to belong to the store. Where they
    are not, it changes nothing and ends with exit code 3: --accept-store or --accept-stream says which side is right.
    No worker may serve the scopes meanwhile. Interrupted, it can be run again.

    With --dry-run the exit code is 1 when there is something to do.
    """
    common = Common.take(given, log_level="warning")
    if accept_store and accept_stream:
        raise click.UsageError("--accept-store and --accept-stream exclude each other")
    right: Right | None = "store" if accept_store else "stream" if accept_stream else None
    needs: list[str] = []
    for site in _sites(common, agent, right):
        # A store that is not there is made only to be filled.
        look_only = dry_run or (right is None and not site.settings.store.exists())
        run = _Run(common, site, agent, right)
        needs += trio.run(run.look if look_only else run.act)
    if not needs:
        click.echo(
            "meshforge: neither store nor streams know an agent there; --workspace and --agent name one", err=True
        )
    if dry_run:
        return ExitCode.FAILED if set(needs) - {"nothing"} else ExitCode.OK
    if "decision" in needs:
        if not common.as_json:
            click.echo(_CHOICE, err=True)
        return ExitCode.MISCONFIGURED
    return ExitCode.FAILED if "again" in needs else ExitCode.OK


def _sites(common: Common, agent: str | None, right: Right | None) -> Sequence[Site]:
    """The sites that are meant: where the one agent is served that was named, else all of the workspaces.

    Raises:
        click.UsageError: they are several, and one side is to be right at all of them.
    """
    found = sites(common.settings)
    if agent is not None:
        found = [site for site in found if common.workspace[0] in site.tenants]
    if right is not None and len(found) > 1:
        names = "; ".join(site.name for site in found)
        raise click.UsageError(f"which side is right is said for one site at a time, by --workspace; there are {names}")
    return found


class _Run:
    """One invocation at one site."""

    def __init__(self, common: Common, site: Site, agent: str | None, right: Right | None) -> None:
        self._common = common
        self._site = site
        self._agent = agent
        self._right: Right | None = right

    async def look(self) -> Sequence[str]:
        """Compare and show, beside whoever serves; what each scope needs."""
        settings = self._site.settings
        store = settings.store
        async with open_loop(), open_broker(connect_options(settings)) as broker:
            if not store.exists():
                return [await self._look_at(broker, _NoRows(s), True) for s in await self._scopes(broker, ())]
            with read_store(store) as file:
                needs: list[str] = []
                for scope in await self._scopes(broker, file.scopes):
                    if scope not in file.scopes:
                        needs.append(await self._look_at(broker, _NoRows(scope), True))
                        continue
                    rows = file.rows(scope)
                    restarted = rows.last_server() != broker.facts.server_id
                    needs.append(await self._look_at(broker, rows, restarted))
                return needs

    async def _look_at(self, broker: JetStreamBroker, rows: Any, restarted: bool) -> str:
        found = await compare(broker, rows, restarted=restarted)
        self._show(found, None)
        return found.need

    async def act(self) -> Sequence[str]:
        """Compare, do, show; for each scope what it still needs."""
        settings = self._site.settings
        async with open_loop(), open_broker(connect_options(settings)) as broker:
            for spec in stream_specs(settings.engine):
                await broker.declare(spec)
            store = await SQLiteEventStore.open(settings.store, ttl_s=_TTL_S)
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_keep_alive, store)
                    known = await store.scopes()
                    needs = [await self._act_on(store, broker, s) for s in await self._scopes(broker, known)]
                    nursery.cancel_scope.cancel()
                return needs
            finally:
                await store.close()

    async def _act_on(self, store: SQLiteEventStore, broker: JetStreamBroker, scope: Scope) -> str:
        with _progress(self._common.as_json) as progress:
            sealer = ScopeSealer.of_scope(self._common.codecs(), scope)
            reconciler = Reconciler(store, broker, scope, SystemClock(), progress, sealer)
            try:
                found = await reconciler.begin()
            except InUse as error:
                raise InUse(f"{error} (it is held by {await _holder(store, scope)})") from error
            done: Done | None = None
            need = found.need
            purged = self._right == "store" and any(side.purged for side in found.sides)
            if (need != "nothing" or purged) and (need != "decision" or self._right is not None):
                done = await reconciler.act(found, self._right)
                need = "nothing"
            await reconciler.end()
        self._show(found, done)
        return "again" if done is not None and done.remembered else need

    async def _scopes(self, broker: JetStreamBroker, known: Sequence[Scope]) -> Sequence[Scope]:
        """Which scopes are meant: the one that was named, else the store's, else those in the streams."""
        if self._agent is not None:
            return [checked_scope(self._common, self._agent)]
        known = [scope for scope in known if self._site.has(scope.tenant)]
        if "workspaces" in self._common.flags:
            known = [scope for scope in known if (scope.tenant, scope.workspace) == self._common.workspace]
        if known:
            return known
        found: set[Scope] = set()
        for workspace in self._site.settings.workspaces:
            middle = workspace.replace("/", ".")
            subjects = [*await broker.subjects(EVENTS, f"evt.{middle}.>")]
            subjects += [s.partition(".")[2] for s in await broker.subjects(FAILED, f"failed.cmd.{middle}.>")]
            found.update(scope for scope in map(_scope_of, subjects) if scope is not None)
        return sorted(found)

    def _show(self, found: Comparison, done: Done | None) -> None:
        if self._common.as_json:
            print_json(_as_document(found, done))
            return
        console = Console(highlight=False, soft_wrap=True)
        told = f"{found.outputs} outputs in the store, {found.commands} of them commands to other agents"
        console.print(f"{found.scope}: {told}")
        console.print(_table(found))
        for side in found.sides:
            for message in side.unknown[:_LISTED_MAX]:
                console.print(
                    f"  unknown: sequence {message.seq}, {message.subject}, Msg-Id {message.msg_id or 'none'}"
                )
            if len(side.unknown) > _LISTED_MAX:
                console.print(f"  unknown: {len(side.unknown) - _LISTED_MAX} more (--json lists all)")
        console.print(
            f"  newest mark: {_told(found.newest)}; newest that the streams confirm: {_told(found.confirmed)}"
        )
        console.print(f"  done: {_told_done(done)}" if done else f"  store and streams {_NEEDS[found.need]}")


async def _keep_alive(store: SQLiteEventStore) -> None:
    while True:
        await store.keep_alive()
        await trio.sleep(_TTL_S / 6)


async def _holder(store: SQLiteEventStore, scope: Scope) -> str:
    sql = (
        "SELECT l.holder FROM leases l JOIN scopes s ON s.id = l.scope"
        " WHERE s.tenant = ? AND s.workspace = ? AND s.agent = ?"
    )

    def ask() -> str:
        row = store.connection.execute(sql, (scope.tenant, scope.workspace, scope.agent)).fetchone()
        return "nobody any more" if row is None or row[0] is None else f"process {row[0]}"

    return await store.run(ask)


class _NoRows:
    """A scope that the store has never served."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope

    @property
    def scope(self) -> Scope:
        return self._scope

    async def outputs_after(self, n: int, limit: int) -> Sequence[Output]:
        return ()

    async def marks(self) -> Sequence[Mark]:
        return ()


def _scope_of(subject: str) -> Scope | None:
    try:
        scope = parse_subject(subject).scope
        return Scope.checked(scope.tenant, scope.workspace, scope.agent)
    except Poison:
        # A violation, or what somebody else published.
        return None


@contextmanager
def _progress(as_json: bool) -> Iterator[Progress]:
    """Shown on stderr when that is a terminal."""
    if as_json or not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("comparing", total=None)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)


def _table(found: Comparison) -> Table:
    table = Table(box=None)
    table.add_column("")
    for side in found.sides:
        table.add_column(side.facts.name, justify="right")
    lines = {
        "stored": [str(side.stored) for side in found.sides],
        "in the stream": [str(len(side.held)) for side in found.sides],
        "expired": [str(len(side.expired)) for side in found.sides],
        "purged": [str(len(side.purged)) for side in found.sides],
        "missing": [_span(side.missing) for side in found.sides],
        "unknown to the store": [str(len(side.unknown)) for side in found.sides],
        "second copies": [str(len(side.copies)) for side in found.sides],
    }
    for name, cells in lines.items():
        table.add_row(name, *cells)
    return table


def _span(numbers: Sequence[int]) -> str:
    return f"{len(numbers)} (outputs {numbers[0]} to {numbers[-1]})" if numbers else "0"


def _told(mark: Mark | None) -> str:
    return "none" if mark is None else f"through output {mark.n}, sequence {mark.event_seq}"


def _told_done(done: Done) -> str:
    told = f"{done.taken_over} outputs taken over, {done.published} published, {done.commands} commands sent again"
    if done.remembered:
        return (
            f"{told}; {done.remembered} were refused, since the server remembers the ids of what it lost: run it again "
            "when the duplicate window is over, or after a restart of nats-server"
        )
    return told if done.mark is None else f"{told}, marked through output {done.mark.n}"


def _as_document(found: Comparison, done: Done | None) -> dict[str, Any]:
    return {
        "scope": str(found.scope),
        "need": found.need,
        "outputs": found.outputs,
        "commands": found.commands,
        "streams": {side.facts.name: _side(side) for side in found.sides},
        "newest_mark": _mark(found.newest),
        "confirmed_mark": _mark(found.confirmed),
        "done": None
        if done is None
        else {
            "taken_over": done.taken_over,
            "published": done.published,
            "commands": done.commands,
            "remembered": done.remembered,
            "mark": _mark(done.mark),
        },
    }


def _side(side: Side) -> dict[str, Any]:
    return {
        "stored": side.stored,
        "held": len(side.held),
        "expired": len(side.expired),
        "purged": list(side.purged),
        "missing": list(side.missing),
        "unknown": [{"seq": m.seq, "subject": m.subject, "msg_id": m.msg_id} for m in side.unknown],
        "copies": list(side.copies),
    }


def _mark(mark: Mark | None) -> dict[str, Any] | None:
    if mark is None:
        return None
    return {"n": mark.n, "event_seq": mark.event_seq, "failed_seq": mark.failed_seq}
