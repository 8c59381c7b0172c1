"""Commands that nobody serves: found, told apart from those that wait their turn, written out and deleted."""

from __future__ import annotations

import json
import signal
from asyncio import AbstractEventLoop
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import orjson
import pytest
import trio

from meshforge_trio.broker.api import JetStreamApi
from meshforge_trio.broker.bridge import Connection, ConnectOptions, connect, open_loop, pub
from meshforge_trio.errors import Misconfigured
from meshforge_trio.policy import ExitCode
from meshforge_trio.server import PrivateServer
from meshforge_trio.stranded import CommandStream, open_command_stream, sweep
from meshforge_trio.subjects import COMMANDS, Scope, consumer_name

from .cli_world import Shop, eventually, shop

ORDER = consumer_name(Scope("default", "demo", "order"))
_NS = 1_000_000_000


@attrs.frozen
class Stream:
    """The command stream as a test sets it up, without a runtime."""

    connection: Connection
    api: JetStreamApi
    stream: CommandStream

    async def asks(self, verb: str, body: object = None) -> dict[str, Any]:
        """Have something of the JetStream API done."""
        reply = await self.api.request(verb, body)
        assert "error" not in reply, reply
        return reply

    async def consumer(self, name: str, *filters: str, action: str = "create", **more: Any) -> None:
        """Create or update a durable."""
        config = {
            "durable_name": name,
            "filter_subjects": filters,
            "deliver_policy": "all",
            "ack_policy": "explicit",
            "ack_wait": _NS // 5,
            **more,
        }
        ask = {"stream_name": COMMANDS, "config": config, "action": action}
        await self.asks(f"CONSUMER.CREATE.{COMMANDS}.{name}", ask)

    async def sends(self, *subjects: str) -> None:
        """Publish, and wait until it is stored."""
        before = (await self.asks(f"STREAM.INFO.{COMMANDS}"))["state"]["last_seq"]
        for subject in subjects:
            self.connection.write(pub(subject, "", b"{}"))
        with trio.fail_after(30):
            while (await self.asks(f"STREAM.INFO.{COMMANDS}"))["state"]["last_seq"] < before + len(subjects):
                await trio.sleep(0.01)

    async def takes(self, name: str, count: int, *, ack: bool) -> None:
        """Pull so many and ACK them or not."""
        replies: list[bytes] = []
        inbox = self.connection.new_inbox()
        sid = self.connection.subscribe(inbox, lambda _s, reply, _h, _b: replies.append(reply))
        ask = {"batch": count, "expires": 30 * _NS}
        self.connection.write(pub(f"$JS.API.CONSUMER.MSG.NEXT.{COMMANDS}.{name}", inbox, orjson.dumps(ask)))
        with trio.fail_after(30):
            while len(replies) < count:
                await trio.sleep(0.01)
        for reply in replies if ack else ():
            self.connection.write(pub(reply.decode(), "", b"+ACK"))
        self.connection.unsubscribe(sid)
        await self.connection.round_trip(5.0)

    async def swept(self, *served: str, older_than_s: float = 0.0) -> dict[str, tuple[str, Sequence[int]]]:
        """Why each subject is stranded, and where."""
        found = await sweep(self.stream, served=frozenset(served), older_than_s=older_than_s, wanted=lambda _: True)
        assert len({stranded.subject for stranded in found}) == len(found)
        return {stranded.subject: (stranded.why, stranded.seqs) for stranded in found}


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Stream]:
    options = ConnectOptions(urls=(url,), name="test")
    connection = await connect(options)
    async with open_command_stream(options) as stream:
        yield Stream(connection, JetStreamApi(connection), stream)
    await connection.aclose()


@pytest.fixture
async def made(nats_server: PrivateServer, aio_loop: AbstractEventLoop) -> AsyncIterator[Stream]:
    async with opened(nats_server.url) as stream:
        await stream.asks(
            f"STREAM.CREATE.{COMMANDS}",
            {"name": COMMANDS, "subjects": ["cmd.>"], "retention": "workqueue", "storage": "file"},
        )
        yield stream


