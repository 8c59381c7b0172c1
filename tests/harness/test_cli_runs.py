"""The command line with real processes: verdicts as exit codes, reports of what broke, nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree

import attrs
import pytest
import structlog

from chaos.cli import cli, ending
from chaos.mutants.catalogue import CATALOGUE
from chaos.mutants.patch import Edit, Patch
from chaos.profiles import Profile
from meshforge_trio.points import Point

DEADLINE_S: Final = 60.0
KILL: Final = "worker#1:after_store@1=kill"
BOX: Final = """
import attrs
from meshforge_trio.agent import Agent, Context


@attrs.frozen
class Put:
    n: int = 0


@attrs.frozen
class Was:
    n: int
    entity_version: int = 0


app = Agent("box", state=int, initial=int)


@app.command("put")
def put(total: int, payload: Put, ctx: Context) -> Was:
    return Was(total + payload.n)


@app.event("was")
def was(total: int, event: Was) -> int:
    return event.n
"""
SCRIPT: Final = """
from chaos.checkers import Checker, Finding
from chaos.scenario import Scenario
from chaos.script import main
from chaos.sweep import Fixed
from chaos.workload import Workload


def workload(seed):
    commands = Workload()
    commands.send("box", "put", {"n": 1}, entity="a")
    commands.send("box", "put", {"n": 2 + seed}, entity="b")
    commands.send("box", "put", {"n": 3}, entity="a", phase="after")
    return commands


def look(evidence):
    yield len(evidence.rows.outputs)
    total = sum(output.kind == "event" for output in evidence.rows.outputs)
    if evidence.final and total > %d:
        yield Finding(f"{total} events", ["k1"], "default/demo/box")


SCENARIO = Scenario(
    "boxes", "Puts things into boxes.", "box_agents:app", workload, [Fixed(["", "worker#1:after_store@1=kill"])],
    claims=("G1", "G4"), invariants=[Checker("few", "Few: there are not many events.", look, on_corpse=False)],
)

if __name__ == "__main__":
    main(SCENARIO)
