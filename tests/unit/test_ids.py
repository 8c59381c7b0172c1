"""UUIDs of version 7: RFC 9562."""

from __future__ import annotations

import subprocess
import sys
import threading
import uuid
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from meshforge_trio.ids import UuidSource, uuid7

_MS = 1_000_000


@settings(deadline=None)
@given(st.lists(st.integers(0, (1 << 48) * _MS - 1), min_size=1, max_size=50), st.randoms(use_true_random=False))
def test_each_is_greater_than_the_one_before_whatever_the_clock_does(times: list[int], random: object) -> None:
    clock = iter(times)
    source = UuidSource(lambda: next(clock), random.randbytes)  # type: ignore[attr-defined]
    made = [source() for _ in times]
    assert all(a < b for a, b in pairwise(made))
    for n, one in enumerate(made):
        assert (one.version, one.variant) == (7, uuid.RFC_4122)
        assert one.int >> 80 == max(times[: n + 1]) // _MS


def test_an_overflowing_counter_borrows_from_the_next_millisecond() -> None:
    source = UuidSource(lambda: 5 * _MS, lambda n: b"\xff" * n)
    first = source()
    source._counter = (1 << 42) - 2
    last, over = source(), source()
    assert first < last < over
    assert (last.int >> 80, over.int >> 80) == (5, 6)
    assert over.version == 7


def test_threads_never_share_one() -> None:
    made: list[str] = []

    def make() -> None:
        made.extend([uuid7() for _ in range(2000)])

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 8000


_FORK = r"""
import os
from meshforge_trio import ids
ids._source._now_ns = lambda: 0
counter = ids._source().int >> 32
child = os.fork()
os.write(1, f"{child != 0} {(ids._source().int >> 32) - counter}\n".encode())
if child:
    os.waitpid(child, 0)
"""


def test_a_forked_child_does_not_count_on_from_its_parents_last() -> None:
    told = subprocess.run([sys.executable, "-c", _FORK], capture_output=True, text=True, timeout=30, check=True)
    steps = dict(line.split() for line in told.stdout.splitlines())
    assert steps["True"] == "1"
    assert steps["False"] != "1"
