"""The documents say what the code does: names, keys, codes, tests and examples in them are checked or run."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import attrs
import click
import pytest

from chaos.checkers import CHECKERS
from chaos.mutants.catalogue import CATALOGUE
from chaos.power.result import JUDGED
from chaos.scenario import load_scenario
from meshforge_trio.agent import Agent, Context, Decision, Event
from meshforge_trio.cli import cli
from meshforge_trio.config import Settings
from meshforge_trio.envelope import CommandEnvelope
from meshforge_trio.errors import Refused
from meshforge_trio.launch import adapter_of, load_app
from meshforge_trio.policy import ExitCode
from meshforge_trio.server import PrivateServer, find_binary

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
ARCHITECTURE = ROOT / "docs/architecture.md"
INVARIANTS = ROOT / "docs/RUNTIME_INVARIANTS.md"
OPERATIONS = ROOT / "docs/operations.md"
COMPOSE = ROOT / "docker-compose.jetstream.yml"
DOCUMENTS = sorted([README, ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])

document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)


def blocks(path: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)


def rows(text: str, after: str) -> Iterator[list[str]]:
    """Cells of the first table below a heading, without its head."""
    lines = iter(f"\n{text}".split(f"\n{after}\n", 1)[1].splitlines())
    table = [line for line in _first_table(lines) if not re.fullmatch(r"[|\s:-]+", line)]
    for line in table[1:]:
        yield [cell.strip() for cell in line.strip("|").split("|")]


def _first_table(lines: Iterator[str]) -> Iterator[str]:
    begun = False
    for line in lines:
        if line.startswith("|"):
            begun = True
            yield line
        elif begun:
            return


# -- names -------------------------------------------------------------------------------------------------------


@cache
def names_of_tests(path: Path) -> frozenset[str]:
    return frozenset(
        node.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    )


@document
def test_every_test_that_is_named_exists(path: Path) -> None:
    for file, name in re.findall(r"(tests/[\w/]+\.py)::(\w+)", path.read_text()):
        assert (ROOT / file).is_file(), file
        assert name in names_of_tests(ROOT / file), f"{file} has no {name}"


@document
def test_every_path_that_is_named_exists(path: Path) -> None:
    named = re.findall(r"`((?:meshforge_trio|chaos|tests|scenarios|benchmarks|docs)/[\w/.-]*)`", path.read_text())
    for link in re.findall(r"\]\((?!https?://|#)([^)#]+)", path.read_text()):
        assert (path.parent / link).exists(), link
    for name in named:
        assert (ROOT / name).exists(), name


@document
def test_every_make_target_that_is_named_exists(path: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([a-z]+)", path.read_text(), re.MULTILINE)) <= targets


@document
def test_every_subcommand_and_option_that_is_named_exists(path: Path) -> None:
    assert isinstance(cli, click.Group)
    context = click.Context(cli)
    for name, rest in re.findall(r"(?:`|^|\$ )meshforge ([a-z-]+)([^`\n]*)", path.read_text(), re.MULTILINE):
        command = cli.get_command(context, name)
        assert command is not None, f"meshforge {name}"
        if isinstance(command, click.Group) and (inner := re.match(r" ([a-z]+)", rest)):
            command = command.get_command(context, inner[1])
            assert command is not None, f"meshforge {name}{rest}"
        known = {option for parameter in command.params for option in parameter.opts}
        assert set(re.findall(r"(?<!\S)--[a-z-]+", rest)) <= known, f"meshforge {name}{rest}"


@document
def test_nothing_is_promised_that_cannot_be(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"exactly[- ]once delivery", text, re.IGNORECASE)
    assert not re.search(r"(?<![\w.])/(work|tmp|home|root)/", text), "a path of some machine"


# -- the README --------------------------------------------------------------------------------------------------


@pytest.fixture
def readme_agent(tmp_path: Path) -> Path:
    """A directory with the README's agent in it, and its crash test."""
    agent, crash_test = blocks(README, "python")
    (tmp_path / "counter.py").write_text(agent)
    (tmp_path / "test_counter.py").write_text(crash_test)
    return tmp_path


