"""The certificate: what was tried, what was seen, on which code."""

from __future__ import annotations

import subprocess
from pathlib import Path

import attrs
import orjson
import pytest

import meshforge_trio
from chaos.case import Case
from chaos.certificate import certificate, certificate_text, code_hash
from chaos.gate import run_gate
from chaos.lab import Outcome
from chaos.mutants.patch import Patch

from .drill import PaperLab, happens, twice
from .test_gate import SMALL, TARGET, Notes, broken


async def test_it_names_what_was_tried_and_seen() -> None:
    told = certificate(await run_gate(TARGET, SMALL, PaperLab(), Notes()))
    assert orjson.loads(orjson.dumps(told)) == told
    assert (told["verdict"], told["reasons"], told["profile"], told["seeds"]) == ("pass", [], "small", [0])
    assert told["runs"]["pass"] == sum(stage["runs"]["pass"] for stage in told["stages"])
    assert told["kills"] == sum(stage["kills"] for stage in told["stages"])
    assert (told["coverage"]["reached"], told["coverage"]["wanted"]) == (75, 75)
    kill = next(cell for cell in told["coverage"]["cells"] if (cell["place"], cell["action"]) == ("in_publish", "kill"))
    assert kill["hits"] == [1, 2]
    assert {receipt["signal"] for receipt in kill["receipts"]} == {9}
    assert [(mutant["name"], mutant["caught"], mutant["fell"]) for mutant in told["mutants"]] == [
        ("forgets", True, ["G1"]),
        ("doubles", True, ["G2"]),
    ]
    assert told["code"]["meshforge_trio"] == code_hash(Path(meshforge_trio.__file__).parent)
    assert "not power loss" in told["crash_class"]
    assert told["versions"].keys() == {"python", "meshforge_trio", "nats_server", "sqlite", "platform"}


async def test_the_text_says_the_same() -> None:
    told = certificate(await run_gate(TARGET, SMALL, PaperLab(), Notes()))
    text = certificate_text(told)
    assert text.startswith("CERTIFICATE: PASS\n")
    for wanted in (
        f"kills         {told['kills']}, at least 10; each has its receipt: an end by signal 9",
        "coverage      75 of 75 actions at places",
        "planted bugs  2 of 2 caught",
        f"code          meshforge_trio {told['code']['meshforge_trio']}",
        "forgets                              R1   G1    G1",
        "G10            nothing to examine",
    ):
        assert wanted in text
    line = next(line for line in text.splitlines() if line.startswith("worker kill at in_publish"))
    assert line.split()[-1] == "1-2"


async def test_runs_made_again_are_told() -> None:
    gate = await run_gate(TARGET, SMALL, PaperLab(), Notes())
    assert "made again" not in certificate_text(certificate(gate))
    gate.tally.again = 2
    assert "2 more missed the turn that their rule was for, and were made again" in certificate_text(certificate(gate))


async def test_a_violation_stands_at_the_top_with_its_replay() -> None:
    when = "worker#1:in_publish@1=kill"
    gate = await run_gate(TARGET, SMALL, PaperLab(lambda case, patch: broken(case, patch, when=when)), Notes())
    told = certificate(gate)
    assert told["violations"] == [
        {
            "guarantee": "G2",
            "scenario": "crash-matrix",
            "found": when,
            "minimal": when,
            "commands": 2,
            "reproduced": [3, 3],
            "replay": f"meshforge-chaos run crash-matrix --batch 1 --plan '{when}'",
            "directory": None,
        }
    ]
    lines = certificate_text(told).splitlines()
    assert lines[:3] == [
        "CERTIFICATE: VIOLATION",
        f"  G2 broken: {when} (reproduced 3 of 3)",
        f"    replay: meshforge-chaos run crash-matrix --batch 1 --plan '{when}'",
    ]


async def test_what_was_not_reached_has_its_reason_and_survivors_are_named() -> None:
    def answer(case: Case, patch: Patch | None) -> Outcome:
        unhit = [str(rule) for rule in case.plan.rules if rule.nth > 2 or "hold" in rule.place]
        return twice(case, unhit=unhit) if patch is None else happens(case, fell=["G1"])

    told = certificate(await run_gate(attrs.evolve(TARGET, strict=False), SMALL, PaperLab(answer), Notes()))
    text = certificate_text(told)
    assert (
        "worker kill at after_hold               0         0  not reached: no run of this workload passes the point"
        in text
    )
    assert "doubles                              R1   G2    VIOLATION: G1" in text
    assert len(told["coverage"]["excused"]) == 8


def test_the_hash_is_of_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("one")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/b.py").write_text("two")
    first = code_hash(tmp_path)
    (tmp_path / "notes.txt").write_text("no code")
    assert code_hash(tmp_path) == first
    (tmp_path / "sub/b.py").rename(tmp_path / "sub/c.py")
    renamed = code_hash(tmp_path)
    (tmp_path / "a.py").write_text("One")
    assert len({first, renamed, code_hash(tmp_path)}) == 3


async def test_the_commit_is_that_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = await run_gate(TARGET, SMALL, PaperLab(), Notes())
    monkeypatch.chdir(tmp_path)
    assert certificate(gate)["code"]["commit"] is None
    assert "commit         none" in certificate_text(certificate(gate))

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(["git", *identity, *arguments], capture_output=True, text=True, check=True).stdout.strip()

    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "first")
    assert certificate(gate)["code"]["commit"] == git("rev-parse", "HEAD")
    (tmp_path / "new").touch()
    assert certificate(gate)["code"]["commit"] == git("rev-parse", "HEAD") + "+"


async def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = await run_gate(TARGET, SMALL, PaperLab(), Notes())
    monkeypatch.setenv("PATH", "")
    assert certificate(gate)["code"]["commit"] is None
