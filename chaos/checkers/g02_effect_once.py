"""G2: one decision per key, and one fate per dead letter.

A redrive frees the key: what the dead letter had said stays, and the key is decided once more.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

from chaos.checkers.base import Checker, Finding
from chaos.checkers.clues import Clues
from chaos.evidence import Evidence
from chaos.rows import OutputRow
from meshforge_trio.subjects import Scope


def look(evidence: Evidence) -> Iterator[Finding | int]:
    clues = Clues(evidence)
    yield from _records(clues)
    yield from _fates(clues)
    refusals = {(row.scope, row.n) for record in evidence.rows.mismatches for row in clues.outputs_of(record)}
    effects: dict[tuple[Scope, str], list[OutputRow]] = defaultdict(list)
    for row in evidence.rows.outputs:
        if (row.scope, row.n) not in refusals:
            effects[row.scope, row.key].append(row)
    for (scope, key), rows in effects.items():
        yield 1
        current = [row for row in rows if not clues.redriven(row)]
        causes = {str(clues.told(row)["causation_id"]) for row in current if "causation_id" in clues.told(row)}
        if len(causes) > 1:
            what = f"{scope} key {key!r} took effect {len(causes)} times, for the commands {sorted(causes)}"
            yield Finding(what, [key], str(scope))
        record = clues.records.get((scope, key))
        beside = [row.n for row in current if record and not record.first_n <= row.n <= record.last_n]
        if record and beside:
            what = f"its decision is outputs {record.first_n} to {record.last_n}, and there are {beside} beside"
            yield Finding(f"{scope} key {key!r} took effect again: {what}", [key], str(scope))
        twice = sorted(id_ for id_, count in Counter(row.event_id for row in current).items() if count > 1)
        if twice:
            yield Finding(f"{scope} key {key!r} was decided twice: two outputs each are {twice}", [key], str(scope))


def _records(clues: Clues) -> Iterator[Finding | int]:
    seen = Counter((record.scope, record.key) for record in clues.evidence.rows.keys)
    seen_refused = Counter((r.scope, r.key, r.payload_hash) for r in clues.evidence.rows.mismatches)
    for (scope, key), count in seen.items():
        yield 1
        if count > 1:
            yield Finding(f"{scope} key {key!r} has {count} committed decisions", [key], str(scope))
    for (scope, key, digest), count in seen_refused.items():
        yield 1
        record = clues.records.get((scope, key))
        if count > 1:
            yield Finding(f"{scope} key {key!r} was refused {count} times for one payload", [key], str(scope))
        if record is None or record.payload_hash == digest:
            first = "has no decision" if record is None else "was decided for the same payload"
            yield Finding(f"{scope} key {key!r} was refused as used for something else, and {first}", [key], str(scope))


def _fates(clues: Clues) -> Iterator[Finding | int]:
    """A dead letter is redriven once or discarded once, however often that is asked for."""
    seen: dict[tuple[Scope, str, int], list[str]] = defaultdict(list)
    for fate in clues.fates.decided:
        seen[fate.scope, fate.key, fate.generation].append(fate.record.name)
    for (scope, key, generation), names in seen.items():
        yield 1
        if len(names) > 1:
            what = f"the dead letter of key {key!r}, generation {generation}, was {' and '.join(names)}"
            yield Finding(f"{scope}: {what}", [key], str(scope))


CHECKER = Checker(
    "G2",
    "Effect once: at most one committed decision per (tenant, workspace, agent, idempotency key), for ever, "
    "not for a window.",
    look,
)
