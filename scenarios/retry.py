"""What is tried again, and how: python scenarios/retry.py

Two agents stand side by side. One follows the general policy: whoever fails holds its entity, four calls at most. The
other has a policy of its own: three calls, nobody waits behind a failure, and its exceptions have meanings: one class
is poison, one of its subclasses is not, one is an answer. Among its commands is one that fails until another one has
passed it, one that takes longer than the broker waits for an answer, and one that takes longer than it may. The worker
is killed at every step.

What must hold: a failure that heals is decided in the end. Poison is set aside at once, a refusal is answered at once,
everything else when its own agent's limit is reached. Behind a held failure nobody passes, behind the other one does.
A call that takes too long is cancelled, and is an attempt; one that only takes long keeps its command in hand, and is
called once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import attrs

from chaos.checkers import Checker, Finding
from chaos.evidence import Evidence, Sent, envelope_of
from chaos.rows import Letter
from chaos.scenario import Scenario
from chaos.script import main
from chaos.sweep import Fixed, Sweep
from chaos.workload import Workload
from meshforge_trio.points import Point
from meshforge_trio.subjects import Scope

COUNTER: Final = Scope("default", "demo", "counter")
MOODY: Final = Scope("default", "demo", "moody")
#: How often each agent's handlers may be called for one command.
LIMITS: Final = {COUNTER: 4, MOODY: 3}

EACH_STEP = (
    Point.RECEIVED,
    Point.BEFORE_HOLD,
    Point.IN_STORE,
    Point.AFTER_HOLD,
    Point.AFTER_PUBLISH,
    Point.AFTER_ACK,
    Point.BEFORE_ATTEMPT,
    Point.IN_ATTEMPT,
    Point.BEFORE_DEAD_LETTER,
    Point.AFTER_DEAD_LETTER,
)


@attrs.frozen
class End:
    """What must come of a key: its outcome, with which code it is told, and what its calls end with."""

    outcome: str
    code: str = ""
    error: str = ""


ENDS: Final[Mapping[tuple[Scope, str], End]] = {
    (MOODY, "k1"): End("decided"),
    (COUNTER, "k3"): End("dead", "attempts_exhausted", "ArithmeticError: 3 is more than 0"),
    (COUNTER, "k4"): End("decided"),
    (MOODY, "k5"): End("refused", "PermissionError"),
    (MOODY, "k6"): End("dead", "IndexError"),
    (MOODY, "k7"): End("dead", "attempts_exhausted", "KeyError: 'not there yet'"),
    (MOODY, "k8"): End("dead", "attempts_exhausted", "the handler took longer than 0.8 s and was cancelled"),
    (MOODY, "k9"): End("decided"),
}


def workload(seed: int) -> Sequence[Sent]:
    """One command for each meaning that an error may have."""
    commands = Workload()
    commands.send("moody", "draw", {"amount": 3}, entity="m", expect=["decided"])
    commands.send("counter", "fund", {"amount": 3 + seed}, entity="m", expect=["decided"])
    commands.send("counter", "draw", {"amount": 3}, entity="h", expect=["dead"])
    commands.send("counter", "add", {"amount": 3 + seed}, entity="h", expect=["decided"])
    commands.send("moody", "forbid", entity="f", expect=["refused"])
    commands.send("moody", "miss", entity="g", expect=["dead"])
    commands.send("moody", "stray", entity="i", expect=["dead"])
    commands.send("moody", "wait", {"seconds": 30.0}, entity="w", expect=["dead"])
    commands.send("moody", "wait", {"seconds": 0.6}, entity="l", expect=["decided"])
    commands.send("moody", "add", {"amount": 1}, entity="m", expect=["decided"], phase="after")
    return commands


def by_policy(evidence: Evidence) -> Iterator[Finding | int]:
    """Each command ended as the policy of its agent says, after as many calls."""
    if not evidence.final:
        return
    records = {(record.scope, record.key): record for record in evidence.rows.keys}
    told = {(row.scope, row.n): envelope_of(row).get("payload") for row in evidence.rows.outputs}
    letters = {(letter.scope, letter.key): letter for letter in evidence.rows.dead}
    struck = any(record.kind == "fault" for record in evidence.history)
    for (scope, key), end in ENDS.items():
        yield 1
        record, made = records.get((scope, key)), evidence.calls.get((str(scope), key), 0)
        what: list[str] = []
        if record is None or record.outcome != end.outcome:
            what.append(f"is {record and record.outcome}, not {end.outcome}")
        elif end.outcome == "refused":
            what += _refused(told.get((scope, record.first_n)), end)
        elif end.outcome == "dead":
            what += _dead(letters[scope, key], end, LIMITS[scope], struck)
        if made > LIMITS[scope]:
            what.append(f"was called {made} times, the limit of its agent is {LIMITS[scope]}")
        if not struck and made != _calls(scope, key, end):
            what.append(f"was called {made} times, not {_calls(scope, key, end)}")
        yield from (Finding(f"{scope} key {key!r} {each}", [key], str(scope)) for each in what)


def in_hand(evidence: Evidence) -> Iterator[Finding | int]:
    """Nothing comes again but what a worker had in hand when it was killed: a duplicate would be answered once more."""
    if not evidence.final:
        return
    heard = Counter(msg_id for msg_id, _ in evidence.received)
    for row in evidence.rows.outputs:
        if row.kind in ("event", "record"):
            yield 1
            if heard[row.msg_id] > 1 + evidence.kills:
                what = f"key {row.key!r} was sent once, and its answer heard {heard[row.msg_id]} times"
                yield Finding(f"{row.scope} {what}", [row.key], str(row.scope))


def _calls(scope: Scope, key: str, end: End) -> int:
    """How often a handler is called where nothing strikes: the one that heals is called again when it can work."""
    if end.code == "attempts_exhausted":
        return LIMITS[scope] - 1
    return 2 if (scope, key) == (MOODY, "k1") else 1


def _refused(payload: Any, end: End) -> Iterator[str]:
    if not isinstance(payload, dict) or payload.get("code") != end.code:
        yield f"was refused with {payload!r:.200}, not with code {end.code}"


def _dead(letter: Letter, end: End, limit: int, struck: bool) -> Iterator[str]:
    if letter.code != end.code:
        yield f"was given up with code {letter.code}, not {end.code}"
    attempts = limit - 1 if end.code == "attempts_exhausted" else 0
    if letter.attempts != attempts and not (struck and letter.attempts <= attempts):
        yield f"was given up after {letter.attempts} attempts, not {attempts}"
    other = [error for _, error in letter.calls if end.error and error not in ("", end.error)]
    if other:
        yield f"tells of calls that ended with {other}, not with {end.error!r}"


def who_passes(evidence: Evidence) -> Iterator[Finding | int]:
    """Nobody passes a failure that holds its entity; the other one waits for somebody to pass."""
    first = {(record.scope, record.key): record.first_n for record in evidence.rows.keys}
    if (COUNTER, "k4") in first:
        yield 1
        if first.get((COUNTER, "k3"), first[COUNTER, "k4"]) >= first[COUNTER, "k4"]:
            yield Finding("key 'k4' passed 'k3', which held its entity", ["k3", "k4"], str(COUNTER))
    if (MOODY, "k1") in first:
        yield 1
        funds = [r.n for r in evidence.rows.outputs if (r.scope, r.entity_id, r.name) == (MOODY, "m", "added")]
        if not funds or min(funds) > first[MOODY, "k1"]:
            yield Finding("key 'k1' was decided before anybody had passed it", ["k1"], str(MOODY))


SCENARIO = Scenario(
    "retry",
    __doc__,
    "chaos.agents:counter_and_moody",
    workload,
    searches=[Fixed([""]), Sweep(points=EACH_STEP, batches=(64,), nth_max=1)],
    engine={"ack_wait_s": 0.4},
    retry={"limit": 4},
    limit=0,
    claims=("G1", "G2", "G3", "G4", "G5", "G6", "G7", "G11", "G12", "G13", "by-policy", "in-hand", "who-passes"),
    invariants=(
        Checker("in-hand", "In hand: what only takes long is not delivered again.", in_hand),
        Checker(
            "by-policy", "By policy: each command ends as its agent's policy says, after as many calls.", by_policy
        ),
        Checker(
            "who-passes", "Who passes: nobody where an entity is held, and whoever comes where it is not.", who_passes
        ),
    ),
)

if __name__ == "__main__":
    main(SCENARIO)
