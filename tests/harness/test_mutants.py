"""Planted bugs: every one fits today's source, every rule and guarantee has one, and each is caught."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import attrs
import pytest

from chaos.case import Case
from chaos.checkers import CHECKERS, Finding, Judgement
from chaos.lab import Lab, Outcome, open_lab
from chaos.mutants.catalogue import CATALOGUE
from chaos.mutants.detect import TrueRuns, detect, run_catalogue
from chaos.mutants.mutant import Mutant, mutant
from chaos.mutants.patch import Edit, Patch, check, diff_of
from chaos.plan import check_plan
from chaos.verdict import ImageJudgement, Status, Verdict
from meshforge_trio.config import EngineSettings
from meshforge_trio.policy import RetryPolicy

BY_NAME = {each.name: each for each in CATALOGUE}


# -- the catalogue -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BY_NAME)
def test_its_patch_fits_the_source(name: str) -> None:
    patch = BY_NAME[name].patch
    check(patch)
    assert diff_of(patch)
    assert all(module.startswith("meshforge_trio.") or module == "chaos.agents" for module in patch.modules)


@pytest.mark.parametrize("name", BY_NAME)
def test_it_is_told_well(name: str) -> None:
    found = BY_NAME[name]
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", found.name)
    assert found.patch.name == found.name
    assert found.about[0].isupper()
    assert found.about.endswith(".")


@pytest.mark.parametrize("name", BY_NAME)
def test_its_case_can_be_run(name: str) -> None:
    case = BY_NAME[name].case()
    check_plan(case.plan, mortal=case.mortal)
    EngineSettings(**{**case.engine, "retry": RetryPolicy(**case.retry)})
    assert {sent.phase for sent in case.sent} == {"main", "after"}


def test_names_are_unique() -> None:
    assert [name for name, count in Counter(each.name for each in CATALOGUE).items() if count > 1] == []
    assert len(CATALOGUE) >= 26


def test_patches_are_unique() -> None:
    edits = Counter(each.patch.edits for each in CATALOGUE)
    assert max(edits.values()) == 1


def test_every_rule_has_one() -> None:
    assert {each.rule for each in CATALOGUE} - {""} == {f"R{number}" for number in range(1, 11)}


def test_every_guarantee_has_one() -> None:
    sentences = {checker.id: checker.sentence for checker in CHECKERS}
    assert {each.guarantee for each in CATALOGUE} == sentences.keys()
    assert all(sentences.values())


def test_cases_of_one_name_are_one_case() -> None:
    cases: dict[str, Case] = {}
    for each in CATALOGUE:
        case = each.case()
        assert cases.setdefault(case.name, case) == case


# -- how detecting goes --------------------------------------------------------------------------------------------


class ScriptedLab:
    """A lab whose outcomes are told beforehand: the guarantees that fall, or `None` for an inconclusive run."""

    parallel = 1

    def __init__(self, true: Sequence[str] | None, *mutated: Sequence[str] | None) -> None:
        self._true = true
        self._mutated = list(mutated)
        self.runs: list[tuple[str, Patch | None]] = []
        self.let_go_of: list[Patch] = []

    async def run(self, case: Case, *, patch: Patch | None = None, tries: int = 1) -> Outcome:
        self.runs.append((case.replay, patch))
        fell = self._true if patch is None else self._mutated.pop(0)
        judgements = [ImageJudgement(1, True, Judgement(id_, id_, 1, [Finding("found")])) for id_ in fell or ()]
        status = Status.INCONCLUSIVE if fell is None else Status.VIOLATION if fell else Status.PASS
        return Outcome(case, Verdict(status, judgements=judgements), None, 0.1)

    async def let_go(self, patch: Patch) -> None:
        self.let_go_of.append(patch)


def scripted(true: Sequence[str] | None, *mutated: Sequence[str] | None) -> tuple[ScriptedLab, Lab]:
    lab = ScriptedLab(true, *mutated)
    return lab, cast(Lab, lab)


SOME = BY_NAME["ack-before-store"]


async def test_caught_is_who_breaks_the_guarantee_it_names() -> None:
    script, lab = scripted([], ["G3", "G1"])
    found = await detect(SOME, lab)
    assert (found.caught, found.true_passes, found.proven, found.tries) == (True, True, True, 1)
    assert set(found.fell) == {"G1", "G3"}
    assert str(found).startswith("ack-before-store: caught by G1")
    assert script.runs[1] == ("meshforge-chaos mutants ack-before-store", SOME.patch)
    assert script.let_go_of == [SOME.patch]


@pytest.mark.parametrize("fell", [[], ["G3"], None], ids=["passes", "another falls", "inconclusive"])
async def test_a_survivor_is_who_does_not(fell: Sequence[str] | None) -> None:
    script, lab = scripted([], fell)
    found = await detect(SOME, lab)
    assert (found.caught, found.true_passes, found.proven) == (False, True, False)
    assert "survived: G1 had to fall" in str(found)
    assert script.let_go_of == [SOME.patch]


@pytest.mark.parametrize("true", [["G1"], None], ids=["falls", "inconclusive"])
async def test_nothing_is_said_where_the_true_protocol_does_not_pass(true: Sequence[str] | None) -> None:
    script, lab = scripted(true)
    found = await detect(SOME, lab)
    assert (found.caught, found.true_passes, found.proven, found.tries) == (False, False, False, 0)
    assert "says nothing" in str(found)
    assert [patch for _, patch in script.runs] == [None]


async def test_it_is_tried_until_it_is_caught() -> None:
    script, lab = scripted([], [], None, ["G1"], ["G1"])
    found = await detect(SOME, lab, tries=4)
    assert (found.proven, found.tries) == (True, 3)
    assert len(script.runs) == 4
    _, lab = scripted([], [], [])
    assert (await detect(SOME, lab, tries=2)).tries == 2


async def test_no_tries_at_all_are_refused() -> None:
    _, lab = scripted([])
    with pytest.raises(ValueError, match="tries is 0"):
        await detect(SOME, lab, tries=0)


async def test_bugs_of_one_case_share_its_true_run() -> None:
    case = SOME.case()
    of_case = [each for each in CATALOGUE if each.case() == case]
    assert len(of_case) > 1
    script, lab = scripted([], *(["G1"] for _ in of_case))
    noted: list[Mutant] = []
    found = await run_catalogue(of_case, lab, lambda detection: noted.append(detection.mutant))
    assert [detection.mutant for detection in found] == of_case
    assert {each.name for each in noted} == {each.name for each in of_case}
    assert [patch for _, patch in script.runs].count(None) == 1
    assert len(script.let_go_of) == len(of_case)


async def test_another_case_has_a_true_run_of_its_own() -> None:
    script, lab = scripted([])
    true_runs = TrueRuns(lab)
    for name in ("first", "second", "first"):
        await true_runs.of(attrs.evolve(SOME.case(), name=name))
    assert len(script.runs) == 2


# -- real runs -----------------------------------------------------------------------------------------------------


def fork_servers() -> int:
    """How many fork servers this process has."""
    mine = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    return sum(b"chaos.forkserver" in Path(f"/proc/{pid}/cmdline").read_bytes() for pid in mine)


async def test_real_bugs_are_caught_and_their_fork_servers_end() -> None:
    """One caught on the corpse, one at the end, and one that is none."""
    harmless = mutant(
        "harmless",
        "",
        "G1",
        "Says the same in other words.",
        BY_NAME["duplicate-silent"].case,
        Edit("meshforge_trio.protocol", "        session.settle(plan)\n", "        session.settle(plan=plan)\n"),
    )
    async with open_lab(2) as lab:
        chosen = [BY_NAME["publish-before-store"], BY_NAME["duplicate-silent"], harmless]
        stored, silent, none = await run_catalogue(chosen, lab)
        assert stored.proven, f"{stored}\n{stored.outcome}\n{stored.truth}"
        assert silent.proven, f"{silent}\n{silent.outcome}\n{silent.truth}"
        assert none.true_passes, str(none.truth)
        assert none.outcome.status is Status.PASS, str(none.outcome)
        assert not none.proven
        assert fork_servers() == 1
    assert fork_servers() == 0


async def test_a_case_that_the_true_protocol_fails_says_nothing() -> None:
    """Its plan names a hit that never comes."""

    def never() -> Case:
        case = BY_NAME["answer-only-with-a-commit"].case()
        rule = BY_NAME["ack-before-store"].case().plan.rules[0]
        return attrs.evolve(case, plan=attrs.evolve(case.plan, rules=[attrs.evolve(rule, nth=1000)]))

    factory: Callable[[], Case] = never
    async with open_lab(1) as lab:
        found = await detect(attrs.evolve(SOME, case=factory), lab)
    assert found.truth.status is Status.INCONCLUSIVE
    assert not found.true_passes
    assert not found.proven