async def test_no_stream_strands_nothing(nats_server: PrivateServer, aio_loop: AbstractEventLoop) -> None:
    async with opened(nats_server.url) as stream:
        assert await stream.swept() == {}


async def test_a_subject_that_no_consumer_takes(made: Stream) -> None:
    await made.consumer("a", "cmd.t.w.a.>")
    await made.sends("cmd.t.w.a.do", "cmd.t.w.b.do", "cmd.t.w.b.do", "cmd.t.w.c.do", "cmd.odd")
    assert await made.swept("a") == {
        "cmd.t.w.b.do": ("unaddressed", (2, 3)),
        "cmd.t.w.c.do": ("unaddressed", (4,)),
        "cmd.odd": ("unaddressed", (5,)),
    }


async def test_a_subject_with_a_wildcard_in_it_stands_for_itself(made: Stream) -> None:
    await made.consumer("a", "cmd.t.w.a.>")
    await made.sends("cmd.t.w.a.do", "cmd.t.w.*.do", "cmd.>")
    assert await made.swept("a") == {"cmd.t.w.*.do": ("unaddressed", (2,)), "cmd.>": ("unaddressed", (3,))}


async def test_a_consumer_nobody_pulls_from(made: Stream) -> None:
    await made.consumer("a", "cmd.t.w.a.>")
    await made.consumer("b", "cmd.t.w.b.>")
    await made.sends("cmd.t.w.a.do", "cmd.t.w.b.do", "cmd.t.w.a.else", "cmd.t.w.a.do")
    await made.takes("a", 1, ack=False)
    assert await made.swept("b") == {
        "cmd.t.w.a.do": ("unattended", (1, 4)),
        "cmd.t.w.a.else": ("unattended", (3,)),
    }
    assert await made.swept("b", older_than_s=3600) == {}
    assert await made.swept("a", "b") == {}


async def test_who_waits_for_more_attends(made: Stream, nursery: trio.Nursery) -> None:
    await made.consumer("a", "cmd.t.w.a.>", max_ack_pending=1, ack_wait=3600 * _NS)
    await made.sends("cmd.t.w.a.do", "cmd.t.w.a.do")
    await made.takes("a", 1, ack=False)
    # Nothing moves while the first is in hand, but its pull waits at the server.
    nursery.start_soon(partial(made.takes, "a", 1, ack=False))
    with trio.fail_after(30):
        while not (await made.stream.consumer(COMMANDS, "a") or {})["num_waiting"]:
            await trio.sleep(0.01)
    assert await made.swept() == {}
    nursery.cancel_scope.cancel()


async def test_who_takes_one_now_and_then_attends(made: Stream, nursery: trio.Nursery) -> None:
    await made.consumer("a", "cmd.t.w.a.>", ack_wait=3600 * _NS)
    await made.sends(*["cmd.t.w.a.do"] * 600)

    async def now_and_then() -> None:
        # Each pull is answered at once, so none is ever seen to wait.
        while True:
            await made.takes("a", 1, ack=False)
            await trio.sleep(0.01)

    nursery.start_soon(now_and_then)
    assert await made.swept() == {}
    nursery.cancel_scope.cancel()


async def test_what_reached_a_delivery_limit_is_passed_over(made: Stream) -> None:
    await made.consumer("a", "cmd.t.w.a.>", max_deliver=1)
    await made.sends("cmd.t.w.a.do", "cmd.t.w.a.do", "cmd.t.w.a.more")
    await made.takes("a", 2, ack=False)
    with trio.fail_after(30):
        # The server notices the limit when it would deliver once more.
        while (await made.stream.consumer(COMMANDS, "a") or {})["num_ack_pending"]:
            await trio.sleep(0.05)
    assert await made.swept("a") == {"cmd.t.w.a.do": ("passed_over", (1, 2))}
    assert await made.swept() == {
        "cmd.t.w.a.do": ("passed_over", (1, 2)),
        "cmd.t.w.a.more": ("unattended", (3,)),
    }
    # A new session's reset does not bring them back.
    await made.asks(f"CONSUMER.RESET.{COMMANDS}.a")
    await made.takes("a", 1, ack=True)
    assert await made.swept("a") == {"cmd.t.w.a.do": ("passed_over", (1, 2))}


