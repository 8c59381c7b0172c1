"""Poison: python scenarios/poison.py

Among ordinary commands are four that can never work: one whose handler always raises, one whose event is larger than
the broker takes, one that lacks its idempotency key, one for an action that nobody has. The worker is killed at the
first two hits of every point on the way to the dead-letter stream.

What must hold: each of the first three reaches the dead-letter stream once, the failing one when its handler was called
as often as allowed and never more often, the others at once; the fourth is refused. Commands beside them are decided,
and the one behind the failing one waits for its end and is then decided, untouched.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from chaos.evidence import Sent
from chaos.scenario import Scenario
from chaos.script import main
from chaos.sweep import Sweep
from chaos.workload import Workload, garbage_key
from meshforge_trio.points import Point

TO_THE_LETTER = (
    Point.BEFORE_ATTEMPT,
    Point.IN_ATTEMPT,
    Point.BEFORE_HOLD,
    Point.IN_STORE,
    Point.AFTER_HOLD,
    Point.BEFORE_DEAD_LETTER,
    Point.AFTER_DEAD_LETTER,
    Point.IN_PUBLISH,
    Point.BEFORE_ACK,
    Point.AFTER_ACK,
)


def nameless(sent: Sent) -> Sent:
    """A command without a key: it is known by its own bytes, headers and all."""
    stripped = attrs.evolve(sent.command, idempotency_key=None)
    headers = f"NATS/1.0\r\nNats-Msg-Id: {sent.scope}/{sent.command.id}\r\n\r\n".encode()
    made = Sent(stripped, expect=("dead",))
    return attrs.evolve(made, key=garbage_key(made.subject, made.body, headers))


def workload(seed: int) -> Sequence[Sent]:
    """Poison, and what stands beside and behind it."""
    commands = Workload()
    commands.send("counter", "add", {"amount": 5 + seed}, entity="a", expect=["decided"])
    commands.send("counter", "explode", entity="b", expect=["dead"])
    commands.send("counter", "bloat", {"amount": 2_000_000 + seed}, entity="c", expect=["dead"])
    commands.send("counter", "add", {"amount": 2}, entity="b", expect=["decided"])
    keyless = commands.send("counter", "add", {"amount": 3}, entity="a")
    commands.send("counter", "vanish", entity="a", expect=["refused"])
    commands.send("counter", "add", {"amount": 4}, entity="c", expect=["decided"])
    commands.send("counter", "add", {"amount": 6}, entity="a", expect=["decided"], phase="after")
    return [nameless(sent) if sent is keyless else sent for sent in commands]


SCENARIO = Scenario(
    "poison",
    __doc__,
    "chaos.agents:counter_only",
    workload,
    searches=[
        Sweep(points=TO_THE_LETTER, batches=(1,), nth_max=2),
        Sweep(points=TO_THE_LETTER, batches=(64,), nth_max=1),
    ],
    claims=("G1", "G2", "G3", "G4", "G5", "G6", "G7", "G11", "G12", "G13"),
)

if __name__ == "__main__":
    main(SCENARIO)
