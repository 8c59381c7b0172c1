"""Three workspaces in one process, asked the same things, and what each of them has seen afterwards.

Turns run as an engine runs them, on a real store, over a broker that is only as much of one as turns see.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

import attrs
import hypothesis.strategies as st
import trio

from meshforge_trio import protocol
from meshforge_trio.agent import Agent, AgentAdapter, Context, Event, Reply
from meshforge_trio.broker.port import Broker, Consumer, Delivery, Message, PubAck, Settlement
from meshforge_trio.config import EngineSettings
from meshforge_trio.deadlines import Deadlines
from meshforge_trio.drafts import Drafter
from meshforge_trio.entities import Cache
from meshforge_trio.envelope import CommandEnvelope, JsonObject, SecurityContext, encode
from meshforge_trio.errors import Poison
from meshforge_trio.intake import read_delivery
from meshforge_trio.locks import LOCK_MANAGER, LockManagerAdapter
from meshforge_trio.points import no_probe
from meshforge_trio.policy import RetryPolicy
from meshforge_trio.runtime import App
from meshforge_trio.session import Session
from meshforge_trio.store.port import EventStore, Mark, Reading
from meshforge_trio.store.sqlite import SQLiteEventStore, inline
from meshforge_trio.subjects import COMMANDS, DISCARD, EVENTS, FAILED, REDRIVE, Scope, command_subject, parse_subject
from meshforge_trio.turnstile import Turnstile
from meshforge_trio.waiting import Waiting

WORKSPACES: Final = ("acme/main", "zeta/main", "acme/test")
USER: Final = SecurityContext("kim", "user")
OPERATOR: Final = SecurityContext("root", "system")
POLICY: Final = RetryPolicy(limit=2, delays_s=(1.0,), jitter=0.0)
#: Between two commands. Leases last a few of them.
STEP_S: Final = 10.0


def account() -> Agent[int]:
    """A sum. Some commands never work, some not at first."""
    agent: Agent[int] = Agent("account", state=int, initial=int)

    @agent.command("add")
    def add(total: int, payload: JsonObject, ctx: Context) -> Event:
        return Event("added", {"amount": payload["amount"], "total": total + payload["amount"]})

    @agent.command("poison")
    def poison(total: int, payload: JsonObject, ctx: Context) -> Event:
        raise Poison("never")

    @agent.command("fail")
    def fail(total: int, payload: JsonObject, ctx: Context) -> Event:
        raise RuntimeError("not now")

    @agent.query("get")
    def get(total: int, payload: JsonObject, ctx: Context) -> Reply:
        return Reply("found", {"total": total, "version": ctx.version})

    @agent.event("added")
    def added(total: int, payload: JsonObject) -> int:
        return int(payload["total"])

    return agent


# -- what is asked -------------------------------------------------------------------------------------------------


@attrs.frozen
class Ask:
    """One command, for whichever workspace; `claims` is the workspace that its envelope names instead of its own."""

    workspace: str
    agent: str
    action: str
    key: str | None
    payload: JsonObject
    fields: Mapping[str, Any] = attrs.field(factory=dict)
    claims: str | None = None

    def command(self, number: int) -> CommandEnvelope:
        """As it is sent: the same id in every workspace."""
        tenant, _, workspace = (self.claims or self.workspace).partition("/")
        return CommandEnvelope(
            id=f"c{number}",
            tenant=tenant,
            workspace=workspace,
            agent=self.agent,
            action=self.action,
            idempotency_key=self.key,
            payload=self.payload,
            ts=float(number),
            security_context=OPERATOR if self.action in (REDRIVE, DISCARD) else USER,
            **self.fields,
        )

    @property
    def scope(self) -> Scope:
        """Whom it is sent to."""
        tenant, _, name = self.workspace.partition("/")
        return Scope(tenant, name, self.agent)


KEYS: Final = st.sampled_from(["k1", "k2", "k3"])
ENTITIES: Final = st.sampled_from(["a", "b"])
HOMES: Final = st.sampled_from(WORKSPACES)


@st.composite
def asks(draw: st.DrawFn) -> Ask:
    """Few names, so that everything meets its namesake."""
    home = draw(HOMES)
    kind = draw(st.sampled_from(["add", "add", "poison", "fail", "get", "fate", "lock", "lock", "trespass"]))
    if kind == "lock":
        action = draw(st.sampled_from(["acquire", "acquire", "refresh", "release", "get"]))
        payload: JsonObject = {"resource_id": draw(st.sampled_from(["door", "gate"]))}
        if action != "get":
            payload["owner_id"] = draw(st.sampled_from(["ada", "bob"]))
        if action in ("acquire", "refresh"):
            payload["ttl_seconds"] = draw(st.sampled_from([1.5 * STEP_S, 4.5 * STEP_S]))
        return Ask(home, LOCK_MANAGER, action, None if action == "get" else draw(KEYS), payload)
    if kind == "fate":
        dead: JsonObject = {"key": draw(KEYS), "generation": draw(st.integers(0, 1)), "actor": "root", "reason": "r"}
        action = draw(st.sampled_from([REDRIVE, REDRIVE, DISCARD]))
        return Ask(home, "account", action, f"{action}-{dead['key']}-{dead['generation']}", dead)
    fields: dict[str, Any] = {"entity_id": draw(ENTITIES)}
    if kind == "get":
        return Ask(home, "account", "get", None, {}, fields)
    if kind == "add":
        fields |= draw(st.sampled_from([{}, {}, {"expected_version": 0}, {"expected_version": 1}]))
        fields |= draw(st.sampled_from([{}, {}, {"resource_id": "door", "fencing_token": draw(st.integers(1, 3))}]))
    claims = draw(HOMES.filter(lambda other: other != home)) if kind == "trespass" else None
    action = "add" if kind == "trespass" else kind
    return Ask(home, "account", action, draw(KEYS), {"amount": draw(st.integers(1, 2))}, fields, claims)


#: (the command, or a restart of everything) at each step.
Course = Sequence[Ask | None]
COURSES: Final = st.lists(st.one_of(*[asks()] * 12, st.none()), min_size=1, max_size=20)


# -- one process, without tasks --------------------------------------------------------------------------------------


@attrs.define
class Steps:
    """A clock that goes on by steps."""

    at: float = 0.0

    def now(self) -> float:
        """See `Clock.now`."""
        return 1_000_000.0 + self.at

    def elapsed(self) -> float:
        """See `Clock.elapsed`."""
        return 0.0


@attrs.define(eq=False)
class Streams:
    """The broker as far as turns see it: what streams took, by Msg-Id once in all of a stream, and what was echoed."""

    stored: list[Message] = attrs.field(factory=list)
    echoed: list[Message] = attrs.field(factory=list)
    settled: list[Settlement] = attrs.field(factory=list)
    _known: dict[tuple[str, str], int] = attrs.field(factory=dict)

    async def publish(self, messages: Sequence[Message], timeout_s: float) -> Sequence[PubAck]:
        """See `Broker.publish`."""
        return [self._take(message) for message in messages]

    def _take(self, message: Message) -> PubAck:
        stream = {"cmd": COMMANDS, "evt": EVENTS}.get(message.subject.partition(".")[0], FAILED)
        seq = self._known.get((stream, message.msg_id))
        if seq is not None:
            return PubAck(stream, seq, duplicate=True)
        self.stored.append(message)
        self._known[stream, message.msg_id] = len(self.stored)
        return PubAck(stream, len(self.stored))

    def echo(self, messages: Sequence[Message]) -> None:
        """See `Broker.echo`."""
        self.echoed += messages

    def settle(self, settlements: Sequence[Settlement]) -> None:
        """See `Consumer.settle`."""
        self.settled += settlements


@attrs.define(eq=False)
class House:
    """Everybody's sessions in one process, on one store."""

    store: EventStore
    agents: Sequence[AgentAdapter[Any]]
    workspaces: Sequence[str]
    clock: Steps = attrs.field(factory=Steps)
    streams: Streams = attrs.field(factory=Streams)
    turnstile: Turnstile = attrs.field(factory=Turnstile)
    sessions: dict[Scope, Session] = attrs.field(factory=dict)
    outcomes: dict[Scope, list[object]] = attrs.field(factory=dict)
    _seq: int = 0

    async def start(self) -> None:
        """Begin a session of each scope, with nothing in memory."""
        for scope, adapter in App(self.agents).scopes(self.workspaces):
            rows = self.store.scope(scope)
            lease = await rows.take_lease("N")
            assert lease is not None
            self.sessions[scope] = Session(
                adapter=adapter,
                store=self.store,
                rows=rows,
                broker=cast(Broker, self.streams),
                settings=EngineSettings(retry=POLICY),
                probe=no_probe,
                clock=self.clock,
                lease=lease,
                publish_within_s=60.0,
                waiting=Waiting(await rows.attempts(), POLICY, 100),
                drafter=Drafter(scope, 100_000),
                cache=Cache(100),
                next_n=lease.next_n,
                mark=Mark(0, 0, "", 0, "", 0.0),
                deadlines=Deadlines(adapter, self.clock),
                seat=self.turnstile.seat(self.store.place, scope.tenant),
                consumers={COMMANDS: cast(Consumer, self.streams)},
            )

    async def deliver(self, scope: Scope, subject: str, body: bytes) -> None:
        """Bring a command to its scope, again after each NAK, and what follows from it to where it is sent."""
        self._seq += 1
        session, seen = self.sessions[scope], len(self.streams.stored)
        delivered = Delivery(subject, b"", body, f"ack.{self._seq}", COMMANDS, self._seq, self._seq, 1)
        while True:
            await protocol.turn(session, [read_delivery(delivered, scope, session.adapter)])
            wait_s = self.streams.settled[-1].delay_s
            self.outcomes.setdefault(scope, []).append((subject, wait_s))
            if wait_s is None:
                break
            self.clock.at += wait_s
        for message in self.streams.stored[seen:]:
            if message.subject.startswith("cmd."):
                await self.deliver(parse_subject(message.subject).scope, message.subject, message.body)


