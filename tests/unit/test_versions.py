"""Versions against a dictionary: whatever is expected of whom in whatever batches, the outcome is the model's."""

from __future__ import annotations

from collections.abc import Sequence

import trio
from doubles import Desk, command, outcomes, told_by
from hypothesis import given
from hypothesis import strategies as st

from meshforge_trio.plan import Plan

#: Entity, expected version, amount, and whether a new batch begins here.
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c"]), st.one_of(st.none(), st.integers(0, 6)), st.integers(-5, 5), st.booleans()
    ),
    min_size=1,
    max_size=40,
)


@given(STEPS)
def test_versions_and_sums_are_those_of_a_dictionary(steps: Sequence[tuple[str, int | None, int, bool]]) -> None:
    desk = Desk()
    versions: dict[str, int] = {}
    sums: dict[str, int] = {}
    batch = []
    wanted: list[tuple[str, int]] = []
    plans: list[Plan] = []
    for number, (entity, expected, amount, ends) in enumerate(steps, 1):
        batch.append(
            desk.read(command(number, entity_id=entity, expected_version=expected, payload={"amount": amount}))
        )
        version = versions.get(entity, 0)
        if expected in (None, version):
            versions[entity] = version + 1
            sums[entity] = sums.get(entity, 0) + amount
            wanted.append(("decided", version + 1))
        else:
            wanted.append(("conflict", version))
        if ends or number == len(steps):
            plans.append(trio.run(desk.turn, *batch))
            batch = []
    verdicts = [verdict for plan in plans for verdict in plan.verdicts]
    assert [outcome for plan in plans for outcome in outcomes(plan)] == [outcome for outcome, _ in wanted]
    for verdict, (outcome, version) in zip(verdicts, wanted, strict=True):
        told = told_by(verdict)[1]
        assert told["current_version" if outcome == "conflict" else "entity_version"] == version
        assert "agent_version" not in told
    assert {entity: desk.total(entity) for entity in versions} == sums
