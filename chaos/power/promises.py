"""What the outside was told, and what a store must hold therefore: after a power loss it may not be taken back.

ACKed       the broker has removed the command, so its decision is in the store, or it is forgotten (G1)
published   others have seen the output, so it is in the store (G3), and the key of its command is, or that command
            is decided a second time when it comes again (G2)
answered    a query told of a version, so the entity has come to it (G3)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import attrs

from chaos.checkers.clues import event_key, read_envelope, scope_of
from chaos.evidence import Sent
from chaos.power.tape import Note
from chaos.rows import Rows
from chaos.workload import garbage_key
from meshforge_trio.envelope import decode_command, payload_hash
from meshforge_trio.errors import Poison
from meshforge_trio.subjects import Scope

__all__ = ["Facts", "Promise", "Promises", "facts_of"]


@attrs.frozen
class Facts:
    """What promises are held against: the decisions, outputs and versions of one store."""

    records: Mapping[tuple[Scope, str], bytes] = attrs.field(factory=dict)
    mismatches: frozenset[tuple[Scope, str, bytes]] = frozenset()
    bodies: Mapping[str, bytes] = attrs.field(factory=dict)
    versions: Mapping[tuple[Scope, str], int] = attrs.field(factory=dict)


def facts_of(rows: Rows) -> Facts:
    """The facts of a store that was read."""
    return Facts(
        {(record.scope, record.key): record.payload_hash for record in rows.keys},
        frozenset((record.scope, record.key, record.payload_hash) for record in rows.mismatches),
        {row.msg_id: row.body for row in rows.outputs},
        {place: head.version for place, head in rows.heads.items()},
    )


class Promise(Protocol):
    """Something that was told."""

    @property
    def guarantees(self) -> Sequence[str]:
        """Those that fall with it."""

    def broken(self, facts: Facts) -> Iterator[tuple[str, str]]:
        """The guarantees that do not hold with these facts, each with what is wrong."""


@attrs.frozen
class _Acked:
    """A command or an event was ACKed. Without `digest` its key alone counts."""

    scope: Scope
    key: str
    digest: bytes | None
    name: str
    guarantees: Sequence[str] = ("G1",)

    def broken(self, facts: Facts) -> Iterator[tuple[str, str]]:
        found = facts.records.get((self.scope, self.key))
        if found is None:
            yield "G1", f"{self.name} (key {self.key!r}) was ACKed, and is not decided"
        elif self.digest not in (None, found) and (self.scope, self.key, self.digest) not in facts.mismatches:
            yield "G1", f"{self.name} (key {self.key!r}) was refused and ACKed, and its refusal is not stored"


@attrs.frozen
class _Published:
    """An output was published, or sent again to core subscribers. `owner` is the scope and key it was decided under,
    where its body names them."""

    msg_id: str
    subject: str
    body: bytes
    owner: tuple[Scope, str] | None
    guarantees: Sequence[str] = ("G2", "G3")

    def broken(self, facts: Facts) -> Iterator[tuple[str, str]]:
        name = f"{self.subject} (Msg-Id {self.msg_id})"
        found = facts.bodies.get(self.msg_id)
        if found is None:
            yield "G3", f"{name} was published, and is not stored"
        elif found != self.body:
            yield "G3", f"{name} was published, and something else is stored"
        if self.owner is not None and self.owner not in facts.records:
            yield "G2", f"{name} was published, and its key {self.owner[1]!r} is free: it will be decided a second time"


@attrs.frozen
class _Answered:
    """A query was answered at a version."""

    scope: Scope
    entity: str
    version: int
    guarantees: Sequence[str] = ("G3",)

    def broken(self, facts: Facts) -> Iterator[tuple[str, str]]:
        found = facts.versions.get((self.scope, self.entity), 0)
        if found < self.version:
            what = f"a query was answered at version {self.version}, and {found} is stored"
            yield "G3", f"{self.scope} {self.entity!r}: {what}"


class Promises:
    """Reads promises out of the notes of a tape. `consumers` names whose consumer each is."""

    def __init__(self, sent: Sequence[Sent], consumers: Mapping[str, Scope]) -> None:
        self._queries = {(each.scope, each.command.id) for each in sent if each.query}
        self._consumers = consumers

    def of(self, note: Note) -> Promise | None:
        """What a note promises, if anything.

        Raises:
            LookupError: it speaks of a consumer that is nobody's.
        """
        match note.kind:
            case "acked":
                return self._acked(note)
            case "published" | "echoed":
                return _published(note)
        return None

    def _acked(self, note: Note) -> Promise | None:
        scope, subject, body = self._consumers[note["consumer"]], note["subject"], note["body"]
        told = read_envelope(body)
        if subject.startswith("evt."):
            key = event_key(str(told.get("agent")), str(told.get("id")), str(told.get("idempotency_key") or ""))
            return _Acked(scope, key, None, f"{subject} for {scope}")
        try:
            command = decode_command(body)
        except Poison:
            return _Acked(scope, garbage_key(subject, body, note["headers"]), None, subject)
        if (scope, command.id) in self._queries:
            return None
        own = Scope(command.tenant, command.workspace, command.agent) == scope_of(subject)
        if command.idempotency_key is None or not own:
            return _Acked(scope, garbage_key(subject, body, note["headers"]), None, f"{subject} {command.id}")
        return _Acked(scope, command.idempotency_key, payload_hash(command), f"{subject} {command.id}")


def _published(note: Note) -> Promise | None:
    message = (note["msg_id"], note["subject"], note["body"])
    if not note["subject"].startswith("evt."):
        # A command to another agent has its receiver's key, and a letter names no scope; the events beside them do.
        return _Published(*message, None)
    told = read_envelope(note["body"])
    scope = Scope(*(str(told.get(field)) for field in ("tenant", "workspace", "agent")))
    key = str(told.get("idempotency_key"))
    return _answered(scope, told) if key.startswith("query:") else _Published(*message, (scope, key))


def _answered(scope: Scope, told: Mapping[str, Any]) -> Promise | None:
    payload, entity = told.get("payload"), told.get("entity_id")
    version = payload.get("entity_version") if isinstance(payload, dict) else None
    if isinstance(entity, str) and type(version) is int:
        return _Answered(scope, entity, version)
    return None