async def test_what_a_filter_came_too_late_for_is_passed_over(made: Stream) -> None:
    await made.consumer("a", "cmd.t.w.a.>")
    await made.sends("cmd.t.w.b.do", "cmd.t.w.a.do")
    await made.takes("a", 1, ack=True)
    assert await made.swept("a") == {"cmd.t.w.b.do": ("unaddressed", (1,))}
    await made.consumer("a", "cmd.t.w.a.>", "cmd.t.w.b.>", action="update")
    assert await made.swept("a") == {"cmd.t.w.b.do": ("passed_over", (1,))}


async def test_what_is_in_hand_or_comes_next_is_not_stranded(made: Stream) -> None:
    await made.consumer("a", "cmd.t.w.a.>", ack_wait=3600 * _NS)
    await made.sends(*["cmd.t.w.a.do"] * 6)
    await made.takes("a", 2, ack=True)
    await made.takes("a", 2, ack=False)
    assert await made.swept("a") == {}
    # Nor is what a new session gets anew.
    await made.asks(f"CONSUMER.RESET.{COMMANDS}.a")
    assert await made.swept("a") == {}
    await made.takes("a", 1, ack=False)
    assert await made.swept("a") == {}


async def test_only_the_message_that_was_meant_is_deleted(made: Stream) -> None:
    await made.sends("cmd.t.w.a.do", "cmd.t.w.a.do")
    kept = await made.stream.kept(1)
    assert kept is not None
    assert not await made.stream.delete(attrs.evolve(kept.found, subject="cmd.t.w.b.do"))
    assert not await made.stream.delete(attrs.evolve(kept.found, at=kept.found.at + 1))
    assert await made.stream.delete(kept.found)
    assert not await made.stream.delete(kept.found)
    assert await made.stream.kept(1) is None
    assert (await made.asks(f"STREAM.INFO.{COMMANDS}"))["state"]["messages"] == 1


async def test_a_stream_may_refuse_deletion(nats_server: PrivateServer, aio_loop: AbstractEventLoop) -> None:
    async with opened(nats_server.url) as stream:
        config = {"name": COMMANDS, "subjects": ["cmd.>"], "deny_delete": True}
        await stream.asks(f"STREAM.CREATE.{COMMANDS}", config)
        await stream.sends("cmd.t.w.a.do")
        kept = await stream.stream.kept(1)
        assert kept is not None
        with pytest.raises(Misconfigured, match="sequence 1"):
            await stream.stream.delete(kept.found)


# --- through the command line, beside real workers


@pytest.fixture
def at(tmp_path: Path, nats_server: PrivateServer) -> Shop:
    return shop(tmp_path, nats_server.url)


def swept(at: Shop, *args: str) -> list[tuple[str, str, int]]:
    result = at.does("dlq", "sweep", "--older-than", "0s", *args, "--json")
    assert result.code == (ExitCode.FAILED if result.documents else ExitCode.OK), result
    return [(d["subject"], d["why"], d["count"]) for d in result.documents]


