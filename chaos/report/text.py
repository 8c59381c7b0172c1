"""The report of one run as plain text, for the log of a build: what broke, how to see it again, and why."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import attrs

from chaos.report.aftermath import LABELS, Sight, caption, corpses_of, three
from chaos.report.concerns import Concern, concerns
from chaos.report.run import Finding, Image, Judgement, Name, Run, load_run
from chaos.report.slice import causal_slice, focus
from chaos.report.turns import turns
from chaos.report.words import bad, clipped, columns, padded, plain, told, wrapped

__all__ = ["WIDTH", "render_text"]

#: Columns. Only the command that replays the run may be longer: it is there to be copied.
WIDTH: Final = 120
_FINDINGS_MAX: Final = 5
_ROWS_MAX: Final = 4
_LABEL: Final = 13
_UNQUOTED: Final = re.compile(r"""(?:[^\s'"\\]|\\.|'[^']*'|"(?:[^"\\]|\\.)*")+""")


def render_text(run_dir: Path) -> str:
    """The report of the run in `run_dir`: a few lines if it passed, else everything that helps to find the cause.

    Raises:
        ReportError: there is no run, or none that this version can read.
    """
    run = load_run(run_dir)
    lines = _passed(run) if run.verdict.status == "pass" else _failed(run)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in lines)) + "\n"


def _passed(run: Run) -> Iterator[str]:
    yield f"PASS  {clipped(run.scenario, 60)}  {_counts(run)}"
    yield from _plan(run)
    examined: dict[str, int] = {}
    for judgement in run.verdict.judgements:
        examined[judgement.id] = examined.get(judgement.id, 0) + judgement.examined
    if examined:
        told_counts = "  ".join(f"{clipped(name, 24)} {count}" for name, count in examined.items())
        yield from _labelled("examined", wrapped(told_counts, WIDTH - _LABEL))
    yield from _replay(run)


def _failed(run: Run) -> Iterator[str]:
    found = findings(run)
    about = [finding for _, finding in found]
    evidence = [image.evidence for image in run.images if image.evidence is not None]
    concern = concerns(run.history, run.sent, turns(run.history), evidence)
    names = focus(about, run.history, concern, run.sent)
    yield f"{run.verdict.status.upper():.40}  {clipped(run.scenario, 50)}  {_counts(run)}"
    for reason in run.verdict.reasons:
        # The log of a worker may follow.
        for number, line in enumerate(reason.splitlines()):
            yield from wrapped(line, WIDTH, "    " if number else "  ")
    yield from _broken(run)
    yield ""
    yield from _plan(run)
    yield from _replay(run)
    yield from _slice(run, concern, names)
    yield from _aftermath(run, names if about else frozenset())
    yield ""
    yield from _labelled("fired", wrapped("; ".join(run.verdict.fired) or "nothing", WIDTH - _LABEL))
    yield from _labelled("did not fire", wrapped("; ".join(run.verdict.unhit) or "-", WIDTH - _LABEL))
    yield from _labelled("versions", wrapped(_versions(run), WIDTH - _LABEL))


def findings(run: Run) -> Sequence[tuple[Judgement, Finding]]:
    """Every finding with the judgement it belongs to."""
    return [(judgement, finding) for judgement in run.verdict.broken for finding in judgement.findings]


def _counts(run: Run) -> str:
    """What happened, in numbers."""
    exits = [record["status"] for record in run.history if record.kind == "exit"]
    workers = sum(record.kind == "spawn" for record in run.history)
    seconds = run.ms(run.history[-1]) / 1000
    killed = exits.count(-9)
    noun = "worker" if workers == 1 else "workers"
    return f"({len(run.sent)} sent, {workers} {noun}, {killed} killed, {seconds:.2f} s)"


def _labelled(label: str, lines: Sequence[str]) -> Iterator[str]:
    for number, line in enumerate(lines):
        yield f"{'' if number else label:{_LABEL}}{line}"


def _plan(run: Run) -> Iterator[str]:
    rules = [rule + (";" if n < len(run.rules) else "") for n, rule in enumerate(run.rules, 1)] or ["(no faults)"]
    lines: list[str] = []
    for rule in rules:
        if lines and columns(lines[-1]) + 1 + columns(plain(rule)) <= WIDTH - _LABEL:
            lines[-1] += f" {plain(rule)}"
        else:
            lines.extend(wrapped(rule, WIDTH - _LABEL))
    yield from _labelled("plan", lines)
    if run.verdict.minimal is not None and run.verdict.minimal != run.plan:
        yield from _labelled("minimal", wrapped(run.verdict.minimal, WIDTH - _LABEL))


def _replay(run: Run) -> Iterator[str]:
    yield from _labelled("replay", _shell_lines(plain(run.replay), WIDTH - _LABEL) or ["-"])


def _shell_lines(command: str, width: int) -> Sequence[str]:
    """A command over several lines as a shell reads it: broken between words, never within one."""
    lines: list[str] = []
    for word in _UNQUOTED.findall(command):
        if lines and columns(lines[-1]) + 1 + columns(word) <= width - 2:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return [line + " \\" for line in lines[:-1]] + lines[-1:]


