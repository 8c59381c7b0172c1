"""Expressions of a PRD: a part of Python, read by Python's own parser, every name known and every type right.

Names, numbers, "texts", lists, `+ - * // %`, comparisons, `in`, `and or not`, `a if b else c`, and the functions
`len min max abs sum default seconds minutes hours days time`; over all entities also `sum(agent.field)` and
`count(agent)`. There are no floats, and nothing that can fail once it has been accepted but a number too large.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Final, ParamSpec, TypeVar

import attrs

from meshforge_trio.factory.model import Expression, Kind, Position
from meshforge_trio.factory.problems import Problems, Unreadable, did_you_mean
from meshforge_trio.factory.typing_rules import (
    BOOLEAN,
    DURATION,
    INTEGER,
    NOTHING,
    TIME,
    Mismatch,
    Typed,
    assigned,
    comparable,
    computed,
    joined,
    literal,
    read_time,
    verbatim,
)

__all__ = ["Name", "Names", "checked"]

P = ParamSpec("P")
T = TypeVar("T")

_LENGTH_MAX: Final = 500
_WORDS: Final = {"true": True, "false": False, "nothing": None}
_OPERATORS: Final[Mapping[type[ast.AST], str]] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.FloorDiv: "//",
    ast.Mod: "%",
    ast.Div: "/",
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.In: "in",
    ast.NotIn: "not in",
}
_SPANS: Final = {"seconds": 1, "minutes": 60, "hours": 3600, "days": 86400}
_FUNCTIONS: Final = ("len", "min", "max", "abs", "sum", "default", *_SPANS, "time")
_TOTALS: Final = ("sum", "count")
_OF_COMMANDS: Final = ("id", "now", "exists")
_GRAMMAR: Final = "use names, numbers, \"texts\", + - * // %, comparisons, 'and', 'or', 'not' and 'in'"


@attrs.frozen
class Name:
    """What a name stands for: its kind (None if that was complained about), its Python, and whose it is."""

    kind: Kind | None
    python: str
    uses: str
    nonzero: bool = False


@attrs.frozen
class Names:
    """The names an expression may use: by themselves, behind a dot (`state.stock`), and agents to be summed over.

    `owner` says whose they are, for whoever uses one that is not there. They may be `incomplete`, because something
    about the owner could not be read: then nobody is told that a name is missing.
    """

    owner: str
    plain: Mapping[str, Name] = attrs.field(factory=dict)
    dotted: Mapping[str, Mapping[str, Name]] = attrs.field(factory=dict)
    totals: Mapping[str, Mapping[str, Kind | None]] = attrs.field(factory=dict)
    incomplete: bool = False


def checked(
    text: str, place: Callable[[int], Position], names: Names, problems: Problems, expected: Kind | None
) -> Expression | None:
    """The expression, of the expected kind if one is; None if there is something wrong with it.

    `place` tells where a character of the text is.
    """
    checker = _Checker(text, place, names, problems)
    try:
        found = checker.read(expected)
    except Unreadable as error:
        problems.add(error.where, error.what, error.suggestion)
        return None
    if found is None or found.kind is None:
        return None
    return Expression(text, ast.unparse(found.node), expected or found.kind, frozenset(checker.uses), where=place(0))


class _Checker:
    def __init__(self, text: str, place: Callable[[int], Position], names: Names, problems: Problems) -> None:
        self._text = text
        self._place = place
        self._names = names
        self._problems = problems
        self._unknown = False
        self.uses: set[str] = set()

    def read(self, expected: Kind | None) -> Typed | None:
        """Parse and check.

        Raises:
            Unreadable: at the first thing that is wrong, unknown names aside.
        """
        if len(self._text) > _LENGTH_MAX:
            raise Unreadable(self._place(0), f"an expression of {len(self._text)} characters", "write it in parts")
        try:
            tree = ast.parse(self._text, mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise self._unparsable(error) from error
        found = self._typed(tree)
        if self._unknown:
            return None
        if expected is not None:
            found = Typed(expected, self._at(tree, assigned, found, expected)) if found.kind else found
        if "Decimal(" in ast.unparse(found.node):
            self.uses.add("Decimal")
        return found

    def _unparsable(self, error: BaseException) -> Unreadable:
        offset = min(max((getattr(error, "offset", None) or 1) - 1, 0), max(len(self._text) - 1, 0))
        suggestion = _GRAMMAR
        for wrong, right in (("&&", "and"), ("||", "or"), ("!", "not")):
            if wrong in self._text.replace("!=", ""):
                offset, suggestion = self._text.find(wrong), f"write '{right}' instead of '{wrong}'"
                break
        else:
            if "=" in self._text.translate(_WITHOUT_COMPARISONS) and "==" not in self._text:
                offset, suggestion = self._text.index("="), "did you mean '=='?"
        return Unreadable(self._place(offset), f"{self._text!r:.80} is no expression", suggestion)

    def _typed(self, node: ast.expr) -> Typed:
        read = getattr(self, f"_{type(node).__name__.lower()}", None)
        if read is None:
            raise self._wrong(node, f"{self._source(node)!r:.60} cannot be used here", _GRAMMAR)
        found: Typed = read(node)
        return found

    # -- one method for each kind of node -----------------------------------------------------------------------

    def _constant(self, node: ast.Constant) -> Typed:
        value: object = node.value
        if isinstance(value, float):
            source = self._source(node)
            if not source.replace(".", "", 1).isdecimal():
                raise self._wrong(node, f"{source!r} is no number to count with", "write it out, like 1200.50")
            value = Decimal(source)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 2**63:
            raise self._wrong(node, f"{value} is larger than 64 bits can hold")
        if not isinstance(value, bool | int | Decimal | str | None):
            raise self._wrong(node, f"{self._source(node)!r:.60} cannot be used here", _GRAMMAR)
        return literal(value)

    def _name(self, node: ast.Name) -> Typed:
        if node.id in _WORDS:
            return literal(_WORDS[node.id])
        found = self._names.plain.get(node.id)
        if found is None:
            return self._missing(node, node.id, self._names.plain)
        self.uses.add(found.uses)
        return Typed(found.kind, verbatim(found.python), nonzero=found.nonzero)

    def _attribute(self, node: ast.Attribute) -> Typed:
        owner = node.value.id if isinstance(node.value, ast.Name) else ""
        fields = self._names.dotted.get(owner)
        if fields is None:
            if owner in self._names.totals:
                raise self._wrong(
                    node,
                    f"{self._source(node)!r} is many values: one for each {owner}",
                    f"write `sum({self._source(node)})`, or `- {owner}: ...` about each",
                )
            known = [f"{name}.…" for name in self._names.dotted]
            raise self._wrong(node, f"{self._source(node)!r:.60} is not known here", f"there is: {', '.join(known)}")
        found = fields.get(node.attr)
        if found is None:
            return self._missing(node, node.attr, fields, len(owner) + 1)
        self.uses.add(found.uses)
        return Typed(found.kind, verbatim(found.python))

    def _list(self, node: ast.List) -> Typed:
        items = tuple(self._typed(item) for item in node.elts)
        kind, nodes = self._at(node, joined, items) if items else (NOTHING, [])
        whole = None if items and kind is None else Kind("list", item=kind if items else None)
        return Typed(whole, ast.Tuple(elts=nodes), items=items)

    def _unaryop(self, node: ast.UnaryOp) -> Typed:
        inner = self._typed(node.operand)
        if isinstance(node.op, ast.Not):
            return Typed(BOOLEAN, ast.UnaryOp(node.op, self._boolean(node.operand, inner)))
        if not isinstance(node.op, ast.USub):
            raise self._wrong(node, f"{self._source(node)!r:.60} cannot be used here", _GRAMMAR)
        if inner.kind is not None and inner.kind.name not in ("integer", "decimal", "duration"):
            raise self._wrong(node.operand, f"'-' does not go with {inner.kind}", "use a number")
        if isinstance(inner.node, ast.Constant) and isinstance(inner.node.value, int):
            return Typed(inner.kind, ast.Constant(-inner.node.value), nonzero=inner.nonzero)
        return Typed(inner.kind, ast.UnaryOp(node.op, inner.node), nonzero=inner.nonzero)

    def _binop(self, node: ast.BinOp) -> Typed:
        operator = _OPERATORS.get(type(node.op))
        if operator is None:
            raise self._wrong(node, f"{self._source(node)!r:.60} cannot be used here", _GRAMMAR)
        left, right = self._typed(node.left), self._typed(node.right)
        kind = self._at(node, computed, operator, left, right).kind
        return Typed(kind, ast.BinOp(left.node, node.op, right.node))

    def _boolop(self, node: ast.BoolOp) -> Typed:
        return Typed(BOOLEAN, ast.BoolOp(node.op, [self._boolean(value, self._typed(value)) for value in node.values]))

    def _compare(self, node: ast.Compare) -> Typed:
        sides = [self._typed(side) for side in (node.left, *node.comparators)]
        sources = [node.left, *node.comparators]
        operators: list[ast.cmpop] = []
        for i, operation in enumerate(node.ops):
            operator = _OPERATORS.get(type(operation))
            if operator is None:
                raise self._wrong(node, "'is' cannot be used here", "write '=='")
            self._at(_culprit(sources[i], sources[i + 1]), comparable, operator, sides[i], sides[i + 1])
            operators.append(_identity(operator, sides[i], sides[i + 1]) or operation)
        return Typed(BOOLEAN, ast.Compare(sides[0].node, operators, [side.node for side in sides[1:]]))

    def _ifexp(self, node: ast.IfExp) -> Typed:
        test = self._boolean(node.test, self._typed(node.test))
        branches = self._typed(node.body), self._typed(node.orelse)
        kind, (body, orelse) = self._at(node, joined, branches)
        return Typed(kind, ast.IfExp(test, body, orelse), branches=branches)

    def _call(self, node: ast.Call) -> Typed:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if self._names.totals and name in _TOTALS and len(node.args) == 1 and not node.keywords:
            return self._total(name, node.args[0])
        if name not in _FUNCTIONS:
            raise self._wrong(
                node.func,
                f"unknown function {self._source(node.func)!r:.60}",
                did_you_mean(name, _FUNCTIONS) or f"there is: {', '.join(_FUNCTIONS)}",
            )
        if node.keywords or any(isinstance(arg, ast.Starred) for arg in node.args):
            raise self._wrong(node, f"{name} takes plain values", f"write `{name}(a, b)`")
        return self._called(node, name, [self._typed(arg) for arg in node.args])

    # -- functions ----------------------------------------------------------------------------------------------

    def _called(self, node: ast.Call, name: str, args: list[Typed]) -> Typed:
        if any(arg.kind is None for arg in args):
            return Typed(None, node)
        kinds = [arg.kind for arg in args if arg.kind is not None]
        names = [kind.name for kind in kinds]
        if name == "len" and names in (["list"], ["text"], ["id"]):
            return Typed(INTEGER, _python("len", args))
        if name in ("min", "max") and len(args) > 1 and set(names) <= {"integer", "decimal", "time", "duration"}:
            kind, nodes = self._at(node, joined, args)
            return Typed(kind, ast.Call(verbatim(name), nodes, []))
        if name == "abs" and names in (["integer"], ["decimal"], ["duration"]):
            return Typed(kinds[0], _python("abs", args))
        if name == "sum" and names == ["list"] and kinds[0].item in (INTEGER, Kind("decimal"), DURATION):
            return Typed(kinds[0].item, _sum(ast.unparse(args[0].node), kinds[0].item))
        if name in _SPANS and names == ["integer"]:
            return Typed(DURATION, _span(args[0].node, _SPANS[name]), nonzero=args[0].nonzero)
        if name == "time" and len(args) == 1 and args[0].text is not None:
            return Typed(TIME, ast.Constant(self._at(node.args[0], read_time, args[0].text)))
        if name == "default" and len(args) == 2 and names[0] == "optional":
            return self._default(node, args[0], args[1])
        raise self._wrong(node, f"{name} does not go with {', '.join(map(str, kinds)) or 'nothing'}", _USAGE[name])

    def _default(self, node: ast.Call, optional: Typed, other: Typed) -> Typed:
        assert optional.kind is not None
        present = attrs.evolve(optional, kind=optional.kind.item)
        kind, (body, orelse) = self._at(node, joined, (present, other))
        test = ast.Compare(optional.node, [ast.IsNot()], [verbatim("None")])
        return Typed(kind, ast.IfExp(test, body, orelse))

    def _total(self, name: str, node: ast.expr) -> Typed:
        """`sum(agent.field)` and `count(agent)`."""
        dotted = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        agent = node.value.id if dotted else node.id if isinstance(node, ast.Name) else ""  # type: ignore[attr-defined]
        if dotted != (name == "sum") or not agent:
            raise self._wrong(node, f"{self._source(node)!r:.60} is not to be counted", _USAGE_OF_TOTALS)
        fields = self._names.totals.get(agent)
        if fields is None:
            return self._missing(node, agent, self._names.totals, kind="agent")
        self.uses.add(agent)
        if name == "count":
            return Typed(INTEGER, verbatim(f"len({agent})"))
        assert isinstance(node, ast.Attribute)
        if node.attr not in fields:
            return self._missing(node, node.attr, fields, len(agent) + 1, owner=f"agent {agent}")
        kind = fields[node.attr]
        if kind is not None and kind.name not in ("integer", "decimal", "duration"):
            raise self._wrong(node, f"{self._source(node)!r} is {kind}, which has no sum", "sum numbers or durations")
        return Typed(kind, _sum(f"each.{node.attr} for each in {agent}", kind))

    # -- complaints ---------------------------------------------------------------------------------------------

    def _missing(
        self,
        node: ast.expr,
        name: str,
        known: Mapping[str, object],
        skip: int = 0,
        *,
        kind: str = "name",
        owner: str = "",
    ) -> Typed:
        self._unknown = True
        if self._names.incomplete:
            return Typed(None, node)
        where = self._place(self._offset(node) + skip)
        if kind == "name" and name in _OF_COMMANDS and self._names.owner.startswith("event "):
            # A field may not be called so, thus it is the command's that is meant.
            carried = f"let the event carry it: - emit `...` with `a` = `{name}`"
            self._problems.add(where, f"only commands know {name!r}, {self._names.owner} does not", carried)
            return Typed(None, node)
        self._problems.unknown(where, kind, name, known, "" if kind == "agent" else owner or self._names.owner)
        return Typed(None, node)

    def _boolean(self, node: ast.expr, found: Typed) -> ast.expr:
        if found.kind is not None and found.kind != BOOLEAN:
            raise self._wrong(node, f"{self._source(node)!r:.60} is {found.kind}, not a condition", "compare it")
        return found.node

    def _at(self, node: ast.expr, rule: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Apply a rule; what it complains about is here."""
        try:
            return rule(*args, **kwargs)
        except Mismatch as error:
            raise self._wrong(node, f"{self._source(node)!r:.60}: {error.what}", error.suggestion) from error

    def _wrong(self, node: ast.expr, what: str, suggestion: str = "") -> Unreadable:
        return Unreadable(self._place(self._offset(node)), what, suggestion)

    def _offset(self, node: ast.expr) -> int:
        # Python counts columns in bytes.
        return len(self._text.encode()[: node.col_offset].decode(errors="ignore"))

    def _source(self, node: ast.expr) -> str:
        return ast.get_source_segment(self._text, node) or self._text


