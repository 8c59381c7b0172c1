"""What the pytest fixtures hand out: agents, commands and a plan in, an outcome or a failed test out."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
import structlog
import trio

from chaos.case import Case
from chaos.evidence import Sent
from chaos.lab import Lab, Outcome, leaves, open_lab
from chaos.plan import Plan, kinds_at, parse_plan
from chaos.project import workspaces_of
from chaos.report.html import render_html
from chaos.scratch import file_name
from chaos.sweep import Sweep
from chaos.verdict import Status
from meshforge_trio.errors import Misconfigured
from meshforge_trio.points import Point
from meshforge_trio.telemetry import set_up_logging

__all__ = ["ChaosSweep", "ChaosWorld", "Commands"]

#: A workload, or a function that makes one from the seed.
Commands = Sequence[Sent] | Callable[[int], Sequence[Sent]]


@attrs.define(eq=False)
class _Harness:
    """The options of the command line, and where outcomes are told."""

    plan: str | None
    seed: int
    reports: str | None
    parallel: int
    replay: str
    note: Callable[[Mapping[str, Any]], None]
    name: str

    def _case(self, app: str, commands: Commands, plan: Plan, fields: Mapping[str, Any]) -> Case:
        sent = commands(self.seed) if callable(commands) else commands
        replay = f"{self.replay} --chaos-plan {shlex.quote(str(plan))}"
        served = {"workspaces": workspaces_of(sent), **fields} if sent else fields
        return Case(app, sent, plan, name=file_name(self.name), replay=replay, **served)

    def _told(self, outcomes: Sequence[Outcome]) -> None:
        receipts = [receipt for outcome in outcomes for receipt in outcome.verdict.receipts]
        failed = [outcome for outcome in outcomes if outcome.status is not Status.PASS]
        self.note(
            {
                "runs": len(outcomes),
                "kills": len(receipts),
                "points": sorted({receipt.rule.partition(":")[2].partition("@")[0] for receipt in receipts}),
                "failures": [f"{outcome.status}: replay with {outcome.case.replay}" for outcome in failed],
            }
        )
        for outcome in failed:
            if outcome.home is not None:
                (outcome.home / "report.html").write_text(render_html(outcome.home))

    def _checked(self, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            if outcome.status is not Status.PASS:
                pytest.fail(_failure(outcome), pytrace=False)

    def _lab(self, work: Callable[[Lab], Any], parallel: int) -> None:
        if not structlog.is_configured():
            # The broker's faults are planned here, and told by the histories.
            set_up_logging("error")

        async def main() -> None:
            async with open_lab(parallel, None if self.reports is None else Path(self.reports)) as lab:
                await work(lab)

        try:
            trio.run(main)
        except (Misconfigured, BaseExceptionGroup) as error:
            found = leaves(error)
            # In a group pytest would take it for the failure of this test, and go on with the next.
            if any(isinstance(leaf, KeyboardInterrupt) for leaf in found):
                raise KeyboardInterrupt from None
            for leaf in found:
                if isinstance(leaf, Misconfigured):
                    pytest.fail(f"inconclusive: {leaf}", pytrace=False)
            raise


class ChaosWorld(_Harness):
    """See the fixture `chaos_world`."""

    def __call__(self, app: str, commands: Commands, plan: str = "", *, check: bool = True, **fields: Any) -> Outcome:
        """Run `app` (`module:attr`) under `plan`; further fields are those of `chaos.case.Case`.

        With `check`, a verdict other than pass fails the test and shows why.

        Raises:
            PlanError: the plan cannot be run.
        """
        chosen = self.plan if self.plan is not None else plan
        case = self._case(app, commands, parse_plan(chosen, mortal=fields.get("mortal", False)), fields)
        outcomes: list[Outcome] = []

        async def work(lab: Lab) -> None:
            outcomes.append(await lab.run(case))

        self._lab(work, 1)
        self._told(outcomes)
        if check:
            self._checked(outcomes)
        return outcomes[0]


class ChaosSweep(_Harness):
    """See the fixture `chaos_sweep`."""

    def __call__(
        self,
        app: str,
        commands: Commands,
        *,
        points: Sequence[str] = (),
        action: str = "kill",
        seconds: float | None = None,
        batches: Sequence[int] = (64,),
        check: bool = True,
        **fields: Any,
    ) -> Sequence[Outcome]:
        """Do `action` at the 1st, 2nd ... hit of each of `points` until a run ends unhit; return every outcome.

        Without `points`, at all where it may be done; those that the commands never reach are found out and left. With
        `check`, the first verdict other than pass fails the test, and so does a sweep in which nothing was hit.

        Raises:
            PlanError: no such point or action, one where it may not stand, or one that needs its `seconds`.
        """
        outcomes: list[Outcome] = []
        places = _places(points, action, seconds)
        sweep = Sweep(places, action, seconds, tuple(batches))

        def case_of(plan: Plan, batch: int, must_fire: bool) -> Case:
            engine = {**fields.get("engine", {}), "batch": batch}
            return self._case(app, commands, plan, {**fields, "engine": engine, "must_fire": must_fire})

        async def work(lab: Lab) -> None:
            if self.plan is None:
                with trio.CancelScope() as going_on:

                    def note(outcome: Outcome) -> None:
                        outcomes.append(outcome)
                        if check and outcome.status is not Status.PASS:
                            going_on.cancel()

                    await sweep.explore(case_of, lab, note)
            else:
                plan = parse_plan(self.plan, mortal=True)
                outcomes.extend(await lab.run_all([case_of(plan, batch, True) for batch in batches]))

        self._lab(work, self.parallel)
        self._told(outcomes)
        if check:
            self._checked(outcomes)
            if not any(outcome.verdict.fired for outcome in outcomes):
                pytest.fail(f"inconclusive: none of {', '.join(places)} was ever reached", pytrace=False)
        return outcomes


def _places(points: Sequence[str], action: str, seconds: float | None) -> Sequence[Point]:
    """Where a sweep acts; whatever is wrong with that would look like points that are never reached."""
    chosen = points or [point for point in Point if action in kinds_at(point)] or tuple(Point)
    for point in chosen:
        parse_plan(f"worker#1:{point}@1={action}" + ("" if seconds is None else f"({seconds:g})"))
    return tuple(Point(point) for point in chosen)


def _failure(outcome: Outcome) -> str:
    """What broke in the first line, which is all that the summary of pytest shows; then everything."""
    why = ", ".join(outcome.verdict.broken_ids) or next(iter(outcome.verdict.reasons), "").split("\n", 1)[0]
    page = "" if outcome.home is None else f"\npage: {outcome.home / 'report.html'}"
    return f"{outcome.status}: {why}{page}\n{outcome}"
