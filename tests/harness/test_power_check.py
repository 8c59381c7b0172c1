"""Power loss from end to end: recorded in one process, judged in another; the command line; the gate."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
import structlog

from chaos.case import Case
from chaos.certificate import certificate, certificate_text
from chaos.cli import cli, ending
from chaos.cli.gate import target_of
from chaos.gate import run_gate
from chaos.mutants.catalogue import CATALOGUE, power
from chaos.mutants.detect import detect
from chaos.mutants.mutant import Mutant
from chaos.mutants.patch import Edit, Patch
from chaos.power.check import Checked, check_power
from chaos.power.ground import power_case, with_short_log, workload
from chaos.power.result import Broken, PowerResult
from chaos.power.tape import load_tape
from chaos.project import Project
from chaos.rows import read_store
from chaos.verdict import Status

from .drill import PaperLab
from .test_gate import SMALL, TARGET, Notes

BY_NAME = {mutant.name: mutant for mutant in power.MUTANTS}
PASSED = PowerResult(distinct=7_000, promises=140, examined={"G1": 5})
LOST = attrs.evolve(
    PASSED, bad=3, broken=[Broken("G1", "c1 was ACKed, and is not decided", 5, "5:none", "power lost after step 5")]
)


# -- the case ------------------------------------------------------------------------------------------------------


def test_a_seed_makes_the_same_workload_each_time() -> None:
    bodies = [[sent.body for sent in workload(seed)] for seed in (0, 0, 1)]
    assert bodies[0] == bodies[1] != bodies[2]
    assert {sent.phase for sent in workload(0)} == {"main", "after"}
    assert power_case(7).replay == "meshforge-chaos power --seed 7"


def test_a_short_log_goes_with_whatever_bug_is_planted() -> None:
    bug = BY_NAME["synchronous-normal"].patch
    assert with_short_log(bug).edits == (*bug.edits, *with_short_log(None).edits)


# -- real runs -----------------------------------------------------------------------------------------------------


async def test_a_real_run_passes_and_the_planted_bugs_are_caught() -> None:
    """What recommends itself as faster loses what was ACKed; a checkpoint that is not synced breaks the file."""
    lab = PaperLab()
    truth = await check_power(power_case())
    assert truth.result.status is Status.PASS, str(truth.outcome)
    for name, guarantee in (("synchronous-normal", "G1"), ("checkpoint-unsynced", "G5")):
        mutant = BY_NAME[name]
        found = await check_power(mutant.case(), patch=mutant.patch, until=mutant.guarantee)
        assert mutant.guarantee == guarantee
        assert guarantee in found.result.fell, str(found.outcome)
    assert not lab.asked


async def test_a_recording_that_loses_something_is_kept(tmp_path: Path, says: Says) -> None:
    bug = BY_NAME["synchronous-normal"]
    kept = tmp_path / "reports/power.jsonl"
    found = await check_power(bug.case(), patch=bug.patch, until="G1", keep=kept)
    assert found.tape == kept
    assert load_tape(kept).told["app"] == "chaos.agents:counter_and_audit"
    broken = next(broken for broken in found.result.broken if broken.guarantee == "G1")
    said = says("power", "--tape", kept, "--image", broken.recipe, "--to", tmp_path / "image")
    assert said.code == 0
    assert said.out.splitlines()[0] == str(tmp_path / "image/store.db")
    key = broken.what.split("key '")[1].split("'")[0]
    assert key not in {record.key for record in read_store(tmp_path / "image/store.db").keys}


async def test_what_cannot_be_recorded_says_why() -> None:
    found = await check_power(attrs.evolve(power_case(), app="no.such.module:app"))
    assert found.result.status is Status.INCONCLUSIVE
    assert "nothing was recorded: chaos.power.record ended with 1" in found.result.reasons[0]
    assert "no.such.module" in found.result.reasons[0]


async def test_a_patch_that_does_not_fit_is_no_catch() -> None:
    patch = Patch("unfit", [Edit("meshforge_trio.store.sqlite", "no such line\n", "pass\n")])
    found = await check_power(power_case(), patch=patch, until="G1")
    assert found.result.status is Status.INCONCLUSIVE
    assert "adapt the patch to the source" in found.result.reasons[0]


# -- planted bugs --------------------------------------------------------------------------------------------------


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What `detect` asks of power loss, answered at once: a bug breaks what it names."""
    asked: list[tuple[str, str]] = []

    async def answer(case: Case, *, patch: Patch | None = None, until: str = "") -> Checked:
        asked.append((patch.name if patch else "", until))
        return Checked(case, PASSED if patch is None else LOST, None, 0.1)

    monkeypatch.setattr("chaos.mutants.detect.check_power", answer)
    return asked


async def test_such_a_bug_is_caught_by_crash_images_and_not_by_a_run(checked: list[tuple[str, str]]) -> None:
    lab = PaperLab()
    found = await detect(BY_NAME["synchronous-normal"], lab)
    assert (found.proven, found.fell) == (True, ("G1",))
    assert checked == [("", ""), ("synchronous-normal", "G1")]
    assert lab.asked == []


async def test_another_guarantee_is_no_catch(checked: list[tuple[str, str]]) -> None:
    found = await detect(BY_NAME["checkpoint-unsynced"], PaperLab())
    assert (found.proven, found.true_passes) == (False, True)
    assert "survived: G5 had to fall, G1 fell" in str(found)


