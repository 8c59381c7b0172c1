"""Expressions: the Python that comes of them, and that it means what it says."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from meshforge_trio.factory.evaluation import evaluated, record
from meshforge_trio.factory.expressions import Name, Names, checked
from meshforge_trio.factory.formulas import condition
from meshforge_trio.factory.model import Expression, Kind, Position, TypeName
from meshforge_trio.factory.problems import Problem, Problems

STATE = {
    "stock": (Kind("integer"), 7),
    "price": (Kind("decimal"), Decimal("2.50")),
    "name": (Kind("text"), "lamp"),
    "sku": (Kind("id"), "s-1"),
    "open": (Kind("boolean"), True),
    "begins": (Kind("time"), 1000),
    "lasts": (Kind("duration"), 90),
    "status": (Kind("one of", ("new", "old")), "new"),
    "tags": (Kind("list", item=Kind("text")), ("a", "b")),
    "sums": (Kind("list", item=Kind("decimal")), (Decimal("0.10"), Decimal("0.20"))),
    "left": (Kind("optional", item=Kind("time")), None),
    "carrier": (Kind("optional", item=Kind("text")), "post"),
}
FIELDS = {name: Name(kind, f"state.{name}", "state") for name, (kind, _) in STATE.items()}
NAMES = Names(
    "the test",
    {**FIELDS, "count": Name(Kind("integer"), "payload.count", "payload", nonzero=True)},
    {"state": FIELDS},
)
VALUES: dict[str, Any] = {
    "state": record({name: value for name, (_, value) in STATE.items()}),
    "payload": record({"count": 2}),
}


def read(text: str, expected: Kind | None = None) -> tuple[Expression | None, list[Problem]]:
    problems = Problems()
    found = checked(text, lambda at: Position(1, at + 1), NAMES, problems, expected)
    return found, list(problems)


@pytest.mark.parametrize(
    ("text", "kind", "python", "value"),
    [
        ("stock + 1", "integer", "state.stock + 1", 8),
        ("(stock+1)*2", "integer", "(state.stock + 1) * 2", 16),
        ("-stock", "integer", "-state.stock", -7),
        ("stock // 2 + stock % count", "integer", "state.stock // 2 + state.stock % payload.count", 4),
        ("price * stock", "decimal", "state.price * state.stock", Decimal("17.50")),
        ("price + 0.05", "decimal", 'state.price + Decimal("0.05")', Decimal("2.55")),
        ("max(price, 3)", "decimal", 'max(state.price, Decimal("3"))', Decimal(3)),
        ("max(price, stock)", "decimal", "max(state.price, Decimal(state.stock))", Decimal(7)),
        ("sum(sums)", "decimal", 'sum(state.sums, Decimal("0"))', Decimal("0.30")),
        ("abs(0 - stock)", "integer", "abs(0 - state.stock)", 7),
        ("name + '!'", "text", 'state.name + "!"', "lamp!"),
        ("sku + '-' + name", "id", 'state.sku + "-" + state.name', "s-1-lamp"),
        ("len(tags) > 1 and not open", "boolean", "len(state.tags) > 1 and (not state.open)", False),
        ("1 <= stock < 10", "boolean", "1 <= state.stock < 10", True),
        ("'a' in tags or name not in tags", "boolean", '"a" in state.tags or state.name not in state.tags', True),
        ("status in ['new', 'old']", "boolean", 'state.status in ("new", "old")', True),
        ("tags + [name]", "list", "state.tags + (state.name,)", ("a", "b", "lamp")),
        ("begins + minutes(2)", "time", "state.begins + 120", 1120),
        ("begins + lasts * count", "time", "state.begins + state.lasts * payload.count", 1180),
        ("begins - time('1970-01-01T00:10:00Z')", "duration", "state.begins - 600", 400),
        ("hours(stock)", "duration", "state.stock * 3600", 25200),
        ("lasts // minutes(1)", "integer", "state.lasts // 60", 1),
        ("left == nothing", "boolean", "state.left is None", True),
        ("carrier != nothing", "boolean", "state.carrier is not None", True),
        ("default(left, begins)", "time", "state.left if state.left is not None else state.begins", 1000),
        ("carrier == 'post'", "boolean", 'state.carrier == "post"', True),
        ("0 if open else stock", "integer", "0 if state.open else state.stock", 0),
        ("state.stock == stock", "boolean", "state.stock == state.stock", True),
        ('"a\\"b"', "text", '"a\\"b"', 'a"b'),
    ],
)
def test_what_becomes_of_it(text: str, kind: TypeName, python: str, value: Any) -> None:
    found, problems = read(text)
    assert not problems
    assert found is not None
    assert (found.kind.name, found.python, found.text) == (kind, python, text)
    assert evaluated(found, VALUES) == value
    assert type(evaluated(found, VALUES)) is type(value)


@pytest.mark.parametrize(
    ("text", "expected", "python"),
    [
        ("3", Kind("decimal"), 'Decimal("3")'),
        ("stock", Kind("decimal"), "Decimal(state.stock)"),
        ("'new' if open else 'old'", STATE["status"][0], '"new" if state.open else "old"'),
        ("1 if open else stock", Kind("decimal"), 'Decimal("1") if state.open else Decimal(state.stock)'),
        ("nothing if open else 'x'", STATE["carrier"][0], 'None if state.open else "x"'),
        ("nothing", STATE["left"][0], "None"),
        ("'1970-01-01T00:00:10Z'", Kind("time"), "10"),
        ("[]", STATE["tags"][0], "()"),
        ("[1, 2.5]", STATE["sums"][0], '(Decimal("1"), Decimal("2.5"))'),
        ("sku", Kind("text"), "state.sku"),
        ("status", Kind("text"), "state.status"),
    ],
)
def test_a_value_becomes_what_it_is_assigned_to(text: str, expected: Kind, python: str) -> None:
    found, problems = read(text, expected)
    assert not problems
    assert found is not None
    assert found.python == python
    assert found.kind == expected


@pytest.mark.parametrize(
    ("text", "expected", "what", "column"),
    [
        ("stock + name", None, "does not go with integer and text", 1),
        ("price // 2", None, "does not go with decimal and integer", 1),
        ("begins + 3", None, "does not go with time and integer", 1),
        ("begins + begins", None, "does not go with time and time", 1),
        ("left + lasts", None, "may be nothing", 1),
        ("stock // (count - 2)", None, "may be 0", 1),
        ("stock < name", None, "does not go with", 1),
        ("stock == 'seven'", None, "never equal", 10),
        ("stock == nothing", None, "never nothing", 1),
        ("1 + status", None, "does not go with", 1),
        ("status == 'neww'", None, "none of", 11),
        ("'x' in name", None, "nothing is 'in' text", 1),
        ("len(stock)", None, "len does not go with integer", 1),
        ("sum(tags)", None, "sum does not go with", 1),
        ("default(stock, 1)", None, "default does not go with", 1),
        ("time('today')", None, "is no time", 6),
        ("stock if 1 else 2", None, "not a condition", 10),
        ("not stock", None, "not a condition", 5),
        ("'é' + stcok", None, "unknown name 'stcok'", 7),
        ("state.stcok", None, "unknown name 'stcok'", 7),
        ("stock is 3", None, "'is' cannot", 1),
        ("stock := 3", None, "is no expression", 8),
        ("[x for x in tags]", None, "cannot be used here", 1),
        ("f'{name}'", None, "cannot be used here", 1),
        ("tags[0]", None, "cannot be used here", 1),
        ("name.upper()", None, "unknown function", 1),
        ("open('x')", None, "unknown function", 1),
        ("9223372036854775808", None, "64 bits", 1),
        ("1e400", None, "is no number", 1),
        ("b'x'", None, "cannot be used here", 1),
        ("(" * 300 + ")" * 300, None, "characters", 1),
        ("(" * 240 + "1" + ")" * 240, None, "is no expression", None),
        ("stock", Kind("text"), "it is integer, not text", 1),
        ("price", Kind("integer"), "it is decimal, not integer", 1),
        ("name", Kind("id"), "it is text, not id", 1),
        ("''", Kind("id"), "it is text, not id", 1),
        ("left", Kind("time"), "may be nothing", 1),
        ("60", Kind("duration"), "it is integer, not duration", 1),
    ],
)
def test_what_makes_no_sense(text: str, expected: Kind | None, what: str, column: int | None) -> None:
    found, problems = read(text, expected)
    assert found is None
    (problem,) = problems
    assert what in problem.what
    assert column is None or problem.column == column


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("stock < 3", "state.stock >= 3"),
        ("not open", "state.open"),
        ("open and stock > 1", "not (state.open and state.stock > 1)"),
        ("(1 if open else 9) < stock", "(1 if state.open else 9) >= state.stock"),
        ("stock < (1 if open else 9)", "state.stock >= (1 if state.open else 9)"),
        ("open == (stock > 1)", "state.open != (state.stock > 1)"),
    ],
)
def test_the_opposite_of_a_condition_means_the_opposite(text: str, written: str) -> None:
    found, problems = read(text)
    assert found is not None
    assert not problems
    assert condition(found, negated=True) == written
    assert bool(eval(written, {}, VALUES)) is not bool(evaluated(found, VALUES))
