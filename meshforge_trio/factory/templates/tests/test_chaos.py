"""The agents are killed, and their broker with them: nothing may be lost or doubled, and every invariant holds.

    pytest tests/test_chaos.py --chaos-report runs     keeps what does not pass, each run with a page
    meshforge-chaos gate --profile pr                  all of it, as in CI
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest
from chaos.harness import ChaosSweep, ChaosWorld
from chaos.project import read_workload

from scenarios.invariants import CLAIMS, INVARIANTS

APP: Final = "agents:app"
WORKLOAD: Final = Path(__file__).parents[1] / "scenarios/workload.jsonl"


@pytest.mark.chaos
@pytest.mark.parametrize(
    "plan",
    [
        "worker#1:before_store@1=kill",
        "worker#1:after_store@2=kill; worker#2:in_recovery@1=kill",
        "nats:after_publish@1=restart",
        "proxy:puback@2=cut_before",
    ],
)
def test_nothing_is_lost_or_doubled(chaos_world: ChaosWorld, plan: str) -> None:
    chaos_world(APP, read_workload(WORKLOAD), plan, engine={"batch": 4}, invariants=INVARIANTS, claims=CLAIMS{{ extra }})


@pytest.mark.chaos
def test_a_kill_between_decision_and_answer(chaos_sweep: ChaosSweep) -> None:
    points = ("before_store", "after_store", "after_publish", "after_ack")
    chaos_sweep(APP, read_workload(WORKLOAD), points=points, invariants=INVARIANTS, claims=CLAIMS{{ extra }})
