"""Changing an entity as it stands, by a caller that may lose a race: read, decide, send, and again after a conflict."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import trio

from meshforge_trio.answers import Conflict
from meshforge_trio.codec import is_sealed
from meshforge_trio.envelope import EventEnvelope, JsonObject
from meshforge_trio.errors import Misconfigured
from meshforge_trio.policy import backoff

if TYPE_CHECKING:
    from meshforge_trio.client import MeshClient

__all__ = ["revise"]

_PAUSE_MAX_S: Final = 1.0


async def revise(
    mesh: MeshClient,
    agent: str,
    action: str,
    entity_id: str,
    change: Callable[[EventEnvelope], JsonObject | None],
    *,
    read: str,
    tries: int,
    timeout_s: float,
) -> EventEnvelope | None:
    """See `MeshClient.revise`."""
    if tries < 1:
        raise Misconfigured(f"tries is {tries}: at least one is needed")
    waits = backoff(_PAUSE_MAX_S)
    while True:
        tries -= 1
        found = await mesh.call(agent, read, entity_id=entity_id, timeout_s=timeout_s, raise_for_refusal=True)
        version = _version_of(found)
        payload = change(found)
        if payload is None:
            return None
        try:
            return await mesh.call(
                agent,
                action,
                payload,
                entity_id=entity_id,
                expected_version=version,
                timeout_s=timeout_s,
                raise_for_refusal=True,
            )
        except Conflict:
            if not tries:
                raise
        # By chance, so that two who met do not meet again.
        await trio.sleep(next(waits) * secrets.randbelow(1000) / 1000)


def _version_of(found: EventEnvelope) -> int:
    if is_sealed(found.payload):
        raise Misconfigured(f"the answer of {found.agent} is sealed: give the client its tenant's codec (`codecs`)")
    version = found.payload.get("entity_version")
    if type(version) is not int:
        raise Misconfigured(
            f"{found.agent} answered {found.name!r} without an entity_version, so nothing can be expected of it: "
            "name the query that tells it (`read`)"
        )
    return version
