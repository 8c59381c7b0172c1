"""Python as it is written: literals, docstrings, calls and conditions that fit the width, names that do not clash.

What is written here is laid out as `ruff format` lays it out, so that a generated file is formatted when it is made.
"""

from __future__ import annotations

import ast
import keyword
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

from meshforge_trio.factory.model import Expression, Message, repr_text

__all__ = [
    "WIDTH",
    "Names",
    "attributes_of",
    "call",
    "class_name",
    "condition",
    "docstring",
    "formula",
    "guard",
    "indented",
    "literal",
    "raised",
    "replaced",
    "returned",
    "sentence",
    "slug_words",
]

WIDTH: Final = 120
_SLUG_WORDS: Final = 6
_SLUG_LENGTH: Final = 48


def class_name(name: str) -> str:
    """`ran_short` as `RanShort`."""
    return "".join(part[:1].upper() + part[1:] for part in name.split("_"))


def slug_words(text: str) -> str:
    """The first words of a sentence as part of a name; empty if it has no ASCII words."""
    words = re.findall(r"[a-z0-9]+", text.lower())[:_SLUG_WORDS]
    return "_".join(words)[:_SLUG_LENGTH].rstrip("_")


class Names:
    """The names of one module: each is given once."""

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = set(taken).union(keyword.kwlist, keyword.softkwlist)

    def give(self, name: str, otherwise: str) -> str:
        """`name` if it is free, else `otherwise`, else that with a number."""
        numbered = [f"{otherwise}_{number}" for number in range(2, len(self._taken) + 3)]
        for candidate in [name, otherwise, *numbered]:
            if candidate not in self._taken:
                self._taken.add(candidate)
                return candidate
        raise AssertionError("more candidates than names")


def literal(value: Any) -> str:
    """A value of a field as Python writes it."""
    if isinstance(value, str):
        return _text_literal(value)
    if isinstance(value, Decimal):
        return f'Decimal("{value:f}")'
    if isinstance(value, tuple | list):
        inner = ", ".join(literal(item) for item in value)
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    return repr(value)


def _text_literal(text: str) -> str:
    written = repr_text(text)
    # As `ruff format` prefers quotes: double ones, unless that costs backslashes.
    if '"' in text and "'" not in text and "\\" not in text and text.isprintable():
        return f"'{text}'"
    # JSON writes characters beyond the basic plane as they are, and escapes that Python reads alike, but for this one.
    return written.replace("\\/", "/").replace("\x7f", "\\x7f")


def sentence(text: str) -> str:
    """Prose on one line, with a capital and a stop."""
    flat = " ".join(text.split())
    flat = flat[:1].upper() + flat[1:]
    return flat if not flat or flat[-1] in ".!?:" else f"{flat}."


def docstring(text: str, indent: int = 0) -> str:
    """A docstring of one or several paragraphs, wrapped; each line indented."""
    margin = " " * indent
    safe = text.strip().replace("\\", "\\\\").replace('"""', '\\"\\"\\"')
    if safe.endswith('"'):
        safe = safe[:-1] + '\\"'
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", safe) if part.strip()]
    first = paragraphs[0] if paragraphs else ""
    if len(paragraphs) <= 1 and len(first) + indent + 6 <= WIDTH:
        return f'{margin}"""{first}"""\n'
    width = WIDTH - indent - 6
    wrapped = [textwrap.wrap(part, width, break_long_words=False, break_on_hyphens=False) for part in paragraphs]
    lines = "\n\n".join("\n".join(margin + line for line in part) for part in wrapped)
    return f'{margin}"""{lines.lstrip()}\n{margin}"""\n'


def indented(text: str, by: int = 4) -> str:
    """Every line that is not empty, moved to the right."""
    return textwrap.indent(text, " " * by)


