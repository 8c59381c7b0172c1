"""The gate: what it runs, and when it lets nothing through."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest

from chaos.builtin import CRASH_MATRIX
from chaos.case import Case
from chaos.certificate import certificate
from chaos.cli.gate import target_of
from chaos.gate import Gate, Target, judged, plan_for, run_gate
from chaos.lab import Outcome
from chaos.mutants.catalogue import CATALOGUE
from chaos.mutants.detect import Detection
from chaos.mutants.patch import Patch
from chaos.plan import ALLOWED, kinds_at, parse_plan
from chaos.profiles import PROFILES, Profile
from chaos.project import Project, ProjectError
from chaos.scenario import ScenarioError
from chaos.sweep import Fixed
from chaos.tally import Cell, cells
from chaos.verdict import Status
from meshforge_trio.points import Point

from .drill import PaperLab, bug, happens, small_scenario, twice

SMALL = Profile("small", (0,), (1, 64), (Point.RECEIVED, Point.AFTER_STORE), ("worker",), 10, 5.0)
BASE = small_scenario("crash-matrix")
TARGET = Target(BASE, mutants=[bug("forgets", "G1"), bug("doubles", "G2")])


class Notes:
    """Who watches."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.noted: list[Outcome] = []
        self.bugs: list[str] = []

    def stage(self, name: str) -> None:
        self.stages.append(name)

    def note(self, outcome: Outcome) -> None:
        self.noted.append(outcome)

    def caught(self, detection: Detection) -> None:
        self.bugs.append(detection.mutant.name)


async def gated(target: Target = TARGET, lab: PaperLab | None = None, profile: Profile = SMALL) -> Gate:
    return await run_gate(target, profile, lab or PaperLab(), Notes())


def broken(case: Case, patch: Patch | None, *, when: str, fell: Sequence[str] = ("G2",)) -> Outcome:
    """The protocol breaks under the rule `when`; a bug breaks what it names."""
    if patch is not None:
        return happens(case, fell=[case.name.rpartition("-")[2]])
    return twice(case, fell=fell if any(str(rule) == when for rule in case.plan.rules) else ())


# -- what is run ---------------------------------------------------------------------------------------------------


async def test_everything_passes() -> None:
    lab = PaperLab()
    gate = await gated(lab=lab)
    assert (gate.status, gate.reasons, gate.missing, gate.violations) == (Status.PASS, [], [], [])
    assert [detection.proven for detection in gate.detections] == [True, True]
    assert gate.tally.kills == sum(stage.tally.kills for stage in gate.stages) > SMALL.kills_min
    assert {str(case.plan) for case, _ in lab.asked} >= {
        "worker#1:after_ack@2=kill",
        "worker#1:after_store@1=kill; worker#2:in_recovery@2=kill",
        "worker#1:before_store@1=kill; worker#2:in_attempt@1=kill",
        "worker#1:received@1=kill; worker#2:after_store@1=kill",
        "worker#1:before_mark@1=stop",
        "worker#1:in_store@1=full(0.3)",
    }


async def test_both_batches_are_swept() -> None:
    lab = PaperLab()
    await gated(lab=lab)
    batches = {case.engine["batch"] for case, _ in lab.asked if str(case.plan) == "worker#1:in_publish@1=kill"}
    assert batches == {1, 64}


async def test_regressions_run_before_anything_else() -> None:
    lab = PaperLab()
    once = small_scenario("once", Fixed(["nats:received@1=restart"]))
    script = small_scenario("script", Fixed(["nats:received@1=kill"]))
    target = attrs.evolve(TARGET, first=[once], scripts=[script, BASE], regressions=["client:received@1=resend"])
    gate = await gated(target, lab)
    assert sorted(lab.plans[:2]) == ["client:received@1=resend", "nats:received@1=restart"]
    assert [(stage.kind, stage.name) for stage in gate.stages] == [
        ("regression", "regressions of crash-matrix"),
        ("regression", "once"),
        ("sweep", "kill at every hit (crash-matrix)"),
        ("sweep", "kill the successor (crash-matrix)"),
        ("sweep", "pairs of kills (crash-matrix)"),
        ("scenario", "script"),
        ("sweep", "every other action (crash-matrix)"),
    ]


