"""G13: an entity's commands are decided and published in the order in which the stream took them.

The order is that of the sequences the stream gave them, or, where the client did not hear one, that in which it sent
them. A key takes its place by its first sending. Where that place is not known, because the client did not hear
whether it was stored or the broker may have forgotten it, nothing is said of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from chaos.checkers.base import Checker, Finding
from chaos.checkers.clues import Clues
from chaos.evidence import Evidence, Sent
from chaos.rows import KeyRow
from meshforge_trio.subjects import Scope


def look(evidence: Evidence) -> Iterator[Finding | int]:
    clues = Clues(evidence)
    for (scope, entity), lane in _lanes(clues).items():
        yield 1
        yield from _decided(clues, scope, entity, lane)
    seq_of = {message.msg_id: message.seq for message in reversed(evidence.events)}
    published: dict[tuple[Scope, str], list[int]] = defaultdict(list)
    keys: dict[tuple[Scope, str], list[str]] = defaultdict(list)
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


def _lanes(clues: Clues) -> dict[tuple[Scope, str], list[Sent]]:
    """The commands of each entity whose place is known, in stream order, each key by its first sending."""
    sendings: dict[tuple[Scope, str], list[Sent]] = defaultdict(list)
    for sent in _in_stream_order(clues):
        if not sent.query and sent.at is None:
            sendings[sent.scope, sent.key].append(sent)
    lanes: dict[tuple[Scope, str], list[Sent]] = defaultdict(list)
    for sent, *again in sendings.values():
        known = all(clues.was_accepted(each) and not clues.may_be_forgotten(each) for each in (sent, *again))
        if known and sent.command.entity_id is not None:
            lanes[sent.scope, sent.command.entity_id].append(sent)
    return lanes


def _in_stream_order(clues: Clues) -> Sequence[Sent]:
    sent = clues.evidence.sent
    places: Sequence[int] = range(len(sent))
    if all(i in clues.seq_of for i in places):
        places = sorted(places, key=lambda i: clues.seq_of[i])
    return [sent[i] for i in places]


def _decided(clues: Clues, scope: Scope, entity: str, lane: Sequence[Sent]) -> Iterator[Finding]:
    decided = [(sent, record) for sent in lane if (record := clues.records.get((scope, sent.key))) is not None]
    for sent, record in decided:
        if any(
            other.digest == record.payload_hash != sent.digest and other.command.entity_id == entity
            for other in clues.evidence.sent
            if (other.scope, other.key) == (scope, sent.key)
        ):
            what = f"key {sent.key!r} was decided for a later sending than {sent.command.id}"
            yield Finding(f"{scope} {entity!r}: {what}", [sent.key], str(scope))
    keys = [sent.key for sent, _ in decided]
    in_order = [sent.key for sent, _ in sorted(decided, key=lambda each: each[1].first_n)]
    if in_order != keys:
        yield Finding(f"{scope} {entity!r}: sent {keys}, decided {in_order}", keys, str(scope))
    yield from _as_in_order(clues, scope, entity, decided)


def _as_in_order(clues: Clues, scope: Scope, entity: str, decided: Sequence[tuple[Sent, KeyRow]]) -> Iterator[Finding]:
    """What depends on those before it came out as it does in stream order."""
    unplaced = {
        sent.key
        for sent in clues.evidence.sent
        if (sent.scope, sent.command.entity_id) == (scope, entity) and not sent.query and sent.at is None
    } - {sent.key for sent, _ in decided}
    unlucky = any(record.outcome == "dead" and "dead" not in sent.expect for sent, record in decided)
    if unplaced or unlucky or clues.strikes.rollbacks:
        return  # what came after met another state than it would have
    for sent, record in decided:
        told = {record.outcome, *sent.expect} <= {"decided", "refused"}
        if sent.expect and told and record.outcome not in sent.expect:
            what = f"key {sent.key!r} was {record.outcome}, which in stream order it is not"
            yield Finding(f"{scope} {entity!r}: {what}", [sent.key], str(scope))


CHECKER = Checker(
    "G13",
    "In order: commands of one entity are decided, committed and published in stream order.",
    look,
)
