"""`MeshClient` against a real server and a real runtime: what it sends, is answered, and makes of faults."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from meshforge_trio.client import (
    CommandFailed,
    CommandRefused,
    Conflict,
    MeshClient,
    OutcomeUnknown,
    SecurityViolation,
    open_client,
)
from meshforge_trio.envelope import EventEnvelope, SecurityContext, encode
from meshforge_trio.errors import Misconfigured, Poison, SessionLost
from meshforge_trio.ids import uuid7
from meshforge_trio.runtime import Runtime
from meshforge_trio.server import PrivateServer

from .client_world import (
    DEADLINE_S,
    KIM,
    PubAckThief,
    declare_streams,
    dial,
    event_names,
    overhearing,
    serving,
    stored,
)


@pytest.fixture
async def server(aio_loop: asyncio.AbstractEventLoop, nats_server: PrivateServer) -> PrivateServer:
    """A server with the streams and nobody who serves."""
    await declare_streams(nats_server.url)
    return nats_server


@pytest.fixture
async def runtime(server: PrivateServer, tmp_path: Path) -> AsyncIterator[Runtime]:
    async with serving(server, tmp_path) as running:
        yield running


@pytest.fixture
async def mesh(server: PrivateServer) -> AsyncIterator[MeshClient]:
    async with dial(server.url) as client:
        yield client


# --- send


async def test_a_command_is_stored_once_per_id(server: PrivateServer, mesh: MeshClient) -> None:
    with trio.fail_after(DEADLINE_S):
        first = await mesh.send("order", "create", {"a": 1}, entity_id="o-1", id="c-1", trace_id="ab" * 16)
        again = await mesh.send("order", "create", {"a": 1}, entity_id="o-1", id="c-1")
        other = await mesh.send("order", "create", {"a": 1}, entity_id="o-1")
        assert (first.id, first.duplicate, again.duplicate, other.duplicate) == ("c-1", False, True, False)
        assert first.stream_seq == again.stream_seq < other.stream_seq
        assert first.idempotency_key is not None
        assert first.idempotency_key < again.idempotency_key < other.idempotency_key  # type: ignore[operator]
        assert await stored(server.url) == 2


@pytest.mark.parametrize("death", ["kill", "cut"])
async def test_a_lost_puback_is_asked_for_again_under_the_same_id(server: PrivateServer, death: str) -> None:
    def kill_and_restart() -> None:
        server.kill()
        server.restart()

    thief = PubAckThief(server.port, kill_and_restart if death == "kill" else lambda: None)
    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            url: str = await nursery.start(thief.run)
            async with dial(url) as mesh:
                sent = await mesh.send("order", "create", {}, entity_id="o-1", timeout_s=DEADLINE_S)
            nursery.cancel_scope.cancel()
        assert thief.stolen
        assert sent.duplicate
        assert await stored(server.url) == 1


async def test_a_server_that_dies_with_a_command_unread_gets_it_again(server: PrivateServer, mesh: MeshClient) -> None:
    server.pause()
    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mesh.send, "order", "create")
            await trio.testing.wait_all_tasks_blocked()
            server.kill()
            server.restart()
        assert await stored(server.url) == 1


async def test_no_puback_in_time_is_unknown_not_failed(server: PrivateServer, mesh: MeshClient) -> None:
    server.pause()
    with trio.fail_after(DEADLINE_S), pytest.raises(OutcomeUnknown, match="its outcome is unknown") as caught:
        await mesh.send("order", "create", id="c-1", idempotency_key="k-1", timeout_s=0.1)
    server.resume()
    assert (caught.value.id, caught.value.idempotency_key) == ("c-1", "k-1")
    assert "c-1" in str(caught.value)
    assert "same idempotency_key 'k-1' is safe" in str(caught.value)


async def test_without_a_stream_it_says_what_to_do(
    aio_loop: asyncio.AbstractEventLoop, nats_server: PrivateServer
) -> None:
    with trio.fail_after(DEADLINE_S):
        async with dial(nats_server.url) as mesh:
            with pytest.raises(Misconfigured, match=r"no stream MESHFORGE_COMMANDS.*meshforge run"):
                await mesh.send("order", "create")
            with pytest.raises(Misconfigured, match=r"no stream MESHFORGE_COMMANDS.*meshforge run"):
                await mesh.call("order", "create")
            with pytest.raises(Misconfigured, match="no stream MESHFORGE_EVENTS"):
                await mesh.events().__aenter__()


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("agent", {"agent": "a.b"}),
        ("agent", {"agent": "lock"}),
        ("action", {"action": "*"}),
        ("id", {"id": "with space"}),
        ("idempotency_key", {"idempotency_key": ""}),
        ("idempotency_key", {"idempotency_key": "raw:1"}),
        ("entity_id", {"entity_id": "x" * 257}),
        ("entity_id", {"entity_id": 7}),
        ("expected_version", {"expected_version": -1}),
        ("trace_id", {"trace_id": "short"}),
        ("payload", {"payload": {"x": float("nan")}}),
        ("payload", {"payload": {"x": object()}}),
        ("payload", {"payload": [1]}),
        ("payload", {"payload": {"x": "y" * 2_000_000}}),
    ],
)
async def test_a_malformed_command_names_its_field_and_is_not_sent(
    server: PrivateServer, mesh: MeshClient, field: str, wrong: dict[str, Any]
) -> None:
    fields: dict[str, Any] = {"agent": "order", "action": "create", "payload": {}, **wrong}
    for ask in (mesh.send, mesh.call):
        with trio.fail_after(DEADLINE_S), pytest.raises(Poison) as caught:
            await ask(**fields)
        assert caught.value.field == field
    assert await stored(server.url) == 0
    assert mesh.waiting == 0


async def test_a_batch_is_stored_in_order_over_a_restart(server: PrivateServer) -> None:
    thief = PubAckThief(server.port, server.restart)
    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            url: str = await nursery.start(thief.run)
            async with dial(url) as mesh:
                commands = [mesh.command("order", "create", {"n": n}) for n in range(5000)]
                sent = await mesh.send_many(commands)
                assert await mesh.send_many([]) == []
            nursery.cancel_scope.cancel()
        assert [s.id for s in sent] == [c.id for c in commands]
        assert [s.stream_seq for s in sent] == list(range(1, 5001))
        assert thief.stolen


async def test_a_batch_cut_short_says_what_is_stored(server: PrivateServer) -> None:
    # Acks of the second window come only after those of the first, so none of the first is lost with them.
    thief = PubAckThief(server.port, server.pause, nth=1500)
    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            url: str = await nursery.start(thief.run)
            async with dial(url) as mesh:
                commands = [mesh.command("order", "create") for _ in range(3000)]
                with pytest.raises(OutcomeUnknown, match="1976 of 3000") as caught:
                    await mesh.send_many(commands, timeout_s=2)
                server.resume()
            nursery.cancel_scope.cancel()
    assert [s.id for s in caught.value.confirmed] == [c.id for c in commands[:1024]]
    assert caught.value.id == commands[1024].id


# --- call


class Asking:
    """One `create` that is asked for in a task of its own."""

    def __init__(self, mesh: MeshClient, *, resend_s: float) -> None:
        self._mesh, self._resend_s = mesh, resend_s
        self._send, self._receive = trio.open_memory_channel[EventEnvelope](1)

    async def run(self) -> None:
        ask = self._mesh.call("order", "create", entity_id="o", resend_s=self._resend_s, timeout_s=DEADLINE_S)
        await self._send.send(await ask)

    async def answer(self) -> EventEnvelope:
        return await self._receive.receive()


async def test_every_kind_of_answer(runtime: Runtime, mesh: MeshClient) -> None:
    async def ask(action: str, **fields: Any) -> tuple[str, dict[str, Any]]:
        answer = await mesh.call("order", action, **fields)
        return answer.name, answer.payload

    with trio.fail_after(DEADLINE_S):
        assert await ask("get", entity_id="o") == ("not_found", {"entity_version": 0})
        assert await ask("create", payload={"n": 1}, entity_id="o") == ("created", {"n": 1, "entity_version": 1})
        assert await ask("get", entity_id="o") == ("found", {"n": 1, "entity_version": 1})
        name, payload = await ask("update", payload={"n": 2}, entity_id="o", expected_version=5)
        assert (name, payload["expected_version"], payload["current_version"]) == ("conflict", 5, 1)
        name, payload = await ask("create", entity_id="o")
        assert (name, payload["code"]) == ("refused", "already_exists")
        name, payload = await ask("update", entity_id="nobody")
        assert (name, payload["code"]) == ("not_found", "not_found")
        name, payload = await ask("fly", entity_id="o")
        assert (name, payload["code"]) == ("refused", "unknown_action")
        assert mesh.waiting == 0


async def test_negative_answers_can_be_raised(server: PrivateServer, runtime: Runtime, mesh: MeshClient) -> None:
    with trio.fail_after(DEADLINE_S):
        await mesh.call("order", "create", entity_id="o", raise_for_refusal=True)
        await mesh.call("order", "get", entity_id="nobody", raise_for_refusal=True)  # an answer, no refusal
        with pytest.raises(Conflict) as conflict:
            await mesh.call("order", "update", entity_id="o", expected_version=0, raise_for_refusal=True)
        assert (conflict.value.expected_version, conflict.value.current_version) == (0, 1)
        with pytest.raises(CommandRefused) as refused:
            await mesh.call("order", "create", entity_id="o", raise_for_refusal=True)
        assert (refused.value.code, refused.value.field) == ("already_exists", "entity_id")
        with pytest.raises(CommandRefused, match="does not exist"):
            await mesh.call("order", "delete", entity_id="nobody", raise_for_refusal=True)


async def test_a_violation_is_an_answer(server: PrivateServer, runtime: Runtime) -> None:
    with trio.fail_after(DEADLINE_S):
        async with dial(server.url, SecurityContext("", "user")) as nobody:
            answer = await nobody.call("order", "create", entity_id="o")
            assert (answer.name, answer.payload["code"]) == ("violation", "bad_principal")
            with pytest.raises(SecurityViolation):
                await nobody.call("order", "create", entity_id="o", raise_for_refusal=True)
        assert await event_names(server.url) == ["violation", "violation"]


async def test_the_same_key_hears_the_same_bytes(server: PrivateServer, runtime: Runtime, mesh: MeshClient) -> None:
    async def ask(payload: dict[str, int], version: int | None = None) -> EventEnvelope:
        key = "k-conflict" if version else "k"
        return await mesh.call("order", "create", payload, entity_id="o", idempotency_key=key, expected_version=version)

    with trio.fail_after(DEADLINE_S):
        first, again = await ask({"n": 1}), await ask({"n": 1})
        assert encode(first) == encode(again)
        mismatch = await ask({"n": 2})
        assert (mismatch.name, mismatch.payload["code"]) == ("refused", "idempotency_mismatch")
        assert encode(await ask({"n": 2})) == encode(mismatch)
        assert encode(await ask({"n": 1})) == encode(first)
        conflict = await ask({"n": 1}, 9)
        assert encode(await ask({"n": 1}, 9)) == encode(conflict)
        assert await event_names(server.url) == ["created", "refused", "conflict"]


async def test_calls_at_the_same_time_keep_their_answers_apart(runtime: Runtime, mesh: MeshClient) -> None:
    heard: dict[int, EventEnvelope] = {}

    async def ask(n: int) -> None:
        heard[n] = await mesh.call(
            "order", "create", {"n": n // 2}, entity_id=f"o-{n // 2}", idempotency_key=f"{n // 2}"
        )

    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            for n in range(100):
                nursery.start_soon(ask, n)
    assert all(heard[n].payload == {"n": n // 2, "entity_version": 1} for n in range(100))
    assert mesh.waiting == 0


async def test_a_call_survives_the_death_of_the_server(server: PrivateServer, mesh: MeshClient, tmp_path: Path) -> None:
    asking = Asking(mesh, resend_s=DEADLINE_S)

    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            async with overhearing(server.url) as passing:
                nursery.start_soon(asking.run)
                first = await passing.receive()
            server.kill()
            server.restart()
            async with overhearing(server.url) as passing:
                second = await passing.receive()
            async with serving(server, tmp_path):
                answer = await asking.answer()
        assert (first.id, first.idempotency_key) != (second.id, second.idempotency_key)
        assert first.idempotency_key == second.idempotency_key == answer.idempotency_key
        assert answer.causation_id == first.id
        assert await event_names(server.url) == ["created"]


async def test_a_call_survives_a_cut_connection(server: PrivateServer, runtime: Runtime) -> None:
    thief = PubAckThief(server.port, lambda: None)
    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            url: str = await nursery.start(thief.run)
            async with dial(url) as mesh:
                answer = await mesh.call("order", "create", entity_id="o", resend_s=DEADLINE_S, timeout_s=DEADLINE_S)
            nursery.cancel_scope.cancel()
        assert thief.stolen
        assert answer.name == "created"
        assert await event_names(server.url) == ["created"]


async def test_a_call_without_an_answer_is_sent_again(server: PrivateServer, mesh: MeshClient, tmp_path: Path) -> None:
    asking = Asking(mesh, resend_s=0.05)

    with trio.fail_after(DEADLINE_S):
        async with overhearing(server.url) as passing, trio.open_nursery() as nursery:
            nursery.start_soon(asking.run)
            sendings = [await passing.receive() for _ in range(3)]
            async with serving(server, tmp_path):
                answer = await asking.answer()
        assert len({s.id for s in sendings}) == 3
        assert {s.idempotency_key for s in sendings} == {answer.idempotency_key}
        assert await event_names(server.url) == ["created"]


async def test_nothing_is_kept_of_a_call_that_ends_without_an_answer(server: PrivateServer, mesh: MeshClient) -> None:
    with trio.fail_after(DEADLINE_S):
        with pytest.raises(OutcomeUnknown, match="no answer to command c-1") as caught:
            await mesh.call("order", "create", id="c-1", timeout_s=0.2, resend_s=0.05)
        assert caught.value.id == "c-1"
        async with overhearing(server.url) as passing, trio.open_nursery() as nursery:
            nursery.start_soon(mesh.call, "order", "create")
            await passing.receive()
            assert mesh.waiting == 1
            nursery.cancel_scope.cancel()
    assert mesh.waiting == 0


# --- the client itself


async def test_it_brings_its_own_loop_and_raises_what_was_raised(nats_server: PrivateServer) -> None:
    with trio.fail_after(DEADLINE_S):
        with pytest.raises(CommandFailed) as caught:
            async with dial(nats_server.url):
                raise CommandFailed(_event())
        assert caught.value.__context__ is None
        ours = ExceptionGroup("ours", [ValueError()])
        with pytest.raises(ExceptionGroup) as grouped:
            async with dial(nats_server.url):
                raise ours
        assert grouped.value is ours
        with trio.CancelScope() as scope:
            async with dial(nats_server.url):
                scope.cancel()
                await trio.lowlevel.checkpoint()
        assert scope.cancelled_caught
        nats_server.stop()
        with pytest.raises(SessionLost):
            await dial(nats_server.url).__aenter__()
        with pytest.raises(Misconfigured):
            await dial("http://127.0.0.1").__aenter__()
        with pytest.raises(Poison):
            await open_client(nats_server.url, tenant="a b", workspace="w", principal=KIM).__aenter__()


def _event() -> EventEnvelope:
    return EventEnvelope(id=uuid7(), tenant="t", workspace="w", agent="order", name="refused")


async def test_what_waits_when_it_closes_is_told(server: PrivateServer) -> None:
    async def told(work: Callable[[], Any]) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await work()

    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery, dial(server.url) as mesh, overhearing(server.url) as passing:
            nursery.start_soon(told, lambda: mesh.call("order", "create"))
            await passing.receive()
        await told(lambda: mesh.send("order", "create"))
        assert mesh.waiting == 0
