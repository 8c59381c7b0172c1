"""A failing command was called again at once, and what waited for it passed, because the hold was only in memory.

The handler of the first command raises, the second waits for it; the worker is killed. Its successor knew of no
failure: no attempt, no next try, nothing to wait for. Rule R8: the failure is committed before the NAK, with the time
of the next try, and the hold follows from what is stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final

from chaos.checkers import Checker, Finding
from chaos.evidence import Evidence, Sent
from chaos.scenario import Scenario
from chaos.script import main
from chaos.sweep import Fixed
from chaos.workload import Workload

#: Until the next try, in seconds; a worker and its successor are far quicker.
DELAY_S: Final = 1.0


def pauses(evidence: Evidence) -> Iterator[Finding | int]:
    """The time from one call of the failing handler to the next."""
    calls = [record.t for record in evidence.history if record.kind == "call" and record["action"] == "explode"]
    for before, after in pairwise(calls):
        yield 1
        # The next try is counted from the moment the turn began, which is a little before the call.
        if (after - before) / 1e9 < DELAY_S * 0.8:
            yield Finding(f"called again after {(after - before) / 1e9:.2f} s, the delay is {DELAY_S:g} s", ["k1"])


WAITED: Final = Checker("delay", "Waited: a failed command is not called again before its next try is due.", pauses)


def workload(seed: int) -> Sequence[Sent]:
    """A failing command, and one that must wait for its end."""
    commands = Workload()
    commands.send("counter", "explode", entity="a", expect=["dead"])
    commands.send("counter", "add", {"amount": 2}, entity="a", expect=["decided"])
    commands.send("counter", "add", {"amount": 3}, entity="a", expect=["decided"], phase="after")
    return commands


SCENARIO = Scenario(
    "hold-forgotten",
    __doc__,
    "chaos.agents:counter_only",
    workload,
    searches=[Fixed(["worker#1:after_hold@1=kill", "worker#1:after_ack@1=kill"], batches=(1, 64))],
    retry={"delays_s": (DELAY_S,)},
    claims=("G1", "G2", "G3", "G4", "G5", "G11", "G12", "G13", "delay"),
    invariants=[WAITED],
)

if __name__ == "__main__":
    main(SCENARIO)
