"""The broker goes away, forgets, or belongs to another store: rules R2, R3 and R6.

Each test names the rule (docs/architecture.md) without which it fails.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from chaos.evidence import Sent
from chaos.lab import Lab
from chaos.zygote import Zygote
from meshforge_trio.broker.jetstream import open_broker
from meshforge_trio.config import Settings
from meshforge_trio.crud import crud_agent
from meshforge_trio.points import Point
from meshforge_trio.runtime import App, Runtime
from meshforge_trio.server import PrivateServer
from meshforge_trio.store.sqlite import SQLiteEventStore
from meshforge_trio.subjects import EVENTS

from .rules_world import ALONE, APP, adds, case, evidence_of, log_of, open_world, put_in_place_of, sent


async def test_a_publish_that_comes_too_late_is_left_to_recovery(lab: Lab) -> None:
    """R6: suspended between commit and publish for longer than half the window, it must read back first."""
    settings = {"duplicate_window_s": 1.0}
    outcome = await lab.run(
        case(APP, adds(1, 1), "worker#1:before_publish@1=stop(1)", engine=settings, lease_ttl_s=30.0), keep=True
    )
    evidence_of(outcome)
    said = log_of(outcome, 1)
    assert said.index("too late to publish") < said.index("published what the streams lacked")


@pytest.mark.parametrize(
    ("commands", "plan"),
    [
        (adds(1, 3), "worker#1:after_publish@1=kill(0.9)"),
        ([sent("explode", 1, "a", "dead")], "worker#1:after_publish@2=kill(0.9)"),
    ],
    ids=["events", "dead letter"],
)
async def test_down_for_longer_than_the_window(lab: Lab, commands: Sequence[Sent], plan: str) -> None:
    """R3: published, killed before the mark, and the server has forgotten the ids: reading back prevents a copy."""
    evidence_of(await lab.run(case(APP, commands, plan, engine={"duplicate_window_s": 0.3})))


@pytest.mark.parametrize(
    "plan",
    [
        "nats:after_ack@6=copy; nats:after_ack@12=rollback",
        "nats:after_ack@6=copy; worker#1:after_ack@12=kill; nats:worker#2.after_lease@1=rollback",
    ],
    ids=["living worker", "killed worker"],
)
async def test_what_the_broker_forgot_is_published_again(lab: Lab, plan: str) -> None:
    """R2, R3: the event stream goes back in time; the store gives back exactly what is missing, in order."""
    commands = [*adds(1, 12), *adds(13, 13, phase="after")]
    outcome = await lab.run(case(ALONE, commands, plan, engine={"batch": 1}, paced=True), keep=True)
    evidence = evidence_of(outcome)
    assert "published what the streams lacked" in log_of(outcome, 2 if "worker#2" in plan else 1)
    assert [message.subject.rsplit(".", 1)[1] for message in evidence.events] == ["added"] * 13


@pytest.mark.parametrize("fault", ["kill", "pause(10)"])
async def test_the_server_goes_and_comes_back(lab: Lab, fault: str) -> None:
    """R2: killed in mid-work, or silent for ten seconds: the runtime carries on with nothing lost or doubled."""
    commands = [*adds(1, 20), *adds(21, 40, "b", phase="after")]
    outcome = await lab.run(case(APP, commands, f"nats:after_store@5={fault}", engine={"batch": 1}))
    evidence = evidence_of(outcome)
    assert len([message for message in evidence.events if "counter" in message.subject]) == 40


# -- by hand -------------------------------------------------------------------------------------------------------


async def test_a_stream_made_anew_is_refused(zygote: Zygote, nats_server: PrivateServer, tmp_path: Path) -> None:
    """R3: no mark is confirmed, so publishing the whole history would be a guess: exit code 3."""
    async with open_world(tmp_path, nats_server, zygote) as stage:
        worker = await stage.served()
        await stage.decided(adds(1, 3))
        assert await stage.world.drain(worker) == 0
        nats_server.kill()
        shutil.rmtree(nats_server.store_dir)
        nats_server.restart()
        again = await stage.world.spawn()
        assert await stage.world.ended(again) == 3, again.tail()
        assert "MESHFORGE_EVENTS was deleted and made anew" in again.tail()
        assert (await (await stage.observer.broker()).stream_facts(EVENTS)).messages == 0


async def test_a_store_older_than_the_stream_is_refused(
    zygote: Zygote, nats_server: PrivateServer, tmp_path: Path
) -> None:
    """R3: with a backup of yesterday the keys of today would be decided a second time: exit code 3."""
    backup = tmp_path / "backup"
    async with open_world(tmp_path, nats_server, zygote) as stage:
        world = stage.world
        worker = await stage.served()
        await stage.decided(adds(1, 3))
        assert await world.drain(worker) == 0
        shutil.copytree(world.store.parent, backup)
        worker = await stage.served()
        await stage.decided(adds(4, 6))
        assert await world.drain(worker) == 0
        put_in_place_of(world.store.parent, backup)
        again = await world.spawn()
        assert await world.ended(again) == 3, again.tail()
        assert "the store is older than the stream" in again.tail()


async def test_an_empty_store_on_used_streams_is_refused(
    zygote: Zygote, nats_server: PrivateServer, tmp_path: Path
) -> None:
    """R3: a mistyped path must not begin every entity anew beside its own history: exit code 3."""
    async with open_world(tmp_path, nats_server, zygote) as stage:
        worker = await stage.served()
        await stage.decided(adds(1, 3))
        assert await stage.world.drain(worker) == 0
        shutil.rmtree(stage.world.store.parent)
        again = await stage.world.spawn()
        assert await stage.world.ended(again) == 3, again.tail()
        assert "the store is empty, and MESHFORGE_EVENTS holds events of this scope" in again.tail()


async def test_scopes_that_begin_together_are_recovered_two_at_a_time(
    aio_loop: asyncio.AbstractEventLoop, nats_server: PrivateServer, tmp_path: Path
) -> None:
    """R3: what a comparison holds in memory is bounded for the process, however many scopes it serves."""
    recovering = 0
    together: list[int] = []

    def probe(point: str) -> None:
        nonlocal recovering
        recovering += {Point.BEFORE_RECOVERY: 1, Point.AFTER_RECOVERY: -1}.get(Point(point), 0)
        together.append(recovering)

    settings = Settings(url=nats_server.url, workspaces=tuple(f"t/w{i}" for i in range(8)))
    store = await SQLiteEventStore.open(tmp_path / "store.db")
    runtime = Runtime(App([crud_agent("order")]), settings, store, lambda: open_broker(nats_server.url), probe=probe)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(runtime.run)
            for engine in runtime.engines:
                await engine.serving.wait()
            runtime.stop()
    await store.close()
    assert max(together) == 2
