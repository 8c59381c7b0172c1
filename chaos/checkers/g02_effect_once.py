"""G2: one decision per key."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from chaos.checkers.base import Checker, Finding
from chaos.evidence import Evidence, envelope_of
from meshforge_trio.subjects import Scope


def look(evidence: Evidence) -> Iterator[Finding | int]:
    refusals = {(row.scope, n) for row in evidence.rows.mismatches for n in range(row.first_n, row.last_n + 1)}
    causes: dict[tuple[Scope, str, int], set[str]] = defaultdict(set)
    generations = {
        (row.scope, n): row.generation for row in evidence.rows.keys for n in range(row.first_n, row.last_n + 1)
    }
    for row in evidence.rows.outputs:
        if row.kind not in ("event", "record") or (row.scope, row.n) in refusals:
            continue
        envelope = envelope_of(row)
        key = envelope.get("idempotency_key")
        if key is not None:
            place = (row.scope, key, generations.get((row.scope, row.n), 0))
            causes[place].add(str(envelope.get("causation_id")))
    for (scope, key, _), ids in causes.items():
        yield 1
        if len(ids) > 1:
            yield Finding(f"{scope} key {key!r} took effect {len(ids)} times, for the commands {sorted(ids)}")
    seen: dict[tuple[Scope, str], int] = defaultdict(int)
    for record in evidence.rows.keys:
        seen[record.scope, record.key] += 1
    for (scope, key), count in seen.items():
        if count > 1:
            yield Finding(f"{scope} key {key!r} has {count} committed decisions")


CHECKER = Checker(
    "G2",
    "Effect once: at most one committed decision per (tenant, workspace, agent, idempotency key), for ever, "
    "not for a window.",
    look,
)
