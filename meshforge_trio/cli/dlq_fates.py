"""`meshforge dlq redrive` and `discard`: what becomes of dead letters, asked for one after another."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import groupby, islice
from typing import Any, Final, TypeVar

import attrs
import click
import trio
from rich.console import Console
from rich.progress import Progress

from meshforge_trio.cli.dlq_options import Selection, cells, filter_options, plain, print_table, table_of
from meshforge_trio.cli.options import (
    Common,
    cancel_on_signal,
    common_options,
    principal_name,
    print_json,
    signer_of,
    store_option,
    url_option,
    workspace_option,
)
from meshforge_trio.cli.reader import ScopeFile, StoreFile, read_store, read_stores
from meshforge_trio.client import MeshClient, open_client
from meshforge_trio.clock import SystemClock
from meshforge_trio.codec import ScopeSealer
from meshforge_trio.dead_letters import ENDS, Answer, Fate, Forecaster, Item, ask, entity_of
from meshforge_trio.envelope import SecurityContext
from meshforge_trio.errors import Poison
from meshforge_trio.launch import connect_options
from meshforge_trio.policy import ExitCode, worst
from meshforge_trio.store.port import Attempt, DeadLetter, DeadState
from meshforge_trio.subjects import Scope

__all__ = ["discard", "rate", "redrive"]

F = TypeVar("F", bound=Callable[..., Any])

_PER_S: Final = {"s": 1.0, "m": 60.0, "h": 3_600.0}
_RATE: Final = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)(?:/([smh]))?")
_AFTERMATH_POLL_S: Final = 0.1
#: What `redrive` and the envelope take.
_REASON_LENGTH_MAX: Final = 2_000
_ACTOR_LENGTH_MAX: Final = 256


def rate(text: str) -> float:
    """Read so many in a second, minute or hour, as 10, 10/s or 30/m; per second.

    Raises:
        click.BadParameter: it is none, or none at all.
    """
    found = _RATE.fullmatch(text)
    if found is None or float(found[1]) <= 0:
        raise click.BadParameter(f"{text!r:.50} is no rate: write 10/s, 30/m or 500/h")
    return float(found[1]) / _PER_S[found[2] or "s"]


def _fate_options(function: F) -> F:
    decorators: tuple[Callable[[F], F], ...] = (
        common_options,
        workspace_option,
        url_option,
        store_option,
        click.option("--yes", is_flag=True, help="Do not ask."),
        click.option("--dry-run", is_flag=True, help="Only say what would happen."),
        click.option(
            "--timeout", type=click.FloatRange(0, min_open=True), default=10.0, show_default=True, metavar="S"
        ),
        click.option("--limit", type=click.IntRange(1), metavar="N", help="No more than N."),
        click.option("--rate", type=rate, default="10/s", show_default=True, metavar="N/s", help="How fast."),
        click.option("--actor", metavar="NAME", help="Who does it; else the key `principal`, else the login name."),
        click.option("--reason", metavar="TEXT", help="Why; stored with the actor as an event of the agent."),
        click.option("--all", "every", is_flag=True, help="All that wait."),
        filter_options,
        click.argument("keys", nargs=-1, metavar="[KEY]..."),
    )
    for decorator in decorators:
        function = decorator(function)
    return function


@click.command(short_help="Send dead letters again.")
@_fate_options
def redrive(**given: Any) -> int:
    """Send the dead letters of the KEYs, or those that match, to their agents again.

    The command runs under a new id and its old idempotency key, so it has one effect however often it is redriven.
    Killed half-way and run again, this does the rest. --dry-run foretells each and sends nothing.

    Exit code 0 when all were redriven, now or before; 1 when one was refused or died again at once; 6 when an agent is
    not served: its commands lie in the stream and take effect when it is.
    """
    return _settle("redrive", given)


@click.command(short_help="Say that nothing more will be done about dead letters.")
@_fate_options
def discard(**given: Any) -> int:
    """Take the dead letters of the KEYs, or those that match, off the list of those that wait.

    Nothing is deleted: their keys stay dead, and `show` and `export` find them still. Exit codes as of `redrive`.
    """
    return _settle("discard", given)


@attrs.frozen
class _Order:
    """What was asked for, checked."""

    fate: Fate
    chosen: Selection
    actor: str
    reason: str
    per_s: float
    timeout_s: float

    @property
    def common(self) -> Common:
        """The shared options."""
        return self.chosen.common

    def state_of(self, item: Item) -> DeadState:
        """What the store says of a dead letter by now."""
        with self.store_of(item.scope) as store:
            return item.state_in(store.rows(item.scope).read(item.key, None))

    def is_served(self, scope: Scope) -> bool:
        """Whether the store knows of a process that serves the scope."""
        with self.store_of(scope) as store:
            return store.rows(scope).is_served()

    def store_of(self, scope: Scope) -> AbstractContextManager[StoreFile]:
        """The store of a scope's tenant, opened."""
        return read_store(self.common.settings.of_tenant(scope.tenant).store)


