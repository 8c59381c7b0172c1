"""Questions whose answers make a PRD, for those who have none yet.

Every answer is put into the PRD as far as it has come, and the PRD's own reader says whether it makes sense there. So
an interview knows no rules of its own, and what it writes can be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, Protocol

import attrs

from meshforge_trio.factory.prd import problems_of_sentences, read_prd
from meshforge_trio.factory.problems import PrdError
from meshforge_trio.factory.proposals import propose
from meshforge_trio.factory.render import expectation_text, render, step_text

__all__ = ["Dialogue", "interview"]

# Stands before the line that is being asked for; no keyboard has it.
_MARK: Final = "\ue000"


class Dialogue(Protocol):
    """Somebody who answers."""

    def ask(self, question: str, default: str = "") -> str:
        """The answer to a question; `default` if there is none."""

    def tell(self, text: str) -> None:
        """Say something that is no question."""


@attrs.define
class _Part:
    name: str
    lines: list[str] = attrs.field(factory=list)
    fields: list[str] = attrs.field(factory=list)


@attrs.define
class _Agent:
    name: str
    prose: str = ""
    fields: list[str] = attrs.field(factory=list)
    commands: list[_Part] = attrs.field(factory=list)
    events: list[_Part] = attrs.field(factory=list)
    listens: list[str] = attrs.field(factory=list)


@attrs.define
class _Example:
    name: str
    lines: list[str] = attrs.field(factory=list)


@attrs.define
class _Sketch:
    """A PRD that is being asked for."""

    title: str = "A title"
    tenant: str = "default"
    workspace: str = "main"
    agents: list[_Agent] = attrs.field(factory=list)
    invariants: list[str] = attrs.field(factory=list)
    examples: list[_Example] = attrs.field(factory=list)

    def text(self) -> str:
        """The PRD, as far as it has come; what nobody has said yet is held open by something that can be read."""
        return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        yield from (f"# {self.title}", "", f"- tenant: `{self.tenant}`", f"- workspace: `{self.workspace}`", "")
        for agent in self.agents or [_Agent("entry")]:
            yield from (f"## Agent: {agent.name}", "", agent.prose, "", "### State", "")
            yield from _table(agent.fields or ["entry text"])
            for command in agent.commands or [_Part("begin", ["entity: new"])]:
                yield from ("", f"### Command: {command.name}", "")
                yield from _table(command.fields)
                yield from ("", *(f"- {line}" for line in command.lines))
            for event in agent.events:
                yield from ("", f"### Event: {event.name}", "")
                yield from _table(event.fields)
                yield from ("", *(f"- {line}" for line in event.lines))
            yield from ("", "### Query: get", "", "### Listens to", "", *(f"- {line}" for line in agent.listens), "")
        yield from ("## Invariants", "", *(f"- {line}" for line in self.invariants), "")
        if self.examples:
            yield from ("## Acceptance", "")
        for example in self.examples:
            yield from (f"### Example: {example.name}", "", *(f"- {line}" for line in example.lines or ["when"]), "")


def _table(fields: list[str]) -> Iterator[str]:
    """A table of fields written as `name type`."""
    if fields:
        yield from ("| field | type |", "|-------|------|")
    for field in fields:
        mark = _MARK if field.startswith(_MARK) else ""
        name, _, kind = field.removeprefix(_MARK).partition(" ")
        yield f"{mark}| {name.removesuffix(':')} | {kind.strip()} |"


def interview(dialogue: Dialogue) -> str:
    """Ask for everything a PRD needs; its text.

    Every sentence of it makes sense. What only shows in the whole, as a command that nobody asks for, is told at the
    end and left to be mended in the text.
    """
    return _Interview(dialogue).run()


class _Interview:
    def __init__(self, dialogue: Dialogue) -> None:
        self._dialogue = dialogue
        self._sketch = _Sketch()

    def run(self) -> str:
        """All questions, in the order of the document."""
        sketch, tell = self._sketch, self._dialogue.tell
        self._line("What is it called?", "My shop", lambda text: setattr(sketch, "title", text))
        self._line("Tenant?", "default", lambda text: setattr(sketch, "tenant", text), wrap="`")
        self._line("Workspace?", "main", lambda text: setattr(sketch, "workspace", text), wrap="`")
        tell("An agent keeps one kind of thing: orders, accounts, sensors. An empty line ends each list.")
        while self._agent():
            pass
        for agent in sketch.agents:
            if len(sketch.agents) > 1:
                tell(f"Other agents' events that {agent.name} listens to, like: `order.created`: `reserve` on `sku`")
                self._list(f"{agent.name} listens to?", agent.listens)
        tell("What must always hold, like: inventory: `stock >= 0`, or: `sum(account.balance)` is constant")
        self._list("Invariant?", sketch.invariants)
        self._examples()
        try:
            return render(read_prd(sketch.text()))
        except PrdError as error:
            for problem in error.problems:
                tell(f"Line {problem.line}: {problem.what}; {problem.suggestion}")
            return sketch.text()

    # -- an agent -----------------------------------------------------------------------------------------------

    def _agent(self) -> bool:
        """Ask for one agent; whether there was another."""
        agents, tell = self._sketch.agents, self._dialogue.tell
        agent = _Agent("")
        agents.append(agent)
        question = "Another agent?" if len(agents) > 1 else "The first agent?"
        if not self._line(question, "", lambda text: setattr(agent, "name", text), needed=len(agents) == 1):
            agents.remove(agent)
            return False
        agent.prose = " ".join(self._dialogue.ask(f"What is one {agent.name}, in a sentence?").split()).lstrip("#|->+*")
        if problems_of_sentences(self._sketch.text()):
            agent.prose = ""
        tell("A field of its state is a name and a type: text, integer, decimal, boolean, time, duration, id,")
        tell("one of (`a`, `b`), list of ..., optional ...; like: stock integer")
        self._list(f"Field of {agent.name}?", agent.fields, needed=True)
        while self._command(agent) or not _begins(agent):
            if not _begins(agent):
                tell(f"One command has to be for a new {agent.name}, or there will never be one.")
        return True

    def _command(self, agent: _Agent) -> bool:
        """Ask for one command and the event that tells of it; whether there was another."""
        command, event = _Part(""), _Part("")
        agent.commands.append(command)
        question = f"Another command of {agent.name}?" if len(agent.commands) > 1 else f"First command of {agent.name}?"
        if not self._line(question, "", lambda text: setattr(command, "name", text), needed=len(agent.commands) == 1):
            agent.commands.remove(command)
            return False
        existence = "existing" if _begins(agent) else "new"
        command.lines.append("")
        question = f"Is it for a new {agent.name}, an existing one, or any (new, existing, any)?"
        self._line(question, existence, lambda text: _put(command.lines, f"entity: {text}"))
        self._list(f"Field of {command.name}?", command.fields)
        self._dialogue.tell("A rule is a sentence like: refuse `too_few` if `quantity > stock`: only {stock} left")
        self._list(f"Rule of {command.name}?", command.lines)
        agent.events.append(event)
        happened = f"{command.name}d" if command.name.endswith("e") else f"{command.name}ed"
        self._line("Which event tells that it happened?", happened, lambda text: setattr(event, "name", text))
        event.fields = list(command.fields)
        names = [f"`{field.split()[0].removesuffix(':')}`" for field in event.fields]
        command.lines.append(f"emit `{event.name}`" + (f" with {', '.join(names)}" if names else ""))
        self._dialogue.tell("What it changes, like: `stock` becomes `stock - quantity`, or: sets `customer`")
        self._list(f"Change by {event.name}?", event.lines)
        return True

    # -- examples ----------------------------------------------------------------------------------------------

    def _examples(self) -> None:
        """Propose an example for each agent, and ask for more."""
        tell = self._dialogue.tell
        try:
            prd = read_prd(self._sketch.text())
        except PrdError:
            return  # what is wrong with the whole is told at the end, and no example could be played before that
        tell("Examples become tests. What is proposed is right so far: take it with Enter, or write something better.")
        for agent in prd.agents:
            proposed = propose(prd, agent)
            if proposed is not None:
                when, then = step_text(prd, proposed.when[0]), expectation_text(prd, proposed.then[0])
                while not self._example(proposed.name, when, then):
                    pass
        if not self._sketch.examples:
            tell("For no agent an example was found that its rules let pass. A workspace needs one: write it.")
        while name := self._name_of_example():
            self._example(name)

    def _name_of_example(self) -> str:
        example = _Example("")
        self._sketch.examples.append(example)
        self._line("Another example? Its name:", "", lambda text: setattr(example, "name", text), needed=False)
        self._sketch.examples.remove(example)
        return example.name

    def _example(self, name: str, when: str = "", then: str = "") -> bool:
        """Ask for an example, of which one `when` and one `then` may be proposed; whether it holds."""
        example = _Example(name)
        self._sketch.examples.append(example)
        if when:
            self._dialogue.tell(f"Example: {name}")
            self._sentence("when", when, example.lines)
            self._sentence("then", then, example.lines)
        else:
            self._list("Given?", example.lines, prefix="given ")
            self._list("When?", example.lines, prefix="when ", needed=True)
            self._list("Then?", example.lines, prefix="then ", needed=True)
        fault = self._fault_of(example)
        if fault:
            self._dialogue.tell(f"That does not hold: {fault}")
            self._sketch.examples.remove(example)
        return not fault

    def _sentence(self, word: str, proposed: str, into: list[str]) -> None:
        into.append("")
        self._line(f"{word.capitalize()}?", proposed, lambda text: _put(into, text, f"{word} "))

    def _fault_of(self, example: _Example) -> str:
        """What comes otherwise when the example is played."""
        text = self._sketch.text()
        begin = text.split("\n").index(f"### Example: {example.name}") + 1
        try:
            read_prd(text)
        except PrdError as error:
            found = [problem for problem in error.problems if problem.line >= begin]
            return "; ".join(part for problem in found[:1] for part in (problem.what, problem.suggestion) if part)
        return ""

    # -- questions ----------------------------------------------------------------------------------------------

    def _line(
        self, question: str, default: str, put: Callable[[str], None], *, wrap: str = "", needed: bool = True
    ) -> bool:
        """Ask until the answer makes sense where `put` puts it; whether there was one."""
        while True:
            answer = self._dialogue.ask(question, default).strip().strip(wrap)
            if not answer and not needed:
                return False
            put(f"{_MARK}{answer}")
            complaint = self._complaint() if answer else "say something"
            if not complaint:
                put(answer)
                return True
            self._dialogue.tell(complaint)

    def _list(self, question: str, into: list[str], *, needed: bool = False, prefix: str = "") -> None:
        """Ask for items until an empty line; `needed` says that there must be one, `prefix` how each begins."""
        begun = len(into)
        while True:
            into.append("")
            wanted = needed and len(into) == begun + 1
            if not self._line(question, "", lambda text: _put(into, text, prefix), needed=wanted):
                into.pop()
                return

    def _complaint(self) -> str:
        """What is wrong with the marked line."""
        text = self._sketch.text()
        line = text[: text.index(_MARK)].count("\n") + 1
        found = [problem for problem in problems_of_sentences(text.replace(_MARK, "")) if problem.line == line]
        return "; ".join(part for problem in found[:1] for part in (problem.what, problem.suggestion) if part)


def _put(lines: list[str], text: str, prefix: str = "") -> None:
    """Let `text` be the last line; a person may write what it begins with, or leave it out."""
    mark = _MARK if text.startswith(_MARK) else ""
    lines[-1] = f"{mark}{prefix}{text.removeprefix(_MARK).removeprefix(prefix)}"


def _begins(agent: _Agent) -> bool:
    return any(line in ("entity: new", "entity: any") for command in agent.commands for line in command.lines)
