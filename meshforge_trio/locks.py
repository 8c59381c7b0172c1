"""The lock manager: advisory leases on resources, as events of the system agent `sys_lock_manager`.

    cmd.<tenant>.<workspace>.lock.acquire   {resource_id, owner_id, ttl_seconds}  → acquired | denied
    cmd.<tenant>.<workspace>.lock.refresh   {resource_id, owner_id, ttl_seconds}  → refreshed | denied | expired
    cmd.<tenant>.<workspace>.lock.release   {resource_id, owner_id}               → released | denied | expired
    cmd.<tenant>.<workspace>.lock.get       {resource_id}                         → found | not_found

A lease ends by the clock of the runtime, which is stored in each event; what its holder thinks of the time counts
nothing. It ends lazily, when somebody asks next, and by a deadline that the engine keeps, whichever comes first; the
event `expired` is decided once.

Nobody is made to wait, and nobody is stopped: a holder that was suspended learns of the end of its lease by the fencing
token, which rises with every lease of a resource and for ever. Whoever guards the resource refuses older ones, as an
agent does when a command carries `resource_id` and `fencing_token` (Kleppmann, "How to do distributed locking").
"""

from __future__ import annotations

from typing import Final

import attrs

from meshforge_trio.agent import Agent, Context, Deadline, Event, Reply
from meshforge_trio.envelope import CommandEnvelope, JsonObject
from meshforge_trio.errors import Refused

__all__ = ["EXPIRE", "LOCK_MANAGER", "Lock", "LockManagerAdapter"]

LOCK_MANAGER: Final = "sys_lock_manager"
EXPIRE: Final = "sys_expire"

_NAME_MAX: Final = 256
_TTL_MIN_S: Final = 0.05


@attrs.frozen
class Lock:
    """Who has a resource. `until` is in seconds since 1970 and 0 while nobody has it; `token` was the newest given."""

    owner_id: str = ""
    until: float = 0.0
    ttl_seconds: float = 0.0
    token: int = 0

    @property
    def given(self) -> bool:
        """Whether somebody has it, be it beyond its time."""
        return self.until > 0.0


@attrs.frozen
class _Acquire:
    resource_id: str
    owner_id: str
    ttl_seconds: float


@attrs.frozen
class _Release:
    resource_id: str
    owner_id: str


@attrs.frozen
class _Expire:
    fencing_token: int
    expires_at: float


