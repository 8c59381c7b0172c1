"""Source of the classes in an agent's module: its state, what commands are asked with, what events tell."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from meshforge_trio.factory.model import AgentSpec, Field, Prd
from meshforge_trio.factory.naming import ModuleNames, heard_fields
from meshforge_trio.factory.python import WIDTH, call, docstring, literal, sentence
from meshforge_trio.factory.reading import computed_of_event, computed_of_state

__all__ = ["classes"]

_ID_LENGTH_MAX = 256


def classes(prd: Prd, agent: AgentSpec, names: ModuleNames) -> Iterator[str]:
    """Each class, from the state to the events of others."""
    reckoned = computed_of_state(agent)
    fields = [_started(field, reckoned) for field in agent.state]
    yield _class(names.state, "The state of one entity.", agent.state, fields)
    for command in agent.commands:
        about = f"What `{command.name}` is asked with."
        yield _class(names.commands[command.name], about, command.fields, [_asked(field) for field in command.fields])
    for event in agent.events:
        about = sentence(event.prose) or f"`{event.name}` happened."
        reckoned = computed_of_event(agent, event.name)
        fields = [_told(field, reckoned) for field in event.fields]
        yield _class(names.events[event.name], about, event.fields, fields)
    for reaction in agent.reactions:
        about = f"What is read of `{reaction.event}` of `{reaction.agent}`."
        heard = [Field(name, kind) for name, kind in heard_fields(prd, reaction)]
        yield _class(names.heard[reaction.agent, reaction.event], about, heard, [_plain(field) for field in heard])


def _class(name: str, about: str, fields: Sequence[Field], lines: Sequence[str]) -> str:
    meanings = "; ".join(f"`{field.name}`: {' '.join(field.meaning.split())}" for field in fields if field.meaning)
    text = f"{about}\n\n{sentence(meanings)}" if meanings else about
    body = "".join(("\n", *lines)) if lines else ""
    return f"@attrs.frozen(kw_only=True)\nclass {name}:\n{docstring(text, 4)}{body}"


def _plain(field: Field) -> str:
    return f"    {field.name}: {field.kind.python}\n"


def _told(field: Field, reckoned: Collection[str]) -> str:
    if field.name not in reckoned:
        return _plain(field)
    return call(f"{field.name}: {field.kind.python} = attrs.field", ["validator=representable"], indent=4)


def _started(field: Field, reckoned: Collection[str]) -> str:
    if field.name not in reckoned:
        return _with_default(field, literal(field.start))
    arguments = [f"default={literal(field.start)}", "validator=representable"]
    return call(f"{field.name}: {field.kind.python} = attrs.field", arguments, indent=4)


def _with_default(field: Field, default: str) -> str:
    line = f"    {field.name}: {field.kind.python} = {default}\n"
    if len(line) - 1 <= WIDTH:
        return line
    return call(f"{field.name}: {field.kind.python} = attrs.field", [f"default={default}"], indent=4)


def _asked(field: Field) -> str:
    """A field of a command, with what bounds it; one that is optional may be left out."""
    optional = field.kind.name == "optional"
    validator = _validator(field)
    if validator is None:
        return _with_default(field, "None") if optional else _plain(field)
    arguments = ["default=None"] if optional else []
    return call(f"{field.name}: {field.kind.python} = attrs.field", [*arguments, f"validator={validator}"], indent=4)


def _validator(field: Field) -> str | None:
    kind = field.kind.item if field.kind.name == "optional" and field.kind.item is not None else field.kind
    low, high = field.limits.at_least, field.limits.at_most
    if kind.name == "id":
        low, high = (1 if low is None else low), (_ID_LENGTH_MAX if high is None else high)
    if low is None and high is None:
        return None
    bounds = [literal(low)] if low is not None else []
    bounds += [literal(high) if low is not None else f"at_most={literal(high)}"] if high is not None else []
    check = "sized" if kind.name in ("text", "id", "list") else "between"
    return f"{check}({', '.join(bounds)})"
