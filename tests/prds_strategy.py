"""Any PRD: models as a person might mean them, sound by construction.

Expressions are made twice, as a PRD says them and as the Python that must come of it, so that reading is compared with
something that was not read.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import attrs
from hypothesis import strategies as st

from meshforge_trio.factory.interpret import Unfit, World
from meshforge_trio.factory.kinds import fault_of, start_of
from meshforge_trio.factory.model import (
    AgentSpec,
    Assignment,
    Change,
    Command,
    Custom,
    Emit,
    Event,
    Example,
    Expectation,
    Expression,
    Field,
    Invariant,
    Kind,
    Limits,
    Message,
    Prd,
    Query,
    Reaction,
    Refusal,
    SendCommand,
    Step,
    repr_text,
)

INTEGER, DECIMAL, BOOLEAN, TEXT, ID = (Kind(name) for name in ("integer", "decimal", "boolean", "text", "id"))
TIME, DURATION = Kind("time"), Kind("duration")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_WORDS = st.text(_LETTERS, min_size=1, max_size=6)
_SENTENCES = st.lists(_WORDS, max_size=5).map(" ".join)
_TEXTS = st.text(_LETTERS + " \"'\\{}é", max_size=8)
_IDS = st.text(_LETTERS + "0123456789-/", min_size=1, max_size=8)
_CHOICES = st.lists(_WORDS, min_size=1, max_size=3, unique=True).map(lambda words: Kind("one of", tuple(words)))
_PLAIN = st.sampled_from([INTEGER, DECIMAL, BOOLEAN, TEXT, ID, TIME, DURATION]) | _CHOICES
_KINDS = (
    _PLAIN | _PLAIN.map(lambda kind: Kind("list", item=kind)) | _PLAIN.map(lambda kind: Kind("optional", item=kind))
)
Scope = Mapping[str, tuple[Kind, str]]
Draw = st.DrawFn


class _DoubleQuotes(ast.NodeTransformer):
    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        return ast.Name(id=repr_text(node.value)) if isinstance(node.value, str) else node


def written(text: str, python: str, kind: Kind) -> Expression:
    """An expression with its Python as `ast` spells it, texts in double quotes."""
    tree = ast.parse(python, mode="eval")
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    used = {"state", "payload", "event", "entity_id", "now", "exists", "Decimal"} | {n for n in names if n[:3] == "ag_"}
    spelled = ast.unparse(_DoubleQuotes().visit(tree))
    return Expression(text, spelled, kind, frozenset(names & used))


def values(kind: Kind) -> st.SearchStrategy[Any]:
    """Values as Python holds them."""
    if kind.item is not None and kind.name == "list":
        return st.lists(values(kind.item), max_size=3).map(tuple)
    if kind.item is not None:
        return st.none() | values(kind.item)
    if kind.name == "one of":
        return st.sampled_from(kind.choices)
    return {
        "integer": st.integers(-1000, 1000),
        "decimal": st.decimals(-1000, 1000, places=2).map(lambda number: number + 0),
        "boolean": st.booleans(),
        "text": _TEXTS,
        "id": _IDS,
        "time": st.integers(0, 4_000_000_000),
        "duration": st.integers(0, 100_000),
    }[kind.name]


def literal(value: Any, kind: Kind) -> tuple[str, str]:
    """A value as a PRD says it, and as Python."""
    if value is None:
        return "nothing", "None"
    if kind.item is not None and kind.name == "list":
        parts = [literal(each, kind.item) for each in value]
        trailing = "," if len(parts) == 1 else ""
        return f"[{', '.join(p[0] for p in parts)}]", f"({', '.join(p[1] for p in parts)}{trailing})"
    if kind.item is not None:
        return literal(value, kind.item)
    if kind.name == "duration":
        return f"seconds({value})", str(value)
    if kind.name == "time":
        moment = datetime.fromtimestamp(value, UTC)
        return f'time("{moment.isoformat()}")', str(value)
    if isinstance(value, Decimal):
        return f"{value:f}" if value >= 0 else f"-{-value:f}", _python_decimal(value)
    if isinstance(value, str):
        return repr_text(value), repr_text(value)
    return str(value).lower(), str(value)


def _python_decimal(value: Decimal) -> str:
    return f'Decimal("{value:f}")' if value >= 0 else f'-Decimal("{-value:f}")'


@st.composite
def expressions(draw: Draw, kind: Kind, scope: Scope, depth: int = 2) -> tuple[str, str]:
    """An expression of a kind over the names of a scope: as a PRD says it, and as Python."""
    fields = [(name, python) for name, (found, python) in scope.items() if found == kind]
    by_name: bool = draw(st.booleans())
    if fields and by_name:
        named: tuple[str, str] = draw(st.sampled_from(fields))
        return named
    if depth and kind.name in ("integer", "decimal"):
        operator = draw(st.sampled_from("+-*"))
        left, right = (draw(expressions(kind, scope, 0)) for _ in range(2))
        return f"({left[0]} {operator} {right[0]})", f"({left[1]} {operator} {right[1]})"
    if depth and kind == BOOLEAN:
        return draw(_conditions(scope, depth - 1))
    if depth and draw(st.booleans()):
        test = draw(expressions(BOOLEAN, scope, depth - 1))
        left, right = (draw(expressions(kind, scope, 0)) for _ in range(2))
        return f"({left[0]} if {test[0]} else {right[0]})", f"({left[1]} if {test[1]} else {right[1]})"
    return literal(draw(values(kind)), kind)


@st.composite
def _conditions(draw: Draw, scope: Scope, depth: int) -> tuple[str, str]:
    how = draw(st.sampled_from(["compare", "equal", "and", "or", "not", "in"]))
    if how == "not":
        inner = draw(expressions(BOOLEAN, scope, depth))
        return f"(not {inner[0]})", f"(not {inner[1]})"
    if how == "in":
        word = draw(expressions(TEXT, scope, 0))
        listed = literal(("a", "b"), Kind("list", item=TEXT))
        return f"({word[0]} in {listed[0]})", f"({word[1]} in {listed[1]})"
    kind = BOOLEAN
    if how in ("compare", "equal"):
        kind = draw(st.sampled_from([INTEGER, DECIMAL, DURATION] + ([TEXT] if how == "equal" else [])))
        how = draw(st.sampled_from(["<", "<=", ">", ">="] if how == "compare" else ["==", "!="]))
    left, right = (draw(expressions(kind, scope, depth)) for _ in range(2))
    return f"({left[0]} {how} {right[0]})", f"({left[1]} {how} {right[1]})"


def _named(prefix: str, least: int, most: int) -> st.SearchStrategy[list[str]]:
    names = st.lists(_WORDS, min_size=least, max_size=most, unique=True)
    return names.map(lambda found: [f"{prefix}_{name}" for name in found])


@st.composite
def _limits(draw: Draw, kind: Kind) -> Limits:
    inner = kind.item if kind.name == "optional" and kind.item is not None else kind
    if inner.name not in ("integer", "decimal", "text", "id", "list", "duration") or draw(st.booleans()):
        return Limits()
    low, high = sorted((draw(st.integers(0, 9)), draw(st.integers(0, 2000))))
    number = Decimal if inner.name == "decimal" else int
    return Limits(draw(st.sampled_from([None, number(low)])), draw(st.sampled_from([None, number(high)])))


@st.composite
def _fields(draw: Draw, prefix: str, least: int, *, limits: bool = False, start: bool = False) -> tuple[Field, ...]:
    found = []
    for name in draw(_named(prefix, least, 3)):
        kind = draw(_KINDS)
        bounds = draw(_limits(kind)) if limits else Limits()
        begin = start_of(kind) if draw(st.booleans()) else draw(values(kind))
        # Events and states know no limits, and only a state starts as something; an event's start is never asked for.
        shown = begin if start else None if limits else start_of(kind)
        found.append(Field(name, kind, draw(_SENTENCES), bounds, shown))
    return tuple(found)


def _scope(fields: Sequence[Field], of: str) -> dict[str, tuple[Kind, str]]:
    return {field.name: (field.kind, f"{of}.{field.name}") for field in fields}


@st.composite
def _assignments(draw: Draw, fields: Sequence[Field], scope: Scope) -> tuple[Assignment, ...]:
    return tuple(Assignment(f.name, written(*draw(expressions(f.kind, scope)), f.kind)) for f in fields)


@st.composite
def _condition(draw: Draw, scope: Scope) -> Expression | None:
    return written(*draw(expressions(BOOLEAN, scope)), BOOLEAN) if draw(st.booleans()) else None


@st.composite
def agents(draw: Draw, name: str, earlier: Sequence[AgentSpec]) -> AgentSpec:
    """An agent that listens and sends to those before it in turn, so that no chain ever comes back."""
    state = draw(_fields("fs", 1, start=True))
    commands, events = [], []
    for i, command in enumerate(draw(_named("do", 1, 3))):
        fields = draw(_fields("fc", 0, limits=True))
        event = Event(f"did_{command[3:]}", draw(_fields("fe", 0)), prose=draw(_SENTENCES))
        changed = draw(st.lists(st.sampled_from(state), max_size=2, unique_by=lambda field: field.name))
        seen = {**_scope(state, "state"), **_scope(event.fields, "event")}
        changes = tuple(Change(f.name, written(*draw(expressions(f.kind, seen)), f.kind)) for f in changed)
        events.append(attrs.evolve(event, changes=changes))
        known = {
            **_scope(state, "state"),
            **_scope(fields, "payload"),
            "id": (ID, "entity_id"),
            "now": (TIME, "now"),
            "exists": (BOOLEAN, "exists"),
        }
        effects: list[Emit | SendCommand] = [
            Emit(event.name, draw(_assignments(event.fields, known)), draw(_condition(known)))
        ]
        sends: bool = draw(st.booleans())
        if earlier and sends:
            other = draw(st.sampled_from(earlier))
            target = draw(st.sampled_from(other.commands))
            to = written(*draw(expressions(ID, known, 0)), ID)
            sent = draw(_assignments(target.fields, known))
            effects.append(SendCommand(other.name, target.name, to, sent, draw(_condition(known))))
        commands.append(
            Command(
                command,
                fields,
                "any" if i == 0 else draw(st.sampled_from(["new", "existing", "any"])),
                tuple(draw(st.lists(_refusals(known), max_size=2))),
                tuple(Custom(text) for text in draw(st.lists(_SENTENCES.filter(bool), max_size=1))),
                tuple(effects),
                prose=draw(_SENTENCES),
            )
        )
    told = draw(st.lists(st.sampled_from(state), min_size=1, max_size=3, unique_by=lambda field: field.name))
    answer = tuple(Assignment(f.name, written(f.name, f"state.{f.name}", f.kind)) for f in told)
    queries = (Query("ask", answer, prose=draw(_SENTENCES)),)
    return AgentSpec(name, state, tuple(commands), tuple(events), queries, prose=draw(_SENTENCES))


@st.composite
def _refusals(draw: Draw, known: Scope) -> Refusal:
    condition = written(*draw(expressions(BOOLEAN, known)), BOOLEAN)
    field, (kind, python) = draw(st.sampled_from(sorted(known.items(), key=lambda item: item[0])))
    message = Message(("no ", written(field, python, kind), " more"))
    return Refusal(f"no_{draw(_WORDS)}", condition, draw(st.booleans()), message)


@st.composite
def _reactions(draw: Draw, agent: AgentSpec, later: Sequence[AgentSpec]) -> tuple[Reaction, ...]:
    """Reactions of an agent to events of agents after it: those send only to agents before them, too."""
    found = []
    for other in later:
        event, command = draw(st.sampled_from(other.events)), draw(st.sampled_from(agent.commands))
        scope = _scope(event.fields, "event")
        on = written(*draw(expressions(ID, {**scope, "id": (ID, "entity_id")}, 0)), ID)
        fields = draw(_assignments(command.fields, scope))
        found.append(Reaction(other.name, event.name, command.name, on, fields, draw(_condition(scope))))
    return tuple(found)


@st.composite
def _examples(draw: Draw, prd: Prd, name: str) -> Example | None:
    """An example that expects what the rules say, whatever that is."""
    world = World(prd)
    agent = draw(st.sampled_from(prd.agents))
    command = draw(st.sampled_from(agent.commands))
    entity, at = draw(_IDS), draw(st.integers(1_700_000_000, 1_800_000_000))
    payload = tuple((field.name, draw(values(field.kind))) for field in command.fields)
    step = Step(agent.name, command.name, entity, payload, draw(st.none() | st.integers(0, 1)), at)
    if any(fault_of(attrs.evolve(f, limits=Limits()), v) for f, (_, v) in zip(command.fields, payload, strict=True)):
        return None
    try:
        outcome = world.send(step)
    except Unfit:
        return None
    if outcome.conflict:
        then = [Expectation("conflict")]
    elif outcome.denied is not None:
        then = [Expectation("refused", name=outcome.denied.code)]
    else:
        then = [
            Expectation("event", e.agent, e.event, e.entity, tuple(e.values.items()))
            for e in world.happened
            if "" not in e.values.values()
        ]
    state = world.state(agent.name, entity)
    if state is None:
        then.append(Expectation("missing", agent.name, entity=entity))
    return Example(name, (), (step,), tuple(then)) if then else None


@st.composite
def prds(draw: Draw) -> Prd:
    """A whole PRD of one to three agents."""
    made: list[AgentSpec] = []
    for name in draw(_named("ag", 1, 3)):
        made.append(draw(agents(name, tuple(made))))
    heard = [attrs.evolve(agent, reactions=draw(_reactions(agent, made[i + 1 :]))) for i, agent in enumerate(made)]
    invariants = []
    for agent in heard:
        text, python = draw(expressions(BOOLEAN, _scope(agent.state, "state")))
        always = written(f"{text} or true", f"{python} or True", BOOLEAN)
        invariants.append(Invariant("always", always, agent.name))
        counted = written(f"count({agent.name})", f"len({agent.name})", INTEGER)
        invariants.append(Invariant("never_decreases", counted))
    prd = Prd(
        f"T {draw(_SENTENCES)}".strip(),
        draw(_WORDS.map(lambda word: f"t-{word}")),
        draw(_WORDS.map(lambda word: f"w_{word}")),
        tuple(heard),
        tuple(invariants),
        prose=draw(_SENTENCES),
    )
    examples = [draw(_examples(prd, f"case {i}")) for i in range(draw(st.integers(0, 2)))]
    return attrs.evolve(prd, examples=tuple(example for example in examples if example is not None))
