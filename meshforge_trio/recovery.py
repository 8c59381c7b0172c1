"""What every session starts with: make the streams hold what the store has committed (rules R2 and R3).

A mark says: everything through output N is published, the last of it has id I at sequence S. The newest mark whose
sequence still holds its id tells how far the stream can be trusted; from there both are compared, and what the
stream lacks is published in order. Below a stream's first sequence is expired, not lost.

A damaged stream may hold what the mark names and lack what was stored before. So after an end that was not clean, or
when the server has restarted, the newest outputs below the mark are compared as well, and what of them was lost is
published again, behind what is there; `comparison` tells lost from given up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Protocol

import attrs
import structlog

from meshforge_trio.broker.port import Broker, PubAck, StoredMessage, StreamFacts
from meshforge_trio.clock import Clock
from meshforge_trio.comparison import Gaps, read_all, regions
from meshforge_trio.envelope import decode_event
from meshforge_trio.errors import Misconfigured, Poison, SessionLost
from meshforge_trio.points import AFTER_RECOVERY, BEFORE_RECOVERY, IN_RECOVERY
from meshforge_trio.session import Session, moved
from meshforge_trio.store.port import Lease, Mark, Output, ScopeStore
from meshforge_trio.subjects import EVENTS, FAILED, Scope, event_filter, violation_subject

__all__ = ["StoredRows", "confirmed_mark", "newest_valid_mark", "recover"]

_PAGE: Final = 256
#: Outputs below the newest valid mark that are compared too, or a few more: from the next older mark on.
_DEPTH: Final = 4096
#: Above every sequence.
_NOWHERE: Final = 1 << 63


class StoredRows(Protocol):
    """What comparing needs of a `ScopeStore`."""

    @property
    def scope(self) -> Scope: ...

    async def outputs_after(self, n: int, limit: int) -> Sequence[Output]:
        """Outputs numbered above `n`, in order."""

    async def marks(self) -> Sequence[Mark]:
        """Newest first."""


def _help(scope: Scope) -> str:
    command = f"meshforge reconcile --workspace {scope.tenant}/{scope.workspace} --agent {scope.agent}"
    return f"`{command} --dry-run` shows both side by side"


async def newest_valid_mark(
    broker: Broker, rows: ScopeStore, events: StreamFacts, failed: StreamFacts, clock: Clock, lease: Lease
) -> Mark:
    """The newest mark that both streams confirm: see `confirmed_mark`.

    A scope without marks gets its first one here: where the streams stand before it ever published.

    Raises:
        Misconfigured: outputs were published and no mark is confirmed: a stream was deleted and made anew, or
            lost more than the marks reach back.
    """
    marks = await rows.marks()
    if not marks:
        if lease.next_n > 1:
            raise Misconfigured(
                f"{rows.scope}: the store has outputs and no mark of what was published: taking over from the stream "
                f"was interrupted, or another version wrote it. Nothing was published. {_help(rows.scope)}"
            )
        return await _first_mark(broker, rows.scope, events, failed, clock)
    restarted = lease.server_id != broker.facts.server_id
    mark = await confirmed_mark(broker, rows, marks, events, failed, restarted=restarted)
    if mark is not None:
        return mark
    if marks[0].n == 0:
        # Nothing was ever confirmed published, so comparing from the beginning repeats nothing.
        return Mark(0, 0, "", 0, "", clock.now())
    raise Misconfigured(
        f"{rows.scope}: {len(marks)} marks say what was published (the newest through output {marks[0].n}, "
        f"sequence {marks[0].event_seq} of {EVENTS}), and the streams confirm none: {EVENTS} was deleted and made "
        f"anew, restored from an older copy than the marks reach back, or belongs to another store. Nothing was "
        f"published. {_help(rows.scope)}; with --accept-store it publishes what the streams lack. Or restore the "
        f"stream, or name the store that belongs to it (`--store`)"
    )


async def confirmed_mark(
    broker: Broker,
    rows: StoredRows,
    marks: Sequence[Mark],
    events: StreamFacts,
    failed: StreamFacts,
    *,
    restarted: bool,
) -> Mark | None:
    """The newest of `marks` that both streams confirm, or the newest of all if what it names was deleted on purpose.

    `restarted` is whether the server has, since the scope was last served: deletions at the end prove nothing then.

    Raises:
        SessionLost: the broker failed.
    """
    gone = await _gone(broker, events, restarted=restarted)
    failed_gone = await _gone(broker, failed, restarted=restarted)
    for mark in marks:
        if mark.event_seq == 0 and mark.n < marks[0].n and not await _begins_with_ours(broker, rows, events):
            # It was written over an empty stream, so a stream made anew would confirm it as well.
            continue
        known = await _holds(broker, events, mark.event_seq, mark.event_id)
        if (known or (mark is marks[0] and gone.deleted(mark.event_seq))) and (
            failed_gone.deleted(mark.failed_seq) or await _holds(broker, failed, mark.failed_seq, mark.failed_id)
        ):
            return mark
    return None


async def _first_mark(broker: Broker, scope: Scope, events: StreamFacts, failed: StreamFacts, clock: Clock) -> Mark:
    """Where the streams stand before this scope ever published; its own events there are another store's."""
    own = await broker.read_back(EVENTS, event_filter(scope), max(events.first_seq, 1), 1)
    if own:
        raise Misconfigured(
            f"{scope}: the store is empty, and {EVENTS} holds events of this scope (the first at sequence "
            f"{own[0].seq}): its keys would be forgotten and its versions start again. Name the store that belongs to "
            f"these streams (`--store`), restore it from a backup, or start with a new workspace. {_help(scope)}; "
            "with --accept-stream it rebuilds the store from them"
        )
    event_id = await _id_at(broker, EVENTS, events.last_seq)
    failed_id = await _id_at(broker, FAILED, failed.last_seq)
    return Mark(0, events.last_seq, event_id or "", failed.last_seq, failed_id or "", clock.now())


