"""Scenarios: data that becomes cases; scripts that hold one, and files that do not."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest

from chaos.case import Case
from chaos.checkers import Checker
from chaos.evidence import Sent
from chaos.lab import Lab, Outcome
from chaos.plan import parse_plan
from chaos.scenario import CaseOf, Note, Scenario, ScenarioError, load_scenario, run_scenario
from chaos.verdict import Status, Verdict
from chaos.workload import SCOPE, command

PLAN = parse_plan("worker#1:after_store@2=kill")
SCRIPT = """
import attrs
from chaos.scenario import Scenario
from {module} import NAME


@attrs.frozen
class Amount:
    amount: int


SCENARIO = Scenario(NAME, "About.", "a:b", lambda seed: [], [])
"""


def workload(seed: int) -> Sequence[Sent]:
    return [Sent(command(SCOPE, "add", seed + 1, {"amount": 1}))]


class OnePlan:
    """A search that tries one plan."""

    def __str__(self) -> str:
        return "one plan"

    async def explore(self, case_of: CaseOf, lab: Lab, note: Note) -> None:
        note(await lab.run(case_of(PLAN, 8, False)))


class Bench:
    """Stands in for a laboratory."""

    async def run(self, case: Case) -> Outcome:
        return Outcome(case, Verdict(Status.PASS), None, 0.1)


def scenario(**more: object) -> Scenario:
    return Scenario("two words", "About.", "a:b", workload, [OnePlan(), OnePlan()], **more)  # type: ignore[arg-type]


# -- cases ---------------------------------------------------------------------------------------------------------


def test_a_case_has_everything_of_its_scenario() -> None:
    mine = Checker("mine", "Mine.", lambda evidence: [1])
    made = scenario(
        engine={"batch": 1, "ack_wait_s": 3.0},
        retry={"limit": 2},
        limit=2,
        workspaces=("a/b", "c/d"),
        lease_ttl_s=0.5,
        deadline_s=9.0,
        paced=True,
        mortal=True,
        claims=("G1",),
        invariants=[mine],
    ).case(PLAN, batch=8, must_fire=False, seed=4, record_frames=True)
    assert made.engine == {"batch": 8, "ack_wait_s": 3.0}
    assert (made.app, made.name, made.plan, made.retry, made.limit) == ("a:b", "two words", PLAN, {"limit": 2}, 2)
    assert (made.workspaces, made.lease_ttl_s, made.deadline_s) == (("a/b", "c/d"), 0.5, 9.0)
    assert (made.paced, made.mortal, made.must_fire, made.record_frames) == (True, True, False, True)
    assert (made.claims, made.invariants) == (("G1",), [mine])
    assert [sent.command.id for sent in made.sent] == ["c5"], "of its seed"


def test_a_case_knows_the_command_that_runs_it_again() -> None:
    again = "--plan 'worker#1:after_store@2=kill'"
    assert scenario().case(PLAN).replay == f"meshforge-chaos run 'two words' --batch 64 {again}"
    named = scenario(source="scenarios/a.py").case(PLAN, batch=1, seed=3)
    assert named.replay == f"meshforge-chaos run scenarios/a.py --batch 1 --seed 3 {again}"
    assert named.source == "scenarios/a.py"


async def test_every_search_is_explored_and_every_outcome_noted() -> None:
    noted: list[Outcome] = []
    outcomes = await run_scenario(scenario(), cast("Lab", Bench()), noted.append, seed=6)
    assert outcomes == noted
    assert [(str(o.case.plan), o.case.engine["batch"], o.case.must_fire) for o in outcomes] == [
        (str(PLAN), 8, False)
    ] * 2
    assert [sent.command.id for o in outcomes for sent in o.case.sent] == ["c7", "c7"]
    assert len(await run_scenario(scenario(), cast("Lab", Bench()))) == 2


# -- scripts -------------------------------------------------------------------------------------------------------


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The place of a script, beside a module that it may import."""
    (tmp_path / "project" / "mine").mkdir(parents=True)
    (tmp_path / "project" / "mine" / "beside.py").write_text("NAME = 'beside'\n")
    (tmp_path / "project" / "above.py").write_text("NAME = 'above'\n")
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setattr(sys, "path", [*sys.path])
    for module in ("beside", "above", "scenario_a_script"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    return tmp_path / "project" / "mine" / "a_script.py"


@pytest.mark.parametrize("module", ["beside", "above"])
def test_a_script_may_import_what_lies_beside_it_and_in_the_working_directory(script: Path, module: str) -> None:
    script.write_text(SCRIPT.format(module=module))
    loaded = load_scenario(script)
    assert (loaded.name, loaded.source) == (module, "mine/a_script.py")
    assert load_scenario(Path("mine/a_script.py")).source == "mine/a_script.py"
    assert sys.path.count(str(script.parent)) == 1


def test_a_script_elsewhere_is_named_by_its_whole_path(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script.write_text(SCRIPT.format(module="beside"))
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert load_scenario(script).source == str(script)
    script.write_text(script.read_text() + "\nimport attrs\nSCENARIO = attrs.evolve(SCENARIO, source='its own')\n")
    assert load_scenario(script).source == "its own"


def test_a_script_whose_name_has_a_space_is_quoted(script: Path) -> None:
    spaced = script.with_name("two words.py")
    spaced.write_text(SCRIPT.format(module="beside"))
    assert load_scenario(spaced).source == "'mine/two words.py'"


def test_what_is_no_script_is_refused(script: Path) -> None:
    def refused(path: Path, why: str) -> None:
        with pytest.raises(ScenarioError, match=why) as caught:
            load_scenario(path)
        assert path.name in str(caught.value)

    refused(script, "there is no scenario script")
    refused(script.parent, "there is no scenario script")
    text = script.with_suffix(".txt")
    text.write_text(SCRIPT.format(module="beside"))
    refused(text, "is no Python file")
    for content, why in (
        ("", "has no SCENARIO"),
        ("SCENARIO = 5\n", "has no SCENARIO"),
        ("this is no Python\n", "cannot be imported: SyntaxError"),
        ("import nowhere_at_all\n", "cannot be imported: ModuleNotFoundError"),
        ("raise RuntimeError('not today')\n", "cannot be imported: RuntimeError: not today"),
        ("raise SystemExit(0)\n", "cannot be imported: SystemExit"),
        ("SCENARIO = \0\n", "cannot be imported"),
    ):
        script.write_text(content)
        refused(script, why)
