"""The verdict on a run: pass, violation or inconclusive. It fails closed.

A guarantee that does not hold is a violation, whatever else happened. Without one, a run passes only if it shows
something: every rule fired, whoever was to be killed died of signal 9, every checker that had to found something to
look at, the client got through, and the workers ended as they should. Else it is inconclusive, with the reasons.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import attrs
import orjson

from chaos.checkers import Checker, Judgement, judge, listed
from chaos.evidence import Evidence, ImageError, Sent, load_image
from chaos.history import HistoryError, Record, read_history
from chaos.plan import Plan, PlanError, exit_of, parse_plan
from meshforge_trio.envelope import decode_command
from meshforge_trio.errors import Poison
from meshforge_trio.subjects import Scope

__all__ = [
    "EXIT_CODES",
    "ImageJudgement",
    "Receipt",
    "RunError",
    "Status",
    "Verdict",
    "judge_run",
    "load_run",
    "sent_from_json",
    "verdict_on",
]

_RUN_VERSION: Final = 1
_KILLED: Final = -9
_NEVER_FIRED: Final = "never fired: "
#: What a verdict depends on beside the evidence.
_JUDGED_BY: Final = ("plan", "sent", "limit", "must_fire", "mortal", "claims")


class RunError(ValueError):
    """A directory that holds no run, or one that cannot be judged."""


class Status(StrEnum):
    """What a run shows."""

    PASS = "pass"  # noqa: S105
    VIOLATION = "violation"
    INCONCLUSIVE = "inconclusive"


#: What commands exit with; 3 is for wrong usage.
EXIT_CODES: Final[Mapping[Status, int]] = {Status.PASS: 0, Status.VIOLATION: 1, Status.INCONCLUSIVE: 2}


@attrs.frozen
class ImageJudgement:
    """What one checker says of one image. `final` is false for a corpse."""

    image: int
    final: bool
    judgement: Judgement


@attrs.frozen
class Receipt:
    """The proof of a kill: the rule as recorded before the act, and how the process then ended."""

    rule: str
    pid: int
    status: int


@attrs.frozen
class Verdict:
    """What a run shows, why, and by which evidence."""

    status: Status
    reasons: Sequence[str] = ()
    judgements: Sequence[ImageJudgement] = ()
    fired: Sequence[str] = ()
    unhit: Sequence[str] = ()
    receipts: Sequence[Receipt] = ()
    minimal: str | None = None

    @property
    def broken(self) -> Sequence[Judgement]:
        """Judgements with findings."""
        return [each.judgement for each in self.judgements if each.judgement.findings]

    @property
    def broken_ids(self) -> Sequence[str]:
        """The guarantees that fell, in order, each once."""
        return list(dict.fromkeys(judgement.id for judgement in self.broken))

    @property
    def missed(self) -> bool:
        """Whether a rule never fired, and nothing else speaks against the run: as things fell, nobody came by there."""
        others = [reason for reason in self.reasons if not reason.startswith(_NEVER_FIRED)]
        return bool(self.unhit) and not others and self.status is not Status.VIOLATION

    def to_json(self) -> Mapping[str, Any]:
        """As `verdict.json` has it."""
        return {
            "status": self.status.value,
            "reasons": list(self.reasons),
            "judgements": [
                {"image": each.image, "final": each.final, **each.judgement.to_json()} for each in self.judgements
            ],
            "fired": list(self.fired),
            "unhit": list(self.unhit),
            "receipts": [attrs.asdict(receipt) for receipt in self.receipts],
            "minimal": self.minimal,
        }

    def __str__(self) -> str:
        lines = [f"verdict: {self.status}", f"fired: {'; '.join(self.fired) or 'nothing'}"]
        lines += [f"reason: {reason}" for reason in self.reasons]
        for each in self.judgements:
            if each.judgement.findings:
                lines.append(f"{'end' if each.final else f'corpse {each.image}'}: {each.judgement}")
        return "\n".join(lines)


@attrs.frozen
class Run:
    """A run as its directory tells it."""

    told: Mapping[str, Any]
    plan: Plan
    history: Sequence[Record]
    sent: Sequence[Sent]
    images: Sequence[Evidence]


def load_run(home: Path) -> Run:
    """Read a run's directory.

    Raises:
        RunError: something is missing, truncated, or of a newer version.
    """
    try:
        told = _told(home / "run.json")
        newer = told["version"]
        if type(newer) is not int or newer > _RUN_VERSION:
            raise RunError(f"{home}/run.json is of version {newer!r:.40}, this reads up to {_RUN_VERSION}")
        missing = [name for name in _JUDGED_BY if name not in told]
        if missing:
            raise RunError(f"{home}/run.json lacks {', '.join(missing)}")
        history = read_history(home / "history.jsonl")
        outcomes = {r["id"]: r.kind for r in history if r.kind in ("ok", "unknown", "failed")}
        sent = [sent_from_json(each, outcomes) for each in told["sent"]]
        plan = parse_plan(told["plan"], mortal=True)
        images = [
            load_image(
                home / f"image-{record['number']}",
                sent=_sent_before(sent, history[: i + 1]),
                history=history[: i + 1],
                limit=told["limit"],
                rebuilt=_rebuilt(home / f"image-{record['number']}" / "rebuilt.json"),
            )
            for i, record in enumerate(history)
            if record.kind == "image"
        ]
    except (OSError, LookupError, TypeError, ValueError, AttributeError, Poison) as error:
        if isinstance(error, RunError):
            raise
        what = error if isinstance(error, HistoryError | ImageError | PlanError) else f"{type(error).__name__}: {error}"
        raise RunError(f"{home} cannot be judged: {what}") from error
    return Run(told, plan, history, sent, images)


def _told(path: Path) -> Mapping[str, Any]:
    try:
        told = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise RunError(f"{path.parent} cannot be judged: JSONDecodeError in {path.name}: {error}") from error
    if not isinstance(told, dict):
        raise TypeError(f"{path.name} is no object")
    return told


def sent_from_json(told: Mapping[str, Any], outcomes: Mapping[str, str]) -> Sent:
    command = decode_command(orjson.dumps(told["command"]))
    return Sent(
        command,
        outcomes.get(command.id, "unknown"),
        told["query"],
        tuple(told["expect"]),
        told["phase"],
        told["repeatable"],
        None if told["at"] is None else Scope(*told["at"].split("/")),
        key=told["key"],
        digest=bytes.fromhex(told["digest"]),
    )


def _sent_before(sent: Sequence[Sent], history: Sequence[Record]) -> Sequence[Sent]:
    ids = {record["id"] for record in history if record.kind == "send"}
    return [each for each in sent if each.command.id in ids]


def _rebuilt(path: Path) -> Mapping[Scope, Sequence[str]]:
    if not path.exists():
        return {}
    return {Scope(*scope.split("/")): hashes for scope, hashes in orjson.loads(path.read_bytes()).items()}


def judge_run(home: Path, *, invariants: Sequence[Checker] = (), reasons: Sequence[str] = ()) -> Verdict:
    """Judge a run from its directory. `reasons` are what its world already says against it.

    Raises:
        RunError: the directory cannot be judged. With `reasons`, it is inconclusive instead.
    """
    try:
        run = load_run(home)
    except RunError as error:
        if not reasons:
            raise
        return Verdict(Status.INCONCLUSIVE, [*reasons, str(error)])
    return verdict_on(run, invariants=invariants, reasons=reasons)


def verdict_on(run: Run, *, invariants: Sequence[Checker] = (), reasons: Sequence[str] = ()) -> Verdict:
    """`judge_run`, of a run that was read already."""
    judgements = [
        ImageJudgement(number, image.final, judgement)
        for number, image in enumerate(run.images, 1)
        for judgement in judge(image, invariants)
    ]
    fired = [record["rule"] for record in run.history if record.kind == "fault"]
    unhit = [str(rule) for rule in run.plan.rules if str(rule) not in fired]
    receipts = list(_receipts(run))
    against = [*reasons, *_against(run, judgements, unhit, receipts)]
    broken = any(each.judgement.findings for each in judgements)
    status = Status.VIOLATION if broken else Status.INCONCLUSIVE if against else Status.PASS
    return Verdict(status, against, judgements, fired, unhit, receipts)


def _receipts(run: Run) -> Iterator[Receipt]:
    pids = {record.actor: record["pid"] for record in run.history if record.kind == "spawn"}
    ends = {record.actor: record["status"] for record in run.history if record.kind == "exit"}
    for record in run.history:
        if record.kind == "fault" and record.actor.startswith("worker#") and _kills(run, record["rule"]):
            yield Receipt(record["rule"], pids.get(record.actor, 0), ends.get(record.actor, 0))


def _kills(run: Run, text: str) -> bool:
    return any(str(rule) == text and (rule.actor, rule.action) == ("worker", "kill") for rule in run.plan.rules)


def _against(
    run: Run, judgements: Sequence[ImageJudgement], unhit: Sequence[str], receipts: Sequence[Receipt]
) -> Iterator[str]:
    """Why the run shows less than it should."""
    if not run.sent:
        yield "nothing was sent"
    if unhit and run.told["must_fire"]:
        yield f"{_NEVER_FIRED}{'; '.join(unhit)}"
    for receipt in receipts:
        if receipt.status != _KILLED:
            yield f"{receipt.rule} fired, and the process ended with {receipt.status} instead of signal 9"
    yield from _survived(run, receipts)
    finals = [each.judgement for each in judgements if each.final]
    if not finals:
        yield "there is no image of the end"
    examined = {judgement.id: judgement.examined for judgement in finals}
    vacuous = [id_ for id_ in run.told["claims"] if not examined.get(id_)]
    if vacuous and finals:
        yield f"nothing to examine for {', '.join(vacuous)}"
    for each in judgements:
        if each.judgement.failure:
            yield f"the checker of {each.judgement.id} failed on image {each.image}: {each.judgement.failure}"
    for phase in dict.fromkeys(sent.phase for sent in run.sent):
        if not any(sent.outcome == "ok" for sent in run.sent if sent.phase == phase):
            yield f"no command of phase {phase!r} was accepted"
    yield from _nothing_decided(run)
    yield from _set_aside(run)
    yield from _unplanned_ends(run, receipts)


def _nothing_decided(run: Run) -> Iterator[str]:
    """Guarantees hold over commands of which every one is refused or set aside, and say nothing about what they do."""
    if not run.images or all(sent.query for sent in run.sent):
        return
    rows = run.images[-1].rows
    if not rows.keys:
        yield "nothing was ever decided"
        return
    outcomes = Counter(key.outcome for key in rows.keys)
    hoped = any(not sent.query and (not sent.expect or "decided" in sent.expect) for sent in run.sent)
    if hoped and not outcomes["decided"]:
        counts = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items())
        yield f"no command was decided, of its keys are {counts}"


def _set_aside(run: Run) -> Iterator[str]:
    """To set aside what fails is as guaranteed, and that a handler or an `apply` always fails is not what was meant.

    What a command expects is judged by G11.
    """
    if not run.images:
        return
    silent = {(sent.scope, sent.key) for sent in run.sent if not sent.expect}
    silent -= {(sent.scope, sent.key) for sent in run.sent if sent.expect}
    waiting = [letter for letter in run.images[-1].rows.dead if letter.state == "waiting"]
    dead = [letter for letter in waiting if (letter.scope, letter.key) in silent]
    if dead:
        which = listed([f"key {letter.key!r:.60}" for letter in dead])
        yield f"set aside, which nothing expects: {which}; the first because {dead[0].reason}"


def _survived(run: Run, receipts: Sequence[Receipt]) -> Iterator[str]:
    """Workers that did not end as they must after what befell their store, and were not killed either."""
    killed = {receipt.rule.split(":")[0] for receipt in receipts}
    ends = {record.actor: record["status"] for record in run.history if record.kind == "exit"}
    for actor, rule, code in _broken_stores(run):
        if actor not in killed and ends.get(actor) != code:
            yield f"{rule} fired, and the process ended with {ends.get(actor)} instead of exit code {code}"


def _broken_stores(run: Run) -> Iterator[tuple[str, str, int]]:
    """(worker, rule, exit code) of each rule that fired and after which its worker must end by itself."""
    codes = {str(rule): code for rule in run.plan.rules if (code := exit_of(rule)) is not None}
    for record in run.history:
        if record.kind == "fault" and record["rule"] in codes:
            yield record.actor, record["rule"], codes[record["rule"]]


def _unplanned_ends(run: Run, receipts: Sequence[Receipt]) -> Iterator[str]:
    planned = {receipt.rule.split(":")[0] for receipt in receipts}
    ended = {record.actor for record in run.history if record.kind == "exit"}
    yield from (
        f"nobody saw how {record.actor} ended"
        for record in run.history
        if record.kind == "spawn" and record.actor not in ended
    )
    stopped = {record.actor for record in run.history if record.kind == "fault" and _stops(run, record["rule"])}
    by_itself = {(actor, code) for actor, _, code in _broken_stores(run)}
    odd: dict[str, list[str]] = {}
    for record in run.history:
        if record.kind != "exit" or record["status"] == 0 or record.actor in planned:
            continue
        if (record.actor, record["status"]) in by_itself:
            continue
        # Its watchdog takes a long stop for a handler that hangs, and ends the process: rightly, and safely.
        if record.actor in stopped and record["status"] == 1:
            continue
        if not (run.told["mortal"] and record["status"] in (_KILLED, 1)):
            odd.setdefault(f"ended with {record['status']}{_in_handler(run, record.actor)}", []).append(record.actor)
    yield from (f"{listed(actors)} {how}, which no rule asked for" for how, actors in odd.items())


def _in_handler(run: Run, actor: str) -> str:
    """The handler that a worker was in when it ended, if it was in one."""
    told = [record for record in run.history if record.actor == actor and record.kind != "exit"]
    if not told or told[-1].kind != "call":
        return ""
    agent = str(told[-1]["scope"]).rpartition("/")[2]
    return f" in the handler of {agent}.{told[-1]['action']}"


def _stops(run: Run, text: str) -> bool:
    return any(str(rule) == text and rule.action == "stop" for rule in run.plan.rules)
