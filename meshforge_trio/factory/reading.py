"""What can be read off a model: which names of the surroundings a command uses, which commands depend on the time,
which fields hold a number that was computed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Final

from meshforge_trio.factory.model import AgentSpec, Command, Emit, Expression, Kind, Prd, Reaction, SendCommand

__all__ = ["computed_of_event", "computed_of_state", "decided_by_time", "reaction_uses", "uses"]

_NUMBERS: Final = ("integer", "decimal", "time", "duration")


def uses(command: Command) -> frozenset[str]:
    """The names of the surroundings in a command's expressions, as `now` and `entity_id`."""
    return frozenset[str]().union(*(expression.uses for expression in _of_command(command)))


def reaction_uses(reaction: Reaction) -> frozenset[str]:
    """The same of a reaction, but for where it happens."""
    condition = frozenset[str]() if reaction.condition is None else reaction.condition.uses
    return condition.union(*(assignment.value.uses for assignment in reaction.fields))


def decided_by_time(prd: Prd) -> frozenset[tuple[str, str]]:
    """(agent, command) of what is decided otherwise at another time, by itself or in what follows from it."""
    found = {(agent, command.name) for agent, command in _commands(prd) if "now" in uses(command)}
    while True:
        more = {
            (agent, command.name) for agent, command in _commands(prd) if found & set(_followers(prd, agent, command))
        }
        if more <= found:
            return frozenset(found)
        found |= more


def computed_of_state(agent: AgentSpec) -> frozenset[str]:
    """Fields of the state that an event sets to a number which may be too large for them."""
    return frozenset(
        change.field for event in agent.events for change in event.changes if _may_be_too_large(change.value)
    )


def computed_of_event(agent: AgentSpec, event: str) -> frozenset[str]:
    """The same of an event, by the commands that emit it."""
    return frozenset(
        assignment.name
        for command in agent.commands
        for effect in command.effects
        if isinstance(effect, Emit) and effect.event == event
        for assignment in effect.fields
        if _may_be_too_large(assignment.value)
    )


def _may_be_too_large(value: Expression) -> bool:
    """Whether it is reckoned out of numbers. One that is only passed on was checked where it came from."""
    nodes = ast.walk(ast.parse(value.python, mode="eval"))
    return _is_number(value.kind) and any(isinstance(node, ast.BinOp | ast.UnaryOp | ast.Call) for node in nodes)


def _is_number(kind: Kind) -> bool:
    return _is_number(kind.item) if kind.item is not None else kind.name in _NUMBERS


def _commands(prd: Prd) -> Iterator[tuple[str, Command]]:
    return ((agent.name, command) for agent in prd.agents for command in agent.commands)


def _followers(prd: Prd, agent: str, command: Command) -> Iterator[tuple[str, str]]:
    """What a command sends, and what decides upon the events it emits."""
    emitted = {effect.event for effect in command.effects if isinstance(effect, Emit)}
    for effect in command.effects:
        if isinstance(effect, SendCommand):
            yield effect.agent, effect.command
    for other in prd.agents:
        for reaction in other.reactions:
            if reaction.agent == agent and reaction.event in emitted:
                yield other.name, reaction.command


def _of_command(command: Command) -> Iterator[Expression]:
    for refusal in command.refusals:
        yield refusal.condition
        yield from (part for part in refusal.message.parts if isinstance(part, Expression))
    for effect in command.effects:
        yield from (assignment.value for assignment in effect.fields)
        if effect.condition is not None:
            yield effect.condition
        if isinstance(effect, SendCommand):
            yield effect.to