async def test_each_seed_has_its_stages() -> None:
    seeds: list[int] = []

    def workload(seed: int) -> Sequence[Any]:
        seeds.append(seed)
        return BASE.workload(seed)

    gate = await gated(
        attrs.evolve(TARGET, base=attrs.evolve(BASE, workload=workload)), profile=attrs.evolve(SMALL, seeds=(0, 7))
    )
    names = [stage.name for stage in gate.stages]
    assert "kill at every hit (crash-matrix, seed 7)" in names
    assert len(names) == len(set(names))
    assert set(seeds) == {0, 7}


async def test_what_scripts_have_reached_is_not_tried_again() -> None:
    lab = PaperLab()
    stops = [f"worker#1:{cell.place}@1=stop" for cell in cells("worker") if cell.action == "stop"]
    gate = await gated(attrs.evolve(TARGET, scripts=[small_scenario("zombies", Fixed(stops))]), lab)
    assert gate.status is Status.PASS
    left = gate.stages[-1].searches[0]
    assert not [plan for plan in left.plans if "stop" in plan]  # type: ignore[attr-defined]
    assert [plan for plan in left.plans if "full" in plan]  # type: ignore[attr-defined]


async def test_a_quick_one_kills_at_the_first_hits_of_every_point_and_does_nothing_else() -> None:
    lab = PaperLab()
    gate = await gated(lab=lab, profile=PROFILES["quick"])
    assert (gate.status, gate.reasons) == (Status.PASS, [])
    rules = {str(rule) for case, _ in lab.asked for rule in case.plan.rules}
    assert {f"worker#1:{point}@{nth}=kill" for point in Point if "kill" in kinds_at(point) for nth in (1, 2)} <= rules
    assert not [rule for rule in rules if not rule.endswith("=kill") or "@3" in rule]
    assert gate.stages[0].name == "kill at the first 2 hits (crash-matrix)"
    assert certificate(gate)["crash_class"].startswith("process crash (SIGKILL at a named point); of other faults what")


@pytest.mark.parametrize("cell", cells(), ids=str)
def test_every_cell_has_a_plan_that_can_be_run(cell: Cell) -> None:
    rule = parse_plan(plan_for(cell)).rules[-1]
    assert (rule.actor, rule.place, rule.action) == (cell.actor, cell.place, cell.action)


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda profile: profile.name)
def test_profiles_name_what_exists(profile: Profile) -> None:
    assert set(profile.actors) <= set(ALLOWED)
    assert {1, 64} <= set(profile.batches) or profile.name == "quick"
    assert profile.kills_min >= (40 if profile.name == "quick" else 300)


# -- what fails ----------------------------------------------------------------------------------------------------


async def test_a_violation_is_made_small_and_run_again() -> None:
    when = "worker#1:in_publish@1=kill"
    gate = await gated(lab=PaperLab(lambda case, patch: broken(case, patch, when=when)))
    assert gate.status is Status.VIOLATION
    found = gate.violations[0]
    assert (found.guarantee, found.same, found.times) == ("G2", 3, 3)
    assert str(found.shrunk.case.plan) == when
    assert len(gate.violations) == 1


async def test_one_of_each_kind_of_violation_is_made_small() -> None:
    def answer(case: Case, patch: Patch | None) -> Outcome:
        if patch is None and case.plan.rules:
            return twice(case, fell=["G1" if case.plan.rules[0].place == "received" else "G2"])
        return broken(case, patch, when="")

    target = attrs.evolve(TARGET, scripts=[small_scenario("other", Fixed(["nats:received@1=kill"]))])
    gate = await gated(target, PaperLab(answer))
    kinds = {(found.first.case.name, found.guarantee) for found in gate.violations}
    assert kinds == {("crash-matrix", "G1"), ("crash-matrix", "G2"), ("other", "G1")}


async def test_a_bug_that_survives_is_a_violation() -> None:
    gate = await gated(
        lab=PaperLab(lambda case, patch: twice(case, fell=["G1"] if patch and patch.name == "forgets" else ()))
    )
    assert gate.status is Status.VIOLATION
    assert [judged(detection) for detection in gate.detections] == [Status.PASS, Status.VIOLATION]


async def test_a_bug_that_breaks_something_else_survives() -> None:
    gate = await gated(lab=PaperLab(lambda case, patch: twice(case, fell=["G1"] if patch else ())))
    assert [judged(detection) for detection in gate.detections] == [Status.PASS, Status.VIOLATION]


