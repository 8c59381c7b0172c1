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
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import attrs
import click
import trio
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from chaos.checkers import judge
from chaos.evidence import Evidence, Sent, load_image, save_image
from chaos.history import VERSION, History, read_history
from chaos.observer import Observer, open_observer
from chaos.plan import parse_plan
from chaos.scenario import Scenario
from chaos.sweep import Fixed
from chaos.workload import Workload
from chaos.world import ProcessWorld, Worker, WorldError
from chaos.zygote import open_zygote
from meshforge_trio.broker.bridge import open_loop
from meshforge_trio.client import MeshClient, open_client
from meshforge_trio.envelope import SecurityContext, encode
from meshforge_trio.ids import uuid7
from meshforge_trio.launch import load_app
from meshforge_trio.server import PrivateServer
from meshforge_trio.subjects import Scope
from meshforge_trio.telemetry import set_up_logging

APP = "scenarios.shop:app"
PLAN = (
    "worker#1:before_store@20=kill; worker#2:after_store@60=kill; "
    "worker#3:after_publish@60=kill; worker#4:before_ack@60=kill"
)
USER = SecurityContext("alice", "user")
ENGINE = {"batch": 16, "publish_burst": 0, "ack_wait_s": 30.0}


def small(seed: int) -> Sequence[Sent]:
    """Few orders with their lines, one that exists already, and stock."""
    commands = Workload()
    first = commands.send("order", "create", {"customer": "Ada"}, entity="order-0", expect=["decided"])
    for i in range(1, 8):
        commands.send("order", "create", {"customer": f"customer {seed + i}"}, entity=f"order-{i}", expect=["decided"])
    commands.send("order", "create", {"customer": "Bob"}, entity="order-0", expect=["refused"])
    for i in range(48):
        line = {"sku": f"sku-{i}", "price": i}
        commands.send("order", "add_line", line, entity=f"order-{i % 8}", expect=["decided"])
    commands.send("inventory", "create", {"sku": "lamp", "stock": 12}, entity="lamp", expect=["decided"])
    commands.again(first, phase="after")
    commands.send("order", "add_line", {"sku": "last", "price": 1}, entity="order-0", expect=["decided"], phase="after")
    return commands


#: The same four deaths, smaller, for `meshforge-chaos run order_flow` and the gate.
SCENARIO = Scenario(
    "order-flow",
    __doc__,
    APP,
    small,
    searches=[Fixed([PLAN.replace("@20", "@2").replace("@60", "@2")], batches=(4,))],
    claims=("G1", "G2", "G3", "G4", "G5", "G6", "G7", "G8", "G12", "G13"),
)


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
    # Their events say under which ids they were sent.
    first = attrs.evolve(order, id=str(created.causation_id))
    return [Sent(first), Sent(order), Sent(attrs.evolve(lamp, id=str(put.causation_id)))]


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
        await world.ended(worker)
        if not worker.killed:
            raise WorldError(f"{worker.name} ended with {worker.status}\n{worker.tail()}")
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


def rebuilt(world: ProcessWorld) -> dict[Scope, str]:
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
    return {Scope(*row["scope"].split("/")): row["state_hash"] for row in map(json.loads, done.stdout.splitlines())}


async def scenario(commands: int, entities: int, home: Path, console: Console) -> tuple[Evidence, Run, Sequence[str]]:
    """Run everything in the directory `home`; return what was left and seen, and the rules that fired."""
    run = Run()
    plan = parse_plan(PLAN)
    scopes = len(load_app(APP).scopes(["default/demo"]))
    history = History.open(home / "history.jsonl", "harness")
    history.write("header", version=VERSION, scenario="order-flow", plan=PLAN, app=APP)
    async with open_loop(), open_zygote() as zygote:
        with PrivateServer() as server:
            async with (
                ProcessWorld(
                    APP, url=server.url, zygote=zygote, home=home, scopes=scopes, plan=plan, engine=ENGINE
                ) as world,
                open_observer(server.url, history=history.of("client"), hear=run.hear) as observer,
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
                history.write("drained")
                await observer.caught_up()
                await save_image(await observer.broker(), world.store, home / "image", final=True)
                fresh = await trio.to_thread.run_sync(rebuilt, world)
                fired = world.fired()
    history.close()
    evidence = load_image(
        home / "image",
        sent=[*sent, *stream],
        history=read_history(home / "history.jsonl"),
        rebuilt={scope: [value] for scope, value in fresh.items()},
    )
    return evidence, run, fired


async def finish(world: ProcessWorld, worker: Worker) -> None:
    """The last worker drains; what it had in memory goes into `state_hash`."""
    status = await world.drain(worker)
    if status != 0:
        raise WorldError(f"{worker.name} drained with exit code {status}\n{worker.tail()}")


def report(evidence: Evidence, run: Run, fired: Sequence[str], console: Console) -> bool:
    """Print the table; return whether everything held."""
    keys = {sent.key for sent in evidence.sent}
    decided = {row.key for row in evidence.rows.keys} & keys
    judgements = judge(evidence)
    broken = [judgement for judgement in judgements if not judgement.holds]
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
    for scope, (_, live) in evidence.rows.state_hashes.items():
        fresh = evidence.rebuilt.get(scope, ["missing"])[0]
        table.add_row(f"state_hash {scope}", f"live     {live[:32]}\nreplayed {fresh[:32]}")
    table.add_row(
        "guarantees", ", ".join(f"{j.id} {'holds' if j.holds else 'broken'}" for j in judgements if j.examined)
    )
    console.print(table)
    for judgement in broken:
        console.print(str(judgement), style="red")
    unfired = [str(rule) for rule in parse_plan(PLAN).rules if str(rule) not in fired]
    if unfired:
        console.print(
            f"these kills never happened, so the run shows less than it should: {'; '.join(unfired)}", style="red"
        )
    return not broken and not unfired and decided == keys and not copies and bool(evidence.rows.state_hashes)


@click.command(help=__doc__)
@click.option("--commands", default=2000, show_default=True, type=click.IntRange(400))
@click.option("--entities", default=200, show_default=True, type=click.IntRange(1))
def main(commands: int, entities: int) -> None:
    set_up_logging("warning")
    console = Console()
    try:
        with tempfile.TemporaryDirectory(prefix="meshforge-demo-") as home:
            evidence, run, fired = trio.run(scenario, commands, entities, Path(home), console)
    except* WorldError as errors:
        console.print(f"the run itself failed: {errors.exceptions[0]}", style="red")
        sys.exit(2)
    if not report(evidence, run, fired, console):
        console.print("[red]NOT as guaranteed[/]")
        sys.exit(1)
    console.print("[green]nothing lost, nothing doubled, and the hashes agree[/]")


if __name__ == "__main__":
    main()
