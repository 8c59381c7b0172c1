"""The observer: it sends until it is answered, hears while it is connected, and says when it was deaf."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from chaos.evidence import Sent
from chaos.faults.server_disk import no_room
from chaos.history import VERSION, History, Record, read_history
from chaos.observer import Observer, open_observer, resent
from chaos.workload import SCOPE, command, trespass
from meshforge_trio.broker.jetstream import JetStreamBroker, open_broker
from meshforge_trio.broker.port import Consumer, ConsumerSpec, Message, Settlement
from meshforge_trio.errors import Misconfigured, SessionLost
from meshforge_trio.server import PrivateServer
from meshforge_trio.subjects import COMMANDS, EVENTS, Scope

DEADLINE_S = 60
EVENT = "evt.default.demo.counter.added"


def adds(first: int, last: int, scope: Scope = SCOPE) -> list[Sent]:
    return [Sent(command(scope, "add", n, {"amount": n}, entity_id="a")) for n in range(first, last + 1)]


@asynccontextmanager
async def observing(server: PrivateServer, home: Path, window_s: float = 120.0) -> AsyncIterator[Observer]:
    history = History.open(home / "history.jsonl", "client")
    history.write("header", version=VERSION, scenario="s", plan="", app="a")
    with trio.fail_after(DEADLINE_S):
        async with open_observer(server.url, history=history, duplicate_window_s=window_s) as observer:
            yield observer
    history.close()


def told(home: Path, *kinds: str) -> list[Record]:
    return [record for record in read_history(home / "history.jsonl") if record.kind in kinds]


async def sequences(observer: Observer, stream: str = COMMANDS) -> list[str]:
    """The Msg-Ids in a stream."""
    return [message.msg_id for message in await (await observer.broker()).read_back(stream, ">", 1, 100)]


# -- sending -------------------------------------------------------------------------------------------------------


async def test_what_is_sent_is_stored_in_order_and_written_down(
    aio_loop: object, nats_server: PrivateServer, tmp_path: Path
) -> None:
    other = Scope("other", "demo", "counter")
    sent = [*adds(1, 2), *adds(1, 1, other), trespass(SCOPE, other, 9)]
    async with observing(nats_server, tmp_path) as observer:
        await observer.send(sent)
        await observer.send([])
        assert await sequences(observer) == [
            "default/demo/counter/c1",
            "default/demo/counter/c2",
            # The same id in another scope is another message.
            "other/demo/counter/c1",
            "default/demo/counter/c9",
        ]
    sends = told(tmp_path, "send")
    assert [(r["id"], r["key"], r["subject"], r["phase"]) for r in sends] == [
        (each.command.id, each.key, each.subject, "main") for each in sent
    ]
    assert [(r["id"], r["seq"]) for r in told(tmp_path, "ok")] == [("c1", 1), ("c2", 2), ("c1", 3), ("c9", 4)]


async def test_what_was_not_answered_is_sent_again_and_stored_once(
    aio_loop: object, nats_server: PrivateServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = JetStreamBroker.publish
    times: list[int] = []

    async def lose_the_answer(broker: JetStreamBroker, messages: list[Message], timeout_s: float) -> object:
        acks = await publish(broker, messages, timeout_s)
        times.append(len(acks))
        if len(times) == 1:
            raise SessionLost("the answer was lost")
        return acks

    monkeypatch.setattr(JetStreamBroker, "publish", lose_the_answer)
    async with observing(nats_server, tmp_path) as observer:
        await observer.send(adds(1, 2))
        assert len(await sequences(observer)) == 2
    assert times == [2, 2]
    course = [(r.kind, r["id"]) for r in told(tmp_path, "unknown", "ok")]
    assert course == [("unknown", "c1"), ("unknown", "c2"), ("ok", "c1"), ("ok", "c2")]


async def test_what_finds_no_room_is_sent_again_until_there_is(
    aio_loop: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = JetStreamBroker.publish
    refused = trio.Event()

    async def noted(broker: JetStreamBroker, messages: list[Message], timeout_s: float) -> object:
        acks = await publish(broker, messages, timeout_s)
        if messages[0].subject.startswith("cmd.") and any(ack.error for ack in acks):
            refused.set()
        return acks

    monkeypatch.setattr(JetStreamBroker, "publish", noted)
    with PrivateServer(max_file_store=8 << 20) as server:
        async with observing(server, tmp_path) as observer, trio.open_nursery() as nursery, no_room(server.url):
            nursery.start_soon(observer.send, adds(1, 2))
            await refused.wait()
            assert told(tmp_path, "ok", "failed", "unknown") == []
        assert [(record.kind, record["seq"]) for record in told(tmp_path, "ok", "failed", "unknown")] == [
            ("ok", 1),
            ("ok", 2),
        ]


async def test_a_stream_that_refuses_is_an_error(aio_loop: object, nats_server: PrivateServer, tmp_path: Path) -> None:
    async with observing(nats_server, tmp_path) as observer:
        await _shrink(observer)
        with pytest.raises(RuntimeError, match="the command stream refused c1"):
            await observer.send(adds(1, 2))
    (failed,) = told(tmp_path, "failed")
    assert failed["id"] == "c1"
    assert failed["reason"]


async def _shrink(observer: Observer) -> None:
    """Have the command stream take nothing longer than 10 bytes."""
    assert observer._api is not None
    config = (await observer._api.request(f"STREAM.INFO.{COMMANDS}"))["config"]
    await observer._api.request(f"STREAM.UPDATE.{COMMANDS}", {**config, "max_msg_size": 10})


def test_the_same_command_again_has_a_new_id_only() -> None:
    (sent,) = adds(1, 1)
    again = resent(sent, 7)
    assert (again.command.id, again.key, again.digest) == ("c1-again7", sent.key, sent.digest)
    assert resent(again, 8).command.id != again.command.id
    wrong = trespass(SCOPE, Scope("other", "demo", "counter"), 9)
    assert resent(wrong, 1).key == "trespass-9", "it is known by what its sender says, not by its envelope"


# -- hearing -------------------------------------------------------------------------------------------------------


async def test_what_core_subscribers_are_sent_is_written_down(
    aio_loop: object, nats_server: PrivateServer, tmp_path: Path
) -> None:
    heard: list[str] = []
    async with observing(nats_server, tmp_path) as observer, open_observer(nats_server.url, hear=heard.append) as plain:
        broker = await observer.broker()
        await broker.publish([Message(EVENT, b"text", "m1"), Message(EVENT, b"\xff\n", "m2")], 5.0)
        broker.echo([Message(EVENT, b"text", "m1")])
        for each in (observer, plain):
            await each.caught_up()
            while len(each.received) < 3:
                await trio.sleep(0.01)
        assert observer.received == plain.received == [("m1", b"text"), ("m2", b"\xff\n"), ("m1", b"text")]
    assert heard == ["m1", "m2", "m1"]
    records = told(tmp_path, "heard")
    assert [r.fields.get("body", r.fields.get("body_base64")) for r in records] == ["text", "/wo=", "text"]
    assert {r["subject"] for r in records} == {EVENT}


async def test_it_outlives_the_server(aio_loop: object, nats_server: PrivateServer, tmp_path: Path) -> None:
    async with observing(nats_server, tmp_path) as observer:
        await observer.send(adds(1, 1))
        nats_server.kill()
        async with trio.open_nursery() as nursery:
            # While there is no server it waits.
            nursery.start_soon(observer.send, adds(2, 2))
            nursery.start_soon(observer.caught_up)
            await trio.sleep(0.1)
            nats_server.restart()
        assert len(await sequences(observer)) == 2
        before = len(observer.received)
        await (await observer.broker()).publish([Message(EVENT, b"x", "m1")], 5.0)
        while len(observer.received) == before:
            await trio.sleep(0.01)
    kinds = [record.kind for record in told(tmp_path, "listening", "deaf")]
    assert kinds == ["listening", "deaf", "listening"]
    assert told(tmp_path, "deaf")[0]["reason"]


async def test_a_server_that_never_was(aio_loop: object) -> None:
    with trio.fail_after(DEADLINE_S), pytest.raises(SessionLost):
        async with open_observer("nats://127.0.0.1:1"):
            pass


async def test_streams_of_another_kind(aio_loop: object, nats_server: PrivateServer, tmp_path: Path) -> None:
    async with observing(nats_server, tmp_path) as observer:
        assert observer._api is not None
        await observer._api.request(f"STREAM.DELETE.{COMMANDS}")
        await observer._api.request(f"STREAM.CREATE.{COMMANDS}", {"name": COMMANDS, "subjects": ["cmd.>"]})
    with trio.fail_after(DEADLINE_S), pytest.raises(Misconfigured):
        async with open_observer(nats_server.url):
            pass


# -- seeing --------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def consuming(
    server: PrivateServer, stream: str, filter_: str
) -> AsyncIterator[tuple[JetStreamBroker, Consumer]]:
    """A consumer as engines have them."""
    async with open_broker(server.url) as broker:
        spec = ConsumerSpec(stream, f"{stream}-test", (filter_,))
        yield broker, await broker.consume(spec)


async def test_what_is_not_decided_is_named(aio_loop: object, nats_server: PrivateServer, tmp_path: Path) -> None:
    async with observing(nats_server, tmp_path) as observer:
        assert await observer.pending() == []
        await observer.drained()
        await observer.send(adds(1, 3))
        assert await observer.pending() == [f"3 messages in {COMMANDS}"]
        async with consuming(nats_server, EVENTS, EVENT) as (broker, consumer):
            await broker.publish([Message(EVENT, b"x", f"m{n}") for n in range(2)], 5.0)
            assert await observer.pending() == [f"3 messages in {COMMANDS}", f"2 events for {EVENTS}-test"]
            assert await observer.in_hand() == 0
            consumer.pull()
            deliveries = await consumer.take(1)
            while len(deliveries) < 2:
                deliveries = [*deliveries, *await consumer.take(1)]
            assert await observer.in_hand() == 2
            consumer.settle([Settlement(delivery) for delivery in deliveries])
            while await observer.in_hand():
                await trio.sleep(0.01)
            assert await observer.pending() == [f"3 messages in {COMMANDS}"]


async def test_waiting_ends_with_what_it_waits_for_or_before(
    aio_loop: object, nats_server: PrivateServer, tmp_path: Path
) -> None:
    async with observing(nats_server, tmp_path) as observer:
        ended, never = trio.Event(), trio.Event()
        await observer.drained_or(never)
        await observer.send(adds(1, 1))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(observer.drained_or, never, ended)
            await trio.sleep(0.1)
            assert nursery.child_tasks
            ended.set()


async def test_nothing_is_left_for_another_run(aio_loop: object, nats_server: PrivateServer, tmp_path: Path) -> None:
    async with observing(nats_server, tmp_path) as observer:
        await observer.send(adds(1, 2))
        await observer.forget()
    async with open_observer(nats_server.url, duplicate_window_s=0.5) as observer:
        assert await sequences(observer) == []
        facts = await (await observer.broker()).stream_facts(COMMANDS)
        assert facts.duplicate_window_s == 0.5
