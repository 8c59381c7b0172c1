"""One run as its directory tells it: what was run, what happened, what was judged, what was left behind.

What is missing or damaged beside `run.json` and the history is told in the report instead of ending it: a report of an
inconclusive run is worth most.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import attrs
import orjson

from chaos.evidence import Evidence, ImageError, load_image
from chaos.history import HistoryError, Record, read_history

__all__ = ["Command", "Finding", "Image", "Judgement", "Name", "ReportError", "Run", "Verdict", "load_run"]

#: A command's scope as text, and its key; for one without a key, `id:` and its id.
Name = tuple[str, str]

_VERSION: Final = 1
_TOLD_ELSEWHERE: Final = frozenset({"version", "scenario", "plan", "sent", "replay", "environment"})
_LOG_BYTES_MAX: Final = 64 << 10
_LOG_LINES_MAX: Final = 200
_ESCAPES: Final = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")


class ReportError(ValueError):
    """A directory that holds no run, or one that this version cannot read."""


@attrs.frozen
class Command:
    """One sending of a command. `at` is the scope where it was sent, `expect` the outcomes its key may have."""

    id: str
    key: str
    at: str
    action: str
    entity: str | None
    phase: str
    query: bool
    expect: Sequence[str]

    @property
    def name(self) -> Name:
        """What it is known by."""
        return self.at, self.key or f"id:{self.id}"


@attrs.frozen
class Finding:
    """One thing that is not as guaranteed, with the keys concerned; `scope` is empty where none is named."""

    what: str
    keys: Sequence[str] = ()
    scope: str = ""


@attrs.frozen
class Judgement:
    """What one checker said of one image. `failure` is why it could not judge to the end, empty where it could."""

    image: int
    final: bool
    id: str
    sentence: str
    examined: int
    findings: Sequence[Finding] = ()
    failure: str = ""


@attrs.frozen
class Verdict:
    """`status` is pass, violation or inconclusive; `minimal` the smallest plan known to show the same.

    `receipts` say for each kill which process it was and how it ended, by rule.
    """

    status: str
    reasons: Sequence[str] = ()
    judgements: Sequence[Judgement] = ()
    fired: Sequence[str] = ()
    unhit: Sequence[str] = ()
    receipts: Mapping[str, tuple[int, int]] = attrs.field(factory=dict)
    minimal: str | None = None

    @property
    def broken(self) -> Sequence[Judgement]:
        """Judgements with findings, in the order in which they were made."""
        return [judgement for judgement in self.judgements if judgement.findings]


@attrs.frozen
class Image:
    """What was left behind after the `number`th death, or at the end. `trouble` says why it has no evidence."""

    number: int
    final: bool
    evidence: Evidence | None = None
    trouble: str = ""


@attrs.frozen
class Run:
    """Everything a report is made of. `logs` are the ends of the workers' logs, by actor."""

    scenario: str
    app: str
    plan: str
    replay: str
    sent: Sequence[Command]
    history: Sequence[Record]
    verdict: Verdict
    images: Sequence[Image]
    logs: Mapping[str, str]
    settings: Mapping[str, Any]
    environment: Mapping[str, str]

    def ms(self, record: Record) -> float:
        """When it happened, in milliseconds since the first record."""
        return (record.t - self.history[0].t) / 1e6

    @property
    def rules(self) -> Sequence[str]:
        """The rules of the plan."""
        return [rule for part in self.plan.split(";") if (rule := part.strip())]


def load_run(path: Path) -> Run:
    """Read a run's directory.

    Raises:
        ReportError: `run.json` or the history is missing, damaged or of a newer version.
    """
    told = _read_json(path / "run.json")
    version = told.get("version")
    if type(version) is not int or version > _VERSION:
        raise ReportError(
            f"{path / 'run.json'}: version {version!r:.40}, this reads up to {_VERSION}: "
            "report it with the version that wrote it"
        )
    try:
        history = read_history(path / "history.jsonl")
    except HistoryError as error:
        raise ReportError(str(error)) from error
    return Run(
        scenario=_text(told, "scenario"),
        app=_text(told, "app"),
        plan=_text(told, "plan"),
        replay=_text(told, "replay"),
        sent=[_command(each) for each in _objects(told.get("sent"))],
        history=sorted(history, key=_moment),
        verdict=_verdict(path / "verdict.json"),
        images=list(_images(path)),
        logs=dict(_logs(path)),
        settings={
            name: value for name, value in told.items() if name not in _TOLD_ELSEWHERE and value not in (None, {}, "")
        },
        environment={str(name): str(value) for name, value in _object(told.get("environment")).items()},
    )


