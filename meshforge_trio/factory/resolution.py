"""Second reading of a PRD: its declarations become a model, sentence by sentence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar, cast

import attrs

from meshforge_trio.factory.declarations import AgentDraft, Draft, Part
from meshforge_trio.factory.examples import read_example, read_invariant
from meshforge_trio.factory.expressions import Names, checked
from meshforge_trio.factory.model import (
    AgentSpec,
    Assignment,
    Change,
    Command,
    Custom,
    Emit,
    Event,
    Existence,
    Field,
    Prd,
    Query,
    Refusal,
    SendCommand,
)
from meshforge_trio.factory.outline import Phrase
from meshforge_trio.factory.phrases import Cursor
from meshforge_trio.factory.problems import Problems, Unreadable
from meshforge_trio.factory.sentences import Sentences, names_of_command, names_of_event, names_of_state

__all__ = ["SENTENCES", "resolve"]

S = TypeVar("S")
T = TypeVar("T")

#: How sentences about a command begin.
SENTENCES: Final = ("entity", "internal", "refuse", "emit", "send", "custom")
_EXISTENCES: Final = ("new", "existing", "any")
_COMMAND_USAGE: Final = "- emit `created` with `customer`, or - refuse `code` if `condition`: why"


def resolve(draft: Draft, problems: Problems) -> Prd:
    """The model of what is declared. It is sound if there is no problem, and not to be used if there is one."""
    agents = tuple(_Resolving(draft, agent, problems).agent() for agent in draft.agents.values())
    invariants = _each(draft.invariants, lambda phrase: read_invariant(phrase, draft, problems), problems)
    examples = _each(draft.examples, lambda example: read_example(example, draft, problems), problems)
    return Prd(
        draft.title, draft.tenant, draft.workspace, agents, tuple(invariants), tuple(examples), prose=draft.prose
    )


def _each(sources: Sequence[S], read: Callable[[S], T | None], problems: Problems) -> list[T]:
    found = []
    for source in sources:
        try:
            one = read(source)
        except Unreadable as error:
            problems.add(error.where, error.what, error.suggestion)
        else:
            if one is not None:
                found.append(one)
    return found


class _Resolving:
    def __init__(self, draft: Draft, agent: AgentDraft, problems: Problems) -> None:
        self._agent = agent
        self._problems = problems
        self._sentences = Sentences(draft, agent, problems)

    def agent(self) -> AgentSpec:
        """The agent, part by part."""
        agent = self._agent
        return AgentSpec(
            agent.name,
            _fields(agent.state),
            tuple(self._command(part) for part in agent.commands.values()),
            tuple(self._event(part) for part in agent.events.values()),
            tuple(self._query(part) for part in agent.queries.values()),
            tuple(_each(agent.listens, self._listens(), self._problems)),
            prose=agent.prose,
            where=agent.where,
        )

    def _command(self, part: Part) -> Command:
        names = names_of_command(self._agent, part, f"command {self._agent.name}.{part.name}")
        said: dict[str, Any] = {}
        found: list[Refusal | Custom | Emit | SendCommand] = []

        def sentence(phrase: Phrase) -> None:
            one = self._about_command(Cursor(phrase, _COMMAND_USAGE), names, said)
            if one is not None:
                found.append(one)

        _each(part.items, sentence, self._problems)
        return Command(
            part.name,
            _fields(part.fields),
            cast(Existence, said.get("entity", "existing")),
            tuple(one for one in found if isinstance(one, Refusal)),
            tuple(one for one in found if isinstance(one, Custom)),
            tuple(one for one in found if isinstance(one, Emit | SendCommand)),
            internal="internal" in said,
            prose=part.prose,
            where=part.where,
        )

    def _about_command(
        self, cursor: Cursor, names: Names, said: dict[str, Any]
    ) -> Refusal | Custom | Emit | SendCommand | None:
        match cursor.one_of(*SENTENCES):
            case "refuse":
                return self._sentences.refusal(cursor, names)
            case "emit":
                return self._sentences.emission(cursor, names)
            case "send":
                return self._sentences.sending(cursor, names)
            case "custom":
                return self._sentences.custom(cursor)
            case word:
                value: str = word
                if word == "entity":
                    cursor.usage = "- entity: new, or - entity: existing, or - entity: any"
                    if not cursor.said(":"):
                        raise cursor.wrong("':'")
                    value = cursor.one_of(*_EXISTENCES)
                cursor.end()
                if word in said:
                    raise Unreadable(cursor.phrase.where, f"{word!r} is said twice", "remove one")
                said[word] = value
                return None

    def _event(self, part: Part) -> Event:
        names = names_of_event(self._agent, part, f"event {self._agent.name}.{part.name}")
        changes: dict[str, Change] = {}

        def sentence(phrase: Phrase) -> None:
            for change in self._sentences.changes(Cursor(phrase), part, names):
                if change.field in changes:
                    raise Unreadable(change.where, f"{change.field!r} is changed twice", "remove one")
                changes[change.field] = change

        _each(part.items, sentence, self._problems)
        return Event(part.name, _fields(part.fields), tuple(changes.values()), prose=part.prose, where=part.where)

    def _query(self, part: Part) -> Query:
        owner = f"query {self._agent.name}.{part.name}"
        names = attrs.evolve(names_of_command(self._agent, part, owner))
        answers = _each(part.items, lambda phrase: self._sentences.answer(Cursor(phrase), names), self._problems)
        for phrase in part.items[1:]:
            self._problems.add(phrase.where, "a query has one answer", "put all of it behind one 'answer with'")
        fields = answers[0] if answers else self._whole_state()
        return Query(part.name, fields, prose=part.prose, where=part.where)

    def _whole_state(self) -> tuple[Assignment, ...]:
        """A query that says nothing of its answer answers with all fields of the state."""
        names = names_of_state(self._agent, f"the state of {self._agent.name}")
        found = []
        for name, field in self._agent.state.items():
            if field is not None:
                value = checked(name, _at(field), names, self._problems, None)
                if value is not None:
                    found.append(Assignment(name, value, where=field.where))
        return tuple(found)

    def _listens(self) -> Callable[[Phrase], Any]:
        heard: dict[str, Phrase] = {}

        def sentence(phrase: Phrase) -> Any:
            reaction = self._sentences.reaction(phrase)
            if reaction is not None:
                event = f"{reaction.agent}.{reaction.event}"
                if heard.setdefault(event, phrase) is not phrase:
                    raise Unreadable(
                        phrase.where,
                        f"{self._agent.name} listens to {event} twice",
                        "let one command do all of it; it may emit more than one event",
                    )
            return reaction

        return sentence


def _at(field: Field) -> Callable[[int], Any]:
    return lambda _: field.where


def _fields(fields: Mapping[str, Field | None]) -> tuple[Field, ...]:
    return tuple(field for field in fields.values() if field is not None)
