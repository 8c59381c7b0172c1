"""The probe that kills: counts the hits of every point and ends the process at the planned one."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Sequence

from chaos.plan import Rule
from meshforge_trio.points import Point

__all__ = ["KillProbe"]

_SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


class KillProbe:
    """Called at each point; kills or stops its own process when a rule says so.

    The firing is written to `record` (a descriptor opened for appending) before the signal: what the kernel has
    taken survives SIGKILL, so a rule without its line did not fire.
    """

    def __init__(self, rules: Sequence[Rule], record: int) -> None:
        self._rules = {(rule.point, rule.nth): rule for rule in rules}
        self._record = record
        self._hits: Counter[Point] = Counter()

    def __call__(self, point: Point) -> None:
        self._hits[point] += 1
        rule = self._rules.get((point, self._hits[point]))
        if rule is None:
            return
        os.write(self._record, f"{rule}\n".encode())
        os.kill(os.getpid(), _SIGNALS[rule.action])
