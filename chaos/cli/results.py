"""Results as tables for people, and what did not pass as reports to read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from rich.markup import escape
from rich.table import Table

from chaos.cli.outlet import put
from chaos.lab import Outcome
from chaos.report import ReportError, render_html, render_text
from chaos.tally import Cell, Reach, Tally, rank, shown_hits
from chaos.verdict import Status

__all__ = ["COLOURS", "coverage_table", "guarantee_table", "page_of", "summary", "tell_failures", "write_report"]

COLOURS: Final[Mapping[Status, str]] = {Status.PASS: "green", Status.VIOLATION: "red", Status.INCONCLUSIVE: "yellow"}
_PAGES_MAX: Final = 50


def summary(name: str, tally: Tally, seconds: float) -> str:
    """One line with markup: how many runs, how they ended, how many kills, how long."""
    counts = ", ".join(
        f"[{COLOURS[status]}]{tally.runs[status]} {status}[/]" for status in Status if tally.runs[status]
    )
    return f"[bold]{escape(name)}[/]  {tally.total} runs: {counts or 'none'}; {tally.kills} kills; {seconds:.1f} s"


def guarantee_table(tally: Tally) -> Table:
    """Every guarantee that was judged, with how much of it there was to see."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("guarantee", "", "runs", "examined", ""):
        table.add_column(name, justify="right" if name in ("runs", "examined") else "left")
    for id_ in sorted(tally.guarantees, key=rank):
        held = tally.guarantees[id_]
        if held.broken:
            word = f"[red]broken in {held.broken}[/]"
        elif held.unjudged:
            word = f"[yellow]not judged in {held.unjudged}[/]"
        else:
            word = "[green]holds[/]" if held.examined else "[yellow]nothing to examine[/]"
        table.add_row(escape(id_), word, str(held.runs), str(held.examined), escape(held.sentence.partition(":")[0]))
    return table


def coverage_table(tally: Tally, wanted: Sequence[Cell], reasons: Mapping[Cell, str]) -> Table:
    """A line per cell: at which hits it was reached, and with how many receipts; why not, if it was not."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name, right in (("place", 0), ("action", 0), ("runs", 1), ("hits", 0), ("receipts", 1), ("", 0)):
        table.add_column(name, justify="right" if right else "left")
    for cell in wanted:
        reach = tally.reached.get(cell, Reach())
        why = "" if reach.times else f"[yellow]{escape(reasons.get(cell, 'never reached'))}[/]"
        receipts = str(len(reach.proofs)) if (cell.actor, cell.action) == ("worker", "kill") else "-"
        action = cell.action if cell.actor == "worker" else f"{cell.actor} {cell.action}"
        table.add_row(cell.place, action, str(reach.times), shown_hits(reach.hits) or "-", receipts, why)
    return table


def tell_failures(tally: Tally, say: Callable[[str], None] = put, *, reports: int = 3) -> None:
    """The first `reports` of what did not pass in full, violations first; all with the line that runs them again.

    Each run that was kept gets its page, `report.html`, into its directory.
    """
    for number, outcome in enumerate([*tally.violations, *tally.inconclusive][:_PAGES_MAX]):
        written = write_report(outcome)
        if number < reports:
            say("")
            say(written if written is not None else str(outcome))
        _tell(outcome, say)
    left = tally.total - tally.runs[Status.PASS] - _PAGES_MAX
    if left > 0:
        say(f"and {left} more")


def _tell(outcome: Outcome, say: Callable[[str], None]) -> None:
    why = ", ".join(outcome.verdict.broken_ids) or "; ".join(outcome.verdict.reasons)
    say(f"{outcome.status}: {why}".split("\n", 1)[0])
    say(f"  replay: {outcome.case.replay}")
    if outcome.home is not None:
        say(f"  page:   {page_of(outcome.home)}")


def write_report(outcome: Outcome) -> str | None:
    """The report of a kept run, whose page is written beside; none for one that left no history to report."""
    if outcome.home is None:
        return None
    try:
        text = render_text(outcome.home)
        page_of(outcome.home).write_text(render_html(outcome.home))
    except ReportError:
        return None
    return text.rstrip("\n")


def page_of(home: Path) -> Path:
    """Where the page of a run lies."""
    return home / "report.html"
