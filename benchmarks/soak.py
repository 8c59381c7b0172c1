"""The soak test: mixed load and random faults on one store and one server for as long as it is told, judged round by
round.

python -m benchmarks.soak [--minutes 60] [--seed N] [--json] [--bug NAME]

Several workers serve two tenants through a proxy that breaks connections. All but one are killed, at points and at any
time; all are stopped and lose their server. Every round ends in calm and is judged by every checker, on the corpses
that it left and at its end; what must stay flat per command is sampled then. At the end all states are rebuilt
elsewhere.

Exit codes: 0 it passed, 1 a guarantee or a bound was broken, 2 too little happened to tell.
"""

from __future__ import annotations

import secrets
import shutil
import signal
import sys
from pathlib import Path
from typing import Final

import attrs
import click
import orjson
import trio
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from benchmarks.soak_report import SoakResult, as_svg, as_text
from benchmarks.soak_run import Soak
from chaos.mutants.catalogue import CATALOGUE
from chaos.mutants.patch import Patch
from chaos.verdict import EXIT_CODES
from meshforge_trio.policy import ExitCode
from meshforge_trio.subjects import is_token
from meshforge_trio.telemetry import set_up_logging

__all__ = ["main"]

_HOME: Final = Path("build/soak")


async def soak(
    seed: str,
    minutes: float,
    round_s: float,
    rate: float,
    workers: int,
    home: Path,
    console: Console,
    patch: Patch | None,
) -> SoakResult | None:
    """Run it, with a line on the console that says how it goes; `None` if a signal ended it before its time."""
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("starting")

        def tell(text: str, *, lasting: bool = False) -> None:
            progress.update(task, description=text)
            if lasting:
                console.print(text, highlight=False, markup=False, soft_wrap=True)

        result: SoakResult | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_at_signal, nursery.cancel_scope)
            made = Soak(seed, home, workers=workers, tell=tell, patch=patch)
            result = await made.run(minutes * 60, round_s, rate)
            nursery.cancel_scope.cancel()
        return result


async def _cancel_at_signal(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            scope.cancel()


@click.command(help=__doc__)
@click.option("--minutes", type=click.FloatRange(0.2, 10_000), default=60.0, show_default=True)
@click.option("--seed", help="Of load and faults: a word. Drawn and printed unless given.")
@click.option("--round", "round_s", type=click.FloatRange(2, 600), default=15.0, show_default=True, help="Seconds.")
@click.option("--rate", type=click.FloatRange(1, 5_000), default=150.0, show_default=True, help="Commands a second.")
@click.option("--workers", type=click.IntRange(2, 6), default=3, show_default=True, help="Processes on the store.")
@click.option(
    "--bug",
    type=click.Choice([each.name for each in CATALOGUE]),
    metavar="NAME",
    help="Plant one of `meshforge-chaos mutants`: the soak should break then.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
@click.option("--home", type=click.Path(path_type=Path), default=_HOME, show_default=True, help="For the report.")
def main(
    minutes: float,
    seed: str | None,
    round_s: float,
    rate: float,
    workers: int,
    bug: str | None,
    as_json: bool,
    home: Path,
) -> None:
    set_up_logging("critical")
    seed = seed or str(secrets.randbelow(10**9))
    # It names the directory of the report, which is made anew.
    if not is_token(seed):
        raise click.BadParameter("must be 1 to 64 of A-Z a-z 0-9 _ -", param_hint="--seed")
    console = Console(stderr=True)
    console.print(f"seed {seed}", highlight=False)
    home = home.absolute() / seed
    if home.exists():
        shutil.rmtree(home)
    home.mkdir(parents=True)
    patch = next((each.patch for each in CATALOGUE if each.name == bug), None)
    result = trio.run(soak, seed, minutes, round_s, rate, workers, home, console, patch)
    if result is None:
        console.print("interrupted; every process was ended", highlight=False)
        raise SystemExit(ExitCode.INTERRUPTED)
    (home / "soak.json").write_bytes(orjson.dumps(attrs.asdict(result), option=orjson.OPT_INDENT_2))
    (home / "soak.svg").write_text(as_svg(result))
    text = as_text(result)
    again = (
        f"again: python -m benchmarks.soak --seed {seed} --minutes {minutes:g} --round {round_s:g} --rate {rate:g} "
        f"--workers {workers}" + (f" --bug {bug}" if bug else "")
    )
    (home / "soak.txt").write_text(f"{text}\n{again}\n")
    if as_json:
        sys.stdout.write(orjson.dumps(attrs.asdict(result)).decode() + "\n")
    else:
        sys.stdout.write(f"{text}\nreport: {home}\n")
    console.print(again, highlight=False, markup=False, soft_wrap=True)
    raise SystemExit(EXIT_CODES[result.status])


if __name__ == "__main__":
    main()
