"""The sentences of a PRD: what a command refuses, emits and sends, what an event changes, what an agent listens to.

Read after everything is declared, so that each name can be looked up and each expression typed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import attrs

from meshforge_trio.factory.declarations import AgentDraft, Draft, Part
from meshforge_trio.factory.expressions import Name, Names, checked
from meshforge_trio.factory.model import (
    Assignment,
    Change,
    Custom,
    Emit,
    Expression,
    Field,
    Kind,
    Message,
    Reaction,
    Refusal,
    SendCommand,
)
from meshforge_trio.factory.names import check_code, check_name
from meshforge_trio.factory.outline import Phrase, Word
from meshforge_trio.factory.phrases import Cursor
from meshforge_trio.factory.problems import Problems, Unreadable
from meshforge_trio.factory.typing_rules import BOOLEAN, ID, TIME

__all__ = ["Sentences", "names_of_command", "names_of_event", "names_of_state"]

_EFFECT: Final = "`order` = `id`, `quantity`"
_MESSAGE_LENGTH_MAX: Final = 500


def _names(fields: Mapping[str, Field | None], of: str) -> dict[str, Name]:
    return {
        name: Name(
            field.kind if field else None,
            f"{of}.{name}",
            of,
            # Limits hold for what a client sends, so a divisor may rely on them.
            field is not None and field.limits.at_least is not None and field.limits.at_least > 0,
        )
        for name, field in fields.items()
    }


def names_of_state(agent: AgentDraft, owner: str) -> Names:
    """The fields of an agent's state."""
    state = _names(agent.state, "state")
    return Names(owner, state, {"state": state}, incomplete=agent.state_incomplete)


def names_of_command(agent: AgentDraft, part: Part, owner: str) -> Names:
    """What a command or query may speak of: its fields, which hide those of the state, and the state's."""
    state = names_of_state(agent, owner)
    plain = {
        **state.plain,
        **_names(part.fields, "payload"),
        "id": Name(ID, "entity_id", "entity_id"),
        "now": Name(TIME, "now", "now"),
        "exists": Name(BOOLEAN, "exists", "exists"),
    }
    return Names(owner, plain, state.dotted, incomplete=part.incomplete or agent.state_incomplete)


def names_of_event(agent: AgentDraft, part: Part, owner: str) -> Names:
    """What the changes of an event may speak of: its fields, and the state's before it."""
    state = names_of_state(agent, owner)
    plain = {**state.plain, **_names(part.fields, "event")}
    return Names(owner, plain, state.dotted, incomplete=part.incomplete or agent.state_incomplete)