class LockManagerAdapter(Agent[Lock]):
    """`sys_lock_manager`. An app that has it among its agents has locks; no other part of the runtime needs it.

    `ttl_max_s` bounds what may be asked for: a lease without an end would outlive its holder.
    """

    deadlines = True

    def __init__(self, *, ttl_max_s: float = 3600.0) -> None:
        super().__init__(LOCK_MANAGER, state=Lock, initial=Lock)
        self._ttl_max_s = ttl_max_s
        self.command("acquire")(self._acquire)
        self.command("refresh")(self._refresh)
        self.command("release")(self._release)
        # Not through `command`: an action of the runtime, which only the system may send.
        self._commands[EXPIRE] = self._handler(self._expire, self._strict)
        self.query("get")(self._get)
        self.event("acquired")(_given)
        self.event("refreshed")(_given)
        self.event("released")(_free)
        self.event("expired")(_free)

    def entity_for(self, command: CommandEnvelope) -> str | None:
        """A lock is an entity by its resource, so that resources do not wait for each other."""
        if command.entity_id is not None:
            return command.entity_id
        resource = command.payload.get("resource_id")
        return resource if isinstance(resource, str) and 1 <= len(resource) <= _NAME_MAX else None

    def deadline(self, state: Lock, now: float) -> Deadline | None:
        """A lease that is given ends in time: never later than its length from now, wherever the clock was set."""
        if not state.given:
            return None
        return Deadline(
            in_s=max(min(state.until - now, state.ttl_seconds), 0.0),
            name=f"{state.token}:{state.until!r}",
            action=EXPIRE,
            payload={"fencing_token": state.token, "expires_at": state.until},
        )

    # -- commands ----------------------------------------------------------------------------------------------

    def _acquire(self, lock: Lock, asked: _Acquire, ctx: Context) -> list[object]:
        self._check(asked, ctx, asked.ttl_seconds)
        before: list[object] = []
        if lock.given and ctx.now < lock.until:
            if lock.owner_id != asked.owner_id:
                return [_denied(lock, asked, "it is held")]
            # Its holder again: the same lease, longer and never shorter, under the same token.
            return [_lease("acquired", asked, max(lock.until, ctx.now + asked.ttl_seconds), lock.token)]
        if lock.given:
            before.append(_expired(asked.resource_id, lock))
        return [*before, _lease("acquired", asked, ctx.now + asked.ttl_seconds, lock.token + 1)]

    def _refresh(self, lock: Lock, asked: _Acquire, ctx: Context) -> list[object]:
        self._check(asked, ctx, asked.ttl_seconds)
        if not lock.given or lock.owner_id != asked.owner_id:
            return [_denied(lock, asked, "the lease is another's" if lock.given else "nobody holds it")]
        if ctx.now >= lock.until:
            return [_expired(asked.resource_id, lock)]
        return [_lease("refreshed", asked, max(lock.until, ctx.now + asked.ttl_seconds), lock.token)]

    def _release(self, lock: Lock, asked: _Release, ctx: Context) -> list[object]:
        self._check(asked, ctx)
        if not lock.given or lock.owner_id != asked.owner_id:
            return [_denied(lock, asked, "the lease is another's" if lock.given else "nobody holds it")]
        if ctx.now >= lock.until:
            return [_expired(asked.resource_id, lock)]
        payload: JsonObject = {
            "resource_id": asked.resource_id,
            "owner_id": asked.owner_id,
            "fencing_token": lock.token,
        }
        return [Event("released", payload)]

    def _expire(self, lock: Lock, asked: _Expire, ctx: Context) -> list[object]:
        """The engine's deadline has come. It may have been refreshed, released or given to another meanwhile."""
        if (lock.token, lock.until) != (asked.fencing_token, asked.expires_at) or not lock.given:
            return []
        return [_expired(ctx.entity_id or "", lock)]

    def _get(self, lock: Lock, payload: JsonObject, ctx: Context) -> Reply:
        if ctx.entity_id is None:
            raise Refused("resource_id must be a text of 1 to 256 characters", code="bad_payload", field="resource_id")
        if not lock.given or ctx.now >= lock.until:
            return Reply("not_found", {"resource_id": ctx.entity_id, "fencing_token": lock.token})
        return Reply(
            "found",
            {
                "resource_id": ctx.entity_id,
                "owner_id": lock.owner_id,
                "expires_at": lock.until,
                "fencing_token": lock.token,
            },
        )

    def _check(self, asked: _Acquire | _Release, ctx: Context, ttl_s: float | None = None) -> None:
        for field, value in (("resource_id", asked.resource_id), ("owner_id", asked.owner_id)):
            if not 1 <= len(value) <= _NAME_MAX:
                raise Refused(f"{field} must be 1 to {_NAME_MAX} characters", code="bad_payload", field=field)
        if ctx.entity_id != asked.resource_id:
            raise Refused(
                "entity_id is given and is not resource_id: leave it out", code="bad_entity_id", field="entity_id"
            )
        if ttl_s is not None and not _TTL_MIN_S <= ttl_s <= self._ttl_max_s:
            raise Refused(
                f"ttl_seconds is {ttl_s:g}; it must be between {_TTL_MIN_S:g} and {self._ttl_max_s:g}",
                code="bad_ttl",
                field="ttl_seconds",
            )


def _lease(name: str, asked: _Acquire, until: float, token: int) -> Event:
    return Event(
        name,
        {
            "resource_id": asked.resource_id,
            "owner_id": asked.owner_id,
            "expires_at": until,
            "fencing_token": token,
            "ttl_seconds": asked.ttl_seconds,
        },
    )


def _expired(resource: str, lock: Lock) -> Event:
    return Event("expired", {"resource_id": resource, "owner_id": lock.owner_id, "fencing_token": lock.token})


def _denied(lock: Lock, asked: _Acquire | _Release, reason: str) -> Reply:
    return Reply(
        "denied",
        {
            "resource_id": asked.resource_id,
            "requested_by": asked.owner_id,
            "current_owner": lock.owner_id or None,
            "expires_at": lock.until or None,
            "reason": reason,
        },
    )


def _given(lock: Lock, told: JsonObject) -> Lock:
    return Lock(told["owner_id"], told["expires_at"], told["ttl_seconds"], told["fencing_token"])


def _free(lock: Lock, told: JsonObject) -> Lock:
    return Lock(token=lock.token)
