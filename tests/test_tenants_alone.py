"""Each tenant sees what it would see alone, whatever its neighbours do meanwhile under the same names.

Random commands of three workspaces are interleaved in one process, on one store and one broker: the same ids, keys,
entities and resources in two tenants and two workspaces; keys repeated and used for something else, versions expected,
locks asked for, dead letters redriven, questions asked, commands that name another scope. What is then stored,
published and answered for one of them is compared byte by byte with what its own commands give without the others.

On a real nats-server: `test_neighbours_on_a_real_server_hear_what_they_would_hear_alone`.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

import attrs
import hypothesis.strategies as st
import pytest
import structlog
import trio
from hypothesis import Phase, find, given, settings
from integration.client_world import DEADLINE_S

from meshforge_trio import protocol
from meshforge_trio.agent import Agent, AgentAdapter, Context, Decision, Event, Reply
from meshforge_trio.broker.jetstream import open_broker
from meshforge_trio.broker.port import Broker, Consumer, Delivery, Message, PubAck, Settlement
from meshforge_trio.client import MeshClient, open_client
from meshforge_trio.config import EngineSettings, Settings
from meshforge_trio.deadlines import Deadlines
from meshforge_trio.drafts import Drafter
from meshforge_trio.entities import Cache
from meshforge_trio.envelope import CommandEnvelope, JsonObject, SecurityContext, encode
from meshforge_trio.errors import Poison
from meshforge_trio.intake import read_delivery
from meshforge_trio.locks import LOCK_MANAGER, Lock, LockManagerAdapter
from meshforge_trio.points import no_probe
from meshforge_trio.policy import RetryPolicy
from meshforge_trio.runtime import App, Runtime
from meshforge_trio.server import PrivateServer
from meshforge_trio.session import Session
from meshforge_trio.store.port import EventStore, Mark, Reading, ScopeStore
from meshforge_trio.store.sqlite import SQLiteEventStore, inline
from meshforge_trio.subjects import COMMANDS, DISCARD, EVENTS, FAILED, REDRIVE, Scope, command_subject, parse_subject
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


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Hundreds of courses say little that is worth reading."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


@settings(max_examples=40)
@given(COURSES)
def test_each_sees_what_it_would_see_alone(course: Course) -> None:
    assert differing(course) == []


# -- that it would be seen -------------------------------------------------------------------------------------------


@attrs.define(eq=False)
class LeakyRows:
    """Rows that find a key in whichever scope of the agent has it."""

    rows: ScopeStore
    all_rows: list[ScopeStore]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rows, name)

    async def read(
        self, keys: Sequence[tuple[str, bytes]], entities: Sequence[str], resources: Sequence[str] = ()
    ) -> Reading:
        """See `ScopeStore.read`; a key that is not here may be elsewhere."""
        reading = await self.rows.read(keys, entities, resources)
        elsewhere = [(await other.read(keys, [])).keys for other in self.all_rows if other is not self.rows]
        found = dict(reading.keys)
        for keys_there in elsewhere:
            found = {**keys_there, **found}
        return attrs.evolve(reading, keys=found)


@attrs.define(eq=False)
class LeakyStore:
    """A store in which keys are not told apart by tenant."""

    store: EventStore
    all_rows: dict[str, list[ScopeStore]] = attrs.field(factory=dict)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def scope(self, scope: Scope) -> LeakyRows:
        """See `EventStore.scope`."""
        rows, agents = self.store.scope(scope), self.all_rows.setdefault(scope.agent, [])
        agents.append(rows)
        return LeakyRows(rows, agents)


def keys_without_tenant(store: EventStore) -> tuple[EventStore, Sequence[AgentAdapter[Any]]]:
    return cast(EventStore, LeakyStore(store)), AGENTS


class LocksByResource(LockManagerAdapter):
    """Remembers locks by their resource alone."""

    def __init__(self) -> None:
        super().__init__()
        self._newest: dict[str, Lock] = {}

    def receive(self, state: Lock, message: Any, ctx: Context) -> Decision:
        """See `AgentAdapter.receive`."""
        return cast(Decision, super().receive(self._newest.get(ctx.entity_id or "", state), message, ctx))

    def apply(self, state: Lock, event: Event) -> Lock:
        """See `AgentAdapter.apply`."""
        self._newest[event.payload["resource_id"]] = lock = super().apply(state, event)
        return lock


def locks_without_tenant(store: EventStore) -> tuple[EventStore, Sequence[AgentAdapter[Any]]]:
    return store, [AGENTS[0], LocksByResource()]


@pytest.mark.parametrize("planted", [keys_without_tenant, locks_without_tenant], ids=lambda made: made.__name__)
def test_cross_talk_would_be_seen(planted: Furnish) -> None:
    """The same courses show what is planted, and nothing where it is not."""
    course = find(
        COURSES,
        lambda course: bool(differing(course, planted)),
        settings=settings(max_examples=200, derandomize=True, database=None, phases=[Phase.generate]),
    )
    assert differing(course) == []


# -- over a real server ----------------------------------------------------------------------------------------------

LOCK: Final[JsonObject] = {"resource_id": "door", "owner_id": "ada"}
LEASE: Final[JsonObject] = {**LOCK, "ttl_seconds": 600.0}
FATE: Final[JsonObject] = {"key": "k3", "generation": 0, "actor": "root", "reason": "r"}


def same_in(home: str) -> Sequence[Ask]:
    """What everybody asks."""
    a = {"entity_id": "a"}
    return [
        Ask(home, "account", "add", "k1", {"amount": 1}, a),
        Ask(home, "account", "add", "k2", {"amount": 2}, {**a, "expected_version": 0}),
        Ask(home, "account", "add", "k1", {"amount": 1}, a),
        Ask(home, "account", "add", "k1", {"amount": 2}, a),
        Ask(home, "account", "fail", "k3", {}, {"entity_id": "b"}),
        Ask(home, LOCK_MANAGER, "acquire", "k1", LEASE),
        Ask(home, LOCK_MANAGER, "acquire", "k2", {**LEASE, "owner_id": "bob"}),
        Ask(home, "account", "add", "k4", {"amount": 4}, {**a, "resource_id": "door", "fencing_token": 1}),
        Ask(home, LOCK_MANAGER, "release", "k3", LOCK),
        Ask(home, LOCK_MANAGER, "acquire", "k4", {**LEASE, "owner_id": "bob"}),
        Ask(home, "account", REDRIVE, "r3", FATE),
        Ask(home, "account", "get", None, {}, a),
    ]


async def test_neighbours_on_a_real_server_hear_what_they_would_hear_alone(aio_loop: object, tmp_path: Path) -> None:
    together = await heard(tmp_path, WORKSPACES)
    for home in WORKSPACES:
        answers = (await heard(tmp_path, [home]))[home]
        assert together[home] == answers
        names = [name for name, _ in answers]
        first = ["added", "conflict", "added", "refused", "dead_lettered", "acquired", "denied", "added", "released"]
        assert names == [*first, "acquired", "redriven", "found"]


async def heard(home: Path, workspaces: Sequence[str]) -> Mapping[str, Sequence[tuple[str, JsonObject]]]:
    """The answers of each workspace, all of which ask at the same time."""
    found: dict[str, Sequence[tuple[str, JsonObject]]] = {}

    async def ask_all(url: str, workspace: str) -> None:
        found[workspace] = await answers_of(url, workspace)

    with PrivateServer() as server:
        store = await SQLiteEventStore.open(home / f"{'-'.join(workspaces).replace('/', '.')}.db")
        policy = attrs.evolve(POLICY, delays_s=(0.05,))
        chosen = Settings(url=server.url, workspaces=tuple(workspaces), engine=EngineSettings(retry=policy))
        runtime = Runtime(App(AGENTS), chosen, store, lambda: open_broker(server.url))
        with trio.fail_after(3 * DEADLINE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(runtime.run)
                for engine in runtime.engines:
                    await engine.serving.wait()
                async with trio.open_nursery() as asking:
                    for workspace in workspaces:
                        asking.start_soon(ask_all, server.url, workspace)
                runtime.stop()
        await store.close()
    return found


async def answers_of(url: str, workspace: str) -> Sequence[tuple[str, JsonObject]]:
    """Names and payloads, without what the runtime's clock says."""
    tenant, _, name = workspace.partition("/")
    found = []
    async with (
        open_client(url, tenant=tenant, workspace=name, principal=USER) as kim,
        open_client(url, tenant=tenant, workspace=name, principal=OPERATOR) as operator,
    ):
        for number, ask in enumerate(same_in(workspace)):
            mesh: MeshClient = operator if ask.action == REDRIVE else kim
            fields: dict[str, Any] = {"id": f"c{number}", "idempotency_key": ask.key or f"q{number}", **ask.fields}
            answer = await mesh.call(ask.agent, ask.action, ask.payload, **fields)
            found.append((answer.name, {k: v for k, v in answer.payload.items() if k != "expires_at"}))
    return found
