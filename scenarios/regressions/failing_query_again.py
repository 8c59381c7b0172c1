"""A query that had been given up and came again was decided, refused by the store, and decided again, for ever.

Its handler raises, so it is set aside under its id. When the same id is sent again, later than the stream remembers
it, its fate is known under a key of the runtime's own, which was not read back with the others. Rule R9: a query
stores nothing, but for one that is set aside, and that one is answered with its fate.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from chaos.evidence import Sent
from chaos.scenario import Scenario
from chaos.script import main
from chaos.sweep import Fixed
from chaos.workload import Workload


def workload(seed: int) -> Sequence[Sent]:
    """A query whose handler raises, one that is answered, and the first one once more as it was."""
    commands = Workload()
    commands.send("counter", "add", {"amount": 1}, entity="a", expect=["decided"])
    asked = commands.send("counter", "stumble", entity="a", query=True)
    commands.send("counter", "get", entity="a", query=True)
    commands.send("counter", "add", {"amount": 2}, entity="a", expect=["decided"], phase="after")
    return [*commands, attrs.evolve(asked, phase="after")]


SCENARIO = Scenario(
    "failing-query-again",
    __doc__,
    "chaos.agents:counter_only",
    workload,
    searches=[Fixed([""], batches=(1, 64))],
    # It is given up after one more try, when the stream has long forgotten its id.
    engine={"duplicate_window_s": 0.2},
    retry={"delays_s": (0.6,)},
    claims=("G1", "G2", "G3", "G4", "G5", "G11", "G12"),
)

if __name__ == "__main__":
    main(SCENARIO)
