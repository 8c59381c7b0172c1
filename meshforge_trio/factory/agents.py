"""The source of agents: `agents/<name>.py` from what the PRD says, `rules/<name>.py` for what it leaves to a person."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import Final

from meshforge_trio.factory.classes import classes
from meshforge_trio.factory.handlers import functions
from meshforge_trio.factory.model import AgentSpec, Prd
from meshforge_trio.factory.naming import custom_rules, name_module
from meshforge_trio.factory.python import WIDTH, call, display, docstring, literal, sentence

__all__ = ["agent_source", "app_source", "rules_source"]

_STANDARD: Final[Mapping[str, str]] = {"Decimal": "decimal", "Literal": "typing"}
#: What a module may need of the runtime, by where it is.
_RUNTIME: Final[Mapping[str, Sequence[str]]] = {
    "meshforge_trio.agent": ("Agent", "Context", "Reply", "Send"),
    "meshforge_trio.envelope": ("JsonObject",),
    "meshforge_trio.errors": ("Refused",),
    "meshforge_trio.guards": (
        *("as_json", "between", "existing_entity", "named_entity", "new_entity", "representable", "sized"),
    ),
}


def app_source(prd: Prd, *, lock_manager: bool) -> str:
    """`agents/__init__.py`: the app."""
    names = [agent.name for agent in prd.agents]
    served = [f"{name}.agent" for name in names] + (["LockManagerAdapter()"] if lock_manager else [])
    return "".join(
        (
            docstring(f"{sentence(prd.title)[:-1]}: the agents, as `meshforge run agents:app` serves them."),
            "\nfrom __future__ import annotations\n\n",
            "from meshforge_trio.locks import LockManagerAdapter\n" if lock_manager else "",
            "from meshforge_trio.runtime import App\n\n",
            _imported("agents", sorted(names)),
            "\n",
            _app(served),
        )
    )


def _app(served: Sequence[str]) -> str:
    line = f"app = App([{', '.join(served)}])\n"
    return line if len(line) - 1 <= WIDTH else "app = App(\n" + display("", served, indent=4) + ")\n"


def _imported(module: str, names: Sequence[str]) -> str:
    line = f"from {module} import {', '.join(names)}\n"
    if len(line) - 1 <= WIDTH:
        return line
    return f"from {module} import (\n" + "".join(f"    {name},\n" for name in names) + ")\n"


def agent_source(prd: Prd, agent: AgentSpec) -> str:
    """`agents/<name>.py`."""
    names = name_module(agent)
    made = f"agent: Agent[{names.state}] = Agent({literal(agent.name)}, state={names.state}, initial={names.state})\n"
    body = "".join(f"\n\n{part}" for part in (*classes(prd, agent, names), made, *functions(prd, agent, names)))
    about = sentence(agent.prose) or f"The agent `{agent.name}`."
    return docstring(about) + "\nfrom __future__ import annotations\n\n" + _imports(agent, body) + body


def _imports(agent: AgentSpec, body: str) -> str:
    """What the body uses, in the order that `ruff` sorts it in."""
    words = {node.id for node in ast.walk(ast.parse(body)) if isinstance(node, ast.Name)}
    standard = [f"from {module} import {name}\n" for name, module in _STANDARD.items() if name in words]
    runtime = [
        _imported(module, [name for name in known if name in words])
        for module, known in _RUNTIME.items()
        if words & set(known)
    ]
    own = [f"\nfrom rules import {agent.name} as rules\n"] if custom_rules(agent) else []
    return "".join((*standard, "\n" if standard else "", "import attrs\n", *runtime, *own))


def rules_source(agent: AgentSpec) -> str | None:
    """`rules/<name>.py`: a function for each rule in words; `None` if there is none."""
    rules = custom_rules(agent)
    if not rules:
        return None
    names = name_module(agent)
    head = docstring(
        f"Rules of `{agent.name}` that the PRD says in words: yours to write.\n\n"
        "Each is called before its command takes effect. Raise `Refused(reason, code=...)` where the rule is broken, "
        "and read the state, the payload and `ctx` alone: the same command on the same state must be decided alike. "
        "This file is never written over; a rule that is new in the PRD is added at its end."
    )
    imports = (
        "\nfrom __future__ import annotations\n\nfrom typing import TYPE_CHECKING\n\n"
        "from meshforge_trio.agent import Context\n\n"
        f"if TYPE_CHECKING:\n    from agents import {agent.name}\n"
    )
    functions = [
        call(
            f"def {name}",
            [
                f"state: {agent.name}.{names.state}",
                f"payload: {agent.name}.{names.commands[command.name]}",
                "ctx: Context",
            ],
            " -> None:",
        )
        + docstring(f"{sentence(custom.text)}\n\nNot enforced until somebody writes it here.", 4)
        for command, custom, name in rules
    ]
    return head + imports + "".join(f"\n\n{function}" for function in functions)
