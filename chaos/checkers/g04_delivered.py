"""G4: what is committed is in its stream, once, and its receivers apply it once.

At the end that means everything. On a corpse recovery has not run: there it means whatever the newest valid mark says
is published. Commands to other agents, and those sent again for a dead letter, leave their stream when they are ACKed,
so they may be decided instead.

Who receives what is seen from what receivers decided: an agent that applied one event of a name receives them all.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Final

from chaos.checkers.base import Checker, Finding
from chaos.checkers.clues import Clues, scope_of
from chaos.evidence import Evidence
from chaos.rows import MarkRow, OutputRow
from meshforge_trio.subjects import EVENTS, FAILED, Scope

_ALL: Final = 1 << 63


def look(evidence: Evidence) -> Iterator[Finding | int]:
    clues = Clues(evidence)
    yield from _ids(clues)
    for scope, marks in clues.marks.items():
        yield from _marks(clues, scope, marks)
    for scope, rows in clues.by_scope.items():
        yield from _in_streams(clues, scope, rows)
    yield from _applied(clues)


def _ids(clues: Clues) -> Iterator[Finding | int]:
    """One id each, one copy each."""
    for msg_id, count in Counter(row.msg_id for row in clues.evidence.rows.outputs).items():
        yield 1
        if count > 1:
            rows = [row for row in clues.evidence.rows.outputs if row.msg_id == msg_id]
            names = ", ".join(f"{row.scope} output {row.n}" for row in rows)
            yield Finding(f"Msg-Id {msg_id} belongs to {names}", [row.key for row in rows], str(rows[0].scope))
    for row in clues.evidence.rows.outputs:
        told = clues.told(row).get("id")
        if row.kind == "command" and told != row.msg_id:
            what = f"output {row.n}, {row.subject}, has Msg-Id {row.msg_id}, and its body the id {told}"
            yield Finding(f"{row.scope} {what}", [row.key], str(row.scope))
    bodies = {(row.subject, row.body): row for row in clues.evidence.rows.outputs}
    for stream in (EVENTS, FAILED):
        messages = clues.streamed(stream)
        for msg_id, count in Counter(m.msg_id for m in messages).items():
            yield 1
            if count > 1:
                keys = [row.key for row in [clues.by_msg_id.get(msg_id)] if row is not None]
                yield Finding(f"Msg-Id {msg_id} is in {stream} {count} times", keys)
        for message in messages:
            found = bodies.get((message.subject, message.body))
            if found is not None and message.msg_id not in clues.by_msg_id:
                what = f"output {found.n}, {found.subject}, has Msg-Id {found.msg_id} and was published as"
                yield Finding(f"{found.scope} {what} {message.msg_id}", [found.key], str(found.scope))


def _marks(clues: Clues, scope: Scope, marks: Sequence[MarkRow]) -> Iterator[Finding | int]:
    """A mark never claims more than was published, and the next one never less."""
    last_n = max((row.n for row in clues.by_scope.get(scope, ())), default=0)
    before: MarkRow | None = None
    for mark in marks:
        yield 1
        if mark.n > last_n:
            yield Finding(f"{scope}: a mark says published through output {mark.n}, there are {last_n}", (), str(scope))
        for msg_id in (mark.event_id, mark.failed_id):
            row = clues.by_msg_id.get(msg_id)
            if row is not None and row.scope == scope and row.n > mark.n:
                what = f"a mark through output {mark.n} names output {row.n} as its last"
                yield Finding(f"{scope}: {what}", [row.key], str(scope))
        if not clues.strikes.forgetful:
            if not clues.confirms(mark):
                what = f"a mark through output {mark.n} names what its streams do not hold"
                yield Finding(f"{scope}: {what}: {_named(mark)}", (), str(scope))
            if before and (mark.event_seq < before.event_seq or mark.failed_seq < before.failed_seq):
                yield Finding(f"{scope}: a mark goes back: {_named(before)}, then {_named(mark)}", (), str(scope))
        if before and mark.n < before.n:
            yield Finding(f"{scope}: a mark through output {mark.n} follows one through {before.n}", (), str(scope))
        before = mark


def _named(mark: MarkRow) -> str:
    events = f"{EVENTS} {mark.event_id or 'nothing'} at {mark.event_seq}"
    return f"{events}, {FAILED} {mark.failed_id or 'nothing'} at {mark.failed_seq}"


def _in_streams(clues: Clues, scope: Scope, rows: Sequence[OutputRow]) -> Iterator[Finding | int]:
    through = _ALL if clues.settled else clues.published_through(scope)
    present = {stream: set(clues.id_at[stream].values()) for stream in (EVENTS, FAILED)}
    for row in rows:
        if row.n > through:
            continue
        yield 1
        name = f"{scope} output {row.n}, {row.subject}, is committed"
        below = "" if clues.settled else f" and marked published (through {through})"
        if row.kind == "command":
            if not _received(clues, row):
                yield Finding(f"{name}{below} and reached nobody", [row.key], str(scope))
            continue
        stream = FAILED if row.kind == "dead" else EVENTS
        if row.msg_id not in present[stream] and not _expired(clues, stream, row, rows):
            yield Finding(f"{name}{below} and is not in {stream}", [row.key], str(scope))


def _received(clues: Clues, row: OutputRow) -> bool:
    """Whether a command to another agent waits in the stream, or is decided."""
    told = clues.told(row)
    target = scope_of(row.subject)
    if (row.subject, str(told.get("id"))) in clues.waiting:
        return True
    fate = clues.fates.of_command.get((row.scope, row.n))
    if fate is not None:
        return clues.done_again(fate.scope, fate.key, fate.generation)
    # Its key may be free just now, because it failed and was redriven.
    return target is not None and clues.done_again(target, str(told.get("idempotency_key")), -1)


def _expired(clues: Clues, stream: str, row: OutputRow, rows: Sequence[OutputRow]) -> bool:
    """Whether it may have been there and be gone: a stream that lost its beginning, and nothing older in it."""
    if clues.first_seq(stream) <= 1:
        return False
    present = set(clues.id_at[stream].values())
    return not any(other.n < row.n and other.msg_id in present for other in rows)


def _applied(clues: Clues) -> Iterator[Finding | int]:
    """Every event of a name that an agent receives is applied by it, once."""
    receivers = {record.scope for record in clues.evidence.rows.keys if record.key.startswith("evt:")}
    for scope in sorted(receivers):
        applied: dict[str, set[str]] = defaultdict(set)
        for row in clues.by_scope.get(scope, ()):
            if row.key.startswith("evt:"):
                applied[str(clues.told(row).get("causation_id"))].add(row.key)
        events = list(clues.events_of(scope.tenant, scope.workspace))
        copies = Counter(row.event_id for _, row in events)
        for event_id, keys in applied.items():
            yield 1
            if len(keys) > copies[event_id] > 0:
                what = f"applied event {event_id} {len(keys)} times"
                yield Finding(f"{scope} {what}", sorted(keys), str(scope))
        if clues.settled:
            received = {(row.scope.agent, row.name) for key, row in events if (scope, key) in clues.records}
            for key, row in events:
                if (row.scope.agent, row.name) in received and (scope, key) not in clues.records:
                    what = f"never applied {row.subject} (output {row.n} of {row.scope})"
                    yield Finding(f"{scope} {what}", [key, row.key], str(scope))


CHECKER = Checker(
    "G4",
    "Delivered: every committed output reaches its stream, once, under one id that never changes; "
    "a receiver of ours applies it once.",
    look,
)
