"""Real nats-server, real processes, real SIGKILL: every point, every hit of it, and kills of what recovers.

Each case sends a workload that takes every path, kills the worker at one hit of one point, judges the corpse before
anything can recover it, lets a successor finish, and judges the end. The sweep goes on until a run ends unhit, so no
position is left out. `meshforge-chaos gate` sweeps small turns, too, and pairs, and the other faults.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest

from chaos.case import Case
from chaos.evidence import Evidence, Sent
from chaos.lab import Lab, Outcome, open_lab
from chaos.plan import parse_plan
from chaos.scenario import Scenario, Search, run_scenario
from chaos.sweep import Pairs, Sweep
from chaos.verdict import Status
from chaos.workload import SCOPE, command, every_path
from meshforge_trio.points import Point

APP = "chaos.agents:app"
#: This workload leaves something to examine for all but the locks.
CLAIMS = tuple(f"G{number}" for number in range(1, 14) if number != 10)
#: Cases at a time: they mostly wait for processes.
PARALLEL = 4


def evidence_of(outcome: Outcome) -> Evidence:
    """What is left of a run that passed."""
    assert outcome.status is Status.PASS, str(outcome)
    assert outcome.evidence is not None
    return outcome.evidence


async def kills_of(search: Search) -> tuple[Counter[str], Sequence[Outcome]]:
    """Kills by point, of everything that a search tries; all of it passes."""
    scenario = Scenario(
        "every-path", "Every path of the protocol.", APP, lambda seed: every_path(), [search], claims=CLAIMS
    )
    async with open_lab(PARALLEL) as lab:
        outcomes = await run_scenario(scenario, lab)
    for outcome in outcomes:
        evidence_of(outcome)
    rules = [receipt.rule for outcome in outcomes for receipt in outcome.verdict.receipts]
    return Counter(rule.split(":")[1].split("@")[0] for rule in rules), outcomes


@pytest.mark.slow
async def test_kill_at_every_hit_of_every_point() -> None:
    points = [point for point in Point if point is not Point.IN_RECOVERY]
    kills, _ = await kills_of(Sweep(points, batches=(64,)))
    assert set(kills) == set(points), f"never reached: {set(points) - set(kills)}"


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 64])
async def test_kill_during_recovery(batch: int) -> None:
    """Committed and not published, then killed again between two publishes of the recovery."""
    before = "worker#1:before_publish@3=kill"
    kills, _ = await kills_of(Sweep([Point.IN_RECOVERY], before=before, number=2, batches=(batch,)))
    assert kills[Point.IN_RECOVERY] > 0, "the recovery had nothing to publish"


@pytest.mark.slow
async def test_kill_twice() -> None:
    first = [Point.BEFORE_STORE, Point.AFTER_STORE, Point.IN_PUBLISH, Point.AFTER_PUBLISH, Point.BEFORE_ACK]
    second = [Point.AFTER_LEASE, Point.BEFORE_RECOVERY, Point.AFTER_RECOVERY, Point.IN_STORE, Point.BEFORE_ACK]
    _, outcomes = await kills_of(Pairs(first, second, nth=(2, 1)))
    assert [outcome.verdict.unhit for outcome in outcomes] == [[]] * 25
    assert [len(outcome.verdict.receipts) for outcome in outcomes] == [2] * 25


# -- by name -------------------------------------------------------------------------------------------------------


async def roll(lab: Lab, plan: str) -> tuple[Evidence, Outcome]:
    """One unrepeatable decision: a second one could not give the same event."""
    sent = [Sent(command(SCOPE, "roll", 1, entity_id="a"), expect=("decided",), repeatable=False)]
    outcome = await lab.run(Case(APP, sent, parse_plan(plan)), keep=True)
    return evidence_of(outcome), outcome


async def test_crash_before_ack_is_redelivered_idempotently(lab: Lab) -> None:
    evidence, _ = await roll(lab, "worker#1:before_ack@1=kill")
    assert evidence.calls[str(SCOPE), "k1"] == 1


async def test_crash_after_store_before_publish_is_published_by_recovery(lab: Lab) -> None:
    evidence, outcome = await roll(lab, "worker#1:before_publish@1=kill")
    assert evidence.calls[str(SCOPE), "k1"] == 1
    assert outcome.home is not None
    assert "published what the streams lacked" in (outcome.home / "worker-2.log").read_text()


async def test_crash_before_store_is_decided_anew(lab: Lab) -> None:
    evidence, _ = await roll(lab, "worker#1:before_store@1=kill")
    # Called twice and committed once: what the first call decided left no trace.
    assert evidence.calls[str(SCOPE), "k1"] == 2
    assert [row.event_id for row in evidence.rows.outputs if row.scope == SCOPE] == ["c1_rolled"]


async def test_a_command_that_kills_its_process_is_blamed_alone(lab: Lab) -> None:
    """R7: called at most `limit` times, dead-lettered once; its neighbours in the batch come through."""
    sent = [
        Sent(command(SCOPE, "add", 1, {"amount": 1}, entity_id="a"), expect=("decided",)),
        Sent(command(SCOPE, "die", 2, entity_id="b"), expect=("dead",)),
        Sent(command(SCOPE, "add", 3, {"amount": 1}, entity_id="c"), expect=("decided",)),
        Sent(command(SCOPE, "add", 4, {"amount": 1}, entity_id="b"), expect=("decided",)),
    ]
    evidence = evidence_of(await lab.run(Case(APP, sent, limit=5, mortal=True)))
    assert evidence.calls[str(SCOPE), "k2"] == 5
    assert len(evidence.failed) == 1


async def test_order_within_an_entity_survives_a_kill(lab: Lab) -> None:
    """R2: without the reset the un-ACKed first command would come back behind the second."""
    sent = [Sent(command(SCOPE, "add", n, {"amount": n}, entity_id="a"), expect=("decided",)) for n in range(1, 9)]
    for point in ("received", "before_store", "after_store"):
        plan = parse_plan(f"worker#1:{point}@2=kill")
        evidence_of(await lab.run(Case(APP, sent, plan, engine={"batch": 1, "ack_wait_s": 30.0})))