def test_sweep_export_and_delete(at: Shop) -> None:
    with at.served() as worker:
        assert swept(at) == []
        at.answers("call", "order", "create", "--entity", "o-1")
        at.answers("send", "order", "slow", '{"s": 2}', "--entity", "o-2")
        at.answers("send", "order", "create", "--entity", "o-3")
        at.answers("send", "nobody", "create", "--entity", "n-1", "--key", "lost")
        # What a worker has in hand is not stranded, nor what waits behind it, nor what is young.
        assert swept(at) == [("cmd.default.demo.nobody.create", "unaddressed", 1)]
        assert at.does("dlq", "sweep").code == ExitCode.OK
        # Its answer says that all before it are decided; a worker that drains leaves what it has not pulled.
        at.answers("call", "order", "create", "--entity", "o-4")
        worker.process.send_signal(signal.SIGTERM)
        assert worker.ended() == ExitCode.OK
    at.answers("send", "inventory", "create", "--entity", "i-1", "--key", "late")
    nobody = ("cmd.default.demo.nobody.create", "unaddressed", 1)
    assert swept(at) == [nobody, ("cmd.default.demo.inventory.create", "unattended", 1)]
    assert swept(at, "--workspace", "else/where") == []
    told = at.does("dlq", "sweep", "--older-than", "0s")
    assert told.code == ExitCode.FAILED
    assert "no consumer takes this subject" in told.out
    assert "start `meshforge run` for it" in told.out

    target = at.home / "stranded.jsonl"
    with at.served():
        eventually(lambda: swept(at) == [nobody], "the worker takes its own")
        asked = at.does("dlq", "sweep", "--older-than", "0s", "--export", str(target))
        assert asked.code == ExitCode.FAILED
        assert swept(at) == [nobody], "nothing was deleted"
        again = at.does("dlq", "sweep", "--older-than", "0s", "--export", str(target), "--delete", "--yes")
        assert (again.code, swept(at)) == (ExitCode.FAILED, [nobody])
        assert "--force" in again.err
        done = at.does("dlq", "sweep", "--older-than", "0s", "--export", str(target), "--force", "--delete", "--yes")
        assert done.code == ExitCode.OK
        assert "1 deleted, 0 were gone already" in done.err
        assert swept(at) == []
    (document,) = [json.loads(line) for line in target.read_text().splitlines()]
    assert document["subject"] == "cmd.default.demo.nobody.create"
    assert document["why"] == "unaddressed"
    assert orjson.loads(document["payload"])["idempotency_key"] == "lost"
    assert document["headers"].startswith("NATS/1.0\r\nNats-Msg-Id: ")


def test_without_a_store_the_broker_tells_who_pulls(at: Shop) -> None:
    with at.served():
        assert swept(at, "--store", "nosuch.db") == []
        at.answers("call", "order", "create", "--entity", "o-1")
    at.answers("send", "order", "create", "--entity", "o-2")
    found = [("cmd.default.demo.order.create", "unattended", 1)]
    assert eventually(lambda: swept(at, "--store", "nosuch.db") == found, "its pulls have expired")


def test_a_killed_worker_is_known_to_be_gone(at: Shop) -> None:
    with at.served() as worker:
        worker.process.kill()
        worker.ended()
        at.answers("send", "order", "create", "--entity", "o-1")
        eventually(lambda: swept(at) == [("cmd.default.demo.order.create", "unattended", 1)], "its lease has ended")


def test_what_a_limit_stranded_is_found_beside_the_worker_that_passes_it(at: Shop) -> None:
    with at.served() as worker:
        worker.process.send_signal(signal.SIGTERM)
        assert worker.ended() == ExitCode.OK
    at.answers("send", "order", "create", "--entity", "o-1", "--key", "stranded")

    async def strand() -> None:
        async with open_loop(), opened(at.url) as stream:
            info = await stream.asks(f"CONSUMER.INFO.{COMMANDS}.{ORDER}")
            path = f"CONSUMER.CREATE.{COMMANDS}.{ORDER}"
            for limit in (1, -1):
                config = {**info["config"], "max_deliver": limit, "ack_wait": _NS // 5}
                ask = {"stream_name": COMMANDS, "config": config, "action": "update"}
                await stream.asks(path, ask)
                if limit > 0:
                    await stream.takes(ORDER, 1, ack=False)
                    with trio.fail_after(30):
                        while (await stream.stream.consumer(COMMANDS, ORDER) or {})["num_ack_pending"]:
                            await trio.sleep(0.05)
            await stream.asks(path, {"stream_name": COMMANDS, "config": info["config"], "action": "update"})

    trio.run(strand)
    with at.served():
        at.answers("call", "order", "create", "--entity", "o-2")
        assert swept(at) == [("cmd.default.demo.order.create", "passed_over", 1)]
        target = str(at.home / "stranded.jsonl")
        assert at.does("dlq", "sweep", "--older-than", "0s", "--export", target, "--delete").code == ExitCode.OK
        document = json.loads(Path(target).read_text())
        again = orjson.loads(document["payload"])
        answer = at.answers("call", "order", "create", "--entity", again["entity_id"], "--key", "stranded")
        assert answer["name"] == "created"
        assert swept(at) == []
