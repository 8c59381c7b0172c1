"""From a PRD and a profile to the files of a workspace. The same PRD gives the same bytes, wherever and whenever."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Final

import attrs
import jinja2

from meshforge_trio.factory.agents import agent_source, app_source, rules_source
from meshforge_trio.factory.examples_source import acceptance_source, invariants_source, workload_lines
from meshforge_trio.factory.model import Prd, SendCommand
from meshforge_trio.factory.naming import custom_rules
from meshforge_trio.factory.profiles import Profile
from meshforge_trio.factory.python import docstring, literal, sentence
from meshforge_trio.factory.story import scenes
from meshforge_trio.factory.workspace import File, Update, plan_update, write_update

__all__ = ["RuntimeGenerator"]

#: What comes from a template, by its path in the workspace.
_TEMPLATES: Final[Mapping[str, str]] = {
    "pyproject.toml": "pyproject.toml",
    "meshforge.toml": "meshforge.toml",
    "README.md": "README.md",
    "Dockerfile": "Dockerfile",
    "docker-compose.jetstream.yml": "docker-compose.jetstream.yml",
    ".gitignore": "gitignore",
    ".dockerignore": "dockerignore",
    ".github/workflows/durability.yml": "durability.yml",
    "scenarios/invariants.py": "scenarios/invariants.py",
    "tests/bus.py": "tests/bus.py",
    "tests/world.py": "tests/world.py",
    "tests/smoke_test.py": "tests/smoke_test.py",
    "tests/smoke_test_concurrency.py": "tests/smoke_test_concurrency.py",
    "tests/test_chaos.py": "tests/test_chaos.py",
}
_EXECUTABLE: Final = frozenset(
    {"tests/smoke_test.py", "tests/smoke_test_concurrency.py", "scenarios/invariants.py", "keys.py"}
)
_NODES: Final[Mapping[str, Sequence[str]]] = {
    "private": ("nats",),
    "compose": ("nats",),
    "cluster": ("nats-1", "nats-2", "nats-3"),
}


@attrs.frozen
class RuntimeGenerator:
    """Makes a workspace from a PRD, of which `text` is the document itself: it becomes part of the workspace."""

    prd: Prd
    profile: Profile
    text: str

    def files(self) -> Sequence[File]:
        """Every file of the workspace but the manifest, sorted by path.

        Raises:
            Misconfigured: the PRD has no example that could be a smoke test.
        """
        return sorted(self._files(), key=lambda file: file.path)

    def plan(self, directory: Path, keep: Collection[str] = ()) -> Update:
        """What writing it into `directory` comes to; see `plan_update`, which also says what it raises."""
        return plan_update(directory, self.files(), profile=self.profile.to_toml(), keep=keep)

    def write(self, directory: Path) -> Update:
        """Write it into `directory`, new or generated before; return what became of each file.

        Raises:
            Misconfigured: as `plan_update`, or a file was changed by hand and by the PRD.
        """
        update = self.plan(directory)
        write_update(update)
        return update

    # -- files -------------------------------------------------------------------------------------------------

    def _files(self) -> Iterator[File]:
        prd, toggles = self.prd, self.profile.toggles
        yield File("prd.md", self.text)
        yield File("agents/__init__.py", app_source(prd, lock_manager=toggles.lock_manager))
        yield File("rules/__init__.py", docstring("Rules that the PRD says in words, written by hand."), own=True)
        yield File("scenarios/__init__.py", docstring("What the agents are put through."))
        for agent in prd.agents:
            yield File(f"agents/{agent.name}.py", agent_source(prd, agent))
            rules = rules_source(agent)
            if rules is not None:
                yield File(f"rules/{agent.name}.py", rules, own=True)
        yield File("tests/test_acceptance.py", acceptance_source(prd))
        yield File("scenarios/workload.jsonl", workload_lines(prd) + _lock_lines(prd) * toggles.lock_manager)
        wanted = dict(_TEMPLATES)
        if toggles.dead_letters:
            wanted["tests/test_dead_letters.py"] = "tests/test_dead_letters.py"
        if toggles.telemetry:
            wanted["tests/test_telemetry.py"] = "tests/test_telemetry.py"
        words = self._words()
        if words["keys"]:
            wanted["keys.py"] = "keys.py"
        for path, template in wanted.items():
            text = _environment().get_template(f"{template}.j2").render(words)
            yield File(path, text, executable=path in _EXECUTABLE)

    def _words(self) -> dict[str, Any]:
        """What the templates speak of."""
        prd, profile = self.prd, self.profile
        lead, *others = scenes(prd)
        cluster = profile.broker == "cluster"
        nodes = _NODES[profile.broker]
        inner = [f"nats://{node}:4222" for node in nodes]
        return {
            "title": prd.title,
            "prose": prd.prose,
            "slug": prd.slug,
            "tenant": prd.tenant,
            "workspace": f"{prd.tenant}/{prd.workspace}",
            "workspace_name": prd.workspace,
            "agents": prd.agents,
            "profile": profile.name,
            "about": profile.about,
            "broker": profile.broker,
            "replicas": profile.replicas,
            "toggles": profile.toggles,
            "cluster": cluster,
            "keys": cluster or profile.toggles.security == "signed",
            "nodes": nodes,
            "url": _outer_url(nodes),
            "default_url": _outer_url(nodes, "localhost"),
            "urls": ",".join(inner),
            "permissions": list(_permissions(prd, locks=profile.toggles.lock_manager)),
            "lead": lead,
            "others": others,
            "invariants": invariants_source(prd, [scene.agent for scene in (lead, *others) if not scene.timely]),
            "custom": [(agent.name, name, rule.text) for agent in prd.agents for _, rule, name in custom_rules(agent)],
        }


def _outer_url(nodes: Sequence[str], host: str = "127.0.0.1") -> str:
    return ",".join(f"nats://{host}:{4222 + number}" for number in range(len(nodes)))


def _permissions(prd: Prd, *, locks: bool) -> Iterator[str]:
    """Clients may ask for what is not internal; agents send what the PRD has them send."""
    for agent in prd.agents:
        for command in agent.commands:
            if not command.internal:
                yield f"allow user:* -> {agent.name}.{command.name}"
        for query in agent.queries:
            yield f"allow user:* -> {agent.name}.{query.name}"
    sent = {
        (agent.name, effect.agent, effect.command): None
        for agent in prd.agents
        for command in agent.commands
        for effect in command.effects
        if isinstance(effect, SendCommand)
    }
    for sender, receiver, action in sent:
        yield f"allow agent:{sender} -> {receiver}.{action}"
    if locks:
        yield "allow user:* -> sys_lock_manager.*"
    # Redriving and discarding dead letters, and what the runtime sends itself.
    yield "allow system:* -> *"


def _lock_lines(prd: Prd) -> str:
    """Two owners who want one resource, for the workload."""
    # What a lease comes to depends on the time.
    place = {"agent": "sys_lock_manager", "workspace": f"{prd.tenant}/{prd.workspace}", "repeatable": False}
    asked = [
        ("acquire", {"resource_id": "door", "owner_id": "ann", "ttl_seconds": 60.0}),
        ("acquire", {"resource_id": "door", "owner_id": "bob", "ttl_seconds": 60.0}),
        ("release", {"resource_id": "door", "owner_id": "ann"}),
        ("acquire", {"resource_id": "door", "owner_id": "bob", "ttl_seconds": 60.0}),
    ]
    return "".join(json.dumps({**place, "action": action, "payload": payload}) + "\n" for action, payload in asked)


@cache
def _environment() -> jinja2.Environment:
    templates = Path(str(resources.files(__package__) / "templates"))
    made = jinja2.Environment(  # noqa: S701
        loader=jinja2.FileSystemLoader(templates),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {"python": literal, "toml": _toml, "sentence": sentence, "docstring": docstring}
    return made


def _toml(text: str) -> str:
    """A basic string of TOML, which is one of JSON but for a control character that neither prints."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
