"""The chain of an entity's events: its head has the number of the newest, every event that of the one before.

An index over entity and version would do the same, but writes to a page at random for every event, and more of them
miss the cache the larger the table grows. A link costs nothing to write, and readers want a chain's newest end.
Every step of a walk checks entity and version of the row it comes to, so a chain that does not hold is damage. What
a state is made from is hashed again as it is read: SQLite notices a damaged page, and not a changed bit in a body.
"""
# ruff: noqa: S608  (SQL is put together from constants; every value is bound)

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Sequence
from typing import Any, Final

import apsw

from meshforge_trio.errors import Stale
from meshforge_trio.store.port import Commit, Output
from meshforge_trio.store.schema import SCOPE_SHIFT
from meshforge_trio.store.statements import select_in

__all__ = ["Walk", "link", "tails"]

# Chain and body of an event.
_Link = tuple[bytes, bytes]

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

# The same from many heads at once, with the bodies, down to the event of each one's snapshot: that one is read for
# its chain alone, which the next begins with.
_TAILS: Final = f"""
WITH RECURSIVE walk(base, saved, entity_id, version, prev, chain, body) AS (
    SELECT h.scope << {SCOPE_SHIFT}, coalesce(s.version, 0), h.entity_id, h.version, o.prev, o.chain, o.body
    FROM heads h LEFT JOIN snapshots s ON s.scope = h.scope AND s.entity_id = h.entity_id
    CROSS JOIN outputs o ON o.id = (h.scope << {SCOPE_SHIFT}) + h.last_n
    AND o.entity_id = h.entity_id AND o.version = h.version AND o.chain = h.chain
    WHERE h.scope = ? AND h.entity_id IN"""
_TAILS_STEP: Final = """
    UNION ALL
    SELECT base, saved, o.entity_id, o.version, o.prev, o.chain, CASE WHEN o.version > saved THEN o.body END
    FROM walk JOIN outputs o ON o.id = base + walk.prev
    WHERE walk.version > max(saved, 1) AND o.entity_id = walk.entity_id AND o.version = walk.version - 1
)
SELECT entity_id, chain, body FROM walk
"""

_HEAD_CHAIN: Final = "SELECT chain FROM heads WHERE scope = ? AND entity_id = ? AND version = ?"
_CHAIN_BEFORE: Final = """
SELECT p.chain FROM outputs o JOIN outputs p ON p.id = :base + o.prev
WHERE o.id = :base + :n AND p.entity_id = o.entity_id AND p.version = o.version - 1
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
    """The bodies of each entity's events after its snapshot, oldest first; `lengths` is how many there must be.

    Raises:
        apsw.CorruptError: events are missing, or do not hash to the chain that their head has.
    """
    found: dict[str, list[_Link]] = {entity: [] for entity in lengths}
    before = dict.fromkeys(lengths, b"")
    for entity, chain, body in select_in(connection, _TAILS, number, list(lengths), _TAILS_STEP):
        if body is None:
            before[entity] = chain
        else:
            found[entity].append((chain, body))
    for entity, events in found.items():
        if len(events) != lengths[entity]:
            raise _broken(number, entity, len(events), lengths[entity])
        events.reverse()
        whole = _whole(before[entity], events)
        if whole != len(events):
            sql = "SELECT version FROM heads WHERE scope = ? AND entity_id = ?"
            ((newest,),) = connection.execute(sql, (number, entity))
            raise _altered(number, entity, newest - len(events) + whole + 1)
    return {entity: [body for _, body in events] for entity, events in found.items()}


def _whole(before: bytes, events: Iterable[_Link]) -> int:
    """How many of the events, oldest first, continue the chain `before`."""
    sha256 = hashlib.sha256
    count = 0
    for chain, body in events:
        if sha256(before + body).digest() != chain:
            break
        before = chain
        count += 1
    return count


class Walk:
    """The numbers of one entity's events.

    Those of the entity last asked for are remembered: else every page of a long history would be walked to from its
    head. They hold for as long as the head still leads to the newest of them.
    """

    def __init__(self) -> None:
        self._of = (0, "")
        self._after = 0
        self._numbers = array("q")
        # The event that was hashed last: of whom, its version and its chain.
        self._hashed = ((0, ""), 0, b"")

    def numbers(
        self, connection: apsw.Connection, number: int, entity_id: str, after: int, limit: int
    ) -> Sequence[int]:
        """Numbers of the events with a version above `after`, oldest first, at most `limit`."""
        if self._of != (number, entity_id) or after < self._after or not self._extended(connection):
            self._of, self._after, self._numbers = (number, entity_id), after, array("q")
            self._numbers.extend(self._down_to(connection, after))
        start = after - self._after
        return self._numbers[start : start + limit]

    def check(self, connection: apsw.Connection, page: Sequence[Output]) -> None:
        """Check that events, as they were read by the numbers last asked for, hash to their chain.

        Raises:
            apsw.CorruptError: one does not, or the newest is not where the head's chain ends.
        """
        if not page:
            return
        number, entity_id = self._of
        first, last = page[0].version or 0, page[-1].version or 0
        before = b""
        if self._hashed[:2] == (self._of, first - 1):
            before = self._hashed[2]
        elif first > 1:
            place = {"base": number << SCOPE_SHIFT, "n": page[0].n}
            row = connection.execute(_CHAIN_BEFORE, place).fetchone()
            if row is None:
                raise _broken(number, entity_id, last - first + 1, last)
            before = row[0]
        whole = _whole(before, ((output.chain or b"", output.body) for output in page))
        if whole != len(page):
            raise _altered(number, entity_id, first + whole)
        chain = page[-1].chain or b""
        for (recorded,) in connection.execute(_HEAD_CHAIN, (number, entity_id, last)):
            if recorded != chain:
                raise apsw.CorruptError(
                    f"the chain of entity {entity_id!r} of scope {number} ends at version {last} otherwise than its "
                    "head says"
                )
        self._hashed = (self._of, last, chain)

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


def _altered(number: int, entity_id: str, version: int) -> apsw.CorruptError:
    return apsw.CorruptError(
        f"the event of version {version} of entity {entity_id!r} of scope {number} is not what was written: it does "
        "not hash to its chain"
    )


def _broken(number: int, entity_id: str, held: int, asked: int) -> apsw.CorruptError:
    return apsw.CorruptError(
        f"of the newest {asked} events of entity {entity_id!r} of scope {number} only {held} hang together"
    )
