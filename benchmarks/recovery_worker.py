"""`meshforge run` with a clock at its points: python -m benchmarks.recovery_worker FILE URL STORE

Appends to FILE what is reached when: lines of a name and nanoseconds of the machine's monotonic clock. Of each session
it is the first time at each point.
"""

from __future__ import annotations

import time

_STARTED_NS = time.monotonic_ns()

import os  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

from meshforge_trio.cli import run as _run  # noqa: E402, F401  what `meshforge run` imports
from meshforge_trio.config import Settings  # noqa: E402
from meshforge_trio.launch import run_app  # noqa: E402
from meshforge_trio.points import AFTER_LEASE, Point  # noqa: E402
from meshforge_trio.telemetry import set_up_logging  # noqa: E402

__all__ = ["main"]


class Clocked:
    """A probe that writes down the first time at each point of a session."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._met: set[Point] = set()

    def __call__(self, point: Point) -> None:
        if point is AFTER_LEASE:
            self._met.clear()
        if point not in self._met:
            self._met.add(point)
            self.note(point.value, time.monotonic_ns())

    def note(self, name: str, at_ns: int) -> None:
        """Append one line."""
        os.write(self._descriptor, f"{name} {at_ns}\n".encode())


def main() -> None:
    file, url, store = sys.argv[1:]
    clocked = Clocked(Path(file))
    clocked.note("started", _STARTED_NS)
    set_up_logging("warning")
    settings = Settings(url=url, store=Path(store), workspaces=("default/bench",))
    clocked.note("imported", time.monotonic_ns())
    # Late, since `meshforge run` does not import it: a benchmark that is interrupted leaves nothing behind.
    from chaos.forkserver import die_with_parent  # noqa: PLC0415

    die_with_parent()
    raise SystemExit(run_app("benchmarks.shop:app", settings, probe=clocked))


if __name__ == "__main__":
    main()
