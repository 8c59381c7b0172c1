"""The store fails: python scenarios/store_faults.py

From a chosen point on the disk of a worker's store returns an I/O error for every read, for every write, or for every
fsync. Another program holds the write lock of the database, for longer than a worker waits for it. The file is deleted
under the worker, or an empty one is put in its place. This at every point before a transaction, and while a successor
takes over; then twice in a row, and with a kill between.

What must hold: an I/O error is never tried again, since a disk that failed once may say `done` the second time and have
lost the data; a file that is gone takes along what is written to it. So the worker ends by itself, at once, with an
exit code of its own, and neither publishes nor ACKs anything after it. A successor on a good disk, or with the file put
back, finds everything that was ever ACKed, and decides the rest once. A lock is waited for, and no reason to end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from chaos.checkers import Checker, Finding
from chaos.checkers.struck import Strikes
from chaos.evidence import Evidence, Sent
from chaos.rules import ALLOWED
from chaos.scenario import Scenario
from chaos.script import main
from chaos.sweep import Fixed, Sweep
from chaos.workload import Workload
from meshforge_trio.points import Point
from meshforge_trio.policy import ExitCode

KILLED: Final = -9
#: What a worker must not survive, by the names that plans have for it.
FATAL: Final = tuple(action for action, kind in ALLOWED["worker"].items() if kind.exit == ExitCode.STORE_BROKEN)

#: The first transaction of all is that of recovery.
TURN: Final = (Point.BEFORE_STORE, Point.IN_STORE)
ELSEWHERE: Final = (Point.AFTER_LEASE, Point.BEFORE_MARK, Point.BEFORE_HOLD, Point.BEFORE_DEAD_LETTER)
ALONE: Final = (Point.BEFORE_ATTEMPT,)
DEATH: Final = "worker#1:before_store@1=kill"

IN_A_ROW = [
    "worker#1:before_store@2=eio_write; worker#2:before_store@2=eio_sync",
    "worker#1:in_store@2=eio_sync; worker#2:in_recovery@1=kill; worker#3:before_mark@1=eio_read",
    "worker#1:before_store@2=unlink; worker#2:before_store@2=replace",
    "worker#1:after_store@2=kill; worker#2:before_mark@1=eio_write",
    "nats:in_publish@2=kill; worker#1:before_store@3=eio_write",
]
LOCKED = [
    "worker#1:before_store@2=lock(0.4)",
    # Longer than the lease; longer than a worker waits before it says that it cannot write.
    "worker#1:before_store@3=lock(1.5)",
    "worker#1:before_store@2=lock(6)",
    # As a backup or a forgotten shell does, for half a minute.
    "worker#1:before_store@3=lock(30)",
    "worker#1:after_store@2=kill; worker#2:after_lease@1=lock(6)",
    "worker#1:before_store@2=lock(1); nats:after_store@2=restart",
]


def ended(evidence: Evidence) -> Iterator[Finding | int]:
    """Look at every worker's end. What was read before a disk failed to read may still be decided and written."""
    history = evidence.history
    ends = {record.actor: record["status"] for record in history if record.kind == "exit"}
    yield len(ends)
    for fault in Strikes(history).faults:
        if fault.actor != "worker" or fault.action not in FATAL:
            continue
        if ends.get(fault.who) not in (ExitCode.STORE_BROKEN, KILLED, None):
            yield Finding(f"{fault.who} ended with {ends[fault.who]} after {fault.action}")
        points = [r["point"] for r in history if (r.kind, r.actor) == ("point", fault.who) and r.t > fault.t]
        if "after_store" in points and fault.action != "eio_read":
            yield Finding(f"{fault.who} took a turn for committed after {fault.action}")


ENDS: Final = Checker(
    "ends",
    "Ends: whose store fails an I/O, or has lost its file, commits nothing more and ends by itself with an exit code "
    "of its own.",
    ended,
)


def workload(seed: int) -> Sequence[Sent]:
    """What is decided, refused, given up, and what waits behind it."""
    commands = Workload()
    first = commands.send("counter", "add", {"amount": 5 + seed}, entity="a", expect=["decided"])
    commands.send("counter", "roll", entity="a", expect=["decided"], repeatable=False)
    commands.send("counter", "explode", entity="b", expect=["dead"])
    commands.send("counter", "take", {"amount": 1000 + seed}, entity="a", expect=["refused"])
    commands.send("counter", "add", {"amount": 2}, entity="b", expect=["decided"])
    commands.send("counter", "roll", entity="c", expect=["decided"], repeatable=False)
    commands.again(first, phase="after")
    commands.send("counter", "add", {"amount": 3}, entity="b", expect=["decided"], phase="after")
    return commands


SCENARIO = Scenario(
    "store-faults",
    __doc__,
    "chaos.agents:counter_only",
    workload,
    searches=[
        *(Sweep(TURN, action, batches=(1,), nth_max=2) for action in FATAL),
        *(Sweep(ELSEWHERE, action, batches=(1,), nth_max=1) for action in FATAL),
        *(Sweep(ALONE, action, batches=(1,), before=DEATH, number=2, nth_max=1) for action in FATAL),
        Sweep(TURN, "eio_sync", batches=(64,), nth_max=2),
        Fixed([*IN_A_ROW, *LOCKED], batches=(1,)),
    ],
    claims=("G1", "G2", "G3", "G4", "G5", "G6", "G7", "G8", "G11", "G12", "G13", "ends"),
    invariants=[ENDS],
    deadline_s=60.0,
)

if __name__ == "__main__":
    main(SCENARIO)