"""


@attrs.frozen
class Said:
    """What a command came to."""

    code: int
    out: str
    err: str


Says = Callable[..., Said]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Somebody's project, in which the test is."""
    (tmp_path / "box_agents.py").write_text(BOX)
    (tmp_path / "scenarios").mkdir()
    (tmp_path / "scenarios/fine.py").write_text(SCRIPT % 9)
    (tmp_path / "scenarios/many.py").write_text(SCRIPT % 2)
    (tmp_path / "work.jsonl").write_text('{"agent": "box", "action": "put", "payload": {"n": 4}, "entity_id": "a"}\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "box_agents", raising=False)
    return tmp_path


@pytest.fixture
def says(capsys: pytest.CaptureFixture[str]) -> Iterator[Says]:
    """Runs a command in this process."""

    def say(*arguments: object) -> Said:
        capsys.readouterr()
        code = ending(cli, "meshforge-chaos", [str(argument) for argument in arguments])
        return Said(code, *capsys.readouterr())

    yield say
    structlog.reset_defaults()


def test_a_scenario_that_passes(says: Says, project: Path) -> None:
    said = says("run", "fine", "--report", "kept", "--keep", "--json", "--parallel", 2)
    assert (said.code, said.err) == (0, "boxes: 2 plans, batch 64\n")
    told = json.loads(said.out)
    assert (told["status"], told["runs"]["pass"], told["kills"]) == ("pass", 2, 1)
    assert told["guarantees"]["few"]["broken"] == 0
    assert told["guarantees"]["G4"]["examined"] > 0
    assert sorted(path.name for path in (project / "kept").iterdir()) == ["boxes-1", "boxes-2"]


def test_the_result_for_people_says_what_held(says: Says, project: Path) -> None:
    said = says("run", "fine", "--plan", KILL, "--batch", 1)
    assert said.code == 0
    assert "1 runs: 1 pass; 1 kills;" in said.out
    assert "G2         holds" in said.out
    assert "few        holds" in said.out


def test_a_violation_is_told_and_can_be_run_again(says: Says, project: Path) -> None:
    said = says("run", "many", "--plan", KILL, "--seed", 5, "--report", "kept")
    assert said.code == 1
    replay = f"meshforge-chaos run many --batch 64 --seed 5 --plan '{KILL}'"
    for wanted in ("VIOLATION  boxes", "few broken: Few: there are not many events.", "3 events", f"replay: {replay}"):
        assert wanted in said.out
    home = project / "kept/boxes-1"
    assert f"page:   {'kept/boxes-1/report.html'}" in said.out
    assert (home / "report.html").exists()

    judged = says("judge", home)
    assert judged.code == 1
    assert "the end: few broken: Few" in judged.out
    assert f"{KILL}: pid " in judged.out
    assert "ended with -9" in judged.out

    again = says("replay", home, "--times", 2, "--report", "again")
    assert again.code == 1
    assert "few fell in 2 of 2" in again.out
    assert "reproduced 2 of 2: few" in again.out

    (project / "scenarios/many.py").unlink()
    without = says("judge", home, "--json")
    assert (without.code, json.loads(without.out)["status"]) == (2, "inconclusive")
    [why] = json.loads(without.out)["reasons"]
    assert why.startswith("not judged again: few: there is no scenario 'many'")
    again = says("replay", home, "--report", "again")
    assert (again.code, again.out.splitlines()) == (
        2,
        ["few fell in 0 of 1", f"inconclusive: {why}", "reproduced 0 of 1: few"],
    )


def test_the_invariants_of_a_project_are_judged_again(says: Says, project: Path) -> None:
    rules = SCRIPT.partition("SCENARIO = ")[0].replace("%d", "0")
    few = "Checker('few', 'Few: there are not many events.', look, on_corpse=False)"
    (project / "rules.py").write_text(f"{rules}INVARIANTS = [{few}]\n")
    (project / "pyproject.toml").write_text("[tool.meshforge-chaos]\ninvariants = 'rules:INVARIANTS'\n")
    said = says("run", "--app", "box_agents:app", "--workload", "work.jsonl", "--plan", "", "--report", "kept")
    assert said.code == 1
    home = project / "kept/box_agents-app-1"
    assert "the end: few broken: Few" in says("judge", home).out
    assert "reproduced 1 of 1: few" in says("replay", home, "--report", "again").out
    told = json.loads((home / "run.json").read_bytes())
    # As a test leaves it, which has its invariants from where it likes.
    (home / "run.json").write_text(json.dumps({**told, "source": ""}))
    assert says("judge", home).code == 1
    (home / "run.json").write_text(json.dumps({**told, "source": "", "invariants": []}))
    assert says("judge", home).code == 0
    (home / "run.json").write_text(json.dumps(told))
    (project / "pyproject.toml").unlink()
    judged = says("judge", home)
    assert judged.code == 2
    assert "not judged again: few: pyproject.toml of the working directory does not name them" in judged.out


def test_agents_and_commands_of_ones_own(says: Says, project: Path) -> None:
    said = says(
        "run", "--app", "box_agents:app", "--workload", "work.jsonl", "--plan", KILL, "--keep", "--report", "kept"
    )
    assert said.code == 0
    home = project / "kept/box_agents-app-1"
    told = json.loads((home / "run.json").read_bytes())
    # The first command is sent once more when the fault is over.
    assert [(sent["key"], sent["phase"]) for sent in told["sent"]] == [("k1", "main"), ("k1", "after")]
    source = f"--app box_agents:app --workload {project / 'work.jsonl'}".replace(f"{project}/", "")
    assert told["replay"] == f"meshforge-chaos run {source} --batch 64 --plan '{KILL}'"
    assert says("replay", home).out.splitlines()[-1] == "no guarantee fell in 1 of 1"


def test_an_app_that_cannot_be_imported_is_inconclusive(says: Says, project: Path) -> None:
    said = says("run", "--app", "nowhere_at_all:app", "--workload", "work.jsonl", "--plan", "")
    assert (said.code, said.out) == (2, "")
    [line] = said.err.splitlines()
    assert line.startswith("meshforge-chaos: inconclusive: app 'nowhere_at_all:app': module 'nowhere_at_all' cannot be")


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ({"agent": "bax", "action": "put"}, "the app has no agent 'bax'; it has: box"),
        ({"agent": "box", "action": "pat"}, "box has no 'pat'; it has: put"),
        ({"agent": "box", "action": "put", "query": True}, "box.put changes something, and query is true"),
        (
            {"agent": "box", "action": "put", "expect": ["ok"]},
            "expect must be a list of decided, conflict, refused, dead",
        ),
        ({"agent": "box", "action": "put", "key": ""}, "idempotency_key must be 1 to 256 characters"),
        ({"agent": "box", "action": "put", "entity_id": ""}, "entity_id must be 1 to 256 characters"),
        ({"agent": "box", "action": "put", "expected_version": -1}, "expected_version -1 is negative"),
    ],
    ids=["agent", "action", "query", "outcome", "key", "entity", "version"],
)
def test_a_workload_that_asks_for_what_is_not_there(
    says: Says, project: Path, line: Mapping[str, Any], wanted: str
) -> None:
    fine = '{"agent": "box", "action": "put", "payload": {"n": 4}, "entity_id": "a"}\n'
    (project / "work.jsonl").write_text(f"{fine}\n{json.dumps(line)}\n")
    for command in ("run", "gate"):
        said = says(command, "--app", "box_agents:app", "--workload", "work.jsonl")
        assert (said.code, said.out) == (3, "")
        assert said.err.startswith(f"meshforge-chaos: work.jsonl: line 3: {wanted}")


