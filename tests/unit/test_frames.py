"""What is read from the wire: the short way must see what nats-py's own parser sees, however the bytes are cut."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.errors import ProtocolError
from nats.protocol.parser import Parser

from meshforge_trio.broker.frames import MessageParser

Seen = tuple[str, Any]


class Listener:
    """Takes down what a parser calls."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        self.receive(sid, subject, reply, headers, data)

    def receive(self, sid: int, subject: bytes, reply: bytes, headers: bytes | None, data: bytes) -> None:
        self.seen.append(("msg", (sid, subject, reply, headers, data)))

    async def _process_ping(self) -> None:
        self.seen.append(("ping", None))

    async def _process_pong(self) -> None:
        self.seen.append(("pong", None))

    async def _process_err(self, text: str) -> None:
        self.seen.append(("err", text))

    async def _process_info(self, info: dict[str, Any]) -> None:
        self.seen.append(("info", info))


subjects = st.from_regex(rb"[a-z]{1,8}(\.[a-z]{1,8}){0,3}", fullmatch=True)
bodies = st.binary(max_size=40)


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    subject, body, sid = draw(subjects), draw(bodies), draw(st.integers(1, 3))
    reply = draw(st.one_of(st.none(), subjects))
    middle = b"%b %d " % (subject, sid) + (b"" if reply is None else reply + b" ")
    if draw(st.booleans()):
        block = b"NATS/1.0\r\nA: " + draw(st.from_regex(rb"[a-z]{0,9}", fullmatch=True)) + b"\r\n\r\n"
        return b"HMSG %b%d %d\r\n%b%b\r\n" % (middle, len(block), len(block) + len(body), block, body)
    return b"MSG %b%d\r\n%b\r\n" % (middle, len(body), body)


others = st.sampled_from([b"PING\r\n", b"PONG\r\n", b"+OK\r\n", b"-ERR 'Stale Connection'\r\n", b'INFO {"a":1}\r\n'])


def parsed(parser: Parser, chunks: list[bytes]) -> None:
    async def feed() -> None:
        for chunk in chunks:
            await parser.parse(chunk)

    asyncio.run(feed())


@given(st.lists(st.one_of(messages(), others), max_size=6), st.lists(st.integers(0, 400), max_size=12))
def test_it_sees_what_nats_py_sees(frames: list[bytes], cuts: list[int]) -> None:
    data = b"".join(frames)
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    chunks = [data[a:b] for a, b in itertools.pairwise(places)]
    theirs, ours = Listener(), Listener()

    def receiver(sid: int) -> Any:
        return lambda subject, reply, headers, body: ours.receive(sid, subject, reply, headers, body)

    parsed(Parser(theirs), [data])
    parsed(MessageParser(ours, {sid: receiver(sid) for sid in (1, 2, 3)}), chunks)
    assert ours.seen == theirs.seen


def test_a_message_for_nobody_is_dropped() -> None:
    listener = Listener()
    parsed(MessageParser(listener, {}), [b"MSG a 7 2\r\nhi\r\nPING\r\n"])
    assert listener.seen == [("ping", None)]


def test_rubbish_ends_the_connection() -> None:
    with pytest.raises(ProtocolError):
        parsed(MessageParser(Listener(), {}), [b"WHAT is this\r\n"])


def test_reset_forgets_what_is_half_read() -> None:
    listener = Listener()
    parser = MessageParser(listener, {})
    parsed(parser, [b"MSG a 1 5\r\nhe"])
    parser.reset()
    parsed(parser, [b"PING\r\n"])
    assert listener.seen == [("ping", None)]
