"""Real nats-server, real processes, real SIGKILL: every point, every hit of it, small turns and large ones.

Each case sends a workload that takes every path, kills the worker at one hit of one point, judges the corpse before
anything can recover it, lets a successor finish, and judges the end. The sweep goes on until a run ends unhit, so no
position is left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from chaos.case import CaseResult, run_case
from chaos.evidence import Sent
from chaos.plan import Plan, Rule, parse_plan
from chaos.workload import command, every_path
from chaos.world import Zygote
from meshforge_trio.points import Point
from meshforge_trio.subjects import Scope

SCOPE = Scope("default", "demo", "counter")
APP = "chaos.agents:app"
#: A successor that has something to recover, so that recovery itself can be killed.
IN_RECOVERY = "worker#1:before_publish@{first}=kill; worker#2:in_recovery@{nth}=kill"


def held(result: CaseResult) -> None:
    """Every guarantee held, and every checker had something to look at."""
    assert not result.broken, str(result)
    # A query alone leaves nothing for some checkers; this workload leaves something for each.
    assert all(judgement.examined for judgement in result.end), [str(j) for j in result.end]


async def sweep(zygote: Zygote, point: Point, batch: int, sent: Sequence[Sent]) -> int:
    """Kill at the 1st, 2nd, ... hit until a run ends unhit; return the number of kills."""
    nth = 0
    while True:
        nth += 1
        plan = Plan((Rule(1, point, nth),))
        result = await run_case(APP, sent, plan, zygote, engine={"batch": batch})
        held(result)
        if result.unhit:
            return nth - 1
        assert result.fired == [str(plan)]


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 64])
@pytest.mark.parametrize("point", [point for point in Point if point is not Point.IN_RECOVERY])
async def test_kill_at_every_hit_of_every_point(zygote: Zygote, point: Point, batch: int) -> None:
    kills = await sweep(zygote, point, batch, every_path(SCOPE))
    assert kills > 0, f"{point} was never reached"


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 64])
async def test_kill_during_recovery(zygote: Zygote, batch: int) -> None:
    """Committed and not published, then killed again between two publishes of the recovery."""
    nth = 0
    while True:
        nth += 1
        plan = parse_plan(IN_RECOVERY.format(first=3, nth=nth))
        result = await run_case(APP, every_path(SCOPE), plan, zygote, engine={"batch": batch})
        held(result)
        if result.unhit:
            break
    assert nth > 1, "the recovery had nothing to publish"


@pytest.mark.slow
@pytest.mark.parametrize("first", ["before_store", "after_store", "in_publish", "after_publish", "before_ack"])
@pytest.mark.parametrize("second", ["after_lease", "before_recovery", "after_recovery", "in_store", "before_ack"])
async def test_kill_twice(zygote: Zygote, first: str, second: str) -> None:
    plan = parse_plan(f"worker#1:{first}@2=kill; worker#2:{second}@1=kill")
    result = await run_case(APP, every_path(SCOPE), plan, zygote, engine={"batch": 64})
    held(result)
    assert not result.unhit


async def test_crash_before_ack_is_redelivered_idempotently(zygote: Zygote) -> None:
    sent = [Sent(command(SCOPE, "roll", 1, {"tag": "k1"}, entity_id="a"), expect=("decided",))]
    result = await run_case(APP, sent, parse_plan("worker#1:before_ack@1=kill"), zygote)
    assert not result.broken, str(result)
    assert not result.unhit
    # An unrepeatable decision: a second one could not have given the same event.
    assert result.evidence.calls == {"k1": 1}


async def test_crash_after_store_before_publish_is_published_by_recovery(zygote: Zygote) -> None:
    sent = [Sent(command(SCOPE, "roll", 1, {"tag": "k1"}, entity_id="a"), expect=("decided",))]
    result = await run_case(APP, sent, parse_plan("worker#1:before_publish@1=kill"), zygote)
    assert not result.broken, str(result)
    assert not result.unhit
    assert result.evidence.calls == {"k1": 1}
    assert "published what the streams lacked" in result.logs


async def test_crash_before_store_is_decided_anew(zygote: Zygote) -> None:
    sent = [Sent(command(SCOPE, "roll", 1, {"tag": "k1"}, entity_id="a"), expect=("decided",))]
    result = await run_case(APP, sent, parse_plan("worker#1:before_store@1=kill"), zygote)
    assert not result.broken, str(result)
    # Called twice and committed once: what the first call decided left no trace.
    assert result.evidence.calls == {"k1": 2}
    assert len(result.evidence.rows.outputs) >= 1


async def test_a_command_that_kills_its_process_is_blamed_alone(zygote: Zygote) -> None:
    """R7: called at most `limit` times, dead-lettered once; its neighbours in the batch come through."""
    sent = [
        Sent(command(SCOPE, "add", 1, {"amount": 1, "tag": "k1"}, entity_id="a"), expect=("decided",)),
        Sent(command(SCOPE, "die", 2, {"tag": "k2"}, entity_id="b"), expect=("dead",)),
        Sent(command(SCOPE, "add", 3, {"amount": 1, "tag": "k3"}, entity_id="c"), expect=("decided",)),
        Sent(command(SCOPE, "add", 4, {"amount": 1, "tag": "k4"}, entity_id="b"), expect=("decided",)),
    ]
    result = await run_case(APP, sent, Plan(), zygote, limit=5)
    assert not result.broken, str(result)
    assert result.evidence.calls["k2"] == 5
    assert len(result.evidence.failed) == 1


async def test_order_within_an_entity_survives_a_kill(zygote: Zygote) -> None:
    """R2: without the reset the un-ACKed first command would come back behind the second."""
    sent = [
        Sent(command(SCOPE, "add", n, {"amount": n, "tag": f"k{n}"}, entity_id="a"), expect=("decided",))
        for n in range(1, 9)
    ]
    for point in ("received", "before_store", "after_store"):
        plan = parse_plan(f"worker#1:{point}@2=kill")
        result = await run_case(APP, sent, plan, zygote, engine={"batch": 1, "ack_wait_s": 30.0})
        assert not result.broken, str(result)
        assert not result.unhit
