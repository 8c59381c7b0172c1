"""The commands of the smoke tests: from the examples, for each agent one that brings an entity of its own about."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs

from meshforge_trio.errors import Misconfigured
from meshforge_trio.factory.examples_source import json_value
from meshforge_trio.factory.model import AgentSpec, Command, Emit, Prd, Step
from meshforge_trio.factory.python import call, literal
from meshforge_trio.factory.reading import uses

__all__ = ["Scene", "scenes"]


@attrs.frozen
class Scene:
    """One command to an entity that nobody has touched, and what it must be answered with.

    What it comes to depends on nothing but itself, so that it may be sent to a deployment that is in use. Where it
    depends on the time, `later_s` are the moments in it, in seconds from now.
    """

    agent: str
    action: str
    payload: Mapping[str, Any]
    later_s: Mapping[str, int]
    answers: Sequence[str]
    query: str | None
    number: int = 1

    @property
    def title(self) -> str:
        """The agent's name for people."""
        return self.agent.replace("_", " ").title()

    @property
    def action_title(self) -> str:
        """The action's name for people."""
        return self.action.replace("_", " ").title()

    @property
    def function(self) -> str:
        """The name of its function in the smoke test."""
        return f"beside_{self.agent}"

    @property
    def timely(self) -> bool:
        """Whether it needs to know what time it is."""
        return bool(self.later_s)

    @property
    def events(self) -> str:
        """The names of the answers, as arguments."""
        return ", ".join(map(literal, self.answers))

    @property
    def call(self) -> str:
        """Sending it, as source."""
        return self._sent("command = await bus.send")

    @property
    def call_deeper(self) -> str:
        """The same within a block."""
        return self._sent("command = await bus.send", indent=8)

    @property
    def again(self) -> str:
        """Sending it under the same key, as source."""
        return self._sent("again = await bus.send", 'key=command["idempotency_key"]')

    @property
    def expecting(self) -> str:
        """Sending it to an entity that is expected to be new, as source."""
        return self._sent("return await bus.send", "key=key", "expected_version=0")

    def _sent(self, head: str, *more: str, indent: int = 4) -> str:
        payload = ", ".join(f"{literal(name)}: {self._written(name)}" for name in self.payload)
        arguments = [literal(self.agent), literal(self.action), f"{{{payload}}}", "entity=entity", *more]
        return call(head, arguments, indent=indent).rstrip("\n")

    def _written(self, name: str) -> str:
        later_s = self.later_s.get(name)
        if later_s is None:
            return _literal(self.payload[name])
        return f"NOW {'-' if later_s < 0 else '+'} {abs(later_s)}"


def _literal(value: Any) -> str:
    return f"[{', '.join(map(_literal, value))}]" if isinstance(value, list) else literal(value)


def scenes(prd: Prd) -> Sequence[Scene]:
    """A scene for each agent that has one, the first of them first.

    Raises:
        Misconfigured: no example sends a command that would do.
    """
    found = [scene for agent in prd.agents if (scene := _scene(prd, agent)) is not None]
    if not found:
        raise Misconfigured(
            "no example begins with a command for a new entity, so there is nothing to smoke-test: add an example in "
            "which such a command is `given`"
        )
    after = 4 if found[0].query is not None else 3
    return [found[0], *(attrs.evolve(scene, number=after + at) for at, scene in enumerate(found[1:]))]


def _scene(prd: Prd, agent: AgentSpec) -> Scene | None:
    """The simplest of the agent's commands that an example shows to be accepted."""
    candidates = [
        (command.entity != "new", "now" in uses(command), step, command)
        for step in _accepted(prd)
        if step.agent == agent.name and step.expected_version is None
        for command in [agent.command(step.command)]
        if command.entity != "existing" and _answers(command)
    ]
    if not candidates:
        return None
    *_, step, command = min(candidates, key=lambda candidate: candidate[:2])
    payload = {name: json_value(value) for name, value in step.payload}
    moments = {field.name for field in command.fields if field.kind.name == "time" and "now" in uses(command)}
    later_s = {name: value - step.at for name, value in payload.items() if name in moments}
    query = agent.queries[0].name if agent.queries else None
    return Scene(agent.name, command.name, payload, later_s, _answers(command), query)


def _accepted(prd: Prd) -> Iterator[Step]:
    """Steps that are the first of their entity in an example, and not refused in it."""
    for example in prd.examples:
        denied = any(expected.what in ("refused", "conflict") for expected in example.then)
        seen: set[tuple[str, str]] = set()
        for step in (*example.given, *(() if denied else example.when)):
            if (step.agent, step.entity) not in seen:
                yield step
            seen.add((step.agent, step.entity))


def _answers(command: Command) -> Sequence[str]:
    """The first event that is sure to come; else any that may."""
    emits = [effect for effect in command.effects if isinstance(effect, Emit)]
    sure = [effect.event for effect in emits if effect.condition is None]
    return sure[:1] or [effect.event for effect in emits]
