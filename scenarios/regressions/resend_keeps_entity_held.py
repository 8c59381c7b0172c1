"""A command that was sent twice kept its entity waiting for ever.

The worker is killed with both sendings in hand. The second came to be run alone, before the first was decided; it then
counted as a duplicate, its attempt was never ended, and everything behind it waited for that. Rule R7: a call that
ends other than by raising or dying is no attempt; a duplicate ends the one of its key.
"""

from __future__ import annotations

from collections.abc import Sequence

from chaos.evidence import Sent
from chaos.scenario import Scenario
from chaos.script import main
from chaos.sweep import Fixed
from chaos.workload import Workload


def workload(seed: int) -> Sequence[Sent]:
    """A command and its second sending in one turn with a failing one, and one behind them."""
    commands = Workload()
    first = commands.send("counter", "add", {"amount": 1}, entity="a", expect=["decided"])
    commands.again(first)
    commands.send("counter", "explode", entity="b", expect=["dead"])
    commands.send("counter", "add", {"amount": 2}, entity="a", expect=["decided"])
    commands.send("counter", "add", {"amount": 3}, entity="a", expect=["decided"], phase="after")
    return commands


SCENARIO = Scenario(
    "resend-keeps-entity-held",
    __doc__,
    "chaos.agents:counter_only",
    workload,
    searches=[Fixed(["worker#1:before_hold@1=kill", "worker#1:before_store@1=kill"], batches=(1, 64))],
    claims=("G1", "G2", "G3", "G4", "G5", "G11", "G12", "G13"),
)

if __name__ == "__main__":
    main(SCENARIO)
