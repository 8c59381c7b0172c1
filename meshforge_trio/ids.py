"""Our own ids: UUIDv7, so that they sort by time and sit together in an index."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable
from typing import Final

__all__ = ["UuidSource", "uuid7"]

_COUNTER_BITS: Final = 42
_TAIL_BITS: Final = 32


class UuidSource:
    """UUIDs of version 7 (RFC 9562, section 6.2 method 1), each greater than the one before, from any thread.

    48 bits of milliseconds, a counter of 42 bits that starts anew at random each millisecond, 32 random bits. When the
    clock goes back or the counter overflows, the time of the last id is kept or counted up.
    """

    def __init__(self, now_ns: Callable[[], int] = time.time_ns, random: Callable[[int], bytes] = os.urandom) -> None:
        self._now_ns = now_ns
        self._random = random
        self.restart()

    def restart(self) -> None:
        """Forget the last id. A forked child must: it would count on from its parent's."""
        self._lock = threading.Lock()
        self._ms = -1
        self._counter = 0

    def __call__(self) -> uuid.UUID:
        noise = int.from_bytes(self._random(10), "big")
        with self._lock:
            now = self._now_ns() // 1_000_000
            if now > self._ms:
                self._ms, self._counter = now, self._fresh(noise)
            else:
                self._counter += 1
                if self._counter >> _COUNTER_BITS:
                    self._ms, self._counter = self._ms + 1, self._fresh(noise)
            ms, counter = self._ms, self._counter
        value = (ms & 0xFFFF_FFFF_FFFF) << 80
        value |= 0x7 << 76 | (counter >> 30) << 64
        value |= 0b10 << 62 | (counter & 0x3FFF_FFFF) << _TAIL_BITS
        return uuid.UUID(int=value | noise & 0xFFFF_FFFF)

    @staticmethod
    def _fresh(noise: int) -> int:
        # The highest bit stays clear: at least 2^41 ids fit before the counter overflows.
        return noise >> _TAIL_BITS & (1 << _COUNTER_BITS - 1) - 1


_source = UuidSource()
os.register_at_fork(after_in_child=_source.restart)


def uuid7() -> str:
    """A new id as text."""
    return str(_source())