def _settle(fate: Fate, given: dict[str, Any]) -> int:
    keys, every, reason, actor = (given.pop(name) for name in ("keys", "every", "reason", "actor"))
    per_s, limit, timeout_s = (given.pop(name) for name in ("rate", "limit", "timeout"))
    dry_run, yes = given.pop("dry_run"), given.pop("yes")
    common = Common.take(given, log_level="warning")
    # Whoever names a key wants to hear what became of it.
    chosen = Selection.take(common, given, SystemClock().now(), keys=frozenset(keys), state=None if keys else "waiting")
    if not every and not chosen.restricts:
        raise click.UsageError(f"name the dead letters to {fate}: KEYs, filters, or --all")
    with read_stores(common.settings) as store:
        found = islice(chosen.named(store) if keys else chosen.letters(store), limit)
        if dry_run:
            _foretell(fate, common, found)
            return ExitCode.OK
        items = [Item.of(rows.scope, letter) for rows, letter in found]
    _check_told("--reason", reason)
    if not items:
        click.echo("no dead letters", err=True)
        return ExitCode.OK
    actor = principal_name(common, actor, "--actor")
    _check_told("--actor", actor, _ACTOR_LENGTH_MAX)
    order = _Order(fate, chosen, actor, reason, per_s, timeout_s)
    if not yes and sys.stdin.isatty() and not click.confirm(f"{fate} {len(items)} dead letters?", err=True):
        click.echo("nothing was done", err=True)
        return ExitCode.FAILED
    return _carry_out(order, items)


def _check_told(option: str, text: str | None, most: int = _REASON_LENGTH_MAX) -> None:
    """Refuse here what the agent would refuse: its refusal is stored, and would stand against a better reason."""
    if text is None or not text.strip():
        raise click.UsageError(f"give {option}: who does it and why is stored")
    if len(text) > most:
        raise click.UsageError(f"{option} has {len(text)} characters, at most {most} are kept")
    if any(0xD800 <= ord(character) <= 0xDFFF for character in text):
        raise click.UsageError(f"{option} is not UTF-8")


# -- what would happen -----------------------------------------------------------------------------------------


def _foretell(fate: Fate, common: Common, found: Iterable[tuple[ScopeFile, DeadLetter]]) -> None:
    """Print what would become of each, and how many there are of each kind."""
    counts: Counter[str] = Counter()
    table = table_of("scope", "key", "#generation", "prediction", "why")
    for scope, prediction, why, letter in _forecasts(fate, common, found):
        counts[prediction] += 1
        if common.as_json:
            print_json({**Item.of(scope, letter).as_document(), "prediction": prediction, "why": why})
        else:
            table.add_row(*cells(str(scope), letter.key, str(letter.generation), prediction.replace("_", " "), why))
    if table.row_count:
        print_table(table)
    total = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items()) or "no dead letters"
    click.echo(f"dry run, nothing was sent: {total}", err=common.as_json)


def _forecasts(
    fate: Fate, common: Common, found: Iterable[tuple[ScopeFile, DeadLetter]]
) -> Iterator[tuple[Scope, str, str, DeadLetter]]:
    for scope, letters in groupby(found, key=lambda pair: pair[0].scope):
        forecaster: Forecaster | None = None
        for rows, letter in letters:
            if fate == "discard":
                waits = letter.state == "waiting"
                yield scope, "would_discard" if waits else "already", f"it is {letter.state}", letter
                continue
            if forecaster is None:
                hold_entity = common.settings.retry_of(scope.agent).hold_entity
                forecaster = Forecaster(_attempts(common, rows), hold_entity=hold_entity)
            made = forecaster.forecast(letter, rows.read(letter.key, entity_of(letter)))
            yield scope, made.prediction, made.why, letter


def _attempts(common: Common, rows: ScopeFile) -> Sequence[Attempt]:
    sealer = ScopeSealer.of_scope(common.codecs(), rows.scope)
    if sealer is None:
        return rows.attempts()
    return [attrs.evolve(row, error=sealer.opened_text(row.key, row.error)) for row in rows.attempts()]


# -- doing it --------------------------------------------------------------------------------------------------


