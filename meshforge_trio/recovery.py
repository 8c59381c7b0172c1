"""What every session starts with: make the streams hold what the store has committed (rules R2 and R3).

A mark says: everything through output N is published, the last of it has id I at sequence S. The newest mark whose
sequence still holds its id tells how far the stream can be trusted; from there both are compared, and what the
stream lacks is published in order. Below a stream's first sequence is expired, not lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import structlog

from meshforge_trio.broker.port import Broker, PubAck, StoredMessage, StreamFacts
from meshforge_trio.clock import Clock
from meshforge_trio.envelope import decode_event
from meshforge_trio.errors import Misconfigured, Poison
from meshforge_trio.points import AFTER_RECOVERY, BEFORE_RECOVERY, IN_RECOVERY
from meshforge_trio.session import Session, moved
from meshforge_trio.store.port import Mark, Output, ScopeStore
from meshforge_trio.subjects import EVENTS, FAILED, Scope, event_filter, violation_subject

__all__ = ["newest_valid_mark", "recover"]

_PAGE: Final = 256


async def newest_valid_mark(
    broker: Broker, rows: ScopeStore, events: StreamFacts, failed: StreamFacts, clock: Clock, next_n: int
) -> Mark:
    """The newest mark that both streams confirm.

    A scope without marks gets its first one here: where the streams stand before it ever published.

    Raises:
        Misconfigured: outputs were published and no mark is confirmed: a stream was deleted and made anew, or
            lost more than the marks reach back.
    """
    marks = await rows.marks()
    if not marks:
        if next_n > 1:
            raise Misconfigured(
                f"{rows.scope}: the store has outputs and no mark; it was not written by this version. "
                "Restore it from a backup"
            )
        return await _first_mark(broker, rows.scope, events, failed, clock)
    for mark in marks:
        if mark.event_seq == 0 and mark.n < marks[0].n:
            # It was written over an empty stream, so a stream made anew would confirm it as well.
            continue
        if await _holds(broker, events, mark.event_seq, mark.event_id) and await _holds(
            broker, failed, mark.failed_seq, mark.failed_id
        ):
            return mark
    if marks[0].n == 0:
        # Nothing was ever confirmed published, so comparing from the beginning repeats nothing.
        return Mark(0, 0, "", 0, "", clock.now())
    raise Misconfigured(
        f"{rows.scope}: {len(marks)} marks say what was published (the newest through output {marks[0].n}, "
        f"sequence {marks[0].event_seq} of {EVENTS}), and the streams confirm none: {EVENTS} was deleted and made "
        f"anew, restored from an older copy than the marks reach back, or belongs to another store. Nothing was "
        f"published. Restore the stream, or start with a store that fits it"
    )


async def _first_mark(broker: Broker, scope: Scope, events: StreamFacts, failed: StreamFacts, clock: Clock) -> Mark:
    """Where the streams stand before this scope ever published; its own events there are another store's."""
    own = await broker.read_back(EVENTS, event_filter(scope), max(events.first_seq, 1), 1)
    if own:
        raise Misconfigured(
            f"{scope}: the store is empty, and {EVENTS} holds events of this scope (the first at sequence "
            f"{own[0].seq}): its keys would be forgotten and its versions start again. Name the store that belongs to "
            "these streams (`--store`), restore it from a backup, or start with a new workspace"
        )
    event_id = await _id_at(broker, EVENTS, events.last_seq)
    failed_id = await _id_at(broker, FAILED, failed.last_seq)
    return Mark(0, events.last_seq, event_id or "", failed.last_seq, failed_id or "", clock.now())


async def _holds(broker: Broker, stream: StreamFacts, seq: int, msg_id: str) -> bool:
    if seq == 0:
        return True
    if seq > stream.last_seq:
        return False
    return seq < stream.first_seq or await _id_at(broker, stream.name, seq) == msg_id


async def _id_at(broker: Broker, stream: str, seq: int) -> str | None:
    if seq == 0:
        return None
    found = await broker.read_back(stream, ">", seq, 1)
    return found[0].msg_id if found and found[0].seq == seq else None


