"""G4: what is committed is in its stream, once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from chaos.checkers.base import Checker, Finding
from chaos.evidence import Evidence, envelope_of
from meshforge_trio.subjects import EVENTS, FAILED, Scope


def look(evidence: Evidence) -> Iterator[Finding | int]:
    copies = Counter(m.msg_id for m in [*evidence.events, *evidence.failed])
    for msg_id, count in copies.items():
        if count > 1:
            yield Finding(f"Msg-Id {msg_id} is in its stream {count} times")
    # On a corpse what is above the newest mark may still be missing: recovery has not run.
    marked: dict[Scope, int] = {}
    for mark in evidence.rows.marks:
        marked[mark.scope] = max(marked.get(mark.scope, 0), mark.n)
    expired = any(evidence.facts[s].first_seq > 1 for s in (EVENTS, FAILED) if s in evidence.facts)
    decided = {row.key for row in evidence.rows.keys}
    waiting = {str(envelope_of(m).get("idempotency_key")) for m in evidence.commands}
    for row in evidence.rows.outputs:
        if not evidence.final and row.n > marked.get(row.scope, 0):
            continue
        yield 1
        if row.kind == "command":
            key = str(envelope_of(row).get("idempotency_key"))
            if evidence.final and key not in decided and key not in waiting:
                yield Finding(f"{row.scope} output {row.n}, command {row.subject}, reached nobody")
        elif row.msg_id not in copies and not expired:
            yield Finding(f"{row.scope} output {row.n}, {row.subject}, is committed and not in its stream")


CHECKER = Checker(
    "G4",
    "Delivered: every committed output reaches its stream, once, under one id that never changes; "
    "a receiver of ours applies it once.",
    look,
)
