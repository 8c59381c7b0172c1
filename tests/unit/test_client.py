"""Parts of the client that need no server: matching answers, forgetting ids, cutting windows."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshforge_trio import outgoing
from meshforge_trio.answers import Answers, CommandDead, CommandRefused, Conflict, SecurityViolation, raise_if_failed
from meshforge_trio.envelope import CommandEnvelope, EventEnvelope, JsonObject, SecurityContext, encode, payload_hash
from meshforge_trio.feed import SeenIds

COMMAND = CommandEnvelope(
    id="c-1",
    tenant="t",
    workspace="w",
    agent="order",
    action="create",
    idempotency_key="k",
    security_context=SecurityContext("kim", "user"),
)
ANSWER = EventEnvelope(
    id="c-1_created",
    tenant="t",
    workspace="w",
    agent="order",
    name="created",
    idempotency_key="k",
    causation_id="c-1",
)


def heard(answers: Answers, event: EventEnvelope) -> None:
    answers.receive(b"", b"", None, encode(event))


@pytest.mark.parametrize(
    ("event", "taken"),
    [
        (ANSWER, True),
        (attrs.evolve(ANSWER, causation_id="somebody-elses-sending"), True),
        (attrs.evolve(ANSWER, idempotency_key="query:c-1"), True),
        (attrs.evolve(ANSWER, idempotency_key="raw:00", name="violation"), True),
        (attrs.evolve(ANSWER, idempotency_key="k2", causation_id="c-2"), False),
        (attrs.evolve(ANSWER, agent="payment"), False),
        (attrs.evolve(ANSWER, tenant="somebody_else"), False),
        (attrs.evolve(ANSWER, workspace="elsewhere"), False),
        (attrs.evolve(ANSWER, idempotency_key=None, causation_id=None), False),
    ],
)
def test_what_answers_a_call(event: EventEnvelope, taken: bool) -> None:
    answers = Answers()
    with answers.expect(COMMAND) as waiter:
        answers.receive(b"", b"", None, b"not json")
        heard(answers, event)
        assert (waiter.answer == event) is taken
        assert waiter.changed.is_set() is taken
    assert len(answers) == 0


def test_the_first_answer_stays() -> None:
    answers = Answers()
    with answers.expect(COMMAND) as waiter:
        answers.also(waiter, "c-9")
        heard(answers, ANSWER)
        heard(answers, attrs.evolve(ANSWER, name="shipped", causation_id="c-9"))
        assert waiter.answer == ANSWER
        assert len(answers) == 2
    assert len(answers) == 0


def test_somebody_elses_misuse_of_the_key_is_not_our_answer() -> None:
    def refusal(command: CommandEnvelope, cause: str) -> EventEnvelope:
        refused = f"{cause}_{payload_hash(command).hex()[:16]}_refused"
        code = {"code": "idempotency_mismatch"}
        return attrs.evolve(ANSWER, id=refused, name="refused", payload=code, causation_id=cause)

    other = attrs.evolve(COMMAND, id="c-2", payload={"other": True})
    answers = Answers()
    with answers.expect(COMMAND) as ours, answers.expect(other) as theirs:
        heard(answers, refusal(other, "c-2"))
        assert (ours.answer is None, theirs.answer is None) == (True, False)
        heard(answers, ANSWER)
        assert ours.answer == ANSWER
    with answers.expect(other) as again:
        heard(answers, refusal(other, "an-older-sending"))
        assert again.answer is not None


@pytest.mark.parametrize(
    ("name", "payload", "raised"),
    [
        ("created", {"entity_version": 1}, None),
        ("not_found", {"entity_version": 0}, None),
        ("created", {"code": "a", "reason": "b", "field": "c", "price": 1}, None),
        ("refused", {"code": "no", "reason": "because", "field": None}, CommandRefused),
        ("not_found", {"code": "not_found", "reason": "gone", "field": None, "entity_version": 3}, CommandRefused),
        ("conflict", {"expected_version": 1, "current_version": 2, "reason": "late"}, Conflict),
        ("dead_lettered", {"code": "attempts_exhausted", "reason": "x", "field": None, "attempts": 5}, CommandDead),
        ("violation", {"code": "bad_principal", "reason": "x"}, SecurityViolation),
    ],
)
def test_which_answers_are_failures(name: str, payload: JsonObject, raised: type[Exception] | None) -> None:
    event = attrs.evolve(ANSWER, name=name, payload=payload)
    if raised is None:
        raise_if_failed(event)
        return
    with pytest.raises(raised) as caught:
        raise_if_failed(event)
    assert payload["reason"] in str(caught.value)


@settings(deadline=None)
@given(st.lists(st.integers(0, 30)), st.integers(1, 8))
def test_seen_ids_are_remembered_up_to_their_bound(ids: Sequence[int], capacity: int) -> None:
    seen = SeenIds(capacity)
    last: dict[str, int] = {}
    for seq, n in enumerate(ids, 1):
        assert seen.add(f"{n}", seq) is (f"{n}" not in last)
        last.pop(f"{n}", None)
        last[f"{n}"] = seq
        while len(last) > capacity:
            del last[next(iter(last))]
        assert len(seen) == len(last)
        assert seen.recent(3) == list(last.items())[-3:]
        assert seen.oldest_seq == min(last.values())


@pytest.mark.parametrize("sizes", [[], [1], [3_000_000, 2_000_000, 1, 1], [1, 5_000_000, 1], [900_000] * 9])
def test_windows_are_bounded_in_bytes_and_keep_the_order(sizes: Sequence[int]) -> None:
    commands = [attrs.evolve(COMMAND, id=f"c-{n}", payload={"x": "y" * size}) for n, size in enumerate(sizes)]
    windows = list(outgoing.windows(commands))
    assert [message.msg_id for window in windows for message in window] == [command.id for command in commands]
    assert all(len(window) == 1 or sum(len(m.body) for m in window) <= 4 << 20 for window in windows)


def test_windows_are_bounded_in_number() -> None:
    commands = [attrs.evolve(COMMAND, id=f"c-{n}") for n in range(2049)]
    assert [len(window) for window in outgoing.windows(commands)] == [1024, 1024, 1]
