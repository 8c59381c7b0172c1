"""What a PRD says, once it has been read and checked: agents, their rules, invariants and examples.

Whatever is in here is sound: names are known and free, expressions have a type, events can happen, examples have been
played through. Two models are equal if they say the same, wherever in a file they say it.

An `Expression` carries Python that can stand in a handler as it is. It uses these names and no others:

    state.<field>      the entity's state before the command or event (`State()`, if it has none yet)
    payload.<field>    the command's field
    event.<field>      the event's field, of this agent or of the one that is listened to
    entity_id          text: which entity
    now                integer: the moment of the decision, whole seconds since 1970; in commands and queries
    exists             boolean: whether the entity has any event; in commands and queries
    Decimal            `decimal.Decimal`
    <agent>            in invariants over all entities: a collection of the states of that agent
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Final, Literal

import attrs

__all__ = [
    "NOWHERE",
    "STARTS_AT",
    "AgentSpec",
    "Assignment",
    "Change",
    "Command",
    "Custom",
    "Emit",
    "Event",
    "Example",
    "Existence",
    "Expectation",
    "Expression",
    "Field",
    "Invariant",
    "Kind",
    "Limits",
    "Message",
    "Placed",
    "Position",
    "Prd",
    "Query",
    "Reaction",
    "Refusal",
    "SendCommand",
    "Step",
    "TypeName",
    "repr_text",
]

TypeName = Literal[
    "text", "integer", "decimal", "boolean", "time", "duration", "id", "one of", "list", "optional", "nothing"
]
#: Whether the entity that a command concerns must be new, must exist, or may be either.
Existence = Literal["new", "existing", "any"]


@attrs.frozen(order=True)
class Position:
    """A place in the PRD, counted from 1; `column` in characters."""

    line: int
    column: int


NOWHERE: Final = Position(1, 1)


#: When an example happens that says nothing about it: 2026-01-01T00:00:00Z.
STARTS_AT: Final = 1_767_225_600


@attrs.frozen
class Placed:
    """What stands somewhere in a PRD. The place is no part of what it says."""

    where: Position = attrs.field(default=NOWHERE, eq=False, repr=False, kw_only=True)


@attrs.frozen
class Kind:
    """The type of a value, as Python holds it and as JSON carries it.

    ===========  ==================  ============================================================
    `name`       Python              JSON
    ===========  ==================  ============================================================
    `text`       `str`               string
    `id`         `str`               string of 1 to 256 characters: names an entity
    `integer`    `int`               integer of 64 bits
    `decimal`    `Decimal`           string as `"12.50"`: at most 12 digits, point, at most 6
    `boolean`    `bool`              `true`, `false`
    `time`       `int`               integer: whole seconds since 1970, UTC
    `duration`   `int`               integer: whole seconds
    `one of`     `Literal[...]`      string: one of `choices`
    `list`       `tuple[item, ...]`  array
    `optional`   `item | None`       as `item`, or `null`
    `nothing`    `None`              `null`; the type of the word `nothing`, never of a field
    ===========  ==================  ============================================================
    """

    name: TypeName
    choices: tuple[str, ...] = ()
    item: Kind | None = None

    def __str__(self) -> str:
        """As it is written in a PRD."""
        if self.name == "one of":
            return f"one of ({', '.join(f'`{choice}`' for choice in self.choices)})"
        if self.name in ("list", "optional"):
            return f"{'list of' if self.name == 'list' else 'optional'} {self.item}"
        return self.name

    @property
    def python(self) -> str:
        """The annotation of a field of this type."""
        if self.name == "one of":
            return f"Literal[{', '.join(repr_text(choice) for choice in self.choices)}]"
        if self.item is not None:
            return f"tuple[{self.item.python}, ...]" if self.name == "list" else f"{self.item.python} | None"
        return _PYTHON[self.name]


_PYTHON: Final[Mapping[str, str]] = {
    "text": "str",
    "id": "str",
    "integer": "int",
    "decimal": "Decimal",
    "boolean": "bool",
    "time": "int",
    "duration": "int",
    "nothing": "None",
}


def repr_text(text: str) -> str:
    """A Python string literal in double quotes."""
    return json.dumps(text, ensure_ascii=False)


@attrs.frozen
class Limits:
    """Bounds of a command's field, both inclusive: of the number, else of the characters or items it has."""

    at_least: int | Decimal | None = None
    at_most: int | Decimal | None = None


@attrs.frozen
class Field(Placed):
    """A field of a state, a command or an event.

    `start` is what a state's field holds before the first event: a value as Python holds it. Only a command's fields
    have `limits`, and they are checked before its rules: outside of them it is refused as `bad_payload`.
    """

    name: str
    kind: Kind
    meaning: str = ""
    limits: Limits = Limits()
    start: Any = None


@attrs.frozen
class Expression(Placed):
    """A formula. `text` is what the PRD says; `python` the same with every name qualified (see the module).

    `uses` are the names in it that stand for themselves: of `state`, `payload`, `event`, `entity_id`, `now`,
    `exists`, `Decimal`, and agents.
    """

    text: str
    python: str
    kind: Kind
    uses: frozenset[str] = frozenset()


@attrs.frozen
class Assignment(Placed):
    """A field and the expression that gives its value; the types agree."""

    name: str
    value: Expression


@attrs.frozen
class Message:
    """A sentence with expressions in it, in order: strings stand for themselves."""

    parts: tuple[str | Expression, ...]


