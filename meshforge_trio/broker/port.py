"""The broker port: what the protocol asks of a message broker.

A `Broker` is one session: one connection, from dial to loss. It is never repaired; it ends, everything made from it
ends with it, and the supervisor dials a new one.

Contract, held by `tests/conformance/test_broker.py` on every adapter:

B1  A delivery that is not settled comes again: at once after `reset`, else when `ack_wait` has passed.
B2  After `reset` un-settled deliveries come in stream order, before newer ones, with `consumer_seq` from 1. Some that
    were ACKed may come too: where the ACK was written just before, and, on a stream that keeps its messages, above
    the lowest un-ACKed one.
B3  `consumer_seq` rises by one with each delivery to anybody, so a gap means somebody else pulls.
B4  `publish` returns one `PubAck` per message, in order. Stored twice within the window under one Msg-Id is stored once
    (`duplicate`). A refusal by the stream is a `PubAck` with `error`, not an exception.
B5  `publish` raises `SessionLost` when the connection ends or an answer is missing at the deadline; the outcome of
    unanswered messages is then unknown.
B6  `echo` reaches core subscribers and is not stored.
B7  `settle` takes effect in the order of the calls, in the broker's own time; it confirms nothing.
B8  `read_back` returns every stored message of the filter from a sequence on, in order.
B9  When the connection ends every waiting call raises `SessionLost`, and so does every later one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import attrs

__all__ = [
    "Broker",
    "Consumer",
    "ConsumerSpec",
    "Delivery",
    "Message",
    "PubAck",
    "ServerFacts",
    "Settlement",
    "StoredMessage",
    "StreamFacts",
    "StreamSpec",
]


@attrs.frozen
class StreamSpec:
    """A stream as it must be. `work_queue` removes a message when it is ACKed."""

    name: str
    subjects: tuple[str, ...]
    work_queue: bool = False
    duplicate_window_s: float = 120.0
    replicas: int = 1
    max_bytes: int = -1
    max_age_s: float = 0.0
    max_msg_size: int = -1


@attrs.frozen
class ConsumerSpec:
    """A durable pull consumer with explicit ACKs and no delivery limit."""

    stream: str
    name: str
    filters: tuple[str, ...]
    ack_wait_s: float = 30.0
    max_ack_pending: int = 4096


@attrs.frozen
class ServerFacts:
    """What the server said of itself. `max_payload` counts headers and body, in bytes."""

    server_id: str
    version: str
    max_payload: int


@attrs.frozen
class StreamFacts:
    """A stream right now. An empty stream has `first_seq == last_seq + 1`.

    `last_seq_found` is the last sequence when this session first asked: what its server came up with, or nearly.
    `num_deleted` counts the sequences between first and last that were deleted; `stream_facts` names them in `deleted`
    (`None`: not asked, or too many to be listed). `lost_bytes` is what the server found damaged when it started.
    """

    name: str
    first_seq: int
    last_seq: int
    messages: int
    duplicate_window_s: float
    max_msg_size: int
    last_seq_found: int = 0
    num_deleted: int = 0
    deleted: Sequence[int] | None = None
    lost_bytes: int = 0


@attrs.define
class Message:
    """Something to publish. `headers` values are ASCII without CR or LF."""

    subject: str
    body: bytes
    msg_id: str
    headers: Mapping[str, str] = attrs.field(factory=dict)


@attrs.define
class PubAck:
    """The stream's answer. `seq` is 0 where `error` says why it was refused; `error_code` is the server's err_code."""

    stream: str
    seq: int
    duplicate: bool = False
    error: str = ""
    error_code: int = 0


@attrs.define(eq=False)
class Delivery:
    """One delivery of one message. `headers` is the raw header block, `ack_subject` where its fate is told."""

    subject: str
    headers: bytes
    body: bytes
    ack_subject: str
    stream: str
    stream_seq: int
    consumer_seq: int
    num_delivered: int


@attrs.define
class Settlement:
    """What becomes of a delivery: `delay_s` None is ACK, else NAK with that delay in seconds."""

    delivery: Delivery
    delay_s: float | None = None


@attrs.frozen
class StoredMessage:
    """A message as the stream holds it."""

    seq: int
    subject: str
    msg_id: str
    body: bytes


class Consumer(Protocol):
    """Deliveries of one durable consumer to this session."""

    @property
    def delivered_seq(self) -> int:
        """Highest stream sequence the consumer had delivered before the reset of this session."""

    def pull(self, most: int | None = None) -> None:
        """Ask for more, if the bound on deliveries in hand allows; for up to `most` at a time. Never waits."""

    async def take(self, limit: int) -> Sequence[Delivery]:
        """Wait for at least one delivery; return up to `limit` of what has arrived, in order of arrival.

        Empty when what `pull` asked for has expired, or nothing was asked for: check the lease, `pull`, `take` again.

        Raises:
            SessionLost: the connection ended, heartbeats stopped, or a gap in `consumer_seq` shows another puller.
        """

    def settle(self, settlements: Sequence[Settlement]) -> None:
        """ACK or NAK. Never waits."""

    def extend(self) -> None:
        """Restart the ACK deadline of every delivery in hand. Never waits."""

    async def close(self) -> None:
        """Stop receiving. Deliveries in hand go to the next session."""


class Broker(Protocol):
    """One broker session."""

    @property
    def facts(self) -> ServerFacts: ...

    async def declare(self, stream: StreamSpec) -> StreamFacts:
        """Create the stream, or check that the existing one is as specified.

        Raises:
            Misconfigured: it exists with other settings; nothing was changed.
        """

    async def consume(self, consumer: ConsumerSpec) -> Consumer:
        """Create or check the durable consumer, reset it, and receive its deliveries."""

    async def publish(self, messages: Sequence[Message], timeout_s: float) -> Sequence[PubAck]:
        """Publish in order and await every PubAck.

        Raises:
            Poison: a message is too large or would break the protocol; nothing of the batch was sent.
            SessionLost: the outcome of unanswered messages is unknown.
        """

    def echo(self, messages: Sequence[Message]) -> None:
        """Send to core subscribers without storing. Never waits."""

    async def stream_facts(self, stream: str) -> StreamFacts:
        """Ask the server, also for what was deleted."""

    async def read_back(self, stream: str, subject: str, from_seq: int, limit: int) -> Sequence[StoredMessage]:
        """Up to `limit` messages matching `subject` with a sequence of at least `from_seq`."""

    async def wait_lost(self) -> str:
        """Return when the session has ended, with the reason."""

    async def close(self) -> None:
        """End the session."""
