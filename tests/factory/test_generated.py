"""Generated workspaces as a stranger has them: made by the installed wheel, run, killed, and broken on purpose."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from meshforge_trio.points import Point

ROOT: Final = Path(__file__).parents[2]
DEMO: Final = ROOT / "examples/multi_agent_demo_prd.md"
PRDS: Final = sorted((ROOT / "tests/prds").glob("*.md"))
#: All but the crash tests, which take longer; and those with one of them.
QUICK: Final = ("-k", "not chaos")
KILLED_ONCE: Final = ("-k", "not chaos or before_store")

pytestmark = pytest.mark.slow


class Stranger:
    """An environment with the wheel in it, and what it needs from the one the tests run in; no checkout."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.bin = home / "venv/bin"

    def run(self, *command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
        # What the environment of this test run says of coverage and pytest is none of the stranger's business.
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("COV", "PYTEST", "PYTHON", "VIRTUAL_ENV", "MESHFORGE", "NATS"))
        }
        # The nats-server is beside the interpreter of this test run.
        kept["PATH"] = f"{self.bin}:{Path(sys.executable).parent}:{kept['PATH']}"
        return subprocess.run(
            [str(part) for part in command],
            cwd=cwd,
            env=kept,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )

    def workspace(self, prd: Path, *options: str) -> Path:
        """A new workspace, made by the installed command."""
        made = self.home / "-".join((prd.stem, *options)).replace("=", "-")
        done = self.run("meshforge", "generate", "--prd", prd, "--output", made, *options, cwd=self.home)
        assert done.returncode == 0, done.stderr
        return made

    def passes(self, home: Path, *command: str | Path) -> str:
        done = self.run(*command, cwd=home)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Stranger:
    home = tmp_path_factory.mktemp("stranger")
    made = Stranger(home)
    # Built from a copy, since others may build from the checkout meanwhile.
    source, wheels = home / "source", home / "wheels"
    for package in ("meshforge_trio", "chaos"):
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    pip = (sys.executable, "-m", "pip")
    built = made.run(*pip, "wheel", "--quiet", "--no-deps", "-w", wheels, source, cwd=home)
    assert built.returncode == 0, built.stderr
    (wheel,) = wheels.glob("*.whl")
    venv.create(home / "venv", with_pip=False)
    into = home / "venv" / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
    installed = made.run(*pip, "--python", made.bin / "python", "install", "--quiet", "--no-deps", wheel, cwd=home)
    assert installed.returncode == 0, installed.stderr
    # Everything else is taken from the environment of the tests; a path in such a file brings no editable installs.
    (into / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    where = made.passes(home, "python", "-c", "import meshforge_trio; print(meshforge_trio.__file__)")
    assert where.startswith(str(into))
    return made


def pytest_command(*options: str) -> Sequence[str]:
    return ("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", *options)


@pytest.mark.parametrize(
    ("options", "tests"),
    [
        (("--profile", "local"), ()),
        (("--profile", "local", "--set", "lock_manager=on", "--set", "security=signed"), ()),
        (("--profile", "test-nats"), QUICK),
        (("--profile", "cluster"), QUICK),
    ],
    ids=["local", "signed", "test-nats", "cluster"],
)
def test_the_demo_passes_its_own_tests(stranger: Stranger, options: Sequence[str], tests: Sequence[str]) -> None:
    home = stranger.workspace(DEMO, *options)
    told = stranger.passes(home, *pytest_command(*tests))
    assert " passed" in told
    assert "failed" not in told
    stranger.passes(home, "meshforge", "generate", "--prd", "prd.md", "--output", ".", "--check")


def test_the_smoke_test_says_each_step(stranger: Stranger) -> None:
    told = stranger.passes(stranger.workspace(DEMO, "--set", "telemetry=on"), "python", "tests/smoke_test.py")
    lines = [line for line in told.splitlines() if line.startswith(("---", "✅", "🎉"))]
    assert lines == [
        "--- Step 1: Create Order (Command) ---",
        "✅ Order Created Event Verified.",
        "--- Step 2: Verify State (Gateway) ---",
        "✅ Order State Verified via Bus.",
        "--- Step 3: Idempotency Test (Exactly-Once) ---",
        "✅ Idempotency: Event re-received.",
        "--- Step 4: Inventory Interaction ---",
        "✅ Inventory Agent verified.",
        "🎉 SMOKE TEST PASSED!",
    ]


@pytest.mark.parametrize(
    ("file", "right", "wrong", "breaks"),
    [
        (
            "agents/inventory.py",
            "if payload.quantity <= state.stock:",
            "if payload.quantity >= 1:",
            "inventory: stock >= 0",
        ),
        (
            "agents/order.py",
            "reserved=state.reserved - event.quantity)",
            "reserved=state.reserved)",
            "sum(inventory.reserved) == sum(order.reserved)",
        ),
    ],
    ids=["sells-what-is-not-there", "forgets-what-was-sent"],
)
def test_a_broken_handler_turns_it_red(stranger: Stranger, file: str, right: str, wrong: str, breaks: str) -> None:
    home = stranger.workspace(DEMO, "--profile", "local", "--set", f"telemetry={'on' if 'order' in file else 'off'}")
    gate = ("meshforge-chaos", "run", "invariants", "--plan", "worker#1:after_store@1=kill")
    stranger.passes(home, *gate)
    source = (home / file).read_text()
    assert source.count(right) == 1
    (home / file).write_text(source.replace(right, wrong))
    broken = stranger.run(*gate, cwd=home)
    assert broken.returncode == 1, broken.stdout + broken.stderr
    assert f"violation: {breaks}" in broken.stdout + broken.stderr
    failed = stranger.run(*pytest_command("tests/test_chaos.py", "-x", "-k", "doubled"), cwd=home)
    assert failed.returncode == 1, failed.stdout
    assert f"{breaks} broken" in failed.stdout


def test_the_gate_is_green_and_with_a_broken_handler_red(stranger: Stranger) -> None:
    """The whole gate of a generated workspace: kills at every point it comes to, its invariants, planted bugs."""
    home = stranger.workspace(DEMO, "--profile", "local", "--set", "dead_letters=off")
    gate = ("meshforge-chaos", "gate", "--profile", "quick", "--report", "build", "--certificate", "build/shown.json")
    told = stranger.passes(home, *gate)
    shown = json.loads((home / "build/shown.json").read_text())
    assert told.startswith("CERTIFICATE: PASS")
    assert (shown["verdict"], shown["reasons"]) == ("pass", [])
    assert shown["kills"] >= shown["kills_min"] > 0
    killed = {cell["place"] for cell in shown["coverage"]["cells"] if cell["receipts"]}
    assert killed >= {point for point in Point if not re.search("attempt|hold|dead_letter", point)}
    assert [mutant["caught"] for mutant in shown["mutants"]] == [True] * 5
    assert {claim for claim, held in shown["guarantees"].items() if held["examined"]} >= {
        *("G1", "G2", "G3", "G4", "G5", "G6", "G7", "G8", "G12", "G13"),
        *("inventory: stock >= 0", "sum(inventory.reserved) == sum(order.reserved)"),
    }
    source = home / "agents/inventory.py"
    source.write_text(source.read_text().replace("if payload.quantity <= state.stock:", "if payload.quantity >= 1:"))
    broken = stranger.run(*gate, cwd=home)
    assert broken.returncode == 1, broken.stdout + broken.stderr
    shown = json.loads((home / "build/shown.json").read_text())
    assert shown["verdict"] == "violation"
    assert {violation["guarantee"] for violation in shown["violations"]} == {"inventory: stock >= 0"}
    assert [mutant["caught"] for mutant in shown["mutants"]] == [True] * 5


@pytest.mark.parametrize("prd", PRDS, ids=lambda path: path.stem)
def test_every_prd_gives_a_workspace_that_is_typed_and_runs(stranger: Stranger, prd: Path) -> None:
    home = stranger.workspace(prd)
    typed = stranger.run(
        *(sys.executable, "-m", "mypy", "--python-executable", stranger.bin / "python"),
        *("--cache-dir", stranger.home / "mypy"),
        cwd=home,
    )
    assert typed.returncode == 0, typed.stdout
    told = stranger.passes(home, *pytest_command(*KILLED_ONCE))
    assert " passed" in told
    assert "1 runs, 1 processes killed, at 1 points" in told
