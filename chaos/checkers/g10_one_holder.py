"""G10: at most one unexpired lease per resource, and fencing tokens that only rise.

Judged by what lock managers committed, in the order in which they did, which is that of the stream:

    acquired   {resource_id, owner_id, expires_at, fencing_token}
    refreshed  {resource_id, owner_id, expires_at}            by the holder
    released   {resource_id, owner_id}                        by the holder
    expired    {resource_id}                                  not before its time

And by what agents decided under a lease: nothing under an older token than one that they have decided under before.

The time of an acquisition is that at which its lease runs out less what was asked for (`ttl_seconds`), since `ts` is
what the client says; where the command is not known, `ts` must do.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Final

import attrs

from chaos.checkers.base import Checker, Finding
from chaos.checkers.clues import Clues
from chaos.evidence import Evidence
from chaos.rows import OutputRow
from meshforge_trio.subjects import Scope

_NAMES: Final = frozenset({"acquired", "refreshed", "released", "expired"})
_ACQUIRED: Final = frozenset({"resource_id", "owner_id", "expires_at", "fencing_token"})


@attrs.define
class _Lease:
    """What is held, by whom, since when and until when. `over` says that it was released or declared expired."""

    owner: str
    since: float
    until: float
    token: int
    over: bool = False


def look(evidence: Evidence) -> Iterator[Finding | int]:
    clues = Clues(evidence)
    resources: dict[tuple[Scope, str], list[OutputRow]] = defaultdict(list)
    for scope, rows in clues.by_scope.items():
        if not _manages_locks(clues, scope, rows):
            continue
        for row in rows:
            resource = clues.payload(row).get("resource_id")
            if row.name in _NAMES and isinstance(resource, str):
                resources[scope, resource].append(row)
    for (scope, resource), rows in resources.items():
        yield from _replay(clues, scope, resource, rows)
    for scope, rows in clues.by_scope.items():
        yield from _under_leases(clues, scope, rows)


def _manages_locks(clues: Clues, scope: Scope, rows: Sequence[OutputRow]) -> bool:
    """Whether these are the events of a lock manager, whatever its name."""
    return scope.agent == "sys_lock_manager" or any(
        row.name == "acquired" and clues.payload(row).keys() >= _ACQUIRED for row in rows
    )


def _replay(clues: Clues, scope: Scope, resource: str, rows: Sequence[OutputRow]) -> Iterator[Finding | int]:
    lease: _Lease | None = None
    for row in rows:
        yield 1
        try:
            lease, wrong = _after(lease, clues, row)
        except (KeyError, TypeError) as error:
            wrong = [f"{row.name} cannot be read: {type(error).__name__}: {error}"]
        for what in wrong:
            yield Finding(f"{scope} resource {resource!r}, output {row.n}: {what}", [row.key], str(scope))


def _after(lease: _Lease | None, clues: Clues, row: OutputRow) -> tuple[_Lease | None, Sequence[str]]:
    """The lease as the event leaves it, and what is wrong with the event."""
    told = clues.payload(row)
    if row.name == "acquired":
        until = _number(told["expires_at"])
        new = _Lease(_text(told["owner_id"]), _acquired_at(clues, row, until), until, _integer(told["fencing_token"]))
        return new, list(_wrong_to_acquire(lease, new))
    if lease is None or lease.over:
        return lease, [f"{row.name}, and nobody holds it"]
    if row.name == "expired":
        at = clues.told(row).get("ts")
        early = isinstance(at, int | float) and lease.since <= at < lease.until
        wrong = [f"expired at {at}, and {lease.owner!r} holds it until {lease.until}"] if early else []
        return attrs.evolve(lease, over=True), wrong
    owner = _text(told["owner_id"])
    if owner != lease.owner:
        return lease, [f"{row.name} by {owner!r}, and {lease.owner!r} holds it"]
    if row.name == "released":
        return attrs.evolve(lease, over=True), []
    token = _integer(told.get("fencing_token", lease.token))
    wrong = (
        [] if token == lease.token else [f"refreshed with fencing token {token}, that of the lease is {lease.token}"]
    )
    return attrs.evolve(lease, until=_number(told["expires_at"])), wrong


def _wrong_to_acquire(lease: _Lease | None, new: _Lease) -> Iterator[str]:
    if lease is None:
        return
    held = not lease.over and lease.until > new.since
    if held and lease.owner != new.owner:
        yield f"acquired by {new.owner!r} at {new.since}, and {lease.owner!r} holds it until {lease.until}"
    # Its holder may acquire it again, and keep the token.
    if new.token < lease.token or (new.token == lease.token and not (held and lease.owner == new.owner)):
        yield f"fencing token {new.token} follows {lease.token}"


def _under_leases(clues: Clues, scope: Scope, rows: Sequence[OutputRow]) -> Iterator[Finding | int]:
    """What an agent decided for commands that brought a token."""
    newest: dict[str, int] = {}
    for row in rows:
        record = clues.records.get((scope, row.key))
        tokens = [(c.fencing_token, c.resource_id) for c in clues.commands_of(row) if c.fencing_token is not None]
        if record is None or record.outcome != "decided" or not tokens:
            continue
        yield 1
        # Sent again under the same key it may bring another one, and is the same command.
        token, resource = max(tokens)
        assert resource is not None
        before = newest.get(resource, 0)
        if token < before:
            what = f"decided under fencing token {token} of {resource!r}, and {before} had been seen"
            yield Finding(f"{scope}, output {row.n}: {what}", [row.key], str(scope))
        newest[resource] = max(token, before)


def _acquired_at(clues: Clues, row: OutputRow, until: float) -> float:
    for command in clues.commands_of(row):
        ttl = command.payload.get("ttl_seconds")
        if isinstance(ttl, int | float):
            return until - ttl
    return _number(clues.told(row)["ts"])


def _number(value: object) -> float:
    if type(value) is int or type(value) is float:
        return value
    raise TypeError(f"{value!r:.100} is no time")


def _integer(value: object) -> int:
    if type(value) is int:
        return value
    raise TypeError(f"{value!r:.100} is no fencing token")


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    raise TypeError(f"{value!r:.100} is no owner")


CHECKER = Checker(
    "G10",
    "One holder: a resource has at most one unexpired lease; fencing tokens only rise.",
    look,
)
