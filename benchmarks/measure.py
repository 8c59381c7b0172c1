"""What is measured and how: one function per figure, each on a running nats-server."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
import timeit
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import attrs
import trio

from benchmarks.shop import app
from chaos.observer import open_observer
from meshforge_trio.broker.jetstream import open_broker
from meshforge_trio.broker.port import Broker, Delivery, Message, StreamSpec
from meshforge_trio.client import open_client
from meshforge_trio.config import EngineSettings
from meshforge_trio.decide import Decider
from meshforge_trio.drafts import Drafter
from meshforge_trio.engine import stream_specs
from meshforge_trio.entities import Cache, Entities
from meshforge_trio.envelope import CommandEnvelope, SecurityContext, encode, payload_hash
from meshforge_trio.ids import uuid7
from meshforge_trio.intake import Incoming
from meshforge_trio.points import RECEIVED, no_probe
from meshforge_trio.policy import RetryPolicy
from meshforge_trio.server import PrivateServer
from meshforge_trio.store.port import Mark
from meshforge_trio.store.sqlite import SQLiteEventStore
from meshforge_trio.subjects import COMMANDS, Scope
from meshforge_trio.waiting import Waiting

SCOPE = Scope("default", "bench", "basket")
USER = SecurityContext("bench", "user")
ENTITIES = 1000
NOTE = "x" * 250


@attrs.frozen
class Drained:
    """A backlog drained by one worker process."""

    rate: float
    peak_rss_mib: float
    bytes_per_command: float


def commands(count: int, *, random_keys: bool, start: int = 0, scope: Scope = SCOPE) -> Iterator[CommandEnvelope]:
    """`count` commands over 1,000 entities, payloads of about 300 bytes."""
    for i in range(start, start + count):
        yield CommandEnvelope(
            id=uuid7(),
            tenant=scope.tenant,
            workspace=scope.workspace,
            agent=scope.agent,
            action="add",
            idempotency_key=secrets.token_hex(16) if random_keys else uuid7(),
            entity_id=f"basket-{i % ENTITIES}",
            payload={"sku": f"sku-{i % 97}", "quantity": 1, "note": NOTE},
            security_context=USER,
            ts=1.0,
            trace_id="0af7651916cd43dd8448eb211c80319c",
        )


@contextmanager
def worker(server: PrivateServer, store: Path, scopes: Sequence[Scope] = (SCOPE,)) -> Iterator[subprocess.Popen[bytes]]:
    """`meshforge run` as a process of its own that serves the workspaces of `scopes`, ended with SIGTERM."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "meshforge_trio", "run", "benchmarks.shop:app"),
            *("--url", server.url, "--store", str(store)),
            *(word for scope in scopes for word in ("--workspace", f"{scope.tenant}/{scope.workspace}")),
            *("--log-level", "warning"),
        ],
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def peak_rss_mib(pid: int) -> float:
    """VmHWM of a process (Linux)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return 0.0


def size_of(store: Path) -> int:
    """Bytes of the database with its log."""
    return sum(path.stat().st_size for path in store.parent.glob(f"{store.name}*") if path.is_file())


async def _rate(broker: Broker, count: int) -> float:
    """Commands per second from the first decided to the last, as seen from outside."""
    first_at = first_left = 0.0
    while True:
        left = (await broker.stream_facts(COMMANDS)).messages
        now = time.perf_counter()
        if not first_at and left < count:
            first_at, first_left = now, left
        if left == 0:
            return first_left / (now - first_at)
        await trio.sleep(0.02)


async def lean(server: PrivateServer, count: int) -> float:
    """The pass-through without a store."""
    async with open_broker(server.url) as broker:
        await broker.declare(StreamSpec("LEAN_IN", ("lean.in",), work_queue=True))
        await broker.declare(StreamSpec("LEAN_OUT", ("lean.out",)))
        # The same bytes as the runtime's commands.
        body = encode(next(commands(1, random_keys=False)))
        for begin in range(0, count, 1000):
            batch = [Message("lean.in", body, uuid7()) for _ in range(min(1000, count - begin))]
            await broker.publish(batch, 10.0)
        done = await trio.run_process(
            [sys.executable, "-m", "benchmarks.lean", server.url, str(count)], capture_stdout=True
        )
    return float(json.loads(done.stdout))


async def drain(server: PrivateServer, store: Path, count: int, *, random_keys: bool = False) -> Drained:
    """The full runtime: one worker process, SQLite FULL."""
    before = size_of(store)
    # No subscriber to the events: it would have its share of the two cores.
    async with (
        open_broker(server.url) as broker,
        open_client(server.url, tenant=SCOPE.tenant, workspace=SCOPE.workspace, principal=USER) as client,
    ):
        for spec in stream_specs(EngineSettings()):
            await broker.declare(spec)
        await client.send_many(list(commands(count, random_keys=random_keys)), timeout_s=120.0)
        with worker(server, store) as process, trio.fail_after(300):
            rate = await _rate(broker, count)
            rss = peak_rss_mib(process.pid)
    return Drained(rate, rss, (size_of(store) - before) / count)


async def latency_ms(server: PrivateServer, store: Path, count: int) -> tuple[float, float]:
    """p50 and p99 from sending to hearing the event, at 50 commands/s, in milliseconds."""
    samples: list[float] = []
    async with (
        open_observer(server.url),
        open_client(server.url, tenant=SCOPE.tenant, workspace=SCOPE.workspace, principal=USER) as client,
    ):
        with worker(server, store), trio.fail_after(120):
            for command in commands(5, random_keys=False):
                await client.call("basket", "add", command.payload, entity_id=command.entity_id)
            next_at = trio.current_time()
            for command in commands(count, random_keys=False):
                next_at += 0.02
                await trio.sleep_until(next_at)
                begin = time.perf_counter()
                await client.call("basket", "add", command.payload, entity_id=command.entity_id)
                samples.append((time.perf_counter() - begin) * 1000)
    samples.sort()
    return samples[len(samples) // 2], samples[int(len(samples) * 0.99)]


async def recovery_s(server: PrivateServer, store: Path) -> float:
    """From SIGKILL of a busy worker, its successor started at once, to the first newly decided command."""
    heard = trio.Event()
    seen: set[str] = set()

    def hear(msg_id: str) -> None:
        # `heard` is replaced after the kill; this looks it up anew each time.
        if msg_id not in seen:
            seen.add(msg_id)
            heard.set()

    async with (
        open_observer(server.url, hear=hear) as observer,
        open_client(server.url, tenant=SCOPE.tenant, workspace=SCOPE.workspace, principal=USER) as client,
    ):
        with trio.fail_after(120):
            with worker(server, store) as first:
                await client.send_many(list(commands(20_000, random_keys=False)))
                await heard.wait()
                first.kill()
                first.wait()
                killed_at = time.perf_counter()
                await observer.caught_up()
                heard = trio.Event()
            with worker(server, store):
                await heard.wait()
                took = time.perf_counter() - killed_at
                await observer.drained()
    return took


async def fill(store: Path, events: int) -> None:
    """A store as it is after `events` commands, written by the decision code itself, without a broker."""
    opened = await SQLiteEventStore.open(store, synchronous="OFF")
    rows = opened.scope(SCOPE)
    lease = await rows.take_lease("")
    assert lease is not None
    adapter = app.agents[0]
    cache, drafter, policy = Cache(ENTITIES), Drafter(SCOPE, 1 << 20), RetryPolicy()
    n = lease.next_n
    for begin in range(0, events, 1000):
        batch = [_incoming(c) for c in commands(min(1000, events - begin), random_keys=False, start=begin)]
        unknown = sorted({i.entity_id for i in batch if i.entity_id is not None} - cache.keys())
        reading = await rows.read([(i.key, i.hash) for i in batch], unknown)
        entities = Entities(cache, adapter, reading.heads)
        decider = Decider(adapter, drafter, policy, entities, Waiting((), policy, 1024), reading, 1.0)
        plan = await decider.decide(batch, lease.epoch, n)
        n += len(plan.commit.outputs)
        plan.commit.mark = Mark(n - 1, 0, "", 0, "", time.time())
        await rows.commit(plan.commit, no_probe)
        entities.keep()
    await opened.close()


def _incoming(command: CommandEnvelope) -> Incoming:
    delivery = Delivery("cmd.default.bench.basket.add", b"", b"", "", COMMANDS, 1, 1, 1)
    return Incoming(delivery, command.idempotency_key or "", payload_hash(command), command, command.entity_id)


def point_ns() -> float:
    """What a call of the unarmed probe costs, in nanoseconds: best of five."""
    loops = 200_000
    empty = min(timeit.repeat("pass", number=loops, repeat=5))
    call = min(timeit.repeat("at(RECEIVED)", globals={"at": no_probe, "RECEIVED": RECEIVED}, number=loops, repeat=5))
    return (call - empty) / loops * 1e9


def median(values: Sequence[float]) -> float:
    """The middle one."""
    return sorted(values)[len(values) // 2]