def _moment(record: Record) -> tuple[bool, int]:
    # The header stays first, whatever its clock said. Lines of several processes may be a little out of order.
    return record.kind != "header", record.t


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        value = orjson.loads(path.read_bytes())
    except OSError as error:
        raise ReportError(f"{path}: {error.strerror or error}: not the directory of a run") from error
    except orjson.JSONDecodeError as error:
        raise ReportError(f"{path} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ReportError(f"{path} holds no object")
    return value


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _objects(value: object) -> Sequence[Mapping[str, Any]]:
    return [each for each in _list(value) if isinstance(each, dict)]


def _list(value: object) -> Sequence[Any]:
    return value if isinstance(value, list) else []


def _whole(value: object) -> int:
    return value if type(value) is int else 0


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    return "" if value is None else str(value)


def _command(fields: Mapping[str, Any]) -> Command:
    envelope = _object(fields.get("command"))
    own = "/".join(_text(envelope, part) for part in ("tenant", "workspace", "agent"))
    at = fields.get("at")
    if isinstance(at, dict):
        at = "/".join(_text(at, part) for part in ("tenant", "workspace", "agent"))
    entity = envelope.get("entity_id")
    return Command(
        id=_text(envelope, "id"),
        key=_text(fields, "key"),
        at=at if isinstance(at, str) and at else own,
        action=_text(envelope, "action"),
        entity=None if entity is None else str(entity),
        phase=_text(fields, "phase"),
        query=fields.get("query") is True,
        expect=[str(outcome) for outcome in _list(fields.get("expect"))],
    )


def _verdict(path: Path) -> Verdict:
    if not path.exists():
        return Verdict("inconclusive", [f"{path.name} is missing: the run was not judged"])
    try:
        told = _read_json(path)
    except ReportError as error:
        return Verdict("inconclusive", [str(error)])
    minimal = told.get("minimal")
    return Verdict(
        status=_text(told, "status") or "inconclusive",
        reasons=[str(reason) for reason in _list(told.get("reasons"))],
        judgements=[_judgement(each) for each in _objects(told.get("judgements"))],
        fired=[str(rule) for rule in _list(told.get("fired"))],
        unhit=[str(rule) for rule in _list(told.get("unhit"))],
        receipts={
            _text(each, "rule"): (_whole(each.get("pid")), _whole(each.get("status")))
            for each in _objects(told.get("receipts"))
        },
        minimal=None if minimal is None else str(minimal),
    )


def _judgement(fields: Mapping[str, Any]) -> Judgement:
    return Judgement(
        image=_whole(fields.get("image")),
        final=fields.get("final") is True,
        id=_text(fields, "id"),
        sentence=_text(fields, "sentence"),
        examined=_whole(fields.get("examined")),
        findings=[_finding(each) for each in _list(fields.get("findings"))],
        failure=_text(fields, "failure"),
    )


def _finding(told: object) -> Finding:
    if not isinstance(told, dict):
        return Finding(str(told))
    return Finding(_text(told, "what"), tuple(str(key) for key in _list(told.get("keys"))), _text(told, "scope"))


def _images(path: Path) -> Iterator[Image]:
    found = {int(image.name[6:]): image for image in path.glob("image-*") if image.name[6:].isdecimal()}
    for number, image in sorted(found.items()):
        try:
            evidence = load_image(image)
        except ImageError as error:
            yield Image(number, final=False, trouble=str(error))
        else:
            yield Image(number, evidence.final, evidence)


def _logs(path: Path) -> Iterator[tuple[str, str]]:
    found = {int(log.name[7:-4]): log for log in path.glob("worker-*.log") if log.name[7:-4].isdecimal()}
    for number, log in sorted(found.items()):
        with log.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _LOG_BYTES_MAX))
            text = file.read().decode(errors="replace")
        lines = _ESCAPES.sub("", text).splitlines()
        cut = size > _LOG_BYTES_MAX or len(lines) > _LOG_LINES_MAX
        yield f"worker#{number}", "\n".join([*(["..."] if cut else []), *lines[-_LOG_LINES_MAX:]])
