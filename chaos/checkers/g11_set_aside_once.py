"""G11: poison goes to the dead-letter stream once, after the limit, alone.

A command with nothing wrong about it may still end as a dead letter where workers died, or were stopped, during its
attempts each time: those are counted against it, and no others. Each generation of a key has its own letter and its
own attempts; a redrive begins the next one.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Final

from chaos.checkers.base import Checker, Finding
from chaos.checkers.clues import Clues, scope_of
from chaos.evidence import Evidence, envelope_of
from chaos.rows import KeyRow, Letter
from meshforge_trio.subjects import FAILED

#: Why a letter was written whose command failed too often.
_EXHAUSTED: Final = "attempts_exhausted"

_Calls = Mapping[tuple[str, str], Mapping[int, int]]


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
    # By what it says: under another's id it would be taken for that one.
    there = {(message.msg_id, envelope_of(message).get("generation")) for message in clues.evidence.failed}
    for record in clues.evidence.rows.keys:
        if record.outcome != "dead":
            continue
        yield 1
        if not any(row.kind == "dead" and (row.msg_id, record.generation) in there for row in clues.outputs_of(record)):
            yield _of(record, f"is dead, and its letter is not in {FAILED}")
    for letter in clues.evidence.rows.dead:
        if letter.state != "redriven":
            continue
        yield 1
        rows = clues.fates.outputs.get((letter.scope, letter.key, letter.generation), ())
        if not any((row.msg_id, letter.generation) in there for row in rows):
            what = f"was redriven, and its letter of generation {letter.generation} is not in {FAILED}"
            yield Finding(f"{letter.scope} key {letter.key!r} {what}", [letter.key], str(letter.scope))


def _only_what_is_dead(clues: Clues) -> Iterator[Finding]:
    for message in clues.evidence.failed:
        row = clues.by_msg_id.get(message.msg_id)
        record = None if row is None else clues.records.get((row.scope, row.key))
        key = str(envelope_of(message).get("key"))
        if row is not None and clues.redriven(row):
            continue
        if row is None or record is None:
            yield Finding(f"{message.subject} key {key!r} was dead-lettered, and no record says so", [key])
        elif record.outcome != "dead":
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
            continue
        letters = clues.letters.get((record.scope, record.key), ()) if record.generation or _is_dead(record) else ()
        if (_is_dead(record) and not letters) or not all(_bad_luck(clues, letter) for letter in letters):
            yield _of(record, "is dead, though nothing was wrong with it")


def _is_dead(record: KeyRow) -> bool:
    return record.outcome == "dead"


def _bad_luck(clues: Clues, letter: Letter) -> bool:
    """Whether something befell its worker in each of the attempts counted."""
    befell = sum(i.concerns(str(letter.scope), letter.key) for i in clues.strikes.incidents)
    return 1 <= letter.attempts <= befell


def _after_the_limit(clues: Clues) -> Iterator[Finding | int]:
    limit, strikes = clues.evidence.limit, clues.strikes
    calls = _calls(clues)
    yield from _called_too_often(clues, calls)
    for (scope, key), letters in clues.letters.items():
        # An attempt is counted first: its worker may have died before the call.
        uncalled = sum(i.concerns(str(scope), key) for i in strikes.incidents)
        name, counted = f"{scope} key {key!r}", 0
        for letter in letters:
            yield 1
            if letter.code == _EXHAUSTED and letter.attempts < limit - 1:
                what = f"was given up after {letter.attempts} attempts, the limit is {limit}"
                yield Finding(f"{name} {what}", [key], str(scope))
            counted += letter.attempts
            made = sum(n for begun, n in calls.get((str(scope), key), {}).items() if begun <= letter.generation)
            if calls and counted > made + uncalled:
                what = f"was given up for {counted} attempts, and its handler was called {made} times"
                yield Finding(f"{name} {what}", [key], str(scope))


def _called_too_often(clues: Clues, calls: _Calls) -> Iterator[Finding | int]:
    """More often than all generations together allow, or those since a redrive."""
    limit, uncounted = clues.evidence.limit, clues.strikes.uncounted_calls
    raised = {(str(scope), key): count for (scope, key), count in clues.evidence.rows.generations.items()}
    for (scope, key), counts in calls.items():
        if key.startswith("query:"):
            continue  # a query may be answered as often as it is asked
        yield 1
        for begun in sorted(counts):
            made = sum(n for other, n in counts.items() if other >= begun)
            most = limit * max(1, 1 + raised.get((scope, key), 0) - begun)
            if made > most + uncounted:
                since = f" since generation {begun}" if begun else ""
                what = f"was called {made} times{since}, the limit is {most}"
                yield Finding(f"the handler of {scope} key {key!r} {what}", [key], scope)


def _calls(clues: Clues) -> _Calls:
    """How often each key's handler was called, by (scope as text, key) and then by the generation at the earliest.

    What was sent again has an id of its own, which was there in no generation before. It may be called in a later one:
    whoever dies before an ACK leaves it in the stream.
    """
    begun = {(str(scope), key, id_): n for (scope, key, id_), n in clues.fates.generation_of.items()}
    found: dict[tuple[str, str], Counter[int]] = defaultdict(Counter)
    for record in clues.evidence.history:
        if record.kind == "call":
            place = (record["scope"], record["key"])
            found[place][begun.get((*place, record["id"]), 0)] += 1
    return dict(found)


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
