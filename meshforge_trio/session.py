"""One engine's time on one broker session: what the protocol works with, dropped as a whole at its end.

Nothing in memory outlives it: confirmations, cached entities and parked deliveries all come from what this session
has seen since its recovery, so a broker that forgot or went back in time is noticed by the next one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import attrs
import structlog
import trio

from meshforge_trio import redrive
from meshforge_trio.agent import AgentAdapter
from meshforge_trio.asides import called
from meshforge_trio.broker.port import Broker, Consumer, Message, PubAck
from meshforge_trio.clock import Clock
from meshforge_trio.codec import ScopeSealer
from meshforge_trio.config import EngineSettings
from meshforge_trio.deadlines import Deadlines
from meshforge_trio.decide import Decider
from meshforge_trio.drafts import Drafter, as_message
from meshforge_trio.entities import Cache, Entities, Entity, hashed, restore
from meshforge_trio.envelope import CommandEnvelope, canonical
from meshforge_trio.errors import Fenced, SessionLost, Stale, Transient
from meshforge_trio.intake import Incoming
from meshforge_trio.metrics import ScopeMetrics
from meshforge_trio.plan import Plan
from meshforge_trio.points import AFTER_MARK, BEFORE_MARK, Probe
from meshforge_trio.signing import Signer
from meshforge_trio.store.port import Attempt, Commit, EventStore, Head, Lease, Mark, Output, ScopeStore, state_of_heads
from meshforge_trio.subjects import EVENTS, FAILED
from meshforge_trio.turnstile import Seat
from meshforge_trio.waiting import Waiting

__all__ = ["Session"]

_HISTORY_PAGE = 1000
#: The largest header block of ours: protocol line, Msg-Id, traceparent, expected stream.
_HEADERS_MAX = 1024


@attrs.define(eq=False)
class Session:
    """State and steps of a session. The order of the steps is `protocol.turn`'s."""

    adapter: AgentAdapter[Any]
    store: EventStore
    rows: ScopeStore
    broker: Broker
    settings: EngineSettings
    probe: Probe
    clock: Clock
    lease: Lease
    publish_within_s: float
    waiting: Waiting
    drafter: Drafter
    cache: Cache
    next_n: int
    mark: Mark
    deadlines: Deadlines
    seat: Seat
    signer: Signer | None = None
    consumers: dict[str, Consumer] = attrs.field(factory=dict)
    unwritten_mark: bool = False
    metrics: ScopeMetrics = attrs.field(factory=ScopeMetrics)
    _publishing: trio.Lock = attrs.field(factory=trio.Lock)
    _entities: Entities | None = None
    _publish_by: float = 0.0
    _burst_by: float = 0.0
    _acks: list[PubAck] = attrs.field(factory=list)
    _log: Any = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._log = structlog.get_logger("meshforge").bind(scope=str(self.rows.scope))

    @property
    def scope(self) -> object:
        """Whose session it is."""
        return self.rows.scope

    @property
    def sealer(self) -> ScopeSealer | None:
        """What seals and opens payloads; `None` where the tenant has no codec."""
        return self.drafter.sealer

    @property
    def erased(self) -> bool:
        """Whether the tenant's keys were destroyed: no state of it can be read."""
        return self.sealer is not None and self.sealer.erased is not None

    def check_lease(self) -> None:
        """Raise `Fenced` when this process's term ran out without being renewed."""
        if not self.store.lease_valid():
            raise Fenced(f"{self.scope}: the lease of this process ran out before it was renewed")

    # -- decide ------------------------------------------------------------------------------------------------

    async def decide(self, batch: Sequence[Incoming]) -> Plan:
        """Read what the batch needs, once, and decide it."""
        began = self.clock.elapsed()
        named = {i.entity_id for i in batch} - self.cache.keys()
        unknown = sorted(e for e in named if e is not None)
        keys = [(i.key, i.hash) for i in batch]
        keys += [(key, b"") for i in batch if i.system and (key := redrive.asked(i.message)) is not None]
        resources = {
            i.message.resource_id
            for i in batch
            if isinstance(i.message, CommandEnvelope) and i.message.resource_id is not None
        }
        reading = await self.rows.read(keys, unknown, sorted(resources))
        heads = {e: await self._usable(head) for e, head in reading.heads.items()}
        self._entities = Entities(self.cache, self.adapter, heads, self.sealer)
        decider = Decider(
            adapter=self.adapter,
            drafter=self.drafter,
            policy=self.settings.retry,
            entities=self._entities,
            waiting=self.waiting,
            reading=reading,
            now=self.clock.now(),
        )
        with self.seat.deciding(len(batch)):
            plan = await decider.decide(batch, self.lease.epoch, self.next_n)
        plan.began = began
        return plan

    async def _usable(self, head: Head) -> Head:
        """A head whose snapshot has the adapter's shape of state; else the whole history instead of it."""
        if head.state is None or head.state_schema == self.adapter.schema:
            return head
        bodies: list[bytes] = []
        while page := await self.rows.history(head.entity_id, len(bodies), _HISTORY_PAGE):
            bodies.extend(output.body for output in page)
        return attrs.evolve(head, state=None, state_version=0, tail=bodies)

    def forget_entities(self) -> None:
        """A commit was refused: what was read may be old."""
        self.cache.clear()

    # -- store -------------------------------------------------------------------------------------------------

    async def commit(self, plan: Plan) -> None:
        """Write the turn in one transaction, and only then let memory follow."""
        # Counted from before the commit: the time to publish may only come out too short.
        self._publish_by = self.clock.elapsed() + self.publish_within_s
        if plan.writes:
            mark = plan.commit.mark = self.mark if self.unwritten_mark else None
            await self.rows.commit(plan.commit, self.probe)
            # The turn before may have published meanwhile and moved the mark on.
            self.unwritten_mark = self.unwritten_mark and self.mark is not mark
        assert self._entities is not None
        self._entities.keep()
        self.deadlines.note(self._entities.moved())
        self.next_n += len(plan.commit.outputs)
        for key in plan.commit.ended:
            self.waiting.end(key)
        for verdict in plan.verdicts:
            if verdict.attempt is not None:
                self.waiting.fail(verdict.attempt, verdict.incoming)
            # Now, and not when the NAK leaves: the next turn decides while this one publishes.
            if verdict.wait_s is None:
                self.waiting.unpark(verdict.incoming)
            else:
                self.waiting.park(verdict.incoming)
        self.metrics.committed(
            [verdict.outcome for verdict in plan.verdicts], [dead.code for dead in plan.commit.dead], wrote=plan.writes
        )
        self._tell(plan)

    def _tell(self, plan: Plan) -> None:
        for dead in plan.commit.dead:
            self._log.critical(
                "dead letter",
                key=dead.key,
                subject=dead.subject,
                code=dead.code,
                reason=dead.reason,
                attempts=dead.attempts,
                trace_id=dead.trace_id,
            )
        if not self._log.is_enabled_for(10):
            return
        for verdict in plan.verdicts:
            message = verdict.incoming.message
            self._log.debug(
                verdict.outcome,
                key=verdict.incoming.key,
                entity_id=verdict.incoming.entity_id,
                trace_id=None if message is None else message.trace_id,
                outputs=[output.event_id for output in verdict.outputs],
            )

    async def begin_attempt(self, incoming: Incoming) -> Attempt | None:
        """Commit that the handler is about to be called; return the row before."""
        before = self.waiting.attempt(incoming.key)
        row = called(before, incoming, self.clock.now())
        await self.rows.commit(Commit(self.lease.epoch, attempts=[row]), self.probe)
        self.waiting.fail(row, None)
        incoming.alone = True
        return before

    async def take_back_attempt(self, incoming: Incoming, before: Attempt | None) -> None:
        """Undo `begin_attempt` if the attempt came to no end of its own."""
        now = self.waiting.attempt(incoming.key)
        if now is None or now.next_at != 0.0:
            return
        undo = Commit(self.lease.epoch)
        if before is None:
            undo.ended.append(incoming.key)
        else:
            undo.attempts.append(before)
        with trio.CancelScope(shield=True):
            try:
                await self.rows.commit(undo, self.probe)
            except (Fenced, Stale, Transient) as error:
                self._log.warning("an attempt stays counted", key=incoming.key, reason=str(error))

    # -- publish -----------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def publishing_after_commit(self, task_status: trio.TaskStatus[None]) -> AsyncIterator[None]:
        """Wait until the turn before has published, then let the next one decide."""
        publish_by = self._publish_by
        async with self._publishing:
            # The turn before may have failed and handed the lock on: what it did not publish must not be overtaken.
            await trio.lowlevel.checkpoint_if_cancelled()
            self._acks.clear()
            self._burst_by = publish_by
            task_status.started()
            yield

    async def quiet(self) -> None:
        """Return when no turn is publishing."""
        async with self._publishing:
            pass

    def bursts(self, outputs: Sequence[Output]) -> Iterator[Sequence[Output]]:
        """The turn's outputs in pieces of `publish_burst` (0: all at once)."""
        size = self.settings.publish_burst or len(outputs)
        for i in range(0, len(outputs), size or 1):
            yield outputs[i : i + size]

    async def publish(self, outputs: Sequence[Output]) -> None:
        """Publish a burst and await its PubAcks.

        Raises:
            SessionLost: a PubAck is missing or a refusal, or the commit is older than half the duplicate window
                (rule R6): only reading back can tell whether a second try would make a second copy.
        """
        self._acks.extend(await self.publish_until(outputs, self._burst_by))

    async def publish_until(self, outputs: Sequence[Output], publish_by: float) -> Sequence[PubAck]:
        """`publish`, up to a moment of `clock.elapsed`."""
        self.check_lease()
        left = publish_by - self.clock.elapsed()
        if left <= 0:
            raise SessionLost(f"{self.scope}: too late to publish what was committed; recovery will look for it")
        acks = await self.broker.publish(
            [self._signed(as_message(output)) for output in outputs], min(left, self.settings.publish_timeout_s)
        )
        for output, ack in zip(outputs, acks, strict=True):
            if ack.error:
                raise SessionLost(f"{self.scope}: the broker refused {output.subject}: {ack.error} ({ack.error_code})")
        return acks

    def published(self, plan: Plan) -> None:
        """Every PubAck is in: the next transaction carries the mark that says so."""
        if plan.commit.outputs:
            self.mark = moved(self.mark, plan.commit.outputs, self._acks, self.clock.now())
            self.unwritten_mark = True

    async def write_mark(self, *, clean: bool = False) -> None:
        """Write the newest mark by itself; with `clean`, end the term and record the hash of all states as well."""
        if not self.unwritten_mark and not clean:
            return
        self.probe(BEFORE_MARK)
        state_hash = await self._state_hash() if clean and not self.erased else None
        commit = Commit(self.lease.epoch, mark=self.mark, state_hash=state_hash, clean=clean)
        await self.rows.commit(commit, self.probe)
        self.unwritten_mark = False
        self.probe(AFTER_MARK)

    async def _state_hash(self) -> tuple[int, str] | None:
        """The hash of every entity's state, as this process has it in memory where it has it.

        `None` when there are too many to be read within a drain; `meshforge hash` rebuilds it then.
        """
        states: list[tuple[str, int, bytes, bytes]] = []
        last = ""
        while heads := await self.rows.heads(last, _HISTORY_PAGE):
            for entity_id, entity in await self.entities([head.entity_id for head in heads]):
                state = hashed(canonical(self.adapter.dump(entity.state)), self.sealer)
                states.append((entity_id, entity.version, entity.chain, state))
            last = heads[-1].entity_id
            if len(states) > self.settings.state_hash_entities_max:
                return None
        return self.next_n - 1, state_of_heads(states)

    async def entities(self, entity_ids: Sequence[str]) -> Sequence[tuple[str, Entity]]:
        """Entities that have events, as this process has them in memory, else as the store has them."""
        unknown = [entity_id for entity_id in entity_ids if self.cache.get(entity_id) is None]
        read = (await self.rows.read([], unknown)).heads if unknown else {}
        found = []
        for entity_id in entity_ids:
            entity = self.cache.get(entity_id)
            if entity is None:
                entity = restore(self.adapter, await self._usable(read[entity_id]), self.sealer)
            found.append((entity_id, entity))
        return found

    async def send(self, messages: Sequence[Message]) -> None:
        """Have the command stream store commands of the runtime itself.

        Raises:
            SessionLost: whether it has is unknown; the next session sends them again under the same ids.
            Fenced: the lease is over.
        """
        async with self._publishing:
            self.check_lease()
            signed = [self._signed(message) for message in messages]
            acks = await self.broker.publish(signed, self.settings.publish_timeout_s)
        refused = [ack for ack in acks if ack.error]
        if refused:
            raise SessionLost(f"{self.scope}: the broker refused a command of the runtime: {refused[0].error}")

    def _signed(self, message: Message) -> Message:
        """Commands of this process prove that they are its agents', where the others have to be signed."""
        if self.signer is None or not message.subject.startswith("cmd."):
            return message
        return attrs.evolve(message, headers={**message.headers, **self.signer.headers(message.subject, message.body)})

    # -- settle ------------------------------------------------------------------------------------------------

    def settle(self, plan: Plan) -> None:
        """ACK what is decided, NAK what waits."""
        for stream, consumer in self.consumers.items():
            consumer.settle([s for s in plan.settlements if s.delivery.stream == stream])
        self.metrics.settled(len(plan.settlements), self.clock.elapsed() - plan.began)


def moved(mark: Mark, outputs: Sequence[Output], acks: Sequence[PubAck], at: float) -> Mark:
    """The mark after `outputs` were stored at the sequences of `acks`.

    It names the highest sequence of each stream, so a stream that still holds it has lost nothing below it.
    """
    event_seq, event_id, failed_seq, failed_id = mark.event_seq, mark.event_id, mark.failed_seq, mark.failed_id
    for output, ack in zip(outputs, acks, strict=True):
        if ack.stream == EVENTS and ack.seq > event_seq:
            event_seq, event_id = ack.seq, output.msg_id
        elif ack.stream == FAILED and ack.seq > failed_seq:
            failed_seq, failed_id = ack.seq, output.msg_id
    return Mark(max(mark.n, outputs[-1].n), event_seq, event_id, failed_seq, failed_id, at)


def body_max(max_payload: int, max_msg_size: int) -> int:
    """The largest body the broker takes beside our headers, in bytes."""
    return min(max_payload, max_msg_size if max_msg_size > 0 else max_payload) - _HEADERS_MAX
