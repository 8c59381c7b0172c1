"""Holding a lock from a client: acquired, refreshed beside the body, which ends when the lease does, released.

The client judges its lease by its own clock, counted from before it asked, so it lets go no later than the runtime
does. That is no protection against being suspended between a look at the clock and an act: what the lock protects has
to be told the fencing token (`HeldLock.fence`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, TypedDict

import attrs
import structlog
import trio

from meshforge_trio.answers import CommandFailed, OutcomeUnknown
from meshforge_trio.clock import SystemClock
from meshforge_trio.codec import is_sealed
from meshforge_trio.envelope import EventEnvelope, JsonObject
from meshforge_trio.errors import MeshForgeError, Misconfigured
from meshforge_trio.locks import LOCK_MANAGER
from meshforge_trio.policy import backoff

if TYPE_CHECKING:
    from meshforge_trio.client import MeshClient

__all__ = ["Fence", "HeldLock", "LockDenied", "LockLost", "hold"]

#: A lease is refreshed when a third of it is over, so one lost refresh loses nothing.
_REFRESH_SHARE: Final = 1 / 3
#: How often a lock that is held by another is asked for, at the least.
_ASK_EVERY_S: Final = 1.0
_RELEASE_S: Final = 2.0


class LockDenied(CommandFailed):
    """Another one holds it. `current_owner` is who, `expires_at` until when by the runtime's clock."""

    def __init__(self, event: EventEnvelope) -> None:
        super().__init__(event)
        self.current_owner = str(event.payload.get("current_owner"))
        self.expires_at = event.payload.get("expires_at")


class LockLost(MeshForgeError):
    """The lease ended before the block did; what the block did last may have been beside a new holder."""


class Fence(TypedDict):
    """What a command carries so that an outdated holder is refused: `mesh.send(..., **lock.fence)`."""

    resource_id: str
    fencing_token: int


@attrs.define(eq=False)
class HeldLock:
    """A lock that this client holds. `until` is on the clock that nobody sets (`SystemClock.elapsed`)."""

    resource_id: str
    owner_id: str
    fencing_token: int
    until: float
    clock: SystemClock

    @property
    def fence(self) -> Fence:
        """Fields for commands that act under this lock."""
        return {"resource_id": self.resource_id, "fencing_token": self.fencing_token}

    @property
    def left_s(self) -> float:
        """How long the lease lasts still, if it is not refreshed."""
        return max(self.until - self.clock.elapsed(), 0.0)


@asynccontextmanager
async def hold(
    mesh: MeshClient, resource_id: str, *, ttl_s: float, owner_id: str, wait_s: float
) -> AsyncIterator[HeldLock]:
    """Hold the lock of `resource_id` within the block; it is refreshed meanwhile, and released at the end.

    With `wait_s` it is asked for again, for that long, while another holds it. The block is cancelled when the lease is
    lost. An exception of the block leaves it as it was raised, in no group.

    Raises:
        LockDenied: another one holds it.
        LockLost: the lease could not be refreshed in time; the block was cancelled, or ended after its lease.
        CommandRefused: resource, owner or `ttl_s` are out of range.
        OutcomeUnknown: no answer within `wait_s` and a moment; the lease, if there is one, ends by itself.
        Misconfigured: the answer is sealed, and this client has no codec.
    """
    held = await _acquired(mesh, resource_id, owner_id, ttl_s, wait_s)
    lost: str | None = None
    raised: Exception | None = None

    async def refresh(body: trio.CancelScope) -> None:
        nonlocal lost
        lost = await _refreshed_until_lost(mesh, held, ttl_s)
        body.cancel()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refresh, nursery.cancel_scope)
            try:
                yield held
            except Exception as error:
                # Raised below, where no nursery of ours can wrap it.
                raised = error
            finally:
                if lost is None and held.left_s == 0.0:
                    # This process did not move, so that its end is come to before its timer.
                    lost = "its time ran out before the block ended"
                nursery.cancel_scope.cancel()
    finally:
        if lost is None:
            await _release(mesh, held)
    if lost is not None:
        raise LockLost(f"the lock of {resource_id!r} is lost: {lost}") from raised
    if raised is not None:
        raise raised


async def _acquired(mesh: MeshClient, resource_id: str, owner_id: str, ttl_s: float, wait_s: float) -> HeldLock:
    clock = SystemClock()
    payload: JsonObject = {"resource_id": resource_id, "owner_id": owner_id, "ttl_seconds": float(ttl_s)}
    give_up = clock.elapsed() + wait_s
    waits = backoff(_ASK_EVERY_S)
    while True:
        asked = clock.elapsed()
        answer = await mesh.call(
            LOCK_MANAGER,
            "acquire",
            payload,
            timeout_s=max(give_up - asked, ttl_s),
            raise_for_refusal=True,
            answers=("acquired", "denied"),
        )
        if is_sealed(answer.payload):
            raise Misconfigured("the lock manager's answer is sealed: give the client its tenant's codec (`codecs`)")
        if answer.name == "acquired" and clock.elapsed() < asked + ttl_s:
            return HeldLock(resource_id, owner_id, answer.payload["fencing_token"], asked + ttl_s, clock)
        pause = next(waits)
        if answer.name == "denied" and clock.elapsed() + pause > give_up:
            raise LockDenied(answer)
        await trio.sleep(pause)


async def _refreshed_until_lost(mesh: MeshClient, held: HeldLock, ttl_s: float) -> str:
    """Keep the lease; return why that was no longer possible."""
    payload: JsonObject = {"resource_id": held.resource_id, "owner_id": held.owner_id, "ttl_seconds": float(ttl_s)}
    while True:
        await trio.sleep(min(ttl_s * _REFRESH_SHARE, held.left_s))
        asked = held.clock.elapsed()
        if held.left_s == 0.0:
            return "its time ran out before it could be refreshed"
        try:
            answer = await mesh.call(LOCK_MANAGER, "refresh", payload, timeout_s=held.left_s, raise_for_refusal=True)
        except OutcomeUnknown as unknown:
            return f"no answer to a refresh: {unknown}"
        except CommandFailed as failed:
            return str(failed)
        if answer.name != "refreshed":
            return f"{answer.name}: {answer.payload.get('reason', 'its time was over')}"
        held.until = asked + ttl_s


async def _release(mesh: MeshClient, held: HeldLock) -> None:
    """Give it back. Where that fails it ends by itself."""
    payload: JsonObject = {"resource_id": held.resource_id, "owner_id": held.owner_id}
    with trio.CancelScope(shield=True):
        try:
            await mesh.call(LOCK_MANAGER, "release", payload, timeout_s=min(_RELEASE_S, max(held.left_s, 0.05)))
        except OutcomeUnknown as unknown:
            log = structlog.get_logger("meshforge")
            log.warning("a lock was not released; it ends by itself", resource=held.resource_id, reason=str(unknown))
