"""JetStream as the broker: fills the port over one connection of `bridge`."""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import attrs
import orjson
import trio

from meshforge_trio.broker.api import JetStreamApi, Reply, headers_of, stream_facts
from meshforge_trio.broker.bridge import Connection, ConnectOptions, connect, hpub, status_of
from meshforge_trio.broker.consumer import JetStreamConsumer
from meshforge_trio.broker.port import (
    Broker,
    ConsumerSpec,
    Message,
    PubAck,
    ServerFacts,
    StoredMessage,
    StreamFacts,
    StreamSpec,
)
from meshforge_trio.envelope import CommandEnvelope, encode, traceparent
from meshforge_trio.errors import Misconfigured, Poison, SessionLost
from meshforge_trio.server import MINIMUM_VERSION, parse_version
from meshforge_trio.subjects import Scope, command_subject

__all__ = [
    "JetStreamBroker",
    "JetStreamCommandRouter",
    "JetStreamConsumer",
    "JetStreamEventBus",
    "open_broker",
]

_READ_BATCH: Final = 256
#: Level 4 is that of server 2.14; levels: ADR-44.
_API_LEVEL_MIN: Final = 4
_NOT_FOUND: Final = 404
_DELETED_MAX: Final = 200_000
#: A stream of this name cannot exist, so a message that expects it is refused by every stream and seen by everyone.
_NO_STREAM: Final = "-"
# The stream has no room or no quorum now (10023, 10047, 10077, 10008): waiting may help. Everything else stays refused.
_REFUSED_FOR_NOW: Final = frozenset({10008, 10009, 10023, 10028, 10047, 10077})


@attrs.define(eq=False)
class _Window:
    """The PubAcks one `publish` waits for; the answer to number `first + i` goes to place `i`."""

    first: int
    answers: list[Reply | None]
    missing: int
    changed: trio.Event = attrs.field(factory=trio.Event)


