"""What can happen at all: events nobody emits, commands that do nothing, chains that come back to themselves."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from math import inf
from typing import Final

import attrs

from meshforge_trio.factory.model import AgentSpec, Command, Emit, Position, Prd
from meshforge_trio.factory.problems import Problems

__all__ = ["check_endings", "check_reach"]

Node = tuple[str, str]
#: Of so many a person has to think anew anyway.
_CYCLES_MAX: Final = 50


@attrs.frozen
class _Step:
    """One command leads to another, by a sentence at `where`."""

    to: Node
    where: Position


def check_reach(prd: Prd, problems: Problems) -> None:
    """Complain about what can never happen, and about what might never end.

    An agent with other problems is let off the first: what could not be read may be what makes it happen.
    """
    lines = sorted(problem.line for problem in problems)
    starts = sorted(agent.where.line for agent in prd.agents)
    for agent in prd.agents:
        after = bisect_right(starts, agent.where.line)
        end = starts[after] if after < len(starts) else inf
        if bisect_left(lines, agent.where.line) == bisect_left(lines, end):
            _check_agent(agent, problems)
    if not lines:
        _check_internal(prd, problems)
    check_endings(prd, problems)


def _check_agent(agent: AgentSpec, problems: Problems) -> None:
    idle = [command for command in agent.commands if not command.effects and not command.customs]
    for command in idle:
        problems.add(
            command.where, f"command {agent.name}.{command.name} does nothing", "add a line like '- emit `created`'"
        )
    if all(command.entity == "existing" for command in agent.commands):
        problems.add(
            agent.where,
            f"no command of {agent.name} is for a new entity, so there will never be one",
            "write '- entity: new' or '- entity: any' below one of them",
        )
    if idle or any(command.customs for command in agent.commands):
        # A person may write what makes the event happen.
        return
    emitted = {effect.event for command in agent.commands for effect in command.effects if isinstance(effect, Emit)}
    for event in agent.events:
        if event.name not in emitted:
            problems.add(
                event.where,
                f"event {agent.name}.{event.name} never happens",
                f"let a command of {agent.name} say '- emit `{event.name}`', or remove it",
            )


def _check_internal(prd: Prd, problems: Problems) -> None:
    asked = {step.to for found in _steps(prd).values() for step in found}
    for agent in prd.agents:
        for command in agent.commands:
            if command.internal and (agent.name, command.name) not in asked:
                problems.add(
                    command.where,
                    f"nobody asks for the internal command {agent.name}.{command.name}",
                    "name it below 'Listens to' or in a '- send', or remove '- internal'",
                )


def _steps(prd: Prd) -> dict[Node, list[_Step]]:
    """Which commands each command leads to."""
    heard: dict[Node, list[_Step]] = {}
    for agent in prd.agents:
        for reaction in agent.reactions:
            step = _Step((agent.name, reaction.command), reaction.where)
            heard.setdefault((reaction.agent, reaction.event), []).append(step)
    return {
        (agent.name, command.name): list(_led_to(agent.name, command, heard))
        for agent in prd.agents
        for command in agent.commands
    }


def _led_to(agent: str, command: Command, heard: Mapping[Node, list[_Step]]) -> Iterator[_Step]:
    for effect in command.effects:
        if isinstance(effect, Emit):
            yield from heard.get((agent, effect.event), ())
        else:
            yield _Step((effect.agent, effect.command), effect.where)


def check_endings(prd: Prd, problems: Problems) -> None:
    """Complain about commands that lead back to themselves: they might go on for ever, and no rule of a PRD could
    prove that they end."""
    steps = _steps(prd)
    order = {node: i for i, node in enumerate(steps)}
    leads_to = {node: list(dict.fromkeys(step.to for step in found)) for node, found in steps.items()}
    for _ in range(_CYCLES_MAX):
        cycle = _cycle(leads_to)
        if not cycle:
            return
        begin = cycle.index(min(cycle, key=lambda node: order.get(node, len(order))))
        chain = [*cycle[begin:], *cycle[: begin + 1]]
        links = list(pairwise(chain))
        # The sentence that comes last in the text closes it.
        where, (start, end) = max((step.where, link) for link in links for step in steps[link[0]] if step.to == link[1])
        names = " → ".join(".".join(node) for node in chain)
        problems.add(where, f"this may never end: {names}", "let one of them emit or send nothing")
        leads_to[start].remove(end)


def _cycle(leads_to: Mapping[Node, list[Node]]) -> list[Node]:
    """Nodes of which each leads to the next and the last to the first, if there are such."""
    try:
        TopologicalSorter(leads_to).prepare()
    except CycleError as error:
        # What is told there are predecessors; each node here was given its successors as those.
        nodes: list[Node] = error.args[1]
        return nodes[:0:-1]
    return []
