"""The crash matrix: python scenarios/crash_matrix.py

One worker serves a handful of commands: one that adds, one whose handler raises until it is given up, then the first
one once more under a new id, and one to the entity of the failing one. The worker is killed with SIGKILL at the first
hit of every point of the protocol, then at the second, the third, ... until a run ends without reaching the position:
so there is no position that was forgotten. All of it with one command a turn, and with all commands in one turn. A
second worker takes over what the first one left. All of it with another tenant in the same worker and store, who sends
other commands under the same ids and keys to the same entities.

What must hold: everything that was accepted is decided once, published once and answered alike, in order, whichever
instruction was the first worker's last. It is judged on what lies on disk at the moment of death, before anything can
heal it, and again at the end. Neither tenant meets anything of the other.
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
    """Few commands that between them reach every point, and their namesakes of another tenant among them."""
    (first, explodes, *later), (namesake, *others) = ours(seed), theirs(seed)
    return [first, namesake, explodes, *others, *later]


def ours(seed: int) -> Sequence[Sent]:
    """What reaches every point."""
    commands = Workload()
    first = commands.send("counter", "add", {"amount": 5 + seed}, entity="a", expect=["decided"])
    commands.send("counter", "explode", entity="b", expect=["dead"])
    commands.again(first, phase="after")
    commands.send("counter", "add", {"amount": 2}, entity="b", expect=["decided"], phase="after")
    return commands


def theirs(seed: int) -> Sequence[Sent]:
    """What the other tenant sends: the key of the one that is given up is that of one which works."""
    commands = Workload("other/demo")
    first = commands.send("counter", "add", {"amount": 50 + seed}, entity="a", expect=["decided"])
    commands.send("counter", "add", {"amount": 7}, entity="b", expect=["decided"])
    commands.again(first, phase="after")
    return commands


SCENARIO = Scenario(
    "crash-matrix",
    __doc__,
    "chaos.agents:counter_only",
    workload,
    searches=[
        Sweep(points=[point for point in Point if point is not Point.IN_RECOVERY], batches=(1, 64)),
        # A recovery that has something to publish.
        Sweep(points=[Point.IN_RECOVERY], before="worker#1:before_publish@1=kill", number=2),
    ],
    workspaces=("default/demo", "other/demo"),
    claims=("G1", "G2", "G3", "G4", "G5", "G6", "G7", "G8", "G9", "G11", "G12", "G13"),
)

if __name__ == "__main__":
    main(SCENARIO)
