"""A model as the text of a PRD: what reading it gives is equal to the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

from meshforge_trio.factory.kinds import limits_text
from meshforge_trio.factory.model import (
    STARTS_AT,
    AgentSpec,
    Assignment,
    Command,
    Emit,
    Event,
    Example,
    Expectation,
    Expression,
    Field,
    Invariant,
    Kind,
    Message,
    Prd,
    Query,
    Reaction,
    SendCommand,
    Step,
    repr_text,
)

__all__ = ["expectation_text", "render", "step_text"]

_CLAIMS: Final = {
    "always": "",
    "constant": " is constant",
    "never_decreases": " never decreases",
    "never_increases": " never increases",
}


def render(prd: Prd) -> str:
    """The PRD as Markdown, ending with a newline."""
    blocks = [f"# {prd.title}", f"- tenant: `{prd.tenant}`\n- workspace: `{prd.workspace}`", prd.prose]
    for agent in prd.agents:
        blocks += _agent(agent)
    if prd.invariants:
        blocks += ["## Invariants", _lines(_invariant(each) for each in prd.invariants)]
    if prd.examples:
        blocks.append("## Acceptance")
        for example in prd.examples:
            blocks += [f"### Example: {example.name}", example.prose, _lines(_example(prd, example))]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _agent(agent: AgentSpec) -> Iterator[str]:
    yield f"## Agent: {agent.name}"
    yield agent.prose
    yield "### State"
    yield _table(
        ("field", "type", "starts as", "meaning"),
        [(each.name, str(each.kind), _start(each), each.meaning) for each in agent.state],
    )
    for command in agent.commands:
        yield from _command(command)
    for event in agent.events:
        yield from _event(event)
    for query in agent.queries:
        yield from _query(query)
    if agent.reactions:
        yield "### Listens to"
        yield _lines(_reaction(each) for each in agent.reactions)


def _command(command: Command) -> Iterator[str]:
    yield f"### Command: {command.name}"
    yield command.prose
    yield _fields(command.fields, limits=True)
    lines = [f"entity: {command.entity}", *(["internal"] if command.internal else [])]
    for refusal in command.refusals:
        word = "unless" if refusal.unless else "if"
        lines.append(f"refuse `{refusal.code}` {word} {_quoted(refusal.condition)}: {_message(refusal.message)}")
    lines += [f"custom: {custom.text}" for custom in command.customs]
    lines += [_effect(effect) for effect in command.effects]
    yield _lines(lines)


def _effect(effect: Emit | SendCommand) -> str:
    what = (
        f"emit `{effect.event}`"
        if isinstance(effect, Emit)
        else f"send `{effect.agent}.{effect.command}` to {_quoted(effect.to)}"
    )
    return f"{what}{_condition(effect.condition)}{_with(effect.fields)}"


def _event(event: Event) -> Iterator[str]:
    yield f"### Event: {event.name}"
    yield event.prose
    yield _fields(event.fields, limits=False)
    yield _lines(f"`{change.field}` becomes {_quoted(change.value)}" for change in event.changes)


def _query(query: Query) -> Iterator[str]:
    yield f"### Query: {query.name}"
    yield query.prose
    yield _lines([f"answer{_with(query.fields)}"])


def _reaction(reaction: Reaction) -> str:
    heard = f"`{reaction.agent}.{reaction.event}`{_condition(reaction.condition)}"
    return f"{heard}: `{reaction.command}` on {_quoted(reaction.on)}{_with(reaction.fields)}"


def _invariant(invariant: Invariant) -> str:
    about = f"{invariant.agent}: " if invariant.agent is not None else ""
    return f"{about}{_quoted(invariant.expression)}{_CLAIMS[invariant.claim]}"


def _example(prd: Prd, example: Example) -> Iterator[str]:
    now = STARTS_AT
    for word, steps in (("given", example.given), ("when", example.when)):
        for step in steps:
            if step.at != now:
                now = step.at
                yield f"{word} time `{_moment(now)}`"
            yield f"{word} {step_text(prd, step)}"
    for expectation in example.then:
        yield f"then {expectation_text(prd, expectation)}"


def step_text(prd: Prd, step: Step) -> str:
    """What stands behind `given` or `when`."""
    version = f" at version `{step.expected_version}`" if step.expected_version is not None else ""
    fields = prd.agent(step.agent).command(step.command).fields
    return f"`{step.agent}.{step.command}` on `{step.entity}`{version}{_values(step.payload, fields)}"


def expectation_text(prd: Prd, expected: Expectation) -> str:
    """What stands behind `then`."""
    match expected.what:
        case "refused":
            return f"refused `{expected.name}`"
        case "conflict":
            return "conflict"
        case "missing":
            return f"`{expected.agent}` `{expected.entity}` does not exist"
        case "state":
            fields = prd.agent(expected.agent).state
            values = _values(expected.values, fields).replace(" with ", " has ", 1)
            return f"`{expected.agent}` `{expected.entity}`{values}"
        case "event":
            on = f" on `{expected.entity}`" if expected.entity is not None else ""
            fields = prd.agent(expected.agent).event(expected.name).fields
            return f"`{expected.agent}.{expected.name}`{on}{_values(expected.values, fields)}"


# -- parts --------------------------------------------------------------------------------------------------------


def _fields(fields: Sequence[Field], *, limits: bool) -> str:
    if not fields:
        return ""
    if not limits:
        return _table(("field", "type", "meaning"), [(each.name, str(each.kind), each.meaning) for each in fields])
    return _table(
        ("field", "type", "rule", "meaning"),
        [(each.name, str(each.kind), limits_text(each.limits, each.kind), each.meaning) for each in fields],
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [head, *([cell.replace("|", r"\|") for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = ["| " + " | ".join(cell.ljust(widths[i]) for i, cell in enumerate(row)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _lines(items: Iterable[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def _quoted(expression: Expression) -> str:
    return f"`{expression.text}`"


def _condition(condition: Expression | None) -> str:
    return f" if {_quoted(condition)}" if condition is not None else ""


def _with(fields: Sequence[Assignment]) -> str:
    listed = (
        f"`{each.name}`" if each.value.text == each.name else f"`{each.name}` = {_quoted(each.value)}"
        for each in fields
    )
    return f" with {', '.join(listed)}" if fields else ""


def _values(values: Sequence[tuple[str, Any]], fields: Sequence[Field]) -> str:
    kinds = {field.name: field.kind for field in fields}
    listed = (f"`{name}` = `{_literal(value, kinds[name])}`" for name, value in values)
    return f" with {', '.join(listed)}" if values else ""


def _message(message: Message) -> str:
    return "".join(part if isinstance(part, str) else f"{{{part.text}}}" for part in message.parts)


def _start(field: Field) -> str:
    """What a field of a state starts as; an id that nothing has yet cannot be written."""
    nothing_yet = field.kind.name in ("id", "text") and field.start == ""
    return "" if nothing_yet else f"`{_literal(field.start, field.kind)}`"


def _literal(value: Any, kind: Kind) -> str:
    """A value as an expression that gives it."""
    if value is None:
        return "nothing"
    if kind.name == "list" and kind.item is not None:
        item = kind.item
        return f"[{', '.join(_literal(each, item) for each in value)}]"
    if kind.name == "optional" and kind.item is not None:
        return _literal(value, kind.item)
    if kind.name == "time":
        return f'"{_moment(value)}"'
    if kind.name == "duration":
        return f"seconds({value})"
    if isinstance(value, Decimal):
        return format(value, "f")
    return repr_text(value) if isinstance(value, str) else str(value).lower()


def _moment(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None).isoformat() + "Z"
