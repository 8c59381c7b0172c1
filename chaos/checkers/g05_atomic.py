"""G5: a decision's parts exist together or not at all, and belong to each other.

A dead letter's fate is part of the decision that seals it: a redrive says so, frees the key, raises its generation and
sends the command again, or does nothing of it.
"""

from __future__ import annotations

import base64
import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from chaos.checkers.base import Checker, Finding
from chaos.checkers.clues import Clues
from chaos.evidence import Evidence
from chaos.rows import KeyRow, Letter, OutputRow
from meshforge_trio.subjects import Scope

#: Names of records that say no: a decision that did something has none of them.
_NOES: Final = frozenset({"conflict", "dead_letter", "dead_lettered", "refused", "violation"})

#: What is sent of a dead letter: itself, and what its caller is told.
_DEAD: Final = [("dead", "dead_letter"), ("record", "dead_lettered")]


def look(evidence: Evidence) -> Iterator[Finding | int]:
    clues = Clues(evidence)
    yield from _owned(clues)
    for record in evidence.rows.keys:
        yield from (_of(record, what) for what in _unlike(clues, record, record.outcome))
    for record in evidence.rows.mismatches:
        yield from (_of(record, what) for what in _unlike(clues, record, "mismatch"))
    yield from _numbered(clues)
    for row in evidence.rows.outputs:
        yield from _as_its_body(clues, row)
    yield from _letters(clues)
    yield from _generations(clues)
    yield from _fates(clues)
    for scope, key in evidence.rows.attempts:
        yield 1
        asked = clues.asked.get((scope, key))
        # Sent twice, the second may be run alone, and so be counted, while the first is just being decided.
        again = asked is not None and len(asked.ids) > 1 and not clues.settled
        if (scope, key) in clues.records and not again:
            yield Finding(f"{scope} key {key!r} is decided and still counts attempts", [key], str(scope))


def _of(record: KeyRow, what: str) -> Finding:
    return Finding(f"{record.scope} key {record.key!r} {what}", [record.key], str(record.scope))


def _owned(clues: Clues) -> Iterator[Finding | int]:
    """Every output belongs to one record, and every record has its outputs."""
    owners: dict[tuple[Scope, int], list[KeyRow]] = defaultdict(list)
    for record in [*clues.evidence.rows.keys, *clues.evidence.rows.mismatches]:
        yield 1
        for n in range(record.first_n, record.last_n + 1):
            owners[record.scope, n].append(record)
            row = clues.outputs.get((record.scope, n))
            if row is None:
                yield _of(record, f"is recorded, its output {n} is missing")
            elif row.key != record.key:
                yield _of(record, f"claims output {n}, which belongs to {row.key!r}")
    for (scope, n), records in owners.items():
        if len(records) > 1:
            keys = [record.key for record in records]
            yield Finding(f"{scope} output {n} belongs to {len(records)} decisions, of {keys}", keys, str(scope))
    for row in clues.evidence.rows.outputs:
        if (row.scope, row.n) not in owners and not clues.redriven(row):
            yield Finding(f"{row.scope} output {row.n} ({row.name}) has no key record", [row.key], str(row.scope))


def _unlike(clues: Clues, record: KeyRow, outcome: str) -> Iterator[str]:
    """How the outputs of a record are not what its outcome says."""
    rows = clues.outputs_of(record)
    if len(rows) != record.last_n - record.first_n + 1:
        return  # those that are missing are told already
    if not rows:
        # Only an event may lead to nothing: every command is answered.
        if not record.key.startswith("evt:"):
            yield "is recorded, and has no outputs"
        return
    shapes = [(row.kind, row.name) for row in rows]
    told = clues.payload(rows[0])
    match outcome:
        case "dead":
            fits = shapes == _DEAD
        case "conflict" | "violation":
            fits = shapes == [("record", outcome)]
        case "refused":
            fits = [kind for kind, _ in shapes] == ["record"] and {"code", "reason"} <= told.keys()
        case "mismatch":
            fits = shapes == [("record", "refused")] and told.get("code") == "idempotency_mismatch"
        case _:
            fits = not any(name in _NOES for _, name in shapes)
            if ("record", "redriven") in shapes:
                fits = len(shapes) == 2 and shapes[1][0] == "command"
    if not fits:
        yield f"is recorded as {outcome}, its outputs are {shapes}"


def _numbered(clues: Clues) -> Iterator[Finding]:
    """Outputs are numbered from 1 without a gap."""
    for scope, rows in clues.by_scope.items():
        for n, row in enumerate(rows, 1):
            if row.n != n:
                what = f"outputs are numbered from 1 on, and where {n} should be there is {row.n}"
                yield Finding(f"{scope}: {what}", [row.key], str(scope))
                break


def _as_its_body(clues: Clues, row: OutputRow) -> Iterator[Finding]:
    """A row and its body name the same thing."""
    told = clues.told(row)
    pairs: dict[str, str | None]
    if row.kind == "dead":
        pairs = {"key": row.key}
    elif row.kind == "command":
        pairs = {"id": row.event_id, "action": row.name, "entity_id": row.entity_id}
    else:
        pairs = {"id": row.event_id, "name": row.name, "idempotency_key": row.key, "entity_id": row.entity_id}
    for field, value in pairs.items():
        if told.get(field) != value:
            what = f"output {row.n} is {field} {value!r}, its body says {told.get(field)!r:.100}"
            yield Finding(f"{row.scope} {what}", [row.key], str(row.scope))


