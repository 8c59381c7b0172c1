"""Poison in a full batch: python scenarios/poison.py

Among sixty ordinary commands are four that can never work: one whose handler always raises, one whose event is larger
than the broker takes, one that lacks its idempotency key, one for an action that nobody has. The worker is killed at
every point on the way to the dead-letter stream; the server is killed and restarted between attempts.

What must hold: each of the first three reaches the dead-letter stream once, the failing one when its handler was called
as often as allowed and never more often, the others at once; the fourth is refused. The neighbours of the failing one
are decided before it is called a second time; the one behind it waits for its end and is then decided, untouched. A
dead letter holds what was sent, byte for byte, and the story of every call; the log says so for people.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import attrs

from chaos.checkers import Checker, Finding
from chaos.evidence import Evidence, Sent, envelope_of
from chaos.rows import Letter
from chaos.scenario import Scenario
from chaos.script import main
from chaos.sweep import Fixed, Sweep
from chaos.workload import Workload, garbage_key
from meshforge_trio.points import Point

#: What happens to the failing command before it is given up, and the turn that sets the others aside.
TO_THE_LETTER = (
    Point.BEFORE_ATTEMPT,
    Point.IN_ATTEMPT,
    Point.BEFORE_HOLD,
    Point.AFTER_HOLD,
    Point.IN_STORE,
    Point.BEFORE_DEAD_LETTER,
    Point.AFTER_DEAD_LETTER,
    Point.IN_PUBLISH,
    Point.BEFORE_ACK,
)
#: A worker that dies so leaves a successor whose first turn sends the dead letter of the failing command.
GIVEN_UP = "worker#1:before_dead_letter@2=kill"
OF_THE_LETTER = (
    Point.BEFORE_DEAD_LETTER,
    Point.IN_STORE,
    Point.AFTER_DEAD_LETTER,
    Point.BEFORE_PUBLISH,
    Point.IN_PUBLISH,
    Point.AFTER_PUBLISH,
    Point.BEFORE_ACK,
    Point.AFTER_ACK,
)
RESTARTED = (
    "",
    "nats:after_hold@1=kill; nats:after_hold@3=kill",
    "nats:in_attempt@2=restart; nats:after_hold@3=kill; nats:after_dead_letter@2=kill",
)
#: What is told of a call that came to no end.
DIED = "its process died"
TRACE = "7" * 32
NEIGHBOURS = 56


def nameless(sent: Sent) -> Sent:
    """A command without a key: it is known by its own bytes, headers and all."""
    stripped = attrs.evolve(sent.command, idempotency_key=None)
    made = Sent(stripped, expect=("dead",))
    return attrs.evolve(made, key=garbage_key(made.subject, made.body, headers_of(made)))


def headers_of(sent: Sent) -> bytes:
    """The headers under which the client sends a command."""
    return f"NATS/1.0\r\nNats-Msg-Id: {sent.scope}/{sent.command.id}\r\n\r\n".encode()


def workload(seed: int) -> Sequence[Sent]:
    """Poison, and what stands beside and behind it: one full batch."""
    commands = Workload()
    neighbours = iter(range(NEIGHBOURS))

    def beside(count: int) -> None:
        for n in (next(neighbours) for _ in range(count)):
            commands.send("counter", "add", {"amount": n + seed}, entity=f"beside-{n}", expect=["decided"])

    commands.send("counter", "add", {"amount": 5 + seed}, entity="a", expect=["decided"])
    beside(NEIGHBOURS // 2)
    explode = commands.send("counter", "explode", entity="b", expect=["dead"])
    commands.send("counter", "bloat", {"amount": 2_000_000 + seed}, entity="c", expect=["dead"])
    commands.send("counter", "add", {"amount": 2}, entity="b", expect=["decided"])
    keyless = commands.send("counter", "add", {"amount": 3}, entity="a")
    beside(NEIGHBOURS // 2)
    commands.send("counter", "vanish", entity="a", expect=["refused"])
    commands.send("counter", "add", {"amount": 4}, entity="c", expect=["decided"])
    commands.send("counter", "add", {"amount": 6}, entity="a", expect=["decided"], phase="after")
    traced = attrs.evolve(explode, command=attrs.evolve(explode.command, trace_id=TRACE))
    return [nameless(s) if s is keyless else traced if s is explode else s for s in commands]


# -- what a dead letter tells ------------------------------------------------------------------------------------------


def whole(evidence: Evidence) -> Iterator[Finding | int]:
    """Every dead letter, stored and sent, is its original with the story of its calls."""
    sent = {(each.scope, each.key): each for each in evidence.sent}
    letters = {(letter.key, letter.generation): letter for letter in evidence.rows.dead}
    for letter in evidence.rows.dead:
        yield 1
        original = sent.get((letter.scope, letter.key))
        if original is not None:
            for what in (*_unlike(letter, original), *_story(letter)):
                yield Finding(f"dead letter {letter.key!r} {what}", [letter.key], str(letter.scope))
    for message in evidence.failed:
        yield 1
        told = envelope_of(message)
        stored = letters.get((str(told.get("key")), int(told.get("generation", -1))))
        if stored is not None:
            for what in _told_otherwise(stored, told):
                yield Finding(f"dead letter {stored.key!r} {what}", [stored.key], str(stored.scope))


def _unlike(letter: Letter, sent: Sent) -> Iterator[str]:
    stored = (letter.subject, letter.headers, letter.body)
    for name, there, original in zip(
        ("subject", "headers", "payload"), stored, (sent.subject, headers_of(sent), sent.body), strict=True
    ):
        if there != original:
            yield f"has another {name} than was sent: {there!r:.200}"
    if sent.command.trace_id not in (None, letter.trace_id):
        yield f"has trace {letter.trace_id}, it was sent with {sent.command.trace_id}"


def _story(letter: Letter) -> Iterator[str]:
    """One call for each attempt, each with its time, and what it ended with; nothing where its process died."""
    calls = list(letter.calls)
    if calls and letter.code != "attempts_exhausted" and calls[-1][1] == letter.reason:
        # The call that found it to be hopeless is no attempt: there will not be another one.
        calls.pop()
    if len(calls) != letter.attempts:
        yield f"counts {letter.attempts} attempts and tells of {len(calls)} calls"
    times = [at for at, _ in letter.calls]
    if times != sorted(times) or not all(at > 0 for at in times):
        yield f"tells of calls at {times}"
    for _, error in calls:
        if error not in ("", "RuntimeError: boom"):
            yield f"tells of a call that ended with {error!r:.200}"


def _told_otherwise(letter: Letter, told: dict[str, Any] | Any) -> Iterator[str]:
    stored: dict[str, Any] = {
        "subject": letter.subject,
        "headers": letter.headers.decode("latin-1"),
        "payload": letter.body.decode(),
        "trace_id": letter.trace_id,
        "reason": letter.reason,
        "attempts": letter.attempts,
        "calls": [{"at": at, "error": error or DIED} for at, error in letter.calls],
    }
    for field, value in stored.items():
        if told.get(field) != value:
            yield f"is sent with {field} {told.get(field)!r:.200}, and stored with {value!r:.200}"


def said(evidence: Evidence) -> Iterator[Finding | int]:
    """People are told: a critical line in the log for each dead letter, if its worker lived to write it."""
    if not evidence.final:
        return
    lines = [
        line for log in evidence.logs for line in log.splitlines() if "[critical" in line and "dead letter" in line
    ]
    untold = [letter.key for letter in evidence.rows.dead if not any(f"key={letter.key}" in line for line in lines)]
    yield len(evidence.rows.dead)
    if len(untold) > evidence.kills:
        yield Finding(f"no critical line in a log tells of {untold}", untold)


def on_time(evidence: Evidence) -> Iterator[Finding | int]:
    """All others are decided, and, where nothing struck before, when the failing command is called a second time."""
    if not evidence.final:
        return
    (failing,) = [each for each in evidence.sent if each.command.action == "explode"]
    beside = [s.key for s in evidence.sent if str(s.command.entity_id).startswith("beside")]
    yield len(beside)
    numbers = {row.key: row.n for row in evidence.rows.outputs}
    decided = {r["key"]: r.t for r in evidence.history if r.kind == "decided"}
    again = [r.t for r in evidence.history if r.kind == "call" and r["key"] == failing.key][1:2]
    struck = min((r.t for r in evidence.history if r.kind == "fault"), default=0)
    late = [key for key in beside if key not in numbers]
    if again and not 0 < struck < again[0]:
        given_up = numbers.get(failing.key, 0)
        late += [key for key in beside if decided.get(key, 0) > again[0] or numbers.get(key, 0) > given_up]
    if late:
        yield Finding(f"not decided before the second call of {failing.key!r}: {late}", [failing.key, *late])


LETTERS = Checker(
    "whole-letters", "Whole: a dead letter is its original, byte for byte, and the story of its calls.", whole
)
TOLD = Checker("told", "Told: each dead letter is a critical line in the log.", said)
ON_TIME = Checker("on-time", "On time: nobody of another entity waits for a failing command.", on_time)

SCENARIO = Scenario(
    "poison",
    __doc__,
    "chaos.agents:counter_only",
    workload,
    searches=[
        Sweep(points=TO_THE_LETTER, batches=(64,), nth_max=1),
        Sweep(points=OF_THE_LETTER, batches=(64,), before=GIVEN_UP, number=2, nth_max=2),
        Sweep(points=(Point.BEFORE_DEAD_LETTER, Point.AFTER_DEAD_LETTER), batches=(1,), nth_max=1),
        Fixed(RESTARTED),
    ],
    limit=5,
    claims=("G1", "G2", "G3", "G4", "G5", "G6", "G7", "G11", "G12", "G13", "whole-letters", "told", "on-time"),
    invariants=(LETTERS, TOLD, ON_TIME),
)

if __name__ == "__main__":
    main(SCENARIO)
