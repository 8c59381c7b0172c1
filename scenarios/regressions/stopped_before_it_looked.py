"""A worker that was stopped at the wrong moment of its start refused to go on, and blamed the streams.

It has asked how far the streams reach and is stopped before it reads its marks. A successor takes over and publishes;
then the first one reads the successor's marks, finds them beyond what it was told, takes the streams for others than
its own and ends with exit code 3. Rule R1: who has been replaced stands by; rule R3: marks are compared with what the
streams hold after the marks were read.
"""

from __future__ import annotations

from collections.abc import Sequence

from chaos.evidence import Sent
from chaos.scenario import Scenario
from chaos.script import main
from chaos.sweep import Fixed
from chaos.workload import Workload


def workload(seed: int) -> Sequence[Sent]:
    """Two commands that the successor decides."""
    commands = Workload()
    commands.send("counter", "add", {"amount": 1}, entity="a", expect=["decided"])
    commands.send("counter", "add", {"amount": 2}, entity="a", expect=["decided"])
    commands.send("counter", "add", {"amount": 3}, entity="a", expect=["decided"], phase="after")
    return commands


SCENARIO = Scenario(
    "stopped-before-it-looked",
    __doc__,
    "chaos.agents:counter_only",
    workload,
    searches=[Fixed(["worker#1:after_reset@1=stop"], batches=(1,))],
    lease_ttl_s=0.3,
    claims=("G1", "G2", "G3", "G4", "G5", "G12"),
)

if __name__ == "__main__":
    main(SCENARIO)
