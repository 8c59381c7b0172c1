"""A command that had only waited for another was given up without ever having run.

It waits behind a failing one and is redelivered as often as that takes, and after every session that ends. Each
redelivery counted as an attempt. Rule R7: what counts is a call of the handler that ended by raising or with its
process.
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
    # Each session that ends brings everything again, long before the next try is due.
    searches=[Fixed(["", "nats:after_ack@1=restart; nats:after_ack@2=restart"])],
    retry={"delays_s": (0.6,)},
    claims=("G1", "G2", "G3", "G4", "G5", "G11", "G12", "G13"),
)

if __name__ == "__main__":
    main(SCENARIO)
