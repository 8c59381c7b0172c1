"""G1: what the stream accepted is still there, or decided."""

from __future__ import annotations

from collections.abc import Iterator

from chaos.checkers.base import Checker, Finding
from chaos.evidence import Evidence, envelope_of


def look(evidence: Evidence) -> Iterator[Finding | int]:
    waiting = {(m.subject, envelope_of(m).get("id")) for m in evidence.commands}
    decided = {(row.scope, row.key) for row in evidence.rows.keys}
    for sent in evidence.sent:
        if sent.outcome != "ok":
            continue
        yield 1
        if (sent.subject, sent.command.id) in waiting or sent.query:
            continue
        if (sent.scope, sent.key) not in decided:
            yield Finding(f"{sent.subject} key {sent.key!r} (id {sent.command.id}) was accepted, is gone and undecided")


CHECKER = Checker(
    "G1",
    "Not forgotten: a command the stream accepted ends decided, dead-lettered or, for a query, answered; "
    "an ACK is only ever sent for one that has.",
    look,
)
