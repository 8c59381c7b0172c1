"""Locks under kills: python scenarios/locks.py

Three resources and three owners who acquire, refresh and release, are denied, and let leases run out, some while the
worker is dead. The runtime itself ends what nobody releases. All this while the worker is killed at every point of a
turn, while the server goes back in time, and while everything is sent again.

What must hold: a resource has one holder at a time, tokens only rise, a lease ends once, and whoever asks again hears
the first answer.
"""

from __future__ import annotations

from collections.abc import Sequence

from chaos.evidence import Sent
from chaos.scenario import Scenario
from chaos.script import main
from chaos.sweep import Fixed, Sweep
from chaos.workload import Workload
from meshforge_trio.points import Point

A_TURN = (
    Point.BEFORE_STORE,
    Point.IN_STORE,
    Point.AFTER_STORE,
    Point.IN_PUBLISH,
    Point.AFTER_PUBLISH,
    Point.BEFORE_ACK,
    Point.AFTER_ACK,
)
ELSEWHERE = [
    "worker#1:after_store@2=kill(0.4)",
    "worker#1:after_store@2=kill; worker#2:in_recovery@1=kill",
    "nats:after_publish@3=restart",
    "nats:after_ack@2=copy; nats:after_publish@5=rollback",
    "client:after_publish@3=resend",
    "worker#1:before_store@3=stop",
]


def workload(seed: int) -> Sequence[Sent]:
    """Leases of a fifth of a second, of ten seconds, and one that is refreshed."""
    commands = Workload()

    def ask(action: str, resource: str, owner: str, ttl: float | None = None, phase: str = "main") -> Sent:
        payload: dict[str, object] = {"resource_id": resource, "owner_id": owner}
        if ttl is not None:
            payload["ttl_seconds"] = ttl
        # What it comes to may depend on the time; that it is decided, and once, does not.
        return commands.send("sys_lock_manager", action, payload, expect=["decided"], repeatable=False, phase=phase)

    short = 0.2 + seed * 0.01
    first = ask("acquire", "door", "ada", short)
    ask("acquire", "door", "bob", short)
    ask("acquire", "gate", "ada", 10.0)
    ask("acquire", "gate", "bob", 10.0)
    ask("refresh", "gate", "ada", 20.0)
    ask("release", "gate", "ada")
    ask("acquire", "gate", "bob", 10.0)
    commands.again(first)
    ask("acquire", "hatch", "eve", short)
    ask("refresh", "hatch", "ada", short)
    for owner in ("ada", "bob", "eve"):
        ask("acquire", "door", owner, short, phase="after")
        ask("release", "gate", owner, phase="after")
    return commands


SCENARIO = Scenario(
    "locks",
    __doc__,
    "chaos.agents:locks_and_counter",
    workload,
    searches=[Sweep(points=A_TURN, batches=(64,), nth_max=2), Fixed(ELSEWHERE, batches=(1,))],
    claims=("G1", "G2", "G3", "G4", "G5", "G6", "G7", "G10", "G12", "G13"),
)

if __name__ == "__main__":
    main(SCENARIO)
