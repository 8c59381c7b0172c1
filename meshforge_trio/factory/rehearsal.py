"""The examples of a PRD, played through before anything is made from it: rules that contradict them are found here."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from meshforge_trio.factory.evaluation import evaluated, record
from meshforge_trio.factory.interpret import Happened, Outcome, Unfit, World
from meshforge_trio.factory.model import Example, Expectation, Invariant, Prd, Step
from meshforge_trio.factory.problems import Problems

__all__ = ["rehearse"]

_SHOWN_MAX = 12


def rehearse(prd: Prd, problems: Problems) -> None:
    """Play every example and complain about the first thing in each that does not come as it says."""
    broken: set[int] = set()
    for example in prd.examples:
        _Rehearsal(prd, example, problems, broken).play()


class _Rehearsal:
    def __init__(self, prd: Prd, example: Example, problems: Problems, broken: set[int]) -> None:
        self._prd = prd
        self._example = example
        self._problems = problems
        self._broken = broken
        self._world = World(prd)
        self._customs = False
        #: The value of each invariant's expression: by entity, or under "" for all of them.
        self._values: list[dict[str, Any]] = [
            {"": self._total(invariant)} if invariant.agent is None else {} for invariant in prd.invariants
        ]

    def play(self) -> None:
        """Given, when, then; the invariants after each step."""
        for step in self._example.given:
            outcome = self._sent(step)
            if outcome is None or not self._succeeded(step, outcome):
                return
        begun = len(self._world.happened)
        last = Outcome()
        for step in self._example.when:
            outcome = self._sent(step)
            if outcome is None:
                return
            last = outcome
        if not self._customs:
            for expectation in self._example.then:
                fault = self._fault(expectation, last, self._world.happened[begun:])
                if fault:
                    self._problems.add(expectation.where, *fault)
                    return

    def _sent(self, step: Step) -> Outcome | None:
        """What came of a step, unless an invariant broke."""
        begun = len(self._world.happened)
        try:
            outcome = self._world.send(step)
        except Unfit as error:
            self._problems.add(step.where, f"with this, {error}", "use smaller values, or refuse them")
            return None
        self._customs = self._customs or outcome.customs
        return outcome if self._keeps_invariants(step, begun) else None

    def _succeeded(self, step: Step, outcome: Outcome) -> bool:
        if outcome.denied is None and not outcome.conflict:
            return True
        why = "in conflict" if outcome.denied is None else f"refused as {outcome.denied.code}: {outcome.denied.reason}"
        if not self._customs:
            self._problems.add(step.where, f"what is given is {why}", "give what is allowed, or say 'when'")
        return False

    # -- invariants ---------------------------------------------------------------------------------------------

    def _total(self, invariant: Invariant) -> Any:
        names = invariant.expression.uses - {"Decimal"}
        everyone = {name: [record(state) for state in self._world.states(name).values()] for name in names}
        return evaluated(invariant.expression, everyone)

    def _measured(self, invariant: Invariant, touched: Mapping[str, Collection[str]]) -> dict[str, Any]:
        """The new values of an invariant: of the entities to which something has happened, by their agents."""
        if invariant.agent is None:
            concerned = not touched.keys().isdisjoint(invariant.expression.uses)
            return {"": self._total(invariant)} if concerned else {}
        states = {id_: self._world.state(invariant.agent, id_) for id_ in touched.get(invariant.agent, ())}
        return {
            id_: evaluated(invariant.expression, {"state": record(state)})
            for id_, state in states.items()
            if state is not None
        }

    def _keeps_invariants(self, step: Step, begun: int) -> bool:
        """Whether all hold; one that does not is told once."""
        brings_in = self._prd.agent(step.agent).command(step.command).entity == "new"
        touched: dict[str, dict[str, None]] = {}
        for event in self._world.happened[begun:]:
            touched.setdefault(event.agent, {})[event.entity] = None
        for i, invariant in enumerate(self._prd.invariants):
            values = self._values[i]
            # What is there before anything has happened has to hold, too.
            now = self._measured(invariant, touched) if begun else {**values, **self._measured(invariant, touched)}
            fault = next(_breaches(invariant, values, now, brings_in), None)
            values |= now
            if fault is not None and not self._customs:
                if i not in self._broken:
                    self._broken.add(i)
                    self._problems.add(
                        step.where,
                        f"after this, the invariant `{invariant.expression.text}` of line {invariant.where.line} "
                        f"does not hold: {fault}",
                        "mend the rule or the invariant",
                    )
                return False
        return True

    # -- expectations -------------------------------------------------------------------------------------------

    def _fault(self, expectation: Expectation, last: Outcome, happened: Sequence[Happened]) -> tuple[str, str] | None:
        """What is wrong with an expectation and what came instead; nothing if it is met."""
        match expectation.what:
            case "refused":
                if last.denied is None or last.denied.code != expectation.name:
                    return f"it is not refused as {expectation.name}", _told(last, happened)
            case "conflict":
                if not last.conflict:
                    return "there is no conflict", _told(last, happened)
            case "event":
                if not any(_is(expectation, event) for event in happened):
                    return f"{_described(expectation)} does not happen", _told(last, happened)
            case "missing":
                if self._world.state(expectation.agent, expectation.entity or "") is not None:
                    return f"{expectation.agent} {expectation.entity} exists", _told(last, happened)
            case "state":
                return self._state_fault(expectation, last, happened)
        return None

    def _state_fault(
        self, expectation: Expectation, last: Outcome, happened: Sequence[Happened]
    ) -> tuple[str, str] | None:
        state = self._world.state(expectation.agent, expectation.entity or "")
        if state is None:
            return f"{expectation.agent} {expectation.entity} does not exist", _told(last, happened)
        for name, value in expectation.values:
            if state[name] != value:
                found = f"{name} of {expectation.agent} {expectation.entity} is {_shown(state[name])}"
                return f"{found}, not {_shown(value)}", _told(last, happened)
        return None


def _breaches(
    invariant: Invariant, before: Mapping[str, Any], now: Mapping[str, Any], brings_in: bool
) -> Iterator[str]:
    for entity, value in now.items():
        of = f"{invariant.agent} {entity}" if entity else "all together"
        earlier = before.get(entity)
        match invariant.claim:
            case "always":
                if not value:
                    yield f"for {of}"
                continue
            case "constant":
                broken = earlier is not None and value != earlier and not (brings_in and invariant.agent is None)
            case "never_decreases":
                broken = earlier is not None and value < earlier
            case "never_increases":
                broken = earlier is not None and value > earlier
        if broken:
            yield f"for {of} it was {_shown(earlier)} and is {_shown(value)}"


def _is(expectation: Expectation, event: Happened) -> bool:
    return (
        (event.agent, event.event) == (expectation.agent, expectation.name)
        and expectation.entity in (None, event.entity)
        and all(event.values[name] == value for name, value in expectation.values)
    )


def _described(expectation: Expectation) -> str:
    on = f" on {expectation.entity}" if expectation.entity is not None else ""
    values = _listed(dict(expectation.values))
    return f"{expectation.agent}.{expectation.name}{on}{f' with {values}' if values else ''}"


def _told(last: Outcome, happened: Sequence[Happened]) -> str:
    """What came instead, as a suggestion."""
    if last.conflict:
        return "the last command is in conflict"
    if last.denied is not None:
        return f"the last command is refused as {last.denied.code}: {last.denied.reason}"
    told = [f"{event.agent}.{event.event} on {event.entity} ({_listed(event.values)})" for event in happened]
    return f"what happens: {', '.join(told[:_SHOWN_MAX]) or 'nothing'}"


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {_shown(value)}" for name, value in values.items())


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    return repr(value) if isinstance(value, str) else str(value)
