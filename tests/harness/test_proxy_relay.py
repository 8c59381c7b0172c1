"""Where no fault befalls it a connection through the proxy is like one without: its bytes, its pace, its ends."""

from __future__ import annotations

import pytest
import trio

from chaos.faults.proxy import open_proxy
from meshforge_trio.broker.frames import hpub, pub
from meshforge_trio.server import PrivateServer

from .proxy_lines import DEADLINE_S, FRAMES, HELLO, INBOX, INFO, lines, read, rest


async def test_what_is_not_understood_passes_untouched_and_unharmed() -> None:
    """Also what the other side says from then on, and what was held of it."""
    odd = b"\x16\x03\x01" + FRAMES["publish"] * 2
    async with lines("proxy:publish@2=cut_before; proxy:delivery@1=cut_before") as world:
        line, beside = await world.dial(), await world.dial()
        await line.greet()
        held = FRAMES["delivery"][:-4]
        await line.server.send_all(held)
        await line.client.send_all(odd)
        assert await read(line.server, len(odd)) == odd
        await line.server.send_all(FRAMES["delivery"][-4:] + b"no frame")
        assert await read(line.client, len(FRAMES["delivery"]) + 8) == FRAMES["delivery"] + b"no frame"
        await line.client.send_all(FRAMES["publish"])
        assert await read(line.server, len(FRAMES["publish"])) == FRAMES["publish"]
        assert world.proxy.fired == []
        (reason,) = world.proxy.misread
        assert reason.startswith("connection 1: b'\\x16\\x03\\x01HPUB evt")
        # Other connections are understood.
        await beside.client.send_all(FRAMES["publish"])
        assert await rest(beside.server) == (b"", "end")


async def test_bytes_come_through_as_they_are_in_both_directions_at_once() -> None:
    """In pieces of every size, slowly and fast, on three connections of which none sees the others' bytes."""
    large = pub("evt.t.w.a.large", "", b"\r\nPING\r\n" * 100_000)

    async def say(stream: trio.SocketStream, text: bytes) -> None:
        at, size = 0, 1
        while at < len(text):
            await stream.send_all(text[at : at + size])
            at, size = at + size, size * 3 % 150_001 + 1
        await stream.send_eof()

    async def hear(stream: trio.SocketStream, text: bytes) -> None:
        assert await rest(stream) == (text, "end")

    async with lines() as world, trio.open_nursery() as nursery:
        for number in range(3):
            line = await world.dial()
            own = pub(f"evt.t.w.a.of{number}", "", b"%d" % number) * 2_000
            up = HELLO + own + large + FRAMES["ack"] * 2_000 + b"PUB evt.half 12\r\nnot who"
            down = INFO + own.replace(b"PUB ", b"MSG ").replace(b"  1", b" 7 1") + FRAMES["delivery"] * 3_000 + b"-ER"
            nursery.start_soon(say, line.client, up)
            nursery.start_soon(hear, line.server, up)
            nursery.start_soon(say, line.server, down)
            nursery.start_soon(hear, line.client, down)


@pytest.mark.parametrize("closing", ["client", "server"])
async def test_what_a_side_sent_before_it_closed_arrives(closing: str) -> None:
    last = (FRAMES["publish"] if closing == "client" else FRAMES["delivery"]) * 10_000
    async with lines() as world:
        line = await world.dial()
        source, target = (line.client, line.server) if closing == "client" else (line.server, line.client)
        async with trio.open_nursery() as nursery:

            async def close() -> None:
                await source.send_all(last)
                await source.aclose()

            nursery.start_soon(close)
            assert await rest(target) == (last, "end")


async def test_the_end_of_one_side_is_told_at_once_and_the_other_may_finish() -> None:
    async with lines() as world:
        line = await world.dial()
        await line.greet()
        await line.client.send_eof()
        assert await rest(line.server) == (b"", "end")
        await line.server.send_all(FRAMES["delivery"])
        await line.server.aclose()
        assert await rest(line.client) == (FRAMES["delivery"], "end")


async def test_a_side_that_does_not_read_holds_the_other_up() -> None:
    # More than all buffers on the way hold.
    burst = pub("evt.t.w.a.large", "", bytes(10_000)) * 3_000
    async with lines() as world:
        line = await world.dial()
        async with trio.open_nursery() as nursery:
            unfinished = True

            async def send() -> None:
                nonlocal unfinished
                await line.client.send_all(burst)
                await line.client.send_eof()
                unfinished = False

            nursery.start_soon(send)
            await trio.sleep(0.5)
            assert unfinished
            assert await rest(line.server) == (burst, "end")


async def test_nothing_outlives_the_proxy() -> None:
    async with lines() as world:
        line = await world.dial()
        await line.greet()
        made, port = line, world.proxy.port
        world.streams.clear()
    for stream in (made.client, made.server):
        assert (await rest(stream))[0] == b""
        await stream.aclose()
    with pytest.raises(OSError, match="all attempts"):
        await trio.open_tcp_stream("127.0.0.1", port)


async def test_a_real_server_hears_and_says_the_same(nats_server: PrivateServer) -> None:
    body = b"\r\nPING\r\nMSG a 1 2\r\n\x00\xff"
    script = b"".join(
        [
            b'CONNECT {"verbose":true,"headers":true}\r\n',
            b"SUB evt.>  7\r\n",
            hpub("evt.t.w.a.done", INBOX, "m1", {"traceparent": "x"}, body, limit=1 << 20),
            pub("evt.t.w.a.done", "", body * 1_000),
            b"pub  evt.t.w.a.odd\t002\r\nhi\r\n",
            b"UNSUB 7\r\n",
            b"PUB evt.t.w.a.gone 0\r\n\r\n",
            b"PING\r\n",
            b"WHAT\r\n",
        ]
    )

    async def said(port: int) -> bytes:
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(script)
            heard, how = await rest(stream)
        assert how == "end"
        info, _, answers = heard.partition(b"\r\n")
        assert info.startswith(b"INFO {")
        return answers

    with trio.fail_after(DEADLINE_S):
        async with open_proxy(nats_server.port) as proxy:
            straight = await said(nats_server.port)
            assert await said(proxy.port) == straight
            assert straight.count(b"MSG evt.") == 3
            assert straight.endswith(b"-ERR 'Unknown Protocol Operation'\r\n")
            assert len(proxy.misread) == 1
