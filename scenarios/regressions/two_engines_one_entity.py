"""Two workers decided one entity's commands side by side, out of order, without any fault but a pause.

The first one is stopped with a decided turn in hand; the second takes over and goes on from the same version; then the
first one commits. Rule R1: one engine is active, and the lease is checked again inside every transaction.
"""

from __future__ import annotations

from collections.abc import Sequence

from chaos.evidence import Sent
from chaos.scenario import Scenario
from chaos.script import main
from chaos.sweep import Fixed
from chaos.workload import Workload


def workload(seed: int) -> Sequence[Sent]:
    """Four commands to one entity."""
    commands = Workload()
    for amount in range(1, 5):
        commands.send("counter", "add", {"amount": amount}, entity="a", expect=["decided"])
    commands.send("counter", "add", {"amount": 9}, entity="a", expect=["decided"], phase="after")
    return commands


SCENARIO = Scenario(
    "two-engines-one-entity",
    __doc__,
    "chaos.agents:counter_only",
    workload,
    searches=[Fixed(["worker#1:before_store@1=stop"], batches=(1,))],
    lease_ttl_s=0.3,
    claims=("G1", "G2", "G3", "G4", "G5", "G6", "G12", "G13"),
)

if __name__ == "__main__":
    main(SCENARIO)
