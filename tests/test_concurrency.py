"""Optimistic concurrency over a real JetStream: of those who race for a version of an entity exactly one wins it.

The check itself, its order among the others and its bytes are in `tests/unit/test_decide.py`; races under kills are
what `meshforge-chaos` plays.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, cast

import pytest
import trio
from integration.client_world import DEADLINE_S, KIM, dial, serving

from chaos.case import Case
from chaos.evidence import Sent
from chaos.lab import Lab
from chaos.plan import parse_plan
from chaos.verdict import Status
from chaos.workload import SCOPE, command
from meshforge_trio.agent import Agent, Context, Event, Reply
from meshforge_trio.client import Conflict, MeshClient
from meshforge_trio.crud import crud_agent
from meshforge_trio.envelope import EventEnvelope, JsonObject, SecurityContext
from meshforge_trio.errors import Misconfigured
from meshforge_trio.revise import revise
from meshforge_trio.server import PrivateServer

LEE = SecurityContext("lee", "user")


def account() -> Agent[int]:
    """A balance."""
    agent: Agent[int] = Agent("account", state=int, initial=int)

    @agent.command("add")
    def add(total: int, payload: JsonObject, ctx: Context) -> Event:
        return Event("added", {"amount": payload["amount"], "total": total + payload["amount"]})

    @agent.query("get")
    def get(total: int, payload: JsonObject, ctx: Context) -> Reply:
        return Reply("found", {"total": total})

    @agent.event("added")
    def added(total: int, payload: JsonObject) -> int:
        return int(payload["total"])

    return agent


async def test_one_of_two_clients_wins_each_version(
    aio_loop: object, nats_server: PrivateServer, tmp_path: Path
) -> None:
    """Two clients, each on a connection of its own, ask for the same versions of one entity."""
    won: dict[int, list[str]] = defaultdict(list)
    lost: list[EventEnvelope] = []

    async def race(mesh: MeshClient, name: str) -> None:
        for version in range(50):
            answer = await mesh.call("account", "add", {"amount": 1}, entity_id="hot", expected_version=version)
            if answer.name == "conflict":
                lost.append(answer)
            else:
                won[answer.payload["entity_version"]].append(name)

    async with serving(nats_server, tmp_path, account()), dial(nats_server.url, KIM) as kim:
        async with dial(nats_server.url, LEE) as lee:
            with trio.fail_after(DEADLINE_S):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(race, kim, "kim")
                    nursery.start_soon(race, lee, "lee")
        found = await kim.call("account", "get", entity_id="hot")
    assert all(len(names) == 1 for names in won.values())
    assert sorted(won) == list(range(1, len(won) + 1)), "gapless"
    assert len(won) + len(lost) == 100
    assert found.payload == {"total": len(won), "entity_version": len(won)}
    for answer in lost:
        assert answer.payload.keys() == {"entity_id", "expected_version", "current_version", "reason"}
        assert answer.payload["expected_version"] != answer.payload["current_version"]


async def test_ten_thousand_racing_commands_over_ten_hot_entities(lab: Lab) -> None:
    """Two workers, one killed in the middle: versions without gaps, each won once, and the sum of what was won."""
    rounds, rivals, entities = 250, 4, 10
    sent = [
        Sent(
            command(
                SCOPE,
                "add",
                (version * entities + entity) * rivals + rival,
                {"amount": 1 + rival},
                entity_id=f"e{entity}",
                expected_version=version,
            ),
            expect=("decided", "conflict"),
        )
        for version in range(rounds)
        for entity in range(entities)
        for rival in range(rivals)
    ]
    plan = parse_plan("worker#1:after_store@5=kill")
    case = Case("chaos.agents:counter_only", sent, plan, limit=0, deadline_s=120.0)
    outcome = await lab.run(case, keep=True)
    assert outcome.status is Status.PASS, str(outcome)
    assert outcome.evidence is not None
    outcomes = Counter(row.outcome for row in outcome.evidence.rows.keys)
    assert outcomes == {"decided": rounds * entities, "conflict": rounds * entities * (rivals - 1)}
    versions: dict[str, list[int]] = defaultdict(list)
    for row in outcome.evidence.rows.outputs:
        if row.kind == "event" and row.entity_id is not None and row.version is not None:
            versions[row.entity_id].append(row.version)
    assert versions == {f"e{entity}": list(range(1, rounds + 1)) for entity in range(entities)}


# -- reading, deciding, sending, again -----------------------------------------------------------------------------


async def test_clients_that_revise_lose_no_change(aio_loop: object, nats_server: PrivateServer, tmp_path: Path) -> None:
    def more(found: EventEnvelope) -> JsonObject:
        return {"amount": 1}

    async def five_times(mesh: MeshClient) -> None:
        for _ in range(5):
            answer = await mesh.revise("account", "add", "hot", more, tries=200)
            assert answer is not None
            assert answer.name == "added"

    async with serving(nats_server, tmp_path, account()), dial(nats_server.url) as mesh:
        with trio.fail_after(DEADLINE_S):
            async with trio.open_nursery() as nursery:
                for _ in range(6):
                    nursery.start_soon(five_times, mesh)
        found = await mesh.call("account", "get", entity_id="hot")
    assert found.payload["total"] == 30


class Rival:
    """A client before each of whose commands somebody else is faster."""

    def __init__(self, mesh: MeshClient) -> None:
        self._mesh = mesh

    async def call(self, agent: str, action: str, payload: JsonObject | None = None, **fields: Any) -> EventEnvelope:
        if action == "add":
            await self._mesh.call(agent, action, {"amount": 1}, entity_id=fields["entity_id"])
        return await self._mesh.call(agent, action, payload, **fields)


async def test_a_revision_may_leave_it_or_lose_for_good(
    aio_loop: object, nats_server: PrivateServer, tmp_path: Path
) -> None:
    asked: list[int] = []

    def too_late(found: EventEnvelope) -> JsonObject:
        asked.append(found.payload["entity_version"])
        return {"amount": 1}

    async with serving(nats_server, tmp_path, account(), crud_agent("order")), dial(nats_server.url) as mesh:
        rival = cast(MeshClient, Rival(mesh))

        assert await mesh.revise("account", "add", "hot", lambda found: None) is None
        with pytest.raises(Misconfigured, match="at least one"):
            await mesh.revise("account", "add", "hot", too_late, tries=0)
        with pytest.raises(Conflict):
            await revise(rival, "account", "add", "hot", too_late, read="get", tries=3, timeout_s=10.0)
        found = await mesh.call("account", "get", entity_id="hot")
    assert asked == [0, 1, 2]
    assert found.payload["total"] == 3
