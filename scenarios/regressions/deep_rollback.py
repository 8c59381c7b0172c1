"""The broker went back further than the newest mark, and what lay before it was lost.

Several turns are published, each leaving a mark, then the server comes back with a copy from before all of them. One
mark says only that everything before it is there, which is no longer so. Rule R3: marks are a chain, and recovery
begins at the newest one whose sequence still holds its id.
"""

from __future__ import annotations

from collections.abc import Sequence

from chaos.evidence import Sent
from chaos.scenario import Scenario
from chaos.script import main
from chaos.sweep import Fixed
from chaos.workload import Workload


def workload(seed: int) -> Sequence[Sent]:
    """Seven commands to one entity, one a turn."""
    commands = Workload()
    for amount in range(1, 8):
        commands.send("counter", "add", {"amount": amount}, entity="a", expect=["decided"])
    commands.send("counter", "add", {"amount": 9}, entity="a", expect=["decided"], phase="after")
    return commands


SCENARIO = Scenario(
    "deep-rollback",
    __doc__,
    "chaos.agents:counter_only",
    workload,
    searches=[Fixed(["nats:received@3=copy; nats:after_ack@6=rollback"], batches=(1,))],
    claims=("G1", "G2", "G3", "G4", "G5", "G12", "G13"),
)

if __name__ == "__main__":
    main(SCENARIO)
