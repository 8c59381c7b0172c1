"""A scope on a desk: what the store would hold, and a decider over it, without any I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import attrs
import orjson
import trio

from meshforge_trio.agent import Agent, AgentAdapter, Context, Event, Reply, Send
from meshforge_trio.broker.port import Delivery
from meshforge_trio.codec import Codecs, ScopeSealer
from meshforge_trio.decide import Decider
from meshforge_trio.drafts import Drafter
from meshforge_trio.entities import Cache, Entities
from meshforge_trio.envelope import CommandEnvelope, EventEnvelope, JsonObject, SecurityContext, encode
from meshforge_trio.errors import Poison, Refused
from meshforge_trio.intake import Incoming, read_delivery
from meshforge_trio.plan import Plan, Verdict
from meshforge_trio.policy import RetryPolicy
from meshforge_trio.store.port import DeadLetter, Head, KeyRecord, Output, Reading
from meshforge_trio.subjects import COMMANDS, EVENTS, Scope, command_subject, event_subject
from meshforge_trio.waiting import Waiting

SCOPE: Final = Scope("t", "w", "counter")
USER: Final = SecurityContext("kim", "user")


def command(number: int, action: str = "add", *, scope: Scope = SCOPE, **fields: Any) -> CommandEnvelope:
    """Command `c<number>` with key `k<number>` to entity `a`, unless said otherwise."""
    named: dict[str, Any] = {
        "idempotency_key": f"k{number}",
        "entity_id": "a",
        "ts": float(number),
        "security_context": USER,
        **fields,
    }
    return CommandEnvelope(
        **{"id": f"c{number}", "tenant": scope.tenant, "workspace": scope.workspace, "agent": scope.agent, **named},
        action=action,
    )


def delivery(subject: str, body: bytes, seq: int = 1, *, headers: bytes = b"", stream: str = COMMANDS) -> Delivery:
    return Delivery(subject, headers, body, f"$JS.ACK.{seq}", stream, seq, seq, 1)


def event(number: int, name: str = "added", *, agent: str = "source", **fields: Any) -> EventEnvelope:
    """Event `e<number>` of another agent."""
    named = {"id": f"e{number}", "entity_id": "a", "ts": float(number), "security_context": USER, **fields}
    return EventEnvelope(tenant=SCOPE.tenant, workspace=SCOPE.workspace, agent=agent, name=name, **named)


def counter(name: str = "counter") -> Agent[int]:
    """A sum per entity, and one action for each way in which a handler can end."""
    agent: Agent[int] = Agent(name, state=int, initial=int)

    @agent.command("add")
    def add(total: int, payload: JsonObject, ctx: Context) -> Event:
        return Event("added", {"amount": payload.get("amount", 1)})

    @agent.command("twice")
    def twice(total: int, payload: JsonObject, ctx: Context) -> list[object]:
        return [Event("added", {"amount": 1}), Event("added", {"amount": 2}), Event("noted"), Reply("summed")]

    @agent.command("refuse")
    def refuse(total: int, payload: JsonObject, ctx: Context) -> Event:
        raise Refused("no", code="no", field="amount", name=payload.get("name", "refused"))

    @agent.command("poison")
    def poison(total: int, payload: JsonObject, ctx: Context) -> Event:
        raise Poison("never", code="never", field="amount")

    @agent.command("explode")
    def explode(total: int, payload: JsonObject, ctx: Context) -> Event:
        raise RuntimeError("boom")

    @agent.command("nothing")
    def nothing(total: int, payload: JsonObject, ctx: Context) -> list[object]:
        return []

    @agent.command("send")
    def send(total: int, payload: JsonObject, ctx: Context) -> list[object]:
        return [Send("other", "do", {"n": i}, entity_id="x") for i in range(payload.get("count", 1))]

    @agent.query("get")
    def get(total: int, payload: JsonObject, ctx: Context) -> Reply:
        if payload.get("explode"):
            raise RuntimeError("boom")
        return Reply("found", {"total": total})

    @agent.event("added")
    def added(total: int, payload: JsonObject) -> int:
        return total + int(payload["amount"])

    @agent.event("noted")
    def noted(total: int, payload: JsonObject) -> int:
        return total

    @agent.on("source", "added")
    def heard(total: int, payload: JsonObject, ctx: Context) -> list[object]:
        return [Event("added", {"amount": 10}), Send("other", "do", {})]

    return agent


@attrs.define(eq=False)
class Desk:
    """One scope. `decide` looks at what was committed; `turn` commits it as a session and a store would."""

    adapter: AgentAdapter[Any] = attrs.field(factory=counter)
    scope: Scope = SCOPE
    policy: RetryPolicy = attrs.field(factory=lambda: RetryPolicy(limit=3, delays_s=(1.0, 5.0), jitter=0.0))
    body_max: int = 100_000
    held_max: int = 100
    now: float = 1000.0
    outputs: list[Output] = attrs.field(factory=list)
    keys: dict[str, KeyRecord] = attrs.field(factory=dict)
    mismatches: dict[tuple[str, bytes], KeyRecord] = attrs.field(factory=dict)
    heads: dict[str, Head] = attrs.field(factory=dict)
    generations: dict[str, int] = attrs.field(factory=dict)
    dead: dict[str, DeadLetter] = attrs.field(factory=dict)
    fences: dict[str, int] = attrs.field(factory=dict)
    codecs: Codecs | None = None
    waiting: Waiting = attrs.field(init=False)
    cache: Cache = attrs.field(factory=lambda: Cache(100))
    _seq: int = 0
    # What was NAKed comes again under its old sequence.
    _put_back: dict[tuple[str, bytes], int] = attrs.field(factory=dict)

    def __attrs_post_init__(self) -> None:
        self.waiting = Waiting([], self.policy, self.held_max)

    @property
    def sealer(self) -> ScopeSealer | None:
        """Of a session that begins now."""
        return ScopeSealer.of_scope(self.codecs, self.scope)

    def read(self, message: CommandEnvelope | EventEnvelope, *, subject: str = "", headers: bytes = b"") -> Incoming:
        """The message as it arrives next."""
        own = Scope(message.tenant, message.workspace, message.agent)
        if isinstance(message, CommandEnvelope):
            return self.arrive(subject or command_subject(own, message.action), encode(message), headers)
        return self.arrive(subject or event_subject(own, message.name), encode(message), headers, EVENTS)

    def arrive(self, subject: str, body: bytes, headers: bytes = b"", stream: str = COMMANDS) -> Incoming:
        seq = self._put_back.get((subject, body), self._seq + 1)
        self._seq = max(self._seq, seq)
        arrived = delivery(subject, body, seq, headers=headers, stream=stream)
        return read_delivery(arrived, self.scope, self.adapter, sealer=self.sealer)

    def reading(self) -> Reading:
        """What the store has of everything."""
        return Reading(
            {key: (record, self._of(record)) for key, record in self.keys.items()},
            {pair: self._of(record) for pair, record in self.mismatches.items()},
            self.heads,
            self.generations,
            {key: letter for key, letter in self.dead.items() if key in self.keys},
            self.fences,
        )

    def _of(self, record: KeyRecord) -> Sequence[Output]:
        return self.outputs[record.first_n - 1 : record.last_n]

    async def decide(self, *batch: Incoming) -> tuple[Plan, Entities]:
        drafter = Drafter(self.scope, self.body_max, self.sealer)
        entities = Entities(self.cache, self.adapter, self.heads, self.sealer)
        decider = Decider(
            adapter=self.adapter,
            drafter=drafter,
            policy=self.policy,
            entities=entities,
            waiting=self.waiting,
            reading=self.reading(),
            now=self.now,
        )
        return await decider.decide(batch, 1, len(self.outputs) + 1), entities

    async def turn(self, *batch: Incoming) -> Plan:
        """Decide and commit."""
        plan, entities = await self.decide(*batch)
        commit = plan.commit
        last = len(self.outputs)
        assert not self.keys.keys() & {record.key for record in commit.keys}, "a key was decided twice"
        numbers = [output.n for output in commit.outputs]
        assert numbers == [*range(last + 1, last + 1 + len(numbers))]
        self.outputs += commit.outputs
        self.keys |= {record.key: record for record in commit.keys}
        self.fences |= commit.fences
        for key, generation in commit.redriven:
            assert self.dead[key].state == "waiting"
            assert self.keys.pop(key).outcome == "dead"
            self.dead[key] = attrs.evolve(self.dead[key], state="redriven")
            self.generations[key] = generation + 1
        for key, _ in commit.discarded:
            assert self.dead[key].state == "waiting"
            self.dead[key] = attrs.evolve(self.dead[key], state="discarded")
        self.dead |= {letter.key: letter for letter in commit.dead}
        self.mismatches |= {(record.key, record.payload_hash): record for record in commit.mismatches}
        for head in commit.heads:
            chain = [o for o in self.outputs if o.entity_id == head.entity_id and o.version is not None]
            assert [o.version for o in chain] == list(range(1, head.version + 1)), "a gap or a fork"
            self.heads[head.entity_id] = attrs.evolve(head, tail=[o.body for o in chain])
        entities.keep()
        for key in commit.ended:
            self.waiting.end(key)
        for verdict in plan.verdicts:
            if verdict.attempt is not None:
                self.waiting.fail(verdict.attempt, verdict.incoming)
            self._settle(verdict.incoming, verdict.wait_s)
        return plan

    def _settle(self, incoming: Incoming, wait_s: float | None) -> None:
        name = (incoming.delivery.subject, incoming.delivery.body)
        if wait_s is None:
            self.waiting.unpark(incoming)
            self._put_back.pop(name, None)
        else:
            self.waiting.park(incoming)
            self._put_back.setdefault(name, incoming.delivery.stream_seq)

    def take(self, *batch: CommandEnvelope | EventEnvelope) -> Plan:
        """A turn over messages that arrive now."""
        incoming = [self.read(message) for message in batch]
        return trio.run(self.turn, *incoming)

    def total(self, entity_id: str = "a") -> object:
        """The state of an entity as the next command would see it."""
        return Entities(self.cache, self.adapter, self.heads, self.sealer).working(entity_id).state


def outcomes(plan: Plan) -> list[str]:
    return [verdict.outcome for verdict in plan.verdicts]


def told_by(verdict: Verdict) -> tuple[str, Mapping[str, Any]]:
    """Name and payload of the one event that a verdict publishes beside a dead letter."""
    (output,) = [output for output in verdict.outputs if output.kind != "dead"]
    return output.name, payload_of(output)


def payload_of(output: Output) -> Mapping[str, Any]:
    payload: Mapping[str, Any] = orjson.loads(output.body)["payload"]
    return payload
