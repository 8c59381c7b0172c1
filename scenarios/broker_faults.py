"""The broker fails: python scenarios/broker_faults.py

nats-server is killed and started again, ended in good order, stopped for a while, and thrown back to an older copy of
its files, so that it has forgotten what it had confirmed. This at several points of a turn while the worker lives, and
while a successor recovers what a killed worker left. Then worker or server are away for longer than the duplicate
window: the stream no longer knows what it has already taken.

What must hold: what memory knew of confirmations dies with the connection, and each new one begins by comparing store
and stream. So nothing is lost that was forgotten, no second copy is made of what is there, and commands that come back
are answered and not decided again.
"""

from __future__ import annotations

from collections.abc import Sequence

from chaos.evidence import Sent
from chaos.scenario import Scenario
from chaos.script import main
from chaos.sweep import Fixed
from chaos.workload import Workload

LIVING_WORKER = [
    *(f"nats:{point}@2=kill" for point in ("received", "after_store", "in_publish", "before_ack", "after_ack")),
    *(f"nats:{point}@1=restart" for point in ("before_store", "after_publish", "in_attempt", "before_mark")),
    *(f"nats:{point}@2=pause(0.7)" for point in ("before_publish", "after_publish")),
]
KILLED_WORKER = [
    f"worker#1:{death}@2=kill; nats:worker#2.{point}@1={action}"
    for death in ("after_store", "after_publish")
    for point, action in (("after_lease", "kill"), ("before_recovery", "restart"), ("after_recovery", "pause(0.7)"))
]
FORGETFUL = [
    "nats:received@3=copy; nats:after_ack@3=rollback",
    "nats:received@3=copy; nats:in_publish@3=rollback",
    "nats:received@3=copy; nats:before_publish@5=rollback; nats:in_recovery@1=kill",
    "nats:received@3=copy; worker#1:after_ack@4=kill; nats:worker#2.after_lease@1=rollback",
    "nats:received@3=copy; worker#1:before_ack@4=kill; nats:worker#2.before_recovery@1=rollback",
]
BEYOND_THE_WINDOW = [
    "worker#1:in_publish@1=kill(1.3)",
    "worker#1:after_publish@2=kill(1.3)",
    "nats:after_publish@2=kill(1.3)",
    "worker#1:in_publish@2=stop(1.3)",
]


def workload(seed: int) -> Sequence[Sent]:
    """Decisions, a refusal and a dead letter, one a turn."""
    commands = Workload()
    first = commands.send("counter", "roll", entity="a", expect=["decided"], repeatable=False)
    commands.send("counter", "add", {"amount": 3 + seed}, entity="b", expect=["decided"])
    commands.send("counter", "take", {"amount": 1000 + seed}, entity="a", expect=["refused"])
    commands.send("counter", "explode", entity="c", expect=["dead"])
    commands.send("counter", "roll", entity="b", expect=["decided"], repeatable=False)
    commands.send("counter", "add", {"amount": 4}, entity="c", expect=["decided"])
    commands.again(first, phase="after")
    commands.send("counter", "add", {"amount": 5}, entity="a", expect=["decided"], phase="after")
    return commands


SCENARIO = Scenario(
    "broker-faults",
    __doc__,
    "chaos.agents:counter_only",
    workload,
    searches=[Fixed([*LIVING_WORKER, *KILLED_WORKER, *FORGETFUL, *BEYOND_THE_WINDOW], batches=(1,))],
    engine={"duplicate_window_s": 1.0, "publish_timeout_s": 0.5},
    claims=("G1", "G2", "G3", "G4", "G5", "G6", "G7", "G8", "G11", "G12", "G13"),
)

if __name__ == "__main__":
    main(SCENARIO)
