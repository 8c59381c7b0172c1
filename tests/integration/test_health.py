"""Health and metrics of real workers: what the endpoint and the command say while things go wrong."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import apsw
import attrs
import pytest
import trio

from meshforge_trio.broker.bridge import ConnectOptions
from meshforge_trio.broker.jetstream import open_broker
from meshforge_trio.broker.port import ConsumerSpec, Delivery, Message, Settlement
from meshforge_trio.broker.survey import open_survey
from meshforge_trio.client import CommandDead, MeshClient, open_client
from meshforge_trio.config import EngineSettings, Settings
from meshforge_trio.crud import crud_agent
from meshforge_trio.engine import stream_specs
from meshforge_trio.envelope import SecurityContext
from meshforge_trio.errors import StoreFull, Transient
from meshforge_trio.health.backlog import with_backlog
from meshforge_trio.health.report import ScopeHealth, not_ready
from meshforge_trio.metrics import ScopeMetrics
from meshforge_trio.points import BEFORE_PUBLISH, IN_STORE, Point
from meshforge_trio.policy import ExitCode, RetryPolicy
from meshforge_trio.runtime import App, Runtime
from meshforge_trio.server import PrivateServer
from meshforge_trio.store.sqlite import SQLiteEventStore
from meshforge_trio.subjects import COMMANDS, EVENTS, Scope, command_filter, consumer_name

from .cli_world import Shop, eventually, free_ports, shop

DEADLINE_S: Final = 60
USER: Final = SecurityContext("tester", "user")


@pytest.fixture
def at(tmp_path: Path, nats_server: PrivateServer) -> Shop:
    return shop(tmp_path, nats_server.url)


def ask(port: int, path: str) -> tuple[int, str]:
    """Status and body; 0 where nobody listens."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


def becomes(port: int, path: str, status: int, text: str = "") -> str:
    """Wait until that is the answer; the body."""

    def answered() -> str | None:
        found, body = ask(port, path)
        return body if found == status and text in body else None

    return eventually(answered, f"{path} {status} {text}: {ask(port, path)}")


# -- the command -------------------------------------------------------------------------------------------------


def test_the_command_beside_a_worker_and_without_one(at: Shop, nats_server: PrivateServer) -> None:
    never = at.does("health")
    assert never.code == ExitCode.FAILED
    assert "there is no store" in never.out
    with at.served() as running:
        at.answers("call", "order", "create", "{}", "--entity", "a")
        report = at.answers("health")
        assert (report["status"], report["reasons"], report["process"]) == ("ok", [], None)
        assert [scope["scope"] for scope in report["scopes"]] == ["default/demo/inventory", "default/demo/order"]
        assert all(scope["holder_alive"] and scope["undecided"] == 0 for scope in report["scopes"])
        shown = at.does("health")
        assert shown.code == ExitCode.OK
        assert shown.out.startswith("ok\n")
        os.kill(running.process.pid, signal.SIGKILL)
        running.ended()
    assert at.does("send", "order", "create", "{}", "--entity", "b").code == ExitCode.OK
    alone = at.does("health", "--json")
    assert (alone.code, alone.document["status"]) == (ExitCode.FAILED, "failing")
    assert [reason["what"] for reason in alone.document["reasons"]] == [
        "default/demo/order: nobody serves it, and work waits",
        "default/demo/inventory: nobody serves it",
    ]
    order = next(scope for scope in alone.document["scopes"] if scope["scope"].endswith("order"))
    assert order["undecided"] == 1
    assert order["undecided_age_s"] >= 0
    assert at.does("health", "--workspace", "other/place", "--json").document["scopes"] == []
    nats_server.kill()
    cut_off = at.does("health", "--json")
    assert (cut_off.code, cut_off.document["status"]) == (ExitCode.FAILED, "failing")
    assert cut_off.document["reasons"][0]["what"].startswith("the broker: ")
    assert cut_off.document["scopes"][0]["undecided"] is None


def test_the_command_beside_a_locked_store(at: Shop) -> None:
    with at.served():
        pass
    other = apsw.Connection(str(at.store))
    other.execute("BEGIN IMMEDIATE")
    locked = at.does("health")
    other.close()
    assert locked.code == ExitCode.FAILED
    assert "is locked by another process" in locked.out


# -- the endpoint ------------------------------------------------------------------------------------------------


def test_each_worker_answers_on_a_port_of_its_own(at: Shop, nats_server: PrivateServer) -> None:
    port = free_ports()
    with at.starts("run", "shop:app", "--json", "--workers", "2", "--health-port", str(port)) as running:
        running.said("serving", 2)
        for number in (0, 1):
            becomes(port + number, "/readyz", 200)
            report = json.loads(becomes(port + number, "/healthz", 200))
            assert report["process"]["worker"] == number
            assert sorted(scope["phase"] for scope in report["scopes"]) == ["serving", "standing_by"]
        nats_server.kill()
        for number in (0, 1):
            becomes(port + number, "/readyz", 503, "no broker session: ")
            assert ask(port + number, "/livez") == (200, "alive\n")
            assert json.loads(becomes(port + number, "/healthz", 503))["status"] == "failing"
        nats_server.restart()
        for number in (0, 1):
            becomes(port + number, "/readyz", 200)
        assert "meshforge_broker_sessions_lost_total" in ask(port, "/metrics")[1]
        running.process.terminate()
        assert running.ended() == ExitCode.OK
        assert ask(port, "/livez") == (0, "")


