"""The holder that was suspended: python scenarios/lock_holder.py

Beside a few commands, a client process takes a lock, acts under it, and is stopped with SIGSTOP for longer than its
lease. A second client process waits for the lock, gets it when that lease has ended by itself, and acts. Then the first
one goes on where it was. All this with a healthy worker; with a worker that is killed when it has leased the lock, when
it has decided what the holder did, and while the second one asks; and with a worker that is stopped as it leases the
lock and while the second one asks, for longer than its own lease and the lock's, replaced, and let go on.

What must hold: there are never two holders, by the runtime's clock and by their own. The first one's block is cancelled
when it goes on, and what it tries all the same, under the token it has, is refused.
"""

from __future__ import annotations

from collections.abc import Sequence

from chaos.evidence import Sent
from chaos.holders import ONE_ACTS
from chaos.scenario import Scenario
from chaos.script import main
from chaos.sweep import Fixed
from chaos.workload import Workload

PLANS = [
    "",
    # One command of the workload, the lock, the act under it, the second one's question.
    *(f"worker#1:after_store@{nth}=kill" for nth in (2, 3, 4)),
    *(f"worker#1:before_store@{nth}=stop" for nth in (2, 4)),
]


def workload(seed: int) -> Sequence[Sent]:
    """Little: the holders are what it is about."""
    commands = Workload()
    commands.send("counter", "add", {"amount": 5 + seed}, entity="vault", expect=["decided"])
    commands.send("counter", "add", {"amount": 1}, entity="vault", expect=["decided"], phase="after")
    acquire = {"resource_id": "vault", "owner_id": "eve", "ttl_seconds": 0.2}
    commands.send("sys_lock_manager", "acquire", acquire, expect=["decided"], repeatable=False, phase="after")
    return commands


SCENARIO = Scenario(
    "lock-holder",
    __doc__,
    "chaos.agents:locks_and_counter",
    workload,
    searches=[Fixed(PLANS, batches=(1,))],
    engine={"ack_wait_s": 0.5},
    lease_ttl_s=0.3,
    claims=("G1", "G2", "G3", "G4", "G5", "G6", "G7", "G10", "G12", "G13", "one acts"),
    invariants=[ONE_ACTS],
    beside="chaos.holders:in_turn",
)

if __name__ == "__main__":
    main(SCENARIO)
