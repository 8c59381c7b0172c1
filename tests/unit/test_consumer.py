"""The bookkeeping of the consumer and of requests, without a server."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import attrs
import pytest
import trio
import trio.testing

from meshforge_trio.broker.api import JetStreamApi
from meshforge_trio.broker.bridge import Connection
from meshforge_trio.broker.consumer import JetStreamConsumer
from meshforge_trio.broker.port import ConsumerSpec, Settlement
from meshforge_trio.errors import SessionLost


@attrs.define(eq=False)
class RecordingConnection:
    """Stands where a `Connection` stands and remembers what was written."""

    frames: list[bytes] = attrs.field(factory=list)
    lost: str | None = None
    receive: Callable[[bytes, bytes, bytes | None, bytes], None] | None = None
    round_trip_delivers: list[int] = attrs.field(factory=list)
    wake: Callable[[], None] = lambda: None

    def new_inbox(self) -> str:
        return "inbox"

    def subscribe(self, subject: str, receiver: Callable[[bytes, bytes, bytes | None, bytes], None]) -> int:
        self.receive = receiver
        return 1

    def on_lost(self, wake: Callable[[], None]) -> Callable[[], None]:
        self.wake = wake
        return lambda: None

    def check(self) -> None:
        if self.lost is not None:
            raise SessionLost(self.lost)

    def write(self, frames: bytes) -> None:
        self.frames.append(frames)

    async def round_trip(self, timeout_s: float) -> None:
        for status in self.round_trip_delivers:
            self.status(f"{status}")
        self.round_trip_delivers = []

    def lose(self, reason: str) -> None:
        self.lost = reason
        self.wake()

    def deliver(self, consumer_seq: int) -> None:
        assert self.receive is not None
        self.receive(b"cmd.a", b"$JS.ACK.S.C.1.%d.%d.0.0" % (consumer_seq + 100, consumer_seq), None, b"body")

    def status(self, line: str) -> None:
        assert self.receive is not None
        self.receive(b"inbox", b"", f"NATS/1.0 {line}\r\n\r\n".encode(), b"")


def recorded_consumer(batch: int = 4) -> tuple[JetStreamConsumer, RecordingConnection]:
    connection = RecordingConnection()
    spec = ConsumerSpec("S", "C", ("cmd.>",))
    consumer = JetStreamConsumer(cast(Connection, cast(object, connection)), spec, 0, batch=batch, expires_s=10.0)
    return consumer, connection


def pulls(connection: RecordingConnection) -> int:
    return b"".join(connection.frames).count(b"CONSUMER.MSG.NEXT.S.C")


async def test_two_pulls_wait_and_a_third_follows_when_one_batch_is_used_up() -> None:
    consumer, connection = recorded_consumer(batch=4)
    consumer.pull()
    consumer.pull()
    assert pulls(connection) == 2
    for n in range(1, 5):
        connection.deliver(n)
    consumer.pull()
    assert pulls(connection) == 2  # four wait here, four are under way
    await consumer.take(3)
    consumer.pull()
    assert pulls(connection) == 2
    await consumer.take(1)
    consumer.pull()
    assert pulls(connection) == 3


async def test_smaller_pulls_are_no_more_than_two_at_a_time_either() -> None:
    consumer, connection = recorded_consumer(batch=100)
    consumer.pull(3)
    assert pulls(connection) == 2
    assert b"".join(connection.frames).count(b'"batch":3,') == 2
    for n in range(1, 5):
        connection.deliver(n)
    await consumer.take(3)
    consumer.pull(3)
    assert pulls(connection) == 3
    # More than the broker was opened for is never asked for.
    consumer.pull(1_000)
    assert connection.frames[-1].count(b'"batch":100,') == 1


async def test_what_a_pull_did_not_get_is_asked_for_again() -> None:
    consumer, connection = recorded_consumer(batch=4)
    consumer.pull()
    connection.deliver(1)
    connection.status("408 Request Timeout\r\nNats-Pending-Messages: 3\r\nNats-Pending-Bytes: 0")
    assert len(await consumer.take(9)) == 1
    assert list(await consumer.take(9)) == []
    consumer.pull()
    assert pulls(connection) == 3
    connection.status("404 No Messages")
    consumer.pull()
    assert pulls(connection) == 5


@pytest.mark.parametrize(
    "line",
    ["409 Consumer Deleted", "409 Server Shutdown", "423 Nats-Pin-Id mismatch", "400 Bad Request", "503", "nonsense"],
)
async def test_a_pull_that_cannot_go_on_ends_the_session(line: str) -> None:
    consumer, connection = recorded_consumer()
    consumer.pull()
    connection.status(line)
    with pytest.raises(SessionLost, match=line.partition(" ")[0]):
        await consumer.take(1)


async def test_heartbeats_are_not_deliveries() -> None:
    consumer, connection = recorded_consumer()
    consumer.pull()
    connection.status("100 Idle Heartbeat")
    connection.deliver(1)
    assert len(await consumer.take(9)) == 1
    assert connection.lost is None


@pytest.mark.parametrize("seqs", [[2], [1, 3], [1, 1], [1, 2, 4]])
async def test_a_gap_or_a_repeat_in_the_consumer_sequence_ends_the_session(seqs: list[int]) -> None:
    consumer, connection = recorded_consumer()
    for n in seqs:
        connection.deliver(n)
    with pytest.raises(SessionLost, match="somebody else"):
        await consumer.take(9)


async def test_everything_received_and_unsettled_is_extended() -> None:
    consumer, connection = recorded_consumer()
    for n in range(1, 5):
        connection.deliver(n)
    one, two = await consumer.take(2)
    consumer.settle([Settlement(one), Settlement(two, delay_s=1.5)])
    assert connection.frames[-1] == (
        b'PUB $JS.ACK.S.C.1.101.1.0.0  4\r\n+ACK\r\nPUB $JS.ACK.S.C.1.102.2.0.0  25\r\n-NAK {"delay":1500000000}\r\n'
    )
    consumer.extend()
    assert connection.frames[-1] == (
        b"PUB $JS.ACK.S.C.1.103.3.0.0  4\r\n+WPI\r\nPUB $JS.ACK.S.C.1.104.4.0.0  4\r\n+WPI\r\n"
    )


async def test_loss_wakes_who_waits(autojump_clock: trio.testing.MockClock) -> None:
    consumer, connection = recorded_consumer()
    consumer.pull()

    async def lose() -> None:
        await trio.sleep(0.1)
        connection.lose("gone")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lose)
        with pytest.raises(SessionLost, match="gone"):
            await consumer.take(1)
    assert trio.current_time() < 1  # not only when the next heartbeat is due


async def test_loss_wakes_who_waits_for_an_answer(autojump_clock: trio.testing.MockClock) -> None:
    connection = RecordingConnection()
    api = JetStreamApi(cast(Connection, cast(object, connection)))

    async def lose() -> None:
        await trio.sleep(0.1)
        connection.lose("gone")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lose)
        with pytest.raises(SessionLost, match="gone"):
            await api.request("INFO")
    assert trio.current_time() < 1


async def test_a_request_nobody_answers(autojump_clock: trio.testing.MockClock) -> None:
    connection = RecordingConnection()
    api = JetStreamApi(cast(Connection, cast(object, connection)))
    with pytest.raises(SessionLost, match="not answered within 5 s"):
        await api.request("INFO")
    assert connection.receive is not None
    connection.receive(b"inbox.1", b"", None, b"{}")  # too late for anybody


async def test_missed_heartbeats_are_judged_after_a_round_trip(autojump_clock: trio.testing.MockClock) -> None:
    consumer, connection = recorded_consumer()
    consumer.pull()
    connection.round_trip_delivers = [100]
    with pytest.raises(SessionLost, match="no heartbeat"):
        await consumer.take(1)
    # The first round trip brought a heartbeat, the second nothing: two silences of two heartbeats each.
    assert trio.current_time() == pytest.approx(2 * 2 * 2.5, abs=0.5)