def call(
    head: str, arguments: Sequence[str], tail: str = "", indent: int = 0, brackets: tuple[str, str] = ("(", ")")
) -> str:
    """`head(arguments)tail` on one line if it fits, else with the arguments on their own line, else one a line."""
    opening, closing = brackets
    margin, deeper = " " * indent, " " * (indent + 4)
    inner = ", ".join(arguments)
    for text in (
        f"{margin}{head}{opening}{inner}{closing}{tail}",
        f"{margin}{head}{opening}\n{deeper}{inner}\n{margin}{closing}{tail}",
    ):
        if all(len(line) <= WIDTH for line in text.splitlines()):
            return text + "\n"
    lines = "".join(f"{deeper}{argument},\n" for argument in arguments)
    return f"{margin}{head}{opening}\n{lines}{margin}{closing}{tail}\n"


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


_OPPOSITES: Final[dict[type[ast.cmpop], str]] = {
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.Lt: ">=",
    ast.LtE: ">",
    ast.Gt: "<=",
    ast.GtE: "<",
    ast.In: "not in",
    ast.NotIn: "in",
    ast.Is: "is not",
    ast.IsNot: "is",
}


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
        left, right = _written(tree.left), _written(tree.comparators[0])
        return f"{left} {_OPPOSITES[type(tree.ops[0])]} {right}"
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
            self.texts.append(_text_literal(node.value))
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


def returned(text: str, indent: int = 4) -> str:
    """`return <expression>`; a long one is broken at its outermost operators."""
    margin = " " * indent
    line = f"{margin}return {text}\n"
    return line if len(line) - 1 <= WIDTH else f"{margin}return (\n{_broken(text, indent + 4)}{margin})\n"


def guard(expression: Expression, body: str, *, negated: bool = False, indent: int = 4) -> str:
    """`if <condition>:` and what is done then; a long condition is broken at its outermost operators."""
    test = condition(expression, negated=negated)
    margin = " " * indent
    line = f"{margin}if {test}:\n"
    if len(line) - 1 > WIDTH:
        line = f"{margin}if (\n{_broken(test, indent + 4)}{margin}):\n"
    return line + indented(body)


def _broken(text: str, indent: int) -> str:
    """The operands of the outermost operator, one a line, each after its operator."""
    tree = ast.parse(text, mode="eval").body
    margin = " " * indent
    if isinstance(tree, ast.BoolOp):
        word = "and" if isinstance(tree.op, ast.And) else "or"
        operands: list[tuple[str, ast.expr]] = [(f"{word} ", value) for value in tree.values]
    elif isinstance(tree, ast.Compare):
        words = [""] + [f"{_COMPARISONS[type(op)]} " for op in tree.ops]
        operands = list(zip(words, [tree.left, *tree.comparators], strict=True))
    else:
        return f"{margin}{text}\n"
    lines = []
    for number, (word, value) in enumerate(operands):
        written = ast.get_source_segment(text, value) or ""
        if isinstance(value, ast.BoolOp | ast.Compare):
            written = f"({written})" if isinstance(tree, ast.Compare) or isinstance(value, ast.BoolOp) else written
        lines.append(f"{margin}{word if number else ''}{written}\n")
    return "".join(lines)


_COMPARISONS: Final[dict[type[ast.cmpop], str]] = {kind: _OPPOSITES[other] for kind, other in _INVERSES.items()}


def raised(code: str, message: Message, indent: int) -> str:
    """`raise Refused(message, code=...)`"""
    return call("raise Refused", [_message(message), f"code={literal(code)}"], indent=indent)


def _message(message: Message) -> str:
    """A sentence with expressions in it, as an f-string if there are any."""
    if all(isinstance(part, str) for part in message.parts):
        return _text_literal("".join(str(part) for part in message.parts))
    inner = [ast.unparse(ast.parse(part.python)) for part in message.parts if isinstance(part, Expression)]
    if any('"' in text or "\\" in text for text in inner):
        arguments = ", ".join(formula(part) for part in message.parts if isinstance(part, Expression))
        return f"{_text_literal(''.join(_format_parts(message)))}.format({arguments})"
    texts = iter(inner)
    written = "".join(_escaped(part) if isinstance(part, str) else "{" + next(texts) + "}" for part in message.parts)
    return f'f"{written}"'


def _format_parts(message: Message) -> Iterator[str]:
    for part in message.parts:
        yield part.replace("{", "{{").replace("}", "}}") if isinstance(part, str) else "{}"


def _escaped(text: str) -> str:
    return repr_text(text)[1:-1].replace("{", "{{").replace("}", "}}")
