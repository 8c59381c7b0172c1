"""The report of one run as a page for a browser: one file, which fetches nothing and needs nothing beside it.

What a run carries is written into the page as text, never as markup: templates escape everything, the timeline is told
as JSON in which `<` does not occur, and the page's own policy lets no script run but the one it came with.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import attrs
import jinja2
import orjson
from markupsafe import Markup

from chaos.report.aftermath import LABELS, Fact, Sight, corpses_of
from chaos.report.concerns import concerns
from chaos.report.run import Finding, Judgement, Name, Run, load_run
from chaos.report.slice import causal_slice, focus
from chaos.report.timeline import timeline
from chaos.report.turns import turns
from chaos.report.words import bad, clipped, ending, plain, told

__all__ = ["render_html"]

_TEMPLATES: Final = Path(__file__).parent / "templates"
_SCRIPTS: Final = ("scale.js", "glyphs.js", "drawing.js", "timeline.js", "page.js")
_GUARANTEES: Final = tuple(f"G{number}" for number in range(1, 14))
_ROWS_MAX: Final = 100
_TELLING: Final = re.compile("[<>&\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_WORDS: Final = {
    "pass": ("Passed", "Every guarantee that was judged holds."),
    "violation": ("Violation", "A guarantee does not hold."),
    "inconclusive": ("Inconclusive", "This run proves nothing, one way or the other."),
}


def render_html(run_dir: Path) -> str:
    """The page of the run in `run_dir`.

    Raises:
        ReportError: there is no run, or none that this version can read.
    """
    run = load_run(run_dir)
    every_turn = turns(run.history)
    evidence = [image.evidence for image in run.images if image.evidence is not None]
    concern = concerns(run.history, run.sent, every_turn, evidence)
    about = [finding for judgement in run.verdict.broken for finding in judgement.findings]
    names = focus(about, run.history, concern, run.sent)
    part = causal_slice(run.history, concern, names)
    drawn = timeline(run, every_turn, concern, part.indices)
    known = [*sorted(names), *dict.fromkeys(c.name for c in run.sent if c.name not in names)]
    style = (_TEMPLATES / "page.css").read_text()
    script = "\n".join(["(() => {", '"use strict";', *((_TEMPLATES / name).read_text() for name in _SCRIPTS), "})();"])
    status = run.verdict.status if run.verdict.status in _WORDS else "inconclusive"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(plain=plain, clipped=clipped, json=_json, lines=_lines, seen_on=_seen_on)
    return environment.get_template("page.html").render(
        run=run,
        status=status,
        words=_WORDS[status],
        numbers=list(_numbers(run)),
        rules=[(rule, rule in run.verdict.fired, _receipt(run, rule)) for rule in run.rules],
        badges=_badges(run),
        story=_story(run, part.indices, drawn["slice"]),
        left_out=part.left_out,
        keys=sorted(names) if about else [],
        rows=_rows(run, known[:_ROWS_MAX]),
        rows_left_out=max(0, len(known) - _ROWS_MAX),
        total=drawn["total"],
        undrawn=drawn["total"] - len(drawn["records"]),
        embedded=Markup(_json({**drawn, "focus": sorted(names) if about else []})),  # noqa: S704
        style=Markup(style),  # noqa: S704
        script=Markup(script),  # noqa: S704
        style_hash=_hash(style),
        script_hash=_hash(script),
        labels=LABELS,
    )


def _json(value: object) -> str:
    """JSON in which no character means anything to a parser of HTML, or turns the direction of what stands around."""
    return _TELLING.sub(lambda found: f"\\u{ord(found.group()):04x}", orjson.dumps(value).decode())


def _lines(text: str) -> str:
    """Plain text that keeps its lines."""
    return "\n".join(plain(line) for line in text.splitlines())


def _hash(text: str) -> str:
    """A source as a content security policy names it."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _numbers(run: Run) -> Iterator[tuple[str, str]]:
    """What happened, in numbers with their nouns."""
    statuses = [record["status"] for record in run.history if record.kind == "exit"]
    for count, one, many in (
        (len(run.sent), "command sent", "commands sent"),
        (sum(record.kind == "spawn" for record in run.history), "worker", "workers"),
        (statuses.count(-9), "killed", "killed"),
        (len(run.images), "image judged", "images judged"),
    ):
        yield str(count), one if count == 1 else many
    yield f"{run.ms(run.history[-1]) / 1000:.2f} s", "from start to end"


