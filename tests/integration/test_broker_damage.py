"""What a damaged, purged or expired event stream holds afterwards: exactly what was lost comes back, in order (R3)."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
import trio

from chaos.faults.blocks import flip_bit, lose_index, truncate_newest_block
from chaos.zygote import Zygote
from meshforge_trio.broker.jetstream import open_broker
from meshforge_trio.broker.port import Message, StreamSpec
from meshforge_trio.server import PrivateServer
from meshforge_trio.subjects import EVENTS, FAILED

from .damage_world import ask, by_agent, keys_of_letters, marked, rows_of, say, stopped, versions, while_down
from .rules_world import ALONE, adds, logged, open_world, sent

BOTH = "chaos.agents:counter_and_audit"
#: A worker that lives through it, one that ended in good order before, one that was killed before.
UNDER = ("living", "stopped", "killed")


@pytest.mark.parametrize("under", UNDER)
@pytest.mark.parametrize("clean", [True, False], ids=["ended", "killed"])
async def test_a_torn_tail_comes_back_in_order(
    zygote: Zygote, nats_server: PrivateServer, tmp_path: Path, under: str, clean: bool
) -> None:
    """Killed, the server finds a shorter stream; ended in good order, one whose last messages seem deleted."""
    async with open_world(tmp_path, nats_server, zygote, ALONE) as stage:
        worker = await stage.served()
        await stage.decided(adds(1, 20))
        worker = await while_down(
            stage,
            nats_server,
            worker,
            under,
            lambda: truncate_newest_block(nats_server.store_dir, EVENTS, 5),
            clean=clean,
        )
        assert await versions(stage) == list(range(1, 21))
        await stage.decided(adds(21, 25))
        assert await stage.world.drain(worker) == 0
        assert await versions(stage) == list(range(1, 26))
        if not clean:
            # Else the sequences go on behind the gap, and old marks name ones that are in it.
            await stage.end()


@pytest.mark.parametrize("under", UNDER)
async def test_a_flipped_bit_costs_one_event_and_it_comes_back(
    zygote: Zygote, nats_server: PrivateServer, tmp_path: Path, under: str
) -> None:
    """With an index the server counts the message and never hands it out; the newest mark is none the wiser."""
    async with open_world(tmp_path, nats_server, zygote, ALONE) as stage:
        worker = await stage.served()
        await stage.decided(adds(1, 20))
        worker = await while_down(
            stage, nats_server, worker, under, lambda: flip_bit(nats_server.store_dir, EVENTS, seq=8)
        )
        assert await versions(stage) == [*range(1, 8), *range(9, 21), 8]
        # Once more over a stream that holds it out of order: nothing is published again.
        worker = await while_down(stage, nats_server, worker, under, lambda: None)
        assert await versions(stage) == [*range(1, 8), *range(9, 21), 8]
        assert await stage.world.drain(worker) == 0


@pytest.mark.parametrize("under", UNDER)
async def test_a_flipped_bit_without_an_index_cuts_the_stream_and_all_comes_back(
    zygote: Zygote, nats_server: PrivateServer, tmp_path: Path, under: str
) -> None:
    async with open_world(tmp_path, nats_server, zygote, ALONE) as stage:
        worker = await stage.served()
        await stage.decided(adds(1, 20))

        def damage() -> None:
            flip_bit(nats_server.store_dir, EVENTS, seq=8)
            lose_index(nats_server.store_dir, EVENTS)

        worker = await while_down(stage, nats_server, worker, under, damage)
        assert await versions(stage) == list(range(1, 21))
        assert await stage.world.drain(worker) == 0
        await stage.end()


async def test_a_repair_that_is_cut_off_goes_on(zygote: Zygote, nats_server: PrivateServer, tmp_path: Path) -> None:
    """Killed between two publishes of the repair: its successor meets the same server, and compares as deep."""
    # The first rule never fires: without one for the first worker there may be none for the second.
    plan = "worker#1:after_ack@1000=kill; worker#2:in_recovery@1=kill"
    async with open_world(tmp_path, nats_server, zygote, ALONE, plan) as stage:
        worker = await stage.served()
        await stage.decided(adds(1, 12))
        await marked(stage, worker)
        assert await stage.world.drain(worker) == 0
        await stopped(nats_server)
        for seq in (3, 5, 8):
            flip_bit(nats_server.store_dir, EVENTS, seq=seq)
        nats_server.start()
        worker = await stage.world.spawn()
        assert await stage.world.ended(worker) == -9
        worker = await stage.served()
        assert await versions(stage) == [1, 2, 4, 6, 7, 9, 10, 11, 12, 3, 5, 8]
        assert await stage.world.drain(worker) == 0


async def test_dead_letters_that_were_lost_come_back_and_deleted_ones_stay_away(
    zygote: Zygote, nats_server: PrivateServer, tmp_path: Path
) -> None:
    async with open_world(tmp_path, nats_server, zygote, ALONE) as stage:
        worker = await stage.served()
        await stage.decided([sent("charge", n, "a", "dead", payload={"amount": 5}) for n in range(1, 5)])
        await marked(stage, worker)
        letters = await keys_of_letters(stage)
        assert sorted(letters) == ["k1", "k2", "k3", "k4"]
        await ask(nats_server, f"STREAM.MSG.DELETE.{FAILED}", {"seq": 2})
        worker = await while_down(
            stage,
            nats_server,
            worker,
            "killed",
            lambda: truncate_newest_block(nats_server.store_dir, FAILED, torn=False),
            clean=False,
        )
        assert await keys_of_letters(stage) == [letters[0], *letters[2:]]
        assert await stage.world.drain(worker) == 0


async def test_a_session_knows_what_its_server_came_up_with(nats_server: PrivateServer, aio_loop: object) -> None:
    """Whoever publishes first must not hide from the next where the stream ended."""
    async with open_broker(nats_server.url) as broker:
        assert (await broker.declare(StreamSpec(EVENTS, ("evt.>",)))).last_seq_found == 0
        await broker.publish([Message("evt.a.b.c.d", b"{}", "one")], 5.0)
        facts = await broker.stream_facts(EVENTS)
        assert (facts.last_seq, facts.last_seq_found) == (1, 0)
    async with open_broker(nats_server.url) as broker:
        assert (await broker.stream_facts(EVENTS)).last_seq_found == 1


async def test_an_older_copy_under_a_stopped_worker(zygote: Zygote, nats_server: PrivateServer, tmp_path: Path) -> None:
    """A worker that ended cleanly starts on a server whose operator restored an older copy of its directory."""
    copy = tmp_path / "copy"
    async with open_world(tmp_path, nats_server, zygote, ALONE) as stage:
        worker = await stage.served()
        await stage.decided(adds(1, 10))
        await marked(stage, worker)
        # Others' deletions behind the last event of the copy: what is missing there was never among them.
        for number in range(11):
            await say(stage, number)
        await ask(nats_server, f"STREAM.PURGE.{EVENTS}", {"filter": "evt.default.demo.other.>", "keep": 1})
        nats_server.pause()
        shutil.copytree(nats_server.store_dir, copy)
        nats_server.resume()
        await stage.decided(adds(11, 20))

        def restore() -> None:
            shutil.rmtree(nats_server.store_dir)
            shutil.copytree(copy, nats_server.store_dir)

        worker = await while_down(stage, nats_server, worker, "stopped", restore)
        assert await versions(stage) == [*range(1, 11), 0, *range(11, 21)]
        assert await stage.world.drain(worker) == 0


@pytest.mark.parametrize("under", UNDER)
@pytest.mark.parametrize(
    ("clean", "torn"), [(True, True), (True, False), (False, True)], ids=["ended", "ended, unnoticed", "killed"]
)
async def test_two_agents_share_the_damage_and_each_mends_its_own(
    zygote: Zygote, nats_server: PrivateServer, tmp_path: Path, under: str, clean: bool, torn: bool
) -> None:
    """What the first has published again hides the end of the stream from the second."""
    async with open_world(tmp_path, nats_server, zygote, BOTH) as stage:
        worker = await stage.served()
        await stage.decided(adds(1, 12))
        before = await by_agent(stage)
        assert sorted(map(len, before.values())) == [12, 12]
        worker = await while_down(
            stage,
            nats_server,
            worker,
            under,
            lambda: truncate_newest_block(nats_server.store_dir, EVENTS, 7, torn=torn),
            clean=clean,
        )
        await stage.observer.drained()
        assert await by_agent(stage) == before
        assert await stage.world.drain(worker) == 0


async def test_what_was_never_published_is_no_deletion(
    zygote: Zygote, nats_server: PrivateServer, tmp_path: Path
) -> None:
    """Somebody deletes another's event where the killed worker would have published: its own is still to come."""
    plan = "worker#1:before_publish@2=kill"
    async with open_world(tmp_path, nats_server, zygote, ALONE, plan) as stage:
        worker = await stage.served()
        await stage.decided(adds(1, 1))
        await marked(stage, worker)
        await stage.observer.send(adds(2, 2))
        assert await stage.world.ended(worker) == -9
        await say(stage, 1)
        await ask(nats_server, f"STREAM.MSG.DELETE.{EVENTS}", {"seq": 2})
        worker = await stage.served()
        assert await versions(stage) == [1, 2]
        assert await stage.world.drain(worker) == 0


