"""What a command may require before its handler is called: the entity's version, a lease that is not outdated.

Both are optional and judged from the store alone, so the same command on the same history is answered the same.
"""

from __future__ import annotations

from collections.abc import Mapping

from meshforge_trio.envelope import CommandEnvelope, JsonObject
from meshforge_trio.errors import Refused

__all__ = ["conflict", "require_newest_fence"]


def conflict(command: CommandEnvelope, entity_id: str | None, version: int) -> JsonObject | None:
    """What is told of a command that expects another version; `None` where it fits, or expects none.

    Raises:
        Refused: it expects a version and names no entity.
    """
    if command.expected_version is None:
        return None
    if entity_id is None:
        raise Refused(
            "expected_version needs an entity_id", code="expected_version_without_entity", field="expected_version"
        )
    if command.expected_version == version:
        return None
    return {
        "entity_id": entity_id,
        "expected_version": command.expected_version,
        "current_version": version,
        "reason": "optimistic locking failure: version mismatch",
    }


def require_newest_fence(command: CommandEnvelope, newest: Mapping[str, int]) -> tuple[str, int] | None:
    """The fence that a command brings, to be kept with its decision; `None` if it brings none.

    Raises:
        Refused: the agent has seen a command under a newer lease of the resource.
    """
    resource, token = command.resource_id, command.fencing_token
    if resource is None or token is None:
        return None
    seen = newest.get(resource, 0)
    if token < seen:
        raise Refused(
            f"the lease of {resource!r} under fencing token {token} is over: token {seen} was seen",
            code="stale_fencing_token",
            field="fencing_token",
        )
    return resource, token