def _receipt(run: Run, rule: str) -> str:
    """Who died of a rule, and how."""
    receipt = run.verdict.receipts.get(rule)
    return "" if receipt is None else f"pid {receipt[0]} {ending(receipt[1])}"


@attrs.frozen
class Badge:
    """A guarantee with everything that was said of it."""

    id: str
    judgements: Sequence[Judgement]

    @property
    def sentence(self) -> str:
        """The guarantee, if anybody judged it."""
        return self.judgements[0].sentence if self.judgements else ""

    @property
    def name(self) -> str:
        """What stands before the colon of the sentence."""
        name, colon, _ = self.sentence.partition(":")
        return name if colon and len(name) <= 24 else ""

    @property
    def examined(self) -> int:
        """How much was looked at, in all images."""
        return sum(judgement.examined for judgement in self.judgements)

    @property
    def found(self) -> int:
        """How many findings there are."""
        return sum(len(judgement.findings) for judgement in self.judgements)

    @property
    def state(self) -> str:
        """broken, unsure (somebody could not judge), absent (nobody did), empty (nothing to look at), or held."""
        if self.found:
            return "broken"
        if any(judgement.failure for judgement in self.judgements):
            return "unsure"
        if not self.judgements:
            return "absent"
        return "held" if self.examined else "empty"

    @property
    def distinct(self) -> Sequence[tuple[Finding, Sequence[Judgement]]]:
        """Its findings, each once, with the judgements that made it."""
        made: dict[str, tuple[Finding, dict[int, Judgement]]] = {}
        for judgement in self.judgements:
            for finding in judgement.findings:
                made.setdefault(finding.what, (finding, {}))[1][judgement.image] = judgement
        return [(finding, list(judgements.values())) for finding, judgements in made.values()]


def _seen_on(judgements: Sequence[Judgement]) -> str:
    corpses = corpses_of(judgements)
    return " and ".join([f"on {corpses}"] * bool(corpses) + ["at the end"] * any(each.final for each in judgements))


def _badges(run: Run) -> Sequence[Badge]:
    """G1 to G13, then what a scenario added of its own."""
    by_id: dict[str, list[Judgement]] = {name: [] for name in _GUARANTEES}
    for judgement in run.verdict.judgements:
        by_id.setdefault(judgement.id, []).append(judgement)
    return [Badge(name, judgements) for name, judgements in by_id.items()]


@attrs.frozen
class Line:
    """One line of the story. `at` is the place of its record among those drawn."""

    at: int
    ms: float
    actor: str
    kind: str
    what: str
    bad: bool


def _story(run: Run, indices: Sequence[int], places: Sequence[int]) -> Sequence[Line]:
    return [
        Line(
            place,
            run.ms(record),
            plain(record.actor),
            record.kind,
            told(record),
            bad(record),
        )
        for index, place in zip(indices, places, strict=True)
        for record in (run.history[index],)
    ]


@attrs.frozen
class Row:
    """One command, with what each image shows of it: facts by label, or `None` for an image that cannot be read."""

    name: Name
    cells: Sequence[Mapping[str, Sequence[Fact]] | None]


def _rows(run: Run, names: Sequence[Name]) -> Sequence[Row]:
    sights = [None if image.evidence is None else Sight(image.evidence) for image in run.images]
    return [Row(name, [None if sight is None else sight.of(name) for sight in sights]) for name in names]