async def test_a_bug_that_the_true_protocol_shares_is_a_violation() -> None:
    def answer(case: Case, patch: Patch | None) -> Outcome:
        return twice(case, fell=["G2"] if case.name.endswith("G2") else ["G1"] if patch else ())

    gate = await gated(lab=PaperLab(answer))
    assert [judged(detection) for detection in gate.detections] == [Status.PASS, Status.VIOLATION]
    assert gate.status is Status.VIOLATION


@pytest.mark.parametrize("planted", [True, False], ids=["with the bug", "without it"])
async def test_a_bug_that_cannot_be_judged_is_inconclusive(planted: bool) -> None:
    def answer(case: Case, patch: Patch | None) -> Outcome:
        if case.name.endswith("G2") and (patch is not None) is planted:
            return twice(case, reasons=["the fork server has died"])
        return broken(case, patch, when="")

    gate = await gated(lab=PaperLab(answer))
    assert gate.status is Status.INCONCLUSIVE
    assert [reason.split(":")[0] for reason in gate.reasons] == ["planted bug not judged"]


async def test_without_a_bug_nothing_is_shown() -> None:
    gate = await gated(attrs.evolve(TARGET, mutants=[]))
    assert gate.status is Status.INCONCLUSIVE
    assert gate.reasons == ["no bug was planted, so nothing shows that one would be caught"]


async def test_a_point_that_is_never_reached_is_inconclusive() -> None:
    gate = await gated(lab=PaperLab(_never_raises))
    assert gate.status is Status.INCONCLUSIVE
    assert {cell.place for cell in gate.missing} == {"before_hold", "after_hold"}
    assert gate.reasons[0].startswith("never reached: 8 of 75: worker kill at before_hold, ")


async def test_somebody_elses_workload_need_not_get_everywhere() -> None:
    gate = await gated(attrs.evolve(TARGET, strict=False), PaperLab(_never_raises))
    assert gate.status is Status.PASS
    assert gate.missing == []
    assert set(gate.excused.values()) == {"no run of this workload passes the point"}
    assert len(gate.excused) == 8


async def test_a_point_that_is_passed_and_where_nothing_fires_is_inconclusive_for_everybody() -> None:
    def answer(case: Case, patch: Patch | None) -> Outcome:
        unhit = [str(rule) for rule in case.plan.rules if rule.action == "stop" or rule.nth > 2]
        return twice(case, points=list(Point), unhit=unhit) if patch is None else broken(case, patch, when="")

    gate = await gated(attrs.evolve(TARGET, strict=False), PaperLab(answer))
    assert gate.status is Status.INCONCLUSIVE
    assert {cell.action for cell in gate.missing} == {"stop"}


def test_a_broker_that_may_have_lost_everything_is_spared_somebody_elses_marks() -> None:
    profile = attrs.evolve(SMALL, actors=("nats",))
    ours, theirs = (Gate(profile, attrs.evolve(TARGET, strict=strict)).wanted for strict in (True, False))
    assert {cell.action for cell in ours} - {cell.action for cell in theirs} == {"rollback", "truncate", "flip", "rot"}


async def test_reasons_may_be_given_for_points() -> None:
    reasons = dict.fromkeys(("before_hold", "after_hold"), "none of ours raises")
    gate = await gated(attrs.evolve(TARGET, unreached=reasons), PaperLab(_never_raises))
    assert gate.status is Status.PASS
    assert set(gate.excused.values()) == {"none of ours raises"}


async def test_frames_that_never_pass_are_excused_for_somebody_else_only() -> None:
    def answer(case: Case, patch: Patch | None) -> Outcome:
        late = [str(rule) for rule in case.plan.rules if rule.nth > 2 or rule.place == "nak"]
        return twice(case, unhit=late) if patch is None else broken(case, patch, when="")

    profile = attrs.evolve(SMALL, actors=("proxy",))
    own = await gated(TARGET, PaperLab(answer), profile)
    assert {cell.place for cell in own.missing} == {"nak"}
    other = await gated(attrs.evolve(TARGET, strict=False), PaperLab(answer), profile)
    assert other.status is Status.PASS
    assert set(other.excused.values()) == {"the run that waited for it ended without it"}


def _never_raises(case: Case, patch: Patch | None) -> Outcome:
    if patch is not None:
        return broken(case, patch, when="")
    return twice(case, unhit=[str(rule) for rule in case.plan.rules if rule.nth > 2 or "hold" in rule.place])


