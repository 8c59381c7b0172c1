"""The agent that keeps documents."""

from __future__ import annotations

from typing import Any

import pytest
from doubles import Desk, command, outcomes, told_by
from hypothesis import given
from hypothesis import strategies as st

from meshforge_trio.crud import crud_agent
from meshforge_trio.plan import Plan


def desk() -> Desk:
    return Desk(crud_agent("counter"))


def told(plan: Plan) -> tuple[str, dict[str, Any]]:
    name, payload = told_by(plan.verdicts[0])
    return name, dict(payload)


def test_a_document_from_creation_to_deletion() -> None:
    docs = desk()
    assert told(docs.take(command(1, "create", payload={"a": 1}))) == ("created", {"a": 1, "entity_version": 1})
    assert told(docs.take(command(2, "update", payload={"b": 2}))) == ("updated", {"b": 2, "entity_version": 2})
    found = told(docs.take(command(3, "get", idempotency_key=None)))
    assert found == ("found", {"a": 1, "b": 2, "entity_version": 2})
    assert told(docs.take(command(4, "delete"))) == ("deleted", {"entity_version": 3})
    gone = told(docs.take(command(5, "get", idempotency_key=None)))
    assert gone == ("not_found", {"entity_version": 3})
    assert told(docs.take(command(6, "create", payload={}))) == ("created", {"entity_version": 4})


def test_what_exists_is_not_created_again() -> None:
    docs = desk()
    docs.take(command(1, "create", payload={"a": 1}))
    plan = docs.take(command(2, "create", payload={"a": 2}))
    name, payload = told(plan)
    assert (name, payload["code"], payload["field"]) == ("refused", "already_exists", "entity_id")
    assert outcomes(plan) == ["refused"]
    assert docs.total() == {"a": 1}


@pytest.mark.parametrize("action", ["update", "delete"])
def test_what_does_not_exist_is_not_found(action: str) -> None:
    name, payload = told(desk().take(command(1, action, payload={"a": 1})))
    assert (name, payload["code"], payload["entity_version"]) == ("not_found", "not_found", 0)


@pytest.mark.parametrize("action", ["create", "update", "delete", "get"])
def test_without_an_entity_there_is_no_document(action: str) -> None:
    name, payload = told(desk().take(command(1, action, entity_id=None)))
    assert (name, payload["code"], payload["field"]) == ("refused", "missing_field", "entity_id")


def test_a_field_called_entity_version_is_not_kept() -> None:
    docs = desk()
    docs.take(command(1, "create", payload={"a": 1, "entity_version": 99}))
    docs.take(command(2, "update", payload={"entity_version": 98}))
    assert docs.total() == {"a": 1}


changes = st.lists(
    st.tuples(
        st.sampled_from(["create", "update", "delete"]), st.dictionaries(st.sampled_from("abc"), st.integers(0, 9))
    ),
    max_size=12,
)


@given(changes)
def test_it_follows_a_dictionary(steps: list[tuple[str, dict[str, int]]]) -> None:
    docs, model = desk(), None
    for number, (action, payload) in enumerate(steps):
        plan = docs.take(command(number, action, payload=payload))
        accepted = (model is None) == (action == "create")
        assert outcomes(plan) == ["decided" if accepted else "refused"]
        if accepted:
            model = None if action == "delete" else {**(model or {}), **payload}
        assert docs.total() == model
