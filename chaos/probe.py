"""The probe of a worker under test: writes down every point it passes, and dies, stops or fills the disk by plan."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Sequence
from functools import partial

from chaos.faults.disk import FullDisk
from chaos.history import History
from chaos.plan import Rule
from meshforge_trio.points import Point

__all__ = ["FaultProbe"]


class FaultProbe:
    """Called at each point. Records its hit; when a rule says so, records the fault and then acts.

    What the kernel has taken survives SIGKILL, so a rule without its record did not fire. At rules of the server and
    the client this process stops itself until the harness has acted, so the schedule is exact.
    """

    def __init__(self, rules: Sequence[Rule], history: History, disk: FullDisk | None = None) -> None:
        """`rules` are those this worker's hits are counted for."""
        self._rules: dict[tuple[str, int], list[Rule]] = {}
        for rule in rules:
            self._rules.setdefault((rule.place, rule.nth), []).append(rule)
        for together in self._rules.values():
            # Its own comes last: what it does may be the last thing it does.
            together.sort(key=lambda rule: rule.actor == "worker")
        self._history = history
        self._disk = disk
        self._hits: Counter[Point] = Counter()

    def __call__(self, point: Point) -> None:
        self._hits[point] += 1
        nth = self._hits[point]
        self._history.write("point", point=point.value, nth=nth)
        for rule in self._rules.get((point.value, nth), ()):
            self._history.write("fault", rule=str(rule))
            self._act(rule)

    def _act(self, rule: Rule) -> None:
        if rule.action == "full":
            assert self._disk is not None
            assert rule.seconds is not None
            self._disk.on_healed = partial(self._history.write, "healed", rule=str(rule))
            self._disk.fill(rule.seconds)
            return
        os.kill(os.getpid(), signal.SIGKILL if (rule.actor, rule.action) == ("worker", "kill") else signal.SIGSTOP)
