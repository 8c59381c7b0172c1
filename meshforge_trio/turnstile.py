"""How the scopes of one process share it: whose turn is next, and how much it may be.

One thread decides for every scope of a process, and a store has one writer. While a tenant is alone its scopes take
whole batches. As soon as one of another tenant has had a turn lately, each takes slices: as many commands as it
decides in about a quarter of a millisecond, or in a fraction of what a turn takes besides, so that a slow disk leaves
slow handlers more than one at a time. Where turns on a store meet, the scope whose last turn is longest ago goes
first: before its own turn it waits for one of each other scope at most, and whoever sends little hardly waits for
whoever sends much.

A scope without commands costs nothing here: only those that had a turn within `LATELY_S` are remembered.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

import attrs
import trio

__all__ = ["LATELY_S", "Seat", "Turnstile"]

#: For how long after its last turn a scope is reckoned with, in seconds.
LATELY_S: Final = 10.0
#: What a slice takes to decide, at least. What else is done with it in the same thread comes to about twice that.
_SLICE_S: Final = 0.00025
#: And in proportion to what a turn takes besides: reading, the commit, its sync.
_SLICE_SHARE: Final = 0.25
_SLICE_MAX: Final = 4
#: How much of what was measured before is kept at each turn.
_KEPT: Final = 0.9


@attrs.define(eq=False)
class _Queue:
    """Turns on one store, one at a time."""

    inside: Seat | None = None
    waiting: dict[Seat, trio.Event] = attrs.field(factory=dict)
    turns: int = 0

    async def enter(self, seat: Seat) -> None:
        if self.inside is None:
            self.inside = seat
            return
        called = self.waiting[seat] = trio.Event()
        try:
            await called.wait()
        except trio.Cancelled:
            if self.waiting.pop(seat, None) is None:
                # Called in the very step in which it was cancelled.
                self._call_next()
            raise

    def leave(self, seat: Seat) -> None:
        self.turns += 1
        seat.served = self.turns
        self._call_next()

    def _call_next(self) -> None:
        self.inside = min(self.waiting, key=lambda each: each.served, default=None)
        if self.inside is not None:
            self.waiting.pop(self.inside).set()


class Turnstile:
    """Made by the runtime, one for a process."""

    def __init__(self) -> None:
        self._queues: dict[str, _Queue] = {}
        # The latest last.
        self._lately: OrderedDict[Seat, float] = OrderedDict()

    def seat(self, place: str, tenant: str, *, awaiting: bool = False) -> Seat:
        """One more scope of `tenant`, whose store writes to `place`; `awaiting` if its handlers may wait."""
        return Seat(self, self._queues.setdefault(place, _Queue()), tenant, awaiting)

    def shared_by(self, seat: Seat) -> bool:
        """Whether a scope of another tenant had a turn lately."""
        since = trio.current_time() - LATELY_S
        while self._lately and next(iter(self._lately.values())) < since:
            self._lately.popitem(last=False)
        return any(other.tenant != seat.tenant for other in self._lately)

    def taken_by(self, seat: Seat) -> None:
        """A scope asks for a turn."""
        self._lately[seat] = trio.current_time()
        self._lately.move_to_end(seat)


@attrs.define(eq=False)
class Seat:
    """One scope's place. Made by `Turnstile.seat`; `served` numbers its last turn among all of its store."""

    _turnstile: Turnstile
    _queue: _Queue
    tenant: str
    _awaiting: bool
    served: int = 0
    # As if a slice of the largest size had just taken its time.
    _commands: float = _SLICE_MAX
    _seconds: float = _SLICE_S
    _decided_s: float = 0.0
    _besides_s: float = 0.0

    def most(self, batch: int) -> int:
        """How many commands the next turn may be: `batch` while its tenant is alone, else a slice of it."""
        if not self._turnstile.shared_by(self):
            return batch
        seconds = max(_SLICE_S, _SLICE_SHARE * self._besides_s)
        return min(batch, max(1, min(_SLICE_MAX, int(seconds * self._commands / self._seconds))))

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Decide and commit a batch within, when it is this scope's turn.

        Nobody waits for handlers that may wait themselves: where they may, commits meet at the store alone.
        """
        self._turnstile.taken_by(self)
        if self._awaiting:
            yield
            return
        await self._queue.enter(self)
        began = trio.current_time()
        try:
            yield
        finally:
            self._queue.leave(self)
        besides = trio.current_time() - began - self._decided_s
        self._besides_s += (besides - self._besides_s) * (1 - _KEPT)

    @contextmanager
    def deciding(self, commands: int) -> Iterator[None]:
        """Measure what deciding costs this thread; not where other tasks run in between."""
        began = time.thread_time()
        yield
        if not self._awaiting:
            self._decided_s = time.thread_time() - began
            self._commands = self._commands * _KEPT + commands
            self._seconds = self._seconds * _KEPT + self._decided_s