@attrs.frozen
class Refusal(Placed):
    """A command is refused with `code` if `condition` holds; with `unless`, if it does not hold."""

    code: str
    condition: Expression
    unless: bool
    message: Message


@attrs.frozen
class Custom(Placed):
    """A rule in words that no expression can say: a person writes it."""

    text: str


@attrs.frozen
class Emit(Placed):
    """An event of this agent, with every field of it assigned in the order of its declaration. Always, or if
    `condition` holds in the state before the command."""

    event: str
    fields: tuple[Assignment, ...]
    condition: Expression | None = None


@attrs.frozen
class SendCommand(Placed):
    """A command to the entity `to` of an agent, with every field of it that is not optional assigned."""

    agent: str
    command: str
    to: Expression
    fields: tuple[Assignment, ...]
    condition: Expression | None = None


@attrs.frozen
class Command(Placed):
    """What an agent can be asked to do.

    Decided in this order: limits of the fields (`bad_payload`), `entity` (`already_exists` if a new one exists,
    `not_found` if an existing one does not), the refusals, the custom rules, the effects. An `internal` one is only
    for reactions and for commands that agents send: no client and no example asks for it.
    """

    name: str
    fields: tuple[Field, ...]
    entity: Existence = "existing"
    refusals: tuple[Refusal, ...] = ()
    customs: tuple[Custom, ...] = ()
    effects: tuple[Emit | SendCommand, ...] = ()
    internal: bool = False
    prose: str = ""


@attrs.frozen
class Change(Placed):
    """A field of the state and what it becomes; expressions see the state before the event."""

    field: str
    value: Expression


@attrs.frozen
class Event(Placed):
    """What can happen to an entity. All changes take place at once."""

    name: str
    fields: tuple[Field, ...]
    changes: tuple[Change, ...] = ()
    prose: str = ""


@attrs.frozen
class Query(Placed):
    """A question. Answered `found` with `fields`, or `not_found` if the entity does not exist."""

    name: str
    fields: tuple[Assignment, ...]
    prose: str = ""


@attrs.frozen
class Reaction(Placed):
    """An event of another agent (`agent`, `event`) makes this one decide its own `command` for the entity `on`.

    In `on` alone `entity_id` is the entity of the event. With a `condition` that does not hold, nothing happens. A
    refusal of the command is the end of it.
    """

    agent: str
    event: str
    command: str
    on: Expression
    fields: tuple[Assignment, ...]
    condition: Expression | None = None


@attrs.frozen
class AgentSpec(Placed):
    """An agent: one kind of entity, whose state has `state` fields."""

    name: str
    state: tuple[Field, ...]
    commands: tuple[Command, ...]
    events: tuple[Event, ...]
    queries: tuple[Query, ...] = ()
    reactions: tuple[Reaction, ...] = ()
    prose: str = ""

    def command(self, name: str) -> Command:
        """The command of that name."""
        return next(command for command in self.commands if command.name == name)

    def event(self, name: str) -> Event:
        """The event of that name."""
        return next(event for event in self.events if event.name == name)


@attrs.frozen
class Invariant(Placed):
    """What must always hold, once everything that a command leads to has happened.

    With an `agent` it speaks of each of its entities (`state.<field>`), else of all entities together (agents' names).
    `always`: the expression is true. `constant`: its value is changed by no command but those for new entities, which
    bring in what there is. `never_decreases`, `never_increases`: its value, from one command to the next.
    """

    claim: Literal["always", "constant", "never_decreases", "never_increases"]
    expression: Expression
    agent: str | None = None


@attrs.frozen
class Step(Placed):
    """A command that an example sends at the time `at`, in seconds since 1970."""

    agent: str
    command: str
    entity: str
    payload: tuple[tuple[str, Any], ...] = ()
    expected_version: int | None = None
    at: int = STARTS_AT


@attrs.frozen
class Expectation(Placed):
    """What must have come of an example's `when` steps, and of all that follows from them.

    `event`      the agent's event `name` happened, to `entity` if given, with at least `values`
    `refused`    the last step was refused, with the code `name`
    `conflict`   the last step named a version that the entity does not have
    `state`      the agent's `entity` has at least `values`
    `missing`    the agent's `entity` does not exist
    """

    what: Literal["event", "refused", "conflict", "state", "missing"]
    agent: str = ""
    name: str = ""
    entity: str | None = None
    values: tuple[tuple[str, Any], ...] = ()


@attrs.frozen
class Example(Placed):
    """An acceptance example. Values are as Python holds them. The `given` steps are not refused."""

    name: str
    given: tuple[Step, ...]
    when: tuple[Step, ...]
    then: tuple[Expectation, ...]
    prose: str = ""


@attrs.frozen
class Prd:
    """A whole PRD: what a workspace is made from."""

    title: str
    tenant: str
    workspace: str
    agents: tuple[AgentSpec, ...]
    invariants: tuple[Invariant, ...] = ()
    examples: tuple[Example, ...] = ()
    prose: str = ""

    @property
    def slug(self) -> str:
        """The title as a name of a project or directory: `[a-z][a-z0-9-]*`."""
        words: Sequence[str] = "".join(c if c.isascii() and c.isalnum() else " " for c in self.title.lower()).split()
        return "-".join(words)

    def agent(self, name: str) -> AgentSpec:
        """The agent of that name."""
        return next(agent for agent in self.agents if agent.name == name)
