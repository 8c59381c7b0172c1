"""What an agent's handlers are given and what they return: data, and nothing that does anything."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from meshforge_trio.envelope import JsonObject

__all__ = ["Context", "Deadline", "Decision", "Event", "Reply", "Send", "Subscription"]


@attrs.frozen
class Event:
    """A fact about one entity, as decided and as applied. The runtime adds `entity_version` to the payload."""

    name: str
    payload: JsonObject = attrs.field(factory=dict)


@attrs.frozen
class Reply:
    """An answer that changes nothing: stored and published like an event, but beside the entity's chain."""

    name: str
    payload: JsonObject = attrs.field(factory=dict)


@attrs.frozen
class Send:
    """A command to another agent of the same tenant and workspace. Its key derives from its cause."""

    agent: str
    action: str
    payload: JsonObject = attrs.field(factory=dict)
    entity_id: str | None = None
    expected_version: int | None = None


@attrs.frozen
class Decision:
    """What a command leads to. All of it takes effect, once, or nothing of it."""

    events: Sequence[Event] = ()
    commands: Sequence[Send] = ()
    reply: Reply | None = None


@attrs.frozen
class Context:
    """What `receive` may know beside state and message.

    `now` is the runtime's clock, seconds since 1970; store in an event what depends on it.
    `version` is the entity's version before this decision (0: it does not exist yet).
    """

    now: float
    entity_id: str | None
    version: int


@attrs.frozen
class Deadline:
    """A command that an entity's state asks for at a time, `in_s` seconds from now.

    The engine sends it to this agent as the system does, once: `name` tells it from other deadlines of the entity. It
    is decided like any command, so it has to look whether the state still asks for it.
    """

    in_s: float
    name: str
    action: str
    payload: JsonObject = attrs.field(factory=dict)


@attrs.frozen
class Subscription:
    """Events of another agent that this one receives, under the same protocol as commands."""

    agent: str
    name: str
