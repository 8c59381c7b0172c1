"""The turnstile: whose turn is next, how much it may be, and that nobody is forgotten or waits for ever."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import pytest
import trio
import trio.testing

from meshforge_trio import turnstile
from meshforge_trio.turnstile import LATELY_S, Seat, Turnstile

BATCH = 512


def seats(count: int) -> list[Seat]:
    """Scopes of one process on one store."""
    shared = Turnstile()
    return [shared.seat("here", f"tenant-{number}") for number in range(count)]


async def had_turn(seat: Seat) -> None:
    async with seat.turn():
        await trio.lowlevel.checkpoint()


# -- how much ------------------------------------------------------------------------------------------------------


async def test_whoever_is_alone_takes_whole_batches(autojump_clock: trio.testing.MockClock) -> None:
    loud, *idle = seats(50)
    await had_turn(loud)
    assert loud.most(BATCH) == BATCH
    assert all(seat.most(BATCH) < BATCH for seat in idle)


async def test_whoever_is_not_takes_slices_until_the_other_has_been_silent_for_a_while(
    autojump_clock: trio.testing.MockClock,
) -> None:
    loud, calm = seats(2)
    await had_turn(calm)
    await trio.sleep(LATELY_S)
    await had_turn(loud)
    assert (loud.most(BATCH), loud.most(3)) == (4, 3)
    await trio.sleep(0.001)
    assert loud.most(BATCH) == BATCH


async def test_scopes_of_one_tenant_leave_each_other_whole_batches(autojump_clock: trio.testing.MockClock) -> None:
    shared = Turnstile()
    order, stock, stranger = (shared.seat("here", tenant) for tenant in ("acme", "acme", "zeta"))
    await had_turn(order)
    await had_turn(stock)
    assert (order.most(BATCH), stock.most(BATCH), stranger.most(BATCH)) == (BATCH, BATCH, 4)
    await had_turn(stranger)
    assert (order.most(BATCH), stock.most(BATCH)) == (4, 4)


async def test_it_is_the_last_turn_that_counts(autojump_clock: trio.testing.MockClock) -> None:
    loud, calm = seats(2)
    for seat in (calm, loud, calm):
        await had_turn(seat)
        await trio.sleep(LATELY_S / 2 - 1)
    # The loud one's only turn is longer ago than the calm one's second, and too long.
    await trio.sleep(3)
    assert calm.most(BATCH) == BATCH
    assert loud.most(BATCH) == 4


async def test_only_who_had_a_turn_lately_is_remembered(autojump_clock: trio.testing.MockClock) -> None:
    loud, *others = seats(50)
    for seat in others:
        await had_turn(seat)
    assert loud.most(BATCH) == 4
    assert len(loud._turnstile._lately) == 49
    await trio.sleep(LATELY_S + 1)
    assert loud.most(BATCH) == BATCH
    assert not loud._turnstile._lately


async def test_scopes_of_two_stores_share_the_process(autojump_clock: trio.testing.MockClock) -> None:
    shared = Turnstile()
    loud, calm = shared.seat("here", "loud"), shared.seat("there", "calm")
    await had_turn(calm)
    assert loud.most(BATCH) == 4


@pytest.mark.parametrize(
    ("seconds_each", "most"), [(1e-9, 4), (0.00025 / 4, 4), (0.00025 / 2, 2), (0.00025, 1), (1.0, 1)]
)
async def test_a_slice_is_what_is_decided_in_its_time(
    seconds_each: float, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(turnstile, "time", cast(Any, _Time(lambda: now)))
    loud, calm = seats(2)
    await had_turn(calm)
    for _ in range(200):
        with loud.deciding(10):
            now += 10 * seconds_each
    assert loud.most(BATCH) == pytest.approx(most, abs=1)
    assert loud.most(BATCH) >= 1


async def test_where_turns_take_long_slices_are_larger(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """With a disk that takes 6 ms to sync, 1.5 ms of deciding matter less, and smaller turns would cost much."""
    now = 0.0
    monkeypatch.setattr(turnstile, "time", cast(Any, _Time(lambda: now)))
    loud, calm = seats(2)
    for _ in range(200):
        async with loud.turn():
            with loud.deciding(10):
                now += 10 * 0.0004
            await trio.sleep(0.01)
        await had_turn(calm)
    assert loud.most(BATCH) == pytest.approx(0.0015 / 0.0004, abs=1)


async def test_what_passes_while_a_handler_waits_is_not_its_scopes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(turnstile, "time", cast(Any, _Time(lambda: now)))
    shared = Turnstile()
    waiting, calm = shared.seat("here", "waiting", awaiting=True), shared.seat("here", "calm")
    await had_turn(calm)
    with waiting.deciding(1):
        now += 5.0
    assert waiting.most(BATCH) == 4


class _Time:
    """Stands where the module `time` stands."""

    def __init__(self, thread_time: Callable[[], float]) -> None:
        self.thread_time = thread_time


# -- whose turn ----------------------------------------------------------------------------------------------------


class Log:
    """Takes turns, and writes down whose they were."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.inside = 0

    async def turns(self, name: str, seat: Seat, count: int = 1, seconds: float = 1.0) -> None:
        for _ in range(count):
            async with seat.turn():
                self.order.append(name)
                self.inside += 1
                assert self.inside == 1
                try:
                    await trio.sleep(seconds)
                finally:
                    self.inside -= 1


