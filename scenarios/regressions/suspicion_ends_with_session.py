"""A command that kills its process was called more often than allowed, because a broker session ended in between.

It kills the first worker. The second takes over and knows that what was in hand may have killed it; then the server is
restarted. In its next session it no longer knew: as its own last session had not died, nobody was suspected, and the
command ran uncounted, together with its neighbours. Each further lost session forgives another death. Rule R7: what
was in hand at an unclean end runs alone and counted, until it is decided.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from chaos.checkers import Checker, Finding
from chaos.evidence import Evidence, Sent
from chaos.scenario import Scenario
from chaos.script import main
from chaos.sweep import Fixed
from chaos.workload import Workload

LIMIT: Final = 3


def calls(evidence: Evidence) -> Iterator[Finding | int]:
    """No handler is running when the server is restarted, so every call counts."""
    for key, count in Counter(record["key"] for record in evidence.history if record.kind == "call").items():
        yield 1
        if count > LIMIT:
            yield Finding(f"the handler of {key} was called {count} times, the limit is {LIMIT}", [key])


COUNTED = Checker("calls", f"Counted: a handler is called {LIMIT} times at most.", calls)


def workload(seed: int) -> Sequence[Sent]:
    """A command that kills its process, and a neighbour."""
    commands = Workload()
    commands.send("counter", "die", entity="a", expect=["dead"])
    commands.send("counter", "add", {"amount": 1}, entity="b", expect=["decided"])
    commands.send("counter", "add", {"amount": 2}, entity="a", expect=["decided"], phase="after")
    return commands


SCENARIO = Scenario(
    "suspicion-ends-with-session",
    __doc__,
    "chaos.agents:counter_only",
    workload,
    searches=[Fixed(["nats:worker#2.after_recovery@1=restart"], batches=(1, 64), mortal=True)],
    limit=LIMIT,
    mortal=True,
    claims=("G1", "G2", "G3", "G4", "G5", "G11", "G12", "calls"),
    invariants=[COUNTED],
)

if __name__ == "__main__":
    main(SCENARIO)
