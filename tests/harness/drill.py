"""A laboratory that plays nothing: outcomes as real runs bring them, made up from the case at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs

from chaos.builtin import CRASH_MATRIX
from chaos.case import Case
from chaos.checkers import Finding, Judgement
from chaos.evidence import Evidence
from chaos.history import Record
from chaos.lab import Lab, Outcome
from chaos.mutants.mutant import Mutant, mutant
from chaos.mutants.patch import Edit, Patch
from chaos.plan import parse_plan
from chaos.rows import Rows
from chaos.scenario import Scenario
from chaos.verdict import ImageJudgement, Receipt, Status, Verdict

__all__ = ["PaperLab", "bug", "case_of", "happens", "small_scenario", "twice"]

#: What comes of a case, with a planted bug or without.
Answer = Callable[[Case, Patch | None], Outcome]


def case_of(text: str, **fields: Any) -> Case:
    """The case of a plan, over the commands that come with the harness."""
    return attrs.evolve(CRASH_MATRIX.case(parse_plan(text, mortal=True)), **fields)


def small_scenario(name: str, *searches: Any) -> Scenario:
    """One that tries what is given."""
    return attrs.evolve(CRASH_MATRIX, name=name, about=f"About {name}.", searches=searches)


def bug(name: str, guarantee: str = "G1", rule: str = "R1") -> Mutant:
    """A planted bug that is never applied."""
    return mutant(
        name,
        rule,
        guarantee,
        f"About {name}.",
        lambda: case_of("", name=f"case-{name}-{guarantee}"),
        Edit("m", name, ""),
    )


def happens(
    case: Case,
    *,
    fell: Sequence[str] = (),
    unhit: Sequence[str] = (),
    reasons: Sequence[str] = (),
    status_of_dead: int = -9,
    points: Sequence[str] = (),
) -> Outcome:
    """What comes of `case`: every rule fires but those in `unhit`, every kill has its receipt."""
    fired = [str(rule) for rule in case.plan.rules if str(rule) not in unhit]
    killed = [str(rule) for rule in case.plan.of("worker") if rule.action == "kill" and str(rule) in fired]
    receipts = [Receipt(rule, 1000 + number, status_of_dead) for number, rule in enumerate(killed)]
    judgements = [
        ImageJudgement(1, True, Judgement(id_, f"{id_} in one sentence.", 3, (Finding(f"{id_} fell"),)))
        if id_ in fell
        else ImageJudgement(1, True, Judgement(id_, f"{id_} in one sentence.", 3 if id_ != "G10" else 0))
        for id_ in ("G1", "G2", "G10", *(id_ for id_ in fell if id_ not in ("G1", "G2", "G10")))
    ]
    status = Status.VIOLATION if fell else Status.INCONCLUSIVE if reasons else Status.PASS
    passed = {rule.place for rule in case.plan.rules if rule.actor != "proxy" and str(rule) in fired} | set(points)
    history = [Record(0, "worker#1", "point", {"point": point, "nth": 1}) for point in sorted(passed)]
    evidence = Evidence(Rows(), history=history)
    return Outcome(case, Verdict(status, reasons, judgements, fired, unhit, receipts), None, 0.01, evidence)


def twice(case: Case, **more: Any) -> Outcome:
    """As `happens`, in a run that comes to every place twice and no more."""
    late = [str(rule) for rule in case.plan.rules if rule.nth > 2]
    return happens(case, **{"unhit": late, **more})


def _named(case: Case) -> Sequence[str]:
    """The guarantee that a bug of `bug` breaks: its case says so."""
    return [case.name.rpartition("-")[2]]


class PaperLab(Lab):
    """Answers from `answer`, which may be set; keeps what it was asked, in order."""

    def __init__(self, answer: Answer | None = None) -> None:
        self.asked: list[tuple[Case, Patch | None]] = []
        self.parallel = 4
        self.answer: Answer = answer or (lambda case, patch: twice(case, fell=_named(case) if patch else ()))

    async def run(self, case: Case, *, patch: Patch | None = None, keep: bool = False, tries: int = 1) -> Outcome:
        """Answer at once."""
        self.asked.append((case, patch))
        return self.answer(case, patch)

    async def let_go(self, patch: Patch) -> None:
        """Nothing was started."""

    @property
    def plans(self) -> list[str]:
        """What was asked without a bug."""
        return [str(case.plan) for case, patch in self.asked if patch is None]