@attrs.define
class _Group:
    """One finding, wherever it was made."""

    judgement: Judgement
    finding: Finding
    seen: list[Judgement]


def _broken(run: Run) -> Iterator[str]:
    groups: dict[tuple[str, str], _Group] = {}
    for judgement, finding in findings(run):
        group = groups.setdefault((judgement.id, finding.what), _Group(judgement, finding, []))
        if judgement not in group.seen:
            group.seen.append(judgement)
    for name in dict.fromkeys(name for name, _ in groups):
        mine = [group for (id_, _), group in groups.items() if id_ == name]
        yield ""
        yield from wrapped(f"{name} broken: {mine[0].judgement.sentence}", WIDTH)
        for group in mine[:_FINDINGS_MAX]:
            yield from _finding(run, group)
        if len(mine) > _FINDINGS_MAX:
            yield f"  ... and {len(mine) - _FINDINGS_MAX} more"
    for judgement in run.verdict.judgements:
        if judgement.failure:
            yield ""
            yield from wrapped(f"{judgement.id} could not be judged: {judgement.failure}", WIDTH)


def _finding(run: Run, group: _Group) -> Iterator[str]:
    finding = group.finding
    keys = ", ".join(clipped(key, 60) for key in finding.keys)
    expected = {
        outcome
        for command in run.sent
        if command.key in finding.keys and finding.scope in ("", command.at)
        for outcome in command.expect
    }
    outcome = f"; outcome {' or '.join(sorted(expected))}" if expected else ""
    at_end = "the end" if any(each.final for each in group.seen) else ""
    parts = (
        ("scope", plain(finding.scope)),
        ("key" if len(finding.keys) == 1 else "keys", keys),
        ("expected", f"as guaranteed{outcome}"),
        ("got", plain(finding.what)),
        ("seen on", ", ".join(filter(None, [corpses_of(group.seen), at_end]))),
    )
    for label, value in parts:
        if value:
            for line in _labelled(label, wrapped(value, WIDTH - 2 - _LABEL)):
                yield f"  {line}"
    yield ""


def _slice(run: Run, concern: Sequence[Concern], names: frozenset[Name]) -> Iterator[str]:
    part = causal_slice(run.history, concern, names)
    yield ""
    yield f"What happened ({_commands(names)}; ms since start, who, what)"
    yield ""
    for index in part.indices:
        record = run.history[index]
        mark = "x" if bad(record) else " "
        line = f"{mark}{run.ms(record):>11.3f}  {padded(clipped(record.actor, 10), 10)}  {told(record)}"
        yield clipped(line, WIDTH, 0)
    if part.left_out:
        yield f"  {part.left_out} more records of these commands are in history.jsonl"


def _commands(names: frozenset[Name]) -> str:
    if len(names) == 1:
        ((_, key),) = names
        return f"key {clipped(key, 40)}"
    return f"{len(names)} keys"


def _aftermath(run: Run, names: frozenset[Name]) -> Iterator[str]:
    images = three(run, {judgement.image for judgement in run.verdict.broken})
    for image in run.images:
        if image.trouble:
            yield ""
            yield from wrapped(f"image {image.number} cannot be read: {image.trouble}", WIDTH)
    if not any(image is not None and image.evidence is not None for image in images):
        return
    titles: Sequence[str] = ("before the crash", "after the crash", "after recovery")
    if images[1] is None:
        # Nobody died.
        titles, images = titles[2:], images[2:]
    heads = [f"{title} ({_where(image)})" for title, image in zip(titles, images, strict=True)]
    sights = [None if i is None or i.evidence is None else Sight(i.evidence) for i in images]
    for scope, key in sorted(names)[:_ROWS_MAX]:
        yield ""
        yield clipped(f"Rows of key {clipped(key, 60)} in {clipped(scope, 40)}", WIDTH)
        yield from _row("", [[head] for head in heads])
        cells = [{} if sight is None else sight.of((scope, key)) for sight in sights]
        for label in LABELS:
            texts = [[fact.text for fact in cell.get(label, ())] for cell in cells]
            if any(texts) or label in ("key record", "outputs"):
                yield from _row(label, [text or ["-"] for text in texts])
    if len(names) > _ROWS_MAX:
        yield f"  ... and the rows of {len(names) - _ROWS_MAX} more"


def _where(image: Image | None) -> str:
    return "no image" if image is None else caption(image)


def _row(label: str, cells: Sequence[Sequence[str]]) -> Iterator[str]:
    """Cells side by side, each in a third of what the label leaves."""
    width = (WIDTH - _LABEL - 2) // 3
    wrapped_cells = [[line for text in cell for line in wrapped(text, width - 2)] for cell in cells]
    for number in range(max(len(cell) for cell in wrapped_cells)):
        parts = [padded(cell[number] if number < len(cell) else "", width) for cell in wrapped_cells]
        yield f"  {'' if number else label:{_LABEL}}{''.join(parts)}"


def _versions(run: Run) -> str:
    return ", ".join(f"{name} {value}" for name, value in run.environment.items()) or "-"