@attrs.frozen
class Seen:
    """All there is of one workspace afterwards."""

    outputs: object
    readings: Sequence[Reading]
    heads: object
    attempts: object
    published: object
    heard: object
    settled: object


def is_of(workspace: str) -> Callable[[Message], bool]:
    """Whether a message is under a subject of the workspace."""
    inner = f".{workspace.replace('/', '.')}."
    return lambda message: inner in message.subject


async def seen_of(house: House, workspace: str) -> Seen:
    """What is stored, was published and was heard, of every agent there."""
    scopes = [scope for scope, _ in App(house.agents).scopes([workspace])]
    rows = [house.store.scope(scope) for scope in scopes]
    outputs = [await each.outputs_after(0, 10_000) for each in rows]
    keys = [sorted({output.key for output in found}) for found in outputs]
    resources = ["door", "gate", "a", "b"]
    mine = is_of(workspace)
    return Seen(
        [[attrs.astuple(output) for output in found] for found in outputs],
        [
            await each.read([(key, b"?") for key in own], resources, resources)
            for each, own in zip(rows, keys, strict=True)
        ],
        [await each.heads("", 100) for each in rows],
        [await each.attempts() for each in rows],
        [message for message in house.streams.stored if mine(message)],
        [message for message in house.streams.echoed if mine(message)],
        [house.outcomes.get(scope, []) for scope in scopes],
    )


