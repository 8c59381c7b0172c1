"""Two tenants, alike to the last letter: python scenarios/two_tenants.py

Two tenants share one worker, one store and the streams, and send the same commands: the same ids, the same keys, the
same entities. A command for each of them arrives in the name of the other. The worker is killed at every point.

What must hold: each tenant gets its own decisions, events, versions and dead letters, as if it were alone. A command
that names another scope than the one it was sent to changes nothing anywhere: it is a violation, stored and published
once, where it arrived.
"""

from __future__ import annotations

from collections.abc import Sequence

from chaos.evidence import Sent
from chaos.scenario import Scenario
from chaos.script import main
from chaos.sweep import Sweep
from chaos.workload import Workload, trespass
from meshforge_trio.points import Point
from meshforge_trio.subjects import Scope

OURS, THEIRS = Scope("default", "demo", "counter"), Scope("other", "demo", "counter")


def of_a_tenant(scope: Scope, amount: int) -> Sequence[Sent]:
    """What each of them sends."""
    commands = Workload(f"{scope.tenant}/{scope.workspace}")
    first = commands.send("counter", "add", {"amount": amount}, entity="a", expect=["decided"])
    commands.send("counter", "roll", entity="a", expect=["decided"], repeatable=False)
    commands.send("counter", "add", {"amount": 1}, entity="a", expected_version=1, expect=["conflict"])
    commands.send("counter", "bloat", {"amount": 2_000_000}, entity="b", expect=["dead"])
    commands.again(first)
    commands.again(first, phase="after")
    commands.send("counter", "take", {"amount": 1}, entity="a", expect=["decided"], phase="after")
    return commands


def workload(seed: int) -> Sequence[Sent]:
    """Both in turn, and two that are not where they say."""
    both = zip(of_a_tenant(OURS, 7 + seed), of_a_tenant(THEIRS, 70 + seed), strict=True)
    alike = [sent for pair in both for sent in pair]
    return [trespass(THEIRS, OURS, 90), *alike, trespass(OURS, THEIRS, 91)]


SCENARIO = Scenario(
    "two-tenants",
    __doc__,
    "chaos.agents:counter_only",
    workload,
    searches=[Sweep(points=[point for point in Point if point is not Point.IN_RECOVERY], batches=(64,), nth_max=1)],
    workspaces=("default/demo", "other/demo"),
    claims=("G1", "G2", "G3", "G4", "G5", "G6", "G7", "G8", "G9", "G11", "G12", "G13"),
)

if __name__ == "__main__":
    main(SCENARIO)
