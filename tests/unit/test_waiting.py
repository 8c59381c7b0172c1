"""What waits, for whom, and how long."""

from __future__ import annotations

import attrs
import pytest
from doubles import SCOPE, command, counter, delivery
from hypothesis import given
from hypothesis import strategies as st

from meshforge_trio.envelope import encode
from meshforge_trio.intake import Incoming, read_delivery
from meshforge_trio.policy import RetryPolicy
from meshforge_trio.store.port import Attempt
from meshforge_trio.subjects import COMMANDS, EVENTS
from meshforge_trio.waiting import BEHIND_S, SOON_S, Waiting

HOLD = RetryPolicy(limit=3, delays_s=(1.0,))
SKIP = RetryPolicy(limit=3, delays_s=(1.0,), hold_entity=False)


def arrived(seq: int, entity_id: str | None = "a", key: str = "", stream: str | None = None) -> Incoming:
    body = encode(command(seq, entity_id=entity_id, idempotency_key=key or f"k{seq}"))
    sent = delivery("cmd.t.w.counter.add", body, seq)
    if stream is not None:
        sent.stream = stream
    return read_delivery(sent, SCOPE, counter())


def failing(key: str, entity_id: str | None = "a", next_at: float = 10.0) -> Attempt:
    return Attempt(key, entity_id, 1, next_at, 0.0, 0.0, "boom")


def test_nobody_waits_for_nothing() -> None:
    waiting = Waiting([], HOLD, 10)
    assert waiting.delay_s(arrived(1), 0.0) is None
    assert not waiting.overfull(10)
    assert waiting.attempt("k1") is None
    assert waiting.message("k1") is None
    assert waiting.failing_key("a") is None
    assert waiting.failing_key(None) is None


def test_a_failed_command_waits_for_its_time() -> None:
    waiting = Waiting([failing("k1")], HOLD, 10)
    assert waiting.delay_s(arrived(1), 4.0) == 6.0
    assert waiting.delay_s(arrived(1), 10.0) is None


def test_a_call_that_nobody_came_back_from_failed_like_any_other() -> None:
    """Its neighbours come first; but one that is out of attempts is given up at once."""
    died = Attempt("k1", "a", 1, 0.0, 4.0, 5.0, "")
    waiting = Waiting([died], HOLD, 10)
    assert 1.0 <= (waiting.delay_s(arrived(1), 5.0) or 0.0) <= 1.1
    assert waiting.delay_s(arrived(2), 5.0) == BEHIND_S
    assert waiting.delay_s(arrived(3, "b"), 5.0) is None
    exhausted = Waiting([attrs.evolve(died, attempts=2)], HOLD, 10)
    assert exhausted.delay_s(arrived(1), 5.0) is None


def test_whoever_holds_an_entity_waits_for_nobody_of_it() -> None:
    """An earlier one may have come back behind it: its key was free again, because it was redriven."""
    waiting = Waiting([failing("k2")], HOLD, 10)
    waiting.park(arrived(1))
    assert waiting.delay_s(arrived(1), 11.0) == SOON_S
    assert waiting.delay_s(arrived(2), 11.0) is None
    assert waiting.delay_s(arrived(3), 11.0) == SOON_S


def test_later_commands_of_the_entity_wait_behind_it() -> None:
    waiting = Waiting([failing("k1")], HOLD, 10)
    # Not for as long as the failing one: it may be given up before.
    assert waiting.delay_s(arrived(2), 4.0) == BEHIND_S
    assert waiting.delay_s(arrived(2), 9.5) == 0.5
    # Its time has come and it has not: soon, but not before it.
    assert waiting.delay_s(arrived(2), 11.0) == SOON_S
    assert waiting.delay_s(arrived(2, "b"), 4.0) is None
    assert waiting.delay_s(arrived(2, None), 4.0) is None
    waiting.end("k1")
    assert waiting.delay_s(arrived(2), 4.0) is None


def test_the_failing_one_is_known_again_after_a_restart() -> None:
    """Its row is read from the store, its message comes while it waits: then it can be given up."""
    waiting = Waiting([failing("k1")], HOLD, 10)
    assert waiting.message("k1") is None
    one = arrived(1)
    waiting.park(one)
    assert waiting.message("k1") is one


