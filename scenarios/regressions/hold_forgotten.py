"""A command overtook the failing one before it, because the hold was only in memory.

The handler of the first command raises, the second waits for it; the worker is killed. Its successor knew of no
failure and decided the second at once. Rule R8: the failure is committed before the NAK, and the hold follows from
what is stored.
"""

from __future__ import annotations

from collections.abc import Sequence

from chaos.evidence import Sent
from chaos.scenario import Scenario
from chaos.script import main
from chaos.sweep import Fixed
from chaos.workload import Workload


def workload(seed: int) -> Sequence[Sent]:
    """A failing command, and one that must wait for its end."""
    commands = Workload()
    commands.send("counter", "explode", entity="a", expect=["dead"])
    commands.send("counter", "add", {"amount": 2}, entity="a", expect=["decided"])
    commands.send("counter", "add", {"amount": 3}, entity="a", expect=["decided"], phase="after")
    return commands


SCENARIO = Scenario(
    "hold-forgotten",
    __doc__,
    "chaos.agents:counter_only",
    workload,
    searches=[Fixed(["worker#1:after_hold@1=kill", "worker#1:after_ack@1=kill"], batches=(1, 64))],
    retry={"delays_s": (0.5,)},
    claims=("G1", "G2", "G3", "G4", "G5", "G11", "G12", "G13"),
)

if __name__ == "__main__":
    main(SCENARIO)
