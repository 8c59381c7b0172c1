"""G13: an entity's commands are decided and published in the order in which the stream took them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from chaos.checkers.base import Checker, Finding
from chaos.evidence import Evidence
from meshforge_trio.subjects import Scope


def look(evidence: Evidence) -> Iterator[Finding | int]:
    order = {(record.scope, record.key): record.first_n for record in evidence.rows.keys}
    lanes: dict[tuple[Scope, str], list[str]] = defaultdict(list)
    for sent in evidence.sent:
        entity = sent.command.entity_id
        if entity is None or sent.query or sent.outcome != "ok":
            continue
        lane = lanes[sent.scope, entity]
        if sent.key not in lane and (sent.scope, sent.key) in order:
            lane.append(sent.key)
    for (scope, entity), keys in lanes.items():
        yield 1
        decided = sorted(keys, key=lambda key: order[scope, key])
        if decided != keys:
            yield Finding(f"{scope} {entity!r}: sent {keys}, decided {decided}")
    seq_of = {message.msg_id: message.seq for message in reversed(evidence.events)}
    published: dict[tuple[Scope, str], list[int]] = defaultdict(list)
    for row in evidence.rows.outputs:
        if row.entity_id is not None and row.msg_id in seq_of:
            published[row.scope, row.entity_id].append(seq_of[row.msg_id])
    for (scope, entity), sequences in published.items():
        yield 1
        if sequences != sorted(sequences):
            yield Finding(f"{scope} {entity!r}: published at sequences {sequences}, out of order")


CHECKER = Checker(
    "G13",
    "In order: commands of one entity are decided, committed and published in stream order.",
    look,
)
