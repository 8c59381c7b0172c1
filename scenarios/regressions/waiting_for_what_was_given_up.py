"""Commands waited for the retry of one that had been given up long before, and kept all other entities waiting.

Commands behind a failing one come in one a turn, so each is NAKed with the whole delay until its next try. When they
are too many the failing one is dead-lettered; they stay away all the same, those behind them wait for them, and
together they fill the room of the consumer, so that nothing of another entity is delivered. After a restart it was
worse: the failing command itself was away, and could not even be given up. Rule R8: what waits never fills the room.
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
    "waiting-for-what-was-given-up",
    __doc__,
    "chaos.agents:counter_only",
    workload,
    searches=[Fixed(["", "worker#1:after_hold@1=kill"], batches=(1,))],
    # Its next try is a minute away; everything must be done long before.
    engine={"max_ack_pending": 16},
    retry={"delays_s": (60.0,)},
    limit=0,
    deadline_s=8.0,
    claims=("G1", "G2", "G3", "G4", "G5", "G11", "G12", "G13"),
)

if __name__ == "__main__":
    main(SCENARIO)
