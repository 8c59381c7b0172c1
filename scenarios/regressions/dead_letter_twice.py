"""A dead letter reached its stream twice.

The worker is killed when the letter is published, and stays away until the stream has forgotten its Msg-Id. Dead
letters were not read back, so recovery published it again. Rules R3 and R5: a dead letter is an output like an event,
and a mark names a place in both streams.
"""

from __future__ import annotations

from collections.abc import Sequence

from chaos.evidence import Sent
from chaos.scenario import Scenario
from chaos.script import main
from chaos.sweep import Fixed
from chaos.workload import Workload


def workload(seed: int) -> Sequence[Sent]:
    """One command whose event is larger than the broker takes."""
    commands = Workload()
    commands.send("counter", "bloat", {"amount": 2_000_000}, entity="a", expect=["dead"])
    commands.send("counter", "add", {"amount": 2}, entity="a", expect=["decided"], phase="after")
    return commands


SCENARIO = Scenario(
    "dead-letter-twice",
    __doc__,
    "chaos.agents:counter_only",
    workload,
    searches=[Fixed(["worker#1:in_publish@1=kill(0.7)", "worker#1:after_publish@1=kill(0.7)"], batches=(1,))],
    engine={"duplicate_window_s": 0.5},
    claims=("G1", "G2", "G3", "G4", "G5", "G11", "G12"),
)

if __name__ == "__main__":
    main(SCENARIO)
