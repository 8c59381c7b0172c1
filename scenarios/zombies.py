"""The zombie: python scenarios/zombies.py

A worker is stopped with SIGSTOP at a point of the protocol, so long that its lease runs out and its deliveries are due
again. A successor takes over and decides everything. Then the stopped one goes on, in the middle of its turn, with all
it remembers, while new commands arrive. This at every point where a process may be stopped. Then pauses too short for
a successor: the worker wakes to a lease that may have run out without anybody having taken it.

What must hold: nothing the zombie still has in hand is committed, published or ACKed, it pulls no further commands
away from its successor, and everything is decided once and in order.
"""

from __future__ import annotations

from collections.abc import Sequence

from chaos.evidence import Sent
from chaos.scenario import Scenario
from chaos.script import main
from chaos.sweep import Sweep
from chaos.workload import Workload
from meshforge_trio.points import Point

WITHOUT_RECOVERY = [point for point in Point if point is not Point.IN_RECOVERY]
IN_A_TURN = (Point.RECEIVED, Point.BEFORE_STORE, Point.AFTER_STORE, Point.IN_PUBLISH, Point.BEFORE_ACK)


def workload(seed: int) -> Sequence[Sent]:
    """Two entities in turn, one that fails, and enough afterwards for a zombie to pull something."""
    commands = Workload()
    commands.send("counter", "roll", entity="a", expect=["decided"], repeatable=False)
    commands.send("counter", "explode", entity="b", expect=["dead"])
    commands.send("counter", "add", {"amount": 2 + seed}, entity="a", expect=["decided"])
    commands.send("counter", "add", {"amount": 3}, entity="b", expect=["decided"])
    for amount in range(6):
        commands.send("counter", "add", {"amount": amount}, entity="ab"[amount % 2], expect=["decided"], phase="after")
    return commands


SCENARIO = Scenario(
    "zombies",
    __doc__,
    "chaos.agents:counter_only",
    workload,
    searches=[
        Sweep(points=WITHOUT_RECOVERY, action="stop", batches=(1,), nth_max=1),
        Sweep(
            points=[Point.IN_RECOVERY],
            action="stop",
            batches=(1,),
            before="worker#1:after_store@1=kill",
            number=2,
            nth_max=1,
        ),
        Sweep(points=IN_A_TURN, action="stop", seconds=0.5, batches=(1,), nth_max=1),
    ],
    engine={"ack_wait_s": 0.5},
    lease_ttl_s=0.3,
    claims=("G1", "G2", "G3", "G4", "G5", "G6", "G7", "G11", "G12", "G13"),
)

if __name__ == "__main__":
    main(SCENARIO)
