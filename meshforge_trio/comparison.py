"""What a stream lacks, and whether that was lost or given up: by expiry, a purge, a deletion.

A server tells deletions and says little of damage (tried on 2.15.1). A block cut short shortens the stream, or looks
like deletions at its end when an index survived; a message that became unreadable is skipped and still counted. So a
missing output is *given up* when it can be seen to be, and *lost* otherwise:

* Its sequence lies between those of its neighbours, in order of the outputs, that the stream holds.
* Where as many sequences as outputs are missing there were deleted or expired, and every other one there holds a
  message, they were given up.
* Deletions count for nothing while the server says that it found damage when it started, nor those that reach up to the
  end of a stream whose server has restarted since the scope was last served.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Container, Mapping, Sequence
from typing import Final

import attrs

from meshforge_trio.broker.port import Broker, StoredMessage, StreamFacts

__all__ = ["Gaps", "Region", "read_all", "regions"]

_PAGE: Final = 256
#: So many messages are read around what is missing; beyond it deletions are believed as they are told.
_READ_MAX: Final = 16_384


@attrs.frozen
class Region:
    """Outputs that a stream lacks, by number, and the sequences between which it held them."""

    above: int
    below: int
    missing: Sequence[int]


def regions(outputs: Sequence[tuple[int, str]], held: Mapping[str, int], above: int, below: int) -> Sequence[Region]:
    """Where the stream held those of `outputs` that it does not hold.

    `outputs` are (number, Msg-Id), in order, all of them once stored between the sequences `above` and `below`; `held`
    is the sequence of each Msg-Id. One that was stored a second time, further up, is nobody's neighbour from below.
    """
    bounds: list[int] = []
    least = below
    for _, msg_id in reversed(outputs):
        bounds.append(least)
        least = min(least, held.get(msg_id, least))
    found: dict[tuple[int, int], list[int]] = {}
    before = [above]
    for (n, msg_id), bound in zip(outputs, reversed(bounds), strict=True):
        seq = held.get(msg_id)
        if seq is not None:
            insort(before, seq)
            continue
        floor = before[max(bisect_left(before, bound) - 1, 0)]
        found.setdefault((floor, bound), []).append(n)
    return [Region(low, high, missing) for (low, high), missing in found.items()]


class Gaps:
    """Which sequences of a stream were given up."""

    def __init__(self, broker: Broker, facts: StreamFacts, *, restarted: bool) -> None:
        """`facts` of `Broker.stream_facts`; `restarted`: the server has, since the scope was last served."""
        self._broker = broker
        self._facts = facts
        self._left = _READ_MAX
        deleted = set(facts.deleted or ())
        if facts.lost_bytes:
            deleted.clear()
        if restarted:
            seq = facts.last_seq_found
            while seq in deleted:
                deleted.remove(seq)
                seq -= 1
        self._deleted = sorted(deleted)
        # Too many to be listed: then whatever holds no message counts as deleted.
        self._unlisted = facts.deleted is None and not facts.lost_bytes

    def deleted(self, seq: int) -> bool:
        """Whether the message at `seq` was deleted, and did not expire."""
        at = bisect_left(self._deleted, seq)
        return at < len(self._deleted) and self._deleted[at] == seq

    async def given_up(self, region: Region) -> bool:
        """Whether the outputs missing in a region were deleted or have expired.

        Raises:
            SessionLost: the broker failed.
        """
        room = region.below - region.above - 1
        if room < len(region.missing):
            return False
        first = max(region.above + 1, min(region.below, self._facts.first_seq))
        expired = first - region.above - 1
        inside = bisect_left(self._deleted, region.below) - bisect_left(self._deleted, first)
        if expired + inside < len(region.missing):
            return self._unlisted
        others = room - expired - inside
        if self._unlisted or others > self._left:
            return True
        self._left -= others
        return await self._count(first, region.below) == others

    async def _count(self, first: int, below: int) -> int:
        """How many sequences from `first` on and under `below` hold a message."""
        count = 0
        while page := await self._broker.read_back(self._facts.name, ">", first, min(_PAGE, below - first)):
            count += sum(message.seq < below for message in page)
            first = page[-1].seq + 1
            if first >= below:
                break
        return count


async def read_all(
    broker: Broker, stream: str, subject: str, from_seq: int, known: Container[str] = ()
) -> Sequence[StoredMessage]:
    """Every message of the filter from a sequence on, in order; those whose Msg-Ids are `known` without their bodies.

    Raises:
        SessionLost: the broker failed.
    """
    found: list[StoredMessage] = []
    while page := await broker.read_back(stream, subject, from_seq, _PAGE):
        found.extend(attrs.evolve(each, body=b"") if each.msg_id in known else each for each in page)
        from_seq = page[-1].seq + 1
    return found
