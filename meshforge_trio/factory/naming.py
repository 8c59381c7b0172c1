"""The names in the module of one agent: classes, handlers, appliers, none of which may meet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import attrs

from meshforge_trio.factory.formulas import attributes_of
from meshforge_trio.factory.model import AgentSpec, Command, Custom, Kind, Prd, Reaction
from meshforge_trio.factory.python import Names, class_name, slug_words

__all__ = ["ModuleNames", "custom_rules", "heard_fields", "name_module"]

#: What the head of a module may bring, what a handler calls its own, and the functions that expressions call.
_TAKEN: Final = frozenset(
    {
        *("Agent", "Context", "Decimal", "EventEnvelope", "JsonObject", "Literal", "Refused", "Reply", "Send"),
        *("agent", "annotations", "as_json", "attrs", "between", "existing_entity", "named_entity", "new_entity"),
        "representable",
        *(
            "rules",
            "sized",
            "ctx",
            "entity_id",
            "event",
            "exists",
            "now",
            "outputs",
            "payload",
            "state",
            "told",
            "asked",
        ),
        *("abs", "bool", "dict", "int", "isinstance", "len", "list", "max", "min", "str", "sum", "tuple"),
    }
)


@attrs.frozen
class ModuleNames:
    """The class of the state, those of commands and events by their names, of foreign events by (agent, event); the
    functions of handlers (commands, queries) and appliers (events)."""

    state: str
    commands: Mapping[str, str]
    events: Mapping[str, str]
    heard: Mapping[tuple[str, str], str]
    handlers: Mapping[str, str]
    appliers: Mapping[str, str]


def name_module(agent: AgentSpec) -> ModuleNames:
    """Name everything in the module of `agent`: as the PRD does, with a word added where two would meet."""
    names = Names(_TAKEN)

    def class_of(name: str, otherwise: str) -> str:
        return names.give(class_name(name), class_name(name) + otherwise)

    asked = [command.name for command in agent.commands] + [query.name for query in agent.queries]
    return ModuleNames(
        state=class_of(agent.name, "State"),
        commands={command.name: class_of(command.name, "Command") for command in agent.commands},
        events={event.name: class_of(event.name, "Event") for event in agent.events},
        heard={
            (reaction.agent, reaction.event): class_of(f"{reaction.agent}_{reaction.event}", "Heard")
            for reaction in agent.reactions
        },
        handlers={name: names.give(name, f"do_{name}") for name in asked},
        appliers={event.name: names.give(event.name, f"apply_{event.name}") for event in agent.events},
    )


def custom_rules(agent: AgentSpec) -> Sequence[tuple[Command, Custom, str]]:
    """The rules in words, each with the name of its function in `rules/<agent>.py`."""
    names = Names({"TYPE_CHECKING", "Context", "annotations", "agents", agent.name})
    return [
        (command, custom, names.give(f"{command.name}_{slug_words(custom.text)}".rstrip("_"), f"{command.name}_rule"))
        for command in agent.commands
        for custom in command.customs
    ]


def heard_fields(prd: Prd, reaction: Reaction) -> Sequence[tuple[str, Kind]]:
    """What a reaction reads of the event it hears, in the order of the event."""
    expressions = [assignment.value for assignment in reaction.fields]
    if reaction.condition is not None:
        expressions.append(reaction.condition)
    read = {name for expression in expressions for name in attributes_of(expression, "event")}
    event = prd.agent(reaction.agent).event(reaction.event)
    return [(field.name, field.kind) for field in event.fields if field.name in read]
