"""Verdicts on errors, and when to try again."""

from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshforge_trio import errors
from meshforge_trio.errors import (
    Fenced,
    MeshForgeError,
    Misconfigured,
    Poison,
    Refused,
    SessionLost,
    Stale,
    StoreBroken,
    StoreFull,
    Transient,
)
from meshforge_trio.policy import BACKOFF_MAX_S, Disposition, RetryPolicy, backoff, disposition, worst

policies = st.builds(
    RetryPolicy, limit=st.integers(2, 50), delays_s=st.lists(st.floats(0.001, 100), min_size=1, max_size=6).map(tuple)
)


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (Fenced(), Disposition.STAND_BY),
        (SessionLost(), Disposition.RESTART),
        (Stale(), Disposition.RESTART),
        (StoreFull(), Disposition.WAIT_FOR_SPACE),
        (Misconfigured(), Disposition.REFUSE_TO_START),
        (StoreBroken(), Disposition.END_PROCESS),
        (Poison("x"), Disposition.CRASHED),
        (Refused("x"), Disposition.CRASHED),
        (Transient(), Disposition.RESTART),
        (ValueError(), Disposition.CRASHED),
        (KeyboardInterrupt(), Disposition.CRASHED),
    ],
)
def test_what_an_error_makes_the_supervisor_do(error: BaseException, verdict: Disposition) -> None:
    assert disposition(error) is verdict


def test_every_error_of_ours_has_a_verdict() -> None:
    for name in errors.__all__:
        kind = getattr(errors, name)
        assert issubclass(kind, MeshForgeError)
        assert isinstance(disposition(kind("x")), Disposition)


def test_the_severest_of_a_group_decides() -> None:
    broken = StoreBroken()
    group = BaseExceptionGroup(
        "all", [SessionLost(), ExceptionGroup("in", [Fenced(), broken]), KeyboardInterrupt(), Misconfigured()]
    )
    assert worst(group) is broken
    assert worst(Fenced()).__class__ is Fenced


def test_a_loss_does_not_hide_a_crash() -> None:
    crash = ValueError()
    assert worst(ExceptionGroup("", [SessionLost(), Fenced(), crash])) is crash


def test_the_delays_are_taken_in_turn_and_the_last_repeats() -> None:
    policy = RetryPolicy(delays_s=(1.0, 5.0, 10.0))
    assert [policy.delay_s(n) for n in range(1, 6)] == [1.0, 5.0, 10.0, 10.0, 10.0]


@given(policies, st.integers(1, 100))
def test_every_attempt_has_a_delay(policy: RetryPolicy, attempts: int) -> None:
    assert policy.delay_s(attempts) in policy.delays_s


@given(policies)
def test_a_handler_is_called_at_least_limit_less_one_times(policy: RetryPolicy) -> None:
    counted = [n for n in range(policy.limit + 1) if not policy.exhausted(n)]
    assert counted == list(range(policy.limit - 1))


def test_back_off_doubles_up_to_its_bound() -> None:
    assert list(islice(backoff(), 4)) == [0.05, 0.1, 0.2, 0.4]
    assert list(islice(backoff(), 30))[-1] == BACKOFF_MAX_S
    assert max(islice(backoff(1.0), 30)) == 1.0
