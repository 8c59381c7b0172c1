"""A TCP proxy in front of a nats-server that knows the frames which pass, and breaks the connection at a chosen one.

Frames are counted by kind over the whole run, all connections together. When the nth of a rule's kind is there, the
fault is written down and then happens:

    cut_before   The frame is not forwarded and the connection is dropped: the side it came from is reset; the side it
                 went to reads what came before, then the end, and is reset as soon as it ends too, or stays too long.
    cut_after    The frame is forwarded, then the connection is dropped likewise.
    swallow      The frame is lost, the connection lives.
    blackhole    The frame and everything after it is lost, both ways, while the connection stays open, until its
                 client gives it up.

A proxy must never be a source of failures of its own. Where the bytes of a connection are not understood it forwards
them untouched from there on, both ways, and no fault befalls that connection any more. A side that ends is ended on
the other side once everything it sent is forwarded. A side that does not read is not read for.
"""

from __future__ import annotations

import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, Protocol

import attrs
import trio

from chaos.faults.frames import KINDS, Conversation, Frame, FrameError, FrameParser
from chaos.history import History

__all__ = ["ACTIONS", "FrameRule", "Proxy", "open_proxy"]

#: What can befall a frame.
ACTIONS: Final = ("cut_before", "cut_after", "swallow", "blackhole")

_HOST: Final = "127.0.0.1"
_CHUNK: Final = 1 << 16
_DIAL_S: Final = 5.0
# For the other side to end too after the first has.
_LINGER_S: Final = 10.0
# For the side a cut frame went to, to take what came before the cut.
_CUT_S: Final = 1.0


class FrameRule(Protocol):
    """A rule of a plan: the `nth` frame of the kind `place` meets `action`. Its text is what histories quote."""

    @property
    def place(self) -> str: ...
    @property
    def nth(self) -> int: ...
    @property
    def action(self) -> str: ...


@attrs.define(eq=False)
class _Way:
    """One direction of a connection."""

    source: trio.SocketStream
    target: trio.SocketStream
    parser: FrameParser
    target_is_gone: bool = False

    async def received(self) -> bytes:
        """The next bytes; none when the source has ended, in whatever way."""
        try:
            return bytes(await self.source.receive_some(_CHUNK))
        except trio.BrokenResourceError:
            return b""

    async def send(self, chunk: bytes) -> None:
        """Forward. No deadline: a target that does not read holds its source up, as without a proxy.

        What a target that is gone cannot take is lost, and its own end is noticed on the way back.
        """
        if chunk and not self.target_is_gone:
            try:
                await self.target.send_all(chunk)
            except trio.BrokenResourceError:
                self.target_is_gone = True

    async def end(self) -> None:
        """Tell the target that nothing more comes."""
        try:
            await self.target.send_eof()
        except trio.BrokenResourceError:
            self.target_is_gone = True


@attrs.define(eq=False)
class _Link:
    """One connection.

    `blind` when its bytes are not understood, `hole` by which rule they are lost, `cut` where it is cut by `cut_by`.
    """

    number: int
    upward: _Way
    downward: _Way
    scope: trio.CancelScope
    blind: bool = False
    hole: FrameRule | None = None
    cut: _Way | None = None
    cut_by: list[FrameRule] = attrs.field(factory=list)


