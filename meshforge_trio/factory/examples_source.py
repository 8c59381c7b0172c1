"""Source made from the PRD's examples and invariants: the acceptance tests, the workload, the checkers."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

import attrs

from meshforge_trio.factory.formulas import formula, replaced, returned
from meshforge_trio.factory.model import (
    Command,
    Emit,
    Example,
    Expectation,
    Invariant,
    Kind,
    Prd,
    Step,
)
from meshforge_trio.factory.naming import name_module
from meshforge_trio.factory.python import Names, call, docstring, literal, sentence, slug_words
from meshforge_trio.factory.reading import decided_by_time

__all__ = ["Invariants", "acceptance_source", "invariants_source", "json_value", "workload_lines"]


def json_value(value: Any) -> Any:
    """A value of a field as JSON carries it."""
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, tuple | list):
        return [json_value(item) for item in value]
    return value


# -- acceptance tests ------------------------------------------------------------------------------------------


def acceptance_source(prd: Prd) -> str:
    """`tests/test_acceptance.py`: a test for each example."""
    names = Names()
    tests = [_test(prd, example, names) for example in prd.examples]
    body = "".join(f"\n\n{test}" for test in tests)
    decimals = "from decimal import Decimal\n\n" if "Decimal(" in body else ""
    head = docstring(
        "The acceptance examples of the PRD, played in memory: what the agents decide, whatever time it is.\n\n"
        "What becomes of it when processes die is in `test_chaos.py`."
    )
    workspace = call(
        "new_stage = partial", ["Stage", "app", f"tenant={literal(prd.tenant)}", f"workspace={literal(prd.workspace)}"]
    )
    return (
        f"{head}\nfrom __future__ import annotations\n\n{decimals}from functools import partial\n\n".replace(
            "Decimal\n\nfrom", "Decimal\nfrom"
        )
        + "from meshforge_trio.stage import Stage\n\nfrom agents import app\n\n"
        + workspace
        + body
    )


def _test(prd: Prd, example: Example, names: Names) -> str:
    name = names.give(f"test_{slug_words(example.name)}", "test_example")
    body = docstring("\n\n".join(filter(None, (sentence(example.name), sentence(example.prose)))), 4)
    body += "    stage = new_stage()\n"
    for step in example.given:
        body += call("stage.given", _arguments(step), indent=4)
    answered = any(expected.what in ("refused", "conflict") for expected in example.then)
    for number, step in enumerate(example.when, 1):
        last = number == len(example.when)
        body += call(f"{'told = ' if last and answered else ''}stage.send", _arguments(step), indent=4)
    for expected in example.then:
        body += "".join(f"    assert {line}\n" for line in _assertions(expected))
    return f"def {name}() -> None:\n{body}"


def _arguments(step: Step) -> list[str]:
    payload = ", ".join(f"{literal(name)}: {_json_literal(value)}" for name, value in step.payload)
    arguments = [literal(step.agent), literal(step.command), f"{{{payload}}}", f"entity={literal(step.entity)}"]
    arguments.append(f"at={step.at}")
    return arguments if step.expected_version is None else [*arguments, f"expected_version={step.expected_version}"]


def _json_literal(value: Any) -> str:
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_json_literal(item) for item in value) + "]"
    return literal(json_value(value))


def _assertions(expected: Expectation) -> Iterator[str]:
    values = [f"{name}={literal(value)}" for name, value in expected.values]
    if expected.what == "refused":
        yield f"told.code == {literal(expected.name)}"
    elif expected.what == "conflict":
        yield 'told.name == "conflict"'
    elif expected.what == "missing":
        yield f"not stage.exists({literal(expected.agent)}, {literal(expected.entity)})"
    elif expected.what == "event":
        entity = [] if expected.entity is None else [literal(expected.entity)]
        yield _called("stage.happened", [literal(expected.agent), literal(expected.name), *entity, *values])
    else:
        state = f"stage.state({literal(expected.agent)}, {literal(expected.entity)})"
        if not expected.values:
            yield f"stage.exists({literal(expected.agent)}, {literal(expected.entity)})"
        for name, value in expected.values:
            yield f"{state}.{name} {_equals(value)}"


def _equals(value: Any) -> str:
    return f"is {value!r}" if value is None or isinstance(value, bool) else f"== {literal(value)}"


def _called(function: str, arguments: Sequence[str]) -> str:
    """A call within `    assert `, which takes eleven columns more."""
    return call(" " * 7 + function, arguments, indent=4).strip()


# -- the workload ----------------------------------------------------------------------------------------------


def workload_lines(prd: Prd) -> str:
    """`scenarios/workload.jsonl`: the commands of all examples, each with entities of its own, and questions.

    Where anything depends on the time, moments are as far from the moment of sending as they are from the example's.
    All are sent at once. So what needs an entity that others bring about comes too early, perhaps: it is asked for once
    more when everything else is decided.
    """
    lines: list[Mapping[str, Any]] = []
    later: list[Mapping[str, Any]] = []
    by_time = decided_by_time(prd)
    workspace = f"{prd.tenant}/{prd.workspace}"
    for number, example in enumerate(prd.examples, 1):
        touched: dict[tuple[str, str], None] = {}
        for step in (*example.given, *example.when):
            entity = _own(step.entity, number)
            touched[step.agent, entity] = None
            told: dict[str, Any] = {"agent": step.agent, "action": step.command, "workspace": workspace}
            payload = _own_payload(prd, step, number)
            later_s = _later_s(prd, step, payload) if by_time else {}
            told |= {"entity_id": entity, "payload": {n: v for n, v in payload.items() if n not in later_s}}
            if later_s:
                told["later_s"] = later_s
            if (step.agent, step.command) in by_time:
                told["repeatable"] = False
            if step.expected_version is not None:
                told["expected_version"] = step.expected_version
            elif prd.agent(step.agent).command(step.command).entity == "existing":
                later.append({**told, "phase": "after"})
            lines.append(told)
        for agent, entity in touched:
            for query in prd.agent(agent).queries[:1]:
                asked = {"agent": agent, "action": query.name, "workspace": workspace, "entity_id": entity}
                lines.append({**asked, "query": True})
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in (*lines, *later))


def _own(name: str, number: int) -> str:
    """A name of an entity, so that no two examples meet."""
    return name if number == 1 else f"{name}-{number}"


def _own_payload(prd: Prd, step: Step, number: int) -> Mapping[str, Any]:
    kinds = {field.name: field.kind for field in prd.agent(step.agent).command(step.command).fields}
    return {name: _own_value(kinds[name], json_value(value), number) for name, value in step.payload}


def _later_s(prd: Prd, step: Step, payload: Mapping[str, Any]) -> Mapping[str, int]:
    """The moments of a payload, in seconds from that of its step."""
    kinds = {field.name: field.kind for field in prd.agent(step.agent).command(step.command).fields}
    return {
        name: value - step.at
        for name, value in payload.items()
        if isinstance(value, int) and "time" in (kinds[name].name, getattr(kinds[name].item, "name", ""))
    }


def _own_value(kind: Kind, value: Any, number: int) -> Any:
    if kind.name == "id":
        return _own(value, number)
    if kind.item is not None and isinstance(value, list):
        return [_own_value(kind.item, item, number) for item in value]
    if kind.item is not None and value is not None:
        return _own_value(kind.item, value, number)
    return value


# -- invariants ------------------------------------------------------------------------------------------------


@attrs.frozen
class Invariants:
    """Source of the checkers: functions over all states, the checkers, the names that make them, what they must see."""

    functions: Sequence[str]
    checkers: Sequence[str]
    makers: Sequence[str]
    claims: Sequence[str]


def invariants_source(prd: Prd, sure: Collection[str]) -> Invariants:
    """The checkers of the PRD's invariants; `sure` are agents of which any run of the examples has an entity."""
    functions: list[str] = []
    checkers: list[str] = []
    makers: set[str] = set()
    claims: list[str] = []
    for invariant in dict.fromkeys(prd.invariants):
        words = _words(invariant)
        if invariant.agent is None:
            makers |= {"States"} if invariant.claim == "always" else {"Number", "States"}
            functions.append(_function(prd, invariant, f"over_all_{len(functions) + 1}"))
            maker, arguments = _over_all(prd, invariant, f"over_all_{len(functions)}")
        else:
            maker, arguments = _of_each(invariant)
        makers.add(maker)
        checkers.append(call(maker, [literal(words), "APP", *arguments], ",", 4))
        if invariant.claim == "always" and _agents_of(prd, invariant) & set(sure):
            claims.append(words)
    return Invariants(functions, checkers, sorted(makers), claims)


