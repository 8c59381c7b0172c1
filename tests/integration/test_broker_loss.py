"""The broker goes away, forgets, or belongs to another store: rules R2, R3 and R6.

Each test names the rule (docs/architecture.md) without which it fails.
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Sequence
from pathlib import Path

import attrs
import pytest
import trio

from chaos.evidence import Sent
from chaos.observer import open_observer
from chaos.plan import parse_plan
from chaos.workload import command
from chaos.world import ProcessWorld, Zygote
from meshforge_trio.server import PrivateServer

from .rules_world import APP, SCOPE, adds, assert_holds, copy_of, decided, evidence_of, logged, stopped


async def test_a_publish_that_comes_too_late_is_left_to_recovery(zygote: Zygote, nats_server: PrivateServer) -> None:
    """R6: suspended between commit and publish for longer than half the window, it must read back first."""
    plan = parse_plan("worker#1:before_publish@1=stop")
    sent = adds(1, 1)
    window = 1.0
    async with (
        ProcessWorld(
            APP, server=nats_server, zygote=zygote, plan=plan, engine={"duplicate_window_s": window}, lease_ttl_s=30.0
        ) as world,
        open_observer(nats_server.url, duplicate_window_s=window) as observer,
    ):
        with trio.fail_after(60):
            await observer.send(sent)
            worker = await world.spawn()
            await stopped(world)
            await trio.sleep(window)
            worker.send_signal(signal.SIGCONT)
            await logged(world, 1, "too late to publish")
            await logged(world, 1, "published what the streams lacked")
            await observer.drained()
            assert await world.drain(worker) == 0
            assert_holds(await evidence_of(world, sent, observer))


@pytest.mark.parametrize(
    ("sent", "plan"),
    [
        (adds(1, 3), "worker#1:after_publish@1=kill"),
        (
            [Sent(command(SCOPE, "explode", 1, {"tag": "k1"}, entity_id="a"), expect=("dead",))],
            "worker#1:after_publish@2=kill",
        ),
    ],
    ids=["events", "dead letter"],
)
async def test_down_for_longer_than_the_window(
    zygote: Zygote, nats_server: PrivateServer, sent: Sequence[Sent], plan: str
) -> None:
    """R3: published, killed before the mark, and the server has forgotten the ids: reading back prevents a copy."""
    window = 0.3
    async with (
        ProcessWorld(
            APP, server=nats_server, zygote=zygote, plan=parse_plan(plan), engine={"duplicate_window_s": window}
        ) as world,
        open_observer(nats_server.url, duplicate_window_s=window) as observer,
    ):
        with trio.fail_after(60):
            await observer.send(sent)
            worker = await world.spawn()
            await worker.ended.wait()
            assert worker.killed, world.tail(worker)
            await trio.sleep(window * 3)
            successor = await world.spawn()
            await world.serving(successor)
            await observer.drained()
            assert await world.drain(successor) == 0
            assert_holds(await evidence_of(world, sent, observer))


@pytest.mark.parametrize("alive", [True, False], ids=["living worker", "stopped worker"])
async def test_what_the_broker_forgot_is_published_again(
    zygote: Zygote, nats_server: PrivateServer, tmp_path: Path, alive: bool
) -> None:
    """R2, R3: the event stream goes back in time; the store gives back exactly what is missing, in order."""
    early, late = adds(1, 6), adds(7, 12)
    async with ProcessWorld(APP, server=nats_server, zygote=zygote, engine={"batch": 1}) as world:
        with trio.fail_after(90):
            worker = await world.spawn()
            await decided(world, nats_server, early)
            nats_server.kill()
            copy_of(nats_server, tmp_path / "older")
            nats_server.restart()
            await decided(world, nats_server, late)
            if not alive:
                worker.send_signal(signal.SIGKILL)
                await worker.ended.wait()
            nats_server.kill()
            shutil.rmtree(nats_server.store_dir)
            shutil.copytree(tmp_path / "older", nats_server.store_dir)
            nats_server.restart()
            if not alive:
                worker = await world.spawn()
            await logged(world, worker.number, "published what the streams lacked")
            async with open_observer(nats_server.url) as observer:
                await observer.drained()
                assert await world.drain(worker) == 0
                evidence = await evidence_of(world, [*early, *late], observer)
                assert_holds(attrs.evolve(evidence, received=()))
                names = [
                    message.subject.rsplit(".", 1)[1] for message in evidence.events if "counter" in message.subject
                ]
                assert names == ["added"] * 12


@pytest.mark.parametrize("fault", ["kill", "pause"])
async def test_the_server_goes_and_comes_back(zygote: Zygote, nats_server: PrivateServer, fault: str) -> None:
    """R2: killed in mid-work, or silent for ten seconds: the runtime carries on with nothing lost or doubled."""
    first, rest = adds(1, 20), adds(21, 40, "b")
    async with ProcessWorld(APP, server=nats_server, zygote=zygote, engine={"batch": 1}) as world:
        with trio.fail_after(90):
            async with open_observer(nats_server.url) as observer:
                await observer.send(first)
            worker = await world.spawn()
            await logged(world, 1, "serving")
            if fault == "kill":
                nats_server.kill()
                nats_server.restart()
            else:
                nats_server.pause()
                await trio.sleep(10)
                nats_server.resume()
            await decided(world, nats_server, rest)
            assert await world.drain(worker) == 0
            async with open_observer(nats_server.url) as observer:
                evidence = await evidence_of(world, [*first, *rest], observer)
            assert_holds(attrs.evolve(evidence, received=()))


async def test_a_stream_made_anew_is_refused(zygote: Zygote, nats_server: PrivateServer) -> None:
    """R3: no mark is confirmed, so publishing the whole history would be a guess: exit code 3."""
    async with ProcessWorld(APP, server=nats_server, zygote=zygote) as world:
        with trio.fail_after(60):
            worker = await world.spawn()
            await decided(world, nats_server, adds(1, 3))
            assert await world.drain(worker) == 0
            nats_server.kill()
            shutil.rmtree(nats_server.store_dir)
            nats_server.restart()
            again = await world.spawn()
            await again.ended.wait()
            assert again.status == 3, world.tail(again)
            assert "MESHFORGE_EVENTS was deleted and made anew" in world.tail(again)
            async with open_observer(nats_server.url) as observer:
                assert (await observer.broker.stream_facts("MESHFORGE_EVENTS")).messages == 0


async def test_a_store_older_than_the_stream_is_refused(
    zygote: Zygote, nats_server: PrivateServer, tmp_path: Path
) -> None:
    """R3: with a backup of yesterday the keys of today would be decided a second time: exit code 3."""
    async with ProcessWorld(APP, server=nats_server, zygote=zygote) as world:
        with trio.fail_after(60):
            worker = await world.spawn()
            await decided(world, nats_server, adds(1, 3))
            assert await world.drain(worker) == 0
            shutil.copytree(world.store.parent, tmp_path / "backup")
            worker = await world.spawn()
            await decided(world, nats_server, adds(4, 6))
            assert await world.drain(worker) == 0
            shutil.rmtree(world.store.parent)
            shutil.copytree(tmp_path / "backup", world.store.parent)
            again = await world.spawn()
            await again.ended.wait()
            assert again.status == 3, world.tail(again)
            assert "the store is older than the stream" in world.tail(again)


async def test_an_empty_store_on_used_streams_is_refused(zygote: Zygote, nats_server: PrivateServer) -> None:
    """R3: a mistyped path must not begin every entity anew beside its own history: exit code 3."""
    async with ProcessWorld(APP, server=nats_server, zygote=zygote) as world:
        with trio.fail_after(60):
            worker = await world.spawn()
            await decided(world, nats_server, adds(1, 3))
            assert await world.drain(worker) == 0
            shutil.rmtree(world.store.parent)
            again = await world.spawn()
            await again.ended.wait()
            assert again.status == 3, world.tail(again)
            assert "the store is empty, and MESHFORGE_EVENTS holds events of this scope" in world.tail(again)