@pytest.mark.slow
def test_the_crash_test_of_the_readme_passes(readme_agent: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=readme_agent,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    assert "processes killed" in done.stdout


def test_the_agent_of_the_readme_decides(readme_agent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(readme_agent)
    monkeypatch.setattr(sys, "path", [str(readme_agent), *sys.path])
    monkeypatch.delitem(sys.modules, "counter", raising=False)
    agent: Any = adapter_of(load_app("counter"), "counter")
    monkeypatch.delitem(sys.modules, "counter")
    assert isinstance(agent, Agent)
    context = Context(now=0.0, entity_id="apples", version=0)

    def ask(action: str, amount: int) -> Any:
        payload = {"amount": amount}
        command = CommandEnvelope(id="c", tenant="t", workspace="w", agent="counter", action=action, payload=payload)
        return agent.receive(2, command, context)

    assert ask("add", 3) == Decision((Event("added", {"amount": 3, "total": 5}),))
    assert agent.apply(2, Event("added", {"amount": 3, "total": 5, "entity_version": 2})) == 5
    assert ask("get", 0).reply.payload == {"total": 2}
    with pytest.raises(Refused, match="amount must be positive"):
        ask("add", -3)


def test_the_calls_of_the_readme_answer_as_written(readme_agent: Path, nats_server: PrivateServer) -> None:
    (session,) = blocks(README, "console")
    lines = session.splitlines()
    meshforge = [sys.executable, "-m", "meshforge_trio"]
    environment = {**os.environ, "MESHFORGE_URL": nats_server.url}
    worker = subprocess.Popen([*meshforge, "run", "counter"], cwd=readme_agent, env=environment, stderr=subprocess.PIPE)
    try:
        assert worker.stderr is not None
        assert b"serving" in worker.stderr.readline()
        for typed, told in zip(lines[::2], lines[1::2], strict=True):
            prompt, program, *arguments = shlex.split(typed)
            assert (prompt, program) == ("$", "meshforge")
            command = [*meshforge, *arguments]
            done = subprocess.run(
                command, cwd=readme_agent, env=environment, capture_output=True, text=True, check=False, timeout=30
            )
            # All but the time.
            assert done.stdout.strip().partition(" ")[2] == told.partition(" ")[2], done.stderr
            failed = re.search(r"counter\.(refused|conflict) ", told) is not None
            assert done.returncode == (ExitCode.FAILED if failed else ExitCode.OK)
    finally:
        worker.send_signal(signal.SIGTERM)
        worker.communicate(timeout=30)
    assert worker.returncode == ExitCode.OK
    # The same command twice heard the same answer, its time included.
    assert lines[0] == lines[2]
    assert lines[1] == lines[3]


# -- docs/ -------------------------------------------------------------------------------------------------------


def test_the_map_names_every_module() -> None:
    named = set(re.findall(r"`((?:meshforge_trio|chaos)/[\w/]+\.py)`", ARCHITECTURE.read_text()))
    product = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "meshforge_trio").rglob("*.py")
        if path.name not in ("__init__.py", "__main__.py")
    }
    harness = {str(path.relative_to(ROOT)) for path in (ROOT / "chaos").glob("[a-z]*.py")}
    assert product | harness <= named
    # Packages of the harness may stand for their modules; what is named is there.
    assert not [name for name in named if not (ROOT / name).is_file()]


def test_every_rule_is_told_with_a_test() -> None:
    parts = re.split(r"^### (R\d+) ", ARCHITECTURE.read_text(), flags=re.MULTILINE)
    rules = dict(zip(parts[1::2], parts[2::2], strict=True))
    assert list(rules) == [f"R{number}" for number in range(1, 11)]
    for rule, text in rules.items():
        assert re.search(r"tests/[\w/]+\.py::test_", text.split("\n## ")[0]), f"{rule} names no test"


def test_every_guarantee_has_its_sentence_its_checker_and_its_witnesses() -> None:
    text = INVARIANTS.read_text()
    checkers = {checker.id: checker for checker in CHECKERS}
    files = {f"G{int(path.name[1:3])}": path.name for path in (ROOT / "chaos/checkers").glob("g[0-9]*.py")}
    table = {cells[0]: cells[1:] for cells in rows(text, "# Runtime invariants")}
    assert list(table) == [f"G{number}" for number in range(1, 14)]
    witnesses = dict(re.findall(r"^\*\*(G\d+)\*\* .*?:\n\n((?:\* .*\n)+)", text, re.MULTILINE))
    planted = {
        guarantee: ", ".join(mutant.name for mutant in CATALOGUE if mutant.guarantee == guarantee)
        for guarantee in table
    }
    for guarantee, (sentence, checker, bugs, classes) in table.items():
        assert sentence == checkers[guarantee].sentence
        assert checker == f"`chaos/checkers/{files[guarantee]}`"
        assert bugs == (planted[guarantee] or "none yet")
        assert classes == (_classes(guarantee) or "not yet witnessed")
        witnessed = "::test_" in witnesses[guarantee]
        assert witnessed is ("not yet witnessed" not in witnesses[guarantee])
        assert witnessed is (classes != "not yet witnessed")
        # Without a planted bug nothing shows that its fall would be seen.
        assert planted[guarantee] or not witnessed


