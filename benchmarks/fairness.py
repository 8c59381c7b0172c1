"""Two tenants of one worker process: what a flood of one does to the other's latency.

One tenant sends single commands at a steady pace, and each is timed from the moment at which it was due, so that a
late one delays nobody's clock. The other has a backlog that never ends. It is let through and held back by turns, so
the ratios hold although machines differ. The same again with a process and a store for each tenant: what no scheduling
within a process can better, since server, worker and driver share the cores.

python -m benchmarks.fairness [--json] [--rounds 5] [--seconds 6]
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import attrs
import click
import trio
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks import measure
from benchmarks.recovery import percentile
from benchmarks.throughput import Figure
from meshforge_trio.broker.api import JetStreamApi
from meshforge_trio.broker.bridge import ConnectOptions, connect, open_loop
from meshforge_trio.client import MeshClient, open_client
from meshforge_trio.config import EngineSettings
from meshforge_trio.engine import stream_specs
from meshforge_trio.server import PrivateServer
from meshforge_trio.subjects import COMMANDS, Scope, consumer_name
from meshforge_trio.telemetry import set_up_logging
from meshforge_trio.turnstile import LATELY_S
from meshforge_trio.uplink import Wire

__all__ = ["main"]

CALM: Final = Scope("calm", "bench", "basket")
LOUD: Final = Scope("loud", "bench", "basket")
#: For how long the flood is timed while the other tenant is silent.
_ALONE_S: Final = 3.0
#: What has been let through is decided, and what was held back is begun, within this.
_SETTLE_S: Final = 0.5
#: More commands than a worker can decide in a second.
_BACKLOG_PER_S: Final = 30_000
#: Bytes of streams: the events of every flood stay.
_STREAMS_MAX: Final = 8 << 30
_FAR: Final = "2100-01-01T00:00:00Z"


@attrs.frozen
class Round:
    """Latencies in milliseconds without and with a flood; the flood's rate beside the other tenant and alone."""

    idle: Sequence[float]
    flooded: Sequence[float]
    beside: float
    alone: float


class Rig:
    """A server with both tenants' clients. Made by `open_rig`; workers are the caller's."""

    def __init__(self, url: str, api: JetStreamApi, calm: MeshClient, loud: MeshClient) -> None:
        self._url = url
        self._api = api
        self._calm = calm
        self._loud = loud

    async def served(self) -> None:
        """Return when both tenants are answered."""
        for scope in (CALM, LOUD):
            # A client of its own, since one that was ever answered hears every event: those of the flood would be
            # read by the process that takes the time.
            async with _client(self._url, scope) as client:
                for command in measure.commands(5, random_keys=False):
                    await client.call("basket", "add", command.payload, entity_id=command.entity_id)

    async def hold_back(self) -> None:
        """Deliver nothing more of the flood, and wait until what was delivered is done with."""
        await self._pause({"pause_until": _FAR})
        await trio.sleep(_SETTLE_S)

    async def let_through(self) -> None:
        """Deliver the flood, and wait until it is under way."""
        await self._pause({})
        await trio.sleep(_SETTLE_S)

    async def _pause(self, until: dict[str, str]) -> None:
        reply = await self._api.request(f"CONSUMER.PAUSE.{COMMANDS}.{consumer_name(LOUD)}", until)
        assert "error" not in reply, reply

    async def backlog(self) -> int:
        """How many commands are in the stream."""
        info = await self._api.stream_info(COMMANDS)
        assert info is not None
        messages: int = info["state"]["messages"]
        return messages

    async def fill(self, count: int) -> None:
        """Have a backlog of `count` commands."""
        missing = count - await self.backlog()
        if missing > 0:
            batch = list(measure.commands(missing, random_keys=False, scope=LOUD))
            await self._loud.send_many(batch, timeout_s=300.0)
        # What the kernel has yet to write of it is written now, and not while something is timed.
        await trio.to_thread.run_sync(os.sync)

    async def paced(self, seconds: float, rate: float) -> list[float]:
        """Latencies of single commands, from the moment each was due to its answer, in milliseconds."""
        took: list[float] = []

        async def one(due: float, number: int) -> None:
            (command,) = measure.commands(1, random_keys=False, start=number)
            await self._calm.call("basket", "add", command.payload, entity_id=command.entity_id)
            took.append((trio.current_time() - due) * 1000)

        async with trio.open_nursery() as nursery:
            begin = trio.current_time()
            for number in range(int(seconds * rate)):
                due = begin + number / rate
                await trio.sleep_until(due)
                nursery.start_soon(one, due, number)
        return took

    async def flood_rate(self, seconds: float) -> float:
        """Commands of the flood decided per second."""
        before, begin = await self.backlog(), trio.current_time()
        await trio.sleep(seconds)
        return (before - await self.backlog()) / (trio.current_time() - begin)


def _client(url: str, scope: Scope) -> AbstractAsyncContextManager[MeshClient]:
    return open_client(url, tenant=scope.tenant, workspace=scope.workspace, principal=measure.USER)


@asynccontextmanager
async def open_rig(server: PrivateServer) -> AsyncIterator[Rig]:
    """Clients of both tenants on `server`. The bridge's loop must be open."""
    connection = await connect(ConnectOptions(urls=(server.url,)))
    try:
        for spec in stream_specs(EngineSettings()):
            await Wire.over(connection).broker.declare(spec)
        async with _client(server.url, CALM) as calm, _client(server.url, LOUD) as loud:
            yield Rig(server.url, JetStreamApi(connection), calm, loud)
    finally:
        await connection.aclose()


