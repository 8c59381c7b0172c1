"""G8: whoever asks again hears the same bytes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

from chaos.checkers.base import Checker, Finding
from chaos.evidence import Evidence


def look(evidence: Evidence) -> Iterator[Finding | int]:
    stored = {row.msg_id: row.body for row in evidence.rows.outputs}
    heard: dict[str, set[bytes]] = defaultdict(set)
    for msg_id, body in evidence.received:
        heard[msg_id].add(body)
    for msg_id, bodies in heard.items():
        if msg_id not in stored:
            continue
        yield 1
        if bodies != {stored[msg_id]}:
            yield Finding(f"answer {msg_id} was heard in {len(bodies)} forms, or not as stored")
    # Every re-send is answered: as many copies are heard as there were sendings, whatever was redelivered besides.
    times = Counter(msg_id for msg_id, _ in evidence.received)
    sendings = Counter((s.scope, s.key, s.digest) for s in evidence.sent if s.outcome == "ok" and not s.query)
    first = {(row.scope, row.key, row.payload_hash): row for row in [*evidence.rows.keys, *evidence.rows.mismatches]}
    rows = {(row.scope, row.n): row for row in evidence.rows.outputs}
    for place, count in sendings.items():
        record = first.get(place)
        if record is None or count < 2 or not evidence.received:
            continue
        for n in range(record.first_n, record.last_n + 1):
            row = rows[record.scope, n]
            if row.kind in ("event", "record"):
                yield 1
                if times[row.msg_id] < 2:
                    yield Finding(
                        f"{row.scope} key {row.key!r} was sent {count} times and answered {times[row.msg_id]}"
                    )


CHECKER = Checker(
    "G8",
    "Same answer: a re-sent command gets the first outcome, byte for byte, conflicts and refusals included "
    "(queries aside).",
    look,
    on_corpse=False,
)
