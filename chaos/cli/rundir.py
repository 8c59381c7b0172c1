"""`meshforge-chaos replay`, `judge` and `report`: what can be done with a plan, or with a run that was kept."""

from __future__ import annotations

import webbrowser
from collections import Counter
from pathlib import Path
from typing import Any

import click

from chaos.again import Past, load_past
from chaos.builtin import CRASH_MATRIX
from chaos.cli.live import Board, in_lab
from chaos.cli.options import Order, check_place, json_option, lab_options, read_plan
from chaos.cli.outlet import out, print_json, put, warn
from chaos.cli.results import COLOURS, page_of, tell_failures
from chaos.lab import Lab
from chaos.report import render_html, render_text
from chaos.tally import Tally
from chaos.verdict import EXIT_CODES, RunError, Status, Verdict, judge_run

__all__ = ["judge", "replay", "report"]

_DIRECTORY = click.Path(path_type=Path, file_okay=False)


@click.command(short_help="Run a plan or a kept run again.")
@click.argument("what", metavar="PLAN_OR_RUNDIR")
@click.option("--times", type=click.IntRange(1, 1000), default=1, show_default=True, help="How often.")
@click.option("--batch", type=click.IntRange(1, 65_536), default=64, show_default=True, help="For a plan.")
@json_option
@lab_options
def replay(what: str, times: int, batch: int, **given: Any) -> int:
    """Run again what a directory holds, with its agents, commands, settings and plan, or a plan with the commands that
    between them meet every point. Say how often the same guarantee fell.
    """
    order = Order.take(given)
    if what and Path(what).is_dir():
        past = load_past(Path(what))
    elif "/" in what and not what.startswith("@") and not what.endswith(".json"):
        raise RunError(f"there is no run directory {what}")
    else:
        past = Past(CRASH_MATRIX.case(read_plan(what), batch=batch, record_frames=True), None, ())

    async def work(lab: Lab, board: Board) -> Tally:
        board.stage(f"{past.case.name}: {str(past.case.plan) or 'no fault'}, {times} times")
        await lab.run_all([past.case] * times, patch=past.patch, note=board.note)
        return board.tally

    tally = in_lab(order, work)
    _show_replay(past, tally, order)
    # What is not judged may be just what fell.
    unknown = past.lacking and tally.status is Status.PASS
    return EXIT_CODES[Status.INCONCLUSIVE if unknown else tally.status]


def _show_replay(past: Past, tally: Tally, order: Order) -> None:
    fell = Counter(id_ for outcome in tally.violations for id_ in outcome.verdict.broken_ids)
    counts = {id_: fell[id_] for id_ in (past.broken or sorted(fell))}
    if order.as_json:
        print_json(
            {
                "plan": str(past.case.plan),
                "times": tally.total,
                "fell": counts,
                "lacking": past.lacking,
                **tally.to_json(),
            }
        )
        tell_failures(tally, warn)
        return
    tell_failures(tally)
    for id_, count in counts.items():
        put(f"{id_} fell in {count} of {tally.total}")
    if not counts:
        put(f"no guarantee fell in {tally.total} of {tally.total}")
    if tally.inconclusive:
        put(f"inconclusive: {tally.runs[Status.INCONCLUSIVE]} of {tally.total}")
    if past.lacking:
        put(f"inconclusive: {past.lacking}")
    if past.broken:
        same = sum(bool(set(past.broken) & set(outcome.verdict.broken_ids)) for outcome in tally.violations)
        put(f"reproduced {same} of {tally.total}: {', '.join(past.broken)}")


@click.command(short_help="Judge a kept run again.")
@click.argument("home", metavar="RUNDIR", type=_DIRECTORY)
@json_option
def judge(home: Path, as_json: bool) -> int:
    """Judge a run from its directory, with the checkers of today, and say how much each has examined."""
    past = load_past(home)
    verdict = judge_run(home, invariants=past.case.invariants, reasons=[past.lacking] if past.lacking else ())
    if as_json:
        print_json(verdict.to_json())
    else:
        _show_verdict(verdict)
    return EXIT_CODES[verdict.status]


def _show_verdict(verdict: Verdict) -> None:
    console = out()
    console.print(f"verdict: [{COLOURS[verdict.status]}]{verdict.status}[/]")
    lines = [f"reason: {reason}" for reason in verdict.reasons]
    lines.append(f"fired: {'; '.join(verdict.fired) or 'nothing'}")
    lines += [f"did not fire: {rule}" for rule in verdict.unhit]
    lines += [f"{receipt.rule}: pid {receipt.pid} ended with {receipt.status}" for receipt in verdict.receipts]
    for each in verdict.judgements:
        lines.append(f"{'the end' if each.final else f'corpse {each.image}'}: {each.judgement}")
    put("\n".join(lines))


@click.command(short_help="Write the report of a kept run.")
@click.argument("home", metavar="RUNDIR", type=_DIRECTORY)
@click.option(
    "--html", "page", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="The page goes here."
)
@click.option("--open", "show", is_flag=True, help="Open the page in a browser.")
def report(home: Path, page: Path | None, show: bool) -> int:
    """Print what a run showed, and write it as a page that needs nothing beside it: RUNDIR/report.html."""
    text, html = render_text(home), render_html(home)
    page = page_of(home) if page is None else page
    check_place(page.parent)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(html)
    put(text.rstrip("\n"))
    warn(f"page: {page}")
    if show:
        webbrowser.open(page.resolve().as_uri())
    return 0
