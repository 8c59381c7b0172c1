"""The main job, killed four times: python scenarios/order_flow.py

A private nats-server, a worker process with an order and an inventory agent, a client. First a conversation: create an
order, get it, send the creation again under a new message id, put something into the inventory. Then 2,000 commands
over 200 orders, while the worker is killed with SIGKILL before it stores, after it stored, after it published and
before it ACKs; each time another worker takes over. Exit code 0 means that nothing was lost or doubled and that the
state rebuilt in a fresh process hashes to the state the last worker had.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence

import attrs
import click
import trio
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from chaos.checkers import judge
from chaos.evidence import Evidence, Sent, collect
from chaos.observer import Observer, open_observer
from chaos.plan import parse_plan
from chaos.world import ProcessWorld, Worker, WorldError, open_zygote
from meshforge_trio.broker.bridge import open_loop
from meshforge_trio.client import MeshClient, open_client
from meshforge_trio.envelope import SecurityContext, encode
from meshforge_trio.ids import uuid7
from meshforge_trio.server import PrivateServer
from meshforge_trio.telemetry import set_up_logging

APP = "scenarios.shop:app"
PLAN = (
    "worker#1:before_store@20=kill; worker#2:after_store@60=kill; "
    "worker#3:after_publish@60=kill; worker#4:before_ack@60=kill"
)
USER = SecurityContext("alice", "user")
ENGINE = {"batch": 16, "publish_burst": 0, "ack_wait_s": 30.0}


@attrs.define(eq=False)
class Run:
    """What is seen while it runs. `recovery_s` is from a worker's death to the next outcome from its successor."""

    decided: int = 0
    redelivered: int = 0
    recovery_s: list[float] = attrs.field(factory=list)
    died_at: float | None = None
    heard: set[str] = attrs.field(factory=set)

    def hear(self, msg_id: str) -> None:
        """A core subscriber was sent an event."""
        if msg_id in self.heard:
            return
        self.heard.add(msg_id)
        self.decided += 1
        if self.died_at is not None:
            self.recovery_s.append(time.perf_counter() - self.died_at)
            self.died_at = None


async def conversation(client: MeshClient, console: Console) -> list[Sent]:
    """Talk to both agents; the events come back as they were stored."""
    key = uuid7()
    payload = {"customer": "Ada"}
    created = await client.call("order", "create", payload, entity_id="order-ada", idempotency_key=key)
    console.print(
        f"  create order-ada      → {created.name}, version {created.payload['entity_version']}, id {created.id}"
    )
    found = await client.call("order", "get", entity_id="order-ada")
    console.print(f"  get order-ada         → {found.name}, {found.payload}")
    echoed = await client.call("order", "create", payload, entity_id="order-ada", idempotency_key=key)
    same = encode(echoed) == encode(created)
    console.print(f"  same key, new id      → {echoed.name}, byte for byte the same: {same}")
    if not same:
        raise WorldError("a re-sent command was answered with other bytes")
    stock_key = uuid7()
    stock = {"sku": "lamp", "stock": 12}
    put = await client.call("inventory", "create", stock, entity_id="lamp", idempotency_key=stock_key)
    console.print(f"  create lamp, stock 12 → {put.name}, version {put.payload['entity_version']}")
    order = client.command("order", "create", payload, entity_id="order-ada", idempotency_key=key)
    lamp = client.command("inventory", "create", stock, entity_id="lamp", idempotency_key=stock_key)
    return [Sent(order), Sent(order), Sent(lamp)]


def stream_of(client: MeshClient, commands: int, entities: int) -> list[Sent]:
    """Orders are created in turn, then lines added to them."""
    made = []
    for i in range(commands):
        entity = f"order-{i % entities}"
        if i < entities:
            command = client.command("order", "create", {"customer": f"customer {i}"}, entity_id=entity)
        else:
            command = client.command("order", "add_line", {"sku": f"sku-{i}", "price": i}, entity_id=entity)
        made.append(Sent(command, expect=("decided",)))
    return made


async def keep_a_worker(world: ProcessWorld, observer: Observer, run: Run, console: Console) -> None:
    """Replace each worker that dies of its plan; whoever else ends is a fault of the run."""
    while True:
        worker = world.workers[-1]
        await worker.ended.wait()
        if not worker.killed:
            raise WorldError(f"worker#{worker.number} ended with {worker.status}\n{world.tail(worker)}")
        died_at = time.perf_counter()
        # What the dead worker published is not its successor's work.
        await observer.caught_up()
        run.died_at = died_at
        run.redelivered += await observer.in_hand()
        console.print(f"  {world.fired()[-1]}  after {run.decided} decisions; starting worker#{worker.number + 1}")
        await world.spawn()


async def wait_decided(run: Run, total: int, console: Console, timeout_s: float) -> None:
    """Return when `total` outcomes were heard, with a bar meanwhile."""
    with Progress(console=console, transient=True) as progress, trio.move_on_after(timeout_s) as waited:
        bar = progress.add_task("  deciding", total=total)
        while run.decided < total:
            progress.update(bar, completed=run.decided)
            await trio.sleep(0.02)
    if waited.cancelled_caught:
        raise WorldError(f"{run.decided} of {total} commands were decided within {timeout_s:g} s")