async def _begins_with_ours(broker: Broker, rows: StoredRows, events: StreamFacts) -> bool:
    """Whether the stream is whole from its first sequence on and the first event of the scope is one of the store."""
    own = await broker.read_back(EVENTS, event_filter(rows.scope), 1, 1) if events.messages else ()
    return (
        events.first_seq <= 1
        and bool(own)
        and own[0].msg_id in {output.msg_id for output in await rows.outputs_after(0, _PAGE)}
    )


async def _gone(broker: Broker, facts: StreamFacts, *, restarted: bool) -> Gaps:
    """What was deleted of a stream; asked only where something was."""
    return Gaps(broker, await broker.stream_facts(facts.name) if facts.num_deleted else facts, restarted=restarted)


async def _holds(broker: Broker, stream: StreamFacts, seq: int, msg_id: str) -> bool:
    if seq == 0:
        return True
    if seq > stream.last_seq:
        return False
    if seq < stream.first_seq:
        # A stream that is empty because it was damaged has not expired.
        return not (stream.lost_bytes and not stream.messages)
    return await _id_at(broker, stream.name, seq) == msg_id


async def _id_at(broker: Broker, stream: str, seq: int) -> str | None:
    if seq == 0:
        return None
    found = await broker.read_back(stream, ">", seq, 1)
    return found[0].msg_id if found and found[0].seq == seq else None


