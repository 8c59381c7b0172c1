"""Kills while recovering: python scenarios/kill_in_recovery.py

The first worker commits a batch of decisions and is killed before it has published any of them. Its successor, which
has to publish them, is killed on the way: when it has the lease, when the consumer is reset, before the recovery,
between any two of its publishes, after it. Then the same once more with a third worker that continues what the second
one began.

What must hold: however often recovery is cut off, what was committed reaches the stream once and in order, and nothing
is decided again.
"""

from __future__ import annotations

from collections.abc import Sequence

from chaos.evidence import Sent
from chaos.scenario import Scenario
from chaos.script import main
from chaos.sweep import Sweep
from chaos.workload import Workload
from meshforge_trio.points import Point

RECOVERY = (Point.AFTER_LEASE, Point.AFTER_RESET, Point.BEFORE_RECOVERY, Point.IN_RECOVERY, Point.AFTER_RECOVERY)


def workload(seed: int) -> Sequence[Sent]:
    """One turn that leaves events, a refusal and a dead letter to be published; none of it could be decided twice."""
    commands = Workload()
    commands.send("counter", "roll", entity="a", expect=["decided"], repeatable=False)
    commands.send("counter", "bloat", {"amount": 2_000_000 + seed}, entity="b", expect=["dead"])
    commands.send("counter", "roll", entity="a", expect=["decided"], repeatable=False)
    commands.send("counter", "take", {"amount": 7}, entity="b", expect=["refused"])
    commands.send("counter", "add", {"amount": 7}, entity="b", expect=["decided"], phase="after")
    return commands


SCENARIO = Scenario(
    "kill-in-recovery",
    __doc__,
    "chaos.agents:counter_only",
    workload,
    searches=[
        Sweep(points=RECOVERY, batches=(64,), before="worker#1:before_publish@1=kill", number=2),
        Sweep(
            points=RECOVERY,
            batches=(64,),
            before="worker#1:before_publish@1=kill; worker#2:in_recovery@2=kill",
            number=3,
        ),
        # Half of it was published: what is there already must be found.
        Sweep(points=[Point.IN_RECOVERY], batches=(64,), before="worker#1:in_publish@2=kill", number=2),
    ],
    claims=("G1", "G2", "G3", "G4", "G5", "G6", "G7", "G11", "G12", "G13"),
)

if __name__ == "__main__":
    main(SCENARIO)
