"""One command was decided and dead-lettered.

The first worker is stopped when it has decided the command and not yet committed. Two successors die with the command
in hand, so the next one gives it up. Then the first one goes on and commits. Rule R5: a dead letter is a decision under
the key of its command, checked in the same transaction.
"""

from __future__ import annotations

from collections.abc import Sequence

from chaos.evidence import Sent
from chaos.scenario import Scenario
from chaos.script import main
from chaos.sweep import Fixed
from chaos.workload import Workload


def workload(seed: int) -> Sequence[Sent]:
    """One command, innocent and unlucky, and enough behind it that no pull of the stopped worker stays open."""
    commands = Workload()
    commands.send("counter", "add", {"amount": 1}, entity="a", expect=["dead"])
    for amount in range(2, 7):
        commands.send("counter", "add", {"amount": amount}, entity="a", expect=["decided"])
    commands.send("counter", "add", {"amount": 7}, entity="a", expect=["decided"], phase="after")
    return commands


SCENARIO = Scenario(
    "decided-and-dead",
    __doc__,
    "chaos.agents:counter_only",
    workload,
    searches=[
        Fixed(["worker#1:before_store@1=stop; worker#2:in_attempt@1=kill; worker#3:in_attempt@1=kill"], batches=(1,))
    ],
    lease_ttl_s=0.3,
    claims=("G1", "G2", "G3", "G4", "G5", "G11", "G12"),
)

if __name__ == "__main__":
    main(SCENARIO)
