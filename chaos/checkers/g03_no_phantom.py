"""G3: what is in a stream is in the store, and what is in the store was asked for."""

from __future__ import annotations

from collections.abc import Iterator

from chaos.checkers.base import Checker, Finding
from chaos.evidence import Evidence, envelope_of


def look(evidence: Evidence) -> Iterator[Finding | int]:
    rows = {row.msg_id: row for row in evidence.rows.outputs}
    for message in [*evidence.events, *evidence.failed]:
        yield 1
        row = rows.get(message.msg_id)
        if row is None:
            yield Finding(f"{message.subject} at sequence {message.seq} (Msg-Id {message.msg_id}) was never committed")
        elif (row.subject, row.body) != (message.subject, message.body):
            yield Finding(f"{message.subject} at sequence {message.seq} differs from committed output {row.n}")
    asked = {sent.key for sent in evidence.sent}
    asked |= {str(envelope_of(row).get("idempotency_key")) for row in evidence.rows.outputs if row.kind == "command"}
    for record in evidence.rows.keys:
        yield 1
        if record.key not in asked and not record.key.startswith("evt:"):
            yield Finding(f"{record.scope} decided key {record.key!r}, which nobody sent")


CHECKER = Checker(
    "G3",
    "No phantom: whatever is published was committed first (query answers aside), and every committed event "
    "traces to a command that was sent.",
    look,
)
