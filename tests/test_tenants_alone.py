"""Each tenant sees what it would see alone, whatever its neighbours do meanwhile under the same names.

Random commands of three workspaces are interleaved in one process, on one store and one broker: the same ids, keys,
entities and resources in two tenants and two workspaces; keys repeated and used for something else, versions expected,
locks asked for, dead letters redriven, questions asked, commands that name another scope. What is then stored,
published and answered for one of them is compared byte by byte with what its own commands give without the others.

On a real nats-server: `test_neighbours_on_a_real_server_hear_what_they_would_hear_alone`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

import attrs
import pytest
import structlog
import trio
from hypothesis import Phase, find, given, settings
from integration.client_world import DEADLINE_S
from integration.neighbours_world import (
    AGENTS,
    COURSES,
    OPERATOR,
    POLICY,
    USER,
    WORKSPACES,
    Ask,
    Course,
    Furnish,
    differing,
)

from meshforge_trio.agent import AgentAdapter, Context, Decision, Event
from meshforge_trio.broker.jetstream import open_broker
from meshforge_trio.client import MeshClient, open_client
from meshforge_trio.config import EngineSettings, Settings
from meshforge_trio.envelope import JsonObject
from meshforge_trio.locks import LOCK_MANAGER, Lock, LockManagerAdapter
from meshforge_trio.runtime import App, Runtime
from meshforge_trio.server import PrivateServer
from meshforge_trio.store.port import EventStore, Reading, ScopeStore
from meshforge_trio.store.sqlite import SQLiteEventStore
from meshforge_trio.subjects import REDRIVE, Scope


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