def _carry_out(order: _Order, items: Sequence[Item]) -> int:
    told: list[tuple[Item, Answer]] = []
    console = Console(stderr=True)
    # Results belong to stdout, also while the bar shows on stderr.
    with Progress(console=console, disable=not console.is_terminal, redirect_stdout=False) as progress:
        task = progress.add_task(order.fate, total=len(items))

        def tell(item: Item, answer: Answer) -> None:
            told.append((item, answer))
            _print_answer(order, item, answer)
            progress.advance(task)

        try:
            whole = trio.run(_settle_each, order, items, tell)
        except Exception as error:
            leaf = worst(error)
            if isinstance(leaf, Poison):
                raise click.UsageError(leaf.reason) from error
            _print_counts(order, told, len(items))
            raise
    _print_counts(order, told, len(items))
    if not whole:
        return ExitCode.INTERRUPTED
    died = _aftermath(order, [item for item, answer in told if answer.outcome == "done"])
    outcomes = {answer.outcome for _, answer in told}
    if died or "refused" in outcomes:
        return ExitCode.FAILED
    return ExitCode.OUTCOME_UNKNOWN if "unknown" in outcomes else ExitCode.OK


async def _settle_each(order: _Order, items: Sequence[Item], tell: Callable[[Item, Answer], None]) -> bool:
    """Settle the items one after another, no faster than the rate; false if a signal ended it before its time."""
    principal = SecurityContext(order.actor, "system")
    slot = trio.current_time()
    silent: set[Scope] = set()
    whole = False
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cancel_on_signal, nursery.cancel_scope)
        for (tenant, workspace), group in groupby(items, key=lambda item: (item.scope.tenant, item.scope.workspace)):
            own = order.common.settings.of_tenant(tenant)
            async with open_client(
                connect_options(own),
                tenant=tenant,
                workspace=workspace,
                principal=principal,
                signer=signer_of(own),
                codecs=order.common.codecs(),
            ) as client:
                for item in group:
                    await trio.sleep_until(slot)
                    slot = trio.current_time() + 1 / order.per_s
                    tell(item, await _settle_one(order, client, item, silent))
        whole = True
        nursery.cancel_scope.cancel()
    return whole


async def _settle_one(order: _Order, client: MeshClient, item: Item, silent: set[Scope]) -> Answer:
    """`silent` are the scopes that left a command unanswered: while nobody serves them, none is awaited."""
    state = order.state_of(item)
    if state != "waiting":
        return Answer("already" if state == ENDS[order.fate] else "refused", f"it was {state} before")
    answer = await ask(
        client,
        item,
        order.fate,
        order.state_of,
        actor=order.actor,
        reason=order.reason,
        timeout_s=order.timeout_s,
        await_answer=item.scope not in silent or order.is_served(item.scope),
    )
    if answer.outcome == "unknown":
        silent.add(item.scope)
    return answer


def _print_answer(order: _Order, item: Item, answer: Answer) -> None:
    if order.common.as_json:
        print_json({**item.as_document(), "outcome": answer.outcome, "text": answer.text})
    elif answer.outcome != "done":
        click.echo(f"{item.scope} {plain(item.key)}: {answer.outcome}: {plain(answer.text)}")


def _print_counts(order: _Order, told: Sequence[tuple[Item, Answer]], wanted: int) -> None:
    counts = Counter(ENDS[order.fate] if answer.outcome == "done" else answer.outcome for _, answer in told)
    parts = [f"{count} {name}" for name, count in counts.items()]
    if len(told) < wanted:
        parts.append(f"{wanted - len(told)} not asked for: run this again to go on")
    click.echo(", ".join(parts), err=order.common.as_json)


def _aftermath(order: _Order, items: Sequence[Item]) -> bool:
    """Look what became of what was redriven, for a moment; whether any of it is known to have died again."""
    if order.fate == "discard" or not items:
        return False
    outcomes: Counter[str] = Counter()
    left = list(items)

    async def look() -> None:
        nonlocal left
        with trio.move_on_after(order.timeout_s):
            while True:
                still = []
                with read_stores(order.common.settings) as stores:
                    for item in left:
                        found = stores.rows(item.scope).read(item.key, None).keys.get(item.key)
                        if found is None:
                            still.append(item)
                        else:
                            outcomes[found[0].outcome] += 1
                left = still
                if not left:
                    return
                await trio.sleep(_AFTERMATH_POLL_S)

    trio.run(look)
    if left:
        outcomes["under way"] = len(left)
    names = {"dead": "dead again"}
    told = ", ".join(f"{count} {names.get(name, name)}" for name, count in outcomes.items())
    click.echo(f"of these by now: {told}", err=order.common.as_json)
    return "dead" in outcomes
