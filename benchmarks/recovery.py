"""How long it takes until the first new decision: after the death of a worker, of the server, and at the start on a
large store. Default settings.

python -m benchmarks.recovery [--json] [--kills 20] [--cache DIRECTORY]
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import attrs
import click
import trio
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks import measure
from benchmarks.recovery_rig import PHASES, Recovered, open_rig
from benchmarks.throughput import Figure
from meshforge_trio.broker.bridge import open_loop
from meshforge_trio.telemetry import set_up_logging

__all__ = ["main"]

#: For how long the server is away, in seconds. A worker dials less often the longer it lasts.
_AWAY_S: Final = (0.0, 2.0, 8.0)
_STARTS: Final = 5


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of them lie."""
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


def figures_of(name: str, recoveries: Sequence[Recovered], target: float) -> list[Figure]:
    """Median and ninth decile, and the median of when each phase was reached."""
    seconds = [recovered.seconds for recovered in recoveries]
    found = [
        Figure(f"{name}, p50", percentile(seconds, 0.5), "s", target, atmost=True),
        Figure(f"{name}, p90", percentile(seconds, 0.9), "s"),
    ]
    for phase in PHASES:
        times = [recovered.phases[phase] for recovered in recoveries if phase in recovered.phases]
        # A phase that few went through, such as the import of a worker that stood by, is none of them.
        if len(times) * 2 > len(recoveries):
            found.append(Figure(f"    {phase}", percentile(times, 0.5), "s"))
    return found


class Bench:
    """The steps of one run, each in a directory of its own under `home`."""

    def __init__(self, home: Path, cache: Path, advance: Callable[[str], None]) -> None:
        self._home = home
        self._cache = cache
        self._advance = advance

    def _folder(self, name: str) -> Path:
        folder = self._home / name
        folder.mkdir()
        return folder

    async def takeover(self, kills: int) -> list[Figure]:
        """The worker is killed, and another stands by."""
        found: list[Recovered] = []
        async with open_rig(self._folder("takeover")) as rig, trio.open_nursery() as nursery:
            active = rig.start()
            await rig.ready(1)
            nursery.start_soon(rig.load)
            for i in range(kills):
                self._advance(f"takeover {i + 1}/{kills}")
                successor = rig.start()
                await rig.ready(2)
                killed_ns = time.monotonic_ns()
                active.end()
                found.append(await rig.recovered(killed_ns, successor))
                active = successor
            nursery.cancel_scope.cancel()
        return figures_of("worker killed, another stood by", found, 1.0)

    async def restart(self, kills: int) -> list[Figure]:
        """The only worker is killed and started again at once."""
        found: list[Recovered] = []
        async with open_rig(self._folder("restart")) as rig, trio.open_nursery() as nursery:
            active = rig.start()
            await rig.ready(1)
            nursery.start_soon(rig.load)
            for i in range(kills):
                self._advance(f"restart of the worker {i + 1}/{kills}")
                await trio.sleep(0.5)
                killed_ns = time.monotonic_ns()
                active.end()
                active = rig.start()
                found.append(await rig.recovered(killed_ns, active))
            nursery.cancel_scope.cancel()
        return figures_of("worker killed, started again", found, 1.0)

    async def server(self, kills: int, away_s: float) -> list[Figure]:
        """The server is killed and started again `away_s` later."""
        from_kill: list[Recovered] = []
        from_up: list[Recovered] = []
        async with open_rig(self._folder(f"server-{away_s:g}")) as rig, trio.open_nursery() as nursery:
            worker = rig.start()
            await rig.ready(1)
            nursery.start_soon(rig.load)
            for i in range(kills):
                self._advance(f"server, {away_s:g} s away, {i + 1}/{kills}")
                # So long that the back-off of the worker begins anew.
                await trio.sleep(6)
                killed_ns = time.monotonic_ns()
                rig.server.kill()
                await trio.sleep(away_s)
                rig.server.start()
                up_ns = time.monotonic_ns()
                recovered = await rig.recovered(up_ns, worker)
                from_up.append(recovered)
                from_kill.append(Recovered(recovered.seconds + (up_ns - killed_ns) / 1e9, {}))
            nursery.cancel_scope.cancel()
        name = f"server away for {away_s:g} s, from when it accepts"
        kill = [recovered.seconds for recovered in from_kill]
        return [
            *figures_of(name, from_up, 1.5),
            Figure("    from its SIGKILL, p50", percentile(kill, 0.5), "s"),
        ]

    async def start_up(self, events: int) -> list[Figure]:
        """A worker is started on a store with many events."""
        kept = self._cache / f"{events}.db"
        if not kept.exists():
            self._advance(f"building a store of {events:,} events")
            self._cache.mkdir(parents=True, exist_ok=True)
            part = kept.with_suffix(".part")
            part.unlink(missing_ok=True)
            await measure.fill(part, events)
            part.rename(kept)
            shutil.rmtree(f"{part}-holders")
        found: list[Recovered] = []
        for i in range(_STARTS):
            self._advance(f"start on {events:,} events {i + 1}/{_STARTS}")
            folder = self._folder(f"start-{events}-{i}")
            store = folder / "bench.db"
            shutil.copyfile(kept, store)
            async with open_rig(folder, store) as rig:
                await rig.publish_last()
                await rig.send(rig.next_command())
                begun_ns = time.monotonic_ns()
                found.append(await rig.recovered(begun_ns, rig.start()))
            shutil.rmtree(folder)
        return figures_of(f"worker started on {events:,} events", found, 1.0)


async def run(kills: int, events: int, cache: Path, console: Console) -> list[Figure]:
    """Measure everything."""
    # Beside the sources, which are on a disk; a temporary directory may be memory, where fsync costs nothing.
    home = Path(tempfile.mkdtemp(prefix=".bench-", dir=Path(__file__).parents[1]))
    try:
        async with open_loop():
            with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
                bar = progress.add_task("", total=None)
                bench = Bench(home, cache, lambda text: progress.update(bar, description=text))
                figures = await bench.takeover(kills)
                figures += await bench.restart(kills)
                for away_s in _AWAY_S:
                    figures += await bench.server(max(3, kills // 4) if away_s else kills, away_s)
                figures += await bench.start_up(1_000)
                figures += await bench.start_up(events)
        return figures
    finally:
        shutil.rmtree(home)


@click.command(help=__doc__)
@click.option("--kills", type=click.IntRange(1), default=20, show_default=True, help="Of each kind.")
@click.option("--events", type=click.IntRange(1), default=1_000_000, show_default=True, help="Of the large store.")
@click.option(
    "--cache",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("build/bench"),
    show_default=True,
    help="Where the large store is kept for the next time.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def main(kills: int, events: int, cache: Path, as_json: bool) -> None:
    set_up_logging("error")
    console = Console(stderr=True)
    figures = trio.run(run, kills, events, cache.absolute(), console)
    if as_json:
        sys.stdout.write(json.dumps([{**attrs.asdict(f), "reached": f.reached} for f in figures]) + "\n")
        return
    table = Table("figure", "value", "target", "")
    for f in figures:
        target = "" if f.target is None else f"≤ {f.target:g} {f.unit}"
        mark = "" if f.target is None else "✓" if f.reached else "✗"
        table.add_row(f.name, f"{f.value:,.3f} {f.unit}", target, mark)
    Console().print(table)


if __name__ == "__main__":
    main()
