"""Payload fields are taken as they are: nothing is read as something else."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Literal

import attrs
import cattrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshforge_trio.envelope import converter

KINDS: dict[str, Any] = {
    "tuple": tuple[str, ...],
    "list": list[str],
    "optional": tuple[int, ...] | None,
    "decimal": Decimal,
    "literal": Literal["a", "b"],
}


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("tuple", "abc"),
        ("tuple", {"a": 1}),
        ("tuple", ["a", 1]),
        ("list", "abc"),
        ("list", ("a",)),
        ("optional", "12"),
        ("optional", [True]),
        ("decimal", 1),
        ("decimal", 1.5),
        ("decimal", "1e5"),
        ("decimal", "01"),
        ("decimal", "NaN"),
        ("decimal", " 1"),
        ("decimal", "1" * 29),
        ("literal", True),
    ],
)
def test_nothing_is_read_as_something_else(kind: str, value: Any) -> None:
    for detailed in (False, True):
        with pytest.raises((TypeError, cattrs.BaseValidationError, cattrs.errors.CattrsError)):
            converter(detailed=detailed).structure(value, KINDS[kind])


@pytest.mark.parametrize(
    ("kind", "value", "held"),
    [
        ("tuple", ["a", "b"], ("a", "b")),
        ("tuple", [], ()),
        ("list", ["a"], ["a"]),
        ("optional", None, None),
        ("optional", [1], (1,)),
        ("decimal", "-12.50", Decimal("-12.50")),
    ],
)
def test_what_fits_is_taken(kind: str, value: Any, held: Any) -> None:
    assert converter().structure(value, KINDS[kind]) == held


@attrs.frozen
class Bill:
    amounts: tuple[Decimal, ...]


@given(
    st.lists(
        st.decimals(allow_nan=False, allow_infinity=False, places=6, min_value=-(10**12), max_value=10**12), max_size=4
    )
)
def test_decimals_come_back_to_the_digit(amounts: list[Decimal]) -> None:
    made = converter()
    bill = Bill(tuple(amounts))
    wire = made.unstructure(bill)
    assert all(isinstance(text, str) for text in wire["amounts"])
    assert [str(amount) for amount in made.structure(wire, Bill).amounts] == [format(a, "f") for a in amounts]


def test_an_error_says_where_it_is() -> None:
    with pytest.raises(cattrs.BaseValidationError) as caught:
        converter(detailed=True).structure({"amounts": ["1", "x"]}, Bill)
    assert cattrs.transform_error(caught.value, path="payload") == [
        "invalid value for type, expected Decimal @ payload.amounts[1]"
    ]
