"""G8: whoever asks again hears the same bytes.

Judged at the end of a run that came to its end. Answers travel to core subscribers, who keep nothing, so what must
be heard is what was asked for while the client was listening and nothing struck that swallows answers. Of a key that
was redriven the answer is the outcome in force when it is asked for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from chaos.checkers.base import Checker, Finding
from chaos.checkers.clues import Clues, read_envelope
from chaos.evidence import Evidence, Sent
from chaos.rows import KeyRow
from meshforge_trio.subjects import Scope


def look(evidence: Evidence) -> Iterator[Finding | int]:
    clues = Clues(evidence)
    yield from _alike(clues)
    since = clues.strikes.hearing_since
    if not clues.settled or since is None:
        return
    sendings: dict[tuple[Scope, str, bytes], list[Sent]] = defaultdict(list)
    for sent in clues.accepted:
        if not sent.query and sent.at is None:
            sendings[sent.scope, sent.key, sent.digest].append(sent)
    for sent_again in sendings.values():
        record = clues.decision(sent_again[0])
        if record is not None and record.generation:
            yield from _answered_anew(clues, record, sent_again, since)
        elif record is not None:
            yield from _answered(clues, record, sent_again, since)


def _alike(clues: Clues) -> Iterator[Finding | int]:
    """Every answer that was heard is the one that is stored."""
    by_name = {(row.scope, row.key, row.event_id): row for row in clues.evidence.rows.outputs}
    for msg_id, body in clues.evidence.received:
        row = clues.by_msg_id.get(msg_id)
        if row is None:
            told = read_envelope(body)
            scope = Scope(*(str(told.get(field)) for field in ("tenant", "workspace", "agent")))
            row = by_name.get((scope, str(told.get("idempotency_key")), str(told.get("id"))))
        if row is None:
            continue
        yield 1
        if body != row.body:
            what = f"{row.subject} of key {row.key!r} was heard in another form than output {row.n}"
            yield Finding(f"{row.scope}: {what}", [row.key], str(row.scope))


def _answered(clues: Clues, record: KeyRow, sent: list[Sent], since: int) -> Iterator[Finding | int]:
    """Every sending is answered: a copy is heard after each, and as many as there were."""
    asked = [s for s in sent if clues.sent_at(s) >= since]
    stored = len({s.command.id for s in asked})
    for row in clues.outputs_of(record):
        if row.kind not in ("event", "record") or not asked:
            continue
        yield 1
        name = f"{row.scope} key {row.key!r}"
        times = clues.heard_at.get(row.msg_id, ())
        if max(times, default=0) < max(clues.sent_at(s) for s in asked):
            yield Finding(f"{name} was sent and not answered after that", [row.key], str(row.scope))
        elif len(times) < stored:
            what = f"was sent {stored} times and answered {len(times)}"
            yield Finding(f"{name} {what}", [row.key], str(row.scope))


def _answered_anew(clues: Clues, record: KeyRow, sent: list[Sent], since: int) -> Iterator[Finding | int]:
    """Of a key that was redriven: whoever asks when its new outcome was heard already hears that one, others any."""
    rows = [row for row in clues.outputs_of(record) if row.kind in ("event", "record")]
    told = [row for row in clues.evidence.rows.outputs if (row.scope, row.key) == (record.scope, record.key)]
    of_any = [t for row in told for t in clues.heard_at.get(row.msg_id, ())]
    for row in rows:
        yield 1
        name = f"{row.scope} key {row.key!r}"
        times = clues.heard_at.get(row.msg_id, ())
        asked = sorted(clues.sent_at(s) for s in sent if clues.sent_at(s) >= since)
        anew = [t for t in asked if times and t > min(times)]
        if anew and max(times) < anew[-1]:
            yield Finding(
                f"{name} was sent after it was redriven, and not answered as it is now", [row.key], str(row.scope)
            )
        elif asked and max(of_any, default=0) < asked[-1]:
            yield Finding(f"{name} was sent and not answered after that", [row.key], str(row.scope))
        elif len([t for t in times if t > anew[0]] if anew else ()) < len(set(anew)):
            what = f"was sent {len(anew)} times after it was redriven, and answered less often"
            yield Finding(f"{name} {what}", [row.key], str(row.scope))


CHECKER = Checker(
    "G8",
    "Same answer: a re-sent command gets the first outcome, byte for byte, conflicts and refusals included "
    "(queries aside).",
    look,
    on_corpse=False,
)
