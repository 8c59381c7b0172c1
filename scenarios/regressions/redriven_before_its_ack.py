"""Two commands of one entity waited for each other: python scenarios/regressions/redriven_before_its_ack.py

A command was set aside, its ACK was lost, and before it came again it was redriven, which frees its key. So it had to
wait like any other of its entity behind one that was failing; and that one, because it stands later in the stream,
waited for it in turn. Rule R8: whoever holds an entity waits for nobody of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from chaos.evidence import Sent
from chaos.scenario import Scenario
from chaos.script import main
from chaos.sweep import Fixed
from chaos.workload import Workload


def workload(seed: int) -> Sequence[Sent]:
    """One that is set aside at once, one that fails for a while, and the order to redrive the first."""
    commands = Workload()
    commands.send("counter", "charge", {"amount": 9 + seed}, entity="a", expect=["dead"])
    commands.send("counter", "explode", entity="a", expect=["dead"])
    commands.redrive("counter", "k1")
    commands.send("counter", "add", {"amount": 1}, entity="a", expect=["decided"], phase="after")
    return commands


SCENARIO = Scenario(
    "redriven-before-its-ack",
    __doc__,
    "chaos.agents:counter_only",
    workload,
    searches=[Fixed(["proxy:ack@1=swallow"], batches=(1,))],
    # The lost one comes again while the other one still waits for its next call.
    engine={"ack_wait_s": 0.4},
    retry={"delays_s": (1.0,)},
    deadline_s=8.0,
)

if __name__ == "__main__":
    main(SCENARIO)
