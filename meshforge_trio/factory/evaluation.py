"""What an expression comes to, given what its names stand for."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from functools import lru_cache
from types import CodeType, SimpleNamespace
from typing import Any, Final

from meshforge_trio.factory.model import Expression, Message

__all__ = ["evaluated", "record", "sentence"]

_FUNCTIONS: Final[Mapping[str, Any]] = {
    "__builtins__": {},
    "Decimal": Decimal,
    "len": len,
    "min": min,
    "max": max,
    "abs": abs,
    "sum": sum,
}


@lru_cache(maxsize=4096)
def _compiled(python: str) -> CodeType:
    return compile(python, "<expression>", "eval")


def evaluated(expression: Expression, names: Mapping[str, Any]) -> Any:
    """The value of an expression; `names` holds those that it uses."""
    # Only what the checker of expressions has written gets here: names, operators and the functions above.
    return eval(_compiled(expression.python), {**_FUNCTIONS, **names})  # noqa: S307


def record(values: Mapping[str, Any]) -> SimpleNamespace:
    """Values as something with attributes, as handlers have them."""
    return SimpleNamespace(**values)


def sentence(message: Message, names: Mapping[str, Any]) -> str:
    """A message with its expressions filled in."""
    return "".join(part if isinstance(part, str) else str(evaluated(part, names)) for part in message.parts)
