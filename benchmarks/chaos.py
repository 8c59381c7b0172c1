"""What the chaos harness does in how much time: kills per second, the gate's profile for pull requests, coverage, and
how often a reported plan breaks again.

python -m benchmarks.chaos [--json] [--quick]
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs
import click
import orjson
import trio
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.throughput import Figure
from chaos.builtin import find_scenario
from chaos.cli.gate import target_of
from chaos.gate import Gate, run_gate
from chaos.lab import Lab, Outcome, open_lab
from chaos.mutants.catalogue import CATALOGUE
from chaos.mutants.detect import Detection
from chaos.profiles import PROFILES
from chaos.project import load_project
from chaos.sweep import Sweep
from chaos.tally import Tally
from chaos.verdict import Status
from meshforge_trio.telemetry import set_up_logging

__all__ = ["main"]

_TIMES = 10
#: The bug whose report is run again, and again.
_REPORTED = "publish-before-store"


class Bench:
    """The steps, told to whoever watches. Also what the gate tells of its progress."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._runs = 0
        self._stage = ""

    def stage(self, name: str) -> None:
        """What begins."""
        self._stage = name
        self._tell(name)

    def note(self, outcome: Outcome) -> None:
        """One more run."""
        self._runs += 1
        self._tell(f"{self._stage}, {self._runs} runs")

    def caught(self, detection: Detection) -> None:
        """One more planted bug."""
        self.note(detection.outcome)

    async def sweep(self, lab: Lab) -> Sequence[Figure]:
        """A kill at every hit of every point, as fast as it goes."""
        self.stage("sweep")
        scenario = find_scenario("crash-matrix")
        tally = Tally()

        def note(outcome: Outcome) -> None:
            tally.note(outcome)
            self.note(outcome)

        began = time.perf_counter()
        await Sweep().explore(
            lambda plan, batch, must_fire: scenario.case(plan, batch=batch, must_fire=must_fire), lab, note
        )
        seconds = time.perf_counter() - began
        return [
            Figure("kill cases in the sweep", tally.total / seconds, "runs/s", 10.0),
            Figure("kills in them", tally.kills, ""),
            Figure("runs of the sweep that pass", tally.runs[Status.PASS] / tally.total * 100, "%", 100.0),
        ]

    async def gate(self, lab: Lab) -> Sequence[Figure]:
        """The profile for pull requests."""
        found = await run_gate(target_of(load_project(Path.cwd())), PROFILES["pr"], lab, self)
        return [
            Figure("gate, profile pr", found.seconds, "s", 240.0, atmost=True),
            Figure("kills in it", found.tally.kills, "", 300.0),
            Figure("runs in it", found.tally.total, ""),
            *_stages(found),
            Figure("actions at places reached", _share(found) * 100, "%", 100.0),
            Figure("planted bugs caught", _caught(found) * 100, "%", 100.0),
        ]

    async def reproduced(self, lab: Lab) -> Sequence[Figure]:
        """A violation as it is reported, and run again."""
        self.stage("a reported plan, again")
        mutant = next(each for each in CATALOGUE if each.name == _REPORTED)
        first = await lab.run(mutant.case(), patch=mutant.patch)
        again = await lab.run_all([first.case] * _TIMES, patch=mutant.patch, note=self.note)
        same = sum(first.verdict.broken_ids[:1] == outcome.verdict.broken_ids[:1] for outcome in again)
        return [Figure(f"a reported plan breaks again, of {_TIMES}", float(same), "times", 9.0)]


def _stages(gate: Gate) -> Sequence[Figure]:
    """How long each kind of stage took. They overlap, so the sum is more than the whole."""
    kinds = dict.fromkeys(stage.kind for stage in gate.stages)
    return [
        Figure(f"  {kind} stages, added up", sum(stage.seconds for stage in gate.stages if stage.kind == kind), "s")
        for kind in kinds
    ]


def _share(gate: Gate) -> float:
    return 1 - len(gate.tally.missing(gate.wanted)) / len(gate.wanted)


def _caught(gate: Gate) -> float:
    return sum(detection.proven for detection in gate.detections) / len(gate.detections)


async def measure(bench: Bench, parallel: int, *, quick: bool) -> Sequence[Figure]:
    """All of it, on one laboratory; without the gate if `quick`."""
    async with open_lab(parallel) as lab:
        figures = [*await bench.sweep(lab), *await bench.reproduced(lab)]
        return figures if quick else [*figures, *await bench.gate(lab)]


def show(figures: Sequence[Figure], console: Console) -> None:
    """A table, with what was to be reached."""
    table = Table(title=f"chaos, {os.cpu_count()} cores", show_header=False)
    for figure in figures:
        target = ""
        if figure.target is not None:
            colour = "green" if figure.reached else "red"
            target = f"[{colour}]{'at most' if figure.atmost else 'at least'} {figure.target:g}[/]"
        table.add_row(figure.name, f"{figure.value:,.1f} {figure.unit}", target)
    console.print(table)


@click.command(help=__doc__)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.option("--quick", is_flag=True, help="Without the gate.")
@click.option("--parallel", type=click.IntRange(1, 64), default=3 * (os.cpu_count() or 1), show_default=True)
def main(as_json: bool, quick: bool, parallel: int) -> None:
    set_up_logging("critical")
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("")
        bench = Bench(lambda text: progress.update(task, description=text))

        async def run() -> Sequence[Figure]:
            return await measure(bench, parallel, quick=quick)

        figures = trio.run(run)
    if as_json:
        sys.stdout.write(orjson.dumps([attrs.asdict(figure) for figure in figures]).decode() + "\n")
    else:
        show(figures, Console())


if __name__ == "__main__":
    main()