@attrs.frozen
class Sentences:
    """Reads the sentences about one agent; each method reads one.

    Raises:
        Unreadable: from every method, at the word where the sentence stops making sense.
    """

    draft: Draft
    agent: AgentDraft
    problems: Problems

    # -- commands -----------------------------------------------------------------------------------------------

    def refusal(self, cursor: Cursor, names: Names) -> Refusal | None:
        """`refuse` is said; then: `code` if|unless `condition`: message."""
        cursor.usage = "- refuse `out_of_stock` unless `quantity <= stock`: only {stock} left"
        code = cursor.code("the code of the refusal")
        check_code(code.text, code.where, self.problems)
        unless = cursor.one_of("if", "unless") == "unless"
        condition = self._expression(cursor.phrase, cursor.code("a condition"), names, BOOLEAN)
        if not cursor.said(":"):
            raise cursor.wrong("':' and what to tell the caller")
        message = self._message(cursor, names)
        if condition is None or message is None:
            return None
        return Refusal(code.text, condition, unless, message, where=cursor.phrase.where)

    def custom(self, cursor: Cursor) -> Custom:
        """`custom` is said; then: text."""
        if not cursor.said(":"):
            raise cursor.wrong("':' and the rule in words")
        text, _ = cursor.rest()
        if not text:
            raise cursor.wrong("the rule in words")
        return Custom(" ".join(text.split()), where=cursor.phrase.where)

    def emission(self, cursor: Cursor, names: Names) -> Emit | None:
        """`emit` is said; then: `event` [if `condition`] [with `field` = `value`, ...]."""
        cursor.usage = f"- emit `reserved` if `quantity <= stock` with {_EFFECT}"
        event = cursor.code("an event")
        found = self.agent.events.get(event.text)
        if found is None:
            self._unknown(event, "event", self.agent.events, self.agent)
        condition, conditioned = self._condition(cursor, names)
        fields = self._assignments(cursor, event, found, names)
        if fields is None or not conditioned:
            return None
        return Emit(event.text, fields, condition, where=cursor.phrase.where)

    def sending(self, cursor: Cursor, names: Names) -> SendCommand | None:
        """`send` is said; then: `agent.command` to `id` [if `condition`] [with `field` = `value`, ...]."""
        cursor.usage = f"- send `inventory.reserve` to `sku` with {_EFFECT}"
        target = cursor.code("a command, as `agent.command`")
        agent, command, word = self._of_agent(target, "command")
        if not cursor.said("to"):
            raise cursor.wrong("'to' and an expression for the entity's id")
        to = self._expression(cursor.phrase, cursor.code("the entity's id"), names, ID)
        condition, conditioned = self._condition(cursor, names)
        fields = self._assignments(cursor, word, command, names)
        if agent is None or command is None or to is None or fields is None or not conditioned:
            return None
        return SendCommand(agent.name, command.name, to, fields, condition, where=cursor.phrase.where)

    # -- events, queries, reactions -----------------------------------------------------------------------------

    def changes(self, cursor: Cursor, event: Part, names: Names) -> Iterable[Change]:
        """sets `field`, ... | `field` becomes `value`."""
        cursor.usage = "- `stock` becomes `stock - quantity`"
        if cursor.said("sets"):
            cursor.usage = "- sets `customer`, `price`"
            pairs = list(cursor.pairs())
            cursor.end()
            for field, value in pairs:
                if value is not None:
                    raise Unreadable(value.where, "'sets' takes names alone", "write: `stock` becomes `quantity`")
                if field.text in event.fields or event.incomplete:
                    yield from self._change(cursor.phrase, field, field, names)
                else:
                    self.problems.unknown(field.where, "field", field.text, event.fields, f"event {event.name}")
            return
        field = cursor.code("a field of the state, or 'sets'")
        if not cursor.said("becomes"):
            raise cursor.wrong("'becomes'", ("becomes",))
        value = cursor.code("its new value")
        cursor.end()
        yield from self._change(cursor.phrase, field, value, names)

    def _change(self, phrase: Phrase, field: Word, value: Word, names: Names) -> Iterable[Change]:
        found = self.agent.state.get(field.text)
        if field.text not in self.agent.state and not self.agent.state_incomplete:
            self.problems.unknown(field.where, "field", field.text, self.agent.state, f"the state of {self.agent.name}")
        expression = self._expression(phrase, value, names, found.kind) if found is not None else None
        if expression is not None:
            yield Change(field.text, expression, where=field.where)

    def answer(self, cursor: Cursor, names: Names) -> tuple[Assignment, ...]:
        """answer with `field` [= `value`], ..."""
        cursor.usage = "- answer with `stock`, `total` = `stock + reserved`"
        cursor.one_of("answer with")
        found = []
        taken: set[str] = set()
        for name, value in cursor.pairs():
            if name.text in taken:
                raise Unreadable(name.where, f"{name.text!r} is answered twice", "remove one")
            taken.add(name.text)
            check_name(name.text, "field", name.where, self.problems)
            expression = self._expression(cursor.phrase, value or name, names, None)
            if expression is not None:
                found.append(Assignment(name.text, expression, where=name.where))
        cursor.end()
        return tuple(found)

    def reaction(self, phrase: Phrase) -> Reaction | None:
        """`agent.event` [if `condition`]: `command` [on `id`] [with `field` = `value`, ...]."""
        cursor = Cursor(phrase, "- `order.created`: `reserve` on `sku` with `order`, `quantity`")
        target = cursor.code("an event, as `agent.event`")
        agent, event, _ = self._of_agent(target, "event")
        if agent is self.agent:
            raise Unreadable(
                target.where, f"{agent.name} listens to itself", "let the command that emits this emit the other, too"
            )
        label = f"event {target.text}"
        plain = _names(event.fields, "event") if event is not None else {}
        names = Names(label, plain, incomplete=event is None or event.incomplete)
        condition, conditioned = self._condition(cursor, names)
        if not cursor.said(":"):
            raise cursor.wrong("':' and a command of this agent")
        word = cursor.code("a command of this agent")
        command = self.agent.commands.get(word.text)
        if command is None:
            self._unknown(word, "command", self.agent.commands, self.agent)
        own = attrs.evolve(names, plain={**plain, "id": Name(ID, "entity_id", "entity_id")})
        if cursor.said("on"):
            on = self._expression(phrase, cursor.code("the entity's id"), own, ID)
        else:
            on = Expression("id", "entity_id", ID, frozenset({"entity_id"}), where=word.where)
        fields = self._assignments(cursor, word, command, names)
        if agent is None or event is None or command is None or on is None or fields is None or not conditioned:
            return None
        return Reaction(agent.name, event.name, command.name, on, fields, condition, where=phrase.where)

    # -- parts of sentences -------------------------------------------------------------------------------------

    def _condition(self, cursor: Cursor, names: Names) -> tuple[Expression | None, bool]:
        """The condition, if there is one; and whether all is well with it."""
        if not cursor.said("if"):
            return None, True
        found = self._expression(cursor.phrase, cursor.code("a condition"), names, BOOLEAN)
        return found, found is not None

    def _assignments(
        self, cursor: Cursor, target: Word, part: Part | None, names: Names
    ) -> tuple[Assignment, ...] | None:
        """[with `field` [= `value`], ...], to the end: every field of the target in its order; optional ones that are
        not named are nothing. None if something is wrong with it."""
        before = len(self.problems)
        given: dict[str, Assignment | None] = {}
        for name, value in cursor.pairs() if cursor.said("with") else ():
            known = part.fields.get(name.text) if part is not None else None
            if part is not None and name.text not in part.fields:
                if not part.incomplete:
                    self.problems.unknown(name.where, "field", name.text, part.fields, target.text)
                continue
            if name.text in given:
                raise Unreadable(name.where, f"{name.text!r} is given twice", "remove one")
            expression = self._expression(cursor.phrase, value or name, names, known.kind if known else None)
            given[name.text] = Assignment(name.text, expression, where=name.where) if expression else None
        if cursor.next is not None:
            raise cursor.wrong("'with' and fields, or nothing more" if not given else "',' or nothing more", ("with",))
        if part is None or part.incomplete:
            return None
        needed = [name for name, field in part.fields.items() if field is not None and field.kind.name != "optional"]
        missing = [name for name in needed if name not in given]
        if missing and len(self.problems) == before:
            listed = ", ".join(f"`{name}`" for name in missing)
            self.problems.add(target.where, f"{target.text} lacks {listed}", f"add {listed} behind 'with'")
        for unsaid, field in part.fields.items():
            if unsaid not in given and field is not None and field.kind.name == "optional":
                none = Expression("nothing", "None", field.kind, where=target.where)
                given[unsaid] = Assignment(unsaid, none, where=target.where)
        found = [given.get(each) for each in part.fields]
        whole = tuple(each for each in found if each is not None)
        return whole if len(whole) == len(found) else None

    def _of_agent(self, target: Word, kind: str) -> tuple[AgentDraft | None, Part | None, Word]:
        """What `agent.name` means: the agent, its command or event, and the word for the latter."""
        owner, dot, name = target.text.partition(".")
        if not dot or not owner or not name:
            raise Unreadable(target.where, f"{target.text!r:.80} names no {kind}", f"write `agent.{kind}`")
        agent = self.draft.agents.get(owner)
        if agent is None:
            if not self.draft.incomplete:
                self.problems.unknown(target.where, "agent", owner, self.draft.agents)
            return None, None, target
        offset = len(owner) + 1
        word = Word(name, target.offset + offset, attrs.evolve(target.where, column=target.where.column + offset), True)
        parts = agent.commands if kind == "command" else agent.events
        if name not in parts:
            self._unknown(word, kind, parts, agent)
        return agent, parts.get(name), word

    def _unknown(self, word: Word, kind: str, known: Iterable[str], agent: AgentDraft) -> None:
        if not agent.incomplete:
            self.problems.unknown(word.where, kind, word.text, known, agent.name)

    def _expression(self, phrase: Phrase, word: Word, names: Names, kind: Kind | None) -> Expression | None:
        return checked(word.text, lambda at: phrase.position(word.offset + at), names, self.problems, kind)

    def _message(self, cursor: Cursor, names: Names) -> Message | None:
        """The rest of the sentence: text with {expressions}."""
        text, start = cursor.rest()
        phrase = cursor.phrase
        if not 1 <= len(text) <= _MESSAGE_LENGTH_MAX:
            raise Unreadable(phrase.position(start), f"a message of {len(text)} characters", "use 1 to 500")
        parts: list[str | Expression | None] = []
        at = 0
        while at < len(text):
            opened = text.find("{", at)
            plain = text[at : opened if opened >= 0 else len(text)]
            if "}" in plain:
                raise Unreadable(
                    phrase.position(start + at + plain.index("}")), "'}' without '{'", "write {an expression}"
                )
            if plain:
                parts.append(" ".join(plain.split("\n")))
            if opened < 0:
                break
            closed = text.find("}", opened)
            if closed < 0:
                raise Unreadable(phrase.position(start + opened), "'{' without '}'", "write {an expression}")
            inner = text[opened + 1 : closed]
            offset = start + opened + 1 + len(inner) - len(inner.lstrip())
            word = Word(inner.strip(), offset, phrase.position(offset), True)
            parts.append(self._expression(phrase, word, names, None))
            at = closed + 1
        found = tuple(part for part in parts if part is not None)
        return Message(found) if len(found) == len(parts) else None