async def recover(session: Session) -> int:
    """Publish what the store has and the streams lost or never got; return how many outputs that were.

    Raises:
        Misconfigured: the event stream holds events of this scope that the store does not know.
        SessionLost: the broker failed.
    """
    at = session.probe
    scope = session.rows.scope
    at(BEFORE_RECOVERY)
    read_at = session.clock.elapsed()
    mark = session.mark
    marks = await session.rows.marks()
    start = await _start(session, marks)
    # Through here everything was published once, by what the newest mark says; what is above may never have been.
    said = max([mark.n, *(each.n for each in marks[:1])])
    ahead = await _ahead(session, start.n)
    known = {output.msg_id for output in ahead}
    own = await read_all(session.broker, EVENTS, event_filter(scope), start.event_seq + 1, known)
    stored = {message.msg_id: message.seq for message in own}
    of_workspace = violation_subject(scope.tenant, scope.workspace)
    for message in await read_all(session.broker, EVENTS, of_workspace, start.event_seq + 1, known):
        stored[message.msg_id] = message.seq
    letters = f"failed.*.{scope.tenant}.{scope.workspace}.>"
    dead = await read_all(session.broker, FAILED, letters, start.failed_seq + 1, known)
    in_failed = {message.msg_id: message.seq for message in dead}
    await _check_known(session, own, known)
    held = {EVENTS: stored, FAILED: in_failed}
    lost = await _lost(session, start, said, [output for output in ahead if output.n <= said], held)

    publish_by = read_at + session.publish_within_s
    repaired = 0
    for burst in session.bursts(await _unconfirmed_commands(session)):
        await session.publish_until(burst, publish_by)
        at(IN_RECOVERY)
    n = min([*lost, mark.n + 1]) - 1
    while page := await session.rows.outputs_after(n, _PAGE):
        # A stream tells what it has lost of events and letters; commands cannot be read back, so all are sent again.
        missing = [
            output
            for output in page
            if (output.n > (mark.n if output.kind == "command" else said) or output.n in lost)
            and output.msg_id not in stored
            and output.msg_id not in in_failed
        ]
        for burst in session.bursts(missing):
            acks = await _kept(session, burst, await session.publish_until(burst, publish_by))
            for output, ack in zip(burst, acks, strict=True):
                held.get(ack.stream, {})[output.msg_id] = ack.seq
            at(IN_RECOVERY)
        session.mark = _mark_after(session.mark, page, held, session.clock.now())
        session.unwritten_mark = True
        repaired += len(missing)
        n = page[-1].n
    if repaired:
        log = structlog.get_logger("meshforge").bind(scope=str(scope))
        log.warning("published what the streams lacked", outputs=repaired, lost=len(lost))
    await session.write_mark()
    at(AFTER_RECOVERY)
    return repaired


async def _start(session: Session, marks: Sequence[Mark]) -> Mark:
    """From where store and streams are compared: the session's mark, or one well below it if there is a reason."""
    broker, mark = session.broker, session.mark
    if session.lease.clean and session.lease.server_id == broker.facts.server_id:
        return mark
    events, failed = await broker.stream_facts(EVENTS), await broker.stream_facts(FAILED)
    below = [each for each in marks if each.n < mark.n]
    # What was published before a mark whose message has expired has expired as well: nothing older says more.
    expired = next((i for i, each in enumerate(below) if each.event_seq < events.first_seq), len(below))
    below = below[: expired + 1]
    deep = [each.n <= mark.n - _DEPTH or each.event_seq < events.first_seq for each in below]
    split = deep.index(True) if True in deep else len(below)
    for each in [*_thinned(below[split:]), *_thinned(below[:split][::-1])]:
        if await _holds(broker, events, each.event_seq, each.event_id) and each.failed_seq <= failed.last_seq:
            return each
    return mark


def _thinned(marks: Sequence[Mark]) -> Iterator[Mark]:
    """The first, and on with steps that double: to ask for each of thousands would take too long."""
    at, step = 0, 1
    while at < len(marks):
        yield marks[at]
        at, step = at + step, step * 2


@attrs.frozen
class _Placed:
    """An output without its body: number, Msg-Id, and the stream that keeps it ("" for a command)."""

    n: int
    msg_id: str
    stream: str


async def _ahead(session: Session, n: int) -> Sequence[_Placed]:
    """Every output numbered above `n`."""
    found: list[_Placed] = []
    while page := await session.rows.outputs_after(n, _PAGE):
        found += [_Placed(output.n, output.msg_id, _stream_of(output)) for output in page]
        n = page[-1].n
    return found


def _stream_of(output: Output) -> str:
    return {"dead": FAILED, "command": ""}.get(output.kind, EVENTS)