async def test_deleted_before_a_mark_spoke_for_it(zygote: Zygote, nats_server: PrivateServer, tmp_path: Path) -> None:
    """Nobody knows that it was published but the server, which takes it for a duplicate: no mark names its sequence."""
    plan = "worker#1:after_publish@2=kill"
    async with open_world(tmp_path, nats_server, zygote, ALONE, plan) as stage:
        worker = await stage.served()
        await stage.decided(adds(1, 1))
        await marked(stage, worker)
        await stage.observer.send(adds(2, 2))
        assert await stage.world.ended(worker) == -9
        await say(stage, 1)
        await ask(nats_server, f"STREAM.MSG.DELETE.{EVENTS}", {"seq": 2})
        worker = await stage.served()
        assert await versions(stage) == [1, 0]
        assert await stage.world.drain(worker) == 0
        assert {mark.event_seq for mark in rows_of(stage, "copy").marks} == {0, 1}


# -- given up, not lost --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("under", UNDER)
async def test_a_purged_stream_stays_empty(
    zygote: Zygote, nats_server: PrivateServer, tmp_path: Path, under: str
) -> None:
    async with open_world(tmp_path, nats_server, zygote, ALONE) as stage:
        worker = await stage.served()
        await stage.decided(adds(1, 20))
        await marked(stage, worker)
        await ask(nats_server, f"STREAM.PURGE.{EVENTS}")
        worker = await while_down(stage, nats_server, worker, under, lambda: None)
        assert await versions(stage) == []
        await stage.decided(adds(21, 22))
        worker = await while_down(stage, nats_server, worker, under, lambda: None)
        assert await versions(stage) == [21, 22]
        assert await stage.world.drain(worker) == 0


