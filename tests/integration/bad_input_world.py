"""What tests of bad input stand on: agents that misbehave, a raw connection, and what is left of a message."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, MutableMapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import attrs
import orjson
import trio

from chaos.evidence import Evidence, load_image, save_image
from chaos.observer import Observer
from chaos.rows import KeyRow, OutputRow
from chaos.workload import command
from meshforge_trio.agent import Agent, Context, Event, Reply, Send
from meshforge_trio.broker.bridge import Connection
from meshforge_trio.broker.jetstream import open_broker
from meshforge_trio.config import EngineSettings, Settings
from meshforge_trio.envelope import JsonObject, encode
from meshforge_trio.errors import Poison, Refused
from meshforge_trio.policy import RetryPolicy
from meshforge_trio.runtime import App, Runtime
from meshforge_trio.server import PrivateServer
from meshforge_trio.store.sqlite import SQLiteEventStore
from meshforge_trio.subjects import COMMANDS, Scope, command_subject

DEADLINE_S: Final = 30
SCOPE: Final = Scope("default", "demo", "counter")
PATIENT: Final = Scope("default", "demo", "patient")
ADD: Final = b"cmd.default.demo.counter.add"
ENGINE: Final = EngineSettings(
    ack_wait_s=2.0,
    idle_mark_s=0.05,
    retry=RetryPolicy(limit=3, delays_s=(0.05,), handler_limit_s=0.2),
)


@attrs.frozen
class Amount:
    amount: int


def misbehaving() -> Agent[int]:
    """An agent whose handlers do all that handlers should not."""
    agent: Agent[int] = Agent("counter", state=int, initial=int)
    results: dict[str, object] = {
        "none": None,
        "text": "added",
        "nan": Event("added", {"amount": math.nan}),
        "huge": Event("added", {"amount": 2**64}),
        "reserved": Event("conflict", {}),
        "unapplied": Event("lost", {}),
        "half": [Event("added", {"amount": 1}), Event("added", {"amount": "x"})],
        "oversized": Event("added", {"amount": 1, "text": "x" * 2_000_000}),
        "sends_oversized": [Event("added", {"amount": 1}), Send("other", "do", {"text": "x" * 2_000_000})],
        "sends_astray": Send("a.b", "do"),
        "payload": Event("added", "text"),  # type: ignore[arg-type]
    }
    errors: dict[str, Exception] = {
        "explode": RuntimeError("boom"),
        "poison": Poison("never", code="never", field="amount"),
        "refuse": Refused("no", code="no", field="amount"),
        "refuse_astray": Refused("no", name="a b"),
        "refuse_long": Refused("x" * 2_000_000, code="no"),
        "mumble": RuntimeError("\udcff"),
    }

    @agent.command("add")
    def add(total: int, payload: Amount, ctx: Context) -> Event:
        return Event("added", {"amount": payload.amount})

    @agent.command("echo")
    def echo(total: int, payload: JsonObject, ctx: Context) -> Event:
        return Event("echoed", payload)

    @agent.command("return")
    def give_back(total: int, payload: JsonObject, ctx: Context) -> object:
        return results[payload["what"]]

    @agent.command("raise")
    def throw(total: int, payload: JsonObject, ctx: Context) -> object:
        raise errors[payload["what"]]

    @agent.query("get")
    def get(total: int, payload: JsonObject, ctx: Context) -> Reply:
        if payload:
            raise RuntimeError("boom")
        return Reply("found", {"total": total})

    @agent.event("added")
    def added(total: int, payload: JsonObject) -> int:
        return total + int(payload["amount"])

    @agent.event("echoed")
    def echoed(total: int, payload: JsonObject) -> int:
        return total

    return agent


def patient() -> Agent[int]:
    """An agent that may take its time."""
    agent: Agent[int] = Agent("patient", state=int, initial=int)

    @agent.command("add")
    async def add(total: int, payload: JsonObject, ctx: Context) -> Event:
        return Event("added", payload)

    @agent.command("sleep")
    async def sleep(total: int, payload: JsonObject, ctx: Context) -> Event:
        await trio.sleep_forever()
        raise AssertionError("unreachable")

    @agent.event("added")
    def added(total: int, payload: JsonObject) -> int:
        return total + 1

    return agent


# --- the world: a served store, a raw connection, and what is left at the end


@attrs.define(eq=False)
class World:
    """What a test says to the server, and what the runtime made of it."""

    observer: Observer
    connection: Connection
    store: Path
    log: Sequence[MutableMapping[str, Any]]

    async def put(self, subject: bytes, body: bytes, *, reply: bytes = b"", stored: int = 1) -> None:
        """Publish as any client could, past every check of ours, and wait until the command stream has taken it."""
        broker = await self.observer.broker()
        before = (await broker.stream_facts(COMMANDS)).last_seq
        self.connection.write(b"PUB %b %b %d\r\n%b\r\n" % (subject, reply, len(body), body))
        while (await broker.stream_facts(COMMANDS)).last_seq < before + stored:
            await trio.lowlevel.checkpoint()

    async def end(self, next_scope: Scope = SCOPE) -> Evidence:
        """Send a good command to the same entity, wait until all is decided, and see that it was served."""
        valid = command(next_scope, "add", 900, {"amount": 5}, entity_id="a")
        await self.put(command_subject(next_scope, "add").encode(), encode(valid))
        await self.observer.drained()
        image = self.store.with_name("image-1")
        await save_image(await self.observer.broker(), self.store, image, final=True)
        evidence = load_image(image)
        assert not evidence.commands, "something stays in the command stream"
        assert [key.outcome for key in evidence.rows.keys if key.key == "k900"] == ["decided"]
        assert any(orjson.loads(event.body)["id"] == "c900_added" for event in evidence.events)
        crashed = [entry for entry in self.log if "crashed" in entry["event"] or "ended" in entry["event"]]
        assert not crashed, "the engine did not survive it"
        assert not evidence.rows.attempts
        return evidence


@asynccontextmanager
async def serving(server: PrivateServer, path: Path) -> AsyncIterator[None]:
    store = await SQLiteEventStore.open(path)
    settings = Settings(url=server.url, engine=ENGINE)
    runtime = Runtime(App([misbehaving(), patient()]), settings, store, lambda: open_broker(server.url))
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(runtime.run)
            for engine in runtime.engines:
                await engine.serving.wait()
            yield
            runtime.stop()
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
            await store.close()


def only_key(evidence: Evidence) -> KeyRow:
    """The record of the bad message: of everything beside the good one."""
    (record,) = [key for key in evidence.rows.keys if key.key != "k900"]
    return record


def answer(evidence: Evidence) -> tuple[OutputRow, JsonObject]:
    """The one event it led to, as stored, once it is known to be published byte for byte."""
    record = only_key(evidence)
    outputs = [o for o in evidence.rows.outputs if record.first_n <= o.n <= record.last_n and o.scope == record.scope]
    (output,) = [o for o in outputs if o.kind != "dead"]
    assert [event.body for event in evidence.events if event.msg_id == output.msg_id] == [output.body]
    payload: JsonObject = orjson.loads(output.body)["payload"]
    return output, payload


def assert_dead(evidence: Evidence, subject: str, body: bytes, code: str, field: str | None) -> JsonObject:
    """Set aside with the whole original, in the store and in the stream, and told."""
    assert only_key(evidence).outcome == "dead"
    assert [(letter.key, letter.body) for letter in evidence.rows.dead] == [(only_key(evidence).key, body)]
    (failed,) = evidence.failed
    letter: JsonObject = orjson.loads(failed.body)
    assert (failed.subject, letter["code"], letter["field"]) == (subject, code, field)
    assert letter["reason"]
    output, payload = answer(evidence)
    assert output.name == "dead_lettered"
    assert (payload["code"], payload["field"], payload["reason"]) == (code, field, letter["reason"])
    return letter


def fields(**change: Any) -> JsonObject:
    """A good command with something changed; `...` leaves a field out."""
    good = orjson.loads(encode(command(SCOPE, "add", 1, {"amount": 1}, entity_id="a")))
    return {name: value for name, value in {**good, **change}.items() if value is not ...}


def raw(payload: bytes, **change: Any) -> bytes:
    """A good command with `payload` in it as it stands."""
    return orjson.dumps(fields(payload="@", **change)).replace(b'"@"', payload)


def subject_of(body: bytes) -> bytes:
    """Where a command to the counter goes by what its envelope says."""
    return f"cmd.default.demo.counter.{orjson.loads(body)['action']}".encode()
