"""A successor served nothing for half a minute, because a stopped process had asked for the commands before it.

A pull request stays with the server until it expires, and a stopped process keeps its connection. After the takeover
the server went on to hand deliveries to the old requests; the successor saw nothing until their ACK deadline passed,
then a gap, began a new session, and the same again. Rule R1: a pull does not outlive the lease it was made under.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from chaos.checkers import Checker
from chaos.checkers.base import Finding
from chaos.evidence import Evidence, Sent
from chaos.scenario import Scenario
from chaos.script import main
from chaos.sweep import Fixed
from chaos.workload import Workload


def workload(seed: int) -> Sequence[Sent]:
    """More than one, so that the stopped process leaves requests unanswered."""
    commands = Workload()
    for amount in range(4):
        commands.send("counter", "add", {"amount": amount + seed}, entity="a", expect=["decided"])
    commands.send("counter", "add", {"amount": 9}, entity="a", expect=["decided"], phase="after")
    return commands


def _sessions(evidence: Evidence) -> Iterator[Finding | int]:
    begun = sum(r.actor == "worker#2" and r.kind == "point" and r["point"] == "after_lease" for r in evidence.history)
    yield begun
    if begun > 1:
        yield Finding(f"worker#2 began {begun} sessions before it was left in peace", (), "default/demo/counter")


SCENARIO = Scenario(
    "pulls-outlive-their-lease",
    __doc__,
    "chaos.agents:counter_only",
    workload,
    searches=[Fixed(["worker#1:before_store@1=stop"])],
    engine={"ack_wait_s": 1.0},
    # Long enough that the successor itself does not lose it on a busy machine.
    lease_ttl_s=3.0,
    claims=("G1", "G2", "G3", "G4", "G5", "G12", "G13", "takeover"),
    invariants=[Checker("takeover", "A successor takes over once, and then serves.", _sessions, on_corpse=False)],
)

if __name__ == "__main__":
    main(SCENARIO)