def test_with_skip_they_pass() -> None:
    waiting = Waiting([failing("k1")], SKIP, 10)
    assert waiting.delay_s(arrived(1), 4.0) == 6.0
    assert waiting.delay_s(arrived(2), 4.0) is None
    waiting.park(arrived(2))
    assert waiting.delay_s(arrived(3), 4.0) is None


def test_ending_another_failure_releases_nobody() -> None:
    """Rows from a time when failing commands were skipped: one entity, two of them."""
    waiting = Waiting([failing("k1"), failing("k2"), failing("k9", "b")], HOLD, 10)
    waiting.end("k2")
    assert waiting.failing_key("a") == "k1"
    again = Waiting([failing("k1"), failing("k2")], HOLD, 10)
    again.end("k1")
    assert again.failing_key("a") == "k2"
    again.end("k2")
    assert again.failing_key("a") is None
    again.end("k2")


def test_the_message_of_a_failure_is_kept_for_giving_it_up() -> None:
    waiting = Waiting([failing("k1")], HOLD, 10)
    first = arrived(1)
    assert waiting.message("k1") is None
    waiting.fail(failing("k1", next_at=20.0), first)
    assert waiting.message("k1") is first
    # A row that is written before the handler is called says nothing new about the message.
    waiting.fail(failing("k1", next_at=0.0), None)
    assert waiting.message("k1") is first
    waiting.end("k1")
    assert waiting.message("k1") is None


def test_a_later_sequence_never_passes_an_earlier_parked_one() -> None:
    waiting = Waiting([], HOLD, 10)
    waiting.park(arrived(5))
    assert waiting.delay_s(arrived(6), 0.0) == SOON_S
    assert waiting.delay_s(arrived(5), 0.0) is None
    assert waiting.delay_s(arrived(4), 0.0) is None
    assert waiting.delay_s(arrived(6, "b"), 0.0) is None
    # Another stream counts on its own.
    assert waiting.delay_s(arrived(6, stream=EVENTS), 0.0) is None
    waiting.unpark(arrived(5))
    assert waiting.delay_s(arrived(6), 0.0) is None


def test_what_this_turn_has_decided_is_not_waited_for() -> None:
    waiting = Waiting([], HOLD, 10)
    for seq in (4, 5):
        waiting.park(arrived(seq))
    assert waiting.delay_s(arrived(6), 0.0, {(COMMANDS, 4)}) == SOON_S
    assert waiting.delay_s(arrived(6), 0.0, {(COMMANDS, 4), (EVENTS, 5)}) == SOON_S
    assert waiting.delay_s(arrived(6), 0.0, {(COMMANDS, 4), (COMMANDS, 5)}) is None


def test_what_was_parked_is_known() -> None:
    waiting = Waiting([], HOLD, 10)
    waiting.park(arrived(5))
    assert waiting.was_parked(arrived(5))
    assert not waiting.was_parked(arrived(6))
    assert not waiting.was_parked(arrived(5, "b"))
    waiting.unpark(arrived(5))
    assert not waiting.was_parked(arrived(5))


@pytest.mark.parametrize(("parked", "more", "overfull"), [(0, 2, False), (0, 3, True), (2, 0, False), (2, 1, True)])
def test_no_more_may_wait_than_allowed(parked: int, more: int, overfull: bool) -> None:
    waiting = Waiting([], HOLD, 2)
    for seq in range(parked):
        waiting.park(arrived(seq + 1))
    assert waiting.overfull(more) == overfull


moves = st.lists(
    st.tuples(st.sampled_from(["park", "unpark"]), st.integers(1, 8), st.sampled_from(["a", "b", None])), max_size=40
)


@given(moves, st.integers(1, 9), st.sampled_from(["a", "b"]))
def test_the_count_and_the_order_follow_a_set(
    steps: list[tuple[str, int, str | None]], seq: int, entity_id: str
) -> None:
    waiting, model = Waiting([], HOLD, 10), set[tuple[int, str | None]]()
    for move, at, entity in steps:
        incoming = arrived(at, entity)
        if move == "park":
            waiting.park(incoming)
            model.add((at, entity))
        else:
            waiting.unpark(incoming)
            model.discard((at, entity))
        assert waiting.parked == len(model)
    earlier = any(at < seq for at, entity in model if entity == entity_id)
    assert (waiting.delay_s(arrived(seq, entity_id), 0.0) == SOON_S) == earlier
