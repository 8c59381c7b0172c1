"""The probe of a worker under test: writes down every point it passes, and dies, stops or breaks the disk by plan."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final

from chaos.faults.disk import FullDisk
from chaos.faults.disk_errors import FailingDisk, Operation
from chaos.history import History
from chaos.plan import Rule
from meshforge_trio.points import Point

__all__ = ["FAILURES", "FaultProbe"]

#: What fails, by the actions that break a disk for good.
FAILURES: Final[Mapping[str, Operation]] = {"eio_read": "read", "eio_write": "write", "eio_sync": "sync"}


class FaultProbe:
    """Called at each point. Records its hit; when a rule says so, records the fault and then acts.

    What the kernel has taken survives SIGKILL, so a rule without its record did not fire. At rules of the server and
    the client, and at those about the store's file, this process stops itself until the harness has acted, so the
    schedule is exact.
    """

    def __init__(
        self,
        rules: Sequence[Rule],
        history: History,
        disk: FullDisk | None = None,
        failing: FailingDisk | None = None,
    ) -> None:
        """`rules` are those this worker's hits are counted for; `disk` is filled and `failing` broken by them."""
        self._rules: dict[tuple[str, int], list[Rule]] = {}
        for rule in rules:
            self._rules.setdefault((rule.place, rule.nth), []).append(rule)
        for together in self._rules.values():
            # Its own comes last: what it does may be the last thing it does.
            together.sort(key=lambda rule: rule.actor == "worker")
        self._history = history
        self._disk = disk
        self._failing = failing
        self._unreadable = False
        self._hits: Counter[Point] = Counter()

    def __call__(self, point: Point) -> None:
        self._hits[point] += 1
        nth = self._hits[point]
        self._history.write("point", point=point.value, nth=nth)
        if self._unreadable:
            self._fail("read")
        for rule in self._rules.get((point.value, nth), ()):
            self._history.write("fault", rule=str(rule))
            self._act(rule)

    def _act(self, rule: Rule) -> None:
        own = rule.action if rule.actor == "worker" else ""
        if own == "full":
            assert self._disk is not None
            assert rule.seconds is not None
            self._disk.on_healed = partial(self._history.write, "healed", rule=str(rule))
            self._disk.fill(rule.seconds)
        elif own in FAILURES:
            self._fail(FAILURES[own])
        else:
            os.kill(os.getpid(), signal.SIGKILL if own == "kill" else signal.SIGSTOP)

    def _fail(self, what: Operation) -> None:
        """Break the disk. What another thread had in its page cache when reads broke is forgotten at a later point."""
        assert self._failing is not None
        self._failing.fail(what)
        self._unreadable = self._unreadable or what == "read"
