"""What a session remembers, and from when on."""

from __future__ import annotations

from typing import Any, cast

from doubles import Desk, command

from meshforge_trio.clock import SystemClock
from meshforge_trio.config import EngineSettings
from meshforge_trio.deadlines import Deadlines
from meshforge_trio.points import no_probe
from meshforge_trio.session import Session
from meshforge_trio.store.port import Commit, Lease, Mark
from meshforge_trio.turnstile import Turnstile


class _Rows:
    """A store that takes every commit."""

    scope = "t/w/counter"

    async def commit(self, commit: Commit, probe: object) -> None:
        """Written."""


def session_at(desk: Desk) -> Session:
    unused = cast(Any, None)
    return Session(
        adapter=desk.adapter,
        store=unused,
        rows=cast(Any, _Rows()),
        broker=unused,
        settings=EngineSettings(),
        probe=no_probe,
        clock=SystemClock(),
        lease=Lease(1, True, "", 1),
        publish_within_s=60.0,
        waiting=desk.waiting,
        drafter=unused,
        cache=desk.cache,
        next_n=1,
        mark=Mark(0, 0, "", 0, "", 0.0),
        deadlines=Deadlines(desk.adapter, SystemClock()),
        seat=Turnstile().seat("store", "t"),
    )


async def test_what_is_sent_away_is_known_to_the_next_turn_before_it_left() -> None:
    """G13: the next turn decides while this one publishes, so what comes later of the entity must find it waiting."""
    desk = Desk(held_max=0)
    session = session_at(desk)
    batch = [desk.read(command(1, "explode")), desk.read(command(2))]
    plan, session._entities = await desk.decide(*batch)
    assert [verdict.outcome for verdict in plan.verdicts] == ["dead", "held"]
    await session.commit(plan)
    # Neither published nor settled yet.
    assert session.waiting.delay_s(desk.read(command(3)), desk.now) is not None