def test_they_are_in_the_catalogue() -> None:
    def of(mutants: Sequence[Mutant]) -> set[str]:
        return {mutant.name for mutant in mutants if mutant.proof == "power"}

    assert of(CATALOGUE) == of(power.MUTANTS) == BY_NAME.keys()


# -- the gate ------------------------------------------------------------------------------------------------------


@pytest.fixture
def powerless(monkeypatch: pytest.MonkeyPatch) -> Callable[[PowerResult], None]:
    """Sets what the gate's power loss comes to."""

    def answer_with(result: PowerResult) -> None:
        async def answer(case_of: Callable[[int], Case] | None, seeds: Sequence[int], found: dict[int, Any]) -> None:
            found.update(dict.fromkeys(seeds, result) if case_of is not None else {})

        monkeypatch.setattr("chaos.gate.check_seeds", answer)

    return answer_with


async def gated(result: PowerResult, powerless: Callable[[PowerResult], None]) -> Any:
    powerless(result)
    return await run_gate(attrs.evolve(TARGET, power=power_case), SMALL, PaperLab(), Notes())


async def test_the_certificate_tells_of_crash_images(powerless: Callable[[PowerResult], None]) -> None:
    gate = await gated(PASSED, powerless)
    assert gate.status is Status.PASS
    told = certificate(gate)
    assert (told["power"][0]["seed"], told["power"][0]["distinct"]) == (0, 7_000)
    assert "not power loss" not in told["crash_class"]
    assert "\npower loss    7000 crash images, 0 bad; 140 promises to keep\n" in certificate_text(told)


async def test_a_promise_that_an_image_breaks_is_a_violation(powerless: Callable[[PowerResult], None]) -> None:
    gate = await gated(LOST, powerless)
    assert gate.status is Status.VIOLATION
    text = certificate_text(certificate(gate))
    assert "power loss    7000 crash images, 3 bad" in text
    assert "G1 broken, seed 0: c1 was ACKed, and is not decided" in text


async def test_too_few_images_are_no_pass(powerless: Callable[[PowerResult], None]) -> None:
    gate = await gated(attrs.evolve(PASSED, reasons=["too few\nof them"]), powerless)
    assert gate.status is Status.INCONCLUSIVE
    assert "power loss, seed 0: too few" in gate.reasons


async def test_without_a_case_power_is_not_lost() -> None:
    gate = await run_gate(TARGET, SMALL, PaperLab(), Notes())
    assert gate.power == {}
    assert "power loss    " not in certificate_text(certificate(gate))


def test_the_project_s_own_gate_loses_power(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert target_of(Project()).power is power_case


# -- the command ---------------------------------------------------------------------------------------------------


@attrs.frozen
class Said:
    """What a command came to."""

    code: int
    out: str
    err: str


Says = Callable[..., Said]


@pytest.fixture
def says(capsys: pytest.CaptureFixture[str]) -> Iterator[Says]:
    """Runs a command in this process."""

    def say(*arguments: object) -> Said:
        capsys.readouterr()
        code = ending(cli, "meshforge-chaos", [str(argument) for argument in arguments])
        return Said(code, *capsys.readouterr())

    yield say
    structlog.reset_defaults()


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[PowerResult, Path | None], None]:
    """Sets what the command's check comes to."""

    def answer_with(result: PowerResult, tape: Path | None) -> None:
        async def answer(case: Case, **_: Any) -> Checked:
            return Checked(case, result, tape, 0.1)

        monkeypatch.setattr("chaos.cli.power.check_power", answer)

    return answer_with


def test_it_says_what_it_found(says: Says, command: Callable[[PowerResult, Path | None], None]) -> None:
    command(PASSED, None)
    said = says("power")
    assert said.code == 0
    assert "pass  power loss: 0 crash images, 7000 distinct" in said.out
    assert "G1         holds" in said.out


def test_it_says_what_broke_and_how_to_see_it(
    says: Says, command: Callable[[PowerResult, Path | None], None], tmp_path: Path
) -> None:
    command(LOST, tmp_path / "a b.jsonl")
    said = says("power")
    assert said.code == 1
    assert "G1 broken: c1 was ACKed, and is not decided (image 5:none, power lost after step 5)" in said.out
    assert f"meshforge-chaos power --tape '{tmp_path}/a b.jsonl' --image 5:none --to DIR" in said.out


def test_it_tells_machines_the_same(says: Says, command: Callable[[PowerResult, Path | None], None]) -> None:
    command(attrs.evolve(PASSED, reasons=["few"]), None)
    said = says("power", "--json")
    assert said.code == 2
    told = json.loads(said.out)
    assert (told["status"], told["distinct"], told["reasons"], told["tape"]) == ("inconclusive", 7_000, ["few"], None)


def test_bad_input_is_wrong_usage(says: Says, tmp_path: Path) -> None:
    nothing = tmp_path / "nothing.jsonl"
    nothing.write_text("nothing")
    for arguments, why in (
        (["--image", "1:none"], "--image needs --tape"),
        (["--tape", nothing, "--image", "1:none", "--to", tmp_path], "is no tape, or a damaged one"),
        (["--tape", tmp_path / "missing"], "does not exist"),
    ):
        said = says("power", *arguments)
        assert (said.code, said.out) == (3, "")
        assert why in said.err
