"""Checks that handlers share: whether the entity is there, whether a payload's field is within its bounds.

    @attrs.frozen(kw_only=True)
    class Reserve:
        quantity: int = attrs.field(validator=between(1, 1000))

    @inventory.command("reserve")
    def reserve(state: Item, payload: Reserve, ctx: Context) -> Reserved:
        sku = existing_entity(ctx)

Each raises `Refused`, so what it says is the answer to the command.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, Final

import attrs

from meshforge_trio.decisions import Context
from meshforge_trio.envelope import JsonObject, converter
from meshforge_trio.errors import Refused
from meshforge_trio.exact import is_exact

__all__ = ["as_json", "between", "existing_entity", "named_entity", "new_entity", "representable", "sized"]

Validator = Callable[[Any, "attrs.Attribute[Any]", Any], None]
Number = int | Decimal

_CONVERTER: Final = converter()


def named_entity(ctx: Context) -> str:
    """Which entity a command is for, be it there or not. Refuses `missing_field` if it names none."""
    if ctx.entity_id is None:
        raise Refused("this needs an entity_id", code="missing_field", field="entity_id")
    return ctx.entity_id


def new_entity(ctx: Context) -> str:
    """Which entity a command makes. Refuses `already_exists` if it has events, `missing_field` if none is named."""
    entity_id = named_entity(ctx)
    if ctx.version > 0:
        raise Refused(f"{entity_id!r} exists already", code="already_exists", field="entity_id")
    return entity_id


def existing_entity(ctx: Context) -> str:
    """Which entity a command changes. Refuses `not_found` if it has no events, `missing_field` if none is named."""
    entity_id = named_entity(ctx)
    if ctx.version == 0:
        raise Refused(f"{entity_id!r} does not exist", code="not_found", name="not_found")
    return entity_id


def between(at_least: Number | None = None, at_most: Number | None = None) -> Validator:
    """Validator of a number, bounds included. Absent optional fields pass."""
    return _bounded(lambda value: value, "", at_least, at_most)


def sized(at_least: int | None = None, at_most: int | None = None) -> Validator:
    """Validator of how many characters or items a field has, bounds included. Absent optional fields pass."""
    return _bounded(len, " characters or items", at_least, at_most)


def _bounded(measure: Callable[[Any], Number], unit: str, at_least: Number | None, at_most: Number | None) -> Validator:
    if at_least is None and at_most is None:
        raise ValueError("name at least one bound")

    def check(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if value is None:
            return
        measured = measure(value)
        if (at_least is None or measured >= at_least) and (at_most is None or measured <= at_most):
            return
        bounds = (
            f"{at_least} to {at_most}"
            if at_least is not None and at_most is not None
            else (f"at least {at_least}" if at_most is None else f"at most {at_most}")
        )
        raise Refused(
            f"{attribute.name} is {value!r:.60}; it must be {bounds}{unit}", code="bad_payload", field=attribute.name
        )

    return check


def representable(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    """Validator of a number that was computed, or of a list of such: JSON carries integers of 64 bits and decimals of
    28 digits on either side of the point. In a state it refuses the command whose event leads there.
    """
    for number in value if isinstance(value, tuple) else (value,):
        if not is_exact(number):
            raise Refused(
                f"{attribute.name} would be {number!s:.60}, which is more than it can hold",
                code="out_of_range",
                field=attribute.name,
            )


def as_json(fields: Mapping[str, Any]) -> JsonObject:
    """Values as JSON carries them: exact decimals as strings."""
    told: JsonObject = _CONVERTER.unstructure(dict(fields))
    return told
