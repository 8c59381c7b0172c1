"""Deciding a batch, without I/O: precedence, answers, duplicates, bytes that do not change."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import trio
from doubles import Desk, command, counter, event, outcomes, payload_of, told_by
from hypothesis import given
from hypothesis import strategies as st

from meshforge_trio.agent import Context, Event, Reply
from meshforge_trio.envelope import CommandEnvelope, JsonObject, decode_event
from meshforge_trio.errors import Refused
from meshforge_trio.plan import Plan


def names(plan: Plan) -> list[str]:
    return [output.name for output in plan.commit.outputs]


# --- precedence


def test_security_comes_before_the_key() -> None:
    desk = Desk()
    desk.take(command(1))
    incoming = desk.read(command(1, tenant="other"), subject="cmd.t.w.counter.add")
    plan = trio.run(desk.turn, incoming)
    assert outcomes(plan) == ["violation"]
    (output,) = plan.commit.outputs
    assert (output.subject, output.kind, output.entity_id) == ("evt.t.w.security.violation", "record", None)
    assert payload_of(output)["code"] == "scope_mismatch"
    assert "amount" not in output.body.decode()
    assert plan.commit.heads == []


def test_a_duplicate_comes_before_the_hold() -> None:
    desk = Desk()
    desk.take(command(1))
    desk.take(command(2, "explode"))
    assert outcomes(desk.take(command(1), command(3))) == ["duplicate", "held"]


def test_a_mismatch_comes_before_the_hold_and_the_version() -> None:
    desk = Desk()
    desk.take(command(1))
    desk.take(command(2, "explode"))
    plan = desk.take(command(9, idempotency_key="k1", payload={"amount": 5}, expected_version=77))
    assert outcomes(plan) == ["refused"]
    assert told_by(plan.verdicts[0])[1]["code"] == "idempotency_mismatch"


def test_a_hold_comes_before_the_version() -> None:
    desk = Desk()
    desk.take(command(1, "explode"))
    assert outcomes(desk.take(command(2, expected_version=77))) == ["held"]


def test_a_query_waits_for_nobody_and_has_no_version() -> None:
    desk = Desk()
    desk.take(command(1))
    plan = desk.take(command(2, "explode"), command(3, "get", idempotency_key=None, expected_version=77))
    assert outcomes(plan) == ["failed", "answered"]
    assert plan.verdicts[1].outputs[0].name == "found"


def test_the_version_comes_before_the_agent() -> None:
    plan = Desk().take(command(1, "explode", expected_version=1))
    assert outcomes(plan) == ["conflict"]


def test_poison_from_reading_comes_before_everything_but_duplicates() -> None:
    desk = Desk()
    plan = trio.run(desk.turn, desk.arrive("cmd.t.w.counter.add", b"[]"), desk.arrive("cmd.t.w.counter.add", b"[]"))
    assert outcomes(plan) == ["dead", "duplicate"]
    assert names(plan) == ["dead_letter", "dead_lettered"]


# --- answers


def test_events_carry_versions_and_ids_that_count() -> None:
    desk = Desk()
    desk.take(command(1))
    plan = desk.take(command(2, "twice"))
    assert [(o.event_id, o.version, payload_of(o).get("entity_version")) for o in plan.commit.outputs] == [
        ("c2_added", 2, 2),
        ("c2_added_2", 3, 3),
        ("c2_noted", 4, 4),
        ("c2_summed", None, 4),
    ]
    assert plan.commit.heads[0].version == 4
    assert desk.total() == 4


def test_every_command_has_an_answer() -> None:
    plan = Desk().take(command(1, "nothing"))
    assert told_by(plan.verdicts[0]) == ("accepted", {"action": "nothing", "entity_version": 0})


def test_without_an_entity_there_is_no_version() -> None:
    desk = Desk()
    plan = desk.take(command(1, entity_id=None))
    assert payload_of(plan.commit.outputs[0]) == {"amount": 1}
    assert (plan.commit.outputs[0].version, plan.commit.heads) == (None, [])
    refused = desk.take(command(2, entity_id=None, expected_version=0))
    assert told_by(refused.verdicts[0])[1]["code"] == "expected_version_without_entity"


def test_a_refusal_is_stored_under_its_key_and_beside_the_chain() -> None:
    desk = Desk()
    plan = desk.take(command(1), command(2, "refuse"), command(3))
    assert outcomes(plan) == ["decided", "refused", "decided"]
    assert told_by(plan.verdicts[1]) == (
        "refused",
        {"code": "no", "reason": "no", "field": "amount", "entity_version": 1},
    )
    assert [record.outcome for record in plan.commit.keys] == ["decided", "refused", "decided"]
    assert desk.heads["a"].version == 2


def test_queries_store_nothing() -> None:
    desk = Desk()
    plan = desk.take(command(1), command(2, "get", idempotency_key=None), command(3))
    assert [payload_of(o) for o in plan.verdicts[1].outputs] == [{"total": 1, "entity_version": 1}]
    assert [record.key for record in plan.commit.keys] == ["k1", "k3"]
    assert [message.msg_id for message in plan.answers] == [plan.verdicts[1].outputs[0].msg_id]
    only = desk.take(command(4, "get", idempotency_key=None))
    assert not only.writes


def test_a_query_that_is_refused_is_answered_so() -> None:
    agent = counter()

    @agent.query("ask")
    def ask(total: int, payload: JsonObject, ctx: Context) -> Reply:
        raise Refused("no", name="not_found")

    plan = Desk(agent).take(command(1, "ask", idempotency_key=None))
    assert (outcomes(plan), plan.answers[0].subject) == (["answered"], "evt.t.w.counter.not_found")
    assert not plan.writes


def test_a_query_that_decides_is_nonsense() -> None:
    agent = counter()
    agent.query("ask")(lambda total, payload, ctx: Event("added", {"amount": 1}))
    plan = Desk(agent).take(command(1, "ask", idempotency_key=None))
    assert outcomes(plan) == ["dead"]
    assert plan.verdicts[0].dead is not None
    assert plan.verdicts[0].dead.code == "nonsense"


# --- versions


def test_a_conflict_says_where_the_entity_stands_and_never_moves_it() -> None:
    desk = Desk()
    desk.take(command(1), command(2))
    plan = desk.take(command(3, expected_version=1), command(4, expected_version=2), command(5, expected_version=2))
    assert outcomes(plan) == ["conflict", "decided", "conflict"]
    name, payload = told_by(plan.verdicts[0])
    assert name == "conflict"
    assert set(payload) == {"entity_id", "expected_version", "current_version", "reason"}
    assert (payload["entity_id"], payload["expected_version"], payload["current_version"]) == ("a", 1, 2)
    assert plan.commit.outputs[0].subject == "evt.t.w.counter.conflict"
    assert told_by(plan.verdicts[2])[1]["current_version"] == 3
    assert desk.heads["a"].version == 3


def test_version_zero_is_an_entity_that_is_not_there() -> None:
    desk = Desk()
    assert outcomes(desk.take(command(1, expected_version=0), command(2, expected_version=0))) == [
        "decided",
        "conflict",
    ]


async def test_the_same_command_on_the_same_history_decides_the_same_bytes() -> None:
    desk = Desk()
    await desk.turn(desk.read(command(1)))
    for sent in (command(2, expected_version=5), command(3, "twice"), command(4, "refuse"), command(5, "send")):
        first, _ = await desk.decide(desk.read(sent))
        desk.now += 1000.0
        again, _ = await desk.decide(desk.read(sent))
        assert again.commit.outputs == first.commit.outputs
        assert again.commit.keys == first.commit.keys


# --- duplicates and mismatches


def test_a_duplicate_echoes_the_stored_bytes_and_stores_nothing() -> None:
    desk = Desk()
    first = desk.take(command(1, "twice"), command(2, "send"))
    plan = desk.take(command(9, "twice", idempotency_key="k1"), command(8, "send", idempotency_key="k2"))
    assert outcomes(plan) == ["duplicate", "duplicate"]
    assert not plan.writes
    told = [output for output in first.commit.outputs if output.kind != "command"]
    assert [(m.msg_id, m.body) for m in plan.echoes] == [(o.msg_id, o.body) for o in told]


def test_a_duplicate_in_the_same_batch_echoes_what_the_first_became() -> None:
    plan = Desk().take(command(1), command(2, idempotency_key="k1"), command(3))
    assert outcomes(plan) == ["decided", "duplicate", "decided"]
    assert [m.body for m in plan.echoes] == [plan.commit.outputs[0].body]
    assert len(plan.commit.keys) == 2


def test_a_mismatch_is_stored_once_and_the_first_outcome_stands() -> None:
    desk = Desk()
    other: dict[str, Any] = {"idempotency_key": "k1", "payload": {"amount": 9}}
    plan = desk.take(command(1), command(2, **other), command(3, **other))
    assert outcomes(plan) == ["decided", "refused", "duplicate"]
    assert (len(plan.commit.keys), len(plan.commit.mismatches)) == (1, 1)
    assert [m.body for m in plan.echoes] == [plan.verdicts[1].outputs[0].body]
    later = desk.take(command(4, **other), command(5, idempotency_key="k1", payload={"amount": 10}), command(1))
    assert outcomes(later) == ["duplicate", "refused", "duplicate"]
    assert later.echoes[0].body == plan.verdicts[1].outputs[0].body
    ids = [output.event_id for output in desk.outputs]
    assert len(set(ids)) == len(ids) == 3
    assert desk.total() == 1


@pytest.mark.parametrize(
    "change",
    [{"action": "twice"}, {"entity_id": "b"}, {"expected_version": 1}, {"payload": {"amount": 2}}],
)
def test_a_key_stands_for_its_whole_meaning(change: dict[str, Any]) -> None:
    desk = Desk()
    desk.take(command(1))
    assert outcomes(desk.take(attrs.evolve(command(1), id="c2", **change))) == ["refused"]


# --- events of others


def test_an_event_is_decided_once_and_answers_nobody() -> None:
    desk = Desk()
    plan = desk.take(event(1, idempotency_key="k"), event(1, idempotency_key="k"))
    assert outcomes(plan) == ["decided", "duplicate"]
    assert [output.kind for output in plan.commit.outputs] == ["event", "command"]
    assert decode_event(plan.commit.outputs[0].body).causation_id == "e1"
    assert desk.total() == 10


# --- batches


actions = st.sampled_from(["add", "twice", "refuse", "nothing", "send", "get", "poison"])
steps = st.tuples(
    actions,
    st.integers(1, 6),
    st.sampled_from(["a", "b", None]),
    st.none() | st.integers(0, 4),
    st.integers(1, 3),
)


def sent_in(step: tuple[str, int, str | None, int | None, int], number: int) -> CommandEnvelope:
    """A command whose key may have been used before, for the same or something else."""
    action, key, entity_id, version, amount = step
    return command(
        number,
        action,
        idempotency_key=None if action == "get" else f"k{key}",
        entity_id=entity_id,
        expected_version=version,
        payload={"amount": amount},
    )


@given(st.lists(steps, max_size=14), st.lists(st.integers(1, 5), min_size=14, max_size=14))
def test_it_does_not_matter_how_commands_fall_into_batches(
    chosen: list[tuple[str, int, str | None, int | None, int]], sizes: list[int]
) -> None:
    """One batch, or many with a fresh cache each: the same bytes, records and state."""
    commands = [sent_in(step, number) for number, step in enumerate(chosen)]
    whole, parts = Desk(), Desk()
    whole.take(*commands)
    left = list(commands)
    for size in sizes:
        now, left = left[:size], left[size:]
        parts.cache.clear()
        parts.take(*now)
    assert parts.outputs == whole.outputs
    assert parts.keys == whole.keys
    assert parts.mismatches == whole.mismatches
    assert {e: (h.version, h.chain) for e, h in parts.heads.items()} == {
        e: (h.version, h.chain) for e, h in whole.heads.items()
    }
    assert [parts.total(e) for e in ("a", "b")] == [whole.total(e) for e in ("a", "b")]


@given(st.lists(steps, max_size=14))
def test_a_second_sending_of_everything_stores_nothing(
    chosen: list[tuple[str, int, str | None, int | None, int]],
) -> None:
    desk = Desk()
    desk.take(*[sent_in(step, number) for number, step in enumerate(chosen)])
    stored = list(desk.outputs)
    # The poison among them is known by its key as well.
    plan = desk.take(*[sent_in(step, 100 + number) for number, step in enumerate(chosen)])
    assert {"answered", "duplicate"} >= set(outcomes(plan))
    assert desk.outputs == stored