async def test_too_few_kills_are_inconclusive() -> None:
    gate = await gated(attrs.evolve(TARGET, kills_min=100_000))
    assert gate.status is Status.INCONCLUSIVE
    assert gate.reasons == [f"{gate.tally.kills} workers were killed, 100000 is the least"]


async def test_a_run_that_shows_nothing_is_inconclusive() -> None:
    def answer(case: Case, patch: Patch | None) -> Outcome:
        reasons = ["nats-server did not start\nand more"] if "in_publish@1" in str(case.plan) else []
        return twice(case, reasons=reasons) if patch is None else broken(case, patch, when="")

    gate = await gated(lab=PaperLab(answer))
    assert gate.status is Status.INCONCLUSIVE
    assert any("runs are inconclusive: nats-server did not start" in reason for reason in gate.reasons)
    assert "never reached: 2 of 75: worker kill at in_publish, worker stop at in_publish" in gate.reasons[-1]


async def test_a_stage_without_runs_is_inconclusive() -> None:
    gate = await gated(attrs.evolve(TARGET, scripts=[small_scenario("empty")]))
    assert gate.reasons == ["empty: nothing was run"]
    assert gate.status is Status.INCONCLUSIVE


async def test_only_so_many_directories_are_kept(tmp_path: Path) -> None:
    def answer(case: Case, patch: Patch | None) -> Outcome:
        if patch is not None or not case.plan.rules:
            return broken(case, patch, when="")
        home = tmp_path / f"run-{len(lab.asked)}"
        home.mkdir()
        (home / "verdict.json").write_text("{}")
        return attrs.evolve(twice(case, fell=["G1"]), home=home)

    lab = PaperLab(answer)
    gate = await gated(lab=lab, profile=attrs.evolve(SMALL, shrink_s=0.0))
    assert gate.tally.runs[Status.VIOLATION] > 60
    # Thirty of those found, and the last of the runs again.
    assert len(list(tmp_path.iterdir())) == 31  # noqa: ASYNC240


# -- what there is to run ------------------------------------------------------------------------------------------


def test_without_a_word_the_projects_own_scripts_and_all_bugs_are_run(tmp_path: Path) -> None:
    _script(tmp_path / "scenarios/one.py", "one")
    _script(tmp_path / "scenarios/crash_matrix.py", "crash-matrix")
    _script(tmp_path / "scenarios/regressions/once.py", "once")
    (tmp_path / "scenarios/_shared.py").write_text("SCENARIO = None")
    (tmp_path / "scenarios/shop.py").write_text("agents = 1")
    target = target_of(Project(scenarios=tmp_path / "scenarios"))
    assert target.strict
    assert [script.name for script in target.scripts] == ["crash-matrix", "one"]
    assert [script.name for script in target.first] == ["once"]
    assert target.base is target.scripts[0]
    assert target.mutants is CATALOGUE
    assert target.kills_min is None


def test_without_a_script_of_that_name_the_built_in_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert target_of(Project(scenarios=tmp_path)).base is CRASH_MATRIX


def test_somebody_elses_agents_are_swept_and_a_few_bugs_planted(tmp_path: Path) -> None:
    app = "chaos.agents:counter_only"
    (tmp_path / "work.jsonl").write_text('{"agent": "counter", "action": "add"}\n')
    target = target_of(Project(app, tmp_path / "work.jsonl", tmp_path, regressions=("proxy:ack@1=swallow",)))
    assert (target.base.app, target.strict, target.kills_min) == (app, False, 40)
    assert [mutant.guarantee for mutant in target.mutants] == ["G1", "G2", "G3", "G4", "G5"]
    assert target.regressions == ("proxy:ack@1=swallow",)


@pytest.mark.parametrize("project", [Project(app="own:app"), Project(workload=Path("work.jsonl"))])
def test_an_app_needs_its_workload(project: Project) -> None:
    with pytest.raises(ProjectError, match="go together"):
        target_of(project)


def test_a_script_that_cannot_be_imported_stops_the_gate(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("SCENARIO = nothing")
    with pytest.raises(ScenarioError, match="NameError"):
        target_of(Project(scenarios=tmp_path))


def _script(path: Path, name: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "import attrs\nfrom chaos.builtin import CRASH_MATRIX\n"
        f"SCENARIO = attrs.evolve(CRASH_MATRIX, name={name!r}, source='')\n"
    )
