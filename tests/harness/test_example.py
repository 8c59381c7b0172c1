"""The example project, as a stranger has it: the wheel installed in an environment of its own, and no checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(command: Sequence[str | Path], home: Path) -> subprocess.CompletedProcess[str]:
    # What the environment of this test run says of coverage and pytest is none of the stranger's business.
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("COV", "PYTEST", "PYTHONPATH", "VIRTUAL_ENV"))
    }
    return subprocess.run(
        [str(part) for part in command],
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
        timeout=420,
        check=False,
    )


@pytest.mark.slow
def test_the_example_passes_from_an_installed_wheel_and_fails_when_it_is_broken(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    built = run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", wheels, ROOT], tmp_path)
    assert built.returncode == 0, built.stderr
    (wheel,) = wheels.glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv/bin/python"
    installed = run([python, "-m", "pip", "install", "--quiet", f"{wheel}[server]", "pytest"], tmp_path)
    assert installed.returncode == 0, installed.stderr

    home = tmp_path / "parcels"
    shutil.copytree(ROOT / "examples/parcels", home, ignore=shutil.ignore_patterns("__pycache__", ".pytest_cache"))
    passed = run([python, "-m", "pytest", "-q"], home)
    assert passed.returncode == 0, passed.stdout + passed.stderr
    assert "6 passed" in passed.stdout

    gate = tmp_path / "venv/bin/meshforge-chaos"
    gated = run([gate, "gate", "--profile", "quick", "--json", "gate.json"], home)
    assert gated.returncode == 0, gated.stdout + gated.stderr
    assert json.loads((home / "gate.json").read_text())["verdict"] == "pass"

    # A state that is not a matter of its events alone.
    agents = home / "parcels.py"
    broken = agents.read_text().replace("return Parcel(event.to)", "return Parcel(event.to + str(time.time()))")
    agents.write_text(broken.replace("import attrs", "import time\n\nimport attrs", 1))
    failed = run([python, "-m", "pytest", "-q", "-k", "anywhere"], home)
    assert failed.returncode == 1, failed.stdout + failed.stderr
    assert "G7 broken" in failed.stdout
    assert "--chaos-plan" in failed.stdout
