"""A worker that had been replaced pulled on, and what it pulled came too late.

It is stopped between two turns, a successor takes over, and then it goes on while new commands arrive: those it pulls
cannot be committed by it, and the successor meets the later ones first. Rule R1: the lease is checked before every
pull, and a gap in the numbers of the deliveries ends the session.
"""

from __future__ import annotations

from collections.abc import Sequence

from chaos.evidence import Sent
from chaos.scenario import Scenario
from chaos.script import main
from chaos.sweep import Fixed
from chaos.workload import Workload


def workload(seed: int) -> Sequence[Sent]:
    """Six commands to one entity, and six more when the stopped worker goes on."""
    commands = Workload()
    for amount in range(6):
        commands.send("counter", "add", {"amount": amount}, entity="a", expect=["decided"])
    for amount in range(6):
        commands.send("counter", "add", {"amount": amount}, entity="a", expect=["decided"], phase="after")
    return commands


SCENARIO = Scenario(
    "zombie-pulls-on",
    __doc__,
    "chaos.agents:counter_only",
    workload,
    searches=[Fixed(["worker#1:after_ack@1=stop"], batches=(1,))],
    lease_ttl_s=0.3,
    claims=("G1", "G2", "G3", "G4", "G5", "G12", "G13"),
)

if __name__ == "__main__":
    main(SCENARIO)
