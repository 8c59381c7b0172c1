"""What the checkers read out of evidence: what was sent and accepted, what was decided, what the streams hold.

Everything is worked out when it is first asked for, and once for each `Clues`.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from functools import cached_property
from typing import Any

import attrs

from chaos.checkers.fates import Fates
from chaos.checkers.struck import Strikes
from chaos.evidence import Evidence, Sent, envelope_of
from chaos.history import Record
from chaos.rows import KeyRow, Letter, MarkRow, OutputRow
from chaos.sealing import meaning_of, shown
from meshforge_trio.broker.port import StoredMessage
from meshforge_trio.envelope import CommandEnvelope, decode_command
from meshforge_trio.errors import Poison
from meshforge_trio.subjects import EVENTS, FAILED, Scope, parse_subject

__all__ = ["Asked", "Clues", "event_key", "read_envelope", "scope_of"]

#: A longer key is stored as its hash.
_KEY_LENGTH_MAX = 256


@attrs.define
class Asked:
    """What was asked of a scope under one key: the ids it was sent under, and what the key may stand for.

    `digests` is empty where only the sending is known, not the command.
    """

    ids: set[str] = attrs.field(factory=set)
    digests: set[bytes] = attrs.field(factory=set)
    commands: list[CommandEnvelope] = attrs.field(factory=list)


class Clues:
    """`evidence`, read."""

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        self.strikes = Strikes(evidence.history)

    @cached_property
    def settled(self) -> bool:
        """Whether this is the end of a run in which everything was decided.

        An end that came because time was up is judged like a corpse; G12 says what is left.
        """
        return self.evidence.final and any(record.kind == "drained" for record in self.evidence.history)

    # -- what was sent -----------------------------------------------------------------------------------------

    @cached_property
    def seq_of(self) -> Mapping[int, int]:
        """The stream sequence at which each of `evidence.sent` was stored, by its place there.

        The same id may be used in several scopes: the client hears of them in the order in which it sent them.
        """
        places: dict[str, int] = defaultdict(int)
        found: dict[int, int] = {}
        for i, sent in enumerate(self.evidence.sent):
            id_ = sent.command.id
            if places[id_] < len(self._acks.get(id_, ())):
                found[i] = self._acks[id_][places[id_]]["seq"]
            places[id_] += 1
        return found

    @cached_property
    def _acks(self) -> Mapping[str, Sequence[Record]]:
        """The stream's answers to the client, by id."""
        found: dict[str, list[Record]] = defaultdict(list)
        for record in self.evidence.history:
            if record.kind == "ok":
                found[record["id"]].append(record)
        return dict(found)

    @cached_property
    def accepted(self) -> Sequence[Sent]:
        """What the command stream is known to have stored by now: its PubAck came before the image was taken."""
        if not self._acks:
            return [sent for sent in self.evidence.sent if sent.outcome == "ok"]
        return [sent for i, sent in enumerate(self.evidence.sent) if i in self.seq_of]

    def was_accepted(self, sent: Sent) -> bool:
        """Whether this one of `evidence.sent` is among the accepted."""
        return id(sent) in self._accepted_ids

    @cached_property
    def _accepted_ids(self) -> frozenset[int]:
        return frozenset(map(id, self.accepted))

    def may_be_forgotten(self, sent: Sent) -> bool:
        """Whether the broker itself may have lost it: stored after the copy that was put back."""
        acks = self._acks.get(sent.command.id, ())
        return any(not acks or any(copied <= ack.t <= back for ack in acks) for copied, back in self.strikes.rollbacks)

    def sent_at(self, sent: Sent) -> int:
        """When it was first sent, on the clock of histories; 0 if nobody wrote it down."""
        return self._sent_at.get((sent.command.id, sent.subject), 0)

    @cached_property
    def _sent_at(self) -> Mapping[tuple[str, str], int]:
        sends = [record for record in self.evidence.history if record.kind == "send"]
        return {(record["id"], record["subject"]): record.t for record in reversed(sends)}

    @cached_property
    def waiting(self) -> frozenset[tuple[str, str]]:
        """(subject, id) of everything in the command stream."""
        return frozenset((m.subject, str(envelope_of(m).get("id"))) for m in self.evidence.commands)

    def waits(self, sent: Sent) -> bool:
        """Whether it is still in the command stream: by its id, or, where its body is no envelope, by its place."""
        return (sent.subject, sent.command.id) in self.waiting or (
            (sent.subject, self._seq_of_each.get(id(sent), 0)) in self._places_taken
        )

    @cached_property
    def _seq_of_each(self) -> Mapping[int, int]:
        return {id(self.evidence.sent[i]): seq for i, seq in self.seq_of.items()}

    @cached_property
    def _places_taken(self) -> frozenset[tuple[str, int]]:
        return frozenset((m.subject, m.seq) for m in self.evidence.commands if not envelope_of(m).get("id"))

    @cached_property
    def asked(self) -> Mapping[tuple[Scope, str], Asked]:
        """Everything asked of each scope, by clients and by agents, by key."""
        found: dict[tuple[Scope, str], Asked] = defaultdict(Asked)
        for sent in self.evidence.sent:
            asked = found[sent.scope, sent.key]
            asked.ids.add(sent.command.id)
            asked.digests.add(sent.digest)
            asked.commands.append(shown(sent.command))
        for record in self.evidence.history:
            scope = scope_of(record["subject"]) if record.kind == "send" else None
            if scope is not None:
                found[scope, record["key"]].ids.add(record["id"])
        for row in self.evidence.rows.outputs:
            command = _command_of(row)
            if command is not None:
                target = Scope(command.tenant, command.workspace, command.agent)
                asked = found[target, command.idempotency_key or ""]
                asked.ids.add(command.id)
                asked.digests.add(meaning_of(command))
                asked.commands.append(shown(command))
        return dict(found)

    @cached_property
    def deadlines(self) -> Set[tuple[Scope, str]]:
        """The keys under which the runtime itself may end leases: one for each state of a lock, by (scope, key)."""
        found = set()
        for row in self.evidence.rows.outputs:
            told = self.told(row).get("payload")
            if row.entity_id is None or not isinstance(told, dict) or "fencing_token" not in told:
                continue
            name = f"{told['fencing_token']}:{told.get('expires_at')!r}"
            digest = hashlib.sha256(f"{row.scope}\0{row.entity_id}\0{name}".encode()).hexdigest()
            found.add((row.scope, f"deadline:{digest[:32]}"))
        return found

    @cached_property
    def ids_asked(self) -> Mapping[Scope, frozenset[str]]:
        """The ids of everything asked of a scope."""
        found: dict[Scope, set[str]] = defaultdict(set)
        for (scope, _), asked in self.asked.items():
            found[scope] |= asked.ids
        return {scope: frozenset(ids) for scope, ids in found.items()}

    # -- what was decided --------------------------------------------------------------------------------------

    @cached_property
    def envelopes(self) -> Mapping[tuple[Scope, int], Mapping[str, Any]]:
        """The body of each output, by scope and number."""
        return {(row.scope, row.n): envelope_of(row) for row in self.evidence.rows.outputs}

    def told(self, row: OutputRow) -> Mapping[str, Any]:
        """The body of an output."""
        return self.envelopes[row.scope, row.n]

    def payload(self, row: OutputRow) -> Mapping[str, Any]:
        """The payload in the body of an output; empty if there is none."""
        payload = self.told(row).get("payload")
        return payload if isinstance(payload, dict) else {}

    @cached_property
    def outputs(self) -> Mapping[tuple[Scope, int], OutputRow]:
        """Outputs by scope and number."""
        return {(row.scope, row.n): row for row in self.evidence.rows.outputs}

    @cached_property
    def by_scope(self) -> Mapping[Scope, Sequence[OutputRow]]:
        """The outputs of each scope, in order."""
        found: dict[Scope, list[OutputRow]] = defaultdict(list)
        for row in sorted(self.evidence.rows.outputs, key=lambda row: row.n):
            found[row.scope].append(row)
        return dict(found)

    def outputs_of(self, record: KeyRow) -> Sequence[OutputRow]:
        """Those outputs of a decision that are there."""
        rows = (self.outputs.get((record.scope, n)) for n in range(record.first_n, record.last_n + 1))
        return [row for row in rows if row is not None]

    @cached_property
    def records(self) -> Mapping[tuple[Scope, str], KeyRow]:
        """The decision under each key."""
        return {(record.scope, record.key): record for record in self.evidence.rows.keys}

    @cached_property
    def mismatches(self) -> Mapping[tuple[Scope, str, bytes], KeyRow]:
        """The refusals of a key's other payloads."""
        return {(record.scope, record.key, record.payload_hash): record for record in self.evidence.rows.mismatches}

    @cached_property
    def raw_decisions(self) -> Mapping[tuple[Scope, str], Sequence[KeyRow]]:
        """Decisions under no key of a client's, by scope and the id of the command they name as their cause."""
        found: dict[tuple[Scope, str], list[KeyRow]] = defaultdict(list)
        for record in self.evidence.rows.keys:
            if record.key.startswith("raw:"):
                causes = {str(self.told(row).get("causation_id")) for row in self.outputs_of(record)}
                for cause in causes:
                    found[record.scope, cause].append(record)
        return found

    def decision(self, sent: Sent) -> KeyRow | None:
        """What was decided of a command, or of the one before it with the same key and payload."""
        record = self.records.get((sent.scope, sent.key))
        if record is not None and (record.payload_hash == sent.digest or record.key.startswith("raw:")):
            return record
        mismatch = self.mismatches.get((sent.scope, sent.key, sent.digest))
        if mismatch is not None:
            return mismatch
        return next(iter(self.raw_decisions.get((sent.scope, sent.command.id), ())), None)

    @cached_property
    def fates(self) -> Fates:
        """What became of dead letters."""
        return Fates(self.evidence.rows, self.told)

    @property
    def letters(self) -> Mapping[tuple[Scope, str], Sequence[Letter]]:
        """The dead letters of each key, by generation."""
        return self.fates.letters

    def redriven(self, row: OutputRow) -> bool:
        """Whether an output belongs to a dead letter that was redriven since: its key is free, or decided anew."""
        return (row.scope, row.n) in self.fates.past

    def done_again(self, scope: Scope, key: str, generation: int) -> bool:
        """Whether what was sent again for a dead letter of this generation is decided, under its key."""
        record = self.records.get((scope, key))
        return self.fates.done_since(scope, key, generation, None if record is None else record.generation)

    def commands_of(self, row: OutputRow) -> Sequence[CommandEnvelope]:
        """The commands that an output may be the answer to: the sendings of its key, as far as they are known."""
        record = self.records.get((row.scope, row.key))
        asked = self.asked.get((row.scope, row.key))
        if record is None or asked is None:
            return []
        return [command for command in asked.commands if meaning_of(command) == record.payload_hash]

    # -- what the streams hold ---------------------------------------------------------------------------------

    @cached_property
    def by_msg_id(self) -> Mapping[str, OutputRow]:
        """Outputs by Msg-Id."""
        return {row.msg_id: row for row in self.evidence.rows.outputs}

    def streamed(self, stream: str) -> Sequence[StoredMessage]:
        """The messages of EVENTS or FAILED."""
        return self.evidence.events if stream == EVENTS else self.evidence.failed

    def first_seq(self, stream: str) -> int:
        """Of a stream: what was stored below has expired."""
        facts = self.evidence.facts.get(stream)
        return 1 if facts is None else facts.first_seq

    @cached_property
    def id_at(self) -> Mapping[str, Mapping[int, str]]:
        """Msg-Ids by sequence, for EVENTS and FAILED."""
        return {stream: {m.seq: m.msg_id for m in self.streamed(stream)} for stream in (EVENTS, FAILED)}

    def confirms(self, mark: MarkRow) -> bool:
        """Whether both streams still hold, at the mark's sequences, what it says."""
        places = ((EVENTS, mark.event_seq, mark.event_id), (FAILED, mark.failed_seq, mark.failed_id))
        # Nothing is said of a stream by sequence 0, and nothing can be said of what has expired.
        return all(
            seq == 0 or seq < self.first_seq(stream) or self.id_at[stream].get(seq) == msg_id
            for stream, seq, msg_id in places
        )

    @cached_property
    def marks(self) -> Mapping[Scope, Sequence[MarkRow]]:
        """The marks of each scope, oldest first."""
        found: dict[Scope, list[MarkRow]] = defaultdict(list)
        for mark in self.evidence.rows.marks:
            found[mark.scope].append(mark)
        return dict(found)

    def published_through(self, scope: Scope) -> int:
        """The number through which the newest valid mark says that everything is published; 0 without one."""
        marks = self.marks.get(scope, ())
        for mark in reversed(marks):
            # One written over an empty stream is confirmed by any stream, so it stands only while it is the newest.
            if (mark.event_seq or mark.n == marks[-1].n) and self.confirms(mark):
                return mark.n
        return 0

    @cached_property
    def heard(self) -> Sequence[Mapping[str, Any]]:
        """The envelope of everything that a core subscriber was sent."""
        return [read_envelope(body) for _, body in self.evidence.received]

    @cached_property
    def heard_at(self) -> Mapping[str, Sequence[int]]:
        """When each Msg-Id was heard."""
        found: dict[str, list[int]] = defaultdict(list)
        for record in self.evidence.history:
            if record.kind == "heard":
                found[record["msg_id"]].append(record.t)
        return dict(found)

    # -- what receivers are sent -------------------------------------------------------------------------------

    @cached_property
    def event_keys(self) -> frozenset[tuple[str, str, str]]:
        """(tenant, workspace, key) under which a receiver decides each committed event."""
        scopes = {(scope.tenant, scope.workspace) for scope in self.by_scope}
        return frozenset((*place, key) for place in scopes for key, _ in self.events_of(*place))

    def events_of(self, tenant: str, workspace: str) -> Iterator[tuple[str, OutputRow]]:
        """Every committed event of a workspace, with the key under which a receiver decides it."""
        for row in self.evidence.rows.outputs:
            if (row.scope.tenant, row.scope.workspace) == (tenant, workspace) and row.kind in ("event", "record"):
                yield event_key(row.scope.agent, row.event_id, row.key), row


def event_key(agent: str, event_id: str, key: str) -> str:
    """What a receiver of the event knows it by."""
    name = f"evt:{agent}:{event_id}:{key}"
    return name if len(name) <= _KEY_LENGTH_MAX else f"evt:{hashlib.sha256(name.encode()).hexdigest()}"


def read_envelope(body: bytes) -> Mapping[str, Any]:
    """A body as JSON; empty for one that is none."""
    return envelope_of(StoredMessage(0, "", "", body))


def scope_of(subject: str) -> Scope | None:
    """The scope that the subject of a command or event names."""
    try:
        return parse_subject(subject).scope
    except Poison:
        return None


def _command_of(row: OutputRow) -> CommandEnvelope | None:
    """The command that an agent sends with this output, if it does."""
    if row.kind != "command":
        return None
    try:
        return decode_command(row.body)
    except Poison:
        return None