Furnish = Callable[[EventStore], tuple[EventStore, Sequence[AgentAdapter[Any]]]]


AGENTS: Final[Sequence[AgentAdapter[Any]]] = (account(), LockManagerAdapter())


def as_it_is(store: EventStore) -> tuple[EventStore, Sequence[AgentAdapter[Any]]]:
    return store, AGENTS


async def played(course: Course, workspaces: Sequence[str], furnish: Furnish) -> Mapping[str, Seen]:
    """Play the commands of these workspaces, each at its own moment of the whole course."""
    with tempfile.TemporaryDirectory() as directory:
        file = await SQLiteEventStore.open(Path(directory) / "store.db", synchronous="OFF", offload=inline)
        store, agents = furnish(file)
        house = House(store, agents, workspaces)
        await house.start()
        for number, ask in enumerate(course):
            house.clock.at = number * STEP_S
            if ask is None:
                await house.start()
            elif ask.workspace in workspaces:
                await house.deliver(ask.scope, command_subject(ask.scope, ask.action), encode(ask.command(number)))
        found = {workspace: await seen_of(house, workspace) for workspace in workspaces}
        await file.close()
        return found


def differing(course: Course, furnish: Furnish = as_it_is) -> list[str]:
    """The workspaces that saw something else than they would have seen alone."""
    together = trio.run(played, course, WORKSPACES, furnish)
    alone = {home: trio.run(played, course, [home], furnish)[home] for home in WORKSPACES}
    return [home for home in WORKSPACES if together[home] != alone[home]]
