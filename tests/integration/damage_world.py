"""What tests of a damaged or purged broker share: what the stream holds, an operator at work, a server that is down."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import trio

from chaos.evidence import envelope_of
from chaos.rows import Rows, copy_store, read_store
from chaos.world import POLL_S, Worker
from meshforge_trio.broker.api import JetStreamApi
from meshforge_trio.broker.bridge import ConnectOptions, connect
from meshforge_trio.broker.port import Message
from meshforge_trio.comparison import read_all
from meshforge_trio.server import PrivateServer
from meshforge_trio.subjects import EVENTS, FAILED

from .rules_world import Stage

OTHERS = "evt.default.demo.other.said"


async def versions(stage: Stage) -> list[int]:
    """The entity versions in the event stream, in its order; 0 for what no worker published."""
    found = await read_all(await stage.observer.broker(), EVENTS, ">", 1)
    return [envelope_of(message).get("payload", {}).get("entity_version", 0) for message in found]


async def by_agent(stage: Stage) -> dict[str, list[str]]:
    """The Msg-Ids in the event stream by agent, in its order."""
    found: dict[str, list[str]] = {}
    for message in await read_all(await stage.observer.broker(), EVENTS, ">", 1):
        found.setdefault(message.subject.split(".")[3], []).append(message.msg_id)
    return found


async def keys_of_letters(stage: Stage) -> list[str]:
    """The keys in the dead-letter stream, in its order."""
    found = await read_all(await stage.observer.broker(), FAILED, ">", 1)
    return [str(envelope_of(message)["key"]) for message in found]


def rows_of(stage: Stage, name: str) -> Rows:
    """What the store holds now; `name` is that of the copy which is read."""
    copy = stage.world.home / name
    copy.mkdir()
    copy_store(stage.world.store, copy)
    return read_store(copy / "store.db")


async def say(stage: Stage, number: int) -> None:
    """Put an event of another agent into the stream."""
    (ack,) = await (await stage.observer.broker()).publish([Message(OTHERS, b"{}", f"other-{number}")], 5.0)
    assert not ack.error


async def ask(server: PrivateServer, verb: str, body: object = None) -> dict[str, Any]:
    """What an operator asks of JetStream."""
    connection = await connect(ConnectOptions(urls=(server.url,)))
    try:
        reply = await JetStreamApi(connection).request(verb, body)
    finally:
        await connection.aclose()
    assert "error" not in reply, reply
    return reply


async def reached(stage: Stage, worker: Worker, point: str, times: int = 1) -> None:
    """Return when `worker` has come to a point so many times."""
    while stage.world.events.points[worker.name, point] < times:
        assert not worker.ended.is_set(), worker.tail()
        await trio.sleep(POLL_S)
        stage.world.events.look()


async def marked(stage: Stage, worker: Worker) -> None:
    """Return when `worker` has been idle for long enough to have written its mark."""
    stage.world.events.look()
    at = (worker.name, "after_mark")
    marks = -1
    while marks != stage.world.events.points[at] or not marks:
        assert not worker.ended.is_set(), worker.tail()
        marks = stage.world.events.points[at]
        await trio.sleep(0.2)
        stage.world.events.look()


async def stopped(server: PrivateServer) -> None:
    """End the server in good order and leave its store: it writes an index of its streams then."""
    os.kill(server.pid, signal.SIGTERM)
    while server.running:
        await trio.sleep(POLL_S)


async def while_down(
    stage: Stage, server: PrivateServer, worker: Worker, under: str, act: Callable[[], object], *, clean: bool = True
) -> Worker:
    """Do something to the store of a server that is down; return the worker that serves then.

    `under` is "living" for a worker that lives through it, "stopped" for one that was drained before, "killed" for one
    that was killed. `clean` is whether the server ends in good order, with an index of its streams on the disk.
    """
    await marked(stage, worker)
    if under == "stopped":
        assert await stage.world.drain(worker) == 0
    elif under == "killed":
        worker.send_signal(signal.SIGKILL)
        assert await stage.world.ended(worker) == -9
    stage.world.events.look()
    recoveries = stage.world.events.points[worker.name, "after_recovery"]
    if clean:
        await stopped(server)
    server.kill()
    act()
    server.start()
    if under != "living":
        return await stage.served()
    # Each of its scopes has one of its own.
    await reached(stage, worker, "after_recovery", recoveries + stage.world.scopes)
    return worker
