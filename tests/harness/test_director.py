"""The director: what it does to the server and the client happens where the plan says, and the worker lives through it.

The runs are real, and judged; that the schedule was kept is read from their histories.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import trio

from chaos import director as module
from chaos.case import Case
from chaos.evidence import Sent
from chaos.history import Record, read_history
from chaos.lab import Lab
from chaos.plan import parse_plan
from chaos.verdict import Status
from chaos.workload import SCOPE, command
from chaos.world import ProcessWorld, Worker
from meshforge_trio.server import PrivateServer

APP = "chaos.agents:counter_only"


def case(plan: str, **more: Any) -> Case:
    """Eight commands, one a turn, and one for afterwards."""
    sent = [
        Sent(
            command(SCOPE, "add", n, {"amount": n}, entity_id="a"),
            expect=("decided",),
            phase="after" if n == 9 else "main",
        )
        for n in range(1, 10)
    ]
    return Case(APP, sent, parse_plan(plan), **{"engine": {"batch": 1}, **more})


async def history_of(lab: Lab, plan: str, **more: Any) -> Sequence[Record]:
    """Of a run that passes."""
    outcome = await lab.run(case(plan, **more), keep=True)
    assert outcome.status is Status.PASS, str(outcome)
    assert outcome.home is not None
    assert outcome.evidence is not None
    assert len(outcome.evidence.events) == 9
    return read_history(outcome.home / "history.jsonl")


def told(history: Sequence[Record], *kinds: str) -> list[tuple[str, str]]:
    return [(record.actor, record.kind) for record in history if record.kind in kinds]


def at(history: Sequence[Record], kind: str, nth: int = 0) -> int:
    return [record.t for record in history if record.kind == kind][nth]


def did(history: Sequence[Record], actor: str, begin: int, end: int) -> list[Record]:
    """What an actor wrote between two instants."""
    return [record for record in history if record.actor == actor and begin < record.t < end]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is done to servers."""
    done: list[str] = []
    for name in ("kill", "restart", "pause", "resume"):
        real = getattr(PrivateServer, name)

        def noted(server: PrivateServer, name: str = name, real: Any = real) -> None:
            done.append(name)
            real(server)

        monkeypatch.setattr(PrivateServer, name, noted)
    return done


async def test_restart(lab: Lab, calls: list[str]) -> None:
    history = await history_of(lab, "nats:after_store@3=restart")
    assert calls == ["restart"]
    assert told(history, "fault", "down", "up", "healed") == [
        ("worker#1", "fault"),
        ("nats", "down"),
        ("nats", "up"),
        ("nats", "healed"),
    ]
    assert did(history, "worker#1", at(history, "down"), at(history, "up")) == [], "it stands still meanwhile"
    # The client dials again, and writes down that it was deaf.
    assert told(history, "listening", "deaf") == [("client", "listening"), ("client", "deaf"), ("client", "listening")]


async def test_kill(lab: Lab, calls: list[str]) -> None:
    history = await history_of(lab, "nats:in_publish@3=kill(0.6)")
    assert calls == ["kill"]
    assert at(history, "fault") < at(history, "down")
    assert at(history, "up") - at(history, "down") >= 0.6e9
    assert [record["why"] for record in history if record.kind == "down"] == ["kill"]


async def test_a_killed_server_is_down_for_a_moment_at_least(lab: Lab) -> None:
    history = await history_of(lab, "nats:in_publish@3=kill")
    assert at(history, "up") - at(history, "down") >= 0.05e9


async def test_a_worker_lives_through_a_pause(lab: Lab, calls: list[str]) -> None:
    """It goes on while the server is silent: that is what a pause is to show."""
    history = await history_of(lab, "nats:before_store@3=pause(0.5)")
    assert calls == ["pause", "resume"]
    assert told(history, "down", "up") == [], "connections stay open"
    fault, healed = at(history, "fault"), at(history, "healed")
    assert healed - fault >= 0.5e9
    points = {record["point"] for record in did(history, "worker#1", fault, healed) if record.kind == "point"}
    assert points >= {"in_store", "after_store"}


async def test_a_copy_is_put_back(lab: Lab, calls: list[str]) -> None:
    plan = "nats:after_ack@3=copy; nats:after_ack@6=rollback"
    outcome = await lab.run(case(plan, paced=True), keep=True)
    assert outcome.status is Status.PASS, str(outcome)
    assert outcome.home is not None
    assert calls == ["pause", "resume", "kill"], "it is copied while nothing moves"
    history = read_history(outcome.home / "history.jsonl")
    assert [record["why"] for record in history if record.kind == "down"] == ["rollback"]
    # What the server forgot is published again.
    assert "published what the streams lacked" in (outcome.home / "worker-1.log").read_text()
    assert outcome.evidence is not None
    assert len(outcome.evidence.events) == 9


async def test_the_client_sends_everything_again(lab: Lab) -> None:
    history = await history_of(lab, "client:after_ack@4=resend", paced=True)
    fault, healed = at(history, "fault"), at(history, "healed")
    again = [record for record in did(history, "client", fault, healed) if record.kind == "send"]
    assert [record["key"] for record in again] == ["k1", "k2", "k3", "k4"]
    assert did(history, "worker#1", again[0].t, healed) == []


async def test_faults_of_several_actors_in_one_run(lab: Lab, calls: list[str]) -> None:
    plan = "worker#1:after_store@2=stop(0.2); nats:after_store@4=restart; nats:worker#2.after_lease@1=kill"
    kill = "worker#1:after_store@6=kill"
    history = await history_of(lab, f"{plan}; {kill}")
    assert calls == ["restart", "kill"]
    faults = [record["rule"] for record in history if record.kind == "fault"]
    assert faults == [
        "worker#1:after_store@2=stop(0.2)",
        "nats:after_store@4=restart",
        kill,
        "nats:worker#2.after_lease@1=kill",
    ]
    healed = [record["rule"] for record in history if record.kind == "healed"]
    assert healed == [rule for rule in faults if rule != kill]


async def test_what_cannot_be_carried_out_is_no_verdict(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that does not stop, for instance."""

    async def frozen(world: ProcessWorld, worker: Worker) -> None:
        await trio.sleep_forever()

    with monkeypatch.context() as patched:
        patched.setattr(ProcessWorld, "frozen", frozen)
        patched.setattr(module, "_ACT_S", 0.05)
        outcome = await lab.run(case("nats:after_store@3=restart"))
    assert outcome.status is Status.INCONCLUSIVE
    assert "WorldError: nats:after_store@3=restart: not carried out within" in "\n".join(outcome.verdict.reasons)
    assert (await lab.run(case("nats:after_store@3=restart"))).status is Status.PASS


async def test_a_stopped_worker_is_released_by_whoever_finishes(lab: Lab) -> None:
    """Its successor may die as well."""
    plan = "worker#1:before_store@2=stop; worker#2:after_store@2=kill"
    history = await history_of(lab, plan, lease_ttl_s=0.4)
    ends = [(record.actor, record["status"]) for record in history if record.kind == "exit"]
    assert ends == [("worker#2", -9), ("worker#1", 0), ("worker#3", 0)]
