"""One kill put an entity's commands out of order.

The worker dies with the first commands in hand. They were outstanding until the ACK deadline, while the successor's
pull brought the later ones at once. Rule R2: every session begins by resetting the consumer, so that what is not ACKed
comes again at once, in the order of the stream.
"""

from __future__ import annotations

from collections.abc import Sequence

from chaos.evidence import Sent
from chaos.scenario import Scenario
from chaos.script import main
from chaos.sweep import Fixed
from chaos.workload import Workload


def workload(seed: int) -> Sequence[Sent]:
    """Four commands to one entity; the worker has two of them in hand."""
    commands = Workload()
    for amount in range(1, 5):
        commands.send("counter", "add", {"amount": amount}, entity="a", expect=["decided"])
    commands.send("counter", "add", {"amount": 9}, entity="a", expect=["decided"], phase="after")
    return commands


SCENARIO = Scenario(
    "kill-reorders-entity",
    __doc__,
    "chaos.agents:counter_only",
    workload,
    searches=[Fixed(["worker#1:received@1=kill"], batches=(1,))],
    engine={"ack_wait_s": 10.0},
    claims=("G1", "G2", "G3", "G4", "G5", "G12", "G13"),
)

if __name__ == "__main__":
    main(SCENARIO)
