"""`meshforge-chaos run`: one scenario, with all its plans or with one. Scripts run through here too."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import click

from chaos.builtin import find_scenario
from chaos.cli.live import Board, in_lab
from chaos.cli.options import Order, read_plan, run_options
from chaos.cli.outlet import out, print_json, warn
from chaos.cli.results import guarantee_table, summary, tell_failures
from chaos.lab import Lab
from chaos.project import app_scenario, load_project
from chaos.scenario import Scenario, Search
from chaos.tally import Tally
from chaos.verdict import EXIT_CODES

__all__ = ["execute", "explore", "run"]

_BATCH: int = 64


@click.command(short_help="Run a scenario.")
@click.argument("scenario", required=False)
@click.option("--app", metavar="MODULE:ATTR", help="Run these agents instead of a scenario; needs --workload.")
@click.option(
    "--workload",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The commands to send to --app, one JSON object a line.",
)
@run_options
def run(scenario: str | None, app: str | None, workload: Path | None, **given: Any) -> int:
    """Run SCENARIO: the path of a script, the name of one in ./scenarios, or one that comes with the harness:
    crash-matrix, every-action.

    All the plans it names are tried, or with --plan that one. With --app and --workload, agents of your own are
    killed at every hit of every point while they work on the commands of a file. Each line of it is

    \b
        {"agent": "counter", "action": "add", "payload": {"amount": 5}, "entity_id": "a"}

    and may have key, expected_version, query (true if it only reads), repeatable (false if deciding it again may come
    to something else), workspace (as default/demo), phase ("after": sent when the last fault has healed), and expect
    (outcomes it may have, as ["decided", "refused"]; dead is one that nobody takes for granted).
    """
    if scenario is not None and (app or workload):
        raise click.UsageError("give a SCENARIO, or --app and --workload, not both")
    if scenario is not None:
        return execute(find_scenario(scenario), given)
    if app is None or workload is None:
        raise click.UsageError("give a SCENARIO, or both --app and --workload")
    # What the gate judged is judged again: its replay line leads here.
    invariants = load_project(Path.cwd()).invariants
    return execute(app_scenario(app, workload, invariants), given)


def execute(scenario: Scenario, given: dict[str, Any]) -> int:
    """Run `scenario` as the options of `run_options` say; the exit code.

    Raises:
        PlanError: `--plan` cannot be read or run.
        Interrupted, Misconfigured: as `in_lab`.
    """
    order = Order.take(given)
    batch, seed = given.pop("batch"), given.pop("seed")
    text = given.pop("plan")
    plan = None if text is None else read_plan(text, mortal=scenario.mortal)
    began = time.monotonic()

    async def work(lab: Lab, board: Board) -> Tally:
        if plan is None:
            await explore(scenario, lab, board, seed=seed, batch=batch)
        else:
            board.stage(f"{scenario.name}: {str(plan) or 'no fault'}")
            case = scenario.case(plan, batch=batch or _BATCH, seed=seed, record_frames=True)
            board.note(await lab.run(case))
        return board.tally

    tally = in_lab(order, work)
    _show(scenario, tally, time.monotonic() - began, order)
    return EXIT_CODES[tally.status]


async def explore(scenario: Scenario, lab: Lab, board: Board, *, seed: int = 0, batch: int | None = None) -> None:
    """Try all the plans of `scenario`; with `batch`, with this batch size alone."""
    for search in _with_batch(scenario.searches, batch):
        board.stage(f"{scenario.name}: {search}")
        await search.explore(
            lambda plan, size, must: scenario.case(plan, batch=size, must_fire=must, seed=seed), lab, board.note
        )


def _with_batch(searches: Sequence[Search], batch: int | None) -> Sequence[Search]:
    if batch is None:
        return searches
    return [_alone(search, batch) for search in searches]


def _alone(search: Any, batch: int) -> Search:
    """A search of one's own may know nothing of batches."""
    known = attrs.has(type(search)) and "batches" in attrs.fields_dict(type(search))
    found: Search = attrs.evolve(search, batches=(batch,)) if known else search
    return found


def _show(scenario: Scenario, tally: Tally, seconds: float, order: Order) -> None:
    if order.as_json:
        print_json({"scenario": scenario.name, "seconds": round(seconds, 3), **tally.to_json()})
        tell_failures(tally, warn)
        return
    console = out()
    tell_failures(tally)
    console.print(summary(scenario.name, tally, seconds))
    console.print(guarantee_table(tally))
    if order.keep and order.reports.exists():
        console.print(f"run directories: {order.reports}", soft_wrap=True)