async def test_who_floods_gives_way_after_each_turn(autojump_clock: trio.testing.MockClock) -> None:
    log = Log()
    loud, calm = seats(2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.turns, "loud", loud, 8)
        await trio.sleep(0.5)
        nursery.start_soon(log.turns, "calm", calm, 3)
    assert "".join(name[0] for name in log.order) == "lclclclllll"


async def test_the_longest_unserved_goes_first_whoever_came_first(autojump_clock: trio.testing.MockClock) -> None:
    log = Log()
    a, b, c, d = seats(4)
    for seat in (d, c, b, a):
        await had_turn(seat)
    async with trio.open_nursery() as nursery:
        for name, seat in (("a", a), ("b", b), ("c", c), ("d", d)):
            nursery.start_soon(log.turns, name, seat)
            await trio.sleep(0.1)
    assert log.order == ["a", "d", "c", "b"]


async def test_before_a_turn_each_other_scope_has_one_at_most(autojump_clock: trio.testing.MockClock) -> None:
    """No starvation: ten floods, and somebody who comes now and then."""
    log = Log()
    calm, *loud = seats(11)
    async with trio.open_nursery() as floods:
        for i, seat in enumerate(loud):
            floods.start_soon(log.turns, f"loud-{i}", seat, 1_000)
        for _ in range(5):
            before = len(log.order)
            await log.turns("calm", calm)
            passed = log.order[before:-1]
            assert len(passed) == len(set(passed)) <= 10
            await trio.sleep(7.5)
        # Each of them, too, comes as often as the others.
        counts = [log.order.count(f"loud-{i}") for i in range(10)]
        assert max(counts) - min(counts) <= 1
        floods.cancel_scope.cancel()


async def test_a_turn_that_is_cancelled_or_fails_lets_the_next_in(autojump_clock: trio.testing.MockClock) -> None:
    log = Log()
    a, b, c = seats(3)
    with trio.move_on_after(0.5):
        await log.turns("a", a)
    with pytest.raises(RuntimeError, match="full"):
        async with b.turn():
            raise RuntimeError("full")
    await log.turns("c", c)
    assert log.order == ["a", "c"]


async def test_who_is_cancelled_while_waiting_is_not_called(autojump_clock: trio.testing.MockClock) -> None:
    log = Log()
    a, b, c = seats(3)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.turns, "a", a)
        await trio.sleep(0.1)
        with trio.move_on_after(0.1):
            await log.turns("b", b)
        nursery.start_soon(log.turns, "c", c)
    # Its scope goes on in its next session.
    await log.turns("b", b)
    assert log.order == ["a", "c", "b"]


async def test_who_is_cancelled_at_the_moment_of_being_called_passes_it_on(
    autojump_clock: trio.testing.MockClock,
) -> None:
    # Which of the two happens first in that step is Trio's choice, and it varies.
    for _ in range(50):
        log = Log()
        a, b, c = seats(3)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(log.turns, "a", a)
            await trio.sleep(0.5)
            with trio.move_on_after(0.5):
                await log.turns("b", b)
        with trio.fail_after(5):
            await log.turns("c", c)
        assert log.order[-1] == "c"


async def test_nobody_waits_for_handlers_that_wait(autojump_clock: trio.testing.MockClock) -> None:
    shared = Turnstile()
    waiting, calm = shared.seat("here", "waiting", awaiting=True), shared.seat("here", "calm")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Log().turns, "waiting", waiting, 1, math.inf)
        await trio.sleep(0.1)
        with trio.fail_after(5):
            await had_turn(calm)
        nursery.cancel_scope.cancel()


async def test_turns_on_different_stores_do_not_wait_for_each_other(autojump_clock: trio.testing.MockClock) -> None:
    shared = Turnstile()
    stuck, calm = shared.seat("here", "loud"), shared.seat("there", "calm")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Log().turns, "stuck", stuck, 1, math.inf)
        await trio.sleep(0.1)
        with trio.fail_after(5):
            await had_turn(calm)
        nursery.cancel_scope.cancel()
