"""What a process counts: plain numbers, one set per scope, added to once per turn.

Nothing here locks, formats or looks at a clock; `health_server` shows it, as a report and in the format of Prometheus.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from typing import Final, Literal

import attrs

from meshforge_trio.errors import MeshForgeError, SessionLost, Transient
from meshforge_trio.subjects import Scope

__all__ = ["Histogram", "Phase", "WorkerMetrics", "ScopeMetrics", "reason_of"]

#: What an engine is doing: beginning a session, waiting for the lease, comparing store and streams, serving.
Phase = Literal["starting", "standing_by", "recovering", "serving"]

#: Upper bounds of the buckets of a turn's size, in commands, and of its duration, in seconds.
_SIZES: Final = (1.0, 4.0, 16.0, 64.0, 256.0, 512.0, 1024.0, 4096.0)
_DURATIONS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0)
_CRASHED: Final = "crashed"
#: Longer than the longest wait between two tries of a session, in seconds.
_FULL_S: Final = 15.0


@attrs.define(eq=False)
class Histogram:
    """How often a value fell between two bounds. `counts` has one place more, for what is above the last bound."""

    bounds: tuple[float, ...]
    counts: list[int] = attrs.field(init=False)
    total: float = 0.0

    def __attrs_post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def add(self, value: float) -> None:
        """Count one value; one that equals a bound belongs below it."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


@attrs.define(eq=False)
class ScopeMetrics:
    """What the engine of one scope has done since its process began.

    `outcomes` counts what became of deliveries (`decided`, `conflict`, `duplicate`, `failed`, `held`, ...), `dead` dead
    letters by code, `republished` outputs that recovery found missing, `lost` ended sessions by reason. `full` is what
    the store last refused a commit with, at second `full_at`; "" once it took one again.
    """

    phase: Phase = "starting"
    epoch: int = 0
    outcomes: Counter[str] = attrs.field(factory=Counter)
    dead: Counter[str] = attrs.field(factory=Counter)
    republished: int = 0
    sessions: int = 0
    lost: Counter[str] = attrs.field(factory=Counter)
    takeovers: int = 0
    sizes: Histogram = attrs.field(factory=lambda: Histogram(_SIZES))
    durations: Histogram = attrs.field(factory=lambda: Histogram(_DURATIONS))
    full: str = ""
    full_at: float = 0.0

    def committed(self, outcomes: Iterable[str], dead: Iterable[str], *, wrote: bool) -> None:
        """Count a committed turn: what became of its deliveries, and the codes of its dead letters."""
        self.outcomes.update(outcomes)
        self.dead.update(dead)
        if wrote:
            self.full = ""

    def settled(self, size: int, duration_s: float) -> None:
        """Count a finished turn of `size` deliveries."""
        self.sizes.add(size)
        self.durations.add(duration_s)

    def leased(self, epoch: int, *, taken_over: bool) -> None:
        """Count a session that begins under a new term."""
        self.phase = "recovering"
        self.epoch = epoch
        self.sessions += 1
        self.takeovers += taken_over

    def ended(self, error: BaseException, at: float) -> None:
        """Count a session that an error ended at second `at`."""
        self.phase = "starting"
        self.lost[reason_of(error)] += 1
        # What a handler raises ends no session, so this was the store: full, or locked by somebody.
        if isinstance(error, Transient) and not isinstance(error, SessionLost):
            self.full, self.full_at = str(error), at


@attrs.define(eq=False)
class WorkerMetrics:
    """What one process does and has counted at one site. Moments are wall-clock seconds.

    `stopped` is why the process serves the site no more while it serves others, "" while it does. `store_open` turns
    true when the store could be opened; `store_refused` is why the lease could not be renewed the last time, "" when it
    was. `broker_since` is when the running broker session began, `None` without one; `broker_error` how the last one
    ended. `crashes` counts errors that nobody foresaw, of engines and sessions.
    """

    worker: int = 0
    started_at: float = 0.0
    stopping: bool = False
    stopped: str = ""
    store_open: bool = False
    store_refused: str = ""
    broker_since: float | None = None
    broker_error: str = ""
    broker_sessions: int = 0
    broker_lost: Counter[str] = attrs.field(factory=Counter)
    crashes: int = 0
    last_crash: str = ""
    scopes: dict[Scope, ScopeMetrics] = attrs.field(factory=dict)

    def connected(self, at: float) -> None:
        """A broker session begins."""
        self.broker_since = at
        self.broker_sessions += 1

    def disconnected(self, error: BaseException) -> None:
        """An error ended the broker session, or the attempt to begin one."""
        self.broker_since = None
        self.broker_error = str(error) or type(error).__name__
        self.broker_lost[reason_of(error)] += 1
        for scope in self.scopes.values():
            scope.phase = "starting"

    def stop(self, error: BaseException) -> None:
        """An error ended the site, and not the process."""
        self.stopped = str(error) or type(error).__name__
        self.broker_since = None
        for scope in self.scopes.values():
            scope.phase = "starting"

    def crashed(self, error: BaseException) -> None:
        """Count an error that nobody foresaw."""
        self.crashes += 1
        self.last_crash = f"{type(error).__name__}: {error}"

    def store_problem(self, at: float) -> str:
        """Why the store takes no writes at second `at`, "" where it does.

        A refused commit is tried again within seconds, so one that is not repeated is over.
        """
        refused = [scope.full for scope in self.scopes.values() if scope.full and at - scope.full_at < _FULL_S]
        return self.store_refused or next(iter(refused), "")


def reason_of(error: BaseException) -> str:
    """One word for why something ended: the class of an error of ours, else `crashed`. So labels stay few."""
    return type(error).__name__ if isinstance(error, MeshForgeError) else _CRASHED
