"""The ledger: python scenarios/ledger.py

Accounts pay each other. A transfer is two commands: a withdrawal, refused if the account is short, and the deposit
that the withdrawal sends to the other account, so that between the two the money is on its way. Some withdrawals are
sent twice. The agent is in `scenarios/bank.py`. The worker is killed at the first hits of every point of a turn.

What must hold, beside the guarantees: no account is ever overdrawn, and what all accounts hold together with what is
on its way is what was paid in. On every corpse too: money has left one account and not reached the other only while
the command that carries it is stored and not yet decided. At the end nothing is on its way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from random import Random

from chaos.checkers import Checker, Finding
from chaos.evidence import Evidence, Sent, envelope_of
from chaos.scenario import Scenario
from chaos.script import main
from chaos.sweep import Sweep
from chaos.workload import Workload
from meshforge_trio.points import Point

#: Where money may be on its way.
TRANSFERS = (
    Point.RECEIVED,
    Point.BEFORE_STORE,
    Point.IN_STORE,
    Point.AFTER_STORE,
    Point.BEFORE_PUBLISH,
    Point.IN_PUBLISH,
    Point.AFTER_PUBLISH,
    Point.BEFORE_ACK,
    Point.AFTER_ACK,
)
ACCOUNTS = ("ann", "bob", "cem")


def books(evidence: Evidence) -> Iterator[Finding | int]:
    """Add up the stored events, in the order of the store."""
    balances: Counter[str] = Counter()
    paid_in = 0
    on_the_way: dict[str, int] = {}
    decided = {row.key for row in evidence.rows.keys}
    for row in sorted(evidence.rows.outputs, key=lambda row: row.n):
        told = envelope_of(row)
        if row.kind not in ("event", "command") or row.entity_id is None:
            continue
        yield 1
        cents = told["payload"]["cents"]
        if row.kind == "command":
            if told["idempotency_key"] not in decided:
                on_the_way[told["idempotency_key"]] = cents
            continue
        paid_in += cents if row.name == "opened" else 0
        balances[row.entity_id] += -cents if row.name == "withdrawn" else cents
        if balances[row.entity_id] < 0:
            yield Finding(f"{row.entity_id} is overdrawn by {-balances[row.entity_id]} after output {row.n}")
    held, under_way = sum(balances.values()), sum(on_the_way.values())
    if held + under_way != paid_in:
        yield Finding(f"{paid_in} was paid in; accounts hold {held}, {under_way} is on its way")
    if evidence.final and on_the_way:
        yield Finding(f"{under_way} never arrived: {', '.join(sorted(on_the_way))}")


CONSERVED = Checker(
    "ledger",
    "Conserved: what all accounts hold and what is on its way between them is what was paid in, and no account is "
    "overdrawn.",
    books,
)


def workload(seed: int) -> Sequence[Sent]:
    """Payments between three accounts, larger than some can bear, and every third one sent twice."""
    chance = Random(seed)  # noqa: S311
    commands = Workload()
    for name in ACCOUNTS:
        commands.send("account", "open", {"cents": 100}, entity=name, expect=["decided"])
    for number in range(8):
        payer, payee = chance.sample(ACCOUNTS, 2)
        payment = {"cents": chance.randint(10, 90), "to": payee}
        phase = "main" if number < 6 else "after"
        sent = commands.send("account", "withdraw", payment, entity=payer, expect=["decided", "refused"], phase=phase)
        if number % 3 == 0:
            commands.again(sent, phase)
    return commands


SCENARIO = Scenario(
    "ledger",
    __doc__,
    "scenarios.bank:app",
    workload,
    searches=[
        Sweep(points=TRANSFERS, batches=(1,), nth_max=2),
        Sweep(points=TRANSFERS, batches=(64,), nth_max=1),
        Sweep(points=[Point.IN_RECOVERY], batches=(64,), before="worker#1:before_publish@2=kill", number=2, nth_max=2),
    ],
    claims=("G1", "G2", "G3", "G4", "G5", "G6", "G7", "G12", "G13", "ledger"),
    invariants=[CONSERVED],
)

if __name__ == "__main__":
    main(SCENARIO)
