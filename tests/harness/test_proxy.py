"""What befalls a frame, to the byte: between a client and a server that say what they are told to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from chaos.faults.frames import KINDS
from chaos.faults.proxy import ACTIONS, open_proxy
from chaos.history import History, Record, read_history
from chaos.plan import Rule
from meshforge_trio.broker.frames import pub

from .proxy_lines import ACK, AFTER, BEFORE, FRAMES, HELLO, INBOX, PULL, TO_CLIENT, broken, lines, read, rest


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    made = History.open(tmp_path / "history.jsonl", "harness")
    made.write("header", version=1, scenario="", plan="", app="")
    yield made
    made.close()


def recorded(tmp_path: Path) -> list[Record]:
    """What the proxy has written so far."""
    return [record for record in read_history(tmp_path / "history.jsonl") if record.actor == "proxy"]


def told(tmp_path: Path) -> list[tuple[str, str]]:
    return [(record.kind, record["rule"]) for record in recorded(tmp_path)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("action", [action for action in ACTIONS if action.startswith("cut")])
async def test_a_cut_stands_at_its_frame(kind: str, action: str, tmp_path: Path, history: History) -> None:
    rule = f"proxy:{kind}@{1 + (kind == 'publish')}={action}"
    frame = FRAMES[kind]
    async with lines(rule, history=history) as world:
        line, beside = await world.dial(), await world.dial()
        await line.greet()
        source, target = (line.server, line.client) if kind in TO_CLIENT else (line.client, line.server)
        await source.send_all(BEFORE + frame + AFTER)
        assert await rest(target) == (BEFORE + frame * (action == "cut_after"), "end")
        assert await rest(source) == (b"", "reset")
        assert told(tmp_path) == [("fault", rule)]
        assert world.proxy.fired == [rule]
        await beside.works()
        await (await world.dial()).greet()
        assert told(tmp_path) == [("fault", rule), ("healed", rule)]
        # A rule fires once.
        assert world.proxy.fired == [rule]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_swallowed_frame_is_the_only_one_lost(kind: str, tmp_path: Path, history: History) -> None:
    rule = f"proxy:{kind}@{1 + (kind == 'publish')}=swallow"
    frame = FRAMES[kind]
    async with lines(rule, history=history) as world:
        line = await world.dial()
        await line.greet()
        source, target = (line.server, line.client) if kind in TO_CLIENT else (line.client, line.server)
        await source.send_all(BEFORE + frame + AFTER)
        assert await read(target, len(BEFORE + AFTER)) == BEFORE + AFTER
        assert told(tmp_path) == [("fault", rule), ("healed", rule)]
        assert world.proxy.fired == [rule]
        await line.works()
        # The next of its kind comes through.
        await source.send_all(frame)
        assert await read(target, len(frame)) == frame


async def test_while_it_is_calm_rules_wait(tmp_path: Path, history: History) -> None:
    rule = "proxy:ack@2=swallow"
    frame = FRAMES["ack"]
    async with lines(rule, history=history) as world:
        line = await world.dial()
        await line.greet()
        world.proxy.calm = True
        for _ in range(3):
            await line.client.send_all(frame)
            assert await read(line.server, len(frame)) == frame
        assert "ack" not in world.proxy.passed
        world.proxy.calm = False
        await line.client.send_all(frame + frame + AFTER)
        assert await read(line.server, len(frame + AFTER)) == frame + AFTER
        assert world.proxy.fired == [rule]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_black_hole_takes_all_from_its_frame_on(kind: str, tmp_path: Path, history: History) -> None:
    rule = f"proxy:{kind}@{1 + (kind == 'publish')}=blackhole"
    async with lines(rule, history=history) as world:
        line, beside = await world.dial(), await world.dial()
        await line.greet()
        source, target = (line.server, line.client) if kind in TO_CLIENT else (line.client, line.server)
        await source.send_all(BEFORE + FRAMES[kind] + AFTER)
        assert await read(target, len(BEFORE)) == BEFORE
        for stream in (source, target):
            await stream.send_all(AFTER)
        await beside.works()
        assert told(tmp_path) == [("fault", rule)]
        assert world.proxy.fired == [rule]
        await line.client.send_eof()
        # What still came through would be read here.
        assert await rest(line.client) == (b"", "end")
        assert await rest(line.server) == (b"", "reset")
        assert told(tmp_path) == [("fault", rule), ("healed", rule)]
        await (await world.dial()).works()


async def test_a_black_hole_hides_the_end_of_the_server() -> None:
    async with lines("proxy:pull@1=blackhole") as world:
        line = await world.dial()
        await line.client.send_all(FRAMES["pull"])
        while not world.proxy.fired:
            await trio.sleep(0.001)
        await line.server.aclose()
        with trio.move_on_after(0.2) as waited:
            await line.client.receive_some()
        assert waited.cancelled_caught
        await line.client.send_eof()
        assert await rest(line.client) == (b"", "end")


async def test_a_cut_does_not_wait_for_a_side_that_stays() -> None:
    async with lines("proxy:pull@1=cut_after") as world:
        line = await world.dial()
        await line.client.send_all(FRAMES["pull"])
        assert await rest(line.server) == (FRAMES["pull"], "end")
        assert await broken(line.server)


async def test_a_long_burst_before_a_cut_arrives_whole() -> None:
    """A reset would throw away what the other side has not read yet."""
    burst = FRAMES["publish"] * 5_000
    async with lines("proxy:ack@1=cut_after") as world:
        line = await world.dial()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(line.client.send_all, burst + FRAMES["ack"] + AFTER)
            assert await rest(line.server) == (burst + FRAMES["ack"], "end")


async def test_frames_are_counted_over_all_connections() -> None:
    frames = FRAMES["publish"] + FRAMES["ack"]
    async with lines("proxy:publish@3=cut_before; proxy:ack@2=swallow") as world:
        made = [await world.dial() for _ in range(3)]
        for line, expected in zip(made, (frames, FRAMES["publish"], b""), strict=True):
            await line.client.send_all(frames)
            assert await read(line.server, len(expected)) == expected
        assert await rest(made[2].server) == (b"", "end")
        for line in made[:2]:
            await line.works()
        assert world.proxy.fired == ["proxy:ack@2=swallow", "proxy:publish@3=cut_before"]
        assert world.proxy.passed == {"publish": 3, "ack": 2}


async def test_several_rules_befall_one_connection() -> None:
    async with lines("proxy:ack@1=swallow; proxy:ack@3=swallow; proxy:ack@4=cut_after") as world:
        line = await world.dial()
        numbered = [pub(ACK, f"_INBOX.{number}", b"+ACK") for number in range(1, 6)]
        await line.client.send_all(b"".join(numbered))
        assert await rest(line.server) == (numbered[1] + numbered[3], "end")


async def test_a_server_that_is_down_is_told_at_once(tmp_path: Path, history: History) -> None:
    rule = "proxy:ack@1=cut_before"
    async with lines(rule, history=history) as world:
        line = await world.dial()
        await line.client.send_all(FRAMES["ack"])
        assert await rest(line.server) == (b"", "end")
        await world.listener.aclose()
        client = await trio.open_tcp_stream("127.0.0.1", world.proxy.port)
        assert await rest(client) == (b"", "reset")
        await client.aclose()
        # No connection was made, so nothing is whole again.
        assert told(tmp_path) == [("fault", rule)]


async def test_frames_are_written_down(tmp_path: Path, history: History) -> None:
    rules = ["proxy:nak@1=swallow", "proxy:extend@1=cut_after"]
    async with lines(*rules, history=history, record_frames=True) as world:
        line = await world.dial()
        await line.greet()
        for kind in ("publish", "pull", "ack", "nak", "puback", "delivery"):
            await (line.server if kind in TO_CLIENT else line.client).send_all(FRAMES[kind] + BEFORE)
            await read(line.client if kind in TO_CLIENT else line.server, len(FRAMES[kind]) * (kind != "nak") + 6)
        other = await world.dial()
        await other.client.send_all(FRAMES["extend"])
        await rest(other.server)
    size = {kind: len(frame) for kind, frame in FRAMES.items()}
    hello = len(HELLO) - len(b"CONNECT {}\r\n")
    event = {"subject": "evt.t.w.a.done", "msg_id": "m2", "id": "e2"}
    place = {"subject": ACK, "msg_id": "", "seq": 17}
    frames = [
        {"frame": "publish", "conn": 1, "bytes": hello, "subject": "cmd.t.w.a.do", "msg_id": ""},
        {"frame": "publish", "conn": 1, "bytes": size["publish"], **event},
        {"frame": "pull", "conn": 1, "bytes": size["pull"], "subject": PULL, "msg_id": ""},
        {"frame": "ack", "conn": 1, "bytes": size["ack"], **place},
        {"rule": rules[0]},
        {"frame": "nak", "conn": 1, "bytes": size["nak"], **place, "lost": True},
        {"rule": rules[0]},
        {"frame": "puback", "conn": 1, "bytes": size["puback"], "subject": INBOX, "msg_id": "", "seq": 7},
        {"frame": "delivery", "conn": 1, "bytes": size["delivery"], "subject": "cmd.t.w.a.do", "msg_id": "", "seq": 17}
        | {"id": "c1"},
        {"rule": rules[1]},
        {"frame": "extend", "conn": 2, "bytes": size["extend"], **place},
    ]
    assert [record.fields for record in recorded(tmp_path)] == frames


@pytest.mark.parametrize(
    "rules",
    [
        [Rule("proxy", 0, "echo", 1, "swallow")],
        [Rule("proxy", 0, "ack", 1, "kill")],
        [Rule("proxy", 0, "ack", 0, "swallow")],
        [Rule("proxy", 0, "ack", 1, "swallow"), Rule("proxy", 0, "ack", 1, "cut_after")],
    ],
    ids=str,
)
async def test_rules_it_cannot_follow_are_refused(rules: list[Rule]) -> None:
    with pytest.raises(ValueError, match="proxy:"):
        async with open_proxy(1, rules):
            pass
