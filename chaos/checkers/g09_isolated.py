"""G9: every row and message stays in its scope, and whoever tries otherwise is told of in the scope where he tried.

A trespass is a command whose envelope is not what its subject says, or that its workload expects to be a violation.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from chaos.checkers.base import Checker, Finding
from chaos.checkers.clues import Clues, read_envelope
from chaos.evidence import Evidence, Sent
from chaos.rows import OutputRow
from meshforge_trio.subjects import EVENTS, Scope, command_subject, event_subject, violation_subject

_SCOPE_FIELDS: Final = ("tenant", "workspace", "agent")
_TOLD_FIELDS: Final = frozenset({"code", "principal_id", "subject", "reason"})
_CODE: Final = re.compile(r"[a-z_]{1,64}")
#: Shorter texts of a payload may stand in an answer by chance.
_TEXT_LENGTH_MIN: Final = 4


def look(evidence: Evidence) -> Iterator[Finding | int]:
    clues = Clues(evidence)
    for row in evidence.rows.outputs:
        yield 1
        for what in _strays(row, clues.told(row)):
            yield Finding(f"{row.scope} output {row.n}: {what}", [row.key], str(row.scope))
    heard = [(str(r["subject"]), body) for r, (_, body) in zip(_heard(evidence), evidence.received, strict=True)]
    for subject, body in [*((m.subject, m.body) for m in evidence.events), *heard]:
        yield 1
        told = read_envelope(body)
        if told and subject not in _subjects(Scope(*(str(told.get(f)) for f in _SCOPE_FIELDS)), str(told.get("name"))):
            what = f"{subject} carries an event of {'/'.join(str(told.get(field)) for field in _SCOPE_FIELDS)}"
            yield Finding(what, [str(told.get("idempotency_key"))])
    yield from _shared_ids(clues)
    yield from _taken_for_another(clues)
    yield from _foreign_events(clues)
    attempts: dict[tuple[str, str], list[Sent]] = defaultdict(list)
    for sent in evidence.sent:
        if sent.at is not None or "violation" in sent.expect:
            attempts[sent.subject, sent.command.id].append(sent)
    for sendings in attempts.values():
        yield from _attempt(clues, sendings)
    yield from _false_alarms(clues, {id_ for _, id_ in attempts})


def _heard(evidence: Evidence) -> Sequence[Mapping[str, Any]]:
    return [record.fields for record in evidence.history if record.kind == "heard"]


def _subjects(scope: Scope, name: str) -> frozenset[str]:
    """Where an event may be published. A violation is told of at a place of its own."""
    if name == "violation":
        return frozenset({violation_subject(scope.tenant, scope.workspace)})
    return frozenset({event_subject(scope, name)})


def _strays(row: OutputRow, told: Mapping[str, Any]) -> Iterator[str]:
    """How an output leaves its scope: by its subject, or by what its body says."""
    scope = row.scope
    if row.kind == "dead":
        prefixes = tuple(f"{kind}.{scope.tenant}.{scope.workspace}." for kind in ("cmd", "evt"))
        for subject in (row.subject.removeprefix("failed."), str(told.get("subject"))):
            if not subject.startswith(prefixes):
                yield f"a dead letter of {subject}"
        return
    named = Scope(*(str(told.get(field)) for field in _SCOPE_FIELDS))
    if row.kind == "command":
        if (named.tenant, named.workspace) != (scope.tenant, scope.workspace):
            yield f"a command to {named}"
        if row.subject != command_subject(named, str(told.get("action"))):
            yield f"a command to {named} goes to {row.subject}"
        return
    if named != scope:
        yield f"an event of {named}"
    if row.subject not in _subjects(scope, row.name):
        yield f"{row.name} goes to {row.subject}"


def _shared_ids(clues: Clues) -> Iterator[Finding | int]:
    """A Msg-Id of two tenants makes one's event vanish: a stream forgets repeats whatever their subject."""
    users: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for row in clues.evidence.rows.outputs:
        users[row.msg_id].add((row.scope.tenant, row.scope.workspace))
    for msg_id, places in users.items():
        if len(places) > 1:
            keys = sorted({row.key for row in clues.evidence.rows.outputs if row.msg_id == msg_id})
            yield Finding(f"Msg-Id {msg_id} is used in {sorted(map('/'.join, places))}", keys)


def _taken_for_another(clues: Clues) -> Iterator[Finding]:
    """A command that is gone, undecided where it was sent, and decided under its key somewhere else."""
    elsewhere: dict[str, set[Scope]] = defaultdict(set)
    for scope, key in clues.records:
        elsewhere[key].add(scope)
    for sent in clues.accepted:
        if sent.query or clues.waits(sent) or clues.may_be_forgotten(sent) or clues.decision(sent) is not None:
            continue
        others = sorted(str(scope) for scope in elsewhere[sent.key] - {sent.scope})
        if others:
            what = f"{sent.scope} key {sent.key!r} is gone and undecided, as if it were that of {others}"
            yield Finding(what, [sent.key], str(sent.scope))