def test_it_answers_before_the_store_is_open(at: Shop) -> None:
    with at.served():
        pass
    port = free_ports()
    other = apsw.Connection(str(at.store))
    other.execute("BEGIN EXCLUSIVE")
    with at.starts("run", "shop:app", "--json", env={"MESHFORGE_HEALTH_PORT": str(port)}) as running:
        becomes(port, "/readyz", 503, "the store is not open yet")
        assert ask(port, "/livez") == (200, "alive\n")
        other.close()
        becomes(port, "/readyz", 200)
        running.process.terminate()
        assert running.ended() == ExitCode.OK


def test_a_store_that_somebody_locks_turns_it_red_and_back(at: Shop) -> None:
    port = free_ports()
    with at.served("--health-port", str(port)):
        other = apsw.Connection(str(at.store))
        other.set_busy_timeout(10_000)
        other.execute("BEGIN IMMEDIATE")
        becomes(port, "/readyz", 503, "the store cannot be written: ")
        other.execute("ROLLBACK")
        becomes(port, "/readyz", 200)
        other.close()


def test_a_port_that_is_taken_ends_the_start(at: Shop) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ran = at.does("run", "shop:app", "--health-port", str(taken.getsockname()[1]))
    assert ran.code == ExitCode.MISCONFIGURED
    assert "the health endpoint cannot listen" in ran.err


# -- what is counted ---------------------------------------------------------------------------------------------


def shaky() -> Any:
    """An agent whose `explode` always raises."""
    agent = crud_agent("order")

    @agent.command("explode")
    def explode(state: Any, payload: dict[str, Any], ctx: Any) -> Any:
        raise ValueError("boom")

    return agent


@attrs.define(eq=False)
class Inside:
    """A runtime in this process, and a client to it."""

    runtime: Runtime
    mesh: MeshClient

    @property
    def scope(self) -> ScopeMetrics:
        (counted,) = self.runtime.metrics.scopes.values()
        return counted

    async def until(self, found: Callable[[], object]) -> None:
        while not found():
            await trio.sleep(0.01)

    def ready(self) -> bool:
        return not not_ready(self.runtime.metrics, self.runtime._clock.now())


@asynccontextmanager
async def inside(url: str, path: Path, probe: Callable[[Point], None]) -> AsyncIterator[Inside]:
    engine = EngineSettings(idle_mark_s=0.05, retry=RetryPolicy(limit=3, delays_s=(0.01,)))
    store = await SQLiteEventStore.open(path)
    runtime = Runtime(App([shaky()]), Settings(engine=engine), store, lambda: open_broker(url), probe=probe)
    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(runtime.run)
            await runtime.engines[0].serving.wait()
            async with open_client(url, tenant="default", workspace="demo", principal=USER) as mesh:
                yield Inside(runtime, mesh)
            runtime.stop()
    await store.close()


async def test_turns_are_counted_by_what_became_of_them(
    aio_loop: asyncio.AbstractEventLoop, nats_server: PrivateServer, tmp_path: Path
) -> None:
    async with inside(nats_server.url, tmp_path / "s.db", lambda _: None) as world:
        for _ in range(2):
            await world.mesh.call("order", "create", {}, entity_id="a", idempotency_key="once")
        with pytest.raises(CommandDead):
            await world.mesh.call("order", "explode", {}, entity_id="b", raise_for_refusal=True)
        await world.mesh.call("order", "get", entity_id="a")
        await world.until(lambda: world.scope.outcomes["answered"])
    counted = world.scope
    outcomes = dict(counted.outcomes)
    assert {name: outcomes[name] for name in ("decided", "duplicate", "dead", "answered")} == {
        "decided": 1,
        "duplicate": 1,
        "dead": 1,
        "answered": 1,
    }
    # Two calls with a limit of 3; the second failure is the dead letter.
    assert outcomes["failed"] == 1
    assert dict(counted.dead) == {"attempts_exhausted": 1}
    assert sum(counted.sizes.counts) == sum(counted.durations.counts)
    assert counted.sizes.total == sum(outcomes.values())
    assert counted.durations.total > 0
    assert (counted.sessions, dict(counted.lost), counted.takeovers, counted.republished) == (1, {}, 0, 0)