_WITHOUT_COMPARISONS: Final = str.maketrans({"<": None, ">": None, "!": None})
_USAGE_OF_TOTALS: Final = "write `sum(agent.field)` or `count(agent)`"
_USAGE: Final[Mapping[str, str]] = {
    "len": "write `len(a)` of a text or a list",
    "min": "write `min(a, b)` of numbers, times or durations",
    "max": "write `max(a, b)` of numbers, times or durations",
    "abs": "write `abs(a)` of a number",
    "sum": "write `sum(a)` of a list of numbers",
    "default": "write `default(a, b)`, where `a` is optional",
    "time": 'write `time("2026-05-01T10:00:00Z")`',
    **{name: f"write `{name}(n)` of an integer" for name in _SPANS},
}


def _python(name: str, args: list[Typed]) -> ast.expr:
    return ast.Call(verbatim(name), [arg.node for arg in args], [])


def _span(node: ast.expr, seconds: int) -> ast.expr:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return ast.Constant(node.value * seconds)
    return node if seconds == 1 else ast.BinOp(node, ast.Mult(), ast.Constant(seconds))


def _sum(inner: str, kind: Kind | None) -> ast.expr:
    """A sum; of no decimals it is a decimal, too."""
    if kind is not None and kind.name == "decimal":
        return verbatim(f'sum(({inner}), Decimal("0"))' if " for " in inner else f'sum({inner}, Decimal("0"))')
    return verbatim(f"sum({inner})")


def _identity(operator: str, left: Typed, right: Typed) -> ast.cmpop | None:
    """Whether something is nothing is asked with `is`."""
    if NOTHING not in (left.kind, right.kind) or operator not in ("==", "!="):
        return None
    return ast.Is() if operator == "==" else ast.IsNot()


def _culprit(left: ast.expr, right: ast.expr) -> ast.expr:
    """The side of a comparison to point at: a literal, if one is, since the other was declared."""
    return right if isinstance(right, ast.Constant) else left
