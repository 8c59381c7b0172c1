"""`meshforge prd check`: what it says, to people and to machines."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from meshforge_trio.cli.prd import prd

DEMO = Path(__file__).parents[3] / "examples/multi_agent_demo_prd.md"


def call(*arguments: str) -> Any:
    # Not by way of `cli`: that sets logging up for the whole process.
    return prd.main(["check", *arguments], prog_name="meshforge prd", standalone_mode=False)


def spoiled(folder: Path) -> Path:
    file = folder / "shop.md"
    file.write_text(
        DEMO.read_text().replace("- entity: any", "- entity: an", 1).replace("## Invariants", "## Invriants")
    )
    return file


def test_a_prd_without_problems(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(str(DEMO)) == 0
    assert capsys.readouterr().out == (
        f"{DEMO}: 3 agents, 10 commands, 11 events, 5 invariants, 5 examples; no problem\n"
    )
    assert call(str(DEMO), "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"file": str(DEMO), "problems": []}


def test_every_problem_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = spoiled(tmp_path)
    assert call(str(file)) == 2
    first, second = capsys.readouterr().out.splitlines()
    lines = file.read_text().split("\n")
    assert first.startswith(
        f"{file}:{lines.index('- entity: an') + 1}:11: expected 'new' or 'existing' or 'any', found"
    )
    assert second.startswith(f"{file}:{lines.index('## Invriants') + 1}:4: unknown heading 'invriants'; did you mean")


def test_problems_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(str(spoiled(tmp_path)), "--json") == 2
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert [sorted(problem) for problem in problems] == [["column", "line", "suggestion", "what"]] * 2
    assert problems[1]["suggestion"] == "did you mean 'invariants'?"


def test_a_worker_does_not_pay_for_it() -> None:
    """Reading a PRD takes a Markdown library, which nobody who runs agents wants to wait for."""
    code = "import sys, meshforge_trio.cli.run, meshforge_trio.launch; print('markdown_it' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"
