"""What a workspace is made of: formatted Python, files that other programs take, the same bytes every time."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import attrs
import pytest
from generated import DEMO, PRDS, ROOT, generator, texts

from chaos.project import read_workload
from meshforge_trio.config import load_settings
from meshforge_trio.errors import Misconfigured
from meshforge_trio.factory.model import Prd
from meshforge_trio.factory.prd import load_prd
from meshforge_trio.factory.profiles import PROFILES, load_profile
from meshforge_trio.factory.reading import decided_by_time
from meshforge_trio.permissions import parse_rule
from meshforge_trio.server import find_binary

#: Where what a gate looks at is.
JUDGED = ("agents", "rules", "scenarios")

every_prd = pytest.mark.parametrize("path", PRDS, ids=lambda path: path.stem)


def run(*command: str | Path, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=cwd,
        env={**os.environ, **environment},
    )


def test_there_are_prds_of_many_fields() -> None:
    assert len(PRDS) >= 11


@pytest.fixture(scope="module")
def workspaces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every PRD with every profile, and the demo with each toggle the other way."""
    home = tmp_path_factory.mktemp("workspaces")
    for path in PRDS:
        for profile in PROFILES:
            generator(path, profile).write(home / profile / path.stem)
    generator(DEMO, "local", lock_manager=True, security="signed", telemetry=True).write(home / "toggles/on")
    generator(DEMO, "cluster", lock_manager=False, security="strict", dead_letters=False).write(home / "toggles/off")
    generator(in_odd_words(home), "cluster").write(home / "words/odd")
    return home


def in_odd_words(home: Path) -> Path:
    """The demo, written by somebody who likes quotes, brackets and bars."""
    text = DEMO.read_text()
    for plain, odd in (
        ("# Order, inventory and shipping", '# The "shop" of O\'Neil {{ x }} "'),
        ("A small shop.", 'A """shop""" with \\n {% x %} {{ y }} | bars.'),
        ("An order of one customer for one thing.", 'An """order""" of \\d one customer | for "one thing"'),
        ("order {id} is {status}", "order '{id}' is \"{status}\", \\ so to speak"),
    ):
        assert plain in text
        text = text.replace(plain, odd)
    (home / "odd.md").write_text(text)
    return home / "odd.md"


def test_every_workspace_is_formatted_and_has_no_findings(workspaces: Path) -> None:
    assert len(list(workspaces.glob("*/*/agents/__init__.py"))) == len(PRDS) * len(PROFILES) + 3
    for check in (("format", "--check"), ("check",)):
        done = run(sys.executable, "-m", "ruff", *check, "--no-cache", workspaces)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_settings_and_the_project_can_be_read(workspaces: Path) -> None:
    for home in workspaces.glob("*/*"):
        settings = load_settings(home / "meshforge.toml", environ={})
        assert settings.permissions
        assert tomllib.loads((home / "pyproject.toml").read_text())["tool"]["meshforge-chaos"]["app"] == "agents:app"
        assert read_workload(home / "scenarios/workload.jsonl")


