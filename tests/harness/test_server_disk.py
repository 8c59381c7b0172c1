"""The disk of a nats-server: what is damaged, what a full one takes, and that it is as before afterwards."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from chaos.faults import server_disk as module
from chaos.faults.blocks import BlockError
from chaos.faults.server_disk import Damage, RoomError, damage, no_room, stop_writes
from meshforge_trio.broker.jetstream import JetStreamBroker, open_broker
from meshforge_trio.broker.port import Message, PubAck
from meshforge_trio.config import EngineSettings
from meshforge_trio.engine import stream_specs
from meshforge_trio.errors import SessionLost
from meshforge_trio.server import PrivateServer
from meshforge_trio.subjects import COMMANDS, EVENTS, FAILED

SUBJECTS = {COMMANDS: "cmd.t.w.a.add", EVENTS: "evt.t.w.a.added", FAILED: "failed.cmd.t.w.a.add"}
NO_ROOM = 10023


async def fill(server: PrivateServer, **counts: int) -> None:
    """The three streams, with so many messages in `events`, `failed` and `commands`."""
    names = {"events": EVENTS, "failed": FAILED, "commands": COMMANDS}
    async with open_broker(server.url) as broker:
        for spec in stream_specs(EngineSettings()):
            await broker.declare(spec)
        for name, count in counts.items():
            stream = names[name]
            await broker.publish([Message(SUBJECTS[stream], b"x" * 50, f"{stream}-{n}") for n in range(count)], 5.0)


async def ended_in_order(server: PrivateServer) -> None:
    os.kill(server.pid, signal.SIGTERM)
    while server.running:
        await trio.sleep(0.01)


async def held(server: PrivateServer, stream: str) -> list[int]:
    async with open_broker(server.url) as broker:
        return [message.seq for message in await broker.read_back(stream, ">", 1, 100)]


async def publish(broker: JetStreamBroker, name: str, timeout_s: float = 5.0) -> PubAck:
    (ack,) = await broker.publish([Message(SUBJECTS[EVENTS], b"y", name)], timeout_s)
    return ack


@pytest.mark.parametrize(
    ("how", "events", "failed"),
    [("truncate", [1, 2, 3, 4], []), ("flip", [1, 2], []), ("rot", [1, 2, 4, 5], [])],
)
async def test_what_is_left_of_damaged_streams(
    aio_loop: asyncio.AbstractEventLoop,
    nats_server: PrivateServer,
    how: Damage,
    events: Sequence[int],
    failed: Sequence[int],
) -> None:
    await fill(nats_server, events=5, failed=1, commands=3)
    if how == "rot":
        await ended_in_order(nats_server)
    else:
        nats_server.kill()
    assert damage(nats_server.store_dir, how) == {EVENTS: 5 if how == "truncate" else 3, FAILED: 1}
    nats_server.start()
    assert await held(nats_server, EVENTS) == events
    assert await held(nats_server, FAILED) == failed
    assert await held(nats_server, COMMANDS) == [1, 2, 3]


async def test_a_stream_that_holds_nothing_cannot_be_damaged(
    aio_loop: asyncio.AbstractEventLoop, nats_server: PrivateServer
) -> None:
    await fill(nats_server, failed=1)
    nats_server.kill()
    with pytest.raises(BlockError, match=EVENTS):
        damage(nats_server.store_dir, "truncate")
    nats_server.start()
    assert await held(nats_server, FAILED) == [1]


async def test_letters_are_spared_where_there_are_none(
    aio_loop: asyncio.AbstractEventLoop, nats_server: PrivateServer
) -> None:
    await fill(nats_server, events=2)
    nats_server.kill()
    assert damage(nats_server.store_dir, "flip") == {EVENTS: 2}


async def test_nothing_is_written_until_another_process_serves(
    aio_loop: asyncio.AbstractEventLoop, nats_server: PrivateServer
) -> None:
    """The same as of a disk that is full: no answer to a publish, even when there is space again."""
    await fill(nats_server, events=2)
    async with open_broker(nats_server.url) as broker:
        stop_writes(nats_server.pid)
        with pytest.raises(SessionLost, match="1 of 1 PubAcks missing"):
            await publish(broker, "lost", 0.3)
        assert (await broker.stream_facts(EVENTS)).messages == 2
    nats_server.kill()
    nats_server.start()
    async with open_broker(nats_server.url) as broker:
        assert (await publish(broker, "taken")).seq == 3


async def test_a_server_without_room_refuses_and_takes_again(
    aio_loop: asyncio.AbstractEventLoop, tmp_path: Path
) -> None:
    with PrivateServer(max_file_store=8 << 20) as server:
        await fill(server, events=2)
        async with open_broker(server.url) as broker:
            async with no_room(server.url):
                assert (await publish(broker, "refused")).error_code == NO_ROOM
            assert (await publish(broker, "taken")).seq == 3
            # Nothing of it is left, however its block ends.
            with trio.move_on_after(0.2) as waited:
                async with no_room(server.url):
                    await trio.sleep_forever()
            assert waited.cancelled_caught
            assert (await publish(broker, "taken too")).seq == 4
        assert await held(server, EVENTS) == [1, 2, 3, 4]


async def test_a_server_that_takes_too_much_is_not_filled(
    aio_loop: asyncio.AbstractEventLoop, nats_server: PrivateServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FILLED_MAX", 8 << 20)
    with pytest.raises(RoomError, match="takes more than 8 MiB"):
        async with no_room(nats_server.url):
            pytest.fail("there is room")
    await fill(nats_server, events=1)
    assert await held(nats_server, EVENTS) == [1]
