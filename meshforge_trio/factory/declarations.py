"""First reading of a PRD: which agents, commands, events and fields there are. Sentences about them are kept for the
second, which needs to know all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from typing import Final, TypeVar

import attrs

from meshforge_trio.factory.constants import read_constant
from meshforge_trio.factory.kinds import read_kind, read_limits, start_of
from meshforge_trio.factory.model import Field, Kind, Limits, Position
from meshforge_trio.factory.names import Namespace, check_name, check_title, check_token
from meshforge_trio.factory.outline import Phrase, Section, Table, Word
from meshforge_trio.factory.phrases import Cursor
from meshforge_trio.factory.problems import Problems, Unreadable, closest, did_you_mean

__all__ = ["AgentDraft", "Draft", "ExampleDraft", "Part", "declare"]

S = TypeVar("S")
T = TypeVar("T")

AGENTS_MAX: Final = 200
INVARIANTS_MAX: Final = 500
SENTENCES_MAX: Final = 200
_FIELDS_MAX: Final = 100
_STATE: Final = ("field", "type", "starts as", "meaning")
_COMMAND: Final = ("field", "type", "rule", "meaning")
_EVENT: Final = ("field", "type", "meaning")


@attrs.define
class Part:
    """A command, event or query as declared. A field that could not be read is None; `incomplete` says that there may
    be more of them."""

    name: str
    where: Position
    prose: str
    items: Sequence[Phrase]
    fields: dict[str, Field | None] = attrs.field(factory=dict)
    incomplete: bool = False

    @cached_property
    def internal(self) -> bool:
        """Whether it says so."""
        return any(Cursor(item).said("internal") for item in self.items)


@attrs.define
class AgentDraft:
    """An agent as declared. `incomplete` says that there may be commands or events that could not be read."""

    name: str
    where: Position
    prose: str
    state: dict[str, Field | None] = attrs.field(factory=dict)
    commands: dict[str, Part] = attrs.field(factory=dict)
    events: dict[str, Part] = attrs.field(factory=dict)
    queries: dict[str, Part] = attrs.field(factory=dict)
    listens: list[Phrase] = attrs.field(factory=list)
    incomplete: bool = False
    state_incomplete: bool = False


@attrs.define
class ExampleDraft:
    """An acceptance example as written."""

    name: str
    where: Position
    prose: str
    items: Sequence[Phrase]


@attrs.define
class Draft:
    """A PRD as declared."""

    title: str = ""
    tenant: str = "default"
    workspace: str = "main"
    prose: str = ""
    agents: dict[str, AgentDraft] = attrs.field(factory=dict)
    invariants: list[Phrase] = attrs.field(factory=list)
    examples: list[ExampleDraft] = attrs.field(factory=list)
    incomplete: bool = False

    @cached_property
    def codes(self) -> frozenset[str] | None:
        """The codes of all refusals; none are known if a rule in words may refuse with one that nobody knows yet."""
        commands = [command for agent in self.agents.values() for command in agent.commands.values()]
        items = [item for command in commands for item in command.items]
        if any(Cursor(item).said("custom") for item in items):
            return None
        refusals = [item.words[1] for item in items if len(item.words) > 1 and Cursor(item).said("refuse")]
        return frozenset(word.text for word in refusals if word.code)

    @cached_property
    def totals(self) -> Mapping[str, Mapping[str, Kind | None]]:
        """The kinds of all fields of all states, for expressions over all entities."""
        return {
            name: {field: found.kind if found else None for field, found in each.state.items()}
            for name, each in self.agents.items()
        }


def declare(sections: Sequence[Section], problems: Problems) -> Draft:
    """What the sections of a PRD declare."""
    draft = Draft()
    if not sections:
        problems.add(Position(1, 1), "there is no title", "begin with a line like '# My shop'")
        return draft
    if sections[0].level != 1:
        if not problems:
            problems.add(sections[0].title.where, "the first heading is not the title", "write it as '# My shop'")
        return draft
    _Declaring(problems, draft).title(sections[0])
    for section in sections[1:]:
        problems.add(section.title.where, "a second title", "write all of it below one; agents as '## Agent: order'")
    return draft


class _Declaring:
    def __init__(self, problems: Problems, draft: Draft) -> None:
        self._problems = problems
        self._draft = draft
        self._agents = Namespace(problems)
        self._examples: set[str] = set()

    def title(self, section: Section) -> None:
        """The whole document."""
        draft = self._draft
        draft.title = section.title.source.strip()
        draft.prose = section.text
        check_title(draft.title, section.title.where, self._problems)
        self._only(section, "the title", items=True)
        for item in section.items:
            self._reading(item, self._address)
        heads = {"agent": self._agent, "invariants": self._invariants, "acceptance": self._acceptance}
        if not self._headed(section, 2, heads, named=("agent",)):
            draft.incomplete = True
        if not draft.agents and not draft.incomplete:
            self._problems.add(section.title.where, "there is no agent", "write a heading like '## Agent: order'")
        if len(draft.agents) > AGENTS_MAX:
            extra = list(draft.agents.values())[AGENTS_MAX]
            self._problems.add(extra.where, f"more than {AGENTS_MAX} agents", "make two workspaces")

    def _address(self, item: Phrase) -> None:
        cursor = Cursor(item, "- tenant: `default`")
        which = cursor.one_of("tenant", "workspace")
        if not cursor.said(":"):
            raise cursor.wrong("':'")
        word = cursor.code("a name")
        cursor.end()
        check_token(word.text, which, word.where, self._problems)
        setattr(self._draft, which, word.text)

    def _invariants(self, section: Section, _: str, __: Position) -> None:
        self._only(section, "Invariants", items=True)
        self._draft.invariants.extend(section.items)
        if len(section.items) > INVARIANTS_MAX:
            self._problems.add(
                section.items[INVARIANTS_MAX].where, f"more than {INVARIANTS_MAX} invariants", "join some with 'and'"
            )

    def _acceptance(self, section: Section, _: str, __: Position) -> None:
        self._only(section, "Acceptance")
        self._headed(section, 3, {"example": self._example}, named=("example",))

    def _example(self, section: Section, name: str, where: Position) -> None:
        self._only(section, "an example", items=True)
        if name.casefold() in self._examples:
            self._problems.add(where, f"a second example {name!r}", "give it another name")
        self._examples.add(name.casefold())
        self._few_enough(section.items, "an example", where)
        self._draft.examples.append(ExampleDraft(name, where, section.text, section.items))

    # -- an agent -----------------------------------------------------------------------------------------------

    def _agent(self, section: Section, name: str, where: Position) -> None:
        name = check_name(name, "agent", where, self._problems)
        agent = AgentDraft(name, where, section.text)
        if self._agents.take(name, "agent", where):
            self._draft.agents[name] = agent
        else:
            self._draft.incomplete = self._draft.agents.get(name, agent).incomplete = True
        self._only(section, "an agent")
        names = Namespace(self._problems)
        names.take(name, "agent", where)

        def part(kind: str, into: dict[str, Part], columns: Sequence[str]) -> Callable[[Section, str, Position], None]:
            def declared(below: Section, title: str, place: Position) -> None:
                known = check_name(title, kind, place, self._problems, name)
                self._only(below, f"a {kind}", items=True, table=bool(columns))
                self._few_enough(below.items, f"a {kind}", place)
                found = Part(known, place, below.text, below.items)
                found.incomplete = not self._fields(below, columns, found.fields)
                if names.take(known, kind, place):
                    into[known] = found
                else:
                    agent.incomplete = True

            return declared

        def state(below: Section, _: str, __: Position) -> None:
            self._only(below, "State", table=True)
            agent.state_incomplete = not self._fields(below, _STATE, agent.state)

        def listens(below: Section, _: str, __: Position) -> None:
            self._only(below, "Listens to", items=True)
            agent.listens.extend(below.items)

        heads = {
            "state": state,
            "command": part("command", agent.commands, _COMMAND),
            "event": part("event", agent.events, _EVENT),
            "query": part("query", agent.queries, ()),
            "listens to": listens,
        }
        if not self._headed(section, 3, heads, named=("command", "event", "query")):
            agent.incomplete = agent.state_incomplete = True
        if any(each.cut for each in (section, *section.sections)):
            agent.incomplete = True
        if not (agent.state or agent.state_incomplete):
            self._problems.add(
                where, f"agent {name!r} has no state", "write '### State' and a table of fields below it"
            )
        if not (agent.commands or agent.incomplete):
            self._problems.add(where, f"agent {name!r} has no command", "write a heading like '### Command: create'")

    def _fields(self, section: Section, columns: Sequence[str], into: dict[str, Field | None]) -> bool:
        """Read the fields of a table; whether all of them could be."""
        if not section.tables:
            return not section.broken
        table = section.tables[0]
        heads = self._columns(table, columns)
        if "field" not in heads or "type" not in heads:
            return False
        names = Namespace(self._problems)
        whole = not section.broken
        for row in table.rows:
            cells = {head: row[i] for head, i in heads.items()}
            name = cells["field"].source.strip("` ")
            where = _place_of(cells["field"])
            if not name:
                self._problems.add(where, "a field without a name", "write one, or remove the row")
                whole = False
                continue
            name = check_name(name, "field", where, self._problems)
            if names.take(name, "field", where):
                into[name] = self._reading(cells, partial(self._field, name))
        if len(into) > _FIELDS_MAX:
            self._problems.add(table.head[0].where, f"more than {_FIELDS_MAX} fields", "make two agents of it")
        return whole

    def _columns(self, table: Table, allowed: Sequence[str]) -> dict[str, int]:
        found: dict[str, int] = {}
        for i, cell in enumerate(table.head):
            name = cell.source.strip().casefold()
            meant = name if name in allowed else closest(name, allowed)
            if name not in allowed:
                there = f"there is: {', '.join(allowed)}"
                limits = "limits belong to a command's fields" if name == "rule" else ""
                suggestion = did_you_mean(name, allowed) or limits or there
                self._problems.add(cell.where, f"unknown column {cell.source!r:.60}", suggestion)
            elif meant in found:
                self._problems.add(cell.where, f"a second column {name!r}", "remove one")
            if meant is not None:
                found.setdefault(meant, i)
        for missing in ("field", "type"):
            if missing not in found and all(cell.source.strip().casefold() in allowed for cell in table.head):
                self._problems.add(
                    table.head[0].where,
                    f"a table without the column {missing!r}",
                    f"the columns are: {', '.join(allowed)}",
                )
        return found

    def _field(self, name: str, cells: Mapping[str, Phrase]) -> Field | None:
        kind = read_kind(cells["type"])
        limits = read_limits(cells["rule"], kind) if "rule" in cells else Limits()
        meaning = cells["meaning"].source.strip() if "meaning" in cells else ""
        start: object = None
        if "starts as" in cells:
            start = self._start(cells["starts as"], kind)
        elif "rule" not in cells:
            start = start_of(kind)
        return Field(name, kind, meaning, limits, start, where=_place_of(cells["field"]))

    def _start(self, cell: Phrase, kind: Kind) -> object:
        text = cell.source.strip("` ")
        if not text:
            return start_of(kind)
        offset = cell.source.index(text)
        return read_constant(cell, Word(text, offset, cell.position(offset)), kind, self._problems)

    # -- headings and complaints --------------------------------------------------------------------------------

    def _headed(
        self,
        section: Section,
        level: int,
        heads: Mapping[str, Callable[[Section, str, Position], None]],
        named: Sequence[str] = (),
    ) -> bool:
        """Read the sections below one by their headings; whether all of those were understood."""
        usage = ", ".join("#" * level + f" {each.capitalize()}" + (": ..." if each in named else "") for each in heads)
        seen: set[str] = set()
        whole = True
        for below in section.sections:
            title = below.title
            head, colon, name = (part.strip() for part in title.source.partition(":"))
            known = self._head(below, level, head.casefold(), heads, f"here belongs: {usage}")
            if known is not None and (known in named) != bool(name):
                what = f"a heading {known!r} {'without' if known in named else 'with'} a name"
                self._problems.add(title.where, what, f"here belongs: {usage}")
                known = None if known in named else known
            if known is None:
                whole = False
                continue
            if known in seen and known not in named:
                self._problems.add(title.where, f"a second heading {known!r}", "write all of it below one")
            seen.add(known)
            name = name.strip("` ")
            where = title.position(title.source.index(name, len(head) + len(colon))) if name else title.where
            heads[known](below, name, where)
        return whole

    def _head(self, section: Section, level: int, head: str, heads: Iterable[str], usage: str) -> str | None:
        """Which heading is meant, if that can be told."""
        where = section.title.where
        if section.level != level:
            self._problems.add(where, f"a heading of level {section.level}", usage)
            return None
        if head in heads:
            return head
        self._problems.add(where, f"unknown heading {head!r:.60}", did_you_mean(head, heads) or usage)
        return closest(head, heads)

    def _only(self, section: Section, what: str, *, items: bool = False, table: bool = False) -> None:
        """Complain about what does not belong into a section."""
        suggestion = "remove it, or move it below the heading where it belongs"
        if section.items and not items:
            self._problems.add(section.items[0].where, f"{what} has no list of its own", suggestion)
        for extra in section.tables[1 if table else 0 :]:
            self._problems.add(
                extra.head[0].where, f"{what} has {'one table' if table else 'no table of its own'}", suggestion
            )
        if section.level >= 3:
            for below in section.sections:
                self._problems.add(below.title.where, "a heading too deep", "headings end with '###'")

    def _few_enough(self, items: Sequence[Phrase], what: str, where: Position) -> None:
        if len(items) > SENTENCES_MAX:
            self._problems.add(where, f"{what} of more than {SENTENCES_MAX} sentences", "make several of it")

    def _reading(self, source: S, read: Callable[[S], T]) -> T | None:
        try:
            return read(source)
        except Unreadable as error:
            self._problems.add(error.where, error.what, error.suggestion)
            return None


def _place_of(cell: Phrase) -> Position:
    """Where the name in a cell begins, behind its backquote."""
    return cell.words[0].where if cell.words else cell.where
