"""G13: an entity's commands are decided and published in the order in which the stream took them.

The order is that of the sequences the stream gave them, or, where the client did not hear one, that in which it sent
them. A key takes its place by its first sending. Where that place is not known, because the client did not hear
whether it was stored or the broker may have forgotten it, nothing is said of it. An event that a broker lost from amid
its stream is published behind those that followed it: as many as were lost so may be out of order.
"""

from __future__ import annotations

from bisect import bisect_left
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
        yield from _decided(clues, scope, entity, decided, sendings)
        yield from _redriven(clues, scope, entity, decided)
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
    clues: Clues, scope: Scope, entity: str, decided: Sequence[tuple[Sent, KeyRow]], sendings: _Sendings
) -> Iterator[Finding]:
    for sent, record in decided:
        if any(
            other.digest == record.payload_hash != sent.digest and other.command.entity_id == entity
            for other in sendings[scope, sent.key]
        ):
            what = f"key {sent.key!r} was decided for a later sending than {sent.command.id}"
            yield Finding(f"{scope} {entity!r}: {what}", [sent.key], str(scope))
    keys = [sent.key for sent, _ in decided]
    in_order = [sent.key for sent, _ in sorted(decided, key=lambda each: _first_place(clues, each[1]))]
    if in_order != keys:
        yield Finding(f"{scope} {entity!r}: sent {keys}, decided {in_order}", keys, str(scope))


def _first_place(clues: Clues, record: KeyRow) -> int:
    """The number of a key's first output, be it that of a dead letter that was redriven since."""
    rows = clues.fates.outputs.get((record.scope, record.key, 0), ()) if record.generation else ()
    return min([record.first_n, *(row.n for row in rows)])


def _redriven(
    clues: Clues, scope: Scope, entity: str, decided: Sequence[tuple[Sent, KeyRow]]
) -> Iterator[Finding | int]:
    """What was sent again comes behind all that was in the stream when the redrive was.

    It need not be what is decided: the key is free, and a client may send it, too.
    """
    asked: dict[tuple[Scope, str], list[int]] = defaultdict(list)
    for i, sent in enumerate(clues.evidence.sent):
        # Where the place of one is not known, 0: the order may have come before everything.
        asked[sent.scope, sent.key].append(0 if clues.may_be_forgotten(sent) else clues.seq_of.get(i, 0))
    places = {id(sent): clues.seq_of.get(i, 0) for i, sent in enumerate(clues.evidence.sent)}
    keys = {sent.key for sent, _ in decided}
    for fate in clues.fates.decided:
        record = clues.records.get((scope, fate.key))
        place = min(asked[fate.scope, fate.record.key], default=0)
        if record is None or fate.scope != scope or fate.again is None or fate.key not in keys:
            continue
        causes = {clues.told(row).get("causation_id") for row in clues.outputs_of(record) if row.kind != "dead"}
        if causes != {fate.again.event_id}:
            continue
        yield 1
        before = [each for sent, each in decided if 0 < places[id(sent)] < place and each.key != fate.key]
        late = [each.key for each in before if _first_place(clues, each) > record.first_n]
        if late:
            what = f"key {fate.key!r} was decided when it was redriven, before {late}, which the stream took earlier"
            yield Finding(f"{scope} {entity!r}: {what}", [fate.key, *late], str(scope))


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
        if len(sequences) - _in_order(sequences) > clues.strikes.rotten:
            what = f"published at sequences {sequences}, out of order"
            yield Finding(f"{scope} {entity!r}: {what}", keys[scope, entity], str(scope))


def _in_order(sequences: Sequence[int]) -> int:
    """How many of them can be left so that they rise."""
    ends: list[int] = []
    for seq in sequences:
        place = bisect_left(ends, seq)
        ends[place : place + 1] = [seq]
    return len(ends)


CHECKER = Checker(
    "G13",
    "In order: commands of one entity are decided, committed and published in stream order.",
    look,
)
