"""A whole runtime on a network that breaks at its frames: everything is decided, each thing once, nothing twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import orjson
import trio

from chaos.agents import counter_only
from chaos.faults.proxy import open_proxy
from chaos.history import History, read_history
from chaos.plan import parse_plan
from chaos.workload import command
from meshforge_trio.broker.bridge import ConnectOptions
from meshforge_trio.broker.jetstream import JetStreamCommandRouter, open_broker
from meshforge_trio.config import EngineSettings, Settings
from meshforge_trio.engine import stream_specs
from meshforge_trio.policy import RetryPolicy
from meshforge_trio.runtime import Runtime
from meshforge_trio.server import PrivateServer
from meshforge_trio.store.sqlite import SQLiteEventStore
from meshforge_trio.subjects import COMMANDS, EVENTS, FAILED, Scope

SCOPE = Scope("default", "demo", "counter")
#: A command that fails may fail more often than the network does, so that one of its NAKs meets the fault.
ENGINE = EngineSettings(
    batch=4, publish_burst=1, ack_wait_s=1.0, publish_timeout_s=1.0, retry=RetryPolicy(limit=12, delays_s=(0.05,))
)
#: Every action, and every kind of frame that a short run shows.
RULES = (
    "proxy:pull@2=cut_after",
    "proxy:delivery@3=cut_before",
    "proxy:publish@2=swallow",
    "proxy:publish@9=cut_after",
    "proxy:puback@6=blackhole",
    "proxy:puback@12=cut_before",
    "proxy:ack@4=swallow",
    "proxy:ack@9=cut_after",
    "proxy:nak@1=swallow",
)


async def test_a_runtime_comes_through_every_fault(
    aio_loop: asyncio.AbstractEventLoop, nats_server: PrivateServer, tmp_path: Path
) -> None:
    history = History.open(tmp_path / "history.jsonl", "harness")
    history.write("header", version=1, scenario="", plan="; ".join(RULES), app="")
    adds = [command(SCOPE, "add", n, {"amount": n}, entity_id="a") for n in range(1, 31)]
    explode = command(SCOPE, "explode", 31, {}, entity_id="b")
    store = await SQLiteEventStore.open(tmp_path / "store.db", ttl_s=5.0)
    with trio.fail_after(60):
        async with (
            open_broker(nats_server.url) as direct,
            open_proxy(nats_server.port, parse_plan("; ".join(RULES)).rules, history, record_frames=True) as proxy,
        ):
            for spec in stream_specs(ENGINE):
                await direct.declare(spec)
            await JetStreamCommandRouter(direct).send([*adds[:15], explode, *adds[15:]])
            options = ConnectOptions(urls=(proxy.url,), probe_s=1.0)
            runtime = Runtime(
                counter_only, Settings(engine=ENGINE), store, lambda: open_broker(options, pull_batch=ENGINE.batch)
            )
            async with trio.open_nursery() as nursery:
                nursery.start_soon(runtime.run)
                while (await direct.stream_facts(COMMANDS)).messages:
                    await trio.sleep(0.02)
                runtime.stop()
            added = await direct.read_back(EVENTS, "evt.default.demo.counter.added", 1, 100)
            dead = await direct.read_back(FAILED, "failed.>", 1, 100)
    await store.close()
    history.close()
    assert [orjson.loads(message.body)["payload"]["total"] for message in added] == [
        n * (n + 1) // 2 for n in range(1, 31)
    ]
    assert len(dead) == 1
    assert sorted(proxy.fired) == sorted(RULES)
    records = [record for record in read_history(tmp_path / "history.jsonl") if record.actor == "proxy"]
    for kind in ("fault", "healed"):
        assert sorted(record["rule"] for record in records if record.kind == kind) == sorted(RULES)
    assert Counter(record["frame"] for record in records if record.kind == "frame") == proxy.passed
