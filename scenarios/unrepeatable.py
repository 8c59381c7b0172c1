"""An agent that throws dice: python scenarios/unrepeatable.py

Its decision is another one each time it is made, so a decision that is made twice cannot hide behind the first: what
is published would differ from what is stored, or two events would bear one id. The worker is killed at every point of
a turn, first and second hit, with one command a turn and with all in one; an answer that got lost is asked for again.

What must hold: one throw per key takes effect, the one that was committed first; only what is committed is published,
and whoever asks again hears the same number of pips.
"""

from __future__ import annotations

from collections.abc import Sequence

from chaos.evidence import Sent
from chaos.scenario import Scenario
from chaos.script import main
from chaos.sweep import Sweep
from chaos.workload import Workload
from meshforge_trio.points import Point

A_TURN = (
    Point.RECEIVED,
    Point.BEFORE_STORE,
    Point.IN_STORE,
    Point.AFTER_STORE,
    Point.BEFORE_PUBLISH,
    Point.IN_PUBLISH,
    Point.AFTER_PUBLISH,
    Point.BEFORE_ACK,
    Point.AFTER_ACK,
)


def workload(seed: int) -> Sequence[Sent]:
    """Throws for two players, the first one asked for three times."""
    commands = Workload()
    first = commands.send("counter", "roll", entity="ann", expect=["decided"], repeatable=False)
    commands.send("counter", "roll", {"amount": seed}, entity="bob", expect=["decided"], repeatable=False)
    commands.again(first)
    commands.again(first, phase="after")
    commands.send("counter", "roll", entity="ann", expect=["decided"], repeatable=False, phase="after")
    return commands


SCENARIO = Scenario(
    "unrepeatable",
    __doc__,
    "chaos.agents:counter_only",
    workload,
    searches=[
        Sweep(points=A_TURN, batches=(1,), nth_max=2),
        Sweep(points=A_TURN, batches=(64,), nth_max=1),
    ],
    claims=("G1", "G2", "G3", "G4", "G5", "G6", "G7", "G8", "G12", "G13"),
)

if __name__ == "__main__":
    main(SCENARIO)
