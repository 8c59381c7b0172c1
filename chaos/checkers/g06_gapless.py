"""G6: versions run 1..n; a conflict never raises one, and is told only where versions differ."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from chaos.checkers.base import Checker, Finding
from chaos.checkers.clues import Clues
from chaos.evidence import Evidence
from chaos.rows import HeadRow, KeyRow, OutputRow
from meshforge_trio.subjects import Scope


def look(evidence: Evidence) -> Iterator[Finding | int]:
    clues = Clues(evidence)
    chains: dict[tuple[Scope, str], list[OutputRow]] = defaultdict(list)
    for scope, rows in clues.by_scope.items():
        for row in rows:
            if row.kind == "event" and row.entity_id is not None:
                chains[scope, row.entity_id].append(row)
            else:
                yield from _beside(clues, row, chains.get((scope, row.entity_id or ""), ()))
    for (scope, entity), chain in chains.items():
        yield 1
        for what in _chain(clues, chain, evidence.rows.heads.get((scope, entity))):
            yield Finding(f"{scope} {entity!r}: {what}", [row.key for row in chain], str(scope))
    for scope, entity in evidence.rows.heads.keys() - chains.keys():
        yield Finding(f"{scope} {entity!r}: has a head and no events", (), str(scope))
    for record in evidence.rows.keys:
        yield from _as_expected(clues, record)


def _beside(clues: Clues, row: OutputRow, before: Sequence[OutputRow]) -> Iterator[Finding | int]:
    """What is no event of an entity has no version, and tells the one that the entity had."""
    told = clues.payload(row)
    what = ""
    if row.version is not None or row.chain is not None or row.prev is not None:
        what = f"a {row.kind} has version {row.version} in the chain of its entity"
    elif row.name == "conflict":
        yield 1
        if told.get("current_version") != len(before):
            what = f"conflict tells version {told.get('current_version')}, it was {len(before)}"
        elif told.get("expected_version") == len(before):
            what = f"conflict at version {len(before)}, which was the one expected"
    elif row.kind == "record" and row.entity_id is not None and told.get("entity_version", len(before)) != len(before):
        what = f"{row.name} tells version {told['entity_version']}, it was {len(before)}"
    if what:
        yield Finding(f"{row.scope} {row.entity_id!r}: {what} (output {row.n})", [row.key], str(row.scope))


def _chain(clues: Clues, chain: Sequence[OutputRow], head: HeadRow | None) -> Iterator[str]:
    versions = [row.version for row in chain]
    if versions != list(range(1, len(chain) + 1)):
        yield f"versions run {versions}"
    told = [clues.payload(row).get("entity_version") for row in chain]
    if told != versions:
        yield f"payloads say {told}, the store {versions}"
    links = [row.prev for row in chain]
    numbers = [0, *(row.n for row in chain)]
    if links != numbers[:-1]:
        yield f"events {numbers[1:]} name {links} as those before them"
    if head is None:
        yield f"has {len(chain)} events and no head"
    elif (head.version, head.last_n) != (len(chain), numbers[-1]):
        last = f"there are {len(chain)} events, the last is output {numbers[-1]}"
        yield f"head says version {head.version} at output {head.last_n}, {last}"


def _as_expected(clues: Clues, record: KeyRow) -> Iterator[Finding | int]:
    """A command that names a version takes effect at that version or not at all."""
    rows = clues.outputs_of(record)
    if record.outcome != "decided" or not rows:
        return
    row = rows[0]
    expected = {command.expected_version for command in clues.commands_of(row)}
    if expected <= {None}:
        return
    yield 1
    found = row.version - 1 if row.version is not None else clues.payload(row).get("entity_version")
    if found not in expected:
        what = f"key {record.key!r} expected version {sorted(map(str, expected))} and was decided at {found}"
        yield Finding(f"{record.scope} {row.entity_id!r}: {what}", [record.key], str(record.scope))


CHECKER = Checker(
    "G6",
    "Gapless: `entity_version` runs 1..n per entity without gap or fork; a conflict is stored and never raises it.",
    look,
)
