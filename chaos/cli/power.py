"""`meshforge-chaos power`: every crash image of a recorded run, or one of them as files to look at."""

from __future__ import annotations

import os
import shlex
import signal
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import click
import trio
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from chaos.cli.live import Interrupted
from chaos.cli.options import json_option, seed_option
from chaos.cli.outlet import out, print_json, put
from chaos.cli.results import COLOURS
from chaos.power.check import check_power, judge_power
from chaos.power.ground import power_case
from chaos.power.images import parse_recipe, rebuild
from chaos.power.result import JUDGED, PowerResult
from chaos.power.tape import load_tape
from chaos.verdict import EXIT_CODES

__all__ = ["power"]

_SHOWN_MAX = 20
_T = TypeVar("_T")


@click.command(short_help="Lose power after every write.")
@seed_option
@click.option(
    "--tape",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    metavar="FILE",
    help="Judge this recording instead of making one.",
)
@click.option("--image", metavar="RECIPE", help="With --tape and --to: only write the files of this image.")
@click.option("--to", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="Where --image goes.")
@click.option(
    "--report",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Keep the recording here if an image breaks a promise. [default: a new temporary directory]",
)
@json_option
def power(
    seed: int, tape: Path | None, image: str | None, to: Path | None, report: Path | None, *, as_json: bool
) -> int:
    """Record what a real run does to its disk, and rebuild what is left of it when the power goes after each step:
    with the writes since the last sync all there, none, a part of them, all but one, one alone, and torn into sectors.

    Each image is opened and must be whole, hold the decision of every command that was ACKed by then, and every output
    that was published.
    """
    if image is not None:
        if tape is None or to is None:
            raise click.UsageError("--image needs --tape, the recording it is of, and --to, where its files go")
        for path in rebuild(load_tape(tape), parse_recipe(image), to):
            put(str(path))
        return 0
    if tape is not None:
        tape = tape.absolute()
    kept = (report or Path(tempfile.gettempdir()) / f"meshforge-chaos-{os.getpid()}") / f"power-{seed}.jsonl"
    with _progress() as progress:
        bar = progress.add_task("recording", total=None, images=0)

        def told(at: int, steps: int, images: int) -> None:
            progress.update(bar, description="power loss after each step", completed=at, total=steps, images=images)

        async def work() -> tuple[PowerResult, Path | None]:
            if tape is not None:
                return await judge_power(tape, told=told), tape
            checked = await check_power(power_case(seed), keep=kept, told=told)
            return checked.result, checked.tape

        result, recording = trio.run(_interruptibly, work)
    if as_json:
        print_json({**result.to_json(), "tape": None if recording is None else str(recording)})
    else:
        _show(result, recording)
    return EXIT_CODES[result.status]


async def _interruptibly(work: Callable[[], Awaitable[_T]]) -> _T:
    """Do `work` until it is done, or until SIGINT or SIGTERM comes.

    Raises:
        Interrupted: one of these came. All processes are gone.
    """
    async with trio.open_nursery() as nursery:
        await nursery.start(_interrupt, nursery.cancel_scope)
        found = await work()
        nursery.cancel_scope.cancel()
        return found
    raise Interrupted


async def _interrupt(scope: trio.CancelScope, task_status: trio.TaskStatus[None]) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for _ in signals:
            scope.cancel()
            return


def _progress() -> Progress:
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[images]} images"),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _show(result: PowerResult, recording: Path | None) -> None:
    for broken in result.broken[:_SHOWN_MAX]:
        put(f"{broken.guarantee} broken: {broken}")
    if len(result.broken) > _SHOWN_MAX:
        put(f"and {len(result.broken) - _SHOWN_MAX} more promises")
    if result.broken and recording is not None:
        name = shlex.quote(str(recording))
        put(f"  rebuild: meshforge-chaos power --tape {name} --image {result.broken[0].recipe} --to DIR")
    console = out()
    console.print(
        f"recorded   {result.steps} steps: {result.syncs} syncs, {result.checkpoints} times the log was emptied"
    )
    console.print(f"images     {', '.join(f'{count} {kind}' for kind, count in result.kinds.items())}", soft_wrap=True)
    console.print(_table(result))
    console.print(f"[{COLOURS[result.status]}]{result.status}[/]  {escape(result.summary())}", soft_wrap=True)
    for reason in result.reasons:
        console.print(f"  {escape(reason)}", soft_wrap=True)


def _table(result: PowerResult) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("guarantee", "", "examined"):
        table.add_column(name, justify="right" if name == "examined" else "left")
    for id_ in JUDGED:
        examined = result.examined.get(id_, 0)
        word = "[red]broken[/]" if id_ in result.fell else "[green]holds[/]" if examined else "nothing to examine"
        table.add_row(id_, word, str(examined))
    return table
