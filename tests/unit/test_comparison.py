"""Lost or given up: where a stream held what it lacks, and what its deletions say about that."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import cast

import attrs
import pytest

from meshforge_trio import comparison
from meshforge_trio.broker.port import Broker, StoredMessage, StreamFacts
from meshforge_trio.comparison import Gaps, Region, regions


@attrs.frozen
class Held:
    """A stream that holds a message at each of these sequences."""

    seqs: Collection[int]

    async def read_back(self, stream: str, subject: str, from_seq: int, limit: int) -> Sequence[StoredMessage]:
        found = sorted(seq for seq in self.seqs if seq >= from_seq)[:limit]
        return [StoredMessage(seq, "evt.x", f"id{seq}", b"") for seq in found]


def outputs(*numbers: int) -> list[tuple[int, str]]:
    return [(n, f"m{n}") for n in numbers]


def held(**places: int) -> dict[str, int]:
    return places


def gaps(
    seqs: Collection[int],
    *,
    deleted: Sequence[int] | None = (),
    first: int = 1,
    last: int = 100,
    lost_bytes: int = 0,
    restarted: bool = False,
) -> Gaps:
    facts = StreamFacts(
        "EVENTS",
        first,
        last,
        len(seqs),
        120.0,
        -1,
        last_seq_found=last,
        num_deleted=len(deleted or ()),
        deleted=deleted,
        lost_bytes=lost_bytes,
    )
    return Gaps(cast(Broker, Held(seqs)), facts, restarted=restarted)


def test_between_its_neighbours() -> None:
    assert regions(outputs(1, 2, 3, 4), held(m1=11, m3=15, m4=16), 10, 17) == [Region(11, 15, [2])]


def test_at_both_ends_between_the_marks() -> None:
    assert regions(outputs(1, 2, 3), held(m2=15), 10, 20) == [Region(10, 15, [1]), Region(15, 20, [3])]


def test_side_by_side_they_share_a_region() -> None:
    assert regions(outputs(1, 2, 3, 4), held(m1=11, m4=20), 10, 21) == [Region(11, 20, [2, 3])]


def test_what_was_published_again_further_up_bounds_nobody_from_below() -> None:
    """Output 2 was lost once and lies at 30 now; 3 was deleted since, at 13."""
    assert regions(outputs(1, 2, 3, 4), held(m1=11, m2=30, m4=14), 10, 31) == [Region(11, 14, [3])]


def test_behind_what_was_just_published_again_there_is_no_room() -> None:
    """A recovery that was cut off: 2 is at the end of the stream, 3 has not come yet."""
    assert regions(outputs(1, 2, 3), held(m1=11, m2=30), 10, 31) == [Region(30, 31, [3])]


def test_nothing_is_missing() -> None:
    assert regions(outputs(1, 2), held(m1=1, m2=2), 0, 3) == []


async def test_deleted_is_given_up() -> None:
    assert await gaps([1, 3, 4], deleted=[2]).given_up(Region(1, 3, [7]))


async def test_unreadable_is_lost() -> None:
    """The server counts sequence 2 and never hands it out."""
    assert not await gaps([1, 3]).given_up(Region(1, 3, [7]))


async def test_fewer_deletions_than_outputs_are_a_loss() -> None:
    assert not await gaps([1, 4], deleted=[2]).given_up(Region(1, 4, [7, 8]))


async def test_deletions_beside_something_unreadable_prove_nothing() -> None:
    """Of 2 and 3 one was deleted and one is unreadable: which was ours cannot be told."""
    assert not await gaps([1, 4], deleted=[2]).given_up(Region(1, 4, [7]))
    assert await gaps([1, 3, 4], deleted=[2]).given_up(Region(1, 4, [7]))


@pytest.mark.parametrize(("first", "given_up"), [(5, True), (10, True), (3, False)])
async def test_expired_is_given_up(first: int, given_up: bool) -> None:
    """Two outputs were between 1 and 10: there must have been room for both below the first sequence."""
    assert await gaps(range(first, 20), first=first).given_up(Region(1, 10, [7, 8])) is given_up


async def test_no_room_is_a_loss() -> None:
    assert not await gaps([], deleted=[30]).given_up(Region(30, 31, [7]))
    assert not await gaps([], deleted=None).given_up(Region(30, 31, [7]))


async def test_a_server_that_found_damage_is_not_believed() -> None:
    assert not await gaps([1, 3], deleted=[2], lost_bytes=60).given_up(Region(1, 3, [7]))


@pytest.mark.parametrize("restarted", [True, False])
async def test_deletions_up_to_the_end_of_a_restarted_server_may_be_a_torn_tail(restarted: bool) -> None:
    end = gaps([1, 2, 4, 5], deleted=[3, 6, 7], last=7, restarted=restarted)
    assert await end.given_up(Region(5, 8, [7, 8])) is not restarted
    assert await end.given_up(Region(2, 4, [6]))
    assert end.deleted(7) is not restarted
    assert end.deleted(3)


async def test_too_many_deletions_to_be_listed_are_believed() -> None:
    assert await gaps([1, 9], deleted=None).given_up(Region(1, 9, [7]))


async def test_a_region_too_large_to_be_read_is_judged_by_its_deletions(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not await gaps([1, 50], deleted=[2]).given_up(Region(1, 50, [7]))
    monkeypatch.setattr(comparison, "_READ_MAX", 10)
    assert await gaps([1, 50], deleted=[2]).given_up(Region(1, 50, [7]))
