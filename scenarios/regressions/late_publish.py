"""A worker that was away for longer than the duplicate window published what was already published.

It is stopped between commit and publish. Its successor publishes for it, and the stream forgets the Msg-Id; then it
goes on. Or nobody took over, and what it tries again after the pause had been stored before it. Rule R6: nothing is
published later than half the window after its commit; the session ends, and recovery looks what is there.
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
                "worker#1:before_publish@1=stop",
                "worker#1:before_publish@1=stop(0.8)",
                "proxy:puback@1=swallow; worker#1:before_publish@1=stop(0.4)",
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
