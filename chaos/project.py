"""Somebody's own project: agents, the commands to send them, and what `pyproject.toml` says of both.

    [tool.meshforge-chaos]
    app = "parcels:app"
    workload = "commands.jsonl"
    scenarios = "scenarios"                    # scripts with a SCENARIO; this is the default
    unreached = { before_hold = "no handler of ours raises" }
    regressions = ["worker#1:after_store@2=kill"]    # plans that once broke something, run first
    kills_min = 40                             # with fewer kills the gate is inconclusive
    invariants = "scenarios.invariants:INVARIANTS"   # checkers of your own, judged on every run of the sweeps

A workload is one JSON object a line:

    {"agent": "parcel", "action": "register", "payload": {"to": "Ada"}, "entity_id": "p-1"}

with `key`, `expected_version`, `query`, `repeatable`, `workspace`, `phase` and `expect` if they are wanted. `expect`
lists the outcomes that the command may have: decided, conflict, refused, dead. Without a line of phase `after`, the
first command that is no query is sent again when the last fault has healed: what was broken must work again.
"""

from __future__ import annotations

import importlib
import shlex
import sys
import time
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import attrs
import orjson

from chaos.builtin import CRASH_MATRIX
from chaos.checkers import Checker
from chaos.evidence import Sent
from chaos.scenario import Scenario
from chaos.workload import command
from meshforge_trio.agent import Agent
from meshforge_trio.envelope import decode_command, encode
from meshforge_trio.errors import Misconfigured, Poison
from meshforge_trio.launch import adapter_of, load_app
from meshforge_trio.points import Point
from meshforge_trio.runtime import App
from meshforge_trio.subjects import SYSTEM_PREFIX, Scope, is_token

__all__ = ["Project", "ProjectError", "app_scenario", "load_project", "read_workload", "workspaces_of"]

_TABLE: Final = "meshforge-chaos"
_WORKSPACE: Final = "default/demo"
_FIELDS: Final[Mapping[str, tuple[type, ...]]] = {
    "agent": (str,),
    "action": (str,),
    "payload": (dict,),
    "later_s": (dict,),
    "entity_id": (str, type(None)),
    "key": (str,),
    "expected_version": (int, type(None)),
    "query": (bool,),
    "repeatable": (bool,),
    "workspace": (str,),
    "phase": (str,),
    "expect": (list,),
}
_NEEDED: Final = ("agent", "action")
_OUTCOMES: Final = ("decided", "conflict", "refused", "dead")


class ProjectError(ValueError):
    """A workload or a configuration that cannot be used; the message names the line or the key."""


@attrs.frozen
class Project:
    """What `[tool.meshforge-chaos]` says. `unreached` gives reasons for points that the workload never gets to."""

    app: str | None = None
    workload: Path | None = None
    scenarios: Path = Path("scenarios")
    unreached: Mapping[str, str] = attrs.field(factory=dict)
    regressions: Sequence[str] = ()
    kills_min: int | None = None
    invariants: Sequence[Checker] = ()


def load_project(folder: Path) -> Project:
    """What `pyproject.toml` in `folder` says; nothing, if there is none or it has no such table.

    Raises:
        ProjectError: it is no TOML, or a key is unknown or of another type.
    """
    path = folder / "pyproject.toml"
    try:
        tool = tomllib.loads(path.read_text()).get("tool", {})
    except FileNotFoundError:
        return Project()
    except (OSError, ValueError) as error:
        raise ProjectError(f"{path} cannot be read: {error}") from error
    table = tool.get(_TABLE, {}) if isinstance(tool, dict) else tool
    where = f"{path}: [tool.{_TABLE}]"
    if not isinstance(table, dict):
        raise ProjectError(f"{where} must be a table")
    unknown = sorted(table.keys() - {field.name for field in attrs.fields(Project)})
    if unknown:
        raise ProjectError(f"{where} has no {unknown[0]!r}; it has: {_names()}")
    for name in ("app", "workload", "scenarios"):
        if not isinstance(table.get(name, ""), str):
            raise ProjectError(f"{where} {name} must be a text")
    unreached = table.get("unreached", {})
    if not isinstance(unreached, dict) or not all(isinstance(reason, str) for reason in unreached.values()):
        raise ProjectError(f"{where} unreached must be a table of reasons by point")
    strangers = sorted(unreached.keys() - set(Point))
    if strangers:
        raise ProjectError(f"{where} unreached: there is no point {strangers[0]!r}")
    regressions, kills_min = table.get("regressions", []), table.get("kills_min")
    if not isinstance(regressions, list) or not all(isinstance(plan, str) for plan in regressions):
        raise ProjectError(f"{where} regressions must be a list of plans")
    if kills_min is not None and (type(kills_min) is not int or kills_min < 1):
        raise ProjectError(f"{where} kills_min must be a number, 1 or more")
    workload = table.get("workload")
    checkers = table.get("invariants")
    return Project(
        table.get("app"),
        None if workload is None else folder / workload,
        folder / table.get("scenarios", "scenarios"),
        unreached,
        tuple(regressions),
        kills_min,
        () if checkers is None else _checkers(checkers, folder, f"{where} invariants"),
    )


def _checkers(spec: object, folder: Path, where: str) -> Sequence[Checker]:
    """The checkers that `module:attr` names; the project's folder is searched first."""
    module, _, attribute = spec.partition(":") if isinstance(spec, str) else ("", "", "")
    if not module or not attribute:
        raise ProjectError(f"{where} must be <module>:<attribute>")
    here = str(folder.resolve())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:
        raise ProjectError(f"{where}: {spec} cannot be imported: {type(error).__name__}: {error}") from error
    if not isinstance(found, list | tuple) or not all(isinstance(each, Checker) for each in found):
        raise ProjectError(f"{where}: {spec} must be a list of chaos.checkers.Checker")
    return tuple(found)