async def recover(session: Session) -> int:
    """Publish what the store has and the streams lack; return how many outputs that were.

    Raises:
        Misconfigured: the event stream holds events of this scope that the store does not know.
        SessionLost: the broker failed.
    """
    at = session.probe
    scope = session.rows.scope
    at(BEFORE_RECOVERY)
    read_at = session.clock.elapsed()
    own = await _read_all(session, EVENTS, event_filter(scope), session.mark.event_seq + 1)
    stored = {message.msg_id: message.seq for message in own}
    for message in await _read_all(
        session, EVENTS, violation_subject(scope.tenant, scope.workspace), session.mark.event_seq + 1
    ):
        stored[message.msg_id] = message.seq
    failed_filter = f"failed.*.{scope.tenant}.{scope.workspace}.>"
    in_failed = {m.msg_id: m.seq for m in await _read_all(session, FAILED, failed_filter, session.mark.failed_seq + 1)}
    await _check_known(session, own)

    log = structlog.get_logger("meshforge").bind(scope=str(scope))
    publish_by = read_at + session.publish_within_s
    repaired = 0
    for burst in session.bursts(await _unconfirmed_commands(session)):
        await session.publish_until(burst, publish_by)
        at(IN_RECOVERY)
    while page := await session.rows.outputs_after(session.mark.n, _PAGE):
        present = {EVENTS: stored, FAILED: in_failed}
        missing = [output for output in page if output.msg_id not in stored and output.msg_id not in in_failed]
        for burst in session.bursts(missing):
            acks = await session.publish_until(burst, publish_by)
            for output, ack in zip(burst, acks, strict=True):
                present.get(ack.stream, {})[output.msg_id] = ack.seq
            at(IN_RECOVERY)
        session.mark = _mark_after(session.mark, page, present, session.clock.now())
        session.unwritten_mark = True
        repaired += len(missing)
    if repaired:
        log.warning("published what the streams lacked", outputs=repaired)
    await session.write_mark()
    at(AFTER_RECOVERY)
    return repaired


async def _unconfirmed_commands(session: Session) -> Sequence[Output]:
    """Commands to other agents up to the mark, above the last output that it names.

    Their stream cannot be read back, so no mark speaks for them: what was published after the event which the stream
    still holds may have gone with a server that went back in time. The receiver knows a repeat by its key.
    """
    mark = session.mark
    found: list[Output] = []
    last = mark.n
    while last > 0:
        first = max(last - _PAGE, 0)
        for output in reversed(await session.rows.outputs_after(first, last - first)):
            if output.msg_id in (mark.event_id, mark.failed_id):
                return found[::-1]
            if output.kind == "command":
                found.append(output)
        last = first
    return found[::-1]


async def _read_all(session: Session, stream: str, subject: str, from_seq: int) -> Sequence[StoredMessage]:
    found: list[StoredMessage] = []
    while page := await session.broker.read_back(stream, subject, from_seq, _PAGE):
        found.extend(page)
        from_seq = page[-1].seq + 1
    return found


async def _check_known(session: Session, messages: Sequence[StoredMessage]) -> None:
    """Every event of this scope in the stream must come from the store, or the store is older than the stream."""
    ahead: set[str] = set()
    n = session.mark.n
    while page := await session.rows.outputs_after(n, _PAGE):
        ahead.update(output.msg_id for output in page)
        n = page[-1].n
    for message in messages:
        if message.msg_id not in ahead and not await _behind(session, message):
            raise Misconfigured(
                f"{session.rows.scope}: {EVENTS} holds {message.subject} at sequence {message.seq} "
                f"(Msg-Id {message.msg_id or 'none'}), which the store does not know: the store is older than the "
                "stream (restored from a backup?) or somebody else publishes for this agent. Nothing was changed. "
                "Restore the newest store, or start with a new workspace"
            )


async def _behind(session: Session, message: StoredMessage) -> bool:
    """Whether the store published this before the mark: a second copy from beyond the duplicate window."""
    try:
        key = decode_event(message.body).idempotency_key
    except Poison:
        return False
    if key is None:
        return False
    reading = await session.rows.read([(key, b"")], [])
    if key not in reading.keys:
        return False
    structlog.get_logger("meshforge").warning("second copy in the stream", subject=message.subject, key=key)
    return True


def _mark_after(mark: Mark, page: Sequence[Output], present: Mapping[str, Mapping[str, int]], at: float) -> Mark:
    acks = [_where(output.msg_id, present) for output in page]
    return moved(mark, page, acks, at)


def _where(msg_id: str, present: Mapping[str, Mapping[str, int]]) -> PubAck:
    for stream, seq_of in present.items():
        if msg_id in seq_of:
            return PubAck(stream, seq_of[msg_id])
    # A command to another agent: its stream forgets it once it is ACKed, so no mark can name it.
    return PubAck("", 0)
