"""G12: at the end nothing waits."""

from __future__ import annotations

from collections.abc import Iterator

from chaos.checkers.base import Checker, Finding
from chaos.evidence import Evidence


def look(evidence: Evidence) -> Iterator[Finding | int]:
    yield len(evidence.sent)
    for message in evidence.commands:
        yield Finding(f"{message.subject} at sequence {message.seq} is still in the command stream")
    for scope, key in evidence.rows.attempts:
        yield Finding(f"{scope} key {key!r} still waits for another attempt")


CHECKER = Checker(
    "G12",
    "Drains: after the last fault heals, everything accepted is decided and published within the stated time.",
    look,
    on_corpse=False,
)