def rebuilt(world: ProcessWorld) -> dict[str, str]:
    """`state_hash` of each scope, rebuilt from the store in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-m", "meshforge_trio", "hash", "--app", APP, "--store", str(world.store), "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    if done.returncode:
        raise WorldError(f"meshforge hash failed ({done.returncode}): {done.stderr}")
    return {row["scope"]: row["state_hash"] for row in map(json.loads, done.stdout.splitlines())}


async def scenario(commands: int, entities: int, console: Console) -> tuple[Evidence, Run, Sequence[str]]:
    """Run everything; return what was left and seen, and the rules that fired."""
    run = Run()
    plan = parse_plan(PLAN)
    async with open_loop(), open_zygote() as zygote:
        with PrivateServer() as server:
            async with (
                ProcessWorld(APP, server=server, zygote=zygote, plan=plan, engine=ENGINE) as world,
                open_observer(server.url, hear=run.hear) as observer,
                open_client(server.url, tenant="default", workspace="demo", principal=USER) as client,
            ):
                worker = await world.spawn()
                console.print(f"[bold]A conversation[/] with worker#1 (pid {worker.pid})")
                sent = await conversation(client, console)
                stream = stream_of(client, commands, entities)
                console.print(f"[bold]{commands} commands[/] over {entities} orders, under: {plan}")
                total = run.decided + commands
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(keep_a_worker, world, observer, run, console)
                    await client.send_many([each.command for each in stream])
                    await wait_decided(run, total, console, 60.0)
                    nursery.cancel_scope.cancel()
                await finish(world, world.workers[-1])
                evidence = await collect(
                    observer.broker,
                    world.store,
                    [*sent, *stream],
                    final=True,
                    received=tuple(observer.received),
                    kills=len(world.fired()),
                )
                fresh = await trio.to_thread.run_sync(rebuilt, world)
                live = evidence.rows.state_hashes
                hashes = {str(scope): (value, fresh.get(str(scope), "missing")) for scope, value in live.items()}
                return attrs.evolve(evidence, state_hashes=hashes), run, world.fired()


async def finish(world: ProcessWorld, worker: Worker) -> None:
    """The last worker drains; what it had in memory goes into `state_hash`."""
    status = await world.drain(worker)
    if status != 0:
        raise WorldError(f"worker#{worker.number} drained with exit code {status}\n{world.tail(worker)}")


def report(evidence: Evidence, run: Run, fired: Sequence[str], console: Console) -> bool:
    """Print the table; return whether everything held."""
    keys = {sent.key for sent in evidence.sent}
    decided = {row.key for row in evidence.rows.keys} & keys
    judgements = judge(evidence)
    broken = [judgement for judgement in judgements if judgement.findings]
    copies = len(evidence.events) - len({message.msg_id for message in evidence.events})
    table = Table(title="What is left", show_header=False)
    table.add_row("commands sent", f"{len(evidence.sent)} ({len(keys)} keys)")
    table.add_row("decided", str(len(decided)))
    table.add_row("events in the stream", str(len(evidence.events)))
    table.add_row("lost", str(len(keys - decided)))
    table.add_row("duplicated", str(copies))
    table.add_row("redelivered after kills", str(run.redelivered))
    for rule in fired:
        table.add_row("killed", rule)
    table.add_row("from kill to next outcome", ", ".join(f"{seconds:.2f} s" for seconds in run.recovery_s))
    for scope, (live, fresh) in evidence.state_hashes.items():
        table.add_row(f"state_hash {scope}", f"live     {live[:32]}\nreplayed {fresh[:32]}")
    table.add_row("guarantees", ", ".join(f"{j.id} {'broken' if j.findings else 'holds'}" for j in judgements))
    console.print(table)
    for judgement in broken:
        console.print(str(judgement), style="red")
    unfired = [str(rule) for rule in parse_plan(PLAN).rules if str(rule) not in fired]
    if unfired:
        console.print(
            f"these kills never happened, so the run shows less than it should: {'; '.join(unfired)}", style="red"
        )
    return not broken and not unfired and decided == keys and not copies and bool(evidence.state_hashes)


@click.command(help=__doc__)
@click.option("--commands", default=2000, show_default=True, type=click.IntRange(400))
@click.option("--entities", default=200, show_default=True, type=click.IntRange(1))
def main(commands: int, entities: int) -> None:
    set_up_logging("warning")
    console = Console()
    try:
        evidence, run, fired = trio.run(scenario, commands, entities, console)
    except* WorldError as errors:
        console.print(f"the run itself failed: {errors.exceptions[0]}", style="red")
        sys.exit(2)
    if not report(evidence, run, fired, console):
        console.print("[red]NOT as guaranteed[/]")
        sys.exit(1)
    console.print("[green]nothing lost, nothing doubled, and the hashes agree[/]")


if __name__ == "__main__":
    main()
