"""The pytest plugin, as a project uses it that has nothing but agents: its tests run in a pytest of their own."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFIG = """\
[pytest]
addopts = --strict-markers -p no:cacheprovider
pythonpath = .
filterwarnings =
    error
    ignore::DeprecationWarning:trio_asyncio
"""
#: An agent whose state is not a matter of its events alone.
FORGETFUL = '''
"""Remembers when it was asked, and should not."""

import time

from meshforge_trio.agent import Agent, Event

app = Agent("clock", state=dict, initial=dict)


@app.command("tick")
def tick(state, payload, ctx):
    return Event("ticked", {})


@app.event("ticked")
def ticked(state, payload):
    return {"at": time.time()}
'''
TESTS = """
import pytest

from chaos.workload import Workload


def commands(seed):
    made = Workload()
    made.send("clock", "tick", entity=f"e-{seed}")
    made.send("clock", "tick", entity="other", phase="after")
    return made


@pytest.mark.chaos
def test_one(chaos_world):
    chaos_world("clock:app", commands, "worker#1:after_store@1=kill")
"""


def project(home: Path, **files: str) -> Path:
    (home / "pytest.ini").write_text(CONFIG)
    for name, text in files.items():
        (home / f"{name}.py").write_text(text)
    return home


def run(home: Path, *options: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTEST_ADDOPTS": "", "PYTHONDONTWRITEBYTECODE": "1", **more}
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options],
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.fixture
def parcels(tmp_path: Path) -> Path:
    """The example project, in a directory of its own."""
    shutil.copytree(ROOT / "examples/parcels", tmp_path / "parcels", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "parcels"


def test_loading_it_imports_nothing_of_the_harness() -> None:
    """It is loaded into every pytest run of an environment that has the package."""
    code = (
        "import sys, chaos.pytest_plugin\n"
        "heavy = [n for n in sys.modules if n.split('.')[0] in ('trio', 'nats', 'apsw', 'meshforge_trio')]\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_a_project_of_its_own_passes_and_is_told_what_was_done(parcels: Path) -> None:
    done = run(parcels, "-q", "-k", "server_is_at_hand or lost_or_doubled")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 passed" in done.stdout
    assert re.search(r"4 runs, 3 processes killed, at 3 points", done.stdout), done.stdout


def test_agents_are_served_where_the_commands_go(tmp_path: Path) -> None:
    elsewhere = TESTS.replace("Workload()", 'Workload("shop/front")')
    done = run(project(tmp_path, clock=FORGETFUL.replace("time.time()", "7"), test_it=elsewhere), "-q")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 runs, 1 processes killed, at 1 points" in done.stdout


def test_the_plan_of_the_command_line_stands_in_for_those_of_the_tests(parcels: Path) -> None:
    done = run(parcels, "-q", "-k", "anywhere", "--chaos-plan", "worker#1:before_ack@1=kill")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 runs, 1 processes killed, at 1 points" in done.stdout


def test_workers_of_xdist_do_not_meet(parcels: Path) -> None:
    done = run(parcels, "-q", "-n", "2", "-k", "lost_or_doubled")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 runs, 3 processes killed" in done.stdout


def test_what_breaks_is_told_with_the_line_that_replays_it(tmp_path: Path) -> None:
    home = project(tmp_path, clock=FORGETFUL, test_clock=TESTS)
    done = run(home, "-q", "--chaos-seed", "3", "--chaos-report", "runs")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "G7 broken: Replay: state rebuilt from the store hashes to the recorded hash" in done.stdout
    replay = "pytest test_clock.py::test_one --chaos-seed 3 --chaos-plan 'worker#1:after_store@1=kill'"
    assert replay in done.stdout
    assert "FAILED test_clock.py::test_one - Failed: violation: G7" in done.stdout
    assert "page: runs/test_one-1/report.html" in done.stdout
    page = home / "runs" / "test_one-1" / "report.html"
    assert "G7" in page.read_text()
    again = run(
        home,
        "-q",
        *replay.removeprefix("pytest ").replace("'", "").split(" ", 3)[:3],
        "--chaos-plan",
        replay.split("'")[1],
    )
    assert again.returncode == 1
    assert "G7 broken" in again.stdout


def test_an_app_that_cannot_be_imported_is_inconclusive_and_no_pass(tmp_path: Path) -> None:
    home = project(tmp_path, clock="raise RuntimeError('not today')\n", test_clock=TESTS)
    done = run(home, "-q")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "verdict: inconclusive" in done.stdout
    assert "not today" in done.stdout


def test_without_a_server_tests_fail_in_a_line(tmp_path: Path) -> None:
    tests = f"{TESTS}\n\ndef test_at_hand(chaos_nats):\n    assert chaos_nats.url\n"
    missing = "import sys\nsys.executable = '/nowhere/python'\n"
    home = project(tmp_path, clock=FORGETFUL, test_clock=tests, conftest=missing)
    done = run(home, "-q", PATH="/nowhere")
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout.count("inconclusive: no nats-server found: pip install meshforge-trio[server]") >= 2
    assert "Traceback" not in done.stdout


def test_an_interrupt_ends_the_session_and_not_the_test(tmp_path: Path) -> None:
    tests = TESTS.replace("made = Workload()", "made = Workload()\n    open('began', 'w').close()")
    tests += "\n\ndef test_next():\n    open('next', 'w').close()\n"
    # A shell starts what it runs in the background with SIGINT ignored.
    heard = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    home = project(tmp_path, clock=FORGETFUL, test_clock=tests, conftest=heard)
    process = subprocess.Popen([sys.executable, "-m", "pytest", "-q"], cwd=home, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (home / "began").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == pytest.ExitCode.INTERRUPTED, out
    assert "KeyboardInterrupt" in out
    assert not (home / "next").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ('points=["nowhere"]', "no point 'nowhere'"),
        ('action="explode"', "no action of worker 'explode'"),
        ('action="stop", points=["in_store"]', "worker stop may not stand at in_store"),
        ('action="full"', "full needs its seconds"),
        ('action="full", seconds=0.1', "inconclusive: none of before_store, in_store, before_attempt, before_hold, "),
    ],
    ids=["point", "action", "place", "seconds", "all places"],
)
def test_a_sweep_of_what_there_is_not_is_told(tmp_path: Path, arguments: str, told: str) -> None:
    tests = f"def test_it(chaos_sweep):\n    chaos_sweep('clock:app', [], {arguments})\n"
    nothing = "import chaos.sweep\n\nasync def explore(*_): pass\n\nchaos.sweep.Sweep.explore = explore\n"
    home = project(tmp_path, clock=FORGETFUL, test_clock=tests, conftest=nothing)
    done = run(home, "-q")
    assert done.returncode == 1
    assert told in done.stdout


def test_commands_to_nobody_are_inconclusive_at_once(tmp_path: Path) -> None:
    home = project(tmp_path, clock=FORGETFUL, test_clock=TESTS.replace('"clock", "tick"', '"watch", "tick"'))
    done = run(home, "-q")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "verdict: inconclusive" in done.stdout
    assert "cmd.default.demo.watch.tick is sent, and clock:app in default/demo does not serve it" in done.stdout


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--chaos-plan", "worker#1:nowhere@1=kill"), "--chaos-plan: no point 'nowhere'"),
        (("--chaos-plan", "worker#1:after_store@0=kill"), "column"),
        (("--chaos-parallel", "0"), "--chaos-parallel must be 1 or more"),
    ],
)
def test_wrong_options_are_refused_before_anything_runs(tmp_path: Path, options: tuple[str, str], told: str) -> None:
    home = project(tmp_path, test_clock=TESTS)
    done = run(home, "-q", *options)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert told in done.stderr
