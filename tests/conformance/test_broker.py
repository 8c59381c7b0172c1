"""What every broker must do: B1 to B9 of `broker/port.py`, through the port alone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import attrs
import pytest
import trio
import trio.testing

from meshforge_trio.broker.api import headers_of
from meshforge_trio.broker.port import Broker, Consumer, ConsumerSpec, Message, Settlement
from meshforge_trio.errors import SessionLost

from .broker_world import (
    CONSUMER,
    DEADLINE_S,
    EVENTS,
    World,
    ack,
    bodies,
    lost_in_take,
    messages,
    messages_left,
    publish,
    take,
    until,
)

# --- B1: a delivery that is not settled comes again


async def test_b1_an_unsettled_delivery_comes_again_when_ack_wait_has_passed(broker: Broker) -> None:
    await publish(broker, messages("m", [1, 2]))
    consumer = await broker.consume(attrs.evolve(CONSUMER, ack_wait_s=0.2))
    first, second = await take(consumer, 2)
    consumer.settle(ack([first]))
    (again,) = await take(consumer, 1)
    assert (again.body, again.stream_seq, again.num_delivered) == (second.body, second.stream_seq, 2)


async def test_b1_unsettled_deliveries_come_again_at_once_in_the_next_session(broker: Broker, world: World) -> None:
    await publish(broker, messages("m", range(5)))
    consumer = await broker.consume(CONSUMER)
    taken = await take(consumer, 5)
    await broker.close()
    async with world.session() as next_session:
        again = await take(await next_session.consume(CONSUMER), 5)
    assert bodies(again) == bodies(taken)


async def test_b1_a_nak_with_delay_comes_again_and_an_ack_does_not(broker: Broker) -> None:
    await publish(broker, messages("m", [1, 2, 3]))
    consumer = await broker.consume(CONSUMER)
    one, two, three = await take(consumer, 3)
    consumer.settle([Settlement(one), Settlement(two, delay_s=0.05), Settlement(three, delay_s=0)])
    again = await take(consumer, 2)
    assert sorted(bodies(again)) == [b"body 2", b"body 3"]
    consumer.settle(ack(again))
    await until(partial(messages_left, broker, "COMMANDS"), 0)


# --- B2: after a reset, stream order, and counting from 1


async def test_b2_after_reset_the_old_come_in_stream_order_before_the_new(broker: Broker, world: World) -> None:
    await publish(broker, messages("m", range(1, 11)))
    consumer = await broker.consume(CONSUMER)
    assert consumer.delivered_seq == 0
    taken = await take(consumer, 10)
    consumer.settle(ack([taken[1], taken[4]]))
    consumer.settle([Settlement(taken[0], delay_s=300)])
    await until(partial(world.unsettled, CONSUMER), 8)
    await broker.close()
    async with world.session() as next_session:
        await publish(next_session, messages("new", [11, 12]))
        consumer = await next_session.consume(CONSUMER)
        assert consumer.delivered_seq == 10
        again = await take(consumer, 10)
    assert [delivery.stream_seq for delivery in again] == [1, 3, 4, 6, 7, 8, 9, 10, 11, 12]
    assert [delivery.consumer_seq for delivery in again] == list(range(1, 11))
    assert {delivery.num_delivered for delivery in again} == {1}


async def test_b2_on_a_stream_that_keeps_messages_nothing_below_the_ack_floor_comes_again(
    broker: Broker, world: World
) -> None:
    spec = ConsumerSpec("EVENTS", "reader", ("evt.>",))
    await publish(broker, messages("m", range(1, 7), "evt.t.w.a.done"))
    consumer = await broker.consume(spec)
    taken = await take(consumer, 6)
    consumer.settle(ack(taken[:3]))
    await until(partial(world.unsettled, spec), 3)
    await broker.close()
    async with world.session() as next_session:
        again = await take(await next_session.consume(spec), 3)
    assert [delivery.stream_seq for delivery in again] == [4, 5, 6]


# --- B3: somebody else pulls


async def test_b3_a_stolen_delivery_ends_the_session(broker: Broker, world: World) -> None:
    await publish(broker, messages("m", range(10)))
    consumer = await broker.consume(CONSUMER)
    await world.steal(CONSUMER, 3)
    assert "somebody else" in await lost_in_take(consumer)


async def test_b3_a_reset_by_somebody_else_ends_the_session(broker: Broker, world: World) -> None:
    await publish(broker, messages("m", range(10)))
    consumer = await broker.consume(CONSUMER)
    await take(consumer, 4)
    async with world.session() as other:
        await other.consume(CONSUMER)
        assert "somebody else" in await lost_in_take(consumer)


# --- B4: PubAcks


async def test_b4_pubacks_come_in_order_and_a_repeated_msg_id_is_stored_once(broker: Broker) -> None:
    first = await publish(broker, messages("m", range(300), "evt.t.w.a.done"))
    assert [ack.seq for ack in first] == list(range(1, 301))
    assert {(ack.stream, ack.duplicate) for ack in first} == {("EVENTS", False)}
    again = await publish(broker, messages("m", [7, 300, 8], "evt.t.w.a.other"))
    assert [(ack.seq, ack.duplicate) for ack in again] == [(8, True), (301, False), (9, True)]
    assert (await broker.stream_facts("EVENTS")).messages == 301


async def test_b4_a_refusal_is_a_puback_and_leaves_the_rest_of_the_batch_alone(broker: Broker) -> None:
    batch = messages("m", [1, 2, 3], "evt.t.w.a.done")
    batch[1] = attrs.evolve(batch[1], body=b"x" * 20_000)
    one, two, three = await broker.publish(batch, DEADLINE_S)
    assert (one.seq, three.seq) == (1, 2)
    assert (two.seq, two.error_code) == (0, 10054)
    assert two.error


async def test_b4_headers_travel(broker: Broker) -> None:
    await publish(broker, [Message("cmd.t.w.a.do", b"", "m1", {"traceparent": "00-aa-bb-01"})])
    (delivery,) = await take(await broker.consume(CONSUMER), 1)
    assert headers_of(delivery.headers) == {"Nats-Msg-Id": "m1", "traceparent": "00-aa-bb-01"}
    assert delivery.body == b""


async def test_b4_batches_published_at_once_get_their_own_answers(broker: Broker) -> None:
    answers: dict[str, list[int]] = {}

    async def one(prefix: str) -> None:
        acks = await publish(broker, messages(prefix, range(50), "evt.t.w.a.done"))
        answers[prefix] = [ack.seq for ack in acks]

    async with trio.open_nursery() as nursery:
        for prefix in "abc":
            nursery.start_soon(one, prefix)
    stored = await broker.read_back("EVENTS", "evt.>", 1, 1000)
    for prefix, seqs in answers.items():
        assert [message.seq for message in stored if message.msg_id.startswith(prefix)] == seqs


async def test_b4_nothing_to_publish_is_nothing(broker: Broker) -> None:
    assert await broker.publish([], DEADLINE_S) == []


# --- B5: unknown outcomes


async def test_b5_a_missing_answer_is_session_lost_and_a_late_one_confuses_nobody(broker: Broker, world: World) -> None:
    world.pause()
    with pytest.raises(SessionLost, match="missing"):
        await broker.publish(messages("late", range(5), "evt.t.w.a.done"), 0.05)
    world.resume()
    acks = await publish(broker, messages("m", range(5), "evt.t.w.a.done"))
    assert [ack.seq for ack in acks] == [6, 7, 8, 9, 10]


async def test_b5_no_stream_for_the_subject(broker: Broker) -> None:
    with pytest.raises(SessionLost, match=r"nobody\.listens"):
        await broker.publish([Message("nobody.listens", b"", "m")], DEADLINE_S)


# --- B6: echo


async def test_b6_an_echo_is_heard_and_not_stored(broker: Broker, world: World) -> None:
    first, second = messages("m", [1, 2], "evt.t.w.a.done")
    await publish(broker, [first])
    async with world.listener("evt.t.>") as heard:
        broker.echo([first, second])
        with trio.fail_after(DEADLINE_S):
            assert [await heard.receive(), await heard.receive()] == [("m1", b"body 1"), ("m2", b"body 2")]
    (ack,) = await publish(broker, [second])
    assert (ack.seq, ack.duplicate) == (2, False)


# --- B7: settle


async def test_b7_the_last_verdict_on_a_delivery_counts(broker: Broker) -> None:
    await publish(broker, messages("m", range(300)))
    consumer = await broker.consume(CONSUMER)
    taken = await take(consumer, 300)
    consumer.settle([Settlement(delivery, delay_s=300) for delivery in taken])
    consumer.settle(ack(taken))
    await until(partial(messages_left, broker, "COMMANDS"), 0)
    facts = await broker.stream_facts("COMMANDS")
    assert (facts.first_seq, facts.last_seq) == (301, 300)


# --- B8: reading back


async def test_b8_read_back_returns_every_message_of_the_filter_in_order(broker: Broker) -> None:
    agents = ("a", "b", "b")
    batch = [Message(f"evt.t.w.{agents[n % 3]}.done", b"%d" % n, f"m{n}") for n in range(900)]
    await publish(broker, batch)
    stored = await broker.read_back("EVENTS", "evt.t.w.b.>", 1, 10_000)
    wanted = [(n + 1, m.subject, m.msg_id, m.body) for n, m in enumerate(batch) if m.subject == "evt.t.w.b.done"]
    assert [(m.seq, m.subject, m.msg_id, m.body) for m in stored] == wanted
    assert len(wanted) == 600
    part = await broker.read_back("EVENTS", "evt.t.w.b.>", 400, 300)
    assert list(part) == [m for m in stored if m.seq >= 400][:300]


async def test_b8_a_purged_prefix_an_empty_rest_and_a_foreign_filter(broker: Broker, world: World) -> None:
    await publish(broker, messages("m", range(10), "evt.t.w.a.done"))
    await world.purge("EVENTS", 6)
    facts = await broker.stream_facts("EVENTS")
    assert (facts.first_seq, facts.last_seq, facts.messages) == (6, 10, 5)
    assert [m.seq for m in await broker.read_back("EVENTS", "evt.>", 1, 100)] == [6, 7, 8, 9, 10]
    assert list(await broker.read_back("EVENTS", "evt.>", 11, 100)) == []
    assert list(await broker.read_back("EVENTS", "evt.other.>", 1, 100)) == []
    await world.purge("EVENTS", 11)
    facts = await broker.stream_facts("EVENTS")
    assert facts.first_seq == facts.last_seq + 1 == 11


# --- B9: the end of a session


async def _take(broker: Broker, consumer: Consumer) -> None:
    while True:
        consumer.pull()
        await consumer.take(1)


async def _publish(broker: Broker, consumer: Consumer) -> None:
    await broker.publish(messages("x", range(3)), DEADLINE_S)


async def _stream_facts(broker: Broker, consumer: Consumer) -> None:
    await broker.stream_facts("EVENTS")


async def _read_back(broker: Broker, consumer: Consumer) -> None:
    await broker.read_back("EVENTS", "evt.>", 1, 10)


async def _declare(broker: Broker, consumer: Consumer) -> None:
    await broker.declare(EVENTS)


async def _consume(broker: Broker, consumer: Consumer) -> None:
    await broker.consume(CONSUMER)


@pytest.mark.parametrize("call", [_take, _publish, _stream_facts, _read_back, _declare, _consume])
@pytest.mark.parametrize("fault", ["kill", "close"])
async def test_b9_every_waiting_call_ends_with_the_session(
    broker: Broker, world: World, call: Callable[[Broker, Consumer], Awaitable[None]], fault: str
) -> None:
    consumer = await broker.consume(CONSUMER)
    world.pause()  # so that the call waits for an answer when the session ends
    outcome: list[str] = []

    async def waiting() -> None:
        try:
            await call(broker, consumer)
        except SessionLost as lost:
            outcome.append(str(lost))

    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(waiting)
            await trio.testing.wait_all_tasks_blocked()
            if fault == "kill":
                world.kill()
            else:
                await broker.close()
        assert outcome == [await broker.wait_lost()]


async def test_b9_every_later_call_says_so(broker: Broker, world: World) -> None:
    await publish(broker, messages("m", [1]))
    consumer = await broker.consume(CONSUMER)
    (delivery,) = await take(consumer, 1)
    world.kill()
    with trio.fail_after(DEADLINE_S):
        assert await broker.wait_lost()
    waiting = [partial(call, broker, consumer) for call in (_take, _publish, _stream_facts, _declare, _consume)]
    for wait in waiting:
        with pytest.raises(SessionLost):
            await wait()
    direct: list[Callable[[], None]] = [
        consumer.pull,
        consumer.extend,
        lambda: consumer.settle(ack([delivery])),
        lambda: broker.echo(messages("m", [1])),
    ]
    for call in direct:
        with pytest.raises(SessionLost):
            call()


async def test_b9_a_server_that_hangs_ends_the_session(broker: Broker, world: World) -> None:
    world.pause()
    with trio.fail_after(DEADLINE_S):
        assert "not answered" in await broker.wait_lost()


async def test_b9_closing_while_the_server_hangs_does_not_hang(broker: Broker, world: World) -> None:
    consumer = await broker.consume(CONSUMER)
    world.pause()
    await publish_until_stuck(broker)
    with trio.fail_after(DEADLINE_S):
        await consumer.close()
        await broker.close()


async def publish_until_stuck(broker: Broker) -> None:
    """Write more than the socket takes, so that closing has something to wait for."""
    with pytest.raises(SessionLost):
        await broker.publish([Message("evt.t.w.a.done", b"x" * 9_000, f"m{n}") for n in range(2_000)], 0.05)


# --- what lies between the rules


async def test_a_pull_that_ends_empty_hands_control_back(broker: Broker) -> None:
    consumer = await broker.consume(CONSUMER)
    consumer.pull()
    with trio.fail_after(DEADLINE_S):
        assert list(await consumer.take(16)) == []
    await publish(broker, messages("m", [1]))
    assert bodies(await take(consumer, 1)) == [b"body 1"]


async def test_without_a_pull_nothing_arrives(broker: Broker) -> None:
    await publish(broker, messages("m", range(100)))
    consumer = await broker.consume(CONSUMER)
    assert list(await consumer.take(16)) == []
    consumer.pull()
    taken = 0
    while batch := await consumer.take(16):
        taken += len(batch)
    assert taken == 32  # two pulls of 16


async def test_a_closed_consumer_gives_what_it_held_to_the_next(broker: Broker) -> None:
    await publish(broker, messages("m", range(3)))
    consumer = await broker.consume(CONSUMER)
    taken = await take(consumer, 1)
    await consumer.close()
    with pytest.raises(SessionLost, match="closed"):
        await consumer.take(1)
    consumer.settle(ack(taken))
    await until(partial(messages_left, broker, "COMMANDS"), 2)
    again = await take(await broker.consume(CONSUMER), 2)
    assert bodies(again) == [b"body 1", b"body 2"]


async def test_take_cancelled_loses_nothing(broker: Broker) -> None:
    consumer = await broker.consume(CONSUMER)
    consumer.pull()
    with trio.CancelScope() as scope:
        scope.cancel()
        await consumer.take(16)
    assert scope.cancelled_caught
    await publish(broker, messages("m", range(5)))
    assert len(await take(consumer, 5)) == 5
