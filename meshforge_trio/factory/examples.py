"""Invariants and acceptance examples of a PRD: sentences about what has been declared, with values instead of rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

import attrs

from meshforge_trio.factory.constants import read_constant
from meshforge_trio.factory.declarations import AgentDraft, Draft, ExampleDraft, Part
from meshforge_trio.factory.expressions import Names, checked
from meshforge_trio.factory.model import STARTS_AT, Example, Expectation, Field, Invariant, Step
from meshforge_trio.factory.outline import Phrase, Word
from meshforge_trio.factory.phrases import Cursor
from meshforge_trio.factory.problems import Problems, Unreadable
from meshforge_trio.factory.sentences import names_of_state
from meshforge_trio.factory.typing_rules import BOOLEAN, INTEGER, TIME

__all__ = ["read_example", "read_invariant"]

_INVARIANT: Final = "- inventory: `stock >= 0`, or - `sum(account.balance)` is constant"
_STEP: Final = "- when `order.create` on `o-1` with `quantity` = `2`"
_CLAIMS: Final[Mapping[str, Literal["constant", "never_decreases", "never_increases"]]] = {
    "is constant": "constant",
    "never decreases": "never_decreases",
    "never increases": "never_increases",
}
#: Codes that a refusal may have without any rule.
_CODES: Final = frozenset({"already_exists", "not_found", "bad_payload"})


def read_invariant(phrase: Phrase, draft: Draft, problems: Problems) -> Invariant | None:
    """[agent:] `expression` [is constant | never decreases | never increases]

    Raises:
        Unreadable: it is none.
    """
    cursor = Cursor(phrase, _INVARIANT)
    agent: AgentDraft | None = None
    if cursor.next is not None and not cursor.next.code:
        word = cursor.plain("an agent")
        agent = draft.agents.get(word.text)
        if not cursor.said(":"):
            raise cursor.wrong("':' and an expression")
        if agent is None:
            if not draft.incomplete:
                problems.unknown(word.where, "agent", word.text, draft.agents)
            return None
    word = cursor.code("an expression")
    claim: Literal["always", "constant", "never_decreases", "never_increases"] = "always"
    if cursor.next is not None:
        claim = _CLAIMS[cursor.one_of(*_CLAIMS)]
    cursor.end()
    if agent is not None:
        names = names_of_state(agent, f"the state of {agent.name}")
    else:
        incomplete = draft.incomplete or any(each.state_incomplete for each in draft.agents.values())
        names = Names("all entities", totals=draft.totals, incomplete=incomplete)
    expected = BOOLEAN if claim == "always" else None
    found = checked(word.text, lambda at: phrase.position(word.offset + at), names, problems, expected)
    if found is None:
        return None
    if claim.startswith("never") and found.kind.name not in ("integer", "decimal", "time", "duration"):
        raise Unreadable(word.where, f"{found.kind} neither decreases nor increases", "use a number, time or duration")
    return Invariant(claim, found, agent.name if agent is not None else None, where=phrase.where)


def read_example(example: ExampleDraft, draft: Draft, problems: Problems) -> Example | None:
    """An example, of sentences that begin with given, when and then."""
    reader = _Reader(draft, problems)
    stages: dict[str, list[Any]] = {"given": [], "when": [], "then": []}
    order = tuple(stages)
    current = "given"
    whole = True
    for phrase in example.items:
        cursor = Cursor(phrase, _STEP)
        try:
            said = cursor.one_of("given", "when", "then", "and")
            stage = current if said == "and" else said
            if order.index(stage) < order.index(current):
                raise Unreadable(phrase.where, f"{stage!r} after {current!r}", "first given, then when, then then")
            current = stage
            found = reader.expectation(cursor) if stage == "then" else reader.step(cursor)
        except Unreadable as error:
            problems.add(error.where, error.what, error.suggestion)
            whole = False
            continue
        if found is not None:
            stages[current].append(found)
        whole = whole and (found is not None or reader.at_time)
    for stage in ("when", "then"):
        if not stages[stage] and whole:
            problems.add(example.where, f"an example without {stage!r}", f"add a sentence like {_USAGES[stage]}")
            whole = False
    if not whole:
        return None
    given, when, then = (tuple(stages[stage]) for stage in order)
    return Example(example.name, given, when, then, example.prose, where=example.where)


_USAGES: Final[Mapping[str, str]] = {
    "when": "- when `order.create` on `o-1` with `quantity` = `2`",
    "then": "- then `order` `o-1` has `quantity` = `2`",
}


class _Reader:
    def __init__(self, draft: Draft, problems: Problems) -> None:
        self._draft = draft
        self._problems = problems
        self._now = STARTS_AT
        #: Whether the last step only set the clock.
        self.at_time = False

    def step(self, cursor: Cursor) -> Step | None:
        """time `moment` | `agent.command` on `entity` [at version `n`] [with `field` = `value`, ...]"""
        self.at_time = cursor.said("time")
        if self.at_time:
            moment = read_constant(cursor.phrase, cursor.code("a moment"), TIME, self._problems)
            cursor.end()
            if moment is not None:
                self._now = moment
            return None
        target = cursor.code("a command, as `agent.command`, or 'time'")
        agent, command = self._of_agent(target, "command", lambda each: each.commands)
        if not cursor.said("on"):
            raise cursor.wrong("'on' and the id of an entity")
        entity = self._entity(cursor.code("the id of an entity"))
        version = None
        if cursor.said("at", "version"):
            version = read_constant(cursor.phrase, cursor.code("a version"), INTEGER, self._problems)
        payload = self._values(cursor, target.text, command)
        if command is not None:
            self._public(command, target)
            if payload is not None:
                self._complete(command, dict(payload), target)
        if agent is None or command is None or payload is None:
            return None
        return Step(agent.name, command.name, entity, payload, version, self._now, where=target.where)

    def expectation(self, cursor: Cursor) -> Expectation | None:
        """refused `code` | conflict | `agent.event` ... | `agent` `entity` has ... | ... does not exist"""
        cursor.usage = "- then `order.created` with `quantity` = `2`, or - then refused `code`"
        place = cursor.where
        if cursor.said("refused"):
            code = cursor.code("the code of the refusal")
            cursor.end()
            self._known_code(code)
            return Expectation("refused", name=code.text, where=code.where)
        if cursor.said("conflict"):
            cursor.end()
            return Expectation("conflict", where=place)
        word = cursor.code("an event, an agent, 'refused' or 'conflict'")
        return self._happened(cursor, word) if "." in word.text else self._state(cursor, word)

    def _happened(self, cursor: Cursor, word: Word) -> Expectation | None:
        agent, event = self._of_agent(word, "event", lambda each: each.events)
        entity = self._entity(cursor.code("the id of an entity")) if cursor.said("on") else None
        values = self._values(cursor, word.text, event)
        if agent is None or event is None or values is None:
            return None
        return Expectation("event", agent.name, event.name, entity, values, where=word.where)

    def _state(self, cursor: Cursor, word: Word) -> Expectation | None:
        agent = self._draft.agents.get(word.text)
        if agent is None and not self._draft.incomplete:
            self._problems.unknown(word.where, "agent", word.text, self._draft.agents)
        entity = self._entity(cursor.code("the id of an entity"))
        if cursor.one_of("has", "does not exist") != "has":
            cursor.end()
            return Expectation("missing", agent.name, entity=entity, where=word.where) if agent else None
        fields = Part("", word.where, "", (), agent.state, agent.state_incomplete) if agent is not None else None
        values = self._pairs(cursor, f"the state of {word.text}", fields)
        if agent is None or values is None:
            return None
        return Expectation("state", agent.name, entity=entity, values=values, where=word.where)

    # -- parts --------------------------------------------------------------------------------------------------

    def _values(self, cursor: Cursor, owner: str, part: Part | None) -> tuple[tuple[str, Any], ...] | None:
        """[with `field` = `value`, ...], to the end."""
        if cursor.said("with"):
            return self._pairs(cursor, owner, part)
        if cursor.next is not None:
            raise cursor.wrong("'with' and values, or nothing more", ("with", "on", "at"))
        return ()

    def _pairs(self, cursor: Cursor, owner: str, part: Part | None) -> tuple[tuple[str, Any], ...] | None:
        found: dict[str, Any] = {}
        whole = True
        for name, value in cursor.pairs():
            if value is None:
                raise Unreadable(name.where, f"{name.text!r} has no value", f"write: `{name.text}` = `1`")
            if name.text in found:
                raise Unreadable(name.where, f"{name.text!r} is given twice", "remove one")
            field = part.fields.get(name.text) if part is not None else None
            if part is not None and name.text not in part.fields and not part.incomplete:
                self._problems.unknown(name.where, "field", name.text, part.fields, owner)
            before = len(self._problems)
            if field is not None:
                found[name.text] = read_constant(cursor.phrase, value, field.kind, self._problems)
            whole = whole and field is not None and len(self._problems) == before
        cursor.end()
        return tuple(found.items()) if whole else None

    def _complete(self, command: Part, payload: dict[str, Any], target: Word) -> None:
        missing = [name for name, field in command.fields.items() if name not in payload and _needed(field)]
        if missing and not command.incomplete:
            listed = ", ".join(f"`{name}`" for name in missing)
            self._problems.add(target.where, f"{target.text} lacks {listed}", f"add {listed} behind 'with'")

    def _public(self, command: Part, target: Word) -> None:
        if command.internal:
            self._problems.add(
                target.where,
                f"{target.text} is internal: only agents ask for it",
                "send what leads to it, or remove '- internal'",
            )

    def _known_code(self, code: Word) -> None:
        known = self._draft.codes
        if known is not None and code.text not in known | _CODES and not self._draft.incomplete:
            self._problems.unknown(code.where, "code of a refusal", code.text, known | _CODES)

    def _of_agent(
        self, target: Word, kind: str, parts: Callable[[AgentDraft], Mapping[str, Part]]
    ) -> tuple[AgentDraft | None, Part | None]:
        owner, dot, name = target.text.partition(".")
        if not dot or not name:
            raise Unreadable(target.where, f"{target.text!r:.80} names no {kind}", f"write `agent.{kind}`")
        agent = self._draft.agents.get(owner)
        if agent is None:
            if not self._draft.incomplete:
                self._problems.unknown(target.where, "agent", owner, self._draft.agents)
            return None, None
        found = parts(agent).get(name)
        if found is None and not agent.incomplete:
            where = attrs.evolve(target.where, column=target.where.column + len(owner) + 1)
            self._problems.unknown(where, kind, name, parts(agent), agent.name)
        return agent, found

    def _entity(self, word: Word) -> str:
        text = word.text.strip('"')
        if not 1 <= len(text) <= 256 or not text.isprintable():
            raise Unreadable(word.where, "an entity's id has 1 to 256 characters", "write it as `o-1`")
        return text


def _needed(field: Field | None) -> bool:
    return field is not None and field.kind.name != "optional"
