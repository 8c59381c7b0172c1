"""Deciding what leads to a state: one that must not be is refused, an event that fits nothing is set aside."""

from __future__ import annotations

import attrs
from doubles import Desk, command, counter, outcomes, told_by

from meshforge_trio.agent import Agent, Context, Event
from meshforge_trio.envelope import JsonObject
from meshforge_trio.errors import Refused
from meshforge_trio.guards import between


@attrs.frozen
class Sized:
    amount: int = attrs.field(validator=between(1, 5))


def glass() -> Agent[int]:
    """The counter, which may be filled, and then must not be; and an event that has bounds of its own."""
    agent = counter()

    @agent.command("fill")
    def fill(total: int, payload: JsonObject, ctx: Context) -> list[Event]:
        return [Event("added", {"amount": 1}), Event("filled")]

    @agent.event("filled")
    def filled(total: int, event: JsonObject) -> int:
        raise Refused("there is no more room", code="full")

    @agent.command("size")
    def size(total: int, payload: JsonObject, ctx: Context) -> Event:
        return Event("sized", {"amount": 9})

    @agent.event("sized")
    def sized(total: int, event: Sized) -> int:
        return event.amount

    return agent


def test_what_leads_to_a_state_that_must_not_be_is_refused_as_a_whole() -> None:
    desk = Desk(glass())
    plan = desk.take(command(1), command(2, "fill"), command(3))
    assert outcomes(plan) == ["decided", "refused", "decided"]
    assert told_by(plan.verdicts[1])[1]["code"] == "full"
    assert (desk.total(), desk.heads["a"].version) == (2, 2)


def test_an_event_that_does_not_fit_its_class_is_a_mistake_of_the_handler() -> None:
    plan = Desk(glass()).take(command(1, "size"))
    assert outcomes(plan) == ["dead"]
    assert plan.commit.dead[0].code == "unappliable"
    assert plan.commit.dead[0].reason == "applying event 'sized' failed: Poison: amount is 9; it must be 1 to 5"
