"""G6: versions run 1..n; a conflict never raises one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from chaos.checkers.base import Checker, Finding
from chaos.evidence import Evidence, OutputRow, envelope_of
from meshforge_trio.subjects import Scope


def look(evidence: Evidence) -> Iterator[Finding | int]:
    chains: dict[tuple[Scope, str], list[OutputRow]] = defaultdict(list)
    for row in sorted(evidence.rows.outputs, key=lambda row: (row.scope, row.n)):
        if row.entity_id is None:
            continue
        chain = chains[row.scope, row.entity_id]
        if row.kind == "event":
            chain.append(row)
        elif row.name == "conflict":
            yield 1
            told = envelope_of(row)["payload"]["current_version"]
            if row.version is not None or told != len(chain):
                yield Finding(f"{row.scope} {row.entity_id!r}: conflict tells version {told}, it was {len(chain)}")
    for (scope, entity), chain in chains.items():
        yield 1
        versions = [row.version for row in chain]
        if versions != list(range(1, len(chain) + 1)):
            yield Finding(f"{scope} {entity!r}: versions run {versions}")
        told = [envelope_of(row)["payload"].get("entity_version") for row in chain]
        if told != versions:
            yield Finding(f"{scope} {entity!r}: payloads say {told}, the store {versions}")
        head = evidence.rows.heads.get((scope, entity), (0, b""))[0]
        if head != len(chain):
            yield Finding(f"{scope} {entity!r}: head says version {head}, there are {len(chain)} events")


CHECKER = Checker(
    "G6",
    "Gapless: `entity_version` runs 1..n per entity without gap or fork; a conflict is stored and never raises it.",
    look,
)