async def one_round(rig: Rig, seconds: float, rate: float) -> Round:
    """The flood alone, the other tenant alone, then both; the backlog outlasts all of it."""
    begin = trio.current_time()
    await rig.fill(int((seconds + _ALONE_S + 3 * _SETTLE_S) * _BACKLOG_PER_S))
    # The other tenant is no longer reckoned with.
    await trio.sleep_until(begin + LATELY_S + _SETTLE_S)
    await rig.let_through()
    alone = await rig.flood_rate(_ALONE_S)
    await rig.hold_back()
    idle = await rig.paced(seconds, rate)
    await rig.let_through()
    before, begin = await rig.backlog(), trio.current_time()
    flooded = await rig.paced(seconds, rate)
    after = await rig.backlog()
    if after < rate:
        raise RuntimeError(f"the backlog of {before} commands did not last: raise _BACKLOG_PER_S")
    beside = (before - after) / (trio.current_time() - begin)
    await rig.hold_back()
    return Round(idle, flooded, beside, alone)


def figures_of(name: str, rounds: Sequence[Round], target: float | None) -> list[Figure]:
    """Medians over the rounds; the ratios are those of single rounds."""

    def middle(of: Callable[[Round], float]) -> float:
        return measure.median([of(each) for each in rounds])

    def ratio(share: float) -> float:
        return middle(lambda r: percentile(r.flooded, share) / percentile(r.idle, share))

    return [
        Figure(f"{name}: p50 idle", middle(lambda r: percentile(r.idle, 0.5)), "ms"),
        Figure(f"{name}: p50 beside a flood", middle(lambda r: percentile(r.flooded, 0.5)), "ms"),
        Figure(f"{name}: p99 idle", middle(lambda r: percentile(r.idle, 0.99)), "ms"),
        Figure(f"{name}: p99 beside a flood", middle(lambda r: percentile(r.flooded, 0.99)), "ms"),
        Figure(f"{name}: ratio of p50", ratio(0.5), ""),
        Figure(f"{name}: ratio of p99", ratio(0.99), "", target, atmost=True),
        Figure(f"{name}: the flood alone", middle(lambda r: r.alone), "commands/s"),
        Figure(f"{name}: the flood beside the other", middle(lambda r: r.beside), "commands/s"),
    ]


class Bench:
    """The steps of one run. Stores and streams are files under `home`."""

    def __init__(self, home: Path, advance: Callable[[str], None]) -> None:
        self._home = home
        self._advance = advance

    async def case(
        self, name: str, processes: Sequence[Sequence[Scope]], rounds: int, pace: tuple[float, float]
    ) -> list[Round]:
        """Measure `rounds` times with a worker process, and a store, for each of `processes`."""
        found: list[Round] = []
        folder = self._home / name.replace(" ", "-")
        with ExitStack() as ending:
            server = ending.enter_context(PrivateServer(store_dir=folder / "streams", max_file_store=_STREAMS_MAX))
            async with open_rig(server) as rig:
                for i, scopes in enumerate(processes):
                    ending.enter_context(measure.worker(server, folder / f"bench-{i}.db", scopes))
                with trio.fail_after(30):
                    await rig.served()
                await rig.hold_back()
                for i in range(rounds):
                    self._advance(f"{name} {i + 1}/{rounds}")
                    found.append(await one_round(rig, *pace))
        return found


async def run(rounds: int, seconds: float, rate: float, console: Console) -> list[Figure]:
    """Measure everything."""
    # Beside the sources, which are on a disk; a temporary directory may be memory, where fsync costs nothing.
    home = Path(tempfile.mkdtemp(prefix=".bench-", dir=Path(__file__).parents[1]))
    try:
        async with open_loop():
            with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
                bar = progress.add_task("", total=None)
                bench = Bench(home, lambda text: progress.update(bar, description=text))
                together = await bench.case("one process", [(CALM, LOUD)], rounds, (seconds, rate))
                apart = await bench.case("two processes", [(CALM,), (LOUD,)], rounds, (seconds, rate))
        return [*figures_of("one process", together, 2.0), *figures_of("two processes", apart, None)]
    finally:
        shutil.rmtree(home)


@click.command(help=__doc__)
@click.option(
    "--rounds", type=click.IntRange(1), default=5, show_default=True, help="Repetitions; medians are printed."
)
@click.option("--seconds", type=click.FloatRange(1), default=6.0, show_default=True, help="Length of a phase.")
@click.option("--rate", type=click.FloatRange(1), default=50.0, show_default=True, help="Timed commands per second.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def main(rounds: int, seconds: float, rate: float, as_json: bool) -> None:
    set_up_logging("warning")
    figures = trio.run(run, rounds, seconds, rate, Console(stderr=True))
    if as_json:
        sys.stdout.write(json.dumps([{**attrs.asdict(f), "reached": f.reached} for f in figures]) + "\n")
        return
    table = Table("figure", "value", "target", "")
    for f in figures:
        target = "" if f.target is None else f"≤ {f.target:g} {f.unit}"
        mark = "" if f.target is None else "✓" if f.reached else "✗"
        table.add_row(f.name, f"{f.value:,.4g} {f.unit}", target, mark)
    Console().print(table)


if __name__ == "__main__":
    main()