_CLAIMS: Final[Mapping[str, str]] = {
    "always": "",
    "constant": " is constant",
    "never_decreases": " never decreases",
    "never_increases": " never increases",
}
_CHANGES: Final[Mapping[str, str]] = {"constant": "==", "never_decreases": ">=", "never_increases": "<="}
_STEPS: Final[Mapping[str, str]] = {"constant": "==", "never_decreases": "<=", "never_increases": ">="}


def _words(invariant: Invariant) -> str:
    """The invariant as the PRD says it: the name of its checker."""
    text = f"{invariant.expression.text}{_CLAIMS[invariant.claim]}"
    return text if invariant.agent is None else f"{invariant.agent}: {text}"


def _agents_of(prd: Prd, invariant: Invariant) -> frozenset[str]:
    if invariant.agent is not None:
        return frozenset({invariant.agent})
    return frozenset(agent.name for agent in prd.agents) & invariant.expression.uses


def _of_each(invariant: Invariant) -> tuple[str, list[str]]:
    text, agent = formula(invariant.expression), literal(invariant.agent)
    if invariant.claim == "always":
        return "of_each", [agent, f"lambda state: {text}"]
    before, after = (replaced(text, {"state": name}) for name in ("before", "after"))
    return "of_each_step", [agent, f"lambda before, after: {before} {_STEPS[invariant.claim]} {after}"]


def _over_all(prd: Prd, invariant: Invariant, function: str) -> tuple[str, list[str]]:
    if invariant.claim == "always":
        return "of_all", [function]
    change = f"lambda changed: changed {_CHANGES[invariant.claim]} 0"
    besides = [(agent.name, command.name) for agent in prd.agents for command in agent.commands if _brings(command)]
    exempt = [f"besides={literal(tuple(besides))}"] if invariant.claim == "constant" and besides else []
    return "of_all_chains", [function, change, *exempt]


def _function(prd: Prd, invariant: Invariant, name: str) -> str:
    """What an invariant says of all states together; or the value that it speaks of."""
    body = ""
    states = Names(agent.name for agent in prd.agents).give("states", "all_states")
    for agent in sorted(_agents_of(prd, invariant)):
        kind = f"Collection[agents.{agent}.{name_module(prd.agent(agent)).state}]"
        body += f"    {agent}: {kind} = {states}[{literal(agent)}].values()\n"
    result = "bool" if invariant.claim == "always" else "Number"
    about = docstring(_words(invariant), 4)
    return f"def {name}({states}: States) -> {result}:\n{about}{body}{returned(formula(invariant.expression))}"


def _brings(command: Command) -> bool:
    """Whether clients bring a new entity into being with it."""
    return command.entity == "new" and not command.internal and any(isinstance(e, Emit) for e in command.effects)
