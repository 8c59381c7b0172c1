"""A command was given up because its sessions had ended while its handler was at work.

Its first worker was killed, so it runs alone, and the call is counted before it is made. Then the server is restarted
while the handler still waits for something. The call stayed counted, though nothing was wrong with it. Rule R7: a call
that ends other than by raising or with its process is taken back.
"""

from __future__ import annotations

from collections.abc import Sequence

from chaos.evidence import Sent
from chaos.scenario import Scenario
from chaos.script import main
from chaos.sweep import Fixed
from chaos.workload import Workload


def workload(seed: int) -> Sequence[Sent]:
    """One command that takes its time."""
    commands = Workload()
    commands.send("patient", "wait", {"seconds": 0.4}, entity="a", expect=["decided"])
    commands.send("patient", "add", {"amount": 1}, entity="a", expect=["decided"], phase="after")
    return commands


SCENARIO = Scenario(
    "session-loss-is-no-attempt",
    __doc__,
    "chaos.agents:patient_only",
    workload,
    searches=[Fixed(["worker#1:received@1=kill; nats:worker#2.in_attempt@1=restart"])],
    # With one call counted it would be over.
    limit=2,
    claims=("G1", "G2", "G3", "G4", "G5", "G11", "G12"),
)

if __name__ == "__main__":
    main(SCENARIO)