def test_the_compose_files_are_as_the_specification_has_them(workspaces: Path) -> None:
    files = sorted(workspaces.glob("*/*/docker-compose.jetstream.yml"))
    done = run(sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", *files)
    assert done.returncode == 0, done.stdout
    for file in files:
        text = file.read_text()
        assert not re.search("^version:", text, re.MULTILINE)
        assert text.count("image: nats:2.15-alpine") == text.count("js-enabled-only=true") in (1, 3)


def test_a_server_takes_the_configuration_in_the_compose_file(tmp_path: Path) -> None:
    compose = texts(generator())["docker-compose.jetstream.yml"]
    conf = tmp_path / "nats.conf"
    conf.write_text(compose.split("content: |\n", 1)[1].replace('"/data"', json.dumps(str(tmp_path))))
    done = run(find_binary(), "-t", "-c", conf)
    assert done.returncode == 0, done.stderr


def test_the_keys_are_made_outside_of_version_control(workspaces: Path, tmp_path: Path) -> None:
    generator(DEMO, "cluster").write(tmp_path / "shop")
    done = run(sys.executable, "keys.py", cwd=tmp_path / "shop")
    assert done.returncode == 0, done.stderr
    keys = tmp_path / "shop/.keys"
    assert sorted(path.name for path in keys.glob("*.nk")) == [
        "default-client.nk",
        "default-operator.nk",
        "default-runtime.nk",
    ]
    assert all(path.stat().st_mode & 0o077 == 0 for path in keys.glob("*.nk"))
    ignored = (tmp_path / "shop/.gitignore").read_text().splitlines()
    assert {".keys/", ".env", "var/"} <= set(ignored)
    for node in ("nats-1", "nats-2", "nats-3"):
        conf = keys / f"{node}.conf"
        conf.write_text(conf.read_text().replace('"/data/', f'"{tmp_path}/'))
        assert run(find_binary(), "-t", "-c", conf).returncode == 0
    entries = (tmp_path / "shop/.env").read_text().partition("=")[2].strip('"\n').split(",")
    settings = load_settings(tmp_path / "shop/meshforge.toml", environ={"MESHFORGE_SIGNING_KEYS": ",".join(entries)})
    assert len(settings.signing_keys) == 3
    assert settings.engine.replicas == 3


@every_prd
def test_the_gate_judges_the_same_whatever_the_profile(path: Path) -> None:
    def judged(profile: str) -> dict[str, Any]:
        toggles = attrs.asdict(load_profile("local").toggles)
        files = texts(generator(path, profile, **toggles))
        found: dict[str, Any] = {name: text for name, text in files.items() if name.split("/")[0] in JUDGED}
        return {**found, "how": tomllib.loads(files["pyproject.toml"])["tool"]["meshforge-chaos"]}

    assert judged("local") == judged("test-nats") == judged("cluster")
    assert judged("local").keys() > {"agents/__init__.py", "scenarios/invariants.py", "scenarios/workload.jsonl"}


@pytest.mark.parametrize(
    ("environment", "elsewhere"),
    [
        ({"PYTHONHASHSEED": "1", "TZ": "Pacific/Kiritimati", "LC_ALL": "C"}, False),
        ({"PYTHONHASHSEED": "77", "TZ": "Etc/GMT+12", "LC_ALL": "C.UTF-8", "PYTHONUTF8": "0"}, True),
    ],
    ids=["kiritimati", "elsewhere"],
)
def test_the_same_prd_gives_the_same_bytes(tmp_path: Path, environment: dict[str, str], elsewhere: bool) -> None:
    out = tmp_path / "shop"
    done = run(
        *(sys.executable, "-m", "meshforge_trio", "generate", "--prd", DEMO, "--profile", "cluster", "--output", out),
        cwd=tmp_path if elsewhere else ROOT,
        **environment,
    )
    assert done.returncode == 0, done.stderr
    here = tmp_path / "here"
    generator(DEMO, "cluster").write(here)

    def digests(home: Path) -> dict[str, str]:
        files = sorted(path for path in home.rglob("*") if path.is_file())
        return {str(path.relative_to(home)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    assert digests(out) == digests(here)


# -- what is in them -------------------------------------------------------------------------------------------


@every_prd
def test_every_handler_that_the_prd_names_is_there(path: Path) -> None:
    made = generator(path)
    files = texts(made)
    for agent in made.prd.agents:
        source = files[f"agents/{agent.name}.py"]
        functions = {node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
        assert len(functions) == sum(map(len, (agent.commands, agent.queries, agent.reactions, agent.events)))
        for event in agent.events:
            assert f'@agent.event("{event.name}")' in source
    tests = ast.parse(files["tests/test_acceptance.py"]).body
    assert sum(isinstance(node, ast.FunctionDef) for node in tests) == len(made.prd.examples)


def test_what_is_internal_can_be_asked_by_nobody() -> None:
    files = texts(generator())
    assert '@agent.command("reserve")' not in files["agents/inventory.py"]
    assert "def reserve(" in files["agents/inventory.py"]
    rules = tomllib.loads(files["meshforge.toml"])["permissions"]
    assert "allow user:* -> order.create" in rules
    assert not [rule for rule in rules if ".reserve" in rule]
    assert all(parse_rule(rule).allows for rule in rules)


def test_a_wheel_that_no_index_has_is_found_everywhere() -> None:
    files = texts(generator())
    assert (
        "COPY pyproject.toml wheels* /tmp/wheels/\nRUN pip install --no-cache-dir --find-links /tmp/wheels ."
        in (files["Dockerfile"])
    )
    assert "!wheels" in files[".dockerignore"].splitlines()
    assert "pip install --find-links wheels --editable" in files[".github/workflows/durability.yml"]
    assert "--wheel-dir wheels" in files["README.md"]


def test_a_component_that_is_off_leaves_nothing_behind() -> None:
    off = texts(generator(lock_manager=False, telemetry=False, dead_letters=False))
    for path, text in off.items():
        assert not re.search(r"lock_manager|LockManager|\.lock\.|signing|nkey|log_json|dlq", text), path
    assert not {"keys.py", "tests/test_dead_letters.py", "tests/test_telemetry.py"} & off.keys()
    assert tomllib.loads(off["meshforge.toml"])["engine"]["retry"]["limit"] == 0


def test_a_component_that_is_on_is_wired_and_tested() -> None:
    on = texts(generator(lock_manager=True, security="signed", telemetry=True))
    assert "LockManagerAdapter()" in on["agents/__init__.py"]
    assert '"acquired"' in on["tests/smoke_test_concurrency.py"]
    assert '"sys_lock_manager"' in on["scenarios/workload.jsonl"]
    assert '"G10"' in on["scenarios/invariants.py"]
    assert "Signer" in on["tests/bus.py"]
    assert {"keys.py", "tests/test_dead_letters.py", "tests/test_telemetry.py"} <= on.keys()
    assert tomllib.loads(on["meshforge.toml"])["engine"]["retry"]["limit"] == 5


def test_a_prd_without_an_example_to_begin_with_is_refused() -> None:
    made = generator()
    bare: Prd = attrs.evolve(made.prd, examples=())
    with pytest.raises(Misconfigured, match="nothing to smoke-test"):
        attrs.evolve(made, prd=bare).files()


def test_examples_do_not_meet_in_the_workload() -> None:
    lines = [json.loads(line) for line in texts(generator())["scenarios/workload.jsonl"].splitlines()]
    created: list[Any] = [
        line["entity_id"] for line in lines if (line["agent"], line["action"]) == ("inventory", "create")
    ]
    assert len(created) == len(set(created)) > 1
    ordered = [line for line in lines if (line["agent"], line["action"]) == ("order", "create")]
    assert {line["payload"]["sku"] for line in ordered} <= {*created, "lamp-4"}


def test_moments_of_the_examples_are_as_far_from_whoever_sends_them(tmp_path: Path) -> None:
    """Else there is a day from which on every appointment lies in the past, and all that is sent is refused."""
    path = next(path for path in PRDS if path.stem == "appointments")
    (tmp_path / "workload.jsonl").write_text(texts(generator(path))["scenarios/workload.jsonl"])
    before = time.time()
    sent = [each.command for each in read_workload(tmp_path / "workload.jsonl")]
    after = time.time()
    begins = [command.payload["begins"] for command in sent if command.action == "offer"]
    days, hours = 3 * 86_400 + 3_600, 23 * 3_600
    assert int(before) + days <= begins[0] <= after + days
    assert int(before) + hours <= begins[3] <= after + hours, "the one that is cancelled too late"
    assert all("lasts" in command.payload for command in sent if command.action == "offer")


def test_what_came_too_early_perhaps_is_asked_for_again() -> None:
    lines = [json.loads(line) for line in texts(generator())["scenarios/workload.jsonl"].splitlines()]
    later = [(line["agent"], line["action"]) for line in lines if line.get("phase") == "after"]
    assert later == [("shipping", "dispatch"), ("inventory", "receive")]


def test_what_depends_on_the_time_need_not_be_decided_alike() -> None:
    workload = texts(generator(lock_manager=True))["scenarios/workload.jsonl"]
    lines = [json.loads(line) for line in workload.splitlines()]
    timely = {(line["agent"], line["action"]) for line in lines if line.get("repeatable") is False}
    alike = {
        (line["agent"], line["action"]) for line in lines if line.get("repeatable", True) and not line.get("query")
    }
    assert timely == {("shipping", "dispatch"), ("sys_lock_manager", "acquire"), ("sys_lock_manager", "release")}
    assert alike == {("order", "create"), ("inventory", "create"), ("inventory", "receive")}


def test_what_leads_to_something_that_depends_on_the_time_does_so_itself() -> None:
    found = decided_by_time(load_prd(ROOT / "tests/prds/ticketing.md"))
    assert ("booking", "hold") in found
    made = load_prd(DEMO)
    assert decided_by_time(made) == {("shipping", "dispatch")}
    order = made.agent("order")
    upon = attrs.evolve(order.reactions[0], agent="inventory", event="created", command="confirm")
    timely = attrs.evolve(order.command("confirm"), effects=made.agent("shipping").command("dispatch").effects)
    commands = tuple(timely if command.name == "confirm" else command for command in order.commands)
    changed = attrs.evolve(order, reactions=(upon,), commands=commands)
    agents = tuple(changed if agent.name == "order" else agent for agent in made.agents)
    assert ("inventory", "create") in decided_by_time(attrs.evolve(made, agents=agents))
