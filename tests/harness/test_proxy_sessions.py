"""What befalls a frame, as the two sides of a broker session see it: a real server, real sessions, every kind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

import attrs
import orjson
import pytest
import trio

from chaos.faults.proxy import ACTIONS, Proxy, open_proxy
from chaos.plan import parse_plan
from meshforge_trio.broker.bridge import ConnectOptions, connect, pub
from meshforge_trio.broker.jetstream import JetStreamBroker, JetStreamConsumer, open_broker
from meshforge_trio.broker.port import ConsumerSpec, Delivery, Message, Settlement, StreamSpec
from meshforge_trio.errors import SessionLost
from meshforge_trio.server import PrivateServer

DEADLINE_S = 20
COMMANDS = StreamSpec("COMMANDS", ("cmd.>",), work_queue=True)
CONSUMER = ConsumerSpec("COMMANDS", "t_consumer", ("cmd.t.>",))
#: A message whose deadline passes soon comes again soon.
IMPATIENT = attrs.evolve(CONSUMER, ack_wait_s=0.5)
SUBJECT = "cmd.t.w.a.do"


@attrs.define(eq=False)
class World:
    """A server with a command stream, one session straight to it, and a proxy."""

    server: PrivateServer
    direct: JetStreamBroker
    proxy: Proxy
    probe_s: float

    def session(self, pull_expires_s: float = 10.0) -> AbstractAsyncContextManager[JetStreamBroker]:
        """A session through the proxy."""
        options = ConnectOptions(urls=(self.proxy.url,), probe_s=self.probe_s)
        return open_broker(options, pull_batch=16, pull_expires_s=pull_expires_s)

    async def stored(self) -> int:
        return (await self.direct.stream_facts("COMMANDS")).messages

    async def delivered(self) -> int:
        """How many deliveries the server has made to anybody since the last reset."""
        info = await self.direct._api.request("CONSUMER.INFO.COMMANDS.t_consumer")
        return int(info["delivered"]["consumer_seq"])

    async def put(self, *bodies: str) -> None:
        """Store commands, past the proxy."""
        await self.direct.publish([Message(SUBJECT, body.encode(), body) for body in bodies], DEADLINE_S)

    async def left(self) -> list[bytes]:
        """What a new session through the proxy is given, in order; it settles all of it."""
        wanted = await self.stored()
        async with self.session() as broker:
            taken = await take(await broker.consume(CONSUMER), wanted, settle=True)
            await until(self.stored, 0)
            return bodies(taken)

    async def given_to_another(self) -> str:
        """What somebody else is given who pulls without waiting and without a reset: a body or a status line."""
        connection = await connect(ConnectOptions(urls=(self.server.url,)))
        send, receive = trio.open_memory_channel[str](1)

        def note(_subject: bytes, _reply: bytes, headers: bytes | None, body: bytes) -> None:
            status = (headers or b"").partition(b"\r\n")[0].decode()
            send.send_nowait(status if status[9:] else body.decode())

        inbox = connection.new_inbox()
        connection.subscribe(inbox, note)
        request = orjson.dumps({"batch": 1, "no_wait": True})
        connection.write(pub("$JS.API.CONSUMER.MSG.NEXT.COMMANDS.t_consumer", inbox, request))
        try:
            return await receive.receive()
        finally:
            await connection.aclose()


@asynccontextmanager
async def through(server: PrivateServer, *rules: str) -> AsyncIterator[World]:
    with trio.fail_after(DEADLINE_S * 2):
        async with AsyncExitStack() as stack:
            direct = await stack.enter_async_context(open_broker(server.url))
            await direct.declare(COMMANDS)
            proxy = await stack.enter_async_context(open_proxy(server.port, parse_plan("; ".join(rules)).rules))
            # Where silence is the fault it is to be noticed soon; elsewhere a busy machine is not to be taken for it.
            probe_s = 0.75 if any(rule.endswith("blackhole") for rule in rules) else 5.0
            yield World(server, direct, proxy, probe_s)
        assert proxy.fired == list(rules)
        assert proxy.misread == []


async def take(consumer: JetStreamConsumer, count: int, *, settle: bool = False) -> list[Delivery]:
    taken: list[Delivery] = []
    while len(taken) < count:
        consumer.pull()
        taken += await consumer.take(count - len(taken))
    if settle:
        consumer.settle([Settlement(delivery) for delivery in taken])
    return taken


def bodies(deliveries: Sequence[Delivery]) -> list[bytes]:
    return [delivery.body for delivery in deliveries]


async def until(number: Callable[[], Awaitable[int]], wanted: int) -> None:
    """The server acts on ACKs in its own time."""
    while await number() != wanted:
        await trio.sleep(0.01)


async def ends_unless_swallowed(broker: JetStreamBroker, action: str) -> None:
    """A swallowed frame leaves the session alive and answered; every other fault ends it."""
    if action == "swallow":
        await broker.stream_facts("COMMANDS")
    else:
        await broker.wait_lost()


@pytest.fixture
async def server(aio_loop: asyncio.AbstractEventLoop, nats_server: PrivateServer) -> PrivateServer:
    """A server, and around the test the loop that sessions need."""
    return nats_server


@pytest.mark.parametrize(
    ("kind", "action", "stored", "acknowledged"),
    [
        ("publish", "cut_before", 0, False),
        ("publish", "cut_after", 1, False),
        ("publish", "swallow", 0, False),
        ("publish", "blackhole", 0, False),
        ("puback", "cut_before", 1, False),
        ("puback", "cut_after", 1, True),
        ("puback", "swallow", 1, False),
        ("puback", "blackhole", 1, False),
    ],
)
async def test_publish_and_puback(
    server: PrivateServer, kind: str, action: str, stored: int, acknowledged: bool
) -> None:
    """A publish that is lost is not stored, one whose PubAck is lost is; sent again it is stored once."""
    message = Message(SUBJECT, b"body", "m1")
    async with through(server, f"proxy:{kind}@1={action}") as world:
        async with world.session() as broker:
            try:
                acks = await broker.publish([message], 0.5 if action == "swallow" else DEADLINE_S)
            except SessionLost:
                acks = []
            assert bool(acks) == acknowledged
            await ends_unless_swallowed(broker, action)
            await until(world.stored, stored)
            if action == "swallow":
                (again,) = await broker.publish([message], DEADLINE_S)
        if action != "swallow":
            async with world.session() as broker:
                (again,) = await broker.publish([message], DEADLINE_S)
        assert again.duplicate == bool(stored)
        assert await world.stored() == 1


async def test_the_answer_to_the_last_frame_before_a_cut_does_not_come_back(server: PrivateServer) -> None:
    """However soon the server answers."""
    rules = [f"proxy:publish@{nth}=cut_after" for nth in range(1, 31)]
    async with through(server, *rules) as world:
        for number in range(len(rules)):
            async with world.session() as broker:
                with pytest.raises(SessionLost):
                    await broker.publish([Message(SUBJECT, b"body", f"m{number}")], DEADLINE_S)
        await until(world.stored, len(rules))


@pytest.mark.parametrize("action", [action for action in ACTIONS if action != "swallow"])
@pytest.mark.parametrize("kind", ["pull", "delivery"])
async def test_pull_and_delivery_on_a_connection_that_breaks(server: PrivateServer, kind: str, action: str) -> None:
    """Whatever was under way comes again to the next session, in order."""
    async with through(server, f"proxy:{kind}@1={action}") as world:
        await world.put("b1", "b2", "b3")
        async with world.session() as broker:
            consumer = await broker.consume(CONSUMER)
            with pytest.raises(SessionLost):
                await take(consumer, 4)
            # Of the deliveries one came through, or none.
            assert consumer._consumer_seq == (1 if (kind, action) == ("delivery", "cut_after") else 0)
        if kind == "pull" and action != "cut_after":
            assert await world.delivered() == 0
        assert await world.left() == [b"b1", b"b2", b"b3"]


async def test_a_swallowed_pull(server: PrivateServer) -> None:
    """Of two pulls that wait at the server one is enough, and the session lives."""
    async with through(server, "proxy:pull@1=swallow") as world:
        await world.put("b1", "b2")
        async with world.session() as broker:
            assert bodies(await take(await broker.consume(CONSUMER), 2, settle=True)) == [b"b1", b"b2"]
            await until(world.stored, 0)
            await ends_unless_swallowed(broker, "swallow")


async def test_without_any_pull_there_is_no_heartbeat(server: PrivateServer) -> None:
    async with through(server, "proxy:pull@1=swallow", "proxy:pull@2=swallow") as world:
        await world.put("b1")
        async with world.session(pull_expires_s=1.0) as broker:
            consumer = await broker.consume(CONSUMER)
            with pytest.raises(SessionLost, match="no heartbeat"):
                await take(consumer, 1)
            assert await world.delivered() == 0
        assert await world.left() == [b"b1"]


async def test_a_swallowed_delivery_shows_as_a_gap(server: PrivateServer) -> None:
    async with through(server, "proxy:delivery@2=swallow") as world:
        await world.put("b1", "b2", "b3")
        async with world.session() as broker:
            consumer = await broker.consume(CONSUMER)
            with pytest.raises(SessionLost, match="delivery 3 of consumer t_consumer came after 1"):
                await take(consumer, 3)
        assert await world.left() == [b"b1", b"b2", b"b3"]


async def test_a_swallowed_delivery_comes_again_when_its_time_is_over(server: PrivateServer) -> None:
    async with through(server, "proxy:delivery@2=swallow") as world:
        await world.put("b1", "b2")
        async with world.session() as broker:
            consumer = await broker.consume(IMPATIENT)
            assert bodies(await take(consumer, 1, settle=True)) == [b"b1"]
            with pytest.raises(SessionLost, match="delivery 3 of consumer t_consumer came after 1"):
                await take(consumer, 1)
        async with world.session() as broker:
            assert bodies(await take(await broker.consume(IMPATIENT), 1, settle=True)) == [b"b2"]
            await until(world.stored, 0)


@pytest.mark.parametrize(
    ("action", "left"),
    [
        ("cut_before", [b"b1", b"b2", b"b3"]),
        ("cut_after", [b"b2", b"b3"]),
        ("swallow", [b"b1", b"b3"]),
        ("blackhole", [b"b1", b"b2", b"b3"]),
    ],
)
async def test_ack(server: PrivateServer, action: str, left: list[bytes]) -> None:
    """A message whose ACK is lost stays in the stream and comes again; of two ACKs, the first meets the fault."""
    async with through(server, f"proxy:ack@1={action}") as world:
        await world.put("b1", "b2", "b3")
        async with world.session() as broker:
            consumer = await broker.consume(CONSUMER)
            taken = await take(consumer, 3)
            consumer.settle([Settlement(delivery) for delivery in taken[:2]])
            await ends_unless_swallowed(broker, action)
            await until(world.stored, len(left))
        assert await world.left() == left


async def test_a_swallowed_ack_makes_the_message_come_again(server: PrivateServer) -> None:
    """To the same session, once its time is over."""
    async with through(server, "proxy:ack@1=swallow") as world:
        await world.put("b1")
        async with world.session() as broker:
            consumer = await broker.consume(IMPATIENT)
            await take(consumer, 1, settle=True)
            (again,) = await take(consumer, 1, settle=True)
            assert (again.body, again.num_delivered) == (b"b1", 2)
            await until(world.stored, 0)


@pytest.mark.parametrize("action", ACTIONS)
async def test_nak(server: PrivateServer, action: str) -> None:
    """A message whose NAK arrived is given to whoever pulls next, without a wait; else it stays where it is."""
    async with through(server, f"proxy:nak@1={action}") as world:
        await world.put("b1")
        async with world.session() as broker:
            consumer = await broker.consume(CONSUMER)
            consumer.settle([Settlement(delivery, 0.0) for delivery in await take(consumer, 1)])
            await ends_unless_swallowed(broker, action)
        if action == "cut_after":
            # Perhaps to a pull of the session that ended, if the server had not noticed its end yet.
            while await world.delivered() == 1:
                await world.given_to_another()
        else:
            assert (await world.given_to_another()).startswith("NATS/1.0 404")
            assert await world.delivered() == 1
        assert await world.left() == [b"b1"]


@pytest.mark.parametrize("action", ACTIONS)
async def test_extend(server: PrivateServer, action: str) -> None:
    """Asking for more time changes nothing but time: the message is settled by this session or comes to the next."""
    async with through(server, f"proxy:extend@1={action}") as world:
        await world.put("b1")
        async with world.session() as broker:
            consumer = await broker.consume(CONSUMER)
            taken = await take(consumer, 1)
            consumer.extend()
            await ends_unless_swallowed(broker, action)
            if action == "swallow":
                consumer.settle([Settlement(delivery) for delivery in taken])
                await until(world.stored, 0)
        assert await world.left() == ([] if action == "swallow" else [b"b1"])


async def test_a_server_that_dies_ends_the_sessions(server: PrivateServer) -> None:
    """And one that has come back is reached through the same proxy."""
    async with open_proxy(server.port) as proxy, open_broker(proxy.url) as one, open_broker(proxy.url) as two:
        with trio.fail_after(DEADLINE_S):
            await one.declare(COMMANDS)
            server.kill()
            await one.wait_lost()
            await two.wait_lost()
            with pytest.raises(SessionLost):
                await open_broker(proxy.url).__aenter__()
            server.restart()
            async with open_broker(proxy.url) as three:
                assert (await three.stream_facts("COMMANDS")).messages == 0


async def test_an_echo_is_no_publish(server: PrivateServer) -> None:
    async with through(server) as world, world.session() as broker:
        broker.echo([Message(SUBJECT, b"b1", "b1")])
        await broker.stream_facts("COMMANDS")
        assert world.proxy.passed == {}
        assert await world.stored() == 0
