"""Searches: which plans to try.

A sweep kills at the 1st, 2nd, 3rd ... hit of a point until a run ends unhit, so no list of positions can be
incomplete. Pairs kill, let recover, and kill again.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import trio

from chaos.lab import TRIES, Lab
from chaos.plan import Plan, Rule, kill_at, kinds_at, parse_plan
from chaos.scenario import CaseOf, Note
from chaos.verdict import Status
from meshforge_trio.points import Point

__all__ = ["Fixed", "Pairs", "Sweep"]

#: A sweep that goes on for longer has met a workload that never ends.
_NTH_MAX = 10_000


@attrs.frozen
class Fixed:
    """These plans, each with each batch size. The empty text is the run without a fault."""

    plans: Sequence[str]
    batches: Sequence[int] = (64,)
    mortal: bool = False

    def __str__(self) -> str:
        return f"{len(self.plans)} plans, batch {_shown(self.batches)}"

    async def explore(self, case_of: CaseOf, lab: Lab, note: Note) -> None:
        """See `Search.explore`."""
        plans = [parse_plan(text, mortal=self.mortal) for text in self.plans]
        cases = [case_of(plan, batch, True) for plan in plans for batch in self.batches]
        await lab.run_all(cases, note=note, tries=TRIES)


@attrs.frozen
class Sweep:
    """One worker, each of `points`, every hit, each batch size.

    `before` is a plan that comes first: what prepares the ground for worker `number`. `nth_max` bounds the hits tried
    (0: all there are).
    """

    points: Sequence[Point] = tuple(Point)
    action: str = "kill"
    seconds: float | None = None
    batches: Sequence[int] = (1, 64)
    before: str = ""
    number: int = 1
    nth_max: int = 0

    def __str__(self) -> str:
        hits = f"the first {self.nth_max} hits" if self.nth_max else "every hit"
        return f"{self.action} at {hits} of {len(self.points)} points, batch {_shown(self.batches)}"

    async def explore(self, case_of: CaseOf, lab: Lab, note: Note) -> None:
        """See `Search.explore`."""
        places = [point for point in self.points if self.action in kinds_at(point)]
        async with trio.open_nursery() as nursery:
            for batch in self.batches:
                for point in places:
                    nursery.start_soon(self._lane, point, batch, case_of, lab, note)

    async def _lane(self, point: Point, batch: int, case_of: CaseOf, lab: Lab, note: Note) -> None:
        first = parse_plan(self.before).rules
        for nth in range(1, (self.nth_max or _NTH_MAX) + 1):
            rule = Rule("worker", self.number, point.value, nth, self.action, self.seconds)
            outcome = await lab.run(case_of(Plan((*first, rule)), batch, False))
            note(outcome)
            if outcome.verdict.unhit or outcome.status is Status.INCONCLUSIVE:
                return


@attrs.frozen
class Pairs:
    """Two kills: worker#1 at each of `first`, its successor at each of `second`, each at its `nth` hit."""

    first: Sequence[Point]
    second: Sequence[Point]
    nth: tuple[int, int] = (1, 1)
    batches: Sequence[int] = (64,)

    def __str__(self) -> str:
        return f"{len(self.first) * len(self.second)} ordered pairs of kills, batch {_shown(self.batches)}"

    async def explore(self, case_of: CaseOf, lab: Lab, note: Note) -> None:
        """See `Search.explore`."""
        plans = [
            Plan((kill_at(one, self.nth[0], 1), kill_at(other, self.nth[1], 2)))
            for one in self.first
            for other in self.second
        ]
        # What the second worker never meets says nothing either way, and is listed as not reached.
        await lab.run_all([case_of(plan, batch, False) for plan in plans for batch in self.batches], note=note)


def _shown(batches: Sequence[int]) -> str:
    return " and ".join(map(str, batches))
