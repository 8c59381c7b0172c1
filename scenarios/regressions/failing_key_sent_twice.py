"""A failing command that was sent twice was called twice and counted once.

Both sendings were in one turn: the first failed, the second was called for the same attempt. Rule R7: attempts are
counted by key, so a key that has failed in a turn is not called again in it.
"""

from __future__ import annotations

from collections.abc import Sequence

from chaos.evidence import Sent
from chaos.scenario import Scenario
from chaos.script import main
from chaos.sweep import Fixed
from chaos.workload import Workload


def workload(seed: int) -> Sequence[Sent]:
    """A failing command of no entity, so that nothing is held behind it, three times in one turn."""
    commands = Workload()
    first = commands.send("counter", "explode", expect=["dead"])
    commands.again(first)
    commands.again(first)
    commands.send("counter", "add", {"amount": 1}, entity="b", expect=["decided"])
    commands.again(first, phase="after")
    commands.send("counter", "add", {"amount": 2}, entity="b", expect=["decided"], phase="after")
    return commands


SCENARIO = Scenario(
    "failing-key-sent-twice",
    __doc__,
    "chaos.agents:counter_only",
    workload,
    searches=[Fixed(["", "worker#1:in_attempt@1=kill"], batches=(64,))],
    claims=("G1", "G2", "G3", "G4", "G5", "G8", "G11", "G12"),
)

if __name__ == "__main__":
    main(SCENARIO)
