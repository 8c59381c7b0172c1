"""A worker that was away for longer than the duplicate window published what was already published.

It is stopped between commit and publish. Its successor publishes for it, and the stream forgets the Msg-Id; then it
goes on. Rule R6: nothing is published later than half the window after its commit, whether somebody took over or not;
the session ends, and recovery looks what is there. Rule R1 stands before it: the lease is checked before each publish.
"""

from __future__ import annotations

from collections.abc import Sequence

from chaos.evidence import Sent
from chaos.scenario import Scenario
from chaos.script import main
from chaos.sweep import Fixed
from chaos.workload import Workload


def workload(seed: int) -> Sequence[Sent]:
    """One command."""
    commands = Workload()
    commands.send("counter", "roll", entity="a", expect=["decided"], repeatable=False)
    commands.send("counter", "add", {"amount": 2}, entity="a", expect=["decided"], phase="after")
    return commands


SCENARIO = Scenario(
    "late-publish",
    __doc__,
    "chaos.agents:counter_only",
    workload,
    searches=[
        Fixed(
            [
                "worker#1:before_publish@1=stop; worker#2:after_recovery@1=stop(0.8)",
                "worker#1:before_publish@1=stop(0.8)",
            ],
            batches=(1,),
        )
    ],
    engine={"duplicate_window_s": 0.5, "publish_timeout_s": 0.5},
    lease_ttl_s=0.3,
    claims=("G1", "G2", "G3", "G4", "G5", "G12"),
)

if __name__ == "__main__":
    main(SCENARIO)
