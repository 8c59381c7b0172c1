"""G12: at the end nothing waits.

Whoever runs the workload writes `drained` when everything is decided and the last worker ended in good order within
its time. Without that record the run did not drain, whatever the streams hold; what is left is named either way.
"""

from __future__ import annotations

from collections.abc import Iterator

from chaos.checkers.base import Checker, Finding, listed
from chaos.checkers.clues import Clues, scope_of
from chaos.evidence import Evidence, envelope_of
from meshforge_trio.subjects import EVENTS, FAILED


def look(evidence: Evidence) -> Iterator[Finding | int]:
    clues = Clues(evidence)
    yield len(clues.accepted) + len(evidence.rows.outputs)
    if not clues.settled:
        ends = _unplanned(clues)
        yield Finding(f"it did not drain in time{f'; {ends}' if ends else ''}")
    for message in evidence.commands:
        key = str(envelope_of(message).get("idempotency_key"))
        scope = scope_of(message.subject)
        if scope is not None and (scope, key) in clues.deadlines:
            # The runtime's own, at its time, which may be that of the end: the next start decides it.
            continue
        what = f"{message.subject} key {key!r} at sequence {message.seq} is still in the command stream"
        yield Finding(what, [key], str(scope or ""))
    for scope, key in evidence.rows.attempts:
        yield Finding(f"{scope} key {key!r} still waits for another attempt", [key], str(scope))
    there = {msg_id for stream in (EVENTS, FAILED) for msg_id in clues.id_at[stream].values()}
    expired = any(clues.first_seq(stream) > 1 for stream in (EVENTS, FAILED))
    for row in evidence.rows.outputs:
        if row.kind != "command" and row.msg_id not in there and not expired:
            what = f"{row.scope} output {row.n}, {row.subject}, is still to be published"
            yield Finding(what, [row.key], str(row.scope))


def _unplanned(clues: Clues) -> str:
    """How workers ended that no rule of the plan killed."""
    killed = {fault.who for fault in clues.strikes.faults if fault.action == "kill"}
    ends = [record for record in clues.evidence.history if record.kind == "exit"]
    odd: dict[int, list[str]] = {}
    for end in ends:
        if end["status"] != 0 and end.actor not in killed:
            odd.setdefault(end["status"], []).append(end.actor)
    return ", ".join(f"{listed(actors)} ended with {status}" for status, actors in odd.items())


CHECKER = Checker(
    "G12",
    "Drains: after the last fault heals, everything accepted is decided and published within the stated time.",
    look,
    on_corpse=False,
)
