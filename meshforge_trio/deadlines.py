"""Deadlines of entities: when one comes, the engine sends the command that the entity's state asked for.

Nothing of it is stored: which deadlines there are follows from the states, so a new session reads them there. A command
is sent under a key made of entity and deadline, so it takes effect once however often sessions, restarts and takeovers
send it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from meshforge_trio.agent import AgentAdapter, Deadline
from meshforge_trio.broker.port import Message
from meshforge_trio.clock import Clock
from meshforge_trio.codec import Sealer
from meshforge_trio.envelope import CommandEnvelope, SecurityContext, encode
from meshforge_trio.subjects import Scope, command_subject

if TYPE_CHECKING:
    from meshforge_trio.session import Session

__all__ = ["Deadlines", "keep"]

_PAGE: Final = 500


@attrs.frozen
class _Set:
    at: float
    deadline: Deadline


class Deadlines:
    """The deadlines of one scope in one session, by entity; times on the clock that nobody sets."""

    def __init__(self, adapter: AgentAdapter[Any], clock: Clock) -> None:
        self._adapter = adapter
        self._clock = clock
        self._set: dict[str, _Set] = {}
        self._sent: dict[str, str] = {}
        # Entities that turns of this session have moved while the others are still being read.
        self._reading = True
        self._moved: set[str] = set()
        self._stopped = False
        self.changed = trio.Event()

    def note(self, states: Iterable[tuple[str, Any]], *, found: bool = False) -> None:
        """These are states of entities: the newest, or with `found` such as were read and may be outdated by now."""
        if self._stopped or not self._adapter.deadlines:
            return
        now = self._clock.now()
        for entity_id, state in states:
            if found and entity_id in self._moved:
                continue
            if not found and self._reading:
                self._moved.add(entity_id)
            deadline = self._adapter.deadline(state, now)
            if deadline is not None and self._sent.get(entity_id) == deadline.name:
                self._set.pop(entity_id, None)
                continue
            self._sent.pop(entity_id, None)
            if deadline is None:
                self._set.pop(entity_id, None)
                continue
            before = self._set.get(entity_id)
            if before is None or before.deadline.name != deadline.name:
                self._set[entity_id] = _Set(self._clock.elapsed() + deadline.in_s, deadline)
        self.changed.set()

    def due(self) -> list[tuple[str, Deadline]]:
        """Entities whose deadline has come, earliest first; each is told once."""
        now = self._clock.elapsed()
        come = sorted((each.at, entity_id) for entity_id, each in self._set.items() if each.at <= now)
        found = [(entity_id, self._set.pop(entity_id).deadline) for _, entity_id in come]
        self._sent.update({entity_id: deadline.name for entity_id, deadline in found})
        return found

    def all_read(self) -> None:
        """Every entity has been told: from here on there is only what turns move."""
        self._reading = False
        self._moved.clear()

    def stop(self) -> None:
        """No more is told: whoever serves next reads them off the states again."""
        self._set.clear()
        self._stopped = True

    def wait_s(self) -> float:
        """How long until the next one."""
        if not self._set:
            return float("inf")
        return max(min(each.at for each in self._set.values()) - self._clock.elapsed(), 0.0)


async def keep(session: Session) -> None:
    """Send what is due, for as long as the session lasts.

    Raises:
        SessionLost, Fenced: as a publish does.
    """
    if not session.adapter.deadlines:
        return
    last = ""
    while heads := await session.rows.heads(last, _PAGE):
        entities = await session.entities([head.entity_id for head in heads])
        session.deadlines.note([(entity_id, entity.state) for entity_id, entity in entities], found=True)
        last = heads[-1].entity_id
    session.deadlines.all_read()
    while True:
        session.deadlines.changed = trio.Event()
        with trio.move_on_after(session.deadlines.wait_s()):
            await session.deadlines.changed.wait()
        due = session.deadlines.due()
        if due:
            scope, sealer = session.rows.scope, session.sealer
            await session.send([_command(scope, entity_id, deadline, sealer) for entity_id, deadline in due])


def _command(scope: Scope, entity_id: str, deadline: Deadline, sealer: Sealer | None) -> Message:
    named = hashlib.sha256(f"{scope}\0{entity_id}\0{deadline.name}".encode()).hexdigest()[:32]
    command = CommandEnvelope(
        id=named,
        tenant=scope.tenant,
        workspace=scope.workspace,
        agent=scope.agent,
        action=deadline.action,
        idempotency_key=f"deadline:{named}",
        entity_id=entity_id,
        payload=deadline.payload,
        security_context=SecurityContext("deadlines", "system"),
    )
    body = encode(command if sealer is None else sealer.sealed(command))
    return Message(command_subject(scope, deadline.action), body, named)