async def _lost(
    session: Session, start: Mark, said: int, outputs: Sequence[_Placed], held: Mapping[str, Mapping[str, int]]
) -> set[int]:
    """Numbers of those `outputs`, once published through `said`, that a stream has lost and was not told to give up."""
    mark, broker = session.mark, session.broker
    restarted = session.lease.server_id != broker.facts.server_id
    lost: set[int] = set()
    given_up = 0
    bounds = {EVENTS: (start.event_seq, mark.event_seq), FAILED: (start.failed_seq, mark.failed_seq)}
    for stream, (above, last) in bounds.items():
        of_stream = [(output.n, output.msg_id) for output in outputs if output.stream == stream]
        # Where the newest mark is not confirmed, the end of the stream is nobody's neighbour: it has moved.
        end = last + 1 if said == mark.n else _NOWHERE
        missing = regions(of_stream, held[stream], above, end)
        if not missing:
            continue
        gaps = Gaps(broker, await broker.stream_facts(stream), restarted=restarted)
        for region in missing:
            if region.below != _NOWHERE and await gaps.given_up(region):
                given_up += len(region.missing)
            else:
                lost.update(region.missing)
    log = structlog.get_logger("meshforge").bind(scope=str(session.rows.scope))
    if given_up:
        log.info("outputs were purged or expired; they stay away", outputs=given_up)
    if lost:
        log.warning("the streams lost what they had stored", outputs=len(lost), first=min(lost), last=max(lost))
    return lost


async def _kept(session: Session, burst: Sequence[Output], acks: Sequence[PubAck]) -> Sequence[PubAck]:
    """The PubAcks, without the sequences of duplicates that were deleted meanwhile: no mark may name those.

    Raises:
        SessionLost: the stream lost a message and takes its id for a duplicate, as it does until the window is over.
    """
    kept = list(acks)
    for i, (output, ack) in enumerate(zip(burst, acks, strict=True)):
        if not ack.duplicate or output.kind == "command":
            continue
        if await _id_at(session.broker, ack.stream, ack.seq) == output.msg_id:
            continue
        kept[i] = PubAck("", 0)
        facts = await session.broker.stream_facts(ack.stream)
        if ack.seq >= facts.first_seq and ack.seq not in (facts.deleted or ()):
            raise SessionLost(
                f"{session.rows.scope}: {ack.stream} lost output {output.n} and takes it for a duplicate still; "
                "it is published when the duplicate window is over"
            )
    return kept


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


async def _check_known(session: Session, messages: Sequence[StoredMessage], ahead: set[str]) -> None:
    """Every event of this scope in the stream must come from the store, or the store is older than the stream."""
    seen: set[str] = set()
    log = structlog.get_logger("meshforge").bind(scope=str(session.rows.scope))
    for message in messages:
        # What lies below the mark was known when the mark was written, or was left there by a person's decision.
        above = message.seq > session.mark.event_seq
        if above and message.msg_id not in ahead and not await _behind(session, message):
            raise Misconfigured(
                f"{session.rows.scope}: {EVENTS} holds {message.subject} at sequence {message.seq} "
                f"(Msg-Id {message.msg_id or 'none'}), which the store does not know: the store is older than the "
                "stream (restored from a backup?) or somebody else publishes for this agent. Nothing was changed. "
                f"Restore the newest store, or start with a new workspace. {_help(session.rows.scope)}; with "
                "--accept-stream it takes over into the store what the stream holds"
            )
        if message.msg_id in seen:
            log.warning("second copy in the stream", subject=message.subject, seq=message.seq)
        seen.add(message.msg_id)


async def _behind(session: Session, message: StoredMessage) -> bool:
    """Whether the store published this before where the comparison starts, and the stream holds it above."""
    try:
        key = decode_event(message.body).idempotency_key
    except Poison:
        return False
    if key is None:
        return False
    reading = await session.rows.read([(key, b"")], [])
    return key in reading.keys or key in reading.generations


def _mark_after(mark: Mark, page: Sequence[Output], present: Mapping[str, Mapping[str, int]], at: float) -> Mark:
    acks = [_where(output.msg_id, present) for output in page]
    return moved(mark, page, acks, at)


def _where(msg_id: str, present: Mapping[str, Mapping[str, int]]) -> PubAck:
    for stream, seq_of in present.items():
        if msg_id in seq_of:
            return PubAck(stream, seq_of[msg_id])
    # A command to another agent: its stream forgets it once it is ACKed, so no mark can name it.
    return PubAck("", 0)
