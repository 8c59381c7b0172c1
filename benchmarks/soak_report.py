"""What a soak showed: its verdict, as text and as a chart of its samples."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import attrs
from jinja2 import Environment

from benchmarks.soak_growth import Sample, Trend
from benchmarks.soak_judge import RoundVerdict
from chaos.verdict import Status

__all__ = ["SoakResult", "as_svg", "as_text", "concluded"]

#: Checkers that must have found something to examine. There are no locks in the load, so G10 is not among them.
_CLAIMS: Final = ("G1", "G2", "G3", "G4", "G5", "G6", "G7", "G8", "G9", "G11", "G12", "G13")
_DECIDED_PER_ROUND: Final = 100
_FAULTS_PER_ROUND: Final = 3
_ACTION: Final = re.compile(r"(?P<actor>[a-z]+)(?:#\d+)?:(?P<place>.*)@\d+=(?P<action>[a-z_]+)")


@attrs.frozen
class SoakResult:
    """What came of it. `broken` and `reasons` are why it did not pass; `faults` counts by actor and action."""

    seed: str
    status: Status
    seconds: float
    rounds: int
    corpses: int
    decided: int
    ends: int
    faults: Mapping[str, int]
    places: int
    examined: Mapping[str, int]
    trends: Sequence[Trend]
    samples: Sequence[Sample]
    broken: Sequence[str]
    reasons: Sequence[str]


def concluded(
    seed: str,
    seconds: float,
    verdicts: Sequence[RoundVerdict],
    samples: Sequence[Sample],
    trends: Sequence[Trend],
    ends: int,
    broken: Sequence[str],
    reasons: Sequence[str],
) -> SoakResult:
    """The verdict on everything. It fails closed: what showed too little is inconclusive."""
    fired = [text for verdict in verdicts for text in verdict.fired]
    matches = [match for text in fired if (match := _ACTION.match(text)) is not None]
    examined: Counter[str] = Counter()
    for verdict in verdicts:
        examined.update(verdict.examined)
    decided = sum(sum(verdict.decided.values()) for verdict in verdicts)
    grown = [str(trend) for trend in trends if trend.known and not trend.holds]
    against = [*reasons, *_too_little(verdicts, fired, examined, decided, trends)]
    found = [*broken, *grown]
    return SoakResult(
        seed=seed,
        status=Status.VIOLATION if found else Status.INCONCLUSIVE if against else Status.PASS,
        seconds=round(seconds, 1),
        rounds=len(verdicts),
        corpses=sum(max(0, verdict.images - 1) for verdict in verdicts),
        decided=decided,
        ends=ends,
        faults=dict(sorted(Counter(f"{match['actor']} {match['action']}" for match in matches).items())),
        places=len({match["place"] for match in matches} - {"any_time"}),
        examined={name: examined[name] for name in sorted(examined, key=lambda name: (len(name), name))},
        trends=trends,
        samples=samples,
        broken=found,
        reasons=against,
    )


def _too_little(
    verdicts: Sequence[RoundVerdict],
    fired: Sequence[str],
    examined: Mapping[str, int],
    decided: int,
    trends: Sequence[Trend],
) -> Iterator[str]:
    rounds = len(verdicts)
    if not rounds:
        yield "no round came to its end"
        return
    if len(fired) < rounds * _FAULTS_PER_ROUND:
        yield f"{len(fired)} faults in {rounds} rounds are too few"
    if not any("worker#" in text and text.endswith("=kill") for text in fired):
        yield "no worker was killed"
    if decided < rounds * _DECIDED_PER_ROUND:
        yield f"{decided} decisions in {rounds} rounds are too few"
    vacuous = [name for name in _CLAIMS if not examined.get(name)]
    if vacuous:
        yield f"nothing to examine for {', '.join(vacuous)}"
    yield from (str(trend) for trend in trends if not trend.known)


def as_text(result: SoakResult) -> str:
    """For a terminal."""
    minutes = result.seconds / 60
    lines = [
        f"soak: {result.status}, {minutes:.1f} minutes, seed {result.seed}",
        f"{result.decided:,} decisions ({result.decided / max(result.seconds, 1):,.0f}/s with calm and judging), "
        f"{result.rounds} rounds, {result.corpses} corpses",
        f"{sum(result.faults.values())} faults at {result.places} kinds of places and at any time; "
        f"{result.ends} workers ended and were replaced",
        *(f"    {count:5} {name}" for name, count in result.faults.items()),
        "examined: " + ", ".join(f"{name} {count:,}" for name, count in result.examined.items()),
        *map(str, result.trends),
    ]
    if result.samples:
        last = result.samples[-1]
        per = last.database / max(last.decided_in_all, 1)
        lines.append(
            f"at the end: RSS {last.rss_kib / 1024:.1f} MiB, {last.blocks:,} blocks in use, {last.files} open files, "
            f"database {last.database / (1 << 20):.1f} MiB ({per:,.0f} bytes a decision), "
            f"log {last.log / (1 << 20):.1f} MiB"
        )
    lines += [f"broken: {text}" for text in result.broken]
    lines += [f"reason: {text}" for text in result.reasons]
    return "\n".join(lines)


# -- the chart -----------------------------------------------------------------------------------------------------

_WIDTH: Final = 720
_HEIGHT: Final = 110
_LEFT: Final = 150
_SVG: Final = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {{ width }} {{ height }}" font-family="sans-serif" font-size="12">
<rect width="100%" height="100%" fill="white"/>
{% for row in rows %}<g transform="translate(0 {{ loop.index0 * row_height + 30 }})">
<text x="8" y="20">{{ row.name }}</text>
<text x="8" y="38" fill="#666">{{ row.low }} to {{ row.high }}</text>
<polyline fill="none" stroke="#2563a8" stroke-width="1.5" points="{{ row.points }}"/>
</g>
{% endfor %}<text x="8" y="18">soak, seed {{ seed }}: {{ status }} (over decisions in all)</text>
</svg>
"""
_ROWS: Final[Mapping[str, Callable[[Sample], float]]] = {
    "RSS, MiB": lambda sample: sample.rss_kib / 1024,
    "blocks in use": lambda sample: float(sample.blocks),
    "open files": lambda sample: float(sample.files),
    "log, largest, MiB": lambda sample: sample.log_peak / (1 << 20),
    "database, MiB": lambda sample: sample.database / (1 << 20),
}


def as_svg(result: SoakResult) -> str:
    """A chart of the samples."""
    rows = [_row(name, result.samples, of) for name, of in _ROWS.items()] if result.samples else []
    return (
        Environment(autoescape=True)
        .from_string(_SVG)
        .render(
            rows=rows,
            width=_WIDTH,
            height=_HEIGHT * len(rows) + 40,
            row_height=_HEIGHT,
            seed=result.seed,
            status=result.status,
        )
    )


def _row(name: str, samples: Sequence[Sample], of: Callable[[Sample], float]) -> Mapping[str, str]:
    values = [of(sample) for sample in samples]
    commands = [sample.decided_in_all for sample in samples]
    low, high = min(values), max(values)
    wide, tall = max(commands[-1], 1), max(high, 1e-9)
    points = " ".join(
        f"{_LEFT + x / wide * (_WIDTH - _LEFT - 20):.1f},{90 - y / tall * 80:.1f}"
        for x, y in zip(commands, values, strict=True)
    )
    return {"name": name, "low": f"{low:,.1f}", "high": f"{high:,.1f}", "points": points}
