"""Errors, sorted by what the caller must do next.

    MeshForgeError
    ├── Transient       try again later (NAK with delay)
    │   ├── SessionLost     the broker session is over; a new one starts with recovery
    │   └── StoreFull       no space: roll back, stop pulling, resume when space returns
    ├── Poison          will never succeed (dead letter)
    │   └── Erased          the keys of its tenant's payloads were destroyed
    ├── Refused         the agent or the runtime says no; stored, answered, not retried
    ├── Fenced          somebody else is the active engine: stop working on the scope
    ├── Stale           another commit came first: decide the turn anew
    ├── Misconfigured   refuse to start, and say what to run
    └── StoreBroken     the database failed an I/O: end the process, never retry

`policy.disposition` maps every one of them. Foreign errors (apsw, nats, orjson, cattrs) are translated at the port.
"""

from __future__ import annotations

__all__ = [
    "Erased",
    "Fenced",
    "MeshForgeError",
    "Misconfigured",
    "Poison",
    "Refused",
    "SessionLost",
    "Stale",
    "StoreBroken",
    "StoreFull",
    "Transient",
]


class MeshForgeError(Exception):
    """Root of every error this package raises on purpose."""


class Transient(MeshForgeError):
    """It may work later. A handler raises this to ask for a retry with back-off."""


class SessionLost(Transient):
    """The broker session ended: connection lost, consumer gap, PubAck refused or too late."""


class StoreFull(Transient):
    """The store has no space. The transaction was rolled back; nothing of it is kept."""


class Poison(MeshForgeError):
    """It will never work. A handler raises this to have its command dead-lettered at once.

    `code` is a short stable word for machines, `field` the envelope or payload field at fault, if one is.
    """

    def __init__(self, reason: str, *, code: str = "poison", field: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.code = code
        self.field = field


class Erased(Poison):
    """The keys of a tenant's payloads were destroyed: what they sealed cannot be read, and nothing more is sealed."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, code="erased", field="payload")


class Refused(MeshForgeError):
    """The command is understood and denied. The refusal is stored under its key and published.

    `name` is the event that tells it (`refused` unless the agent has a better word, as `not_found`).
    """

    def __init__(
        self,
        reason: str,
        *,
        code: str = "refused",
        field: str | None = None,
        name: str = "refused",
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.code = code
        self.field = field
        self.name = name


class Fenced(MeshForgeError):
    """The lease of this scope belongs to another process now; whatever was in hand is void."""


class Stale(MeshForgeError):
    """A key or version was committed by somebody else since it was read; nothing was written."""


class Misconfigured(MeshForgeError):
    """The surroundings contradict a guarantee; the message names the command that mends it."""


class StoreBroken(MeshForgeError):
    """The database reported an I/O error or corruption. Retrying could hide lost writes."""