@pytest.mark.parametrize("under", UNDER)
async def test_what_was_deleted_among_others_stays_away(
    zygote: Zygote, nats_server: PrivateServer, tmp_path: Path, under: str
) -> None:
    """By subject and one by one, while others' events stay; what is flipped beside it comes back alone."""
    async with open_world(tmp_path, nats_server, zygote, ALONE) as stage:
        worker = await stage.served()
        await say(stage, 1)
        await stage.decided(adds(1, 10))
        await say(stage, 2)
        await marked(stage, worker)
        await ask(nats_server, f"STREAM.PURGE.{EVENTS}", {"filter": "evt.default.demo.counter.>"})
        worker = await while_down(stage, nats_server, worker, under, lambda: None)
        assert await versions(stage) == [0, 0]
        await stage.decided(adds(11, 20))
        await marked(stage, worker)
        await ask(nats_server, f"STREAM.MSG.DELETE.{EVENTS}", {"seq": 16})
        worker = await while_down(
            stage, nats_server, worker, under, lambda: flip_bit(nats_server.store_dir, EVENTS, seq=19)
        )
        assert await versions(stage) == [0, 0, *[n for n in range(11, 21) if n not in (14, 17)], 17]
        assert await stage.world.drain(worker) == 0


async def test_deleted_at_the_end_of_a_living_server_stays_away(
    zygote: Zygote, nats_server: PrivateServer, tmp_path: Path
) -> None:
    """The server has not restarted, so it has lost nothing: not even when the worker was killed."""
    async with open_world(tmp_path, nats_server, zygote, ALONE) as stage:
        worker = await stage.served()
        await say(stage, 1)
        await stage.decided(adds(1, 10))
        await marked(stage, worker)
        await ask(nats_server, f"STREAM.PURGE.{EVENTS}", {"filter": "evt.default.demo.counter.>"})
        worker.send_signal(signal.SIGKILL)
        assert await stage.world.ended(worker) == -9
        worker = await stage.served()
        assert await versions(stage) == [0]
        await logged(worker, "purged or expired")
        assert await stage.world.drain(worker) == 0


@pytest.mark.parametrize("under", UNDER)
async def test_what_expired_stays_away(zygote: Zygote, nats_server: PrivateServer, tmp_path: Path, under: str) -> None:
    """By age: the operator lets the stream expire what is older than a second for a while."""
    async with open_world(tmp_path, nats_server, zygote, ALONE) as stage:
        worker = await stage.served()
        await stage.decided(adds(1, 10))
        await marked(stage, worker)
        config = (await ask(nats_server, f"STREAM.INFO.{EVENTS}"))["config"]
        window = {"max_age": 1_000_000_000, "duplicate_window": 1_000_000_000}
        await ask(nats_server, f"STREAM.UPDATE.{EVENTS}", {**config, **window})
        while await versions(stage):
            await trio.sleep(0.05)
        await ask(nats_server, f"STREAM.UPDATE.{EVENTS}", config)
        await stage.decided(adds(11, 12))
        worker = await while_down(stage, nats_server, worker, under, lambda: None)
        assert await versions(stage) == [11, 12]
        assert await stage.world.drain(worker) == 0
