"""An entity with many commands behind a failing one stopped all other entities.

What waits is outstanding, and a consumer has only so much room for that: when it is full, nothing more is delivered to
anybody. Rule R8: when what waits would fill a quarter of the room, the failing command is given up at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from chaos.evidence import Sent
from chaos.scenario import Scenario
from chaos.script import main
from chaos.sweep import Fixed
from chaos.workload import Workload


def workload(seed: int) -> Sequence[Sent]:
    """A failing command, twenty behind it, and one of another entity."""
    commands = Workload()
    commands.send("counter", "explode", entity="hot", expect=["dead"])
    for amount in range(20):
        commands.send("counter", "add", {"amount": amount}, entity="hot", expect=["decided"])
    commands.send("counter", "add", {"amount": 1}, entity="cold", expect=["decided"])
    commands.send("counter", "add", {"amount": 2}, entity="cold", expect=["decided"], phase="after")
    return commands


SCENARIO = Scenario(
    "hot-entity-starves-others",
    __doc__,
    "chaos.agents:counter_only",
    workload,
    searches=[Fixed([""])],
    # It would wait for a minute; everything must be done long before.
    engine={"max_ack_pending": 16},
    retry={"delays_s": (60.0,)},
    limit=0,
    claims=("G1", "G2", "G3", "G4", "G5", "G11", "G12", "G13"),
)

if __name__ == "__main__":
    main(SCENARIO)
