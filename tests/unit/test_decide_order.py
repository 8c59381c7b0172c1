"""Deciding a batch when an entity is held: nobody of it passes another."""

from __future__ import annotations

from doubles import Desk, command, outcomes

from meshforge_trio.policy import RetryPolicy


def test_who_waits_for_an_earlier_one_is_not_passed_within_the_batch() -> None:
    """The earlier one may come back in the same batch, behind it: what comes later waits for both."""
    desk = Desk()
    desk.take(command(1, "explode"), command(2), command(4, entity_id="b"))
    desk.now += 10
    assert outcomes(desk.take(command(1, "explode"))) == ["dead"]
    plan = desk.take(command(3), command(2), command(5))
    assert outcomes(plan) == ["held", "decided", "held"]
    assert outcomes(desk.take(command(3), command(5))) == ["decided", "decided"]


def test_another_under_the_key_of_a_failing_one_does_not_pass_it() -> None:
    """Tried in its place, it would have its attempts, and in the end its key."""
    desk = Desk(policy=RetryPolicy(limit=9, delays_s=(1.0,), jitter=0.0))
    first, other = command(1, "explode"), command(1, payload={"amount": 7})
    assert outcomes(desk.take(first)) == ["failed"]
    for _ in range(2):
        desk.now += 10
        assert outcomes(desk.take(other)) == ["held"]
    assert outcomes(desk.take(other, first)) == ["held", "failed"]
    assert outcomes(desk.take(first)) == ["held"], "it has just failed"
    desk.now += 10
    assert outcomes(desk.take(first)) == ["failed"]
