"""G11: poison goes to the dead-letter stream once, after the limit, alone.

A command with nothing wrong about it may still end as a dead letter where workers died, or were stopped, during its
attempts each time: those are counted against it, and no others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

from chaos.checkers.base import Checker, Finding
from chaos.checkers.clues import Clues, scope_of
from chaos.evidence import Evidence, envelope_of
from chaos.rows import KeyRow, Letter
from meshforge_trio.subjects import FAILED

#: Why a letter was written whose command failed too often.
_EXHAUSTED: Final = "attempts_exhausted"


def look(evidence: Evidence) -> Iterator[Finding | int]:
    clues = Clues(evidence)
    yield from _once(clues)
    yield from _only_what_is_dead(clues)
    yield from _the_right_ones(clues)
    if evidence.limit:
        yield from _after_the_limit(clues)
    if evidence.final:
        yield from _blocking_nobody(clues)


def _of(record: KeyRow, what: str) -> Finding:
    return Finding(f"{record.scope} key {record.key!r} {what}", [record.key], str(record.scope))


def _once(clues: Clues) -> Iterator[Finding | int]:
    letters = Counter(
        (m.subject, str(envelope_of(m).get("key")), envelope_of(m).get("generation")) for m in clues.evidence.failed
    )
    for (subject, key, generation), count in letters.items():
        yield 1
        if count > 1:
            yield Finding(f"{subject} key {key!r} generation {generation} was dead-lettered {count} times", [key])
    if not clues.settled or clues.first_seq(FAILED) > 1:
        return
    there = set(clues.id_at[FAILED].values())
    for record in clues.evidence.rows.keys:
        if record.outcome != "dead":
            continue
        yield 1
        if not any(row.kind == "dead" and row.msg_id in there for row in clues.outputs_of(record)):
            yield _of(record, f"is dead, and its letter is not in {FAILED}")


def _only_what_is_dead(clues: Clues) -> Iterator[Finding]:
    for message in clues.evidence.failed:
        row = clues.by_msg_id.get(message.msg_id)
        record = None if row is None else clues.records.get((row.scope, row.key))
        key = str(envelope_of(message).get("key"))
        if row is None or record is None:
            yield Finding(f"{message.subject} key {key!r} was dead-lettered, and no record says so", [key])
        elif record.outcome != "dead" and not clues.redriven(row):
            yield _of(record, f"was dead-lettered and is {record.outcome}")


def _the_right_ones(clues: Clues) -> Iterator[Finding | int]:
    """Poison is set aside, and nothing else."""
    seen: set[tuple[object, ...]] = set()
    for sent in clues.evidence.sent:
        record = clues.decision(sent) if sent.expect else None
        if record is None or (record.scope, record.key, record.payload_hash) in seen:
            continue
        seen.add((record.scope, record.key, record.payload_hash))
        yield 1
        if "dead" in sent.expect:
            if record.outcome not in sent.expect:
                yield _of(record, f"is poison and was {record.outcome}")
        elif record.outcome == "dead" and not any(
            _bad_luck(clues, letter) for letter in clues.letters.get((record.scope, record.key), ())
        ):
            yield _of(record, "is dead, though nothing was wrong with it")


def _bad_luck(clues: Clues, letter: Letter) -> bool:
    """Whether something befell its worker in each of the attempts counted."""
    befell = sum(i.concerns(str(letter.scope), letter.key) for i in clues.strikes.incidents)
    return 1 <= letter.attempts <= befell


def _after_the_limit(clues: Clues) -> Iterator[Finding | int]:
    limit, strikes = clues.evidence.limit, clues.strikes
    calls = clues.evidence.calls
    for (scope, key), count in calls.items():
        if key.startswith("query:"):
            continue  # a query may be answered as often as it is asked
        yield 1
        if count > limit + strikes.uncounted_calls:
            what = f"the handler of {scope} key {key!r} was called {count} times, the limit is {limit}"
            yield Finding(what, [key], scope)
    for letter in clues.evidence.rows.dead:
        yield 1
        name = f"{letter.scope} key {letter.key!r}"
        if letter.code == _EXHAUSTED and letter.attempts < limit - 1:
            what = f"was given up after {letter.attempts} attempts, the limit is {limit}"
            yield Finding(f"{name} {what}", [letter.key], str(letter.scope))
        # An attempt is counted first: its worker may have died before the call.
        uncalled = sum(i.concerns(str(letter.scope), letter.key) for i in strikes.incidents)
        made = calls.get((str(letter.scope), letter.key), 0)
        if calls and letter.attempts > made + uncalled:
            what = f"was given up for {letter.attempts} attempts, and its handler was called {made} times"
            yield Finding(f"{name} {what}", [letter.key], str(letter.scope))


def _blocking_nobody(clues: Clues) -> Iterator[Finding]:
    """While one command fails again and again, those of other entities do not wait to be called at all."""
    spawned = [record.actor for record in clues.evidence.history if record.kind == "spawn"]
    calls = [record for record in clues.evidence.history if record.kind == "call"]
    ever = {(record["scope"], record["key"]) for record in calls}
    of_last = Counter((record["scope"], record["key"]) for record in calls if record.actor in spawned[-1:])
    for scope in sorted({scope for scope, _ in clues.evidence.rows.attempts}):
        failing = sorted(k for at, k in clues.evidence.rows.attempts if at == scope and of_last[str(scope), k] > 1)
        asked = [clues.asked[scope, key] for key in failing if (scope, key) in clues.asked]
        entities = {command.entity_id for each in asked for command in each.commands}
        for message in clues.evidence.commands if failing else ():
            told = envelope_of(message)
            key = str(told.get("idempotency_key"))
            here = scope_of(message.subject) == scope and (str(scope), key) not in ever
            if here and told.get("entity_id") not in entities:
                what = f"{failing} failed again and again, and key {key!r} of another entity was never called"
                yield Finding(f"{scope}: {what}", [key, *failing], str(scope))


CHECKER = Checker(
    "G11",
    "Set aside once: a poison command reaches the dead-letter stream exactly once, after the limit, and blocks no "
    "other entity.",
    look,
)
