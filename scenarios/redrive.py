"""Dead letters come back: python scenarios/redrive.py

Commands that cannot work yet are set aside: what they take is not covered. Then some of it is supplied, and an operator
decides: one is redriven in time, and redriven once more, and asked for again under other ids; one too early, so that it
fails again; one is discarded, and not to be redriven after that. The worker is killed at every step of it.

What must hold: each dead letter reaches its stream once per generation, and its fate is sealed once, however often that
is asked for. What is redriven runs under its own key, has its effect once, and is answered as it is now. What is
discarded stays dead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from chaos.checkers import Checker, Finding
from chaos.evidence import Evidence, Sent
from chaos.scenario import Scenario
from chaos.script import main
from chaos.sweep import Fixed, Sweep
from chaos.workload import Workload
from meshforge_trio.points import Point

#: What must have come of each key in the end: outcome and generation.
ENDS = {"k1": ("decided", 1), "k2": ("dead", 1), "k3": ("dead", 0)}

# One point for each step after which something else is done or left.
EACH_STEP = (
    Point.IN_STORE,
    Point.AFTER_STORE,
    Point.IN_PUBLISH,
    Point.BEFORE_ACK,
    Point.AFTER_ACK,
    Point.BEFORE_DEAD_LETTER,
    Point.AFTER_DEAD_LETTER,
    Point.IN_ATTEMPT,
)


def workload(seed: int) -> Sequence[Sent]:
    """First what is set aside, then what an operator makes of it."""
    commands = Workload()
    mended = commands.send("counter", "charge", {"amount": 40 + seed}, entity="a", expect=["dead", "decided"])
    commands.send("counter", "draw", {"amount": 7_000}, entity="b", expect=["dead"])
    hopeless = commands.send("counter", "charge", {"amount": 9}, entity="c", expect=["dead"])
    commands.send("counter", "add", {"amount": 5}, entity="d", expect=["decided"])
    commands.send("counter", "add", {"amount": 100 + seed}, entity="a", expect=["decided"], phase="after")
    redriven = commands.redrive("counter", "k1", phase="after")
    commands.again(redriven, phase="after")
    commands.redrive("counter", "k1", expect=["refused"], phase="after")
    commands.redrive("counter", "k2", phase="after")
    commands.discard("counter", "k3", phase="after")
    commands.redrive("counter", "k3", expect=["refused"], phase="after")
    commands.again(hopeless, phase="after")
    commands.again(mended, phase="after")
    return commands


def as_planned(evidence: Evidence) -> Iterator[Finding | int]:
    """In the end each key has the outcome that its operator gave it."""
    if not evidence.final:
        return
    found = {record.key: (record.outcome, record.generation) for record in evidence.rows.keys}
    for key, end in ENDS.items():
        yield 1
        if found.get(key) != end:
            what = f"key {key!r} was to end as {end} (outcome, generation) and is {found.get(key)}"
            yield Finding(what, [key], "default/demo/counter")


SCENARIO = Scenario(
    "redrive",
    __doc__,
    "chaos.agents:counter_only",
    workload,
    searches=[
        Sweep(points=EACH_STEP, batches=(64,)),
        Fixed(["", "nats:after_ack@2=copy; nats:after_publish@4=rollback"], batches=(1, 64)),
    ],
    claims=("G1", "G2", "G3", "G4", "G5", "G6", "G7", "G8", "G11", "G12", "G13", "as-planned"),
    invariants=[Checker("as-planned", "As planned: each dead letter ends as its operator decided.", as_planned)],
)

if __name__ == "__main__":
    main(SCENARIO)
