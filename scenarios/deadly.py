"""Commands that end their process: python scenarios/deadly.py

One command kills the process that handles it, every time. Another never returns, so that the process ends itself when
the handler has had its time. Both stand in one batch with ordinary commands. Some runs add kills of their own, where
the runtime is counting whom to blame.

What must hold: the handler of each of the two is called as often as allowed and no more, whoever died of it; each is
dead-lettered once. Its neighbours in the batch were in hand at every one of these deaths, and still are decided.
"""

from __future__ import annotations

from collections.abc import Sequence

from chaos.evidence import Sent
from chaos.scenario import Scenario
from chaos.script import main
from chaos.sweep import Fixed
from chaos.workload import Workload


def workload(seed: int) -> Sequence[Sent]:
    """The two, and neighbours before, between and behind them."""
    commands = Workload()
    commands.send("counter", "add", {"amount": 1 + seed}, entity="a", expect=["decided"])
    commands.send("counter", "die", entity="b", expect=["dead"])
    commands.send("counter", "add", {"amount": 2}, entity="b", expect=["decided"])
    commands.send("counter", "spin", entity="c", expect=["dead"])
    commands.send("counter", "add", {"amount": 3}, entity="a", expect=["decided"])
    commands.send("counter", "add", {"amount": 4}, entity="c", expect=["decided"], phase="after")
    return commands


SCENARIO = Scenario(
    "deadly",
    __doc__,
    "chaos.agents:counter_only",
    workload,
    searches=[
        Fixed([""], batches=(1, 64), mortal=True),
        Fixed(
            [
                "worker#2:before_attempt@1=kill",
                "worker#2:in_attempt@2=kill",
                "worker#4:before_dead_letter@1=kill",
                "worker#4:after_dead_letter@1=kill",
                "worker#6:before_dead_letter@1=kill",
                "worker#2:in_attempt@1=kill; worker#3:in_attempt@1=kill",
            ],
            mortal=True,
        ),
    ],
    retry={"handler_limit_s": 0.3},
    mortal=True,
    claims=("G1", "G2", "G3", "G4", "G5", "G6", "G7", "G11", "G12", "G13"),
)

if __name__ == "__main__":
    main(SCENARIO)
