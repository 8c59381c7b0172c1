"""A command that had only waited for another was given up without ever having run.

It waits behind a failing one, is redelivered as often as that takes, and each redelivery counted as an attempt; so did
a session that ended while a handler was being called. Rule R7: what counts is a call of the handler that ended by
raising or with its process.
"""

from __future__ import annotations

from collections.abc import Sequence

from chaos.evidence import Sent
from chaos.scenario import Scenario
from chaos.script import main
from chaos.sweep import Fixed
from chaos.workload import Workload


def workload(seed: int) -> Sequence[Sent]:
    """A failing command, and two that wait for its end."""
    commands = Workload()
    commands.send("counter", "explode", entity="a", expect=["dead"])
    commands.send("counter", "add", {"amount": 2}, entity="a", expect=["decided"])
    commands.send("counter", "add", {"amount": 3}, entity="a", expect=["decided"])
    commands.send("counter", "add", {"amount": 4}, entity="a", expect=["decided"], phase="after")
    return commands


SCENARIO = Scenario(
    "waiting-is-no-attempt",
    __doc__,
    "chaos.agents:counter_only",
    workload,
    searches=[Fixed(["", "nats:after_hold@1=kill", "nats:in_attempt@1=kill"], batches=(1, 64))],
    retry={"limit": 5, "delays_s": (0.05,)},
    limit=5,
    claims=("G1", "G2", "G3", "G4", "G5", "G11", "G12", "G13"),
)

if __name__ == "__main__":
    main(SCENARIO)