def _foreign_events(clues: Clues) -> Iterator[Finding]:
    """An event of another workspace, applied."""
    for record in clues.evidence.rows.keys:
        place = (record.scope.tenant, record.scope.workspace)
        if not record.key.startswith("evt:") or (*place, record.key) in clues.event_keys:
            continue
        others = sorted(f"{t}/{w}" for t, w, key in clues.event_keys if key == record.key)
        if others:
            what = f"{record.scope} applied {record.key!r}, an event of {others}"
            yield Finding(what, [record.key], str(record.scope))


def _attempt(clues: Clues, sendings: Sequence[Sent]) -> Iterator[Finding | int]:
    """One violation for each, stored and published where it arrived; nothing where it claims to be from."""
    sent = sendings[0]
    scope, id_ = sent.scope, sent.command.id
    name = f"{sent.subject} (id {id_}), which claims to be {_claimed(sent)},"
    told = [
        row
        for row in clues.by_scope.get(scope, ())
        if row.name == "violation" and clues.told(row).get("causation_id") == id_
    ]
    yield 1
    arrived = any(clues.was_accepted(each) and not clues.may_be_forgotten(each) for each in sendings)
    if arrived and not told and not clues.waits(sent):
        yield Finding(f"{name} is gone, and no violation is stored", [sent.key], str(scope))
    if len(told) > len(sendings):
        what = f"was sent {len(sendings)} times, and {len(told)} violations are stored"
        yield Finding(f"{name} {what}", [sent.key], str(scope))
    for row in told:
        for what in _mistold(clues, row, sent):
            yield Finding(f"{name}: its violation (output {row.n}) {what}", [sent.key], str(scope))
    for row in clues.evidence.rows.outputs:
        meant = id_ in clues.ids_asked.get(row.scope, ())
        if row.scope != scope and not meant and clues.told(row).get("causation_id") == id_:
            what = f"had an effect in {row.scope}: output {row.n} ({row.name})"
            yield Finding(f"{name} {what}", [sent.key, row.key], str(row.scope))


def _claimed(sent: Sent) -> Scope:
    return Scope(sent.command.tenant, sent.command.workspace, sent.command.agent)


def _mistold(clues: Clues, row: OutputRow, sent: Sent) -> Iterator[str]:
    payload = clues.payload(row)
    extra = sorted(payload.keys() - _TOLD_FIELDS)
    if extra:
        yield f"carries {extra} beside what it may tell"
    if not _CODE.fullmatch(str(payload.get("code"))):
        yield f"has the code {payload.get('code')!r:.100}"
    if payload.get("subject") != sent.subject:
        yield f"names the subject {payload.get('subject')!r:.200}"
    context = sent.command.security_context
    if payload.get("principal_id") not in (None, context and context.principal_id):
        yield f"names the principal {payload.get('principal_id')!r:.200}"
    known = f"{sent.subject} {sent.scope} {_claimed(sent)} {sent.command.action}"
    echoed = [text for text in _texts(sent.command.payload) if text in str(payload.get("reason")) and text not in known]
    if echoed:
        yield f"echoes {echoed} of the payload"
    copies = Counter(m.msg_id for m in clues.evidence.events)[row.msg_id]
    if clues.settled and copies != 1 and clues.first_seq(EVENTS) <= 1:
        yield f"is published {copies} times"


def _texts(value: object) -> Iterator[str]:
    """The texts in a JSON value that are long enough to be recognised."""
    if isinstance(value, str):
        if len(value) >= _TEXT_LENGTH_MIN:
            yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _false_alarms(clues: Clues, attempts: set[str]) -> Iterator[Finding]:
    """Violations told of commands that nothing was wrong with."""
    honest = {(s.scope, s.command.id): s.key for s in clues.evidence.sent if s.expect and s.command.id not in attempts}
    for row in clues.evidence.rows.outputs:
        place = (row.scope, str(clues.told(row).get("causation_id")))
        if row.name == "violation" and place in honest:
            what = f"a violation (output {row.n}) is told of command {place[1]}, with which nothing was wrong"
            yield Finding(f"{row.scope}: {what}", [honest[place]], str(row.scope))


CHECKER = Checker(
    "G9",
    "Isolated: nothing read, written, ACKed or published crosses tenant or workspace; an attempt is a stored, "
    "published violation.",
    look,
)
