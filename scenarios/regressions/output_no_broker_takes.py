"""An event larger than the broker takes was committed and could never be published.

Every later turn and every recovery stopped at it. The rule on outputs: size and subject are checked before the commit,
and what does not fit is the command's own trouble: it is dead-lettered, its neighbours are not concerned.
"""

from __future__ import annotations

from collections.abc import Sequence

from chaos.evidence import Sent
from chaos.scenario import Scenario
from chaos.script import main
from chaos.sweep import Fixed
from chaos.workload import Workload


def workload(seed: int) -> Sequence[Sent]:
    """One that is too large, between two that are not."""
    commands = Workload()
    commands.send("counter", "add", {"amount": 1}, entity="a", expect=["decided"])
    commands.send("counter", "bloat", {"amount": 2_000_000}, entity="a", expect=["dead"])
    commands.send("counter", "add", {"amount": 2}, entity="a", expect=["decided"])
    commands.send("counter", "add", {"amount": 3}, entity="a", expect=["decided"], phase="after")
    return commands


SCENARIO = Scenario(
    "output-no-broker-takes",
    __doc__,
    "chaos.agents:counter_only",
    workload,
    searches=[Fixed(["", "worker#1:after_store@1=kill"], batches=(1, 64))],
    claims=("G1", "G2", "G3", "G4", "G5", "G11", "G12", "G13"),
)

if __name__ == "__main__":
    main(SCENARIO)