async def test_a_full_disk_turns_it_red_until_a_commit_goes_well(
    aio_loop: asyncio.AbstractEventLoop, nats_server: PrivateServer, tmp_path: Path
) -> None:
    full = False

    def probe(point: Point) -> None:
        if full and point is IN_STORE:
            raise StoreFull("no space left")

    async with inside(nats_server.url, tmp_path / "s.db", probe) as world:
        await world.mesh.call("order", "create", {}, entity_id="a")
        assert world.ready()
        full = True
        await world.mesh.send("order", "create", {}, entity_id="b")
        await world.until(lambda: world.scope.lost["StoreFull"] >= 3)
        assert "the store cannot be written: no space left" in not_ready(
            world.runtime.metrics, world.runtime._clock.now()
        )
        full = False
        await world.mesh.call("order", "get", entity_id="b")
        await world.until(world.ready)
    assert world.scope.outcomes["decided"] == 2


async def test_a_lease_that_cannot_be_renewed_turns_it_red(
    aio_loop: asyncio.AbstractEventLoop, nats_server: PrivateServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = False
    real = SQLiteEventStore.keep_alive

    async def keep_alive(store: SQLiteEventStore) -> None:
        if locked:
            raise Transient("locked by another process")
        await real(store)

    monkeypatch.setattr(SQLiteEventStore, "keep_alive", keep_alive)
    async with inside(nats_server.url, tmp_path / "s.db", lambda _: None) as world:
        await world.until(world.ready)
        locked = True
        await world.until(lambda: world.runtime.metrics.store_refused)
        assert not world.ready()
        locked = False
        await world.until(world.ready)


async def test_what_recovery_publishes_is_counted(
    aio_loop: asyncio.AbstractEventLoop, nats_server: PrivateServer, tmp_path: Path
) -> None:
    fails = 1

    def probe(point: Point) -> None:
        nonlocal fails
        if point is BEFORE_PUBLISH and fails:
            fails -= 1
            raise RuntimeError("a defect")

    async with inside(nats_server.url, tmp_path / "s.db", probe) as world:
        await world.mesh.call("order", "create", {}, entity_id="a")
        await world.until(lambda: world.scope.outcomes["duplicate"])
    assert (world.scope.republished, world.scope.sessions, dict(world.scope.lost)) == (1, 2, {"crashed": 1})
    assert (world.runtime.metrics.crashes, world.runtime.metrics.last_crash) == (1, "RuntimeError: a defect")
    assert world.scope.takeovers == 0


async def test_a_takeover_is_counted(
    aio_loop: asyncio.AbstractEventLoop, nats_server: PrivateServer, tmp_path: Path
) -> None:
    first = await SQLiteEventStore.open(tmp_path / "s.db")
    async with inside(nats_server.url, tmp_path / "s.db", lambda _: None) as world:
        await world.mesh.call("order", "create", {}, entity_id="a")
    (engine,) = world.runtime.engines
    assert await first.scope(engine.scope).take_lease("S") is not None
    first.abandon()
    async with inside(nats_server.url, tmp_path / "s.db", lambda _: None) as world:
        await world.mesh.call("order", "create", {}, entity_id="b")
    assert world.scope.takeovers == 1


async def test_a_lost_broker_is_counted_and_every_engine_starts_again(
    aio_loop: asyncio.AbstractEventLoop, nats_server: PrivateServer, tmp_path: Path
) -> None:
    async with inside(nats_server.url, tmp_path / "s.db", lambda _: None) as world:
        await world.until(world.ready)
        nats_server.kill()
        await world.until(lambda: not world.ready())
        assert world.runtime.metrics.broker_since is None
        assert world.scope.phase == "starting"
        nats_server.restart()
        await world.until(world.ready)
    assert world.runtime.metrics.broker_sessions == 2
    assert world.runtime.metrics.broker_lost["SessionLost"] >= 1


async def test_events_that_an_agent_has_not_heard_are_undecided(
    aio_loop: asyncio.AbstractEventLoop, nats_server: PrivateServer
) -> None:
    scope = Scope("t", "w", "inventory")
    heard = "evt.t.w.order.created"
    async with open_broker(nats_server.url) as broker:
        for spec in stream_specs(EngineSettings()):
            await broker.declare(spec)
        await broker.consume(ConsumerSpec(COMMANDS, consumer_name(scope), (command_filter(scope),)))
        consumer = await broker.consume(ConsumerSpec(EVENTS, consumer_name(scope), (heard, "evt.t.w.order.none")))
        await broker.publish([Message(heard, b"{}", f"m{n}") for n in range(3)], 5.0)
        async with open_survey(ConnectOptions(urls=(nats_server.url,))) as survey:
            scopes = {scope: ScopeHealth(str(scope))}
            (found,) = (await with_backlog(survey, scopes, 5.0))[1]
            assert (found.undecided, found.undecided_age_s is not None) == (3, True)
            consumer.pull()
            deliveries: list[Delivery] = []
            while len(deliveries) < 3:
                deliveries += await consumer.take(3)
            consumer.settle([Settlement(delivery) for delivery in deliveries])
            while found.undecided:
                (found,) = (await with_backlog(survey, scopes, 5.0))[1]
        assert found.undecided_age_s is None
