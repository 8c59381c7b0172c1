"""Searches: which plans they try, in which order, and when they have tried everything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import attrs
import pytest
import trio

from chaos.case import Case
from chaos.lab import TRIES, Lab, Outcome
from chaos.plan import Plan, PlanError
from chaos.scenario import Search
from chaos.sweep import Fixed, Pairs, Sweep
from chaos.verdict import Status, Verdict
from meshforge_trio.points import Point


@attrs.define(eq=False)
class Bench:
    """Stands in for a laboratory: each point is reached as often as `hits` says; `broken` plans are violations."""

    hits: Callable[[str, int], int] = lambda point, batch: 2
    status: Status = Status.PASS
    tried: list[Case] = attrs.field(factory=list)
    tries: list[int] = attrs.field(factory=list)

    async def run(self, case: Case) -> Outcome:
        self.tried.append(case)
        await trio.lowlevel.checkpoint()
        batch = case.engine["batch"]
        unhit = [str(rule) for rule in case.plan.rules if rule.nth > self.hits(rule.place, batch)]
        status = Status.INCONCLUSIVE if unhit and case.must_fire else self.status
        return Outcome(case, Verdict(status, unhit=unhit), None, 0.1)

    async def run_all(
        self, cases: Sequence[Case], *, note: Callable[[Outcome], None], tries: int = 1
    ) -> Sequence[Outcome]:
        self.tries.append(tries)
        outcomes = [await self.run(case) for case in cases]
        for outcome in outcomes:
            note(outcome)
        return outcomes


def case_of(plan: Plan, batch: int, must_fire: bool) -> Case:
    return Case("a:b", [], plan, engine={"batch": batch}, must_fire=must_fire)


async def explore(search: Search, bench: Bench) -> list[tuple[str, int]]:
    """The plans and batch sizes of everything that was noted."""
    noted: list[Outcome] = []
    await search.explore(case_of, cast("Lab", bench), noted.append)
    assert len(noted) == len(bench.tried)
    return [(str(outcome.case.plan), outcome.case.engine["batch"]) for outcome in noted]


def nths(tried: list[tuple[str, int]], point: str, batch: int) -> list[int]:
    """Which hits of a point were tried with a batch size."""
    mark = f":{point}@"
    return [int(plan.split(mark)[1].split("=")[0]) for plan, size in tried if mark in plan and size == batch]


async def test_a_sweep_goes_on_until_nothing_is_hit() -> None:
    def hits(point: str, batch: int) -> int:
        return {"received": 5, "after_ack": 0}.get(point, 1) * (1 if batch == 64 else 2)

    sweep = Sweep([Point.RECEIVED, Point.AFTER_ACK, Point.IN_STORE])
    tried = await explore(sweep, Bench(hits))
    # One more than there are: that is how it knows.
    assert nths(tried, "received", 64) == [1, 2, 3, 4, 5, 6]
    assert nths(tried, "received", 1) == list(range(1, 12))
    assert nths(tried, "after_ack", 64) == nths(tried, "after_ack", 1) == [1]
    assert nths(tried, "in_store", 64) == [1, 2]
    assert str(sweep) == "kill at every hit of 3 points, batch 1 and 64"


async def test_a_sweep_may_be_bounded() -> None:
    sweep = Sweep([Point.RECEIVED], batches=(8,), nth_max=2)
    assert nths(await explore(sweep, Bench(lambda *_: 9)), "received", 8) == [1, 2]
    assert str(sweep) == "kill at the first 2 hits of 1 points, batch 8"


async def test_a_sweep_of_everything_is_of_every_point() -> None:
    tried = await explore(Sweep(batches=(64,)), Bench())
    assert {plan.split(":")[1].split("@")[0] for plan, _ in tried} == set(Point)


async def test_a_sweep_leaves_out_where_an_action_may_not_stand() -> None:
    stops = await explore(Sweep(action="stop", seconds=0.5, batches=(64,)), Bench())
    assert nths(stops, "in_store", 64) == []
    assert all(plan.endswith("=stop(0.5)") for plan, _ in stops)
    full = await explore(Sweep(action="full", seconds=0.5, batches=(64,)), Bench())
    assert {plan.split(":")[1].split("@")[0] for plan, _ in full} == {
        *("before_store", "in_store", "before_mark", "before_attempt", "before_hold", "before_dead_letter")
    }


async def test_a_sweep_may_prepare_the_ground() -> None:
    before = "worker#1:before_publish@1=kill"
    tried = await explore(Sweep([Point.IN_RECOVERY], before=before, number=2, batches=(64,)), Bench())
    assert [plan for plan, _ in tried] == [f"{before}; worker#2:in_recovery@{n}=kill" for n in (1, 2, 3)]


async def test_a_violation_ends_no_sweep() -> None:
    tried = await explore(Sweep([Point.RECEIVED], batches=(64,)), Bench(status=Status.VIOLATION))
    assert nths(tried, "received", 64) == [1, 2, 3]


async def test_what_shows_nothing_ends_its_lane() -> None:
    """Else a laboratory that is broken would be asked for ever."""
    tried = await explore(Sweep([Point.RECEIVED, Point.IN_STORE], batches=(64,)), Bench(status=Status.INCONCLUSIVE))
    assert nths(tried, "received", 64) == nths(tried, "in_store", 64) == [1]


async def test_fixed_plans_must_fire() -> None:
    fixed = Fixed(["", "worker#1:received@1=kill", "worker#2:received@1=kill"], batches=(1, 64), mortal=True)
    bench = Bench()
    assert await explore(fixed, bench) == [(plan, batch) for plan in fixed.plans for batch in (1, 64)]
    assert all(case.must_fire for case in bench.tried)
    assert bench.tries == [TRIES], "the network may have a rule miss its turn, once"
    assert str(fixed) == "3 plans, batch 1 and 64"


async def test_a_fixed_plan_that_cannot_be_run_is_refused() -> None:
    with pytest.raises(PlanError, match="never started"):
        await explore(Fixed(["worker#2:received@1=kill"]), Bench())


async def test_pairs_are_ordered_and_need_not_fire() -> None:
    points = [Point.RECEIVED, Point.IN_STORE]
    bench = Bench()
    pairs = Pairs(points, points, nth=(2, 1), batches=(8,))
    assert await explore(pairs, bench) == [
        (f"worker#1:{one}@2=kill; worker#2:{other}@1=kill", 8) for one in points for other in points
    ]
    assert not any(case.must_fire for case in bench.tried)
    assert bench.tries == [1]
    assert str(pairs) == "4 ordered pairs of kills, batch 8"