def test_every_threat_has_a_witness() -> None:
    """That what is named exists is held for every document."""
    threats = list(rows((ROOT / "docs/SECURITY_AND_TENANCY.md").read_text(), "## Threats"))
    assert len(threats) > 10
    for threat, against, witness in threats:
        assert against, threat
        assert re.search(r"`(?:tests/[\w/]+\.py::test_\w+|scenarios/\w+\.py)`", witness), f"{threat}: no witness"


def _classes(guarantee: str) -> str:
    """The crash classes whose scenarios examine a guarantee."""
    scripts = {
        "process crash": ("crash_matrix", "two_tenants", "locks", "lock_holder"),
        "pause": ("zombies", "locks", "lock_holder"),
        "broker": ("broker_faults", "locks"),
        "connection": ("proxy_cuts",),
        "full disk": ("disk_full",),
        "store": ("store_faults",),
        "damage": ("broker_damage",),
    }
    found = [
        crash
        for crash, names in scripts.items()
        if any(guarantee in load_scenario(ROOT / f"scenarios/{name}.py").claims for name in names)
    ]
    return ", ".join([*found, *(["power"] if guarantee in JUDGED else [])])


def settings_with_defaults() -> dict[str, object]:
    """Every key as it is written in the file, with its default as JSON would show it."""

    def flatten(values: dict[str, Any], prefix: str) -> Iterator[tuple[str, object]]:
        for name, value in values.items():
            if isinstance(value, dict):
                yield from flatten(value, f"{prefix}{name}.")
            else:
                yield prefix + name, str(value) if isinstance(value, Path) else value

    return dict(flatten(attrs.asdict(Settings()), ""))


def test_every_setting_is_told_with_its_default() -> None:
    told = {cells[0].strip("`"): cells[1] for cells in rows(OPERATIONS.read_text(), "## Settings")}
    assert told == {
        key: "none" if value is None else f"`{json.dumps(value)}`" for key, value in settings_with_defaults().items()
    }


def test_every_exit_code_is_told() -> None:
    told = {int(cells[0]) for cells in rows(OPERATIONS.read_text(), "## Exit codes")}
    codes = {value for name, value in vars(ExitCode).items() if name.isupper()}
    assert told == codes
    helped = {int(code) for code in re.findall(r"^ +(\d+)  ", str(cli.epilog), re.MULTILINE)}
    assert told == helped


def test_what_it_says_when_it_refuses_is_what_the_code_says() -> None:
    source = " ".join(path.read_text() for path in (ROOT / "meshforge_trio").rglob("*.py"))
    # Sentences that stand in several literals, one after the other.
    joined = re.sub(r'"\s*\n\s*f?"', "", source)
    for cells in rows(OPERATIONS.read_text(), "## When it refuses to start"):
        for said in re.findall(r"`([^`]+)`", cells[0]):
            for part in said.split("..."):
                assert part.strip() in joined, part


def test_the_compose_file() -> None:
    text = COMPOSE.read_text()
    keys = re.findall(r"^([\w-]+):", text, re.MULTILINE)
    assert sorted(keys) == ["configs", "name", "services", "volumes"], "`version` is obsolete"
    assert "\t" not in text
    found = re.search(r"image: nats:(\d+)\.(\d+)", text)
    assert found is not None
    assert (int(found[1]), int(found[2])) >= (2, 15)
    assert re.findall(r"sync_interval: (\S+)$", text, re.MULTILINE) == ['"2m"', "always"]
    assert "healthcheck:" in text


def test_the_server_takes_the_configuration_of_the_compose_file(tmp_path: Path) -> None:
    content = COMPOSE.read_text().split("content: |\n", 1)[1]
    default = content.replace('store_dir: "/data"', f'store_dir: "{tmp_path}"')
    always = default.replace('sync_interval: "2m"', "").replace("# sync_interval: always", "sync_interval: always")
    for number, text in enumerate((default, always)):
        file = tmp_path / f"{number}.conf"
        file.write_text(text)
        done = subprocess.run(
            [find_binary(), "-t", "-c", file], capture_output=True, text=True, check=False, timeout=30
        )
        assert done.returncode == 0, done.stderr
