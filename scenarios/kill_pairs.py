"""Two kills in a row: python scenarios/kill_pairs.py

The first worker is killed with SIGKILL at one point, its successor at another, and a third worker finishes. Every
ordered pair of the chosen points is tried: where a turn has decided, stored, published and ACKed, and where its
successor has taken over, has recovered, runs again alone what may have killed the first one, and stores it.

What must hold: a second death in the middle of mending the first leaves nothing lost, doubled or out of order, and a
command that was in hand at both deaths is not taken for the cause of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from chaos.evidence import Sent
from chaos.scenario import Scenario
from chaos.script import main
from chaos.sweep import Pairs
from chaos.workload import Workload
from meshforge_trio.points import Point

FIRST = (Point.BEFORE_STORE, Point.IN_STORE, Point.AFTER_STORE, Point.IN_PUBLISH, Point.AFTER_PUBLISH, Point.AFTER_ACK)
SECOND = (
    Point.AFTER_RESET,
    Point.BEFORE_RECOVERY,
    Point.IN_ATTEMPT,
    Point.BEFORE_STORE,
    Point.AFTER_STORE,
    Point.BEFORE_ACK,
)


def workload(seed: int) -> Sequence[Sent]:
    """Two entities, a refusal, a command that is sent twice."""
    commands = Workload()
    first = commands.send("counter", "add", {"amount": 4 + seed}, entity="a", expect=["decided"])
    commands.send("counter", "take", {"amount": 1}, entity="b", expect=["refused"])
    commands.send("counter", "add", {"amount": 2}, entity="a", expect=["decided"])
    commands.send("counter", "roll", entity="b", expect=["decided"], repeatable=False)
    commands.again(first)
    commands.again(first, phase="after")
    commands.send("counter", "take", {"amount": 6}, entity="a", expect=["decided"], phase="after")
    return commands


SCENARIO = Scenario(
    "kill-pairs",
    __doc__,
    "chaos.agents:counter_only",
    workload,
    searches=[Pairs(FIRST, SECOND)],
    claims=("G1", "G2", "G3", "G4", "G5", "G6", "G7", "G8", "G12", "G13"),
)

if __name__ == "__main__":
    main(SCENARIO)
