"""The types of fields and their limits, as a PRD writes them."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Final, cast

from meshforge_trio.factory.model import Field, Kind, Limits, Position, TypeName
from meshforge_trio.factory.outline import Phrase
from meshforge_trio.factory.phrases import Cursor
from meshforge_trio.factory.problems import Unreadable, did_you_mean

__all__ = ["fault_of", "fits_kind", "limits_text", "read_kind", "read_limits", "start_of"]

_PLAIN: Final = ("text", "integer", "decimal", "boolean", "time", "duration", "id")
_USUAL: Final[Mapping[str, str]] = {
    "string": "text",
    "str": "text",
    "int": "integer",
    "number": "integer",
    "float": "decimal",
    "money": "decimal",
    "bool": "boolean",
    "date": "time",
    "datetime": "time",
    "timestamp": "time",
    "uuid": "id",
    "enum": "one of (`a`, `b`)",
    "array": "list of text",
}
_TYPES: Final = "text, integer, decimal, boolean, time, duration, id, one of (`a`, `b`), list of ..., optional ..."
_CHOICE_LENGTH_MAX: Final = 64
#: What is counted, for types whose limits do not speak of the value itself.
_COUNTED: Final[Mapping[str, str]] = {"text": "characters", "id": "characters", "list": "items", "duration": "seconds"}


def read_kind(cell: Phrase) -> Kind:
    """The type that a cell names.

    Raises:
        Unreadable: there is no such type.
    """
    cursor = Cursor(cell)
    kind = _kind(cursor)
    cursor.end()
    return kind


def _kind(cursor: Cursor) -> Kind:
    if cursor.said("list", "of"):
        inner = _kind(cursor)
        if inner.name in ("list", "optional"):
            raise Unreadable(cursor.phrase.where, f"a list of {inner}", "a list holds plain values")
        return Kind("list", item=inner)
    if cursor.said("optional"):
        inner = _kind(cursor)
        if inner.name == "optional":
            raise Unreadable(cursor.phrase.where, "an optional optional", "once is enough")
        return Kind("optional", item=inner)
    if cursor.said("one", "of"):
        return _one_of(cursor)
    word = cursor.plain(f"a type: {_TYPES}")
    name = word.text.casefold()
    if name not in _PLAIN:
        usual = _USUAL.get(name)
        meant = f"did you mean {usual!r}?" if usual else did_you_mean(name, (*_PLAIN, "list of", "optional", "one of"))
        raise Unreadable(word.where, f"unknown type {word.text!r}", meant or f"there is: {_TYPES}")
    return Kind(cast(TypeName, name))


def _one_of(cursor: Cursor) -> Kind:
    choices: list[str] = []
    brackets = cursor.said("(")
    for choice, value in cursor.pairs():
        if value is not None:
            raise Unreadable(value.where, "a choice has no value", "write: one of (`a`, `b`)")
        text = choice.text
        if text in choices or not 1 <= len(text) <= _CHOICE_LENGTH_MAX or not text.isprintable():
            raise Unreadable(choice.where, f"{text!r:.80} is no new choice", "use 1 to 64 letters, each choice once")
        choices.append(text)
    if brackets and not cursor.said(")"):
        raise cursor.wrong("')'")
    return Kind("one of", tuple(choices))


def read_limits(cell: Phrase, kind: Kind) -> Limits:
    """The bounds that a cell gives to a field of that type.

    Raises:
        Unreadable: it is no bound, or none for that type.
    """
    text = cell.source.replace("`", "").strip()
    if text in ("", "-", "required"):
        return Limits()
    inner = kind.item if kind.name == "optional" and kind.item is not None else kind
    unit = _COUNTED.get(inner.name, "")
    if inner.name not in ("integer", "decimal", *_COUNTED):
        raise Unreadable(cell.where, f"a field of type {kind} has no limits", "leave the cell empty")
    usage = f"write: `1..40{unit and ' '}{unit}`, `>= 1` or `<= 40`"
    if unit and text.endswith(unit):
        text = text.removesuffix(unit).strip()
    lower, upper = _bounds(text, cell.where, usage)
    limits = Limits(_number(lower, inner, cell.where, usage), _number(upper, inner, cell.where, usage))
    if limits.at_least is not None and limits.at_most is not None and limits.at_least > limits.at_most:
        raise Unreadable(cell.where, f"nothing is within {text!r}", "put the smaller number first")
    return limits


def _bounds(text: str, where: Position, usage: str) -> tuple[str, str]:
    if text.startswith(">="):
        return text[2:].strip(), ""
    if text.startswith("<="):
        return "", text[2:].strip()
    lower, dots, upper = (part.strip() for part in text.partition(".."))
    if dots and lower and upper:
        return lower, upper
    raise Unreadable(where, f"{text!r:.80} is no limit", usage)


def _number(text: str, kind: Kind, where: Position, usage: str) -> int | Decimal | None:
    if not text:
        return None
    try:
        number = Decimal(text)
        if not number.is_finite() or abs(number) >= 10**18:
            raise InvalidOperation
    except InvalidOperation as error:
        raise Unreadable(where, f"{text!r:.80} is no number of use here", usage) from error
    if kind.name == "decimal":
        return number
    if number != int(number) or (number < 0 and kind.name != "integer"):
        raise Unreadable(where, f"{text!r:.80} is no number of use here", usage)
    return int(number)


def start_of(kind: Kind) -> object:
    """What a field of a state holds that says nothing about its start."""
    if kind.name == "one of":
        return kind.choices[0]
    return _STARTS[kind.name]


_STARTS: Final[Mapping[str, object]] = {
    "text": "",
    "id": "",
    "integer": 0,
    "decimal": Decimal(0),
    "boolean": False,
    "time": 0,
    "duration": 0,
    "list": (),
    "optional": None,
}


def fits_kind(value: object, kind: Kind) -> bool:
    """Whether a value that an expression came to can be carried as that type."""
    if kind.name == "optional":
        return value is None or (kind.item is not None and fits_kind(value, kind.item))
    if kind.name == "list" and kind.item is not None:
        return type(value) is tuple and all(fits_kind(item, kind.item) for item in value)
    if kind.name == "one of":
        return value in kind.choices
    if kind.name == "id":
        return isinstance(value, str) and 1 <= len(value) <= 256
    if kind.name == "decimal":
        return isinstance(value, Decimal) and len(value.as_tuple().digits) <= 28
    if kind.name in ("integer", "time", "duration"):
        return type(value) is int and -(2**63) <= value < 2**63
    return type(value) is (bool if kind.name == "boolean" else str)


def fault_of(field: Field, value: object) -> str:
    """What is wrong with a command's field, as it would be refused; nothing if it is within its limits."""
    if value is None and field.kind.name == "optional":
        return ""
    inner = field.kind.item if field.kind.name == "optional" and field.kind.item is not None else field.kind
    if not fits_kind(value, inner):
        return f"{field.name} is no {field.kind}"
    counted = len(value) if isinstance(value, str | tuple) else value
    limits, unit = field.limits, _COUNTED.get(inner.name, "")
    assert counted is None or isinstance(counted, int | Decimal)
    if counted is not None and limits.at_least is not None and counted < limits.at_least:
        return f"{field.name} is below {limits.at_least} {unit}".rstrip()
    if counted is not None and limits.at_most is not None and counted > limits.at_most:
        return f"{field.name} is above {limits.at_most} {unit}".rstrip()
    return ""


def limits_text(limits: Limits, kind: Kind) -> str:
    """Limits as `read_limits` takes them."""
    inner = kind.item if kind.name == "optional" and kind.item is not None else kind
    unit = f" {_COUNTED[inner.name]}" if inner.name in _COUNTED else ""
    if limits.at_least is not None and limits.at_most is not None:
        return f"{limits.at_least}..{limits.at_most}{unit}"
    if limits.at_least is not None:
        return f">= {limits.at_least}{unit}"
    return f"<= {limits.at_most}{unit}" if limits.at_most is not None else ""
