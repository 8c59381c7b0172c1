"""The chain of an entity's events: its head has the number of the newest, every event that of the one before.

An index over entity and version would do the same, but writes to a page at random for every event, and more of them
miss the cache the larger the table grows. A link costs nothing to write, and readers want a chain's newest end.
Every step of a walk checks entity and version of the row it comes to, so a chain that does not hold is damage.
"""
# ruff: noqa: S608  (SQL is put together from constants; every value is bound)

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any, Final

import apsw

from meshforge_trio.errors import Stale
from meshforge_trio.store.port import Commit
from meshforge_trio.store.schema import SCOPE_SHIFT
from meshforge_trio.store.statements import select_in

__all__ = ["Walk", "link", "tails"]

_STANDING: Final = "SELECT entity_id, version, last_n FROM heads WHERE scope = ? AND entity_id IN"

# Newest first, from the head down to the first event above a version.
_WALK: Final = """
WITH RECURSIVE walk(n, version) AS (
    SELECT last_n, version FROM heads WHERE scope = :scope AND entity_id = :entity AND version > :after
    UNION ALL
    SELECT o.prev, o.version - 1 FROM walk JOIN outputs o ON o.id = :base + walk.n
    WHERE walk.version > :after + 1 AND o.entity_id = :entity AND o.version = walk.version
)
SELECT n, version FROM walk
"""

# The same from many heads at once, down to each one's snapshot, with the bodies.
_TAILS: Final = f"""
WITH RECURSIVE walk(base, saved, entity_id, version, prev, body) AS (
    SELECT h.scope << {SCOPE_SHIFT}, coalesce(s.version, 0), h.entity_id, h.version, o.prev, o.body FROM heads h
    LEFT JOIN snapshots s ON s.scope = h.scope AND s.entity_id = h.entity_id
    CROSS JOIN outputs o ON o.id = (h.scope << {SCOPE_SHIFT}) + h.last_n
    AND o.entity_id = h.entity_id AND o.version = h.version
    WHERE h.scope = ? AND h.entity_id IN"""
_TAILS_STEP: Final = """
    UNION ALL
    SELECT base, saved, o.entity_id, o.version, o.prev, o.body FROM walk
    JOIN outputs o ON o.id = base + walk.prev
    WHERE walk.version > saved + 1 AND o.entity_id = walk.entity_id AND o.version = walk.version - 1
)
SELECT entity_id, body FROM walk
"""


def link(connection: apsw.Connection, number: int, commit: Commit) -> tuple[list[int | None], dict[str, int]]:
    """`prev` of each output of a commit, and each entity's newest number after it.

    Raises:
        Stale: an entity's events do not continue its chain one by one, or its head is not the last of them.
    """
    touched = {o.entity_id: (0, 0) for o in commit.outputs if o.version is not None and o.entity_id is not None}
    heads = {head.entity_id: head.version for head in commit.heads}
    if len(commit.heads) != len(touched) or heads.keys() != touched.keys():
        raise Stale("heads and events of the commit differ")
    for entity, version, last_n in select_in(connection, _STANDING, number, list(touched)):
        touched[entity] = (version, last_n)
    prevs: list[int | None] = []
    for output in commit.outputs:
        if output.version is None or output.entity_id is None:
            prevs.append(None)
            continue
        version, last_n = touched[output.entity_id]
        if output.version != version + 1:
            raise Stale(f"version {output.version} of {output.entity_id!r} is not the next: {version + 1}")
        prevs.append(last_n)
        touched[output.entity_id] = (output.version, output.n)
    if any(touched[entity][0] != version for entity, version in heads.items()):
        raise Stale("heads and events of the commit differ")
    return prevs, {entity: last_n for entity, (_, last_n) in touched.items()}


def tails(connection: apsw.Connection, number: int, lengths: dict[str, int]) -> dict[str, list[bytes]]:
    """The bodies of each entity's events after its snapshot, oldest first; `lengths` is how many there must be."""
    found: dict[str, list[bytes]] = {entity: [] for entity in lengths}
    for entity, body in select_in(connection, _TAILS, number, list(lengths), _TAILS_STEP):
        found[entity].append(body)
    for entity, bodies in found.items():
        if len(bodies) != lengths[entity]:
            raise _broken(number, entity, len(bodies), lengths[entity])
        bodies.reverse()
    return found


class Walk:
    """The numbers of one entity's events.

    Those of the entity last asked for are remembered: else every page of a long history would be walked to from its
    head. They hold for as long as the head still leads to the newest of them.
    """

    def __init__(self) -> None:
        self._of = (0, "")
        self._after = 0
        self._numbers = array("q")

    def numbers(
        self, connection: apsw.Connection, number: int, entity_id: str, after: int, limit: int
    ) -> Sequence[int]:
        """Numbers of the events with a version above `after`, oldest first, at most `limit`."""
        if self._of != (number, entity_id) or after < self._after or not self._extended(connection):
            self._of, self._after, self._numbers = (number, entity_id), after, array("q")
            self._numbers.extend(self._down_to(connection, after))
        start = after - self._after
        return self._numbers[start : start + limit]

    def _extended(self, connection: apsw.Connection) -> bool:
        """Add what is new above what is remembered; false if that is not below the head any more."""
        if not self._numbers:
            return False
        above = self._down_to(connection, self._after + len(self._numbers) - 1)
        if not above or above[0] != self._numbers[-1]:
            return False
        self._numbers.extend(above[1:])
        return True

    def _down_to(self, connection: apsw.Connection, after: int) -> list[int]:
        number, entity_id = self._of
        bindings = {"scope": number, "entity": entity_id, "after": after, "base": number << SCOPE_SHIFT}
        found: list[Any] = connection.execute(_WALK, bindings).fetchall()
        if found and len(found) != found[0][1] - after:
            raise _broken(number, entity_id, len(found) - 1, found[0][1] - after)
        return [n for n, _ in reversed(found)]


def _broken(number: int, entity_id: str, held: int, asked: int) -> apsw.CorruptError:
    return apsw.CorruptError(
        f"of the newest {asked} events of entity {entity_id!r} of scope {number} only {held} hang together"
    )
