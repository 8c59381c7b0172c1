"""Commands in the command stream that nobody will decide as things stand.

A command leaves the stream when it is ACKed. One that stays may wait its turn, or be stranded:

    unaddressed   no consumer's filter matches its subject: no agent of that name was ever served there
    unattended    a consumer has it, from which nobody pulls
    passed_over   its consumer has gone beyond it for good: a delivery limit was reached, or the filter came too late

The stream is asked as it stands, beside whoever works; nothing is changed but by `CommandStream.delete`.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager
from typing import Any, Final, Literal

import attrs
import trio

from meshforge_trio.broker.api import headers_of
from meshforge_trio.broker.bridge import ConnectOptions, connect
from meshforge_trio.broker.survey import Found, Survey, unix_time
from meshforge_trio.errors import Misconfigured
from meshforge_trio.subjects import COMMANDS

__all__ = ["CommandStream", "Kept", "Stranded", "Why", "open_command_stream", "sweep"]

_NAME: Final = "meshforge-sweep"
#: A worker between two pulls has none waiting, so a consumer is looked at that often.
_LOOKS: Final = 5
_LOOK_EVERY_S: Final = 0.25

Why = Literal["unaddressed", "unattended", "passed_over"]


@attrs.frozen
class Stranded:
    """Commands of one subject that are stranded for one reason. `seqs` are their places, oldest first.

    `oldest_at` is when the stream took the oldest, in wall-clock seconds of the server; `detail` says what was seen.
    """

    subject: str
    why: Why
    detail: str
    seqs: Sequence[int]
    oldest_at: float


@attrs.frozen
class Kept:
    """A message as the stream keeps it. `headers` is the raw header block."""

    found: Found
    headers: bytes
    body: bytes


@attrs.frozen
class _Edge:
    """How far a sweep looks: up to the last sequence there was, and to what was old enough then."""

    last_seq: int
    before_at: float

    def has(self, found: Found) -> bool:
        """Whether a message lies on this side."""
        return found.seq <= self.last_seq and found.at <= self.before_at


class CommandStream(Survey):
    """The command stream, for a sweep. Made by `open_command_stream`. Raises as `Survey` does."""

    async def subjects(self, matching: str = ">") -> AbstractSet[str]:
        """The subjects of the messages that are in the stream, so far as they match."""
        names: set[str] = set()
        while True:
            ask = {"subjects_filter": matching, "offset": len(names)}
            page = await self._info(f"STREAM.INFO.{COMMANDS}", ask)
            more = {} if page is None else page["state"].get("subjects") or {}
            names |= more.keys()
            if page is None or not more or len(names) >= page.get("total", 0):
                return names

    async def kept(self, seq: int) -> Kept | None:
        """The whole message at a sequence; `None` where it is gone."""
        reply = await self._info(f"STREAM.MSG.GET.{COMMANDS}", {"seq": seq})
        if reply is None:
            return None
        message = reply["message"]
        headers, body = (b64decode(message.get(part, "")) for part in ("hdrs", "data"))
        msg_id = headers_of(headers).get("Nats-Msg-Id", "")
        return Kept(Found(seq, message["subject"], msg_id, unix_time(message["time"])), headers, body)

    async def delete(self, found: Found) -> bool:
        """Delete a message; false where it is gone, or its place has another message by now.

        Raises:
            Misconfigured: the stream does not allow it.
        """
        # Deleted by sequence, and a stream made anew has other messages at the same ones.
        if await self.message(COMMANDS, found.seq) != found:
            return False
        reply = await self._api.request(f"STREAM.MSG.DELETE.{COMMANDS}", {"seq": found.seq, "no_erase": True})
        error = reply.get("error")
        if error is None:
            return True
        if await self.message(COMMANDS, found.seq) is None:
            return False
        raise Misconfigured(f"{COMMANDS}, sequence {found.seq}: {error.get('description', 'refused')}")


@asynccontextmanager
async def open_command_stream(options: ConnectOptions) -> AsyncIterator[CommandStream]:
    """One connection for a sweep, dialled and closed.

    Raises:
        SessionLost: no server could be reached.
        Misconfigured: no loop around the caller, or refused credentials.
    """
    connection = await connect(attrs.evolve(options, name=_NAME))
    try:
        yield CommandStream(connection)
    finally:
        await connection.aclose()


async def sweep(
    stream: CommandStream, *, served: AbstractSet[str], older_than_s: float, wanted: Callable[[str], bool]
) -> Sequence[Stranded]:
    """Find the commands that are stranded and at least `older_than_s` seconds old, on subjects that are `wanted`.

    `served` are the names of consumers that are known to be served, by a lease that runs.

    Raises:
        SessionLost, Misconfigured: as `Survey`.
    """
    info = await stream.stream(COMMANDS)
    if info is None:
        return ()
    edge = _Edge(info["state"]["last_seq"], unix_time(info["ts"]) - older_than_s)
    # Asked before the consumers, so that whoever starts to serve meanwhile is not overlooked.
    left = set(await stream.subjects())
    consumers = await stream.consumers(COMMANDS)
    for consumer in consumers:
        for filtered in _filters(consumer):
            left -= await stream.subjects(filtered)
    found: list[Stranded] = []
    for subject in sorted(left):
        messages = [message async for message in _walk(stream, subject, edge) if message.subject == subject]
        found += _grouped(messages, "unaddressed", "no consumer takes this subject")
    idle = await _idle(stream, [consumer["name"] for consumer in consumers], served)
    for consumer in consumers:
        found += await _of_consumer(stream, consumer, edge, attended=consumer["name"] not in idle)
    return [stranded for stranded in found if wanted(stranded.subject)]


def _filters(consumer: dict[str, Any]) -> Sequence[str]:
    config = consumer["config"]
    return config.get("filter_subjects") or [config.get("filter_subject") or ">"]


async def _walk(stream: CommandStream, subject: str, edge: _Edge) -> AsyncIterator[Found]:
    """The messages that match `subject`, in order, as far as the edge."""
    seq = 1
    while (found := await stream.first_from(COMMANDS, subject, seq)) is not None and edge.has(found):
        yield found
        seq = found.seq + 1


async def _walk_all(stream: CommandStream, consumer: dict[str, Any], edge: _Edge) -> Sequence[Found]:
    messages = [message for each in _filters(consumer) async for message in _walk(stream, each, edge)]
    return sorted(messages, key=lambda message: message.seq)


def _grouped(messages: Iterable[Found], why: Why, detail: str) -> Sequence[Stranded]:
    by_subject: dict[str, list[Found]] = {}
    for message in messages:
        by_subject.setdefault(message.subject, []).append(message)
    return [
        Stranded(subject, why, detail, tuple(message.seq for message in group), group[0].at)
        for subject, group in sorted(by_subject.items())
    ]


# -- who pulls -------------------------------------------------------------------------------------------------


async def _idle(stream: CommandStream, names: Sequence[str], served: AbstractSet[str]) -> AbstractSet[str]:
    """The consumers that nobody pulls from, looked at for a while."""
    idle = {name for name in names if name not in served}
    first: dict[str, tuple[int, int]] = {}
    for look in range(_LOOKS):
        if not idle:
            break
        if look:
            await trio.sleep(_LOOK_EVERY_S)
        for name in sorted(idle):
            info = await stream.consumer(COMMANDS, name)
            moved = None if info is None else (info["delivered"]["consumer_seq"], info["ack_floor"]["stream_seq"])
            if info is None or moved is None or _is_pulled(info) or first.setdefault(name, moved) != moved:
                idle.discard(name)
    return idle


def _is_pulled(info: dict[str, Any]) -> bool:
    return bool(info.get("num_waiting") or info.get("push_bound"))


# -- what a consumer has passed --------------------------------------------------------------------------------


def _passed_seq(info: dict[str, Any], last_seq: int) -> int:
    """What matches up to this sequence and is still in the stream will never be delivered again.

    Everything up to the ACK floor is done with. With nothing in hand so is everything that was delivered, and with
    nothing to come everything there is.
    """
    if info["num_ack_pending"]:
        return int(info["ack_floor"]["stream_seq"])
    if info["num_pending"]:
        return max(int(info["ack_floor"]["stream_seq"]), int(info["delivered"]["stream_seq"]))
    return last_seq


async def _of_consumer(
    stream: CommandStream, consumer: dict[str, Any], edge: _Edge, *, attended: bool
) -> Sequence[Stranded]:
    """What lies behind a consumer, and, where nobody pulls from it, before it."""
    name = consumer["name"]
    info = await stream.consumer(COMMANDS, name)
    if info is None:
        return ()
    passed_seq = _passed_seq(info, edge.last_seq)
    passed_edge = attrs.evolve(edge, last_seq=min(edge.last_seq, passed_seq))
    messages = await _walk_all(stream, consumer, passed_edge if attended else edge)
    passed = {message.seq for message in messages if passed_edge.has(message)}
    if passed:
        # An ACK moves the floor before the stream drops the message, and a new message is counted a little later.
        await trio.sleep(_LOOK_EVERY_S)
        again = await stream.consumer(COMMANDS, name)
        if again is None:
            return ()
        sure = attrs.evolve(passed_edge, last_seq=min(passed_seq, _passed_seq(again, edge.last_seq)))
        passed &= {message.seq for message in await _walk_all(stream, consumer, sure)}
    limit = info["config"].get("max_deliver", -1)
    because = f" after {limit} deliveries" if limit > 0 else ""
    found = _grouped(
        (m for m in messages if m.seq in passed), "passed_over", f"consumer {name} is beyond them{because}"
    )
    if attended:
        return found
    waiting = (message for message in messages if message.seq not in passed)
    return [*found, *_grouped(waiting, "unattended", f"nobody pulls from consumer {name}")]