class JetStreamBroker:
    """Fills `Broker`. Made by `open_broker`."""

    def __init__(self, connection: Connection, facts: ServerFacts, *, pull_batch: int, pull_expires_s: float) -> None:
        self._connection = connection
        self._facts = facts
        self._pull_batch = pull_batch
        self._pull_expires_s = pull_expires_s
        self._api = JetStreamApi(connection)
        self._inbox = f"{connection.new_inbox()}."
        self._number_at = len(self._inbox)
        self._next = 1
        self._windows: list[_Window] = []
        self._single_copy: dict[str, bool] = {}
        self._last_seq_found: dict[str, int] = {}
        connection.subscribe(f"{self._inbox}*", self._on_puback)

    @property
    def facts(self) -> ServerFacts:
        """What the server said of itself when the session began."""
        return self._facts

    async def check_server(self) -> None:
        """Refuse a server that lacks what the protocol needs.

        Raises:
            Misconfigured: it is too old, or JetStream is off.
        """
        need = ".".join(map(str, MINIMUM_VERSION))
        if parse_version(self._facts.version) < MINIMUM_VERSION:
            raise Misconfigured(f"nats-server {self._facts.version} is too old, {need} is needed")
        level = (await self._api.request("INFO")).get("api", {}).get("level", 0)
        if level < _API_LEVEL_MIN:
            raise Misconfigured(f"JetStream API level {level}, {_API_LEVEL_MIN} is needed (nats-server {need})")

    async def declare(self, stream: StreamSpec) -> StreamFacts:
        """Create the stream, or check that the existing one is as specified.

        Raises:
            Misconfigured: it exists with other settings; nothing was changed.
            SessionLost: the connection ended or the server did not answer.
        """
        return self._as_found(await self._api.declare_stream(stream))

    async def consume(self, consumer: ConsumerSpec) -> JetStreamConsumer:
        """Create or check the durable, reset it, and receive its deliveries once `pull` asks.

        Raises:
            Misconfigured: it exists with other settings than its filters; nothing was changed.
            SessionLost: the connection ended or the server did not answer.
        """
        info = await self._api.declare_consumer(consumer)
        await self._api.reset_consumer(consumer.stream, consumer.name)
        return JetStreamConsumer(
            self._connection,
            consumer,
            info["delivered"]["stream_seq"],
            batch=self._pull_batch,
            expires_s=self._pull_expires_s,
        )

    async def publish(self, messages: Sequence[Message], timeout_s: float) -> Sequence[PubAck]:
        """Publish in order and await every PubAck.

        Raises:
            Poison: a message cannot be sent at all; nothing of the batch was.
            SessionLost: the connection ended, an answer is missing, or no stream takes a subject.
        """
        self._connection.check()
        window = _Window(self._next, [None] * len(messages), len(messages))
        limit = self._facts.max_payload
        frames = [
            hpub(message.subject, f"{self._inbox}{number}", message.msg_id, message.headers, message.body, limit=limit)
            for number, message in enumerate(messages, window.first)
        ]
        self._next += len(messages)
        self._windows.append(window)
        forget = self._connection.on_lost(window.changed.set)
        try:
            self._connection.write(b"".join(frames))
            if messages:
                with trio.move_on_after(timeout_s):
                    await window.changed.wait()
        finally:
            forget()
            self._windows.remove(window)
        if window.missing:
            self._connection.check()
            raise SessionLost(f"{window.missing} of {len(messages)} PubAcks missing after {timeout_s:g} s")
        return [_puback(message, answer) for message, answer in zip(messages, window.answers, strict=True)]

    def _on_puback(self, subject: bytes, reply: bytes, headers: bytes | None, body: bytes) -> None:
        number = int(subject[self._number_at :])
        for window in self._windows:
            place = number - window.first
            if 0 <= place < len(window.answers):
                if window.answers[place] is None:
                    window.answers[place] = (headers, body)
                    window.missing -= 1
                    if not window.missing:
                        window.changed.set()
                return

    def echo(self, messages: Sequence[Message]) -> None:
        """Send to core subscribers; every stream refuses it for the stream it expects.

        Raises:
            Poison: a message cannot be sent at all; nothing was sent.
            SessionLost: the connection ended.
        """
        limit = self._facts.max_payload
        frames = [
            hpub(m.subject, "", m.msg_id, {**m.headers, "Nats-Expected-Stream": _NO_STREAM}, m.body, limit=limit)
            for m in messages
        ]
        self._connection.write(b"".join(frames))

    async def stream_facts(self, stream: str) -> StreamFacts:
        """Ask the server, also for what was deleted if that is no more than a list of 200,000.

        Raises:
            Misconfigured: there is no such stream.
            SessionLost: the connection ended or the server did not answer.
        """
        info = await self._stream_info(stream)
        if 0 < info["state"].get("num_deleted", 0) <= _DELETED_MAX:
            info = await self._stream_info(stream, deleted=True)
        return self._as_found(stream_facts(info))

    def _as_found(self, facts: StreamFacts) -> StreamFacts:
        """The same with the last sequence this session met first: others may have published since."""
        return attrs.evolve(facts, last_seq_found=self._last_seq_found.setdefault(facts.name, facts.last_seq))

    async def _stream_info(self, stream: str, *, deleted: bool = False) -> dict[str, Any]:
        info = await self._api.stream_info(stream, deleted=deleted)
        if info is None:
            raise Misconfigured(f"there is no stream {stream}")
        return info

    async def subjects(self, stream: str, subject: str) -> Sequence[str]:
        """Every subject matching `subject` under which the stream holds a message; none where there is no stream.

        Raises:
            SessionLost: the connection ended or the server did not answer.
        """
        return await self._api.stream_subjects(stream, subject)

    async def read_back(self, stream: str, subject: str, from_seq: int, limit: int) -> Sequence[StoredMessage]:
        """Up to `limit` messages matching `subject` with a sequence of at least `from_seq`, in order.

        Batches of Direct Get where there is one copy; else one by one from the leader, since a follower may lag
        (ADR-31).

        Raises:
            Misconfigured: there is no such stream.
            SessionLost: the connection ended or the server did not answer.
        """
        if stream not in self._single_copy:
            config = (await self._stream_info(stream))["config"]
            self._single_copy[stream] = config["num_replicas"] == 1 and bool(config.get("allow_direct"))
        found: list[StoredMessage] = []
        while len(found) < limit:
            next_seq = found[-1].seq + 1 if found else max(from_seq, 1)
            ask = {"seq": next_seq, "next_by_subj": subject}
            if self._single_copy[stream]:
                ask["batch"] = min(_READ_BATCH, limit - len(found))
                more = await self._direct_get(stream, ask)
            else:
                more = await self._leader_get(stream, ask)
            if not more:
                break
            found += more
        return found

    async def _direct_get(self, stream: str, ask: dict[str, Any]) -> list[StoredMessage]:
        verb = f"$JS.API.DIRECT.GET.{stream}"
        replies = await self._api.exchange(verb, orjson.dumps(ask), lambda reply: status_of(reply[0]) != 0)
        status = status_of(replies[-1][0])
        if status not in (204, _NOT_FOUND):
            raise SessionLost(f"{verb} ended with status {status}")
        found = []
        for block, body in replies[:-1]:
            headers = headers_of(block)
            found.append(
                StoredMessage(
                    int(headers["Nats-Sequence"]), headers["Nats-Subject"], headers.get("Nats-Msg-Id", ""), body
                )
            )
        return found

    async def _leader_get(self, stream: str, ask: dict[str, Any]) -> list[StoredMessage]:
        reply = await self._api.request(f"STREAM.MSG.GET.{stream}", ask)
        error = reply.get("error")
        if error is not None:
            if error.get("code") == _NOT_FOUND:
                return []
            raise SessionLost(f"reading {stream} back: {error.get('description')}")
        message = reply["message"]
        try:
            block = base64.b64decode(message.get("hdrs", ""))
            body = base64.b64decode(message.get("data", ""))
        except binascii.Error as problem:
            raise SessionLost(f"reading {stream} back: {problem}") from problem
        msg_id = headers_of(block).get("Nats-Msg-Id", "")
        return [StoredMessage(message["seq"], message["subject"], msg_id, body)]

    async def wait_lost(self) -> str:
        """Return when the session has ended, with the reason."""
        return await self._connection.wait_lost()

    async def close(self) -> None:
        """End the session; what was written before is given two seconds to leave."""
        await self._connection.aclose()


