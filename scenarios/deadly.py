"""Commands that end their process: python scenarios/deadly.py

In one batch with sixty ordinary commands stand three that their worker does not survive, however often it is started
again: one kills it as the out-of-memory killer of the kernel does, one leaves by itself in the middle of everything,
one never returns, so that the watchdog ends the process when the handler has had its time. Some runs add kills of their
own, where the runtime is counting whom to blame.

What must hold: the handler of each of the three is called as often as allowed and no more, whoever died of it; each is
dead-lettered once, with what is known of every call: its time, and that nobody came back from it. Its neighbours in the
batch were in hand at every one of these deaths, and still are decided, and blamed for nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from chaos.checkers import Checker, Finding
from chaos.evidence import Evidence, Sent
from chaos.scenario import Scenario
from chaos.script import main
from chaos.sweep import Fixed
from chaos.workload import Workload

NEIGHBOURS = 56


def workload(seed: int) -> Sequence[Sent]:
    """The three, and neighbours between and behind them: one full batch."""
    commands = Workload()

    def beside(first: int, last: int) -> None:
        for n in range(first, last):
            commands.send("counter", "add", {"amount": n + seed}, entity=f"beside-{n}", expect=["decided"])

    # The first is called first by every worker, however much of the batch had arrived: a plan can count on it.
    commands.send("counter", "die", entity="b", expect=["dead"])
    commands.send("counter", "add", {"amount": 1 + seed}, entity="a", expect=["decided"])
    beside(0, 14)
    commands.send("counter", "add", {"amount": 2}, entity="b", expect=["decided"])
    beside(14, 28)
    commands.send("counter", "quit", entity="c", expect=["dead"])
    beside(28, 42)
    commands.send("counter", "spin", entity="d", expect=["dead"])
    commands.send("counter", "add", {"amount": 3}, entity="a", expect=["decided"])
    beside(42, NEIGHBOURS)
    commands.send("counter", "add", {"amount": 4}, entity="d", expect=["decided"], phase="after")
    return commands


def blamed_alone(evidence: Evidence) -> Iterator[Finding | int]:
    """Nobody comes back from a call of the three, and nothing else is counted against anybody."""
    guilty = {each.key for each in evidence.sent if each.expect == ("dead",)}
    for letter in evidence.rows.dead:
        yield 1
        errors = [error for _, error in letter.calls]
        if letter.key not in guilty or len(errors) != letter.attempts or any(errors):
            what = f"was given up after {letter.attempts} attempts, which ended with {errors}"
            yield Finding(f"key {letter.key!r} {what}", [letter.key], str(letter.scope))
    for (scope, key), count in evidence.rows.attempts.items():
        # The one that is being called when its worker is killed by plan may be anybody.
        if evidence.final and key not in guilty:
            yield Finding(f"{count} attempts are counted against {key!r}", [key], str(scope))


SCENARIO = Scenario(
    "deadly",
    __doc__,
    "chaos.agents:counter_only",
    workload,
    searches=[
        Fixed([""], batches=(1, 64), mortal=True),
        Fixed(
            [
                "worker#2:before_attempt@1=kill",
                "worker#2:in_attempt@1=kill",
                "worker#4:before_dead_letter@1=kill",
                "worker#4:after_dead_letter@1=kill",
                "nats:worker#2.received@1=restart; nats:worker#4.received@1=kill",
            ],
            mortal=True,
        ),
    ],
    retry={"handler_limit_s": 0.3},
    mortal=True,
    claims=("G1", "G2", "G3", "G4", "G5", "G6", "G7", "G11", "G12", "G13", "blamed-alone"),
    invariants=[
        Checker("blamed-alone", "Blamed alone: each call that nobody came back from, and no other.", blamed_alone)
    ],
)

if __name__ == "__main__":
    main(SCENARIO)
