"""Deliveries of one durable pull consumer to one session."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import orjson
import structlog
import trio

from meshforge_trio.broker.api import headers_of
from meshforge_trio.broker.bridge import Connection, pub, status_of
from meshforge_trio.broker.port import ConsumerSpec, Delivery, Settlement
from meshforge_trio.errors import SessionLost

__all__ = ["JetStreamConsumer", "parse_ack_subject"]

_NS: Final = 1_000_000_000
_HEARTBEATS_PER_PULL: Final = 4
_HEARTBEATS_MISSED_MAX: Final = 2
_IDLE_HEARTBEAT: Final = 100
# No message before the pull ended: 404 where it would not wait, 408 where its time is over.
_PULL_OVER: Final = frozenset({404, 408})
_ROUND_TRIP_S: Final = 2.0

_log = structlog.get_logger("meshforge.broker")


def parse_ack_subject(subject: bytes) -> tuple[int, int, int] | None:
    """Times delivered, stream sequence and consumer sequence; `None` if it is no ACK subject.

    `$JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<time>.<pending>`, or with
    `<domain>.<account hash>` before the stream and possibly a random token at the end (ADR-15).
    """
    tokens = subject.split(b".")
    count = len(tokens)
    if count == 9:
        numbers = tokens[4:7]
    elif count in (11, 12):
        numbers = tokens[6:9]
    else:
        return None
    if tokens[0] != b"$JS" or tokens[1] != b"ACK":
        return None
    try:
        return int(numbers[0]), int(numbers[1]), int(numbers[2])
    except ValueError:
        return None


class JetStreamConsumer:
    """Fills `Consumer`. Made by `JetStreamBroker.consume`, which has reset the durable just before.

    At most two pulls of `batch` wait at the server, so at most that many deliveries wait here.
    """

    def __init__(
        self,
        connection: Connection,
        spec: ConsumerSpec,
        delivered_seq: int,
        *,
        batch: int,
        expires_s: float,
    ) -> None:
        self._connection = connection
        self._spec = spec
        self._delivered_seq = delivered_seq
        self._batch = batch
        self._expires_s = expires_s
        self._heartbeat_s = expires_s / _HEARTBEATS_PER_PULL
        self._inbox = connection.new_inbox()
        self._pull_frames: dict[int, bytes] = {}
        self._arrived: list[Delivery] = []
        self._in_hand: dict[int, str] = {}
        self._outstanding = 0
        self._consumer_seq = 0
        self._pull_ended = False
        self._heard = False
        self._closed = False
        self._changed = trio.Event()
        self._forget = connection.on_lost(self._wake)
        self._sid = connection.subscribe(self._inbox, self._on_message)

    @property
    def delivered_seq(self) -> int:
        """Highest stream sequence the consumer had delivered before the reset of this session."""
        return self._delivered_seq

    def pull(self, most: int | None = None) -> None:
        """Ask for more, so that up to two batches, of `most` each if given, are on their way or waiting here.

        Raises:
            SessionLost: the connection ended.
        """
        self._connection.check()
        batch = self._batch if most is None else min(most, self._batch)
        frames = []
        while self._outstanding + len(self._arrived) <= batch and not self._closed:
            frames.append(self._pull_frame(batch))
            self._outstanding += batch
        if frames:
            self._pull_ended = False
            self._connection.write(b"".join(frames))

    def _pull_frame(self, batch: int) -> bytes:
        frame = self._pull_frames.get(batch)
        if frame is None:
            expires, heartbeat = round(self._expires_s * _NS), round(self._heartbeat_s * _NS)
            request = orjson.dumps({"batch": batch, "expires": expires, "idle_heartbeat": heartbeat})
            subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._spec.stream}.{self._spec.name}"
            frame = self._pull_frames[batch] = pub(subject, self._inbox, request)
        return frame

    async def take(self, limit: int) -> Sequence[Delivery]:
        """Up to `limit` deliveries in order of arrival; empty when a pull has ended and `pull` may ask again.

        Raises:
            SessionLost: the connection ended, heartbeats stopped, `consumer_seq` has a gap, or `close` was called.
        """
        await trio.lowlevel.checkpoint()
        while True:
            self._connection.check()
            if self._closed:
                raise SessionLost("the consumer is closed")
            if self._arrived:
                taken = self._arrived[:limit]
                del self._arrived[:limit]
                return taken
            if self._pull_ended or self._outstanding <= 0:
                self._pull_ended = False
                return ()
            await self._wait_for_change()

    async def _wait_for_change(self) -> None:
        self._heard = False
        self._changed = trio.Event()
        with trio.move_on_after(self._heartbeat_s * _HEARTBEATS_MISSED_MAX) as scope:
            await self._changed.wait()
        if not scope.cancelled_caught or self._heard:
            return
        # This process may have been too busy to read, or suspended: read what had come before judging.
        await self._connection.round_trip(_ROUND_TRIP_S)
        if not self._heard:
            self._connection.lose(f"no heartbeat from consumer {self._spec.name}")

    def settle(self, settlements: Sequence[Settlement]) -> None:
        """ACK or NAK, all in one write.

        Raises:
            SessionLost: the connection ended.
        """
        frames = []
        for settlement in settlements:
            delivery = settlement.delivery
            self._in_hand.pop(delivery.consumer_seq, None)
            delay_s = settlement.delay_s
            if delay_s is None:
                frames.append(f"PUB {delivery.ack_subject}  4\r\n+ACK\r\n")
            else:
                verdict = f'-NAK {{"delay":{round(delay_s * _NS)}}}' if delay_s > 0 else "-NAK"
                frames.append(f"PUB {delivery.ack_subject}  {len(verdict)}\r\n{verdict}\r\n")
        self._connection.write("".join(frames).encode())

    def extend(self) -> None:
        """Restart the ACK deadline of everything received and not yet settled.

        Raises:
            SessionLost: the connection ended.
        """
        frames = [f"PUB {ack_subject}  4\r\n+WPI\r\n" for ack_subject in self._in_hand.values()]
        self._connection.write("".join(frames).encode())

    async def close(self) -> None:
        """Stop receiving; what was received and not settled comes again to the next session."""
        self._closed = True
        self._forget()
        self._arrived.clear()
        self._connection.unsubscribe(self._sid)
        self._wake()
        await trio.lowlevel.checkpoint()

    def _wake(self) -> None:
        self._changed.set()

    def _on_message(self, subject: bytes, reply: bytes, headers: bytes | None, body: bytes) -> None:
        self._heard = True
        place = parse_ack_subject(reply)
        if place is None:
            self._on_status(headers)
            return
        num_delivered, stream_seq, consumer_seq = place
        if consumer_seq != self._consumer_seq + 1:
            self._connection.lose(
                f"delivery {consumer_seq} of consumer {self._spec.name} came after {self._consumer_seq}: "
                "somebody else pulls from it or has reset it"
            )
            return
        self._consumer_seq = consumer_seq
        self._outstanding -= 1
        ack_subject = reply.decode()
        self._in_hand[consumer_seq] = ack_subject
        self._arrived.append(
            Delivery(
                subject.decode(errors="surrogateescape"),
                headers or b"",
                body,
                ack_subject,
                self._spec.stream,
                stream_seq,
                consumer_seq,
                num_delivered,
            )
        )
        self._changed.set()

    def _on_status(self, headers: bytes | None) -> None:
        status = status_of(headers)
        if status == _IDLE_HEARTBEAT:
            return
        if status in _PULL_OVER:
            unanswered = headers_of(headers).get("Nats-Pending-Messages", "")
            self._outstanding -= int(unanswered) if unanswered.isdigit() else self._outstanding
            self._pull_ended = True
            self._changed.set()
            return
        # 409 (consumer deleted, server shutdown, new leader), 423, 400, 503: nothing more will come this way.
        line = (headers or b"").partition(b"\r\n")[0].decode(errors="replace")
        self._connection.lose(f"the pull of consumer {self._spec.name} ended with: {line or 'no status'}")
