"""What the types of a PRD allow: which go together, and what an operation makes of them.

A kind that is None belongs to something that has been complained about already: it goes with everything.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final

import attrs

from meshforge_trio.factory.model import Kind, repr_text
from meshforge_trio.factory.problems import did_you_mean

__all__ = [
    "BOOLEAN",
    "DECIMAL",
    "DURATION",
    "ID",
    "INTEGER",
    "NOTHING",
    "TEXT",
    "TIME",
    "Mismatch",
    "Typed",
    "assigned",
    "comparable",
    "computed",
    "joined",
    "literal",
    "read_time",
    "verbatim",
]

TEXT: Final = Kind("text")
ID: Final = Kind("id")
INTEGER: Final = Kind("integer")
DECIMAL: Final = Kind("decimal")
BOOLEAN: Final = Kind("boolean")
TIME: Final = Kind("time")
DURATION: Final = Kind("duration")
NOTHING: Final = Kind("nothing")
_WORDS: Final = frozenset({"text", "id", "one of"})

#: Kinds of operands and what comes of them; `integer` and `decimal` mixed are `decimal`.
_ARITHMETIC: Final = {
    ("+", "integer", "integer"): INTEGER,
    ("-", "integer", "integer"): INTEGER,
    ("*", "integer", "integer"): INTEGER,
    ("//", "integer", "integer"): INTEGER,
    ("%", "integer", "integer"): INTEGER,
    ("+", "decimal", "decimal"): DECIMAL,
    ("-", "decimal", "decimal"): DECIMAL,
    ("*", "decimal", "decimal"): DECIMAL,
    ("+", "text", "text"): TEXT,
    ("-", "time", "time"): DURATION,
    ("+", "time", "duration"): TIME,
    ("-", "time", "duration"): TIME,
    ("+", "duration", "time"): TIME,
    ("+", "duration", "duration"): DURATION,
    ("-", "duration", "duration"): DURATION,
    ("*", "duration", "integer"): DURATION,
    ("*", "integer", "duration"): DURATION,
    ("//", "duration", "integer"): DURATION,
    ("//", "duration", "duration"): INTEGER,
    ("%", "duration", "duration"): DURATION,
}


@attrs.frozen
class Typed:
    """A part of an expression: its kind, and itself with names qualified.

    `text` is that of a literal text, `items` the parts of a literal list, `branches` both sides of a choice: these
    become what they are assigned to. `nonzero` says that it can never be 0.
    """

    kind: Kind | None
    node: ast.expr
    text: str | None = None
    items: tuple[Typed, ...] | None = None
    branches: tuple[Typed, Typed] | None = None
    nonzero: bool = False


class Mismatch(Exception):
    """Two kinds that do not go together, and what to do about it."""

    def __init__(self, what: str, suggestion: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.suggestion = suggestion


def verbatim(text: str) -> ast.expr:
    """A piece of Python that is written as it stands: `ast.unparse` would quote texts in its own way."""
    return ast.Name(id=text)


def literal(value: object) -> Typed:
    """A value as a part of an expression."""
    if value is None:
        return Typed(NOTHING, verbatim("None"))
    if isinstance(value, bool):
        return Typed(BOOLEAN, verbatim(str(value)))
    if isinstance(value, int):
        return Typed(INTEGER, ast.Constant(value), nonzero=value != 0)
    if isinstance(value, Decimal):
        return Typed(DECIMAL, verbatim(f'Decimal("{value:f}")'), nonzero=value != 0)
    assert isinstance(value, str)
    return Typed(TEXT, verbatim(repr_text(value)), text=value)


def computed(operator: str, left: Typed, right: Typed) -> Typed:
    """The kind of an arithmetic operation.

    Raises:
        Mismatch: there is no such operation.
    """
    if left.kind is None or right.kind is None:
        return Typed(None, left.node)
    for side in (left, right):
        _refuse_nothing(side)
    if left.kind.name == "list" and right.kind.name == "list" and operator == "+":
        return _listed(left, right)
    if operator == "/":
        raise Mismatch("'/' is no operation here", "divide whole numbers with '//', which leaves the rest away")
    names = (_operand(left.kind), _operand(right.kind))
    if set(names) == {"integer", "decimal"}:
        names = ("decimal", "decimal")
    kind = _ARITHMETIC.get((operator, *names))
    if kind is None:
        raise Mismatch(f"'{operator}' does not go with {left.kind} and {right.kind}", _advice(operator, names))
    if operator in ("//", "%") and not right.nonzero:
        raise Mismatch(
            "the divisor may be 0", "divide by a number, or by a field of the command that a rule keeps at 1 or more"
        )
    # What an id is a part of names something, too.
    return Typed(ID if kind == TEXT and ID in (left.kind, right.kind) else kind, left.node)


def _operand(kind: Kind) -> str:
    return "text" if kind.name in _WORDS else kind.name


def _listed(left: Typed, right: Typed) -> Typed:
    """Two lists as one. A literal beside another takes its kind of items."""
    assert left.kind is not None
    assert right.kind is not None
    base, other = (right, left) if left.items is not None else (left, right)
    assert base.kind is not None
    item = base.kind.item
    if other.items is not None and item is not None:
        for part in other.items:
            assigned(part, item)
        return Typed(base.kind, left.node)
    if left.kind != right.kind:
        raise Mismatch(f"{left.kind} and {right.kind} make no list", "add lists of the same type")
    return Typed(left.kind, left.node)


def _advice(operator: str, names: Sequence[str]) -> str:
    if "decimal" in names and operator in ("//", "%"):
        return "decimal numbers are not divided, since the result would have to be rounded"
    if "duration" in names or "time" in names:
        return "write a span of time as `hours(2)`, `minutes(30)` or `days(1)`"
    return "use numbers, or add texts or lists"


def _refuse_nothing(part: Typed) -> None:
    if part.kind is not None and part.kind.name in ("optional", "nothing"):
        raise Mismatch("it may be nothing here", "write `default(it, something)` to say what it is then")


def joined(parts: Sequence[Typed]) -> tuple[Kind | None, list[ast.expr]]:
    """The kind that all of the parts have, and the parts as that kind.

    Raises:
        Mismatch: they have none in common.
    """
    kinds = [part.kind for part in parts if part.kind is not None]
    if len(kinds) < len(parts):
        return None, [part.node for part in parts]
    ranked = sorted(kinds, key=lambda kind: ("optional", "one of", "id", "decimal").count(kind.name), reverse=True)
    first: Mismatch | None = None
    for kind in (
        *ranked,
        *(Kind("optional", item=kind) for kind in ranked if kind.name not in ("optional", "nothing")),
    ):
        try:
            return kind, [assigned(part, kind) for part in parts]
        except Mismatch as error:
            first = first or error
    raise first or Mismatch("nothing to choose from")


def comparable(operator: str, left: Typed, right: Typed) -> None:
    """Make sure that two values can be compared.

    Raises:
        Mismatch: they cannot.
    """
    if left.kind is None or right.kind is None:
        return
    if operator in ("in", "not in"):
        _contained(left, right)
        return
    if operator in ("==", "!="):
        _equal(left, right)
        return
    for side in (left, right):
        _refuse_nothing(side)
    names = {left.kind.name, right.kind.name}
    if not (names <= {"integer", "decimal"} or (len(names) == 1 and names <= {"time", "duration"})):
        raise Mismatch(
            f"'{operator}' does not go with {left.kind} and {right.kind}", "compare numbers, times or durations"
        )


def _contained(left: Typed, right: Typed) -> None:
    assert right.kind is not None
    if right.kind.name != "list":
        raise Mismatch(f"nothing is 'in' {right.kind}", 'write a list, like `status in ["open", "paid"]`')
    if right.items is not None:
        for item in right.items:
            _equal(left, item)
    elif right.kind.item is not None:
        _equal(left, Typed(right.kind.item, right.node))


def _equal(left: Typed, right: Typed) -> None:
    for one, other in ((left, right), (right, left)):
        if one.kind is None or other.kind is None:
            return
        if one.kind.name == "nothing" and other.kind.name not in ("optional", "nothing"):
            raise Mismatch("it is never nothing", f"only a field of type 'optional {other.kind}' can be")
    for one, other in ((left, right), (right, left)):
        inner = one.kind.item if one.kind is not None and one.kind.name == "optional" else one.kind
        if inner is not None and inner.name == "one of" and other.text is not None:
            assigned(other, inner)
            return
    try:
        joined((left, right))
    except Mismatch:
        names = {left.kind.name if left.kind else "", right.kind.name if right.kind else ""}
        if not names <= _WORDS:
            raise Mismatch(f"{left.kind} is never equal to {right.kind}", "compare values of one type") from None


def assigned(part: Typed, kind: Kind) -> ast.expr:
    """The part as a value of that kind.

    Raises:
        Mismatch: it is none.
    """
    own = part.kind
    if own is None or own == kind:
        return part.node
    if part.branches is not None and isinstance(part.node, ast.IfExp):
        body, orelse = part.branches
        return ast.IfExp(part.node.test, assigned(body, kind), assigned(orelse, kind))
    if kind.name == "optional" and kind.item is not None:
        if own.name == "nothing":
            return part.node
        if own.name != "optional":
            return assigned(part, kind.item)
        if assigned(attrs.evolve(part, kind=own.item), kind.item) is part.node:
            return part.node
    if kind.name == "list" and kind.item is not None and part.items is not None:
        return _tuple([assigned(item, kind.item) for item in part.items])
    if own.name == "integer" and kind.name == "decimal":
        constant = isinstance(part.node, ast.Constant)
        return verbatim(f'Decimal("{part.node.value}")' if constant else f"Decimal({ast.unparse(part.node)})")  # type: ignore[attr-defined]
    if part.text is not None:
        return _text_as(part, part.text, kind)
    if kind.name == "text" and own.name in _WORDS:
        return part.node
    if kind.name == own.name == "one of" and set(own.choices) <= set(kind.choices):
        return part.node
    if own.name in ("optional", "nothing"):
        _refuse_nothing(part)
    raise Mismatch(f"it is {own}, not {kind}", _conversion(own, kind))


def _text_as(part: Typed, text: str, kind: Kind) -> ast.expr:
    """A literal text as a value of another kind that is written as text."""
    if kind.name == "one of":
        if text not in kind.choices:
            known = ", ".join(repr(choice) for choice in kind.choices)
            raise Mismatch(f"{text!r} is none of {known}", did_you_mean(text, kind.choices))
        return part.node
    if kind.name == "id" and 1 <= len(text) <= 256:
        return part.node
    if kind.name == "time":
        return ast.Constant(read_time(text))
    raise Mismatch(f"it is text, not {kind}", "an id has 1 to 256 characters" if kind.name == "id" else "")


def _conversion(own: Kind, kind: Kind) -> str:
    if kind.name == "id" and own.name in _WORDS:
        return "give the field it comes from the type id"
    if kind.name == "boolean":
        return "compare it with something"
    if kind.name == "duration" and own.name == "integer":
        return "write `seconds(n)`, `minutes(n)`, `hours(n)` or `days(n)`"
    if kind.name == "integer" and own.name == "decimal":
        return "give both the same type; a decimal is not rounded by itself"
    return ""


def _tuple(items: list[ast.expr]) -> ast.expr:
    return ast.Tuple(elts=items)


def read_time(text: str) -> int:
    """Seconds since 1970 of a moment like 2026-05-01T10:00:00Z; without a zone it is UTC.

    Raises:
        Mismatch: it is none, or has parts of a second.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.microsecond:
        raise Mismatch(f"{text!r:.60} is no time", 'write it as "2026-05-01T10:00:00Z"')
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
