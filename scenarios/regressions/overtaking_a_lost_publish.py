"""An entity's second event reached the stream before its first, because the turn that failed handed its lock on.

The publish of the first turn is lost, and its session is to end. The second turn, committed meanwhile, was waiting to
publish: it got the lock before it met its cancellation. Guarantee G13: outputs leave in the order of their commits.
"""

from __future__ import annotations

from collections.abc import Sequence

from chaos.evidence import Sent
from chaos.scenario import Scenario
from chaos.script import main
from chaos.sweep import Fixed
from chaos.workload import Workload


def workload(seed: int) -> Sequence[Sent]:
    """One entity, more turns than one."""
    commands = Workload()
    for amount in range(1, 4):
        commands.send("counter", "add", {"amount": amount + seed}, entity="a", expect=["decided"])
    commands.send("counter", "add", {"amount": 4}, entity="a", expect=["decided"], phase="after")
    return commands


SCENARIO = Scenario(
    "overtaking-a-lost-publish",
    __doc__,
    "chaos.agents:counter_only",
    workload,
    searches=[Fixed(["proxy:publish@1=swallow"], batches=(1,))],
    engine={"publish_timeout_s": 1.0},
    claims=("G1", "G2", "G3", "G4", "G5", "G12", "G13"),
)

if __name__ == "__main__":
    main(SCENARIO)