class Proxy:
    """Made by `open_proxy`.

    `fired` are the texts of the rules that have fired, in order; `misread` says of each connection whose bytes were
    not understood what was wrong with them. While it is `calm` rules wait: what passes then is not counted.
    """

    def __init__(
        self, port: int, target_port: int, rules: Sequence[FrameRule], history: History | None, record_frames: bool
    ) -> None:
        self.port = port
        self.fired: list[str] = []
        self.misread: list[str] = []
        self.calm = False
        self._target_port = target_port
        self._rules = {(str(rule.place), rule.nth): rule for rule in rules}
        self._history = None if history is None else history.of("proxy")
        self._record_frames = record_frames
        self._passed: Counter[str] = Counter()
        self._links = 0
        # Rules that have dropped a connection since the last one was made.
        self._cuts: list[FrameRule] = []

    @property
    def url(self) -> str:
        """What clients dial."""
        return f"nats://{_HOST}:{self.port}"

    @property
    def passed(self) -> Mapping[str, int]:
        """How many frames of each kind there have been that rules count, the lost ones too."""
        return self._passed

    async def serve(self, client: trio.SocketStream) -> None:
        """Relay one connection until it ends. The caller closes `client`."""
        self._links += 1
        number = self._links
        server = await self._dial()
        if server is None:
            _reset(client)
            return
        self._heal_cuts()
        wire = Conversation()
        try:
            async with trio.open_nursery() as nursery:
                upward = _Way(client, server, wire.to_server)
                downward = _Way(server, client, wire.to_client)
                link = _Link(number, upward, downward, nursery.cancel_scope)
                nursery.start_soon(self._relay, link, upward)
                nursery.start_soon(self._relay, link, downward)
            if link.cut is not None:
                self._cuts += link.cut_by
                await _drop(link.cut)
            elif link.hole is not None:
                _reset(server)
                self._write("healed", rule=str(link.hole))
        finally:
            await trio.aclose_forcefully(server)

    async def _dial(self) -> trio.SocketStream | None:
        """A connection to the server; `None` if it is down."""
        with trio.move_on_after(_DIAL_S):
            try:
                return await trio.open_tcp_stream(_HOST, self._target_port)
            except OSError:
                return None
        return None

    def _heal_cuts(self) -> None:
        """A new connection is there: what was cut is whole again."""
        for rule in self._cuts:
            self._write("healed", rule=str(rule))
        self._cuts.clear()

    async def _relay(self, link: _Link, way: _Way) -> None:
        """Forward one direction until its source ends."""
        while chunk := await way.received():
            if link.hole is not None or link.cut is not None:
                continue
            if link.blind:
                await way.send(way.parser.release() + chunk)
            else:
                await self._pass(link, way, chunk)
        if link.hole is not None:
            # That the server has ended is lost too; a client that has ended gives the connection up.
            if way is link.upward:
                link.scope.cancel()
            return
        await way.send(way.parser.release())
        await way.end()
        link.scope.deadline = min(link.scope.deadline, trio.current_time() + _LINGER_S)

    async def _pass(self, link: _Link, way: _Way, chunk: bytes) -> None:
        """Forward what is whole of `chunk` and what was held, up to the first frame that a rule stops."""
        rest = b""
        try:
            frames = way.parser.feed(chunk)
        except FrameError as error:
            frames, rest, link.blind = error.frames, error.rest, True
            self.misread.append(f"connection {link.number}: {error}")
        ready: list[bytes] = []
        for frame in frames:
            rule = None if frame.kind == "other" else self._meet(link, frame)
            action = "" if rule is None else rule.action
            if action not in ("swallow", "cut_before", "blackhole"):
                ready.append(frame.raw)
            if rule is None:
                continue
            if action == "swallow":
                self._write("healed", rule=str(rule))
            elif action == "blackhole":
                link.hole = rule
                await way.send(b"".join(ready))
                return
            else:
                link.cut = way
                link.cut_by.append(rule)
                with trio.move_on_after(_CUT_S):
                    await way.send(b"".join(ready))
                link.scope.cancel()
                return
        ready.append(rest)
        await way.send(b"".join(ready))

    def _meet(self, link: _Link, frame: Frame) -> FrameRule | None:
        """Count a frame and write down what the history is to know of it; the rule that befalls it, if any."""
        rule = None
        if not self.calm:
            self._passed[frame.kind] += 1
            rule = self._rules.get((frame.kind, self._passed[frame.kind]))
        if rule is not None:
            self._write("fault", rule=str(rule))
            self.fired.append(str(rule))
        if self._record_frames:
            lost = rule is not None and rule.action != "cut_after"
            self._write("frame", frame=frame.kind, conn=link.number, **_told(frame, lost))
        return rule

    def _write(self, kind: str, **fields: Any) -> None:
        if self._history is not None:
            self._history.write(kind, **fields)


def _told(frame: Frame, lost: bool) -> Mapping[str, Any]:
    """What the history is told of a frame; what it has not is left out."""
    told: dict[str, Any] = {"bytes": len(frame.raw), "subject": frame.subject, "msg_id": frame.msg_id}
    if frame.seq:
        told["seq"] = frame.seq
    if envelope_id := frame.envelope_id:
        told["id"] = envelope_id
    if lost:
        told["lost"] = True
    return told


async def _drop(way: _Way) -> None:
    """End a connection at a frame of `way`: its source is reset at once, its target when it has read what came before.

    A reset makes the other side throw away what it has not read yet, so a cut would not stand where its rule says.
    """
    _reset(way.source)
    await way.end()
    back = _Way(way.target, way.source, way.parser)
    with trio.move_on_after(_CUT_S):
        while await back.received():
            pass
    _reset(way.target)


def _reset(stream: trio.SocketStream) -> None:
    """Close so that nothing lingers: what is still to be sent is discarded, and the other side is told by RST."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


def _checked(rules: Sequence[FrameRule]) -> Sequence[FrameRule]:
    places: set[tuple[str, int]] = set()
    for rule in rules:
        place = (str(rule.place), rule.nth)
        if rule.place not in KINDS or rule.action not in ACTIONS or rule.nth < 1:
            raise ValueError(
                f"{rule}: the proxy knows the frames {', '.join(KINDS)}, counted from 1, "
                f"and the actions {', '.join(ACTIONS)}"
            )
        if place in places:
            raise ValueError(f"{rule}: another rule already waits for that frame")
        places.add(place)
    return rules


@asynccontextmanager
async def open_proxy(
    port: int, rules: Sequence[FrameRule] = (), history: History | None = None, record_frames: bool = False
) -> AsyncIterator[Proxy]:
    """Listen on a free port of the loopback and forward every connection to `port` there, until the end of the block.

    With a `history` faults are written to it, and with `record_frames` every frame that is of a kind.

    Raises:
        ValueError: a rule names no kind of frame or no action, or two wait for the same frame.
    """
    checked = _checked(rules)
    (listener,) = await trio.open_tcp_listeners(0, host=_HOST)
    proxy = Proxy(listener.socket.getsockname()[1], port, checked, history, record_frames)
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(trio.serve_listeners, proxy.serve, [listener]))
        try:
            yield proxy
        finally:
            nursery.cancel_scope.cancel()
