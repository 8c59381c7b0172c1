"""The PRD's expressions as they stand in code: in conditions, results, refusals and messages."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import Final

from meshforge_trio.factory.model import Expression, Message, repr_text
from meshforge_trio.factory.python import WIDTH, call, laid_out, literal, segment, text_literal

__all__ = ["attributes_of", "condition", "formula", "guard", "raised", "replaced", "returned"]


def formula(expression: Expression) -> str:
    """An expression as it stands in code."""
    return _written(ast.parse(expression.python, mode="eval").body)


def replaced(text: str, names: Mapping[str, str]) -> str:
    """An expression in which each of these names is another expression."""

    class Replacer(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.expr:
            return ast.parse(names[node.id], mode="eval").body if node.id in names else node

    tree = Replacer().visit(ast.parse(text, mode="eval").body)
    return _written(ast.fix_missing_locations(tree))


def attributes_of(expression: Expression, name: str) -> frozenset[str]:
    """The `x` of every `name.x` in an expression."""
    return frozenset(
        node.attr
        for node in ast.walk(ast.parse(expression.python, mode="eval"))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == name
    )


def condition(expression: Expression, *, negated: bool = False) -> str:
    """An expression as the test of an `if`."""
    if not negated:
        return formula(expression)
    tree = ast.parse(expression.python, mode="eval").body
    opposite = _opposite(tree)
    if opposite is not None:
        return opposite
    simple = isinstance(tree, ast.Name | ast.Attribute | ast.Call)
    return f"not {formula(expression)}" if simple else f"not ({formula(expression)})"


_INVERSES: Final[dict[type[ast.cmpop], type[ast.cmpop]]] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.GtE,
    ast.GtE: ast.Lt,
    ast.Gt: ast.LtE,
    ast.LtE: ast.Gt,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}


def _opposite(tree: ast.expr) -> str | None:
    """`a > b` for `a <= b`, and `a` for `not a`: a person would not write `not` there."""
    if isinstance(tree, ast.Compare) and len(tree.ops) == 1:
        return _written(ast.Compare(tree.left, [_INVERSES[type(tree.ops[0])]()], tree.comparators))
    if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.Not):
        return _written(tree.operand)
    return None


def _written(tree: ast.expr) -> str:
    """An expression as text, its strings in double quotes where that costs nothing."""

    class Marker(ast.NodeTransformer):
        """Puts a name where a text stands, since `ast.unparse` has its own mind about quotes."""

        def __init__(self) -> None:
            self.texts: list[str] = []

        def visit_Constant(self, node: ast.Constant) -> ast.expr:
            if not isinstance(node.value, str):
                return node
            self.texts.append(text_literal(node.value))
            return ast.Name(f"_text_{len(self.texts) - 1}_")

    marker = Marker()
    marked = marker.visit(ast.parse(ast.unparse(tree), mode="eval").body)
    text = ast.unparse(ast.fix_missing_locations(marked))
    text = _without_double_brackets(text)
    for number, written in enumerate(marker.texts):
        text = text.replace(f"_text_{number}_", written)
    return text


def _without_double_brackets(text: str) -> str:
    """`sum(x for x in y)` for the `sum((x for x in y))` of `ast.unparse`. There are no texts in it any more."""
    meaning = ast.dump(ast.parse(text, mode="eval"))
    at = 0
    while (at := text.find("((", at)) >= 0:
        close = _closing(text, at + 1)
        shorter = text[:at] + text[at + 1 : close] + text[close + 1 :]
        if text[close + 1 : close + 2] == ")" and text[:at][-1:].isidentifier() and _means(shorter, meaning):
            text = shorter
        else:
            at += 1
    return text


def _means(text: str, meaning: str) -> bool:
    try:
        return ast.dump(ast.parse(text, mode="eval")) == meaning
    except SyntaxError:
        return False


def _closing(text: str, at: int) -> int:
    """Where the bracket that opens at `at` closes."""
    depth = 0
    for place in range(at, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place
    raise ValueError(f"a bracket is not closed: {text}")


def guard(expression: Expression, body: str, *, negated: bool = False, indent: int = 4) -> str:
    """`if <condition>:` and the body, which is indented already; a long condition is broken at its operators."""
    test = condition(expression, negated=negated)
    margin = " " * indent
    line = f"{margin}if {test}:\n"
    if len(line) - 1 > WIDTH:
        line = f"{margin}if (\n{laid_out(test, indent + 4, '')}{margin}):\n"
    return line + body


def returned(text: str, indent: int = 4) -> str:
    """`return <expression>`; the two sides of a long comparison have lines of their own."""
    margin = " " * indent
    line = f"{margin}return {text}\n"
    tree = ast.parse(text, mode="eval").body
    if len(line) - 1 <= WIDTH:
        return line
    if isinstance(tree, ast.Compare) and len(tree.ops) == 1:
        left, right = (
            _assigned(*side, indent)
            for side in zip(("left", "right"), (tree.left, tree.comparators[0]), (text, text), strict=True)
        )
        compared = _written(ast.Compare(ast.Name("left"), tree.ops, [ast.Name("right")]))
        return f"{left}{right}{margin}return {compared}\n"
    return f"{margin}return (\n{laid_out(text, indent + 4, '')}{margin})\n"


def _assigned(name: str, node: ast.expr, text: str, indent: int) -> str:
    value, margin = segment(text, node), " " * indent
    line = f"{margin}{name} = {value}\n"
    return line if len(line) - 1 <= WIDTH else f"{margin}{name} = (\n{laid_out(value, indent + 4, '')}{margin})\n"


def raised(code: str, message: Message, indent: int) -> str:
    """`raise Refused(message, code=...)`"""
    return call("raise Refused", [_message(message), f"code={literal(code)}"], indent=indent)


def _message(message: Message) -> str:
    """A sentence with expressions in it, as an f-string if there are any."""
    if all(isinstance(part, str) for part in message.parts):
        return text_literal("".join(str(part) for part in message.parts))
    inner = [ast.unparse(ast.parse(part.python)) for part in message.parts if isinstance(part, Expression)]
    if any('"' in text or "\\" in text for text in inner):
        arguments = ", ".join(formula(part) for part in message.parts if isinstance(part, Expression))
        return f"{text_literal(''.join(_format_parts(message)))}.format({arguments})"
    texts = iter(inner)
    written = "".join(_escaped(part) if isinstance(part, str) else "{" + next(texts) + "}" for part in message.parts)
    return f'f"{written}"'


def _format_parts(message: Message) -> Iterator[str]:
    for part in message.parts:
        yield part.replace("{", "{{").replace("}", "}}") if isinstance(part, str) else "{}"


def _escaped(text: str) -> str:
    return repr_text(text)[1:-1].replace("{", "{{").replace("}", "}}")
