"""No is an answer too: python scenarios/refused.py

Commands that are refused because the sum is not covered, conflicts over the expected version, a key that is used for
something else. Each is sent again under a new id, before, during and after the faults: workers that are killed, and a
client that at some point sends everything again. In the meantime the sum has grown, so that the refused command would
go through if it were decided anew.

What must hold: the first outcome stands for ever, and whoever asks again hears it again, byte for byte, refusals,
conflicts and mismatches included.
"""

from __future__ import annotations

from collections.abc import Sequence

from chaos.evidence import Sent
from chaos.scenario import Scenario
from chaos.script import main
from chaos.sweep import Fixed, Sweep
from chaos.workload import Workload
from meshforge_trio.points import Point

A_TURN = (
    Point.BEFORE_STORE,
    Point.IN_STORE,
    Point.AFTER_STORE,
    Point.IN_PUBLISH,
    Point.AFTER_PUBLISH,
    Point.BEFORE_ACK,
    Point.AFTER_ACK,
)
RESENT = [
    *(f"client:{point}@1=resend" for point in ("received", "before_store", "in_publish", "after_publish", "after_ack")),
    *(
        f"worker#1:{death}@1=kill; client:worker#2.{point}@1=resend"
        for death in ("after_store", "before_ack")
        for point in ("after_lease", "before_recovery", "after_recovery")
    ),
]


def workload(seed: int) -> Sequence[Sent]:
    """Each kind of no, asked for twice, and once more when it would be a yes."""
    commands = Workload()
    uncovered = commands.send("counter", "take", {"amount": 100 + seed}, entity="a", expect=["refused"])
    covered = commands.send("counter", "add", {"amount": 5}, entity="a", expect=["decided"])
    late = commands.send("counter", "add", {"amount": 1}, entity="a", expected_version=0, expect=["conflict"])
    mismatch = commands.send("counter", "add", {"amount": 6}, entity="a", key=covered.key)
    for sent in (uncovered, late, mismatch):
        commands.again(sent)
    commands.send("counter", "add", {"amount": 500 + seed}, entity="a", expect=["decided"])
    for sent in (uncovered, covered, late, mismatch):
        commands.again(sent, phase="after")
    commands.send("counter", "take", {"amount": 100 + seed}, entity="a", expect=["decided"], phase="after")
    return commands


SCENARIO = Scenario(
    "refused",
    __doc__,
    "chaos.agents:counter_only",
    workload,
    searches=[Sweep(points=A_TURN, batches=(64,), nth_max=2), Fixed(RESENT)],
    claims=("G1", "G2", "G3", "G4", "G5", "G6", "G7", "G8", "G12", "G13"),
)

if __name__ == "__main__":
    main(SCENARIO)