def test_a_sweep_has_a_receipt_for_every_kill(says: Says) -> None:
    said = says("sweep", "--points", "before_ack,in_recovery", "--batches", 64, "--json")
    assert said.code == 0
    told = json.loads(said.out)
    assert (told["reached"], told["wanted"]) == (2, 2)
    cells = {cell["place"]: cell for cell in told["coverage"]}
    assert list(cells) == ["in_recovery", "before_ack"]
    for cell in cells.values():
        assert cell["hits"] == list(range(1, len(cell["hits"]) + 1))
        assert len(cell["receipts"]) == cell["times"] == len(cell["hits"])
        assert {receipt["signal"] for receipt in cell["receipts"]} == {9}
    pids = {receipt["pid"] for cell in cells.values() for receipt in cell["receipts"]}
    assert len(pids) == sum(len(cell["receipts"]) for cell in cells.values())


def test_a_point_that_is_never_reached_is_listed_with_a_reason(says: Says, project: Path) -> None:
    said = says("sweep", "fine", "--points", "before_hold", "--batches", 64)
    assert said.code == 0
    assert "before_hold  kill       0  -            0  no run of this workload passes the point" in said.out
    assert "0 of 1 points and actions reached" in said.out


def test_a_bug_is_caught_and_one_that_changes_nothing_survives(says: Says, monkeypatch: pytest.MonkeyPatch) -> None:
    real = next(mutant for mutant in CATALOGUE if mutant.name == "publish-before-store")
    harmless = Patch("harmless", [Edit("meshforge_trio.protocol", '"""The protocol.', '"""The very protocol.')])
    monkeypatch.setattr(
        "chaos.mutants.catalogue.CATALOGUE", [real, attrs.evolve(real, name="harmless", patch=harmless)]
    )
    said = says("mutants")
    assert said.code == 1
    assert "1 of 2 planted bugs are caught" in said.out
    assert "harmless: survived: G3 had to fall, nothing fell (pass)" in said.out
    told = json.loads(says("mutants", real.name, "--json").out)
    assert (told["status"], told["caught"], told["planted"]) == ("pass", 1, 1)
    assert "G3" in told["mutants"][0]["fell"]


