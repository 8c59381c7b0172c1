"""G5: a decision's parts exist together or not at all."""

from __future__ import annotations

from collections.abc import Iterator

from chaos.checkers.base import Checker, Finding
from chaos.evidence import Evidence


def look(evidence: Evidence) -> Iterator[Finding | int]:
    rows = {(row.scope, row.n): row for row in evidence.rows.outputs}
    owned: set[tuple[object, int]] = set()
    letters = {(scope, key) for scope, key, _ in evidence.rows.dead}
    for record in [*evidence.rows.keys, *evidence.rows.mismatches]:
        yield 1
        for n in range(record.first_n, record.last_n + 1):
            row = rows.get((record.scope, n))
            if row is None:
                yield Finding(f"{record.scope} key {record.key!r} is recorded, its output {n} is missing")
            elif row.key != record.key:
                yield Finding(f"{record.scope} output {n} of key {record.key!r} belongs to {row.key!r}")
            if (record.scope, n) in owned:
                yield Finding(f"{record.scope} output {n} belongs to two decisions")
            owned.add((record.scope, n))
        if record.outcome == "dead" and (record.scope, record.key) not in letters:
            yield Finding(f"{record.scope} key {record.key!r} is dead and its letter is missing")
    for (scope, n), row in rows.items():
        if (scope, n) not in owned:
            yield Finding(f"{scope} output {n} ({row.name}) has no key record")
    decided = {(record.scope, record.key) for record in evidence.rows.keys}
    for scope, key in evidence.rows.attempts:
        if (scope, key) in decided:
            yield Finding(f"{scope} key {key!r} is decided and still counts attempts")


CHECKER = Checker(
    "G5",
    "Atomic: events, key record and outbox rows of a decision exist together or not at all, in every crash image.",
    look,
)
