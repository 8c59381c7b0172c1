"""The protocol. A command takes effect exactly once because of what stands here, in this order.

    received → before_store → in_store → after_store
             → before_publish → in_publish → after_publish → before_ack → after_ack

G1  Not forgotten: the ACK comes last, so a command is in the stream until it is decided.
G2  Effect once: its key is written in the transaction that writes its events; a second one cannot commit.
G3  No phantom: nothing is published before COMMIT returned.
G4  Delivered: the ACK waits for every PubAck; what a crash cuts off, the next session's recovery publishes.
G5  Atomic: one transaction.

A probe is called at each point. The rules R1 to R10 are told in docs/architecture.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import trio

from meshforge_trio.errors import SessionLost, Stale
from meshforge_trio.intake import Incoming
from meshforge_trio.points import (
    AFTER_ACK,
    AFTER_DEAD_LETTER,
    AFTER_HOLD,
    AFTER_PUBLISH,
    AFTER_STORE,
    BEFORE_ACK,
    BEFORE_ATTEMPT,
    BEFORE_DEAD_LETTER,
    BEFORE_HOLD,
    BEFORE_PUBLISH,
    BEFORE_STORE,
    IN_ATTEMPT,
    IN_PUBLISH,
    RECEIVED,
)

if TYPE_CHECKING:
    from meshforge_trio.plan import Plan
    from meshforge_trio.session import Session

__all__ = ["attempt", "turn"]

_DECIDE_TRIES: Final = 3


async def turn(
    session: Session,
    batch: Sequence[Incoming],
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Decide a batch, commit it, publish its outputs, ACK its commands.

    Reports `started` once it is committed and nothing before it is still being published: the next turn may then
    decide while this one publishes, so two turns overlap at most and outputs leave in the order of commits.

    Raises:
        SessionLost: the broker failed, or the commit is too long ago to publish without reading back.
        Fenced: another engine is active. Nothing was written.
        StoreFull, StoreBroken: from the store. Nothing was written.
    """
    at = session.probe
    at(RECEIVED)

    async with session.seat.turn():
        plan = await _decide_and_store(session, batch)

    async with session.publishing_after_commit(task_status):
        at(BEFORE_PUBLISH)
        for burst in session.bursts(plan.commit.outputs):
            await session.publish(burst)
            at(IN_PUBLISH)
        session.published(plan)
        at(AFTER_PUBLISH)

        session.broker.echo([*plan.echoes, *plan.answers])
        at(BEFORE_ACK)
        session.settle(plan)
        at(AFTER_ACK)


async def _decide_and_store(session: Session, batch: Sequence[Incoming]) -> Plan:
    at = session.probe
    for _ in range(_DECIDE_TRIES):
        plan = await session.decide(batch)
        failed, dead = bool(plan.commit.attempts), bool(plan.commit.dead)
        if failed:
            at(BEFORE_HOLD)
        if dead:
            at(BEFORE_DEAD_LETTER)
        at(BEFORE_STORE)
        try:
            await session.commit(plan)  # in_store: inside the transaction, before COMMIT
        except Stale:
            session.forget_entities()
            continue
        at(AFTER_STORE)
        if failed:
            at(AFTER_HOLD)
        if dead:
            at(AFTER_DEAD_LETTER)
        return plan
    raise SessionLost(f"{session.scope}: the store changed under {_DECIDE_TRIES} decisions of one turn")


async def attempt(session: Session, incoming: Incoming) -> None:
    """Run one command alone, because an earlier run of it may have died.

    Its attempt is committed before the handler is called, so that a command which kills its process each time is
    counted each time, and only that one. The caller sees to it that no other turn overlaps.
    """
    at = session.probe
    at(BEFORE_ATTEMPT)
    before = await session.begin_attempt(incoming)
    at(IN_ATTEMPT)
    try:
        await turn(session, [incoming])
    finally:
        # Ended by cancellation or a lost session, not by the handler: that is no attempt.
        await session.take_back_attempt(incoming, before)
