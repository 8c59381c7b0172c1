"""Examples for those who have none yet: of an agent a command that makes one of its entities, with values that pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from decimal import Decimal
from itertools import islice, product, zip_longest
from typing import Any, Final

import attrs

from meshforge_trio.factory.kinds import fault_of
from meshforge_trio.factory.model import (
    STARTS_AT,
    AgentSpec,
    Command,
    Emit,
    Example,
    Expectation,
    Field,
    Kind,
    Prd,
    Step,
)
from meshforge_trio.factory.problems import Problems
from meshforge_trio.factory.rehearsal import rehearse

__all__ = ["propose"]

#: Payloads tried for one command: rules that let none of so many pass are left to a person.
_TRIES_MAX: Final = 300
_DAY_S: Final = 86_400
_NUMBERS: Final = (1, 10, 100, 0, 1_000)


def propose(prd: Prd, agent: AgentSpec) -> Example | None:
    """An example that holds: the first command for a new entity that can be accepted, and the event that tells so."""
    strict = attrs.evolve(prd, agents=tuple(map(_without_words, prd.agents)))
    for command in agent.commands:
        events = [effect.event for effect in command.effects if isinstance(effect, Emit)]
        if command.internal or command.entity == "existing":
            continue
        for payload in islice(_payloads(command), _TRIES_MAX):
            for event in events:
                example = _example(agent, command, payload, event)
                if _holds(strict, example):
                    return example
    return None


def _example(agent: AgentSpec, command: Command, payload: tuple[tuple[str, Any], ...], event: str) -> Example:
    step = Step(agent.name, command.name, f"{agent.name}-1", payload)
    happened = Expectation("event", agent.name, event)
    return Example(f"{command.name} {agent.name}".replace("_", " "), (), (step,), (happened,))


def _without_words(agent: AgentSpec) -> AgentSpec:
    """Without rules in words: an example in which one has a say would be let pass whatever it says."""
    return attrs.evolve(agent, commands=tuple(attrs.evolve(command, customs=()) for command in agent.commands))


def _holds(prd: Prd, example: Example) -> bool:
    problems = Problems()
    rehearse(attrs.evolve(prd, examples=(example,)), problems)
    return not problems


def _payloads(command: Command) -> Iterator[tuple[tuple[str, Any], ...]]:
    """Values for every field that must be given: the plainest of each first, then each with each."""
    fields = [field for field in command.fields if field.kind.name != "optional"]
    names = [field.name for field in fields]
    choices = [_values(field) for field in fields]
    firsts = [values[0] if values else None for values in choices]
    if all(choices):
        abreast = zip_longest(*choices) if choices else [()]
        for values in abreast:
            row = [first if value is None else value for first, value in zip(firsts, values, strict=True)]
            yield tuple(zip(names, row, strict=True))
        for values in product(*choices):
            yield tuple(zip(names, values, strict=True))


def _values(field: Field) -> Sequence[Any]:
    """Some values of a field, within its limits."""
    bounds = [bound for bound in (field.limits.at_least, field.limits.at_most) if bound is not None]
    found = [value for value in _of_kind(field, field.kind, bounds) if not fault_of(field, value)]
    return list(dict.fromkeys(found))


def _of_kind(field: Field, kind: Kind, bounds: Sequence[int | Decimal]) -> Iterator[Any]:
    counts = [int(bound) for bound in bounds]
    match kind.name:
        case "integer":
            yield from (*_NUMBERS, *counts)
        case "duration":
            yield from (3_600, _DAY_S, *counts)
        case "decimal":
            yield from map(Decimal, (*_NUMBERS, *bounds))
        case "boolean":
            yield from (True, False)
        case "time":
            yield from (STARTS_AT + _DAY_S, STARTS_AT, STARTS_AT - _DAY_S)
        case "one of":
            yield from kind.choices
        case "id":
            yield f"{field.name}-1"
        case "text":
            yield from (field.name, *("x" * count for count in counts))
        case "list" if kind.item is not None:
            items = tuple(_of_kind(field, kind.item, ()))
            yield from (items[:1], (), *((items[:1] * count) for count in counts))
