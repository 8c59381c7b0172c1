"""Invariants over states, as checkers: what must hold of all that the stored events lead to.

    STOCK = of_each("inventory: stock >= 0", "agents:app", "inventory", lambda item: item.stock >= 0)

    Scenario(..., invariants=[STOCK], claims=(..., STOCK.id))

States are rebuilt by the app's own agents from the rows of the image, in the order of the store: what an agent decided
wrongly shows in them. What concerns one entity is judged after each decision, on every corpse, too. What concerns
several is judged at the end, when nothing is on its way between them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from decimal import Decimal
from functools import cache
from itertools import groupby
from typing import Any

import attrs

from chaos.checkers import Checker, Finding
from chaos.evidence import Evidence, envelope_of
from chaos.rows import OutputRow
from meshforge_trio.agent import AgentAdapter, Event
from meshforge_trio.launch import adapter_of, load_app
from meshforge_trio.subjects import Scope

__all__ = ["Number", "States", "of_all", "of_all_chains", "of_each", "of_each_step"]

#: States by agent, then by entity.
States = Mapping[str, Mapping[str, Any]]
#: What can be added up.
Number = int | Decimal


def of_each(words: str, app: str, agent: str, holds: Callable[[Any], bool]) -> Checker:
    """After every decision `holds` is true of the state of the entity that was decided on.

    `words` are the invariant as people say it, and name the checker; `app` is `module:attr`.
    """

    def look(evidence: Evidence) -> Iterator[Finding | int]:
        for step in _steps(evidence, app, agent):
            yield 1
            if not holds(step.after):
                yield step.finding(f"it does not hold of {step.after}")

    return Checker(words, f"After every decision of {agent}: {words}.", look)


def of_each_step(words: str, app: str, agent: str, holds: Callable[[Any, Any], bool]) -> Checker:
    """From one decision on an entity to the next `holds` is true of its states before and after.

    The decision that brought the entity about has nothing before it.
    """

    def look(evidence: Evidence) -> Iterator[Finding | int]:
        for step in _steps(evidence, app, agent):
            if step.first_version == 1:
                continue
            yield 1
            if not holds(step.before, step.after):
                yield step.finding(f"it does not hold from {step.before} to {step.after}")

    return Checker(words, f"From each decision of {agent} to the next: {words}.", look)


def of_all(words: str, app: str, holds: Callable[[States], bool]) -> Checker:
    """When everything is decided, `holds` is true of all states of a workspace together."""

    def look(evidence: Evidence) -> Iterator[Finding | int]:
        for place, states in _folded(evidence, app).items():
            yield sum(map(len, states.values()))
            if not holds(states):
                yield Finding(f"{place}: it does not hold of {_shown(states)}", (), place)

    return Checker(words, f"When everything is decided: {words}.", look, on_corpse=False)


def of_all_chains(
    words: str,
    app: str,
    value: Callable[[States], Number],
    holds: Callable[[Number], bool],
    besides: Collection[tuple[str, str]] = (),
) -> Checker:
    """`holds` is true of how much each client's command, with all that followed from it, has changed `value`.

    `value` is one to which every event adds or takes its own share, as a sum is: commands run side by side. `besides`
    are (agent, action) of commands that may change it.
    """

    def look(evidence: Evidence) -> Iterator[Finding | int]:
        asked = {sent.command.id: (sent.command.agent, sent.command.action) for sent in evidence.sent}
        for (place, chain), changed in _changed_by_chain(evidence, app, value).items():
            if asked.get(chain) in besides:
                continue
            yield 1
            if not holds(changed):
                agent, action = asked.get(chain, ("an agent", "a command"))
                yield Finding(f"{place}: {action} of {agent} ({chain}) changed it by {changed}", (), place)

    return Checker(words, f"When everything is decided: {words}.", look, on_corpse=False)


# -- states from rows ------------------------------------------------------------------------------------------


@attrs.frozen
class _Step:
    """One decision on one entity."""

    rows: Sequence[OutputRow]
    before: Any
    after: Any

    @property
    def first_version(self) -> int:
        return self.rows[0].version or 0

    def finding(self, what: str) -> Finding:
        last = self.rows[-1]
        names = ", ".join(row.name for row in self.rows)
        return Finding(
            f"{last.scope} {last.entity_id!r} at version {last.version} ({names}): {what}", [last.key], str(last.scope)
        )


@cache
def _adapter(app: str, agent: str) -> AgentAdapter[Any]:
    return adapter_of(load_app(app), agent)


def _events(evidence: Evidence) -> Mapping[Scope, Sequence[OutputRow]]:
    """The events of each scope, in the order of its store."""
    found: dict[Scope, list[OutputRow]] = defaultdict(list)
    for row in sorted(evidence.rows.outputs, key=lambda row: row.n):
        if row.kind == "event" and row.entity_id is not None:
            found[row.scope].append(row)
    return found


def _applied(adapter: AgentAdapter[Any], state: Any, row: OutputRow) -> Any:
    return adapter.apply(state, Event(row.name, dict(envelope_of(row)["payload"])))


def _steps(evidence: Evidence, app: str, agent: str) -> Iterator[_Step]:
    for scope, rows in _events(evidence).items():
        if scope.agent != agent:
            continue
        adapter = _adapter(app, agent)
        states: dict[str | None, Any] = {}
        for (_, entity), group in groupby(rows, key=lambda row: (row.key, row.entity_id)):
            decided = list(group)
            before = after = states.get(entity, adapter.initial())
            for row in decided:
                after = _applied(adapter, after, row)
            states[entity] = after
            yield _Step(decided, before, after)


def _folded(evidence: Evidence, app: str) -> Mapping[str, States]:
    """The states of each workspace after all events. Agents without any have no entities."""
    agents = [agent.name for agent in load_app(app).agents]
    found: dict[str, dict[str, dict[str, Any]]] = defaultdict(lambda: {name: {} for name in agents})
    for scope, rows in _events(evidence).items():
        adapter, states = _adapter(app, scope.agent), found[_place(scope)][scope.agent]
        for row in rows:
            entity = str(row.entity_id)
            states[entity] = _applied(adapter, states.get(entity, adapter.initial()), row)
    return found


def _changed_by_chain(
    evidence: Evidence, app: str, value: Callable[[States], Number]
) -> Mapping[tuple[str, str], Number]:
    """By how much the events of each chain changed the value; a chain is named by the command it goes back to."""
    agents = [agent.name for agent in load_app(app).agents]
    states: dict[str, dict[str, dict[str, Any]]] = defaultdict(lambda: {name: {} for name in agents})
    changed: dict[tuple[str, str], Number] = defaultdict(int)
    for scope, rows in _events(evidence).items():
        adapter, place = _adapter(app, scope.agent), _place(scope)
        for row in rows:
            entity, before = str(row.entity_id), value(states[place])
            own = states[place][scope.agent]
            own[entity] = _applied(adapter, own.get(entity, adapter.initial()), row)
            changed[place, str(envelope_of(row).get("correlation_id"))] += value(states[place]) - before
    return changed


def _place(scope: Scope) -> str:
    return f"{scope.tenant}/{scope.workspace}"


def _shown(states: States) -> str:
    return "; ".join(
        f"{agent} {entity!r}: {state}" for agent, those in states.items() for entity, state in those.items()
    )
