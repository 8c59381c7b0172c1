"""The broker loses what it had confirmed: python scenarios/broker_damage.py

nats-server is ended, and its files are not what they were when it starts again: an older copy of them, a block whose
end is missing, a bit that has flipped, with an index that vouches for the block and without. Or its disk fills up, so
that it takes nothing and says nothing until somebody restarts it; or another stream takes all the room it may use, and
it refuses. This at several points of a turn while the worker lives, and before a successor has looked at the streams.

Only the event and the dead-letter streams are damaged. What they hold the store holds as well; a command that a single
server has accepted and lost is lost, and no runtime can know of it.

What must hold: exactly what the streams lost is published again from the store, in order, once; nothing is decided
anew. What a full server did not take, or took without a word, is in its stream once when it has space again.
"""

from __future__ import annotations

from collections.abc import Sequence

from chaos.evidence import Sent
from chaos.scenario import Scenario
from chaos.script import main
from chaos.sweep import Fixed
from chaos.workload import Workload

#: The third command is given up, so that the dead-letter stream holds something to damage from then on.
LIVING_WORKER = [
    *(f"nats:{point}@5={action}" for point in ("before_store", "after_store") for action in ("truncate", "flip")),
    *(f"nats:after_ack@9={action}" for action in ("truncate", "flip", "rot")),
    "nats:received@4=copy; nats:after_ack@8=rollback",
    "nats:after_ack@8=truncate; nats:after_ack@12=truncate",
    "nats:after_ack@8=rot; nats:in_recovery@1=kill",
]
STOPPED_WORKER = [
    *(f"worker#1:after_ack@9=kill; nats:worker#2.after_lease@1={action}" for action in ("truncate", "flip", "rot")),
    "nats:received@4=copy; worker#1:after_publish@8=kill; nats:worker#2.after_lease@1=rollback",
    "worker#1:after_publish@8=kill; nats:worker#2.after_lease@1=truncate; worker#2:in_recovery@1=kill",
]
NO_SPACE = [
    *(f"nats:{point}@3=full(0.8)" for point in ("before_store", "after_store", "in_publish")),
    *(f"nats:{point}@3=limit(0.6)" for point in ("before_store", "after_store", "in_publish")),
    *(f"worker#1:after_store@3=kill; nats:worker#2.after_lease@1={action}(0.6)" for action in ("full", "limit")),
    "nats:after_store@3=full(0.6); nats:after_store@7=limit(0.5)",
]


def workload(seed: int) -> Sequence[Sent]:
    """Decisions that cannot be made again, a refusal, and a dead letter, one a turn."""
    commands = Workload()
    first = commands.send("counter", "roll", entity="a", expect=["decided"], repeatable=False)
    commands.send("counter", "add", {"amount": 3 + seed}, entity="b", expect=["decided"])
    commands.send("counter", "explode", entity="c", expect=["dead"])
    commands.send("counter", "take", {"amount": 1000 + seed}, entity="a", expect=["refused"])
    commands.send("counter", "roll", entity="b", expect=["decided"], repeatable=False)
    for amount in range(1, 6):
        commands.send("counter", "add", {"amount": amount}, entity="abc"[amount % 3], expect=["decided"])
    commands.again(first, phase="after")
    commands.send("counter", "add", {"amount": 5}, entity="a", expect=["decided"], phase="after")
    return commands


SCENARIO = Scenario(
    "broker-damage",
    __doc__,
    "chaos.agents:counter_only",
    workload,
    searches=[Fixed([*LIVING_WORKER, *STOPPED_WORKER, *NO_SPACE], batches=(1,))],
    engine={"publish_timeout_s": 0.4},
    # Its first failure is its last.
    limit=2,
    claims=("G1", "G2", "G3", "G4", "G5", "G6", "G7", "G8", "G11", "G12", "G13"),
)

if __name__ == "__main__":
    main(SCENARIO)
