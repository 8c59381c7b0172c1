"""Source of the functions in an agent's module: what it decides, answers, hears, and what its events change."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

from meshforge_trio.factory.formulas import formula, guard, raised
from meshforge_trio.factory.model import (
    AgentSpec,
    Assignment,
    Command,
    Emit,
    Event,
    Expression,
    Kind,
    Prd,
    Query,
    Reaction,
    SendCommand,
)
from meshforge_trio.factory.naming import ModuleNames, custom_rules
from meshforge_trio.factory.python import WIDTH, call, display, docstring, literal, sentence
from meshforge_trio.factory.reading import reaction_uses, uses

__all__ = ["functions"]

_GUARDS = {"new": "new_entity", "existing": "existing_entity", "any": "named_entity"}


def functions(prd: Prd, agent: AgentSpec, names: ModuleNames) -> Iterator[str]:
    """Each function: commands, queries, reactions, then what each event does to the state."""
    for command in agent.commands:
        yield _command(prd, agent, command, names)
    for query in agent.queries:
        yield _query(query, names)
    for reaction in agent.reactions:
        yield _reaction(agent, reaction, names)
    for event in agent.events:
        yield _applier(event, names)


# -- commands --------------------------------------------------------------------------------------------------


def _command(prd: Prd, agent: AgentSpec, command: Command, names: ModuleNames) -> str:
    used = uses(command)
    check = f"{_GUARDS[command.entity]}(ctx)"
    body = docstring(sentence(command.prose) or f"Decide `{command.name}`.", 4)
    body += f"    entity_id = {check}\n" if "entity_id" in used else f"    {check}\n"
    body += "    exists = ctx.version > 0\n" if "exists" in used else ""
    body += "    now = int(ctx.now)\n" if "now" in used else ""
    for refusal in command.refusals:
        body += guard(refusal.condition, raised(refusal.code, refusal.message, 8), negated=refusal.unless)
    for of, _, name in custom_rules(agent):
        body += f"    rules.{name}(state, payload, ctx)\n" if of == command else ""
    body += _effects(prd, command, names)
    parameters = [f"state: {names.state}", f"payload: {names.commands[command.name]}", "ctx: Context"]
    head = call(f"def {names.handlers[command.name]}", parameters, f" -> {_returns(command, names)}:")
    return (f"@agent.command({literal(command.name)})\n" if _is_asked(prd, agent, command) else "") + head + body


def _is_asked(prd: Prd, agent: AgentSpec, command: Command) -> bool:
    """Whether anybody can send it: an internal command that no agent sends is decided by reactions alone."""
    sent = {
        (effect.agent, effect.command)
        for other in prd.agents
        for asked in other.commands
        for effect in asked.effects
        if isinstance(effect, SendCommand)
    }
    return not command.internal or (agent.name, command.name) in sent


def _outputs(command: Command, names: ModuleNames) -> str:
    """What a command may lead to, as a type."""
    kinds = [names.events[effect.event] if isinstance(effect, Emit) else "Send" for effect in command.effects]
    return " | ".join(dict.fromkeys(kinds))


def _is_single(command: Command) -> bool:
    return len(command.effects) == 1 and command.effects[0].condition is None


def _returns(command: Command, names: ModuleNames) -> str:
    return _outputs(command, names) if _is_single(command) else f"list[{_outputs(command, names)}]"


def _effects(prd: Prd, command: Command, names: ModuleNames) -> str:
    """What the command leads to: one output, a list, or a list that depends on conditions."""
    if _is_single(command):
        return _made(prd, command.effects[0], names, "return ", "", 4)
    if all(effect.condition is None for effect in command.effects):
        made = "".join(_made(prd, effect, names, "", ",", 8) for effect in command.effects)
        return f"    return [\n{made}    ]\n"
    text = f"    outputs: list[{_outputs(command, names)}] = []\n"
    for effect in command.effects:
        if effect.condition is None:
            text += _appended(prd, effect, names, 4)
        else:
            text += guard(effect.condition, _appended(prd, effect, names, 8))
    return text + "    return outputs\n"


def _appended(prd: Prd, effect: Emit | SendCommand, names: ModuleNames, indent: int) -> str:
    short = _made(prd, effect, names, "outputs.append(", ")", indent)
    if short.count("\n") == 1 and len(short) - 1 <= WIDTH:
        return short
    margin = " " * indent
    return f"{margin}outputs.append(\n{_made(prd, effect, names, '', '', indent + 4)}{margin})\n"


def _made(prd: Prd, effect: Emit | SendCommand, names: ModuleNames, head: str, tail: str, indent: int) -> str:
    """The event or the command to another agent."""
    if isinstance(effect, Emit):
        return call(head + names.events[effect.event], list(_keywords(effect.fields)), tail, indent)
    kinds = {field.name: field.kind for field in prd.agent(effect.agent).command(effect.command).fields}
    payload = _mapping(effect.fields, [kinds[assignment.name] for assignment in effect.fields])
    arguments = [literal(effect.agent), literal(effect.command), *([payload] if effect.fields else [])]
    return call(f"{head}Send", [*arguments, f"entity_id={formula(effect.to)}"], tail, indent)


def _keywords(fields: Sequence[Assignment]) -> Iterator[str]:
    return (f"{assignment.name}={formula(assignment.value)}" for assignment in fields)


def _mapping(fields: Sequence[Assignment], kinds: Sequence[Kind]) -> str:
    """Fields as JSON carries them."""
    inner = ", ".join(f"{literal(assignment.name)}: {formula(assignment.value)}" for assignment in fields)
    return f"as_json({{{inner}}})" if any(map(_holds_decimal, kinds)) else f"{{{inner}}}"


def _holds_decimal(kind: Kind) -> bool:
    return kind.name == "decimal" or (kind.item is not None and _holds_decimal(kind.item))


# -- queries, reactions, events --------------------------------------------------------------------------------


def _query(query: Query, names: ModuleNames) -> str:
    parameters = [f"state: {names.state}", "payload: JsonObject", "ctx: Context"]
    used = frozenset[str]().union(*(assignment.value.uses for assignment in query.fields))
    body = docstring(sentence(query.prose) or f"Answer `{query.name}`.", 4)
    body += '    if ctx.version == 0:\n        return Reply("not_found")\n'
    body += "    entity_id = named_entity(ctx)\n" if "entity_id" in used else ""
    body += "    exists = ctx.version > 0\n" if "exists" in used else ""
    body += "    now = int(ctx.now)\n" if "now" in used else ""
    items = [f"{literal(assignment.name)}: {formula(assignment.value)}" for assignment in query.fields]
    body += display("told: JsonObject = ", items, indent=4, brackets="{}")
    decimals = any(_holds_decimal(assignment.value.kind) for assignment in query.fields)
    body += f'    return Reply("found", {"as_json(told)" if decimals else "told"})\n'
    head = call(f"def {names.handlers[query.name]}", parameters, " -> Reply:")
    return f"@agent.query({literal(query.name)})\n{head}{body}"


def _reaction(agent: AgentSpec, reaction: Reaction, names: ModuleNames) -> str:
    command = agent.command(reaction.command)
    place = (reaction.agent, reaction.event)
    arguments = [literal(reaction.agent), literal(reaction.event)]
    if formula(reaction.on) != "entity_id":
        arguments.append(f"entity=lambda event: {_from_envelope(reaction.on)}")
    used = reaction_uses(reaction)
    body = docstring(f"When `{reaction.agent}` tells `{reaction.event}`: `{reaction.command}`.", 4)
    body += "    entity_id = named_entity(ctx)\n" if "entity_id" in used else ""
    body += "    exists = ctx.version > 0\n" if "exists" in used else ""
    body += "    now = int(ctx.now)\n" if "now" in used else ""
    # A condition that does not hold leads to nothing, which only a list can say.
    listed = reaction.condition is not None and _is_single(command)
    if reaction.condition is not None:
        body += guard(reaction.condition, "        return []\n", negated=True)
    body += _asked_of_itself(command, reaction, names, ("[", "]") if listed else ("", ""))
    parameters = [f"state: {names.state}", f"event: {names.heard[place]}", "ctx: Context"]
    returns = f"list[{_outputs(command, names)}]" if listed else _returns(command, names)
    head = call(f"def on_{reaction.agent}_{reaction.event}", parameters, f" -> {returns}:")
    return call("@agent.on", arguments) + head + body


def _asked_of_itself(command: Command, reaction: Reaction, names: ModuleNames, brackets: tuple[str, str]) -> str:
    """`return reserve(state, Reserve(...), ctx)`; a payload that does not fit has a line of its own."""
    handler, fields = names.handlers[command.name], list(_keywords(reaction.fields))
    before, behind = brackets
    asked = call(names.commands[command.name], fields).strip()
    short = call(f"return {before}{handler}", ["state", asked, "ctx"], behind, 4)
    if short.count("\n") == 1:
        return short
    payload = call(f"asked = {names.commands[command.name]}", fields, "", 4)
    return f"{payload}    return {before}{handler}(state, asked, ctx){behind}\n"


def _from_envelope(expression: Expression) -> str:
    """An expression over a foreign event, read off its envelope."""

    class Reader(ast.NodeTransformer):
        def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
            assert isinstance(node.value, ast.Name)
            return ast.parse(f"{node.value.id}.payload[{node.attr!r}]", mode="eval").body

        def visit_Name(self, node: ast.Name) -> ast.expr:
            return ast.parse("event.entity_id", mode="eval").body if node.id == "entity_id" else node

    read = Reader().visit(ast.parse(expression.python, mode="eval").body)
    text = ast.unparse(ast.fix_missing_locations(read))
    return f"str({formula(Expression(text, text, expression.kind))})"


def _applier(event: Event, names: ModuleNames) -> str:
    parameters = [f"state: {names.state}", f"event: {names.events[event.name]}"]
    head = call(f"def {names.appliers[event.name]}", parameters, f" -> {names.state}:")
    body = docstring(f"What `{event.name}` changes.", 4)
    changes = [f"{change.field}={formula(change.value)}" for change in event.changes]
    body += call("return attrs.evolve", ["state", *changes], indent=4) if changes else "    return state\n"
    return f"@agent.event({literal(event.name)})\n{head}{body}"