def _letters(clues: Clues) -> Iterator[Finding | int]:
    """A dead letter has its record, its row and its output."""
    for record in clues.evidence.rows.keys:
        letters = [letter.generation for letter in clues.letters.get((record.scope, record.key), ())]
        if record.outcome == "dead" and record.generation not in letters:
            yield _of(record, f"is dead, and its letter of generation {record.generation} is missing")
        if record.outcome != "dead" and record.generation in letters:
            yield _of(record, f"is {record.outcome}, and has a dead letter of the same generation")
    for letter in clues.evidence.rows.dead:
        yield 1
        name = f"{letter.scope} key {letter.key!r}"
        rows = clues.fates.outputs.get((letter.scope, letter.key, letter.generation), ())
        shapes = [(row.kind, row.name) for row in rows]
        if letter.state == "redriven" and shapes != _DEAD:
            what = f"was dead in generation {letter.generation}, the outputs of that are {shapes}"
            yield Finding(f"{name} {what}", [letter.key], str(letter.scope))
        for row in rows[:1]:
            wrong = _misquoted(letter, clues.told(row))
            if wrong:
                what = f"the letter sent is not the one stored: {', '.join(wrong)} differ"
                yield Finding(f"{name}: {what}", [letter.key], str(letter.scope))


def _generations(clues: Clues) -> Iterator[Finding | int]:
    """Whatever was redriven is free or decided anew, in the next generation; whatever was not still stands."""
    rows = clues.evidence.rows
    for (scope, key), letters in clues.letters.items():
        yield 1
        record, raised = clues.records.get((scope, key)), rows.generations.get((scope, key), 0)
        for what in _unlike_its_letters(letters, record, raised):
            yield Finding(f"{scope} key {key!r} {what}", [key], str(scope))
    for record in rows.keys:
        raised = rows.generations.get((record.scope, record.key), 0)
        if record.generation != raised:
            yield _of(record, f"is decided in generation {record.generation}, and {raised} is its generation")
    for scope, key in rows.generations.keys() - clues.letters.keys():
        yield Finding(f"{scope} key {key!r} was redriven, and has no dead letter", [key], str(scope))


def _unlike_its_letters(letters: Sequence[Letter], record: KeyRow | None, raised: int) -> Iterator[str]:
    found = [letter.generation for letter in letters]
    if found != list(range(len(letters))):
        yield f"has dead letters of generations {found}"
    for letter in letters[:-1]:
        if letter.state != "redriven":
            yield f"has a dead letter of generation {letter.generation} that is {letter.state}, and a later one"
    last = letters[-1]
    past = last.state == "redriven"
    if raised != last.generation + past:
        yield f"has a dead letter of generation {last.generation} that is {last.state}, and its generation is {raised}"
    if past and record is not None and record.generation <= last.generation:
        yield f"was redriven, and its record of generation {record.generation} stands"
    if not past and record is None:
        yield f"has a dead letter that is {last.state}, and no record"


def _fates(clues: Clues) -> Iterator[Finding | int]:
    """What is said of a dead letter is what its row says, and who says so."""
    sealed = {(fate.scope, fate.key, fate.generation, fate.record.name): fate for fate in clues.fates.decided}
    for letter in clues.evidence.rows.dead:
        yield 1
        place = (letter.scope, letter.key, letter.generation)
        name = f"{letter.scope} key {letter.key!r}: its dead letter of generation {letter.generation}"
        for fate in ("redriven", "discarded"):
            if ((*place, fate) in sealed) != (letter.state == fate):
                what = f"is {letter.state}, and {'an' if letter.state != fate else 'no'} output says that it was {fate}"
                yield Finding(f"{name} {what}", [letter.key], str(letter.scope))
    for fate_of in sealed.values():
        if fate_of.record.name == "redriven" and fate_of.again is None:
            what = f"key {fate_of.key!r} was redriven, and nothing was sent again"
            yield Finding(f"{fate_of.scope} {what}", [fate_of.key], str(fate_of.scope))


def _misquoted(letter: Letter, told: Mapping[str, Any]) -> Sequence[str]:
    """What the letter that is sent says otherwise than the one that is stored. A long original goes as its hash."""
    body = letter.body
    stored = {"subject": letter.subject, "generation": letter.generation, "code": letter.code}
    stored["attempts"] = letter.attempts
    if "payload_sha256" in told:
        stored["payload_sha256"] = hashlib.sha256(body).hexdigest()
    elif "payload_base64" in told:
        stored["payload_base64"] = base64.b64encode(body).decode()
    else:
        stored["payload"] = body.decode(errors="replace")
    return [field for field, value in stored.items() if told.get(field) != value]


CHECKER = Checker(
    "G5",
    "Atomic: events, key record and outbox rows of a decision exist together or not at all, in every crash image.",
    look,
)
