"""Values as JSON carries them, taken as they are or not at all: cattrs by itself turns "abc" into three strings."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Final, get_args, get_origin

import cattrs
from cattrs.cols import homogenous_tuple_structure_factory, list_structure_factory

__all__ = ["add_exact_hooks", "is_exact"]

#: As `"12.50"`; no exponent, so that a number has few spellings and a short one is a small one.
_DECIMAL: Final = re.compile(r"-?(0|[1-9][0-9]{0,27})(\.[0-9]{1,28})?")


def add_exact_hooks(made: cattrs.Converter) -> None:
    """Let `made` structure `str`, `int` and `bool` from their own type alone, lists and tuples from lists, and
    `Decimal` from a string, into which it is unstructured."""
    for kind in (str, int, bool):
        made.register_structure_hook(kind, _same(kind))
    made.register_structure_hook(Decimal, _decimal)
    made.register_unstructure_hook(Decimal, lambda value: format(value, "f"))
    made.register_structure_hook_factory(_is_list, _from_list(list_structure_factory))
    made.register_structure_hook_factory(_is_tuple, _from_list(homogenous_tuple_structure_factory))


def is_exact(value: int | Decimal | None) -> bool:
    """Whether JSON carries a number so that it can be taken again: an integer of 64 bits, a decimal of few digits."""
    if isinstance(value, Decimal):
        return value.is_finite() and _DECIMAL.fullmatch(format(value, "f")) is not None
    return value is None or -(2**63) <= value < 2**63


def _same(kind: type) -> Callable[[Any, Any], Any]:
    def structure(value: Any, _: Any) -> Any:
        if type(value) is kind:
            return value
        raise TypeError(f"expected {kind.__name__}, got {type(value).__name__}")

    return structure


def _decimal(value: Any, _: Any) -> Decimal:
    if type(value) is str and _DECIMAL.fullmatch(value):
        return Decimal(value)
    raise TypeError(f'expected a decimal number as text, like "12.50", got {value!r:.60}')


def _is_list(kind: Any) -> bool:
    return get_origin(kind) is list


def _is_tuple(kind: Any) -> bool:
    return get_origin(kind) is tuple and get_args(kind)[-1:] == (...,)


def _from_list(factory: Callable[..., Callable[[Any, Any], Any]]) -> Callable[[Any, cattrs.Converter], Any]:
    def make(kind: Any, made: cattrs.Converter) -> Callable[[Any, Any], Any]:
        structure = factory(kind, made)

        def only_from_list(value: Any, asked: Any) -> Any:
            if type(value) is list:
                return structure(value, asked)
            raise TypeError(f"expected list, got {type(value).__name__}")

        return only_from_list

    return make
