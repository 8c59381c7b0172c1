"""Points: their order, and that nobody pays for them unless something is armed."""

from __future__ import annotations

import inspect

import pytest

from meshforge_trio.engine import RuntimeEngine
from meshforge_trio.points import Point, no_probe
from meshforge_trio.runtime import Runtime


def test_they_stand_in_the_order_of_the_protocol() -> None:
    turn = ["received", "before_store", "in_store", "after_store", "before_publish", "in_publish", "after_publish"]
    points = [str(point) for point in Point]
    at = points.index("received")
    assert points[at : at + 9] == [*turn, "before_ack", "after_ack"]
    session = ["after_lease", "after_reset", "before_recovery", "in_recovery", "after_recovery"]
    assert points[:at] == session
    assert len(set(points)) == len(points)


def test_a_point_is_called_by_its_own_name() -> None:
    assert all(point.value == point.name.lower() for point in Point)


@pytest.mark.parametrize("made", [Runtime, RuntimeEngine])
def test_unarmed_unless_somebody_arms_it(made: type) -> None:
    assert inspect.signature(made).parameters["probe"].default is no_probe


def test_the_probe_of_production_does_nothing() -> None:
    body = inspect.getsource(no_probe).strip().splitlines()
    assert len(body) == 2, "it has grown beyond its docstring"
    for point in Point:
        no_probe(point)
