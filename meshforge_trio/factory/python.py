"""Python as it is written: names that do not clash, literals, docstrings, calls that fit the width.

What is written here is laid out as `ruff format` lays it out, so that a generated file is formatted when it is made.
"""

from __future__ import annotations

import ast
import keyword
import re
import textwrap
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any, Final

from meshforge_trio.factory.model import repr_text

__all__ = [
    "WIDTH",
    "Names",
    "call",
    "class_name",
    "display",
    "docstring",
    "laid_out",
    "literal",
    "segment",
    "sentence",
    "slug_words",
    "text_literal",
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
        return text_literal(value)
    if isinstance(value, Decimal):
        return f'Decimal("{value:f}")'
    if isinstance(value, tuple | list):
        inner = ", ".join(literal(item) for item in value)
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    return repr(value)


def text_literal(text: str) -> str:
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


def call(head: str, arguments: Sequence[str], tail: str = "", indent: int = 0) -> str:
    """`head(arguments)tail` on one line if it fits, else with the arguments on their own line, else one a line."""
    margin, deeper = " " * indent, " " * (indent + 4)
    inner = ", ".join(arguments)
    for text in (
        f"{margin}{head}({inner}){tail}",
        f"{margin}{head}(\n{deeper}{inner}\n{margin}){tail}",
    ):
        if all(len(line) <= WIDTH for line in text.splitlines()):
            return text + "\n"
    return f"{margin}{head}(\n" + "".join(laid_out(text, indent + 4) for text in arguments) + f"{margin}){tail}\n"


def display(head: str, items: Sequence[str], tail: str = "", indent: int = 0, brackets: str = "[]") -> str:
    """`head[items]tail`, or with braces: on one line if it fits, else one item a line."""
    margin = " " * indent
    text = f"{margin}{head}{brackets[0]}{', '.join(items)}{brackets[1]}{tail}"
    if len(text) <= WIDTH:
        return text + "\n"
    lines = "".join(laid_out(item, indent + 4) for item in items)
    return f"{margin}{head}{brackets[0]}\n{lines}{margin}{brackets[1]}{tail}\n"


def laid_out(text: str, indent: int, tail: str = ",") -> str:
    """An argument, an item, or an entry of a dictionary, broken where it has to be."""
    margin = " " * indent
    if indent + len(text) + len(tail) <= WIDTH:
        return f"{margin}{text}{tail}\n"
    head, value = _head_and_value(text)
    tree = ast.parse(value, mode="eval").body
    if isinstance(tree, ast.Call):
        arguments = [segment(value, each) for each in (*tree.args, *tree.keywords)]
        return call(head + segment(value, tree.func), arguments, tail, indent)
    if isinstance(tree, ast.Dict):
        keys = [segment(value, key) for key in tree.keys if key is not None]
        items = [f"{key}: {segment(value, each)}" for key, each in zip(keys, tree.values, strict=True)]
        return display(head, items, tail, indent, "{}")
    parts = _parts(value)
    return "".join(f"{margin}{head * (not number)}{part}\n" for number, part in enumerate(parts))[:-1] + f"{tail}\n"


def _head_and_value(text: str) -> tuple[str, str]:
    """`name=` or `"key": ` and what comes after it; an expression has no head."""
    found = re.match(r'(?:\w+=(?!=)|"(?:\\.|[^"\\])*": )', text)
    return (found[0], text[found.end() :]) if found else ("", text)


def segment(text: str, node: ast.AST) -> str:
    return ast.get_source_segment(text, node) or ""


def _parts(text: str) -> list[str]:
    """The operands of the outermost operator, each but the first after its operator; the text itself if it has none."""
    tree = ast.parse(text, mode="eval").body
    if isinstance(tree, ast.IfExp):
        rest = (
            _parts(segment(text, tree.orelse)) if isinstance(tree.orelse, ast.IfExp) else [segment(text, tree.orelse)]
        )
        return [segment(text, tree.body), f"if {segment(text, tree.test)}", f"else {rest[0]}", *rest[1:]]
    if isinstance(tree, ast.BoolOp):
        word = "and" if isinstance(tree.op, ast.And) else "or"
        operands = [_operand(text, value, ast.BoolOp | ast.IfExp) for value in tree.values]
        return [operands[0], *(f"{word} {operand}" for operand in operands[1:])]
    if isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Add | ast.Sub):
        sign = "+" if isinstance(tree.op, ast.Add) else "-"
        left = _parts(segment(text, tree.left)) if isinstance(tree.left, ast.BinOp) else [_operand(text, tree.left)]
        return [*left, f"{sign} {_operand(text, tree.right)}"]
    return [text]


def _operand(text: str, node: ast.expr, weaker: Any = ast.BoolOp | ast.IfExp | ast.Compare | ast.BinOp) -> str:
    """The source of an operand, in brackets if it binds less than what is around it: they are no part of its source."""
    written = segment(text, node)
    product = isinstance(node, ast.BinOp) and not isinstance(node.op, ast.Add | ast.Sub)
    return f"({written})" if isinstance(node, weaker) and not product else written
