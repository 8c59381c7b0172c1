"""G7: bodies hash to chains, chains to heads, rebuilt states to the recorded hash; decisions repeat.

What a rebuild gave is the hash of a scope, or in words why there is none: the first event that cannot be replayed as
it was stored.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any, Final

from chaos.checkers.base import Checker, Finding
from chaos.checkers.clues import Clues
from chaos.evidence import Evidence, envelope_of
from chaos.history import Record
from meshforge_trio.subjects import Scope

_HASH: Final = re.compile(r"[0-9a-f]{64}")


def look(evidence: Evidence) -> Iterator[Finding | int]:
    clues = Clues(evidence)
    yield from _chains(clues)
    for scope, (n, _) in evidence.rows.state_hashes.items():
        last_n = _last_n(clues, scope)
        if n > last_n:
            yield Finding(f"{scope}: a state hash after output {n} is recorded, there are {last_n}", (), str(scope))
    for scope, values in evidence.rebuilt.items():
        yield from _rebuilt(clues, scope, values)
    yield from _decided_alike(clues)


def _last_n(clues: Clues, scope: Scope) -> int:
    return max((row.n for row in clues.by_scope.get(scope, ())), default=0)


def _chains(clues: Clues) -> Iterator[Finding | int]:
    chains: dict[tuple[Scope, str], bytes] = {}
    for scope, rows in clues.by_scope.items():
        for row in rows:
            if row.kind != "event" or row.entity_id is None:
                continue
            yield 1
            place = (scope, row.entity_id)
            chains[place] = hashlib.sha256(chains.get(place, b"") + row.body).digest()
            if chains[place] != row.chain:
                what = f"{row.entity_id!r} version {row.version}: body does not hash to its chain"
                yield Finding(f"{scope} {what}", [row.key], str(scope))
    for (scope, entity), head in clues.evidence.rows.heads.items():
        if chains.get((scope, entity), b"") != head.chain:
            yield Finding(f"{scope} {entity!r}: events do not hash to the head", (), str(scope))


def _rebuilt(clues: Clues, scope: Scope, values: Sequence[str]) -> Iterator[Finding | int]:
    n, recorded = clues.evidence.rows.state_hashes.get(scope, (-1, ""))
    for value in values:
        yield 1
        if not _HASH.fullmatch(value):
            yield Finding(f"{scope} cannot be rebuilt: {value}", (), str(scope))
        elif n == _last_n(clues, scope) and value != recorded:
            what = f"{scope}: state_hash {recorded} was recorded, {value} rebuilt elsewhere"
            yield Finding(f"{what}; does `apply` use anything but its state and event?", (), str(scope))
    if len(set(values)) > 1:
        yield Finding(f"{scope}: processes with other hash seeds, clocks and zones rebuild {values}", (), str(scope))


def _decided_alike(clues: Clues) -> Iterator[Finding | int]:
    """Calls with the same command on the same state, in whatever process, and what each of them decided."""
    told: dict[tuple[Any, ...], set[str]] = defaultdict(set)
    exempt = _not_repeatable(clues)
    queries = {(str(s.scope), s.command.id) for s in clues.evidence.sent if s.query}
    meanings = {(str(s.scope), s.command.id): s.digest for s in clues.evidence.sent}
    for call, digest in _calls(clues.evidence.history):
        scope, key = call["scope"], call["key"]
        if (scope, key) in exempt or (scope, call["id"]) in queries:
            continue
        yield 1
        meaning = meanings.get((scope, call["id"]))
        told[scope, key, meaning, call["action"], call["entity"], call["version"], call["before"]].add(digest)
    for (scope, key, _, action, entity, version, _), digests in told.items():
        if len(digests) > 1:
            what = f"{action} on {entity!r} at version {version} was decided in {len(digests)} ways: {sorted(digests)}"
            yield Finding(f"{scope} key {key!r}: {what}", [key], scope)


def _not_repeatable(clues: Clues) -> Set[tuple[str, str]]:
    """(scope, key) of what need not be decided alike: commands that say so, and what followed from them."""
    sent = [each for each in clues.evidence.sent if not each.repeatable]
    roots = {each.command.id for each in sent}
    followed = {
        (str(scope), row.key)
        for scope, rows in clues.by_scope.items()
        for row in rows
        if roots and envelope_of(row).get("correlation_id") in roots
    }
    return {(str(each.scope), each.key) for each in sent} | followed


def _calls(history: Sequence[Record]) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Each call that came to a decision, with its digest."""
    under_way: dict[tuple[str, str, str], Mapping[str, Any]] = {}
    for record in history:
        if record.kind == "call":
            under_way[record.actor, record["scope"], record["key"]] = record.fields
        elif record.kind == "decided":
            call = under_way.pop((record.actor, str(record.fields.get("scope")), record["key"]), None)
            if call is not None:
                yield call, str(record["digest"])


CHECKER = Checker(
    "G7",
    "Replay: state rebuilt from the store hashes to the recorded hash, under another process, clock, hash seed and "
    "time zone; the same command on the same history decides the same bytes.",
    look,
)
