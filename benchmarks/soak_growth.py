"""What must stay flat, per command: memory and open files of the worker that is never killed, the log and the database.

Samples are taken at the end of each round, when everything is decided: the same state each time, with more behind it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final
from urllib.request import urlopen

import attrs
from prometheus_client.parser import text_string_to_metric_families

__all__ = ["COMMANDS_MIN", "LOG_MAX", "Sample", "Trend", "blocks_in_use", "open_files", "private_kib", "trends"]

_KIB: Final = 1024
#: The write-ahead log is checkpointed at 32 MiB; readers may hold that up for a while.
LOG_MAX: Final = 64 << 20
#: KiB that the memory of a worker may grow by per 1,000 commands that it decides, and once and for all.
_RSS_PER_1000_KIB: Final = 32.0
_RSS_ONCE_KIB: Final = 8192.0
#: Blocks that a worker may have more of per 1,000 commands: far less than one each; and once and for all.
_BLOCKS_PER_1000: Final = 50.0
_BLOCKS_ONCE: Final = 4096.0
#: Open files that a worker may have more of in the last third than in the first: a connection being made anew.
_FILES_MORE: Final = 2
#: Share by which the bytes per command of the last third may differ from those of the first.
_DRIFT_MAX: Final = 0.25
#: Share of the rounds that warm up: the store's page cache fills at 8 MiB, what a recovery compares at 4,096 outputs.
_WARM_UP: Final = 0.4
#: Fewer commands of the worker that is never killed, after its warm-up, say nothing about its memory.
COMMANDS_MIN: Final = 2_000
_SAMPLES_MIN: Final = 4
_ENDPOINT_S: Final = 5.0


@attrs.frozen
class Sample:
    """The end of a round. `pid` and `decided` are those of the worker that is never killed, `decided_in_all` of all.

    Memory in KiB, `blocks` in pieces that the interpreter has in use, `database` and `log` in bytes; `log_peak` is the
    largest log within the round.
    """

    at_s: float
    pid: int
    decided: int
    decided_in_all: int
    rss_kib: int
    blocks: int
    files: int
    database: int
    log: int
    log_peak: int


@attrs.frozen
class Trend:
    """One thing that is to stay flat: what it did, its bound, and whether it held. `known` is false for too little."""

    name: str
    value: float
    bound: float
    unit: str
    holds: bool
    known: bool = True

    def __str__(self) -> str:
        mark = "flat" if self.holds else "GREW"
        told = f"{self.value:,.4g} {self.unit} (bound {self.bound:,.4g})"
        return f"{self.name}: {mark}, {told}" if self.known else f"{self.name}: too little was decided to tell"


def private_kib(pid: int) -> int:
    """The anonymous memory of a process that is resident, in KiB; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("RssAnon:")), 0)


def open_files(pid: int) -> int:
    """How many files a process has open; 0 if it has ended."""
    try:
        return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    except (FileNotFoundError, ProcessLookupError):
        return 0


def blocks_in_use(port: int) -> int:
    """How many pieces of memory the interpreter of a worker has in use, by its health endpoint.

    Raises:
        OSError: the endpoint does not answer.
    """
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=_ENDPOINT_S) as answer:
        page = answer.read().decode()
    families = {family.name: family for family in text_string_to_metric_families(page)}
    return int(families["meshforge_allocated_blocks"].samples[0].value)


def trends(samples: Sequence[Sample]) -> Sequence[Trend]:
    """What became of everything that is to stay flat."""
    warm = list(samples[round(len(samples) * _WARM_UP) :])
    return [*_of_memory(warm), *_of_files(warm), *_of_log(samples), *_of_database(warm)]


def _of_memory(warm: Sequence[Sample]) -> Iterator[Trend]:
    thousands = (warm[-1].decided - warm[0].decided) / 1000 if warm else 0.0
    known = len(warm) >= _SAMPLES_MIN and thousands * 1000 >= COMMANDS_MIN
    slope = _slope([(sample.decided / 1000, float(sample.rss_kib)) for sample in warm]) if known else 0.0
    # What grows once, such as the arenas of the allocator, is no leak; it weighs less the longer the run.
    bound = _RSS_PER_1000_KIB + (_RSS_ONCE_KIB / thousands if known else 0.0)
    yield Trend("memory of the worker", slope, bound, "KiB per 1,000 commands", slope <= bound, known)
    # What is in use, whatever the allocator keeps: this is where a leak shows first.
    slope = _slope(_least([(sample.decided / 1000, float(sample.blocks)) for sample in warm])) if known else 0.0
    bound = _BLOCKS_PER_1000 + (_BLOCKS_ONCE / thousands if known else 0.0)
    yield Trend("blocks in use of the worker", slope, bound, "per 1,000 commands", slope <= bound, known)


def _of_files(warm: Sequence[Sample]) -> Iterator[Trend]:
    first, last = _thirds(warm)
    known = len(warm) >= _SAMPLES_MIN
    more = float(min(s.files for s in last) - max(s.files for s in first)) if known else 0.0
    yield Trend("open files of the worker", more, _FILES_MORE, "more", more <= _FILES_MORE, known)


def _of_log(samples: Sequence[Sample]) -> Iterator[Trend]:
    peak = max((sample.log_peak for sample in samples), default=0)
    yield Trend(
        "write-ahead log, largest", peak / (1 << 20), LOG_MAX / (1 << 20), "MiB", peak <= LOG_MAX, bool(samples)
    )


def _of_database(warm: Sequence[Sample]) -> Iterator[Trend]:
    first, last = _thirds(warm)
    known = len(warm) >= _SAMPLES_MIN
    drift = abs(_bytes_per_command(last) / _bytes_per_command(first) - 1) * 100 if known else 0.0
    yield Trend("database bytes per command, drift", drift, _DRIFT_MAX * 100, "%", drift <= _DRIFT_MAX * 100, known)


def _thirds(samples: Sequence[Sample]) -> tuple[Sequence[Sample], Sequence[Sample]]:
    """The first third and the last; they share their border when there are few."""
    size = max(2, len(samples) // 3 + 1)
    return samples[:size], samples[-size:]


def _bytes_per_command(samples: Sequence[Sample]) -> float:
    commands = samples[-1].decided_in_all - samples[0].decided_in_all
    return max(1.0, samples[-1].database - samples[0].database) / max(1, commands)


def _least(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """Of each three in a row the one with the least in use: a sample may fall into the beginning of a session."""
    return [min(points[i : i + 3], key=lambda point: point[1]) for i in range(max(1, len(points) - 2))]


def _slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the line that fits best (least squares)."""
    x_mean = sum(x for x, _ in points) / len(points)
    y_mean = sum(y for _, y in points) / len(points)
    spread = sum((x - x_mean) ** 2 for x, _ in points)
    return sum((x - x_mean) * (y - y_mean) for x, y in points) / spread if spread else 0.0
