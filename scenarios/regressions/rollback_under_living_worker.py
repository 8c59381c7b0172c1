"""The broker lost confirmed events while the worker lived, and nobody noticed.

The server is killed and comes back with an older copy of its files. The worker remembered confirmations and went on
from there. Rule R2: what memory knew ends with the broker session, and each new one compares store and stream.
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
    "rollback-under-living-worker",
    __doc__,
    "chaos.agents:counter_only",
    workload,
    searches=[Fixed(["nats:received@3=copy; nats:after_ack@3=rollback"], batches=(1,))],
    claims=("G1", "G2", "G3", "G4", "G5", "G12", "G13"),
)

if __name__ == "__main__":
    main(SCENARIO)
