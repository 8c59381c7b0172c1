"""Verdicts on errors, and when to try again."""

from __future__ import annotations

from itertools import islice

import attrs
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
from meshforge_trio.policy import BACKOFF_MAX_S, Disposition, RetryPolicy, backoff, disposition, refusal, worst

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
    policy = RetryPolicy(delays_s=(1.0, 5.0, 10.0), jitter=0.0)
    assert [policy.delay_s(n, "k1") for n in range(1, 6)] == [1.0, 5.0, 10.0, 10.0, 10.0]


@given(policies, st.integers(1, 100), st.text())
def test_every_attempt_has_a_delay(policy: RetryPolicy, attempts: int, key: str) -> None:
    base = attrs.evolve(policy, jitter=0.0).delay_s(attempts, key)
    assert base in policy.delays_s
    assert base <= policy.delay_s(attempts, key) <= base * (1 + policy.jitter) * (1 + 1e-12)
    assert policy.delay_s(attempts, key) == policy.delay_s(attempts, key)


def test_what_failed_together_is_not_tried_together() -> None:
    policy = RetryPolicy(jitter=0.5)
    delays = {policy.delay_s(1, f"k{n}") for n in range(100)}
    assert len(delays) == 100
    assert max(delays) - min(delays) > 0.4


class Mine(ValueError):
    pass


@pytest.mark.parametrize(
    ("policy", "error", "meaning"),
    [
        (RetryPolicy(), ValueError(), "transient"),
        (RetryPolicy(), Poison("x"), "poison"),
        (RetryPolicy(), Refused("x"), "refused"),
        (RetryPolicy(), Transient(), "transient"),
        (RetryPolicy(poison=("ValueError",)), Mine(), "poison"),
        (RetryPolicy(poison=("builtins.ValueError",)), ValueError(), "poison"),
        (RetryPolicy(poison=(ValueError,), transient=(Mine,)), Mine(), "transient"),
        (RetryPolicy(poison=(Mine,), refused=("ValueError",)), Mine(), "poison"),
        (RetryPolicy(refused=("LookupError",)), KeyError("x"), "refused"),
        (RetryPolicy(refused=("Exception",)), Poison("x"), "poison"),
        (RetryPolicy(transient=("Poison",)), Poison("x"), "poison"),
    ],
)
def test_what_an_error_of_a_handler_means(policy: RetryPolicy, error: Exception, meaning: str) -> None:
    assert policy.classify(error) == meaning


def test_a_refusal_by_policy_keeps_the_text() -> None:
    own = Refused("no", code="mine")
    assert refusal(own) is own
    made = refusal(KeyError("x"))
    assert (made.reason, made.code) == ("'x'", "KeyError")


@given(policies)
def test_a_handler_is_called_at_least_limit_less_one_times(policy: RetryPolicy) -> None:
    counted = [n for n in range(policy.limit + 1) if not policy.exhausted(n)]
    assert counted == list(range(policy.limit - 1))


def test_without_a_limit_it_is_called_for_as_long_as_it_takes() -> None:
    assert not any(RetryPolicy(limit=0).exhausted(attempts) for attempts in (0, 1, 5, 1_000, 10**6))


def test_back_off_doubles_up_to_its_bound() -> None:
    assert list(islice(backoff(), 4)) == [0.05, 0.1, 0.2, 0.4]
    assert list(islice(backoff(), 30))[-1] == BACKOFF_MAX_S
    assert max(islice(backoff(1.0), 30)) == 1.0
