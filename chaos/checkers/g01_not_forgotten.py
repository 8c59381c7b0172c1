"""G1: what the stream accepted is still there, or decided; a query is answered.

A command leaves its stream by an ACK alone, so one that is gone must be decided: on a corpse, too. What a broker
itself forgot, when it was put back to an older copy, is not the runtime's to remember. One that is redriven has been
ACKed long ago: it is under way until what was sent again is decided.

The answer to a query goes to core subscribers and is stored nowhere. So it is asked for at the end only, of a client
that was listening when it sent the query and to which nothing was lost since.
"""

from __future__ import annotations

from collections.abc import Iterator

from chaos.checkers.base import Checker, Finding
from chaos.checkers.clues import Clues
from chaos.evidence import Evidence, Sent


def look(evidence: Evidence) -> Iterator[Finding | int]:
    clues = Clues(evidence)
    yield from _redriven(clues)
    answered = {(e.get("tenant"), e.get("workspace"), e.get("agent"), e.get("causation_id")) for e in clues.heard}
    for sent in clues.accepted:
        if sent.query and not _can_be_heard(clues, sent):
            continue
        yield 1
        if clues.waits(sent) or clues.may_be_forgotten(sent):
            continue
        name = f"{sent.subject} key {sent.key!r} (id {sent.command.id})"
        if not sent.query:
            if clues.decision(sent) is None and not clues.fates.under_way(sent.scope, sent.key):
                yield Finding(f"{name} was accepted, is gone and undecided", [sent.key], str(sent.scope))
            continue
        scope = sent.scope
        given_up = (scope, f"query:{sent.command.id}") in clues.records
        if not given_up and (scope.tenant, scope.workspace, scope.agent, sent.command.id) not in answered:
            yield Finding(f"query {name} was accepted, is gone and was not answered", [sent.key], str(scope))


def _redriven(clues: Clues) -> Iterator[Finding | int]:
    """What was sent again is decided in the end, be it as another dead letter; until then it is under way."""
    for letter in clues.evidence.rows.dead:
        if letter.state != "redriven" or not clues.settled:
            continue
        yield 1
        if not clues.done_again(letter.scope, letter.key, letter.generation):
            what = f"dead letter of generation {letter.generation} was redriven, and is not decided since"
            yield Finding(f"{letter.scope} key {letter.key!r}: its {what}", [letter.key], str(letter.scope))


def _can_be_heard(clues: Clues, sent: Sent) -> bool:
    since = clues.strikes.hearing_since
    return clues.settled and since is not None and clues.sent_at(sent) >= since


CHECKER = Checker(
    "G1",
    "Not forgotten: a command the stream accepted ends decided, dead-lettered or, for a query, answered; "
    "an ACK is only ever sent for one that has.",
    look,
)
