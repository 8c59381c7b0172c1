"""G3: what is in a stream is in the store, and what is in the store was asked for.

What core subscribers heard must be committed as well, but for the answers to queries: these are stored nowhere, and
tell of no version that is not committed. What is sent again for a dead letter is what the dead letter holds, and was
asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from chaos.checkers.base import Checker, Finding
from chaos.checkers.clues import Asked, Clues, read_envelope
from chaos.checkers.fates import Fate
from chaos.evidence import Evidence, envelope_of
from chaos.rows import KeyRow, Letter, OutputRow
from chaos.sealing import meaning_of, original
from meshforge_trio.broker.port import StoredMessage
from meshforge_trio.envelope import decode_command
from meshforge_trio.errors import Poison
from meshforge_trio.subjects import DELIVER, DISCARD, EVENTS, FAILED, REDRIVE, Scope


def look(evidence: Evidence) -> Iterator[Finding | int]:
    clues = Clues(evidence)
    for stream in (EVENTS, FAILED):
        for message in clues.streamed(stream):
            yield 1
            yield from _committed(clues, stream, message)
    for msg_id, body in evidence.received:
        yield 1
        told = read_envelope(body)
        key = str(told.get("idempotency_key"))
        if key.startswith("query:"):
            yield from _ahead(clues, told)
        elif msg_id not in clues.by_msg_id:
            what = f"{told.get('agent')}.{told.get('name')} (Msg-Id {msg_id}) was heard and never committed"
            yield Finding(what, [key])
    for record in [*evidence.rows.keys, *evidence.rows.mismatches]:
        yield 1
        yield from _asked_for(clues, record)
    for fate in clues.fates.decided:
        yield 1
        for what in _unlike_its_letter(clues, fate):
            yield Finding(
                f"{fate.scope} output {fate.record.n}, {fate.record.name}, {what}", [fate.key], str(fate.scope)
            )


def _unlike_its_letter(clues: Clues, fate: Fate) -> Iterator[str]:
    """How a fate is not what was asked for, or what is sent again not what was set aside."""
    name = f"key {fate.key!r}, generation {fate.generation}"
    asked = clues.asked.get((fate.scope, fate.record.key))
    action = REDRIVE if fate.record.name == "redriven" else DISCARD
    orders = [(c.action, c.payload.get("key"), c.payload.get("generation")) for c in asked.commands] if asked else []
    if orders and (action, fate.key, fate.generation) not in orders:
        yield f"is about {name}, which nobody asked for: {orders}"
    letters = [
        letter for letter in clues.letters.get((fate.scope, fate.key), ()) if letter.generation == fate.generation
    ]
    if not letters:
        yield f"is about {name}, of which there is no dead letter"
    elif fate.again is not None and not _is_again(letters[0], fate.again):
        yield f"sends something else again than the dead letter of {name}"


def _is_again(letter: Letter, again: OutputRow) -> bool:
    """Whether a command is that of a dead letter; an event comes in a command that carries it to this agent."""
    body = original(letter.scope, letter.key, letter.body)
    if letter.subject.startswith("evt."):
        told = envelope_of(again).get("payload")
        return again.name == DELIVER and told == {"event": orjson.loads(body)}
    try:
        first, second = decode_command(body), decode_command(again.body)
    except Poison:
        return False
    same = (first.idempotency_key, meaning_of(first)) == (second.idempotency_key, meaning_of(second))
    return same and again.subject == letter.subject and first.id != second.id


def _ahead(clues: Clues, told: Mapping[str, Any]) -> Iterator[Finding]:
    """A query is answered after the commit of every turn before it, so the store has come to its version at least."""
    entity, payload = told.get("entity_id"), told.get("payload")
    version = payload.get("entity_version") if isinstance(payload, dict) and isinstance(entity, str) else None
    scope = Scope(*(str(told.get(field)) for field in ("tenant", "workspace", "agent")))
    head = clues.evidence.rows.heads.get((scope, str(entity)))
    committed = 0 if head is None else head.version
    if type(version) is int and version > committed:
        what = f"a query was answered at version {version}, and {committed} is committed"
        yield Finding(f"{scope} {entity!r}: {what}", [str(told.get("idempotency_key"))], str(scope))


def _committed(clues: Clues, stream: str, message: StoredMessage) -> Iterator[Finding]:
    row = clues.by_msg_id.get(message.msg_id)
    name = f"{message.subject} at sequence {message.seq} of {stream}"
    if row is None:
        told = envelope_of(message)
        keys = [str(told[field]) for field in ("idempotency_key", "key") if field in told]
        yield Finding(f"{name} (Msg-Id {message.msg_id}) was never committed", keys)
    elif (row.subject, row.body) != (message.subject, message.body):
        yield Finding(f"{name} differs from committed output {row.n} of {row.scope}", [row.key], str(row.scope))
    elif stream != (FAILED if row.kind == "dead" else EVENTS):
        what = f"{name} is output {row.n} of {row.scope}, a {row.kind}, which does not belong there"
        yield Finding(what, [row.key], str(row.scope))


def _asked_for(clues: Clues, record: KeyRow) -> Iterator[Finding]:
    def phantom(what: str) -> Finding:
        return Finding(f"{record.scope} decided key {record.key!r}, {what}", [record.key], str(record.scope))

    kind, _, rest = record.key.partition(":")
    causes = {
        str(clues.told(row)["causation_id"]) for row in clues.outputs_of(record) if "causation_id" in clues.told(row)
    }
    asked = clues.asked.get((record.scope, record.key))
    if asked is not None:
        yield from map(phantom, _unlike(record, asked, causes))
    elif kind == "evt":
        if (record.scope.tenant, record.scope.workspace, record.key) not in clues.event_keys:
            yield phantom("and there is no such event")
    elif kind == "deadline":
        if (record.scope, record.key) not in clues.deadlines:
            yield phantom("a deadline that no lease had")
    elif kind == "query":
        if rest not in clues.ids_asked.get(record.scope, ()):
            yield phantom("a query that nobody sent")
        elif record.outcome != "dead":
            yield phantom("the answer to a query, which is stored nowhere")
    elif kind == "raw" and causes:
        unknown = sorted(causes - clues.ids_asked.get(record.scope, frozenset()))
        if unknown:
            yield phantom(f"for {unknown}, which nobody sent")
    else:
        yield phantom("which nobody sent")


def _unlike(record: KeyRow, asked: Asked, causes: set[str]) -> Iterator[str]:
    unknown = sorted(causes - asked.ids)
    if unknown:
        yield f"for {unknown}, under which nobody sent it"
    raw = record.key.startswith("raw:")
    if asked.digests and not raw and record.payload_hash not in asked.digests:
        yield "for a payload that nobody sent under it"


CHECKER = Checker(
    "G3",
    "No phantom: whatever is published was committed first (query answers aside), and every committed event "
    "traces to a command that was sent.",
    look,
)
