"""Throughput, latency, recovery, memory and disk of the runtime, beside a pass-through without a store.

Everything runs on one private nats-server per round and interleaved, so the ratios hold although machines differ:
python -m benchmarks.throughput [--json]
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import attrs
import click
import trio
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks import measure
from meshforge_trio.broker.bridge import open_loop
from meshforge_trio.server import PrivateServer
from meshforge_trio.telemetry import set_up_logging


@attrs.frozen
class Figure:
    """One figure and what is to be reached; `atmost` says from which side."""

    name: str
    value: float
    unit: str
    target: float | None = None
    atmost: bool = False

    @property
    def reached(self) -> bool:
        if self.target is None:
            return True
        return self.value <= self.target if self.atmost else self.value >= self.target


class Bench:
    """The steps of one run. Each store is a file of its own under `home`."""

    def __init__(self, home: Path, advance: Callable[[str], None]) -> None:
        self._home = home
        self._advance = advance
        self._stores = 0

    def _store(self) -> Path:
        self._stores += 1
        folder = self._home / str(self._stores)
        folder.mkdir()
        return folder / "bench.db"

    async def rates(self, commands: int, rounds: int) -> list[Figure]:
        """Lean, runtime, runtime with random keys: in turn, `rounds` times."""
        lean: list[float] = []
        ordered: list[measure.Drained] = []
        random: list[measure.Drained] = []
        for i in range(rounds):
            with PrivateServer() as server:
                self._advance(f"pass-through {i + 1}/{rounds}")
                lean.append(await measure.lean(server, commands))
                self._advance(f"runtime {i + 1}/{rounds}")
                ordered.append(await measure.drain(server, self._store(), commands))
            with PrivateServer() as server:
                self._advance(f"runtime, random keys {i + 1}/{rounds}")
                random.append(await measure.drain(server, self._store(), commands, random_keys=True))
        reference = measure.median(lean)
        fast = measure.median([drained.rate for drained in ordered])
        slow = measure.median([drained.rate for drained in random])
        ratios = [drained.rate / rate for drained, rate in zip(ordered, lean, strict=True)]
        random_ratios = [drained.rate / rate for drained, rate in zip(random, lean, strict=True)]
        return [
            Figure("pass-through without a store", reference, "messages/s"),
            Figure("runtime, time-ordered keys", fast, "commands/s"),
            Figure("runtime, random keys", slow, "commands/s"),
            Figure("ratio, time-ordered keys", measure.median(ratios), "", 0.40),
            Figure("ratio, random keys", measure.median(random_ratios), "", 0.30),
            Figure("peak RSS of the worker", max(d.peak_rss_mib for d in ordered + random), "MiB", 80, atmost=True),
            Figure("database bytes per command", measure.median([d.bytes_per_command for d in ordered]), "bytes"),
        ]

    async def latency(self, count: int) -> list[Figure]:
        """At 50 commands/s."""
        self._advance("latency")
        with PrivateServer() as server:
            p50, p99 = await measure.latency_ms(server, self._store(), count)
        return [
            Figure("latency p50 at 50 commands/s", p50, "ms", 3, atmost=True),
            Figure("latency p99 at 50 commands/s", p99, "ms", 10, atmost=True),
        ]

    async def recovery(self, rounds: int) -> list[Figure]:
        """SIGKILL to the first newly decided command, the successor's start-up included."""
        took: list[float] = []
        for i in range(rounds):
            self._advance(f"recovery {i + 1}/{rounds}")
            with PrivateServer() as server:
                took.append(await measure.recovery_s(server, self._store()))
        return [Figure("SIGKILL to the first newly decided command", measure.median(took), "s", 1.0, atmost=True)]

    async def growth(self, commands: int, rounds: int, small: int, large: int) -> list[Figure]:
        """The rate on a large store against that on a small one, in turn."""
        stores = {events: self._store() for events in (small, large)}
        for events, store in stores.items():
            self._advance(f"filling a store with {events:,} events")
            await measure.fill(store, events)
        ratios: list[float] = []
        for i in range(rounds):
            rate: dict[int, float] = {}
            for events, store in stores.items():
                self._advance(f"runtime on {events:,} events {i + 1}/{rounds}")
                copy = self._store()
                shutil.copyfile(store, copy)
                with PrivateServer() as server:
                    rate[events] = (await measure.drain(server, copy, commands)).rate
                shutil.rmtree(copy.parent)
            ratios.append(rate[large] / rate[small])
        return [Figure(f"rate at {large:,} stored events / at {small:,}", measure.median(ratios), "", 0.8)]


async def run(commands: int, rounds: int, large: int, samples: int, console: Console) -> list[Figure]:
    """Measure everything."""
    # Beside the sources, which are on a disk; a temporary directory may be memory, where fsync costs nothing.
    home = Path(tempfile.mkdtemp(prefix=".bench-", dir=Path(__file__).parents[1]))
    try:
        async with open_loop():
            with Progress(console=console, transient=True) as progress:
                bar = progress.add_task("", total=None)
                bench = Bench(home, lambda text: progress.update(bar, description=text))
                figures = await bench.rates(commands, rounds)
                figures += await bench.latency(samples)
                figures += await bench.recovery(rounds)
                figures += await bench.growth(commands, rounds, 10_000, large)
        return [*figures, Figure("an unarmed point", measure.point_ns(), "ns", 50, atmost=True)]
    finally:
        shutil.rmtree(home)


@click.command(help=__doc__)
@click.option("--commands", default=50_000, show_default=True, help="Commands per drained backlog.")
@click.option("--rounds", default=3, show_default=True, help="Repetitions; medians are printed.")
@click.option("--large", default=1_000_000, show_default=True, help="Events of the large store.")
@click.option("--samples", default=500, show_default=True, help="Commands timed for the latency.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def main(commands: int, rounds: int, large: int, samples: int, as_json: bool) -> None:
    set_up_logging("warning")
    console = Console(stderr=as_json)
    figures = trio.run(run, commands, rounds, large, samples, console)
    if as_json:
        sys.stdout.write(json.dumps([{**attrs.asdict(f), "reached": f.reached} for f in figures]) + "\n")
    else:
        table = Table("figure", "value", "target", "")
        for f in figures:
            target = "" if f.target is None else f"{'≤' if f.atmost else '≥'} {f.target:g} {f.unit}"
            table.add_row(
                f.name, f"{f.value:,.4g} {f.unit}", target, "" if f.target is None else "✓" if f.reached else "✗"
            )
        console.print(table)


if __name__ == "__main__":
    main()