def _names() -> str:
    return ", ".join(field.name for field in attrs.fields(Project))


def app_scenario(app: str, workload: Path, invariants: Sequence[Checker] = ()) -> Scenario:
    """Anybody's agents, killed at every hit of every point while they work on the commands of a file.

    `invariants` are judged beside the guarantees.

    Raises:
        ProjectError: the workload cannot be read, or names an agent or an action that the app does not have.
        Misconfigured: the app cannot be loaded.
    """
    sent = read_workload(workload)
    _check_known(load_app(app), sent, workload)
    return attrs.evolve(
        CRASH_MATRIX,
        name=app.replace(":", "-").replace(".", "-"),
        about=f"{app} is killed at every hit of every point.",
        app=app,
        workload=lambda seed: sent,
        workspaces=workspaces_of(sent),
        invariants=invariants,
        source=f"--app {shlex.quote(app)} --workload {shlex.quote(str(workload))}",
    )


def _check_known(app: App, sent: Sequence[Sent], workload: Path) -> None:
    """A command that no agent knows would wait for ever, or be refused: a name misspelt, and not what was meant."""
    for each in sent:
        asked, where = each.command, f"{workload}: line {each.command.id.removeprefix('c')}"
        try:
            agent = adapter_of(app, asked.agent)
        except Misconfigured as error:
            raise ProjectError(f"{where}: {error}") from error
        if (
            isinstance(agent, Agent)
            and not asked.action.startswith(SYSTEM_PREFIX)
            and asked.action not in agent.actions
        ):
            raise ProjectError(f"{where}: {agent.name} has no {asked.action!r}; it has: {', '.join(agent.actions)}")
        if each.query is not agent.is_query(asked.action):
            told = "changes something, and query is true" if each.query else "only reads: set query to true"
            raise ProjectError(f"{where}: {agent.name}.{asked.action} {told}")


def workspaces_of(sent: Iterable[Sent]) -> tuple[str, ...]:
    """Which `<tenant>/<workspace>` commands go to."""
    return tuple(dict.fromkeys(f"{each.scope.tenant}/{each.scope.workspace}" for each in sent))


def read_workload(path: Path) -> Sequence[Sent]:
    """The commands of a file, and what is sent afterwards. Fields of payloads in `later_s` are counted from now.

    Raises:
        ProjectError: it cannot be read, is empty, or a line of it is no command.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ProjectError(f"the workload {path} cannot be read: {error.strerror or error}") from error
    now = int(time.time())
    sent = [_sent(line, number, f"{path}: line {number}", now) for number, line in enumerate(lines, 1) if line.strip()]
    if not sent:
        raise ProjectError(f"the workload {path} has no commands: write one JSON object a line")
    first = next((each for each in sent if not each.query), None)
    if first is not None and all(each.phase != "after" for each in sent):
        # Numbered as if it were a line.
        again = attrs.evolve(first.command, id=f"c{len(lines) + 1}")
        sent.append(attrs.evolve(first, command=again, phase="after"))
    return sent


def _sent(line: bytes, number: int, where: str, now: int) -> Sent:
    try:
        told = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ProjectError(f"{where} is no JSON, or a truncated one: {error}") from error
    if not isinstance(told, dict):
        raise ProjectError(f"{where} is no object")
    _check(told, where)
    tenant, _, workspace = told.get("workspace", _WORKSPACE).partition("/")
    query = told.get("query", False)
    moments = {name: now + seconds for name, seconds in told.get("later_s", {}).items()}
    if not is_token(tenant) or not is_token(workspace):
        raise ProjectError(f"{where}: workspace must be <tenant>/<workspace>")
    try:
        made = command(
            Scope.checked(tenant, workspace, told["agent"]),
            told["action"],
            number,
            {**told.get("payload", {}), **moments},
            entity_id=told.get("entity_id"),
            expected_version=told.get("expected_version"),
            idempotency_key=told.get("key", None if query else f"k{number}"),
        )
        # What the runtime would not take for a command.
        decode_command(encode(made))
    except Poison as error:
        raise ProjectError(f"{where}: {error.reason}") from error
    return Sent(
        made,
        query=query,
        expect=tuple(told.get("expect", ())),
        repeatable=told.get("repeatable", True),
        phase=told.get("phase", "main"),
    )


def _check(told: Mapping[str, Any], where: str) -> None:
    for name in _NEEDED:
        if name not in told:
            raise ProjectError(f"{where}: {name} is missing")
    for name, value in told.items():
        types = _FIELDS.get(name)
        if types is None:
            raise ProjectError(f"{where}: there is no field {name!r:.60}; there are: {', '.join(_FIELDS)}")
        if type(value) not in types:
            raise ProjectError(f"{where}: {name} must be {_words(types)}, not {type(value).__name__}")
    if any(type(seconds) is not int for seconds in told.get("later_s", {}).values()):
        raise ProjectError(f"{where}: later_s must be an object of whole seconds from now, by the payload's fields")
    if not is_token(told["action"]):
        raise ProjectError(f"{where}: action must be 1 to 64 of A-Z a-z 0-9 _ -")
    if told.get("phase", "main") not in ("main", "after"):
        raise ProjectError(f"{where}: phase must be main or after")
    if any(outcome not in _OUTCOMES for outcome in told.get("expect", ())):
        raise ProjectError(f"{where}: expect must be a list of {', '.join(_OUTCOMES)}")


def _words(types: Sequence[type]) -> str:
    return " or ".join("null" if kind is type(None) else kind.__name__ for kind in types)
