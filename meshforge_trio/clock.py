"""Time as an input: the one place that reads clocks."""

from __future__ import annotations

import time
from typing import Protocol

__all__ = ["Clock", "SteadyClock", "SystemClock"]


class Clock(Protocol):
    """Two clocks: one that people agree on, one that nobody can set."""

    def now(self) -> float:
        """Wall clock, seconds since 1970 (UTC)."""

    def elapsed(self) -> float:
        """Seconds since some moment, counting suspension; never set back."""


class SystemClock:
    """The machine's clocks. `elapsed` is CLOCK_BOOTTIME where there is one (a suspended laptop's time passes)."""

    _id = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

    def now(self) -> float:
        return time.time()

    def elapsed(self) -> float:
        return time.clock_gettime(self._id)


class SteadyClock(SystemClock):
    """A wall clock that is read once: setting the machine's clock later neither stretches nor cuts what it measures."""

    def __init__(self) -> None:
        self._began = super().now() - self.elapsed()

    def now(self) -> float:
        return self._began + self.elapsed()