def _puback(message: Message, answer: Reply | None) -> PubAck:
    assert answer is not None
    headers, body = answer
    if status_of(headers):
        raise SessionLost(f"no stream takes {message.subject} ({status_of(headers)})")
    try:
        told = orjson.loads(body)
        error = told.get("error")
        if error is None:
            return PubAck(told["stream"], told["seq"], told.get("duplicate", False))
        return PubAck(told.get("stream", ""), 0, False, error.get("description", "refused"), error.get("err_code", 0))
    except (orjson.JSONDecodeError, AttributeError, KeyError) as problem:
        # A core subscriber sees the reply subject and may answer in the stream's place.
        raise SessionLost(f"{message.subject} was answered by something that is no stream: {body!r:.100}") from problem


@asynccontextmanager
async def open_broker(
    options: ConnectOptions | str, *, pull_batch: int = 256, pull_expires_s: float = 10.0
) -> AsyncIterator[JetStreamBroker]:
    """One session, dialled and closed. A URL stands for `ConnectOptions` with nothing else set.

    Raises:
        SessionLost: no server could be reached.
        Misconfigured: no loop around the caller, an unsuitable server, refused credentials.
    """
    if isinstance(options, str):
        options = ConnectOptions(urls=(options,))
    connection = await connect(options)
    try:
        info = connection.info
        facts = ServerFacts(info["server_id"], info["version"], info["max_payload"])
        broker = JetStreamBroker(connection, facts, pull_batch=pull_batch, pull_expires_s=pull_expires_s)
        await broker.check_server()
        yield broker
    finally:
        await connection.aclose()


class JetStreamEventBus:
    """Publishing where a refusal is an error: what a decision sends has been checked before it was committed."""

    def __init__(self, broker: Broker, timeout_s: float = 5.0) -> None:
        self._broker = broker
        self._timeout_s = timeout_s

    async def publish(self, messages: Sequence[Message]) -> Sequence[PubAck]:
        """Publish in order; every returned PubAck names a stored message.

        Raises:
            Poison: the stream will never take a message; those before it are stored.
            SessionLost: refused for now, unanswered, or the connection ended.
        """
        acks = await self._broker.publish(messages, self._timeout_s)
        for message, ack in zip(messages, acks, strict=True):
            if ack.error:
                text = f"{message.subject} {message.msg_id}: {ack.error} ({ack.error_code})"
                raise (SessionLost(text) if ack.error_code in _REFUSED_FOR_NOW else Poison(text, code="refused"))
        return acks

    def echo(self, messages: Sequence[Message]) -> None:
        """Show stored messages to core subscribers once more, without storing them. Never waits."""
        self._broker.echo(messages)


class JetStreamCommandRouter:
    """Sends commands to the agents they are addressed to, each under its own id as Msg-Id."""

    def __init__(self, broker: Broker, timeout_s: float = 5.0) -> None:
        self._bus = JetStreamEventBus(broker, timeout_s)

    async def send(self, commands: Sequence[CommandEnvelope]) -> Sequence[PubAck]:
        """Returns when the command stream has stored every one. Sending a command again within the window is safe.

        Raises:
            Poison: a command is malformed or will never be taken.
            SessionLost: the outcome of some is unknown.
        """
        return await self._bus.publish([_command_message(command) for command in commands])


def _command_message(command: CommandEnvelope) -> Message:
    scope = Scope.checked(command.tenant, command.workspace, command.agent)
    headers = {}
    if command.trace_id and command.span_id:
        headers["traceparent"] = traceparent(command.trace_id, command.span_id)
    return Message(command_subject(scope, command.action), encode(command), command.id, headers)
