"""One tenant's payloads are sealed, the other's are not: python scenarios/sealed.py

Two tenants share one worker, one store and the streams, and send the same commands. The payloads of one are sealed with
its keys: some by its client, some by the runtime alone. Among them are commands that fail and quote their payload, that
are refused, dead-lettered and redriven, and one that another agent is sent. The worker is killed at every point, then
its successor, while it recovers.

What must hold: everything that holds without a codec, for both; and of the payloads of the sealed tenant nothing can be
read, in no crash image: not in outputs, dead letters and errors, nor in the streams of events and dead letters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import attrs

from chaos import sealing
from chaos.builtin import FIRST_DEATHS, RECOVERY
from chaos.checkers import Checker, Finding
from chaos.evidence import Evidence, Sent
from chaos.scenario import Scenario
from chaos.script import main
from chaos.sweep import Sweep
from chaos.workload import Workload
from meshforge_trio.points import Point
from meshforge_trio.subjects import EVENTS

TENANTS: Final = ("open", sealing.TENANT)
#: What the payloads hold, and errors quote: found anywhere, it was not sealed.
AMOUNT: Final = 98_765_432_100
TELLTALE: Final = b"98765432"


def of_a_tenant(tenant: str, seed: int) -> Sequence[Sent]:
    """What each of them sends."""
    commands = Workload(f"{tenant}/demo")
    first = commands.send("counter", "add", {"amount": AMOUNT + seed}, entity="a", expect=["decided"])
    second = commands.send("counter", "tell", entity="a", expect=["decided"])
    commands.send("counter", "add", {"amount": AMOUNT}, entity="a", expected_version=1, expect=["conflict"])
    commands.send("counter", "take", {"amount": 2 * AMOUNT + 50}, entity="a", expect=["refused"])
    drawn = commands.send("counter", "draw", {"amount": AMOUNT + 7}, entity="b", expect=["dead", "decided"])
    commands.send("counter", "add", {"amount": AMOUNT + 9}, entity="b", expect=["decided"])
    commands.send("counter", "get", entity="a", query=True)
    commands.again(first)
    commands.send("counter", "add", {"amount": AMOUNT + 1}, entity="a", key=first.key)
    commands.redrive("counter", drawn.key, expect=["decided", "refused"], phase="after")
    commands.again(second, phase="after")
    commands.send("counter", "add", {"amount": AMOUNT}, entity="a", expect=["decided"], phase="after")
    return commands


def sealed(sent: Sent) -> Sent:
    """The same as a client sends it that has the codec; the key stands for what it did."""
    by = sealing.sealer(sent.command.tenant)
    if by is None:
        return sent
    return attrs.evolve(sent, command=by.sealed(sent.command), key=sent.key, digest=sent.digest)


def workload(seed: int) -> Sequence[Sent]:
    """Both in turn; every second command of the sealed tenant is sealed by its client."""
    both = zip(*(of_a_tenant(tenant, seed) for tenant in TENANTS), strict=True)
    alike = [sent for pair in both for sent in pair]
    return [sealed(sent) if i % 4 == 3 else sent for i, sent in enumerate(alike)]


def readable(evidence: Evidence) -> Iterator[Finding | int]:
    """Payloads of the sealed tenant that anybody can read; those of the other must be, or this sees nothing."""
    rows = evidence.rows
    for row in rows.outputs:
        yield from _look(row.scope.tenant, row.body, f"output {row.n} ({row.name}) of {row.scope}")
    for letter in rows.dead:
        kept = b"\n".join([letter.body, letter.reason.encode(), *(error.encode() for _, error in letter.calls)])
        yield from _look(letter.scope.tenant, kept, f"the dead letter of {letter.key!r} in {letter.scope}")
    for message in (*evidence.events, *evidence.failed):
        stream = EVENTS if message.subject.startswith("evt.") else "the dead-letter stream"
        tenant = message.subject.removeprefix("failed.").split(".")[1]
        yield from _look(tenant, message.body, f"{message.subject} at sequence {message.seq} of {stream}")


def _look(tenant: str, kept: bytes, where: str) -> Iterator[Finding | int]:
    if tenant != sealing.TENANT:
        yield int(TELLTALE in kept)
    elif TELLTALE in kept:
        yield Finding(f"{where} holds a payload that is not sealed")


SEALED: Final = Checker("sealed", "Nothing that rests of a tenant with a codec can be read without its keys.", readable)

SCENARIO = Scenario(
    "sealed",
    __doc__,
    "chaos.agents:counter_sealed",
    workload,
    searches=[
        Sweep(points=[point for point in Point if point is not Point.IN_RECOVERY], batches=(1, 64), nth_max=1),
        Sweep(RECOVERY, before=FIRST_DEATHS[0], number=2, batches=(64,)),
    ],
    workspaces=tuple(f"{tenant}/demo" for tenant in TENANTS),
    claims=("G1", "G2", "G3", "G4", "G5", "G6", "G7", "G8", "G9", "G11", "G12", "G13", SEALED.id),
    invariants=[SEALED],
)

if __name__ == "__main__":
    main(SCENARIO)
