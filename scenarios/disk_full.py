"""A full disk: python scenarios/disk_full.py

From a chosen point on there is no space left for the worker's store, and after a while there is again. This at every
point before a transaction: a turn, a failure that is to be noted, a dead letter, an attempt, a mark.

What must hold: a transaction that finds no space is rolled back as a whole, nothing of it is published or ACKed, the
worker lives through it, and when there is space again everything is decided as if nothing had happened.
"""

from __future__ import annotations

from collections.abc import Sequence

from chaos.evidence import Sent
from chaos.scenario import Scenario
from chaos.script import main
from chaos.sweep import Sweep
from chaos.workload import Workload
from meshforge_trio.points import Point


def workload(seed: int) -> Sequence[Sent]:
    """What is decided, refused, given up, and what waits behind it."""
    commands = Workload()
    first = commands.send("counter", "add", {"amount": 5 + seed}, entity="a", expect=["decided"])
    commands.send("counter", "explode", entity="b", expect=["dead"])
    commands.send("counter", "take", {"amount": 1000 + seed}, entity="a", expect=["refused"])
    commands.send("counter", "add", {"amount": 2}, entity="b", expect=["decided"])
    commands.send("counter", "roll", entity="a", expect=["decided"], repeatable=False)
    commands.again(first, phase="after")
    commands.send("counter", "add", {"amount": 3}, entity="b", expect=["decided"], phase="after")
    return commands


SCENARIO = Scenario(
    "disk-full",
    __doc__,
    "chaos.agents:counter_only",
    workload,
    searches=[Sweep(points=tuple(Point), action="full", seconds=0.4, batches=(1, 64), nth_max=2)],
    claims=("G1", "G2", "G3", "G4", "G5", "G6", "G7", "G8", "G11", "G12", "G13"),
)

if __name__ == "__main__":
    main(SCENARIO)
