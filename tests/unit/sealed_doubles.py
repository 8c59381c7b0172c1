"""A tenant with a codec, on the desk of `doubles`."""

from __future__ import annotations

from typing import Any

import attrs
import orjson
from doubles import SCOPE, Desk, command, counter

from meshforge_trio.agent import Agent, Context, Event, Send
from meshforge_trio.codec import Codecs, PayloadCodec, ScopeSealer, Sealer
from meshforge_trio.envelope import CommandEnvelope, JsonObject
from meshforge_trio.errors import Misconfigured, Poison
from meshforge_trio.keyring import AesSiv, Ring
from meshforge_trio.plan import Plan
from meshforge_trio.store.port import Output
from meshforge_trio.subjects import Scope

NOW = 1_800_000_000.0
RING = Ring.new("t", NOW)
SECRET = "rosebud-4711"


@attrs.define
class Keys:
    """A `Codecs` whose ring a test may change."""

    ring: Ring = RING
    lost: bool = False

    def __call__(self, tenant: str) -> PayloadCodec | None:
        if self.lost:
            raise Misconfigured("the ring is gone")
        return AesSiv(self.ring) if tenant == "t" else None

    def destroy(self) -> None:
        self.ring = self.ring.emptied(NOW)


def sealer(codecs: Codecs | None = None, scope: Scope = SCOPE) -> ScopeSealer:
    found = ScopeSealer.of_scope(codecs or Keys(), scope)
    assert found is not None
    return found


def vault() -> Agent[JsonObject]:
    """Keeps a text, tells it on, quotes it in its errors."""
    agent: Agent[JsonObject] = Agent("counter", state=dict, initial=dict)

    @agent.command("keep")
    def keep(state: JsonObject, payload: JsonObject, ctx: Context) -> list[object]:
        return [Event("kept", {"text": payload["text"]}), Send("other", "note", payload)]

    @agent.command("explode")
    def explode(state: JsonObject, payload: JsonObject, ctx: Context) -> Event:
        raise RuntimeError(f"cannot keep {payload['text']}")

    @agent.command("poison")
    def poison(state: JsonObject, payload: JsonObject, ctx: Context) -> Event:
        raise Poison(f"never {payload['text']}")

    @agent.event("kept")
    def kept(state: JsonObject, payload: JsonObject) -> JsonObject:
        return {"text": payload["text"]}

    return agent


def desk(keys: Keys | None = None, adapter: Any = None) -> Desk:
    return Desk(adapter=adapter or counter(), codecs=keys or Keys())


def sealed_command(number: int, action: str = "add", *, by: Sealer | None = None, **fields: Any) -> CommandEnvelope:
    return (by or sealer()).sealed(command(number, action, **fields))


def opened(output: Output, by: ScopeSealer | None = None) -> Any:
    return orjson.loads((by or sealer()).shown_body(output.body))["payload"]


def everything(plan: Plan) -> bytes:
    """All that a commit writes and a turn publishes."""
    told = [repr(plan.commit).encode()]
    told += [output.body for output in plan.commit.outputs]
    told += [message.body for message in (*plan.echoes, *plan.answers)]
    return b"\n".join(told)
