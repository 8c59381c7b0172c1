"""From a command to the event that answers it: who waits for what, and what an answer means to a caller."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import attrs
import trio

from meshforge_trio.codec import Sealer, is_sealed
from meshforge_trio.envelope import CommandEnvelope, EventEnvelope, decode_event, payload_hash
from meshforge_trio.errors import MeshForgeError, Misconfigured, Poison, Transient

__all__ = [
    "Answers",
    "CommandDead",
    "CommandFailed",
    "CommandRefused",
    "Conflict",
    "OutcomeUnknown",
    "SecurityViolation",
    "Sent",
    "Waiter",
    "raise_if_failed",
]

_REFUSAL_FIELDS: Final = frozenset({"code", "reason", "field"})


@attrs.frozen
class Sent:
    """A command that the command stream has stored.

    `duplicate` says that it had stored one of this id before, be it by an earlier try of the same `send`.
    """

    id: str
    idempotency_key: str | None
    stream_seq: int
    duplicate: bool


class OutcomeUnknown(Transient):
    """No word in time: the command may have taken effect, may still do so, or may be lost.

    `id` and `idempotency_key` name it; sending it again with that key is safe. `confirmed` are the commands of the
    same batch that are known to be stored.
    """

    def __init__(self, text: str, command: CommandEnvelope, confirmed: Sequence[Sent] = ()) -> None:
        super().__init__(text)
        self.id = command.id
        self.idempotency_key = command.idempotency_key
        self.confirmed = confirmed


class CommandFailed(MeshForgeError):
    """The answer says that the command did not do what it asked for. It is stored: a re-send hears the same."""

    def __init__(self, event: EventEnvelope) -> None:
        payload = event.payload
        self.event = event
        self.code = str(payload.get("code", event.name))
        self.reason = str(payload.get("reason", "")) if not is_sealed(payload) else "its payload is sealed"
        super().__init__(f"{event.agent} {event.name} (key {event.idempotency_key}): {self.code}: {self.reason}")


class Conflict(CommandFailed):
    """The entity is not at `expected_version` but at `current_version`."""

    @property
    def expected_version(self) -> int:
        """What the command expected."""
        return int(self.event.payload["expected_version"])

    @property
    def current_version(self) -> int:
        """Where the entity stood when it was decided."""
        return int(self.event.payload["current_version"])


class CommandRefused(CommandFailed):
    """The agent or the runtime said no."""

    @property
    def field(self) -> str | None:
        """The field at fault, if one is."""
        found = self.event.payload.get("field")
        return None if found is None else str(found)


class CommandDead(CommandFailed):
    """The command was set aside as a dead letter; redriving it is an operator's decision."""

    @property
    def attempts(self) -> int:
        """How often its handler was called."""
        return int(self.event.payload.get("attempts", 0))


class SecurityViolation(CommandFailed):
    """The command was not let in."""


def raise_if_failed(event: EventEnvelope) -> None:
    """Raise the `CommandFailed` that `event` stands for, if it does.

    A refusal may have a name of the agent's choice (`not_found`); it is told by its payload, which is `code`, `reason`
    and `field` and nothing else but `entity_version`.
    """
    match event.name:
        case "conflict":
            raise Conflict(event)
        case "dead_lettered":
            raise CommandDead(event)
        case "violation":
            raise SecurityViolation(event)
    if _is_refusal(event):
        raise CommandRefused(event)


def _is_refusal(event: EventEnvelope) -> bool:
    return event.name == "refused" or event.payload.keys() - {"entity_version"} == _REFUSAL_FIELDS


def _is_failure(event: EventEnvelope) -> bool:
    return event.name in ("conflict", "dead_lettered", "violation") or _is_refusal(event)


@attrs.define(eq=False)
class Waiter:
    """A call that waits. `ids` are the ids its command was sent under, the first one first.

    `names` are the events that may answer it, beside those that tell of a failure; `None` stands for all. `hash` is
    what the runtime takes its key to stand for.
    """

    command: CommandEnvelope
    ids: list[str]
    hash: bytes
    names: Container[str] | None = None
    answer: EventEnvelope | None = None
    changed: trio.Event = attrs.field(factory=trio.Event)

    def takes(self, event: EventEnvelope) -> bool:
        """Whether `event` answers this call.

        The key answers whichever sending caused the event. Queries are answered under a key of the runtime's, and
        violations under none of the sender's: these tell by `causation_id`.
        """
        command = self.command
        if self.names is not None and event.name not in self.names and not _is_failure(event):
            return False
        if (event.tenant, event.workspace, event.agent) != (command.tenant, command.workspace, command.agent):
            return False
        if event.causation_id in self.ids:
            return True
        if event.idempotency_key != command.idempotency_key:
            return False
        if event.name == "refused" and event.payload.get("code") == "idempotency_mismatch":
            # Somebody else used our key for another payload and was refused: its id names that payload's hash.
            return event.id.endswith(f"_{self.hash.hex()[:16]}_refused")
        return True


class Answers:
    """Waiting calls by key and by the ids they were sent under. With a `sealer` what answers them is opened."""

    def __init__(self, sealer: Sealer | None = None) -> None:
        self._sealer = sealer
        self._by_key: dict[str, list[Waiter]] = {}
        self._by_id: dict[str, Waiter] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    @contextmanager
    def expect(self, command: CommandEnvelope, names: Container[str] | None = None) -> Iterator[Waiter]:
        """Wait for the answer to `command` within the block; nothing is kept after it."""
        key = command.idempotency_key or ""
        waiter = Waiter(command, [command.id], self._hash(command), names)
        self._by_key.setdefault(key, []).append(waiter)
        self._by_id[command.id] = waiter
        try:
            yield waiter
        finally:
            for sent_as in waiter.ids:
                self._by_id.pop(sent_as, None)
            waiters = self._by_key[key]
            waiters.remove(waiter)
            if not waiters:
                del self._by_key[key]

    def _hash(self, command: CommandEnvelope) -> bytes:
        return payload_hash(command, None if self._sealer is None else self._sealer.digest)

    def also(self, waiter: Waiter, command_id: str) -> None:
        """The command of `waiter` is sent once more, under another id."""
        waiter.ids.append(command_id)
        self._by_id[command_id] = waiter

    def receive(self, _subject: bytes, _reply: bytes, _headers: bytes | None, body: bytes) -> None:
        """A `Receiver` for events."""
        if not self._by_id:
            return
        try:
            event = decode_event(body)
        except Poison:
            return  # whatever this is, it answers nobody
        waiting = list(self._by_key.get(event.idempotency_key or "", ()))
        sender = self._by_id.get(event.causation_id or "")
        if sender is not None:
            waiting.append(sender)
        if waiting and self._sealer is not None:
            event = self._opened(event, self._sealer)
        for waiter in waiting:
            if waiter.answer is None and waiter.takes(event):
                waiter.answer = event
                waiter.changed.set()

    @staticmethod
    def _opened(event: EventEnvelope, sealer: Sealer) -> EventEnvelope:
        try:
            return sealer.shown(event)
        except Misconfigured:
            return event  # without its keys it answers all the same, sealed
