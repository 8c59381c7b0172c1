"""What a broker refuses: settings that differ, names that do not exist, messages that would break the connection.

And what only JetStream has.
"""

from __future__ import annotations

import attrs
import pytest
import trio

from meshforge_trio.broker.api import headers_of
from meshforge_trio.broker.bridge import connect, pub
from meshforge_trio.broker.jetstream import JetStreamCommandRouter, JetStreamEventBus, open_broker
from meshforge_trio.broker.port import Broker, Message, StreamSpec
from meshforge_trio.envelope import CommandEnvelope, decode_command
from meshforge_trio.errors import Misconfigured, Poison, SessionLost
from meshforge_trio.server import PrivateServer

from .broker_world import CONSUMER, DEADLINE_S, EVENTS, JetStreamWorld, World, bodies, messages, publish, take


async def test_declare_reports_every_difference_and_changes_nothing(broker: Broker) -> None:
    other = attrs.evolve(EVENTS, duplicate_window_s=7.0, subjects=("evt.>", "more.>"))
    with pytest.raises(Misconfigured) as refused:
        await broker.declare(other)
    assert "duplicate_window is 120000000000, should be 7000000000" in str(refused.value)
    assert "subjects is ['evt.>'], should be ['evt.>', 'more.>']" in str(refused.value)
    assert "nothing was changed" in str(refused.value)
    assert (await broker.declare(EVENTS)).duplicate_window_s == 120


async def test_sessions_may_declare_the_same_stream_at_once(world: World) -> None:
    spec = StreamSpec("TOGETHER", ("together.>",), max_bytes=1 << 20, max_age_s=3600)
    async with world.session() as one, world.session() as two, trio.open_nursery() as nursery:
        for session in (one, two, one, two):
            nursery.start_soon(session.declare, spec)


async def test_a_consumer_with_other_settings_is_refused_but_its_filters_follow(broker: Broker) -> None:
    await publish(broker, [*messages("m", [1]), *messages("n", [2], "cmd.u.w.a.do")])
    await broker.consume(CONSUMER)
    with pytest.raises(Misconfigured, match="ack_wait is 30000000000, should be 5000000000"):
        await broker.consume(attrs.evolve(CONSUMER, ack_wait_s=5.0))
    moved = await broker.consume(attrs.evolve(CONSUMER, filters=("cmd.u.>",)))
    assert bodies(await take(moved, 1)) == [b"body 2"]


async def test_what_does_not_exist_is_named(broker: Broker) -> None:
    with pytest.raises(Misconfigured, match="NONE"):
        await broker.stream_facts("NONE")
    with pytest.raises(Misconfigured, match="NONE"):
        await broker.read_back("NONE", ">", 1, 1)
    with pytest.raises(Misconfigured, match="NONE"):
        await broker.consume(attrs.evolve(CONSUMER, stream="NONE"))


@pytest.mark.parametrize(
    "bad",
    [
        Message("cmd.t.w.a.do", b"x" * (1 << 20), "m"),
        Message("cmd.t.w.a.do", b"", "m\r\nInjected: 1"),
        Message("cmd.t.w.a.do", b"", "m", {"traceparent": "a\nb"}),
        Message("cmd.t.w.a.do", b"", "m", {"traceparent": "\u00e9"}),
        Message("cmd.t w.a.do", b"", "m"),
        Message("", b"", "m"),
    ],
    ids=["oversize", "id", "lf", "non-ascii", "space", "empty"],
)
async def test_what_would_break_the_connection_never_reaches_it(broker: Broker, bad: Message) -> None:
    with pytest.raises(Poison):
        await broker.publish([*messages("m", [1]), bad], DEADLINE_S)
    with pytest.raises(Poison):
        broker.echo([bad])
    assert (await broker.stream_facts("COMMANDS")).messages == 0


# --- JetStream only


async def test_an_answer_that_is_no_puback_ends_the_session(broker: Broker, world: JetStreamWorld) -> None:
    connection = await connect(world.options)
    connection.subscribe("plain.>", lambda _s, reply, _h, _b: connection.write(pub(reply.decode(), "", b"hello")))
    await connection.round_trip(DEADLINE_S)
    with pytest.raises(SessionLost, match="no stream"):
        await broker.publish([Message("plain.a", b"", "m")], DEADLINE_S)
    await connection.aclose()


async def test_a_replicated_stream_is_read_from_its_leader(aio_loop: object, nats_server: PrivateServer) -> None:
    async with open_broker(nats_server.url) as broker:
        await broker.declare(EVENTS)
        await publish(broker, messages("m", range(5), "evt.t.w.a.done"))
        direct = await broker.read_back("EVENTS", "evt.>", 2, 3)
        broker._single_copy["EVENTS"] = False  # no cluster here; the request is the same
        assert await broker.read_back("EVENTS", "evt.>", 2, 3) == direct
        assert await broker.read_back("EVENTS", "evt.>", 6, 3) == []


async def test_the_event_bus_raises_for_a_refusal(broker: Broker) -> None:
    bus = JetStreamEventBus(broker)
    await bus.publish(messages("m", [1], "evt.t.w.a.done"))
    with pytest.raises(Poison, match="10054"):
        await bus.publish([Message("evt.t.w.a.done", b"x" * 20_000, "big")])
    await broker.declare(StreamSpec("SMALL", ("small.>",), max_bytes=500))
    with pytest.raises(SessionLost, match="maximum bytes"):
        await bus.publish([Message("small.s", b"x" * 400, f"m{n}") for n in range(3)])


async def test_the_command_router_sends_under_the_commands_id(broker: Broker) -> None:
    command = CommandEnvelope(
        id="c1",
        tenant="t",
        workspace="w",
        agent="a",
        action="do",
        idempotency_key="k",
        trace_id="0" * 31 + "1",
        span_id="0" * 15 + "1",
    )
    router = JetStreamCommandRouter(broker)
    assert [ack.duplicate for ack in await router.send([command])] == [False]
    assert [ack.duplicate for ack in await router.send([command])] == [True]
    (delivery,) = await take(await broker.consume(CONSUMER), 1)
    assert delivery.subject == "cmd.t.w.a.do"
    assert decode_command(delivery.body) == command
    assert headers_of(delivery.headers)["traceparent"].startswith("00-0000")
