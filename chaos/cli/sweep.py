"""`meshforge-chaos sweep`: which points are reached, how often, and who died there."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import attrs
import click

from chaos.builtin import CRASH_MATRIX, FIRST_DEATHS, RECOVERY, find_scenario
from chaos.cli.live import Board, in_lab
from chaos.cli.options import Order, batches_option, json_option, lab_options, numbers, seed_option
from chaos.cli.outlet import out, print_json, warn
from chaos.cli.results import coverage_table, guarantee_table, summary, tell_failures
from chaos.cli.run import explore
from chaos.lab import Lab
from chaos.plan import ALLOWED
from chaos.scenario import Search
from chaos.sweep import Pairs, Sweep
from chaos.tally import Cell, Tally, cells, reasons_for
from chaos.verdict import EXIT_CODES
from meshforge_trio.points import Point

__all__ = ["sweep"]

#: How long a disk is full or a store locked.
_SECONDS: Final[Mapping[str, float]] = {"full": 0.3, "lock": 0.3}


@click.command(short_help="Kill at every hit of every point.")
@click.argument("scenario", required=False)
@click.option(
    "--action",
    "actions",
    type=click.Choice(list(ALLOWED["worker"])),
    multiple=True,
    default=("kill",),
    show_default=True,
    help="What is done to the worker; may be given several times.",
)
@click.option("--points", "chosen", metavar="NAME,NAME", help="Only at these.")
@batches_option
@click.option("--pairs", is_flag=True, help="Then kill the successor too: every ordered pair of points.")
@seed_option
@json_option
@lab_options
def sweep(scenario: str | None, actions: tuple[str, ...], chosen: str | None, pairs: bool, **given: Any) -> int:
    """Sweep SCENARIO, or the commands that between them meet every point.

    At each point the worker is killed at the 1st, 2nd, 3rd ... hit, until a run ends in which the rule did not fire;
    then, at the points where a session begins and where a command runs alone, its successor. The table says at which
    hits each was reached and how many processes died there by signal 9; what was never reached is listed with a
    reason. With --json every receipt is there: rule, pid and signal.
    """
    batches, seed = numbers(given.pop("batches"), (1, 64)), given.pop("seed")
    places = _points(chosen)
    found = CRASH_MATRIX if scenario is None else find_scenario(scenario)
    searches = [search for action in actions for search in _searches(places, action, batches)]
    if pairs:
        searches.append(Pairs(places, places, batches=batches))
    whole = attrs.evolve(found, searches=searches)
    order = Order.take(given)
    began = time.monotonic()

    async def work(lab: Lab, board: Board) -> Tally:
        await explore(whole, lab, board, seed=seed)
        return board.tally

    tally = in_lab(order, work)
    wanted = [cell for cell in cells("worker") if cell.action in actions and cell.place in places]
    _show(found.name, tally, wanted, time.monotonic() - began, order)
    return EXIT_CODES[tally.status]


def _points(chosen: str | None) -> Sequence[Point]:
    if chosen is None:
        return tuple(Point)
    names = [name.strip() for name in chosen.split(",")]
    strangers = [name for name in names if name not in set(Point)]
    if strangers:
        raise click.UsageError(f"there is no point {strangers[0]!r}; `meshforge-chaos points` lists them")
    return [point for point in Point if point in names]


def _searches(places: Sequence[Point], action: str, batches: Sequence[int]) -> Sequence[Search]:
    seconds = _SECONDS.get(action)
    searches: list[Search] = [Sweep(places, action, seconds, batches)]
    # A first worker has nothing to recover and nobody to suspect.
    for before, later in zip(FIRST_DEATHS, (RECOVERY, (Point.BEFORE_ATTEMPT, Point.IN_ATTEMPT)), strict=True):
        again = [point for point in places if point in later]
        if again:
            searches.append(Sweep(again, action, seconds, batches, before=before, number=2))
    return searches


def _show(name: str, tally: Tally, wanted: Sequence[Cell], seconds: float, order: Order) -> None:
    reasons = reasons_for(tally, tally.missing(wanted))
    reached = len(wanted) - len(tally.missing(wanted))
    if order.as_json:
        print_json(
            {
                "scenario": name,
                "seconds": round(seconds, 3),
                "reached": reached,
                "wanted": len(wanted),
                **tally.to_json(),
                "coverage": tally.coverage_json(wanted, reasons),
            }
        )
        tell_failures(tally, warn)
        return
    console = out()
    tell_failures(tally)
    console.print(coverage_table(tally, wanted, reasons))
    console.print(summary(name, tally, seconds))
    console.print(f"{reached} of {len(wanted)} points and actions reached")
    console.print(guarantee_table(tally))
