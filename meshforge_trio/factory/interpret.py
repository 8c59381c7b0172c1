"""A workspace without a broker or a store: what its PRD says comes of a command, played through in memory.

Events are delivered one after another, in the order in which they happened, and to agents in the order of the PRD.
Rules in words are passed over; whoever asks is told that there was one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from meshforge_trio.factory.evaluation import evaluated, record, sentence
from meshforge_trio.factory.kinds import fault_of, fits_kind
from meshforge_trio.factory.model import (
    AgentSpec,
    Assignment,
    Command,
    Emit,
    Event,
    Field,
    Position,
    Prd,
    Reaction,
    Step,
)

__all__ = ["Denied", "Happened", "Outcome", "Unfit", "World"]


@attrs.frozen
class Happened:
    """An event, as it would be published."""

    agent: str
    event: str
    entity: str
    values: Mapping[str, Any]


@attrs.frozen
class Denied:
    """A refusal, as it would be answered."""

    code: str
    reason: str


@attrs.frozen
class Outcome:
    """What came of one step, with all that followed. `customs` tells that a rule in words had a say in it."""

    denied: Denied | None = None
    conflict: bool = False
    customs: bool = False


class Unfit(Exception):
    """A value came out that its field cannot hold. `where` is the field's place in the PRD."""

    def __init__(self, what: str, where: Position) -> None:
        super().__init__(what)
        self.where = where


@attrs.frozen
class _Asked:
    agent: str
    command: str
    entity: str
    payload: Mapping[str, Any]


class World:
    """The entities of a workspace, and the events so far."""

    def __init__(self, prd: Prd) -> None:
        self.prd = prd
        self.happened: list[Happened] = []
        self._states: dict[tuple[str, str], dict[str, Any]] = {}
        self._versions: dict[tuple[str, str], int] = {}
        self._heard: dict[tuple[str, str], list[tuple[AgentSpec, Reaction]]] = {}
        for agent in prd.agents:
            for reaction in agent.reactions:
                self._heard.setdefault((reaction.agent, reaction.event), []).append((agent, reaction))

    def state(self, agent: str, entity: str) -> Mapping[str, Any] | None:
        """What an entity holds, if it exists."""
        return self._states.get((agent, entity))

    def states(self, agent: str) -> dict[str, Mapping[str, Any]]:
        """What each entity of an agent holds."""
        return {entity: state for (name, entity), state in self._states.items() if name == agent}

    def send(self, step: Step) -> Outcome:
        """Send a command, and let everything happen that follows from it.

        Raises:
            Unfit: a number became too large, or the like.
        """
        version = self._versions.get((step.agent, step.entity), 0)
        if step.expected_version is not None and step.expected_version != version:
            return Outcome(conflict=True)
        waiting = deque([_Asked(step.agent, step.command, step.entity, dict(step.payload))])
        first: Denied | None = None
        customs, answered = False, False
        while waiting:
            asked = waiting.popleft()
            spec = self.prd.agent(asked.agent)
            command = spec.command(asked.command)
            customs = customs or bool(command.customs)
            found = self._decided(spec, command, asked, step.at, waiting)
            if isinstance(found, Denied):
                first = first or (found if not answered else None)
            else:
                for event in found:
                    self._apply(spec, event)
                    waiting.extend(self._reactions(event))
            answered = True
        return Outcome(first, customs=customs)

    def _decided(
        self, spec: AgentSpec, command: Command, asked: _Asked, now: int, waiting: deque[_Asked]
    ) -> list[Happened] | Denied:
        """The events of a command; what it sends goes to those that wait."""
        payload = {field.name: asked.payload.get(field.name) for field in command.fields}
        names = self._names(spec, asked.entity, now) | {"payload": record(payload)}
        denied = self._denied(command, payload, names)
        if denied is not None:
            return denied
        happened: list[Happened] = []
        for effect in command.effects:
            if effect.condition is not None and not evaluated(effect.condition, names):
                continue
            values = _assigned(effect.fields, names)
            if isinstance(effect, Emit):
                _check_fit(spec.event(effect.event).fields, values)
                happened.append(Happened(spec.name, effect.event, asked.entity, values))
            else:
                waiting.append(_Asked(effect.agent, effect.command, evaluated(effect.to, names), values))
        return happened

    def _names(self, spec: AgentSpec, entity: str, now: int) -> dict[str, Any]:
        state = self._states.get((spec.name, entity))
        start = {field.name: field.start for field in spec.state}
        return {"state": record(state or start), "entity_id": entity, "now": now, "exists": state is not None}

    def _denied(self, command: Command, payload: Mapping[str, Any], names: Mapping[str, Any]) -> Denied | None:
        for field in command.fields:
            fault = fault_of(field, payload[field.name])
            if fault:
                return Denied("bad_payload", fault)
        if command.entity == "new" and names["exists"]:
            return Denied("already_exists", f"{names['entity_id']} exists already")
        if command.entity == "existing" and not names["exists"]:
            return Denied("not_found", f"{names['entity_id']} does not exist")
        for refusal in command.refusals:
            if bool(evaluated(refusal.condition, names)) != refusal.unless:
                return Denied(refusal.code, sentence(refusal.message, names))
        return None

    def _apply(self, spec: AgentSpec, happened: Happened) -> None:
        key = (spec.name, happened.entity)
        state = self._states.get(key) or {field.name: field.start for field in spec.state}
        names = {"state": record(state), "event": record(happened.values)}
        event: Event = spec.event(happened.event)
        changed = {change.field: evaluated(change.value, names) for change in event.changes}
        _check_fit([field for field in spec.state if field.name in changed], changed)
        self._states[key] = {**state, **changed}
        self._versions[key] = self._versions.get(key, 0) + 1
        self.happened.append(happened)

    def _reactions(self, happened: Happened) -> Iterable[_Asked]:
        names = {"event": record(happened.values), "entity_id": happened.entity}
        for agent, reaction in self._heard.get((happened.agent, happened.event), ()):
            if reaction.condition is None or evaluated(reaction.condition, names):
                values = _assigned(reaction.fields, names)
                yield _Asked(agent.name, reaction.command, evaluated(reaction.on, names), values)


def _assigned(fields: Iterable[Assignment], names: Mapping[str, Any]) -> dict[str, Any]:
    return {field.name: evaluated(field.value, names) for field in fields}


def _check_fit(fields: Iterable[Field], values: Mapping[str, Any]) -> None:
    for field in fields:
        value = values[field.name]
        # An id that nobody has set yet is no error of whoever passes it on.
        if value != "" and not fits_kind(value, field.kind):
            raise Unfit(f"{field.name} becomes {value!s:.60}, which {field.kind} cannot hold", field.where)
