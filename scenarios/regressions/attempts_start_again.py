"""A poison command was tried more often than allowed, because who counts had forgotten.

The broker counts deliveries, and begins anew when it is restarted or its consumer is reset. Between any two attempts
it is, and the worker is killed too. Rule R7: attempts are calls of the handler, counted in the store before they are
made.
"""

from __future__ import annotations

from collections.abc import Sequence

from chaos.evidence import Sent
from chaos.scenario import Scenario
from chaos.script import main
from chaos.sweep import Fixed
from chaos.workload import Workload


def workload(seed: int) -> Sequence[Sent]:
    """A command whose handler always raises, and one behind it."""
    commands = Workload()
    commands.send("counter", "explode", entity="a", expect=["dead"])
    commands.send("counter", "add", {"amount": 2}, entity="a", expect=["decided"])
    commands.send("counter", "add", {"amount": 3}, entity="a", expect=["decided"], phase="after")
    return commands


SCENARIO = Scenario(
    "attempts-start-again",
    __doc__,
    "chaos.agents:counter_only",
    workload,
    searches=[
        Fixed(
            [
                "nats:after_hold@1=restart; nats:in_attempt@1=restart",
                "worker#1:after_hold@1=kill; nats:worker#2.before_attempt@1=restart",
                "worker#1:after_hold@1=kill; worker#2:before_dead_letter@1=kill",
            ],
            batches=(1,),
        )
    ],
    claims=("G1", "G2", "G3", "G4", "G5", "G11", "G12", "G13"),
)

if __name__ == "__main__":
    main(SCENARIO)
