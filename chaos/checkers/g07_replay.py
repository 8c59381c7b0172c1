"""G7: the store rebuilt gives the recorded hash."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from chaos.checkers.base import Checker, Finding
from chaos.evidence import Evidence
from meshforge_trio.subjects import Scope


def look(evidence: Evidence) -> Iterator[Finding | int]:
    chains: dict[tuple[Scope, str], bytes] = {}
    for row in sorted(evidence.rows.outputs, key=lambda row: (row.scope, row.entity_id or "", row.version or 0)):
        if row.version is None or row.entity_id is None:
            continue
        yield 1
        place = (row.scope, row.entity_id)
        chains[place] = hashlib.sha256(chains.get(place, b"") + row.body).digest()
        if chains[place] != row.chain:
            yield Finding(f"{row.scope} {row.entity_id!r} version {row.version}: body does not hash to its chain")
    for place, (_, chain) in evidence.rows.heads.items():
        if chains.get(place, b"") != chain:
            yield Finding(f"{place[0]} {place[1]!r}: events do not hash to the head")
    for scope, (live, replayed) in evidence.state_hashes.items():
        yield 1
        if live != replayed:
            yield Finding(f"{scope}: state_hash {live} live, {replayed} rebuilt in another process")


CHECKER = Checker(
    "G7",
    "Replay: state rebuilt from the store hashes to the recorded hash, under another process, clock, hash seed and "
    "time zone; the same command on the same history decides the same bytes.",
    look,
)
