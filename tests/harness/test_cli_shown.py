"""What the command line shows of outcomes, made up so that every kind of it comes up."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import structlog
import trio
from rich.console import Console

from chaos.builtin import CRASH_MATRIX
from chaos.case import Case
from chaos.cli import cli, ending
from chaos.cli.live import Board
from chaos.gate import Target
from chaos.lab import Outcome
from chaos.mutants.patch import Patch
from chaos.plan import parse_plan, plan_to_json
from chaos.scenario import Search
from chaos.sweep import Fixed

from .drill import PaperLab, bug, case_of, happens, twice
from .report_world import failing_run
from .test_gate import SMALL, TARGET, broken

KILL = "worker#1:after_store@1=kill"


@attrs.frozen
class Said:
    """What a command came to."""

    code: int
    out: str
    err: str


Says = Callable[..., Said]


@pytest.fixture
def lab() -> PaperLab:
    """The laboratory that commands work in; its `answer` may be set."""
    return PaperLab()


@pytest.fixture
def says(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, lab: PaperLab) -> Iterator[Says]:
    """Runs a command in this process, in `lab`."""

    def in_paper(order: object, work: Callable[..., Any]) -> Any:
        return trio.run(work, lab, Board())

    for module in ("gate", "mutants", "run", "rundir", "sweep"):
        monkeypatch.setattr(f"chaos.cli.{module}.in_lab", in_paper)

    def say(*arguments: object) -> Said:
        capsys.readouterr()
        code = ending(cli, "meshforge-chaos", [str(argument) for argument in arguments])
        return Said(code, *capsys.readouterr())

    yield say
    structlog.reset_defaults()


def breaking(case: Case, patch: Patch | None) -> Outcome:
    return twice(case, fell=["G2"])


def test_the_first_three_violations_are_told_in_full(says: Says, lab: PaperLab) -> None:
    lab.answer = breaking
    said = says("sweep", "--points", "received,after_store", "--batches", 64)
    assert said.code == 1
    assert said.out.count("G2 broken: G2 in one sentence.") == 3
    assert said.out.count("  replay: meshforge-chaos run crash-matrix --batch 64 --plan 'worker#1:") == 6
    assert "G2         broken in 6" in said.out


def test_what_is_too_much_is_counted(says: Says, lab: PaperLab) -> None:
    lab.answer = breaking
    said = says("sweep", "--batches", 64)
    runs = len(lab.asked)
    assert runs > 60
    assert said.out.count("  replay: ") == 50
    assert f"\nand {runs - 50} more\n" in said.out
    told = [line for line in said.err.splitlines() if line.startswith("violation: ")]
    assert len(told) == 20
    assert told[-1].endswith("G2; further ones are only counted")


def test_a_run_that_was_kept_has_its_page(says: Says, lab: PaperLab, tmp_path: Path) -> None:
    home = failing_run(tmp_path / "kept")
    lab.answer = lambda case, patch: attrs.evolve(happens(case, fell=["G4"]), home=home)
    said = says("run", "crash-matrix", "--plan", KILL)
    assert said.code == 1
    assert f"  page:   {home / 'report.html'}" in said.out
    assert (home / "report.html").exists()
    assert "What happened" in said.out


def test_a_run_without_a_history_is_told_all_the_same(says: Says, lab: PaperLab, tmp_path: Path) -> None:
    lab.answer = lambda case, patch: attrs.evolve(happens(case, reasons=["no server"]), home=tmp_path)
    said = says("run", "crash-matrix", "--plan", KILL)
    assert said.code == 2
    assert "reason: no server" in said.out
    assert "inconclusive: no server" in said.out


def test_words_of_runs_are_not_markup(says: Says, lab: PaperLab) -> None:
    lab.answer = lambda case, patch: happens(case, reasons=["[bold]no[/nothing] server"])
    said = says("run", "crash-matrix", "--plan", "")
    assert "[bold]no[/nothing] server" in said.out
    assert "[bold]no[/nothing] server" in said.err


def test_a_batch_alone(says: Says, lab: PaperLab) -> None:
    assert says("run", "crash-matrix", "--batch", 7).code == 0
    assert {case.engine["batch"] for case, _ in lab.asked} == {7}


def test_a_search_of_ones_own_need_not_know_of_batches(monkeypatch: pytest.MonkeyPatch, says: Says) -> None:
    class Once:
        def __str__(self) -> str:
            return "once"

        async def explore(self, case_of: Any, lab: Any, note: Any) -> None:
            note(await lab.run(case_of(case_of_nothing, 3, True)))

    case_of_nothing = case_of("").plan
    searches: list[Search] = [Once(), Fixed([KILL])]
    monkeypatch.setattr("chaos.cli.run.find_scenario", lambda name: attrs.evolve(CRASH_MATRIX, searches=searches))
    said = says("run", "anything", "--batch", 9)
    assert said.code == 0
    assert "2 runs: 2 pass" in said.out


def test_a_plan_that_breaks_nothing(says: Says) -> None:
    said = says("replay", KILL, "--times", 3)
    assert said.code == 0
    assert said.out == "no guarantee fell in 3 of 3\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "crash-matrix", "--report", "file/runs"),
        ("gate", "--junit", "file/junit.xml"),
        ("gate", "--certificate", "file/more/proof.json"),
        ("gate", "--json", "folder"),
        ("gate", "--report", "file/runs"),
        ("report", "run", "--html", "file/page.html"),
    ],
    ids=" ".join,
)
def test_where_nothing_can_be_written_nothing_is_run(
    says: Says, lab: PaperLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    failing_run(tmp_path / "run")
    said = says(*arguments)
    assert (said.code, said.out, lab.asked) == (3, "", [])
    assert "is no directory" in said.err or "is a directory" in said.err


def test_a_page_makes_its_folder(says: Says, tmp_path: Path) -> None:
    page = tmp_path / "pages/of/runs.html"
    assert says("report", failing_run(tmp_path / "run"), "--html", page).code == 0
    assert "G" in page.read_text()


def test_a_plan_from_a_file_in_a_folder(says: Says, lab: PaperLab, tmp_path: Path) -> None:
    (tmp_path / "plan.txt").write_text(KILL + "\n")
    (tmp_path / "plan.json").write_text(json.dumps(plan_to_json(parse_plan(KILL))))
    for given in (f"@{tmp_path / 'plan.txt'}", tmp_path / "plan.json"):
        assert says("replay", given).code == 0
        assert lab.plans.pop() == KILL


def test_a_plan_that_shows_nothing(says: Says, lab: PaperLab) -> None:
    lab.answer = lambda case, patch: happens(case, reasons=["never fired"])
    said = says("replay", KILL, "--times", 2)
    assert said.code == 2
    assert said.out.splitlines()[-2:] == ["no guarantee fell in 2 of 2", "inconclusive: 2 of 2"]


def test_a_plan_that_breaks_now_and_then(says: Says, lab: PaperLab) -> None:
    def answer(case: Case, patch: Patch | None) -> Outcome:
        return happens(case, fell=["G2"] if len(lab.asked) % 2 else [])

    lab.answer = answer
    said = says("replay", KILL, "--times", 5, "--json")
    told = json.loads(said.out)
    assert (said.code, told["fell"], told["times"]) == (1, {"G2": 3}, 5)


def test_pairs_and_actions_of_a_sweep(says: Says, lab: PaperLab) -> None:
    said = says("sweep", "--points", "received,in_store", "--action", "stop", "--action", "full", "--pairs")
    assert said.code == 0
    assert "worker#1:in_store@1=full(0.3)" in lab.plans
    assert "worker#1:received@1=stop" in lab.plans
    assert "worker#1:in_store@1=kill; worker#2:received@1=kill" in lab.plans
    assert "2 of 2 points and actions reached" in said.out


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch) -> Target:
    """What the gate runs on: a scenario and two bugs."""
    monkeypatch.setattr("chaos.cli.gate.PROFILES", {"pr": SMALL})
    monkeypatch.setattr("chaos.cli.gate.target_of", lambda project: TARGET)
    return TARGET


@pytest.mark.usefixtures("target")
def test_a_gate_that_passes_shows_its_certificate(says: Says) -> None:
    said = says("gate")
    assert said.code == 0
    assert said.out.startswith("CERTIFICATE: PASS\n")


@pytest.mark.usefixtures("target")
def test_a_gate_shows_the_smallest_plan_and_how_often_it_breaks(says: Says, lab: PaperLab) -> None:
    when = "worker#1:in_publish@1=kill"
    lab.answer = lambda case, patch: broken(case, patch, when=when)
    said = says("gate", "--json", "-")
    assert said.code == 1
    assert "G2 broke in 3 of 3 runs of the smallest plan" in said.err
    assert f"  replay: meshforge-chaos run crash-matrix --batch 1 --plan '{when}'" in said.err
    told = json.loads(said.out)
    assert told["verdict"] == "violation"
    assert {failure["broken"][0] for failure in told["failures"]} == {"G2"}


@pytest.mark.usefixtures("target")
def test_a_gate_that_shows_too_little_is_2(says: Says, lab: PaperLab) -> None:
    lab.answer = lambda case, patch: twice(case)
    said = says("gate")
    assert said.code == 1
    lab.answer = lambda case, patch: twice(case, reasons=["no server"] if patch else ())
    assert says("gate").code == 2


@pytest.mark.usefixtures("target")
def test_the_page_of_the_smallest_plan(
    says: Says, lab: PaperLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = failing_run(tmp_path / "kept")

    def answer(case: Case, patch: Patch | None) -> Outcome:
        outcome = broken(case, patch, when=KILL)
        return attrs.evolve(outcome, home=home) if case.record_frames and outcome.verdict.broken else outcome

    lab.answer = answer
    # All its runs have the same directory here, so none of them may take it away.
    monkeypatch.setattr("chaos.shrink.discard", lambda outcome: outcome)
    said = says("gate")
    assert f"  page:   {home / 'report.html'}" in said.out


def test_the_matrix_of_bugs(says: Says, lab: PaperLab, monkeypatch: pytest.MonkeyPatch) -> None:
    bugs = [bug("forgets", "G1"), bug("doubles", "G2", rule=""), bug("hides", "G3")]
    monkeypatch.setattr("chaos.mutants.catalogue.CATALOGUE", bugs)

    def answer(case: Case, patch: Patch | None) -> Outcome:
        fell = {"forgets": ["G1", "G4"], "doubles": ["G1"], "hides": []}[patch.name] if patch else []
        return happens(case, fell=fell, reasons=["stuck"] if patch and patch.name == "hides" else ())

    lab.answer = answer
    said = says("mutants")
    assert said.code == 1
    rows = {line.split()[0]: line.split() for line in said.out.splitlines() if line.split()[-1:] != []}
    assert rows["forgets"] == ["forgets", "R1", "●", "○", "caught"]
    assert rows["doubles"] == ["doubles", "-", "○", "-", "SURVIVED"]
    assert rows["hides"] == ["hides", "R1", "-", "not", "judged"]
    assert "1 of 3 planted bugs are caught" in said.out
    assert says("mutants", "hides").code == 2
    assert says("mutants", "forgets", "--keep").code == 0


def test_a_terminal_has_one_line_that_moves(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def terminal(**options: Any) -> Console:
        return Console(file=sys.stderr, force_terminal=True, width=100, **{**options, "stderr": False})

    monkeypatch.setattr("chaos.cli.live.Screen", terminal)
    board = Board()
    with board.shown():
        board.stage("a stage")
        board.note(happens(case_of(KILL)))
        board.note(happens(case_of(KILL), fell=["G2"]))
    shown = capsys.readouterr().err
    assert "a stage 2 runs  2 kills" in shown
    assert "1 violation" in shown
