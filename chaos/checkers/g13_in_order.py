"""G13: an entity's commands are decided and published in the order in which the stream took them.

The order is that of the sequences the stream gave them, or, where the client did not hear one, that in which it sent
them. A key takes its place by its first sending. Where that place is not known, because the client did not hear
whether it was stored or the broker may have forgotten it, nothing is said of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from chaos.checkers.base import Checker, Finding
from chaos.checkers.clues import Clues
from chaos.evidence import Evidence, Sent
from chaos.rows import KeyRow
from meshforge_trio.subjects import Scope

_Entity = tuple[Scope, str]
_Sendings = Mapping[tuple[Scope, str], Sequence[Sent]]


def look(evidence: Evidence) -> Iterator[Finding | int]:
    clues = Clues(evidence)
    sendings = _sendings(clues)
    keys_of: dict[_Entity, set[str]] = defaultdict(set)
    for (scope, key), sent in sendings.items():
        for each in sent:
            keys_of[scope, each.command.entity_id or ""].add(key)
    for (scope, entity), lane in _lanes(clues, sendings).items():
        yield 1
        decided = [(sent, record) for sent in lane if (record := clues.records.get((scope, sent.key))) is not None]
        yield from _decided(scope, entity, decided, sendings)
        if keys_of[scope, entity] == {sent.key for sent, _ in decided}:
            yield from _as_in_order(scope, entity, decided)
    yield from _published(clues)


def _sendings(clues: Clues) -> _Sendings:
    """The sendings of each key, in stream order."""
    sent = clues.evidence.sent
    places: Sequence[int] = range(len(sent))
    if all(i in clues.seq_of for i in places):
        places = sorted(places, key=lambda i: clues.seq_of[i])
    found: dict[tuple[Scope, str], list[Sent]] = defaultdict(list)
    for i in places:
        if not sent[i].query and sent[i].at is None:
            found[sent[i].scope, sent[i].key].append(sent[i])
    return found


def _lanes(clues: Clues, sendings: _Sendings) -> Mapping[_Entity, Sequence[Sent]]:
    """The commands of each entity whose place is known, in stream order, each key by its first sending."""
    lanes: dict[_Entity, list[Sent]] = defaultdict(list)
    for sent, *again in sendings.values():
        known = all(clues.was_accepted(each) and not clues.may_be_forgotten(each) for each in (sent, *again))
        if known and sent.command.entity_id is not None:
            lanes[sent.scope, sent.command.entity_id].append(sent)
    return lanes


def _decided(
    scope: Scope, entity: str, decided: Sequence[tuple[Sent, KeyRow]], sendings: _Sendings
) -> Iterator[Finding]:
    for sent, record in decided:
        if any(
            other.digest == record.payload_hash != sent.digest and other.command.entity_id == entity
            for other in sendings[scope, sent.key]
        ):
            what = f"key {sent.key!r} was decided for a later sending than {sent.command.id}"
            yield Finding(f"{scope} {entity!r}: {what}", [sent.key], str(scope))
    keys = [sent.key for sent, _ in decided]
    in_order = [sent.key for sent, _ in sorted(decided, key=lambda each: each[1].first_n)]
    if in_order != keys:
        yield Finding(f"{scope} {entity!r}: sent {keys}, decided {in_order}", keys, str(scope))


def _as_in_order(scope: Scope, entity: str, decided: Sequence[tuple[Sent, KeyRow]]) -> Iterator[Finding]:
    """What depends on those before it came out as it does in stream order, where the place of all is known."""
    if any(record.outcome == "dead" and "dead" not in sent.expect for sent, record in decided):
        return  # given up by bad luck, so those behind it met another state than they would have
    for sent, record in decided:
        told = {record.outcome, *sent.expect} <= {"decided", "refused"}
        if sent.expect and told and record.outcome not in sent.expect:
            what = f"key {sent.key!r} was {record.outcome}, which in stream order it is not"
            yield Finding(f"{scope} {entity!r}: {what}", [sent.key], str(scope))


def _published(clues: Clues) -> Iterator[Finding | int]:
    seq_of = {message.msg_id: message.seq for message in reversed(clues.evidence.events)}
    published: dict[_Entity, list[int]] = defaultdict(list)
    keys: dict[_Entity, list[str]] = defaultdict(list)
    for scope, rows in clues.by_scope.items():
        for row in rows:
            if row.entity_id is not None and row.msg_id in seq_of:
                published[scope, row.entity_id].append(seq_of[row.msg_id])
                keys[scope, row.entity_id].append(row.key)
    for (scope, entity), sequences in published.items():
        yield 1
        if sequences != sorted(sequences):
            what = f"published at sequences {sequences}, out of order"
            yield Finding(f"{scope} {entity!r}: {what}", keys[scope, entity], str(scope))


CHECKER = Checker(
    "G13",
    "In order: commands of one entity are decided, committed and published in stream order.",
    look,
)
