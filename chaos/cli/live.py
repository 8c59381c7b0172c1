"""Work in a laboratory, as a person sees it: progress on stderr, and an end at Ctrl-C with nothing left behind."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Awaitable, Callable, Iterator
from typing import Final, TypeVar

import trio
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from chaos.cli.options import Order
from chaos.cli.outlet import Screen, warn
from chaos.lab import Lab, Outcome, open_lab
from chaos.mutants.detect import Detection
from chaos.tally import Tally
from chaos.verdict import Status

__all__ = ["Board", "Interrupted", "in_lab"]

_WIDTH: Final = 160
_TOLD_MAX: Final = 20
_T = TypeVar("_T")


class Interrupted(Exception):
    """Somebody pressed Ctrl-C, or sent SIGTERM. All processes are gone."""


class Board:
    """How far the runs are: a line that moves on a terminal, else a line at the end of each stage."""

    def __init__(self) -> None:
        self.tally = Tally()
        self._bugs = 0
        self._console = Screen(stderr=True, highlight=False)
        if not self._console.is_terminal:
            self._console = Screen(stderr=True, highlight=False, width=_WIDTH)
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            TextColumn("{task.completed:.0f} runs  {task.fields[kills]} kills  {task.fields[bad]}"),
            TimeElapsedColumn(),
        )
        self._progress = Progress(
            *columns, console=self._console, transient=True, disable=not self._console.is_terminal
        )
        self._task = self._progress.add_task("", total=None, kills=0, bad="")

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Be seen meanwhile."""
        with self._progress:
            yield

    def stage(self, name: str) -> None:
        """What follows belongs to this."""
        if self._progress.disable:
            self._console.print(escape(name), soft_wrap=True)
        self._progress.update(self._task, description=escape(name))

    def note(self, outcome: Outcome) -> None:
        """One more run."""
        self.tally.note(outcome)
        runs = self.tally.runs
        bad = [f"{runs[status]} {status}" for status in (Status.VIOLATION, Status.INCONCLUSIVE) if runs[status]]
        colour = "red" if runs[Status.VIOLATION] else "yellow"
        self._progress.update(
            self._task,
            completed=self.tally.total,
            kills=self.tally.kills,
            bad=f"[{colour}]{', '.join(bad)}[/]" if bad else "",
        )
        if outcome.status is not Status.PASS:
            self._tell(outcome)

    def caught(self, detection: Detection) -> None:
        """One more planted bug. Its violation is as it should be."""
        self._bugs += 1
        self._progress.update(self._task, description=f"{self._bugs} planted bugs tried")
        if not detection.proven:
            self.say(str(detection).split("\n", 1)[0])

    def _tell(self, outcome: Outcome) -> None:
        told = self.tally.runs[outcome.status]
        if told > _TOLD_MAX:
            return
        why = ", ".join(outcome.verdict.broken_ids) or "; ".join(outcome.verdict.reasons).split("\n", 1)[0]
        more = "; further ones are only counted" if told == _TOLD_MAX else ""
        plan = str(outcome.case.plan) or "without a fault"
        self.say(f"{outcome.status}: {outcome.case.name}, {plan}: {why}{more}")

    def say(self, line: str) -> None:
        """A line that stays."""
        self._console.print(escape(line), soft_wrap=True)


def in_lab(order: Order, work: Callable[[Lab, Board], Awaitable[_T]]) -> _T:
    """Do `work` in a laboratory, in a new Trio loop.

    Raises:
        Interrupted: SIGINT or SIGTERM came; a second one is not waited out.
        Misconfigured: a nats-server cannot be found or started.
    """
    board = Board()
    found: list[_T] = []

    async def main() -> None:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(_cancel_at_signal, scope)
                async with open_lab(order.parallel, order.reports, keep=order.keep) as lab:
                    found.append(await work(lab, board))
                nursery.cancel_scope.cancel()

    with board.shown():
        trio.run(main)
    if not found:
        raise Interrupted
    return found[0]


async def _cancel_at_signal(scope: trio.CancelScope, task_status: trio.TaskStatus[None]) -> None:
    # When this returns the handlers of before are back, so a second Ctrl-C ends the process at once.
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for _ in signals:
            warn("interrupted: ending every process of the runs")
            scope.cancel()
            return