@pytest.mark.slow
def test_the_gate_of_somebody_elses_project(says: Says, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = Profile("small", (0,), (64,), (Point.AFTER_STORE,), ("worker",), 1, 5.0)
    monkeypatch.setattr("chaos.cli.gate.PROFILES", {"pr": small})
    monkeypatch.setattr("chaos.cli.gate._SENTINELS", ("G3",))
    (project / "scenarios/many.py").unlink()
    (project / "pyproject.toml").write_text(
        '[tool.meshforge-chaos]\napp = "box_agents:app"\nworkload = "work.jsonl"\nkills_min = 12\n'
    )
    said = says("gate", "--junit", "out/junit.xml", "--json", "out/gate.json", "--certificate", "out/proof.json")
    assert said.code == 0, said.out
    assert said.out.startswith("CERTIFICATE: PASS\n")
    assert (project / "out/proof.txt").read_text() == said.out
    told = json.loads((project / "out/proof.json").read_bytes())
    assert told["kills"] >= 12
    assert [stage["name"] for stage in told["stages"]][-2:] == ["boxes", "every other action (box_agents-app)"]
    assert {cell["place"] for cell in told["coverage"]["excused"]} >= {"before_hold", "before_dead_letter"}
    assert ElementTree.parse(project / "out/junit.xml").getroot().attrib["failures"] == "0"
    assert json.loads((project / "out/gate.json").read_bytes())["failures"] == []


# -- processes -----------------------------------------------------------------------------------------------------


def marked() -> tuple[str, Mapping[str, str]]:
    """A mark that every process of a command inherits, and the environment with it."""
    mark = f"MESHFORGE_MARK={uuid.uuid4()}"
    name, _, value = mark.partition("=")
    return mark, {**os.environ, name: value}


def bearing(mark: str) -> list[str]:
    """What processes have the mark, by their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (path / "environ").read_bytes():
                found.append((path / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_an_interrupt_ends_everything(number: signal.Signals, tmp_path: Path) -> None:
    mark, environment = marked()
    command = [sys.executable, "-m", "chaos", "run", "crash-matrix", "--report", str(tmp_path), "--parallel", "2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True)
    deadline = time.monotonic() + DEADLINE_S
    while sum("forkserver" in line for line in bearing(mark)) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline, "no worker was ever forked"
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "interrupted: ending every process of the runs"
    assert "Traceback" not in err
    # The kernel kills what outlives its parent, a moment later.
    while bearing(mark):
        assert time.monotonic() < deadline, bearing(mark)
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("run", "crash-matrix", "--plan", KILL), 0),
        (("replay", "nothing"), 3),
        (("run", "--batch", "0"), 3),
    ],
    ids=["progress", "error", "usage"],
)
def test_progress_that_nobody_reads_is_no_failure(arguments: tuple[str, ...], code: int) -> None:
    command = [sys.executable, "-m", "chaos", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        process.stderr.close()
        assert process.wait(60) == code


def test_a_script_runs_by_itself(project: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "scenarios/fine.py", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)

    done = run("--plan", KILL, "--json")
    assert (done.returncode, done.stderr) == (0, f"boxes: {KILL}\n")
    assert json.loads(done.stdout)["kills"] == 1
    assert run("--plan", "worker#1:nowhere@1=kill").returncode == 3
    helped = run("--help")
    assert (helped.returncode, helped.stderr) == (0, "")
    assert "Puts things into boxes." in helped.stdout


def test_json_has_stdout_to_itself_when_something_breaks(says: Says, project: Path) -> None:
    said = says("run", "many", "--plan", KILL, "--json")
    assert said.code == 1
    told: Any = json.loads(said.out)
    assert [violation["broken"] for violation in told["violations"]] == [["few"]]
    assert "VIOLATION  boxes" in said.err
