"""The crossing to nats-py: frames, headers, ACK subjects, and the ways a connection can end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client
from nats.aio.transport import TcpTransport

from meshforge_trio.broker.api import differences, headers_of, stream_config
from meshforge_trio.broker.bridge import Connection, ConnectOptions, connect, hpub, pub, status_of
from meshforge_trio.broker.consumer import parse_ack_subject
from meshforge_trio.broker.jetstream import open_broker
from meshforge_trio.broker.port import StreamSpec
from meshforge_trio.errors import Misconfigured, Poison, SessionLost
from meshforge_trio.server import PrivateServer

DEADLINE_S = 20

tokens = st.text("abcXYZ019_-", min_size=1, max_size=20)
numbers = st.integers(0, 2**63)
bodies = st.binary(max_size=200)


def read_frame(frame: bytes) -> tuple[str, str, bytes, bytes]:
    """Subject, reply, header block and body, read as the protocol says."""
    control, _, rest = frame.partition(b"\r\n")
    verb, *arguments = control.decode().split(" ")
    header_size = int(arguments[2]) if verb == "HPUB" else 0
    size = int(arguments[-1])
    assert rest[size:] == b"\r\n"
    return arguments[0], arguments[1], rest[:header_size], rest[header_size:size]


# --- frames


@given(subject=tokens, reply=st.one_of(st.just(""), tokens), body=bodies)
def test_a_pub_frame_says_what_it_was_given(subject: str, reply: str, body: bytes) -> None:
    assert read_frame(pub(subject, reply, body)) == (subject, reply, b"", body)


@given(
    subject=tokens,
    reply=tokens,
    msg_id=tokens,
    headers=st.dictionaries(tokens.map("X-".__add__), tokens, max_size=4),
    body=bodies,
)
def test_an_hpub_frame_says_what_it_was_given(
    subject: str, reply: str, msg_id: str, headers: dict[str, str], body: bytes
) -> None:
    frame = hpub(subject, reply, msg_id, headers, body, limit=10_000)
    told_subject, told_reply, block, told_body = read_frame(frame)
    assert (told_subject, told_reply, told_body) == (subject, reply, body)
    assert block.startswith(b"NATS/1.0\r\n")
    assert block.endswith(b"\r\n\r\n")
    assert headers_of(block) == {"Nats-Msg-Id": msg_id, **headers}


def test_headers_and_body_together_may_be_as_large_as_the_limit_and_no_larger() -> None:
    overhead = len("NATS/1.0\r\nNats-Msg-Id: m\r\n\r\n")
    hpub("s", "r", "m", {}, b"x" * 10, limit=overhead + 10)
    with pytest.raises(Poison) as refused:
        hpub("s", "r", "m", {}, b"x" * 11, limit=overhead + 10)
    assert refused.value.code == "too_large"


@given(st.text(min_size=1, max_size=8))
def test_no_header_value_can_start_a_line_of_its_own(value: str) -> None:
    try:
        frame = hpub("s", "r", "m", {"X": value}, b"", limit=10_000)
    except Poison:
        return
    assert len(read_frame(frame)[2].splitlines()) == 4
    assert frame.isascii()


@pytest.mark.parametrize("subject", ["", "a b", "a\tb", "a\r\nPUB x 0", "a\x00b", "a" * 2000, "a\u2003b"])
def test_a_subject_that_would_break_the_protocol_is_poison(subject: str) -> None:
    with pytest.raises(Poison) as refused:
        pub(subject, "", b"")
    assert refused.value.field == "subject"


# --- what arrives


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (None, 0),
        (b"", 0),
        (b"NATS/1.0\r\nNats-Msg-Id: 1\r\n\r\n", 0),
        (b"NATS/1.0 100 Idle Heartbeat\r\n\r\n", 100),
        (b"NATS/1.0 503\r\n\r\n", 503),
        (b"NATS/1.0 408 Request Timeout\r\nNats-Pending-Messages: 3\r\n\r\n", 408),
        (b"NATS/1.0 4x8\r\n\r\n", 0),
    ],
)
def test_status_lines(headers: bytes | None, status: int) -> None:
    assert status_of(headers) == status


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_nothing_that_arrives_makes_the_readers_raise(one: bytes, two: bytes) -> None:
    status_of(one)
    status_of(b"NATS/1.0 " + two)
    headers_of(one + b"\r\n" + two)
    parse_ack_subject(one)
    parse_ack_subject(b"$JS.ACK." + two)


@given(stream=tokens, consumer=tokens, delivered=numbers, stream_seq=numbers, consumer_seq=numbers, rest=numbers)
def test_every_form_of_an_ack_subject(
    stream: str, consumer: str, delivered: int, stream_seq: int, consumer_seq: int, rest: int
) -> None:
    tail = f"{stream}.{consumer}.{delivered}.{stream_seq}.{consumer_seq}.{rest}.{rest}"
    for subject in (f"$JS.ACK.{tail}", f"$JS.ACK.hub.AbC123.{tail}", f"$JS.ACK._.AbC123.{tail}.random"):
        assert parse_ack_subject(subject.encode()) == (delivered, stream_seq, consumer_seq)


@pytest.mark.parametrize(
    "subject",
    [
        b"",
        b"$JS.ACK.s.c.1.2.3.4",
        b"$JS.ACK.s.c.1.2.3.4.5.6",
        b"$JS.NAK.s.c.1.2.3.4.5",
        b"$JS.ACK.s.c.one.2.3.4.5",
        b"evt.a.b.c.d.e.f.g.h",
    ],
)
def test_what_is_no_ack_subject(subject: bytes) -> None:
    assert parse_ack_subject(subject) is None


def test_differences_name_each_setting() -> None:
    wanted = stream_config(StreamSpec("S", ("a.>", "b.>")))
    has = {**wanted, "subjects": ["b.>", "a.>"], "metadata": {"_nats.level": "5"}}
    assert differences(has, wanted) == []
    assert differences({**has, "storage": "memory"}, wanted) == ["storage is 'memory', should be 'file'"]
    del has["allow_direct"]
    assert differences(has, wanted) == ["allow_direct is None, should be True"]


def test_only_a_bounded_stream_refuses_what_is_new() -> None:
    assert stream_config(StreamSpec("S", ("a.>",)))["discard"] == "old"
    assert stream_config(StreamSpec("S", ("a.>",), max_bytes=9))["discard"] == "new"


# --- the ways a connection can end, or not begin


async def test_nobody_listens(aio_loop: object) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        with trio.fail_after(DEADLINE_S), pytest.raises(SessionLost, match="Connect"):
            await connect(ConnectOptions(urls=(f"nats://127.0.0.1:{port}",)))


async def test_without_a_loop() -> None:
    with pytest.raises(Misconfigured, match="open_loop"):
        await connect(ConnectOptions(urls=("nats://127.0.0.1:1",)))


async def test_an_unsuitable_url(aio_loop: object) -> None:
    with pytest.raises(Misconfigured, match="ws://"):
        await connect(ConnectOptions(urls=("ws://127.0.0.1:1",)))


async def test_credentials(aio_loop: object) -> None:
    with PrivateServer(config='authorization { user: "u", password: "p" }') as server, trio.fail_after(DEADLINE_S):
        with pytest.raises(Misconfigured, match="credentials"):
            await connect(ConnectOptions(urls=(server.url,), user="u", password="wrong"))
        async with open_broker(ConnectOptions(urls=(server.url,), user="u", password="p")) as broker:
            assert broker.facts.max_payload == 1 << 20


async def test_an_nkey(aio_loop: object) -> None:
    for bad in (
        ConnectOptions(urls=("nats://127.0.0.1:1",), nkey_seed="nonsense"),
        ConnectOptions(urls=("nats://127.0.0.1:1",), creds_file=Path("/nowhere/at.all")),
    ):
        with pytest.raises(Misconfigured, match=r"seed|creds"):
            await connect(bad)
    nkeys = pytest.importorskip("nkeys")
    public = nkeys.from_seed(nkeys.encode_seed(b"0" * 32, nkeys.PREFIX_BYTE_USER)).public_key.decode()
    seed = nkeys.encode_seed(b"0" * 32, nkeys.PREFIX_BYTE_USER).decode()
    with PrivateServer(config=f"authorization {{ users: [ {{ nkey: {public} }} ] }}") as server:
        with trio.fail_after(DEADLINE_S):
            connection = await connect(ConnectOptions(urls=(server.url,), nkey_seed=seed))
            await connection.aclose()


async def test_an_old_server_is_refused(
    aio_loop: object, nats_server: PrivateServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshforge_trio.broker.jetstream.MINIMUM_VERSION", (99, 0))
    with trio.fail_after(DEADLINE_S), pytest.raises(Misconfigured, match=r"too old, 99\.0 is needed"):
        async with open_broker(nats_server.url):
            pass


async def test_a_changed_nats_py_is_named(
    aio_loop: object, nats_server: PrivateServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Later(Client):
        """As a later version might have it."""

        def __init__(self) -> None:
            super().__init__()
            del self._server_info

    monkeypatch.setattr("meshforge_trio.broker.bridge.Client", Later)
    with pytest.raises(Misconfigured, match=r"nats-py 2\.\d+\.\d+ changed inside \(_server_info\)"):
        await connect(ConnectOptions(urls=(nats_server.url,)))


async def lost_by(server: PrivateServer, fault: Callable[[Connection], object]) -> str:
    connection = await connect(ConnectOptions(urls=(server.url,), probe_s=0.2))
    fault(connection)
    with trio.fail_after(DEADLINE_S):
        reason = await connection.wait_lost()
        with pytest.raises(SessionLost):
            connection.write(b"PUB a 0\r\n\r\n")
        await connection.aclose()
    return reason


async def test_a_read_loop_that_ends_without_a_word(aio_loop: object, nats_server: PrivateServer) -> None:
    def end_it(connection: Connection) -> None:
        task = connection._client._reading_task
        assert task is not None
        task.cancel()

    assert await lost_by(nats_server, end_it) == "the read loop ended"


async def test_a_receiver_that_raises(aio_loop: object, nats_server: PrivateServer) -> None:
    def raise_in_receiver(connection: Connection) -> None:
        connection.subscribe("boom", lambda *_: 1 / 0)  # type: ignore[arg-type]
        connection.write(pub("boom", "", b""))

    assert await lost_by(nats_server, raise_in_receiver) == "the read loop ended"


async def test_an_asyncio_error_nobody_awaited(aio_loop: asyncio.AbstractEventLoop, nats_server: PrivateServer) -> None:
    def call_handler(connection: Connection) -> None:
        context: dict[str, Any] = {"message": "never retrieved", "exception": ValueError("x")}
        aio_loop.call_exception_handler(context)

    assert "ValueError" in await lost_by(nats_server, call_handler)


async def test_a_protocol_error_names_what_the_server_said(aio_loop: object, nats_server: PrivateServer) -> None:
    assert await lost_by(nats_server, lambda connection: connection.write(b"NONSENSE\r\n"))


async def test_a_paused_server_and_a_killed_one(aio_loop: object, nats_server: PrivateServer) -> None:
    assert "not answered" in await lost_by(nats_server, lambda _: nats_server.pause())
    nats_server.resume()
    assert await lost_by(nats_server, lambda _: nats_server.kill())


async def test_sessions_on_one_loop_end_one_by_one(aio_loop: object, nats_server: PrivateServer) -> None:
    options = ConnectOptions(urls=(nats_server.url,))
    one, two = await connect(options), await connect(options)
    await one.aclose()
    assert one.lost == "closed"
    await two.round_trip(DEADLINE_S)
    await two.aclose()


async def test_what_was_written_before_closing_arrives(aio_loop: object, nats_server: PrivateServer) -> None:
    options = ConnectOptions(urls=(nats_server.url,))
    one, two = await connect(options), await connect(options)
    heard: list[bytes] = []
    all_heard = trio.Event()

    def hear(_subject: bytes, _reply: bytes, _headers: bytes | None, body: bytes) -> None:
        heard.append(body)
        if len(heard) == 500:
            all_heard.set()

    two.subscribe("last.words", hear)
    await two.round_trip(DEADLINE_S)
    one.write(b"".join(pub("last.words", "", b"%d" % n + b"x" * 2000) for n in range(500)))
    await one.aclose()
    with trio.fail_after(DEADLINE_S):
        await all_heard.wait()
    await two.aclose()


async def test_closing_drops_what_a_hanging_server_does_not_read(aio_loop: object, nats_server: PrivateServer) -> None:
    connection = await connect(ConnectOptions(urls=(nats_server.url,)))
    nats_server.pause()
    connection.write(pub("a", "", b"x" * 30_000_000))
    transport = cast(TcpTransport, connection._client._transport)._io_writer
    assert transport is not None
    assert transport.transport.get_write_buffer_size() > 0
    with trio.fail_after(DEADLINE_S):
        await connection.aclose()
    assert transport.transport.get_write_buffer_size() == 0


async def test_an_unsubscribed_receiver_hears_nothing_more(aio_loop: object, nats_server: PrivateServer) -> None:
    connection = await connect(ConnectOptions(urls=(nats_server.url,)))
    heard: list[bytes] = []
    sid = connection.subscribe("here", lambda _s, _r, _h, body: heard.append(body))
    connection.write(pub("here", "", b"1"))
    await connection.round_trip(DEADLINE_S)
    connection.unsubscribe(sid)
    connection.write(pub("here", "", b"2"))
    await connection.round_trip(DEADLINE_S)
    await connection.aclose()
    assert heard == [b"1"]


async def test_a_dial_that_is_cancelled_at_once_is_cancelled(aio_loop: object, nats_server: PrivateServer) -> None:
    """It used to raise what nats-py says of closing a client that had never begun to connect."""
    for delay in (0.0, 0.0005, 0.001, 0.002, 0.004):
        with trio.move_on_after(delay):
            connection = await connect(ConnectOptions(urls=(nats_server.url,)))
            await connection.aclose()
