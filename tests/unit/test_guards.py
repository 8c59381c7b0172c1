"""Guards: what they let pass, and what they refuse with which code."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import attrs
import orjson
import pytest

from meshforge_trio.agent import Agent, Context, Event
from meshforge_trio.envelope import CommandEnvelope, converter
from meshforge_trio.errors import Refused
from meshforge_trio.guards import as_json, between, existing_entity, named_entity, new_entity, representable, sized


def context(version: int, entity: str | None = "o-1") -> Context:
    return Context(now=0.0, entity_id=entity, version=version)


@pytest.mark.parametrize(
    ("guard", "version", "code", "name"),
    [(new_entity, 1, "already_exists", "refused"), (existing_entity, 0, "not_found", "not_found")],
    ids=["new", "existing"],
)
def test_an_entity_has_to_be_there_or_not(guard: Any, version: int, code: str, name: str) -> None:
    assert guard(context(1 - version)) == "o-1"
    with pytest.raises(Refused) as refused:
        guard(context(version))
    assert (refused.value.code, refused.value.name) == (code, name)


@pytest.mark.parametrize("guard", [new_entity, existing_entity, named_entity], ids=["new", "existing", "named"])
def test_an_entity_has_to_be_named(guard: Any) -> None:
    with pytest.raises(Refused) as refused:
        guard(context(0, None))
    assert (refused.value.code, refused.value.field) == ("missing_field", "entity_id")
    assert named_entity(context(0)) == named_entity(context(7)) == "o-1"


@attrs.frozen(kw_only=True)
class Asked:
    count: int = attrs.field(default=1, validator=between(1, 5))
    price: Decimal = attrs.field(default=Decimal(1), validator=between(Decimal("0.5")))
    share: int | None = attrs.field(default=None, validator=between(at_most=100))
    word: str = attrs.field(default="a", validator=sized(1, 3))
    tags: tuple[str, ...] = attrs.field(default=("a",), validator=sized(1))


@pytest.mark.parametrize(
    ("field", "value"),
    [("count", 1), ("count", 5), ("price", Decimal("0.50")), ("share", 100), ("share", None), ("word", "abc")],
)
def test_what_is_within_the_bounds_passes(field: str, value: Any) -> None:
    assert getattr(Asked(**{field: value}), field) == value


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("count", 0, "count is 0; it must be 1 to 5"),
        ("count", 6, "count is 6; it must be 1 to 5"),
        ("price", Decimal("0.49"), "price is Decimal('0.49'); it must be at least 0.5"),
        ("share", 101, "share is 101; it must be at most 100"),
        ("word", "", "word is ''; it must be 1 to 3 characters or items"),
        ("word", "abcd", "word is 'abcd'; it must be 1 to 3 characters or items"),
        ("tags", (), "tags is (); it must be at least 1 characters or items"),
    ],
)
def test_what_is_not_is_refused_by_name(field: str, value: Any, said: str) -> None:
    with pytest.raises(Refused) as refused:
        Asked(**{field: value})
    assert (refused.value.reason, refused.value.code, refused.value.field) == (said, "bad_payload", field)


@attrs.frozen(kw_only=True)
class Reckoned:
    count: int | None = attrs.field(default=0, validator=representable)
    price: Decimal = attrs.field(default=Decimal(0), validator=representable)
    sums: tuple[int, ...] = attrs.field(default=(), validator=representable)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("count", 2**63 - 1),
        ("count", -(2**63)),
        ("count", None),
        ("price", Decimal("9" * 28 + "." + "9" * 28)),
        ("price", Decimal("1E+27")),
        ("sums", (1, 2**63 - 1)),
    ],
)
def test_what_json_carries_can_be_held_and_comes_back(field: str, value: Any) -> None:
    held = Reckoned(**{field: value})
    carried = orjson.loads(orjson.dumps(converter().unstructure(held)))
    assert converter().structure(carried, Reckoned) == held


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("count", 2**63),
        ("count", -(2**63) - 1),
        ("price", Decimal("1E+28")),
        ("price", Decimal("1E-29")),
        ("price", Decimal("NaN")),
        ("sums", (1, 2**63)),
    ],
)
def test_a_number_that_became_too_large_is_refused(field: str, value: Any) -> None:
    with pytest.raises(Refused, match=f"{field} would be") as refused:
        Reckoned(**{field: value})
    assert (refused.value.code, refused.value.field) == ("out_of_range", field)


def test_a_guard_without_bounds_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="at least one bound"):
        between()


def test_the_refusal_of_a_guard_is_the_answer_of_the_agent() -> None:
    agent: Agent[int] = Agent("a", state=int, initial=int)

    @agent.command("ask")
    def ask(state: int, payload: Asked, ctx: Context) -> Event:
        return Event("asked")

    def decide(payload: dict[str, Any]) -> None:
        agent.receive(
            0, CommandEnvelope(id="c", tenant="t", workspace="w", agent="a", action="ask", payload=payload), context(0)
        )

    decide({"count": 3, "price": "0.75"})
    with pytest.raises(Refused) as refused:
        decide({"count": 9})
    assert (refused.value.reason, refused.value.field) == ("count is 9; it must be 1 to 5", "count")


def test_values_go_to_json_as_it_carries_them() -> None:
    assert as_json({"price": Decimal("19.90"), "tags": ("a", "b"), "none": None}) == {
        "price": "19.90",
        "tags": ["a", "b"],
        "none": None,
    }
