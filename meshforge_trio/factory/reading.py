"""What can be read off a model: which names of the surroundings a command uses, which commands depend on the time."""

from __future__ import annotations

from collections.abc import Iterator

from meshforge_trio.factory.model import Command, Emit, Expression, Prd, Reaction, SendCommand

__all__ = ["decided_by_time", "reaction_uses", "uses"]


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
