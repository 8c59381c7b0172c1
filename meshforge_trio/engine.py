"""The engine of one scope: stands by for the lease, starts sessions, runs turns.

A session starts with (rule R2): take the lease, reset the consumers, recover the outbox; then it pulls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import attrs
import structlog
import trio

from meshforge_trio import deadlines, protocol
from meshforge_trio.agent import AgentAdapter
from meshforge_trio.broker.port import Broker, Consumer, ConsumerSpec, Delivery, StreamFacts, StreamSpec
from meshforge_trio.clock import Clock, SteadyClock, SystemClock
from meshforge_trio.codec import Codecs, ScopeSealer
from meshforge_trio.config import EngineSettings
from meshforge_trio.drafts import Drafter
from meshforge_trio.entities import Cache
from meshforge_trio.errors import Fenced, Misconfigured
from meshforge_trio.intake import Incoming, read_delivery
from meshforge_trio.keys import keep_keys, opened_keys, renew
from meshforge_trio.metrics import ScopeMetrics
from meshforge_trio.points import AFTER_LEASE, AFTER_RESET, Probe, no_probe
from meshforge_trio.recovery import newest_valid_mark, recover
from meshforge_trio.security import OPEN, Access
from meshforge_trio.session import Session, body_max
from meshforge_trio.signing import Signer
from meshforge_trio.store.port import EventStore, Lease
from meshforge_trio.subjects import (
    COMMANDS,
    EVENTS,
    FAILED,
    Scope,
    command_filter,
    consumer_name,
    event_subject,
)
from meshforge_trio.turnstile import Turnstile
from meshforge_trio.waiting import Waiting

__all__ = ["RuntimeEngine", "stream_specs"]

#: Deliveries a session may have in hand; after a broker lost its memory, as many are run alone.
_IN_HAND_MAX: Final = 1024


def stream_specs(settings: EngineSettings) -> Sequence[StreamSpec]:
    """The three streams of the project."""
    window, replicas = settings.duplicate_window_s, settings.replicas
    return (
        StreamSpec(COMMANDS, ("cmd.>",), work_queue=True, duplicate_window_s=window, replicas=replicas),
        StreamSpec(EVENTS, ("evt.>",), duplicate_window_s=window, replicas=replicas),
        StreamSpec(FAILED, ("failed.>",), duplicate_window_s=window, replicas=replicas),
    )


@attrs.define(eq=False)
class _Suspicion:
    """Which deliveries may have died in a handler: those in hand when another process ended uncleanly."""

    until_seq: dict[str, int] = attrs.field(factory=dict)
    budget: dict[str, int] = attrs.field(factory=dict)

    def covers(self, delivery: Delivery) -> bool:
        left = self.budget.get(delivery.stream, 0)
        if left:
            self.budget[delivery.stream] = left - 1
        return left > 0 or delivery.stream_seq <= self.until_seq.get(delivery.stream, 0)


class RuntimeEngine:
    """Serves one scope with exactly-once effects, one session after another."""

    def __init__(
        self,
        scope: Scope,
        adapter: AgentAdapter[Any],
        store: EventStore,
        *,
        settings: EngineSettings | None = None,
        probe: Probe = no_probe,
        clock: Clock | None = None,
        first_claim_after_s: float = 0.0,
        access: Access = OPEN,
        signer: Signer | None = None,
        recoveries: trio.CapacityLimiter | None = None,
        turnstile: Turnstile | None = None,
        codecs: Codecs | None = None,
    ) -> None:
        """`recoveries` bounds how many engines compare store and streams at once, and so the memory this takes.

        `turnstile` is what the engines of a process share, so that none of them keeps the others waiting.
        """
        self.scope = scope
        self._adapter = adapter
        self._store = store
        self._rows = store.scope(scope)
        self._settings = settings if settings is not None else EngineSettings()
        self._probe = probe
        if clock is None:
            clock = SteadyClock() if adapter.deadlines else SystemClock()
        self._clock = clock
        self._first_claim_after_s = first_claim_after_s
        self._access = access
        self._signer = signer
        self._recoveries = recoveries if recoveries is not None else trio.CapacityLimiter(1)
        turnstile = turnstile if turnstile is not None else Turnstile()
        self._seat = turnstile.seat(store.place, scope.tenant, awaiting=adapter.concurrent)
        self._codecs = codecs
        self._last_epoch = -1
        self._suspected = _Suspicion()
        self._stopping = trio.Event()
        self._receiving: trio.CancelScope | None = None
        self._log = structlog.get_logger("meshforge").bind(scope=str(scope))
        self.serving = trio.Event()
        self.metrics = ScopeMetrics()

    def stop(self) -> None:
        """Pull no more; the running session finishes its turns and ends its term cleanly."""
        self._stopping.set()
        if self._receiving is not None:
            self._receiving.cancel()

    async def run_session(self, broker: Broker) -> None:
        """Serve until `stop`, or until an error ends the session.

        Raises:
            Fenced, SessionLost, StoreFull, StoreBroken, Misconfigured: see `policy`.
            Transient: the keys of the tenant cannot be read now, or were destroyed meanwhile.
        """
        lease = await self._take_lease(broker)
        if lease is None:
            return
        self._probe(AFTER_LEASE)
        facts = [await broker.declare(spec) for spec in stream_specs(self._settings)]
        consumers = await self._consume(broker)
        try:
            suspicion = self._suspected = self._suspicion(lease, broker, consumers)
            taken_over = not lease.clean and lease.epoch != self._last_epoch + 1
            self.metrics.leased(lease.epoch, taken_over=taken_over)
            self._last_epoch = lease.epoch
            self._probe(AFTER_RESET)
            async with self._recoveries:
                session = await self._recovered(broker, lease, facts, consumers)
            self._log.info("serving", epoch=lease.epoch)
            self.metrics.phase = "serving"
            self.serving.set()
            await self._serve(session, suspicion)
        finally:
            self.serving = trio.Event()
            self.metrics.phase = "starting"
            with trio.move_on_after(1, shield=True):
                for consumer in consumers.values():
                    await consumer.close()

    async def _recovered(
        self, broker: Broker, lease: Lease, facts: Sequence[StreamFacts], consumers: dict[str, Consumer]
    ) -> Session:
        try:
            session = await self._open(broker, lease, facts)
            session.consumers = consumers
            self.metrics.republished += await recover(session)
        except Misconfigured as error:
            if self._store.lease_valid():
                raise
            # Suspended in between, it holds what it had read of the streams against what a successor wrote since.
            raise Fenced(
                f"{self.scope}: the lease of this process ran out while it compared store and streams"
            ) from error
        return session

    async def _take_lease(self, broker: Broker) -> Lease | None:
        """Wait for the lease; `None` when stopped before it came."""
        with trio.CancelScope() as self._receiving:
            if self._stopping.is_set():
                return None
            if self._last_epoch < 0:
                await trio.sleep(self._first_claim_after_s)
            while True:
                lease = await self._rows.take_lease(broker.facts.server_id)
                if lease is not None:
                    return lease
                self.metrics.phase = "standing_by"
                await trio.sleep(self._settings.standby_poll_s)
        return None

    async def _consume(self, broker: Broker) -> dict[str, Consumer]:
        name, settings = consumer_name(self.scope), self._settings
        specs = [
            ConsumerSpec(COMMANDS, name, (command_filter(self.scope),), settings.ack_wait_s, settings.max_ack_pending)
        ]
        if self._adapter.subscriptions:
            filters = tuple(
                sorted(
                    event_subject(Scope(self.scope.tenant, self.scope.workspace, s.agent), s.name)
                    for s in self._adapter.subscriptions
                )
            )
            specs.append(ConsumerSpec(EVENTS, name, filters, settings.ack_wait_s, settings.max_ack_pending))
        return {spec.stream: await broker.consume(spec) for spec in specs}

    def _suspicion(self, lease: Lease, broker: Broker, consumers: dict[str, Consumer]) -> _Suspicion:
        if lease.clean:
            return _Suspicion()
        if lease.epoch == self._last_epoch + 1:
            # This process is alive, so no handler of its last session died, unless somebody served in between. Whom
            # that session suspected and had not come to is suspected still.
            return self._suspected
        suspicion = _Suspicion({stream: consumer.delivered_seq for stream, consumer in consumers.items()})
        if lease.server_id != broker.facts.server_id:
            # The server restarted and may have forgotten what it had delivered.
            suspicion.budget = dict.fromkeys(consumers, _IN_HAND_MAX)
        return suspicion

    async def _open(self, broker: Broker, lease: Lease, facts: Sequence[StreamFacts]) -> Session:
        settings = self._settings
        sealer = await opened_keys(self._codecs, self._rows, lease.next_n)
        _, events, failed = facts
        mark = await newest_valid_mark(broker, self._rows, events, failed, self._clock, lease)
        limit = body_max(
            broker.facts.max_payload, min((f.max_msg_size for f in facts if f.max_msg_size > 0), default=-1)
        )
        return Session(
            adapter=self._adapter,
            store=self._store,
            rows=self._rows,
            broker=broker,
            settings=settings,
            probe=self._probe,
            clock=self._clock,
            lease=lease,
            publish_within_s=min(f.duplicate_window_s for f in facts) / 2,
            waiting=Waiting(await self._rows.attempts(), settings.retry, settings.max_ack_pending // 4),
            drafter=Drafter(self.scope, limit, sealer),
            cache=Cache(settings.cache_entities),
            next_n=lease.next_n,
            mark=mark,
            seat=self._seat,
            signer=self._signer,
            deadlines=deadlines.Deadlines(self._adapter, self._clock),
            unwritten_mark=mark.n == 0,
            metrics=self.metrics,
        )

    # -- turns -------------------------------------------------------------------------------------------------

    async def _serve(self, session: Session, suspicion: _Suspicion) -> None:
        send, arrivals = trio.open_memory_channel[Sequence[Incoming]](0)
        async with trio.open_nursery() as feeders:
            for consumer in session.consumers.values():
                feeders.start_soon(self._feed, session, consumer, send.clone())
            feeders.start_soon(self._extend, session)
            feeders.start_soon(keep_keys, session.sealer)
            if not session.erased:
                feeders.start_soon(deadlines.keep, session)
            send.close()
            async with trio.open_nursery() as turns:
                while not self._stopping.is_set():
                    incoming = await self._arrived(session, arrivals)
                    await self._run(session, suspicion, incoming, turns)
                session.deadlines.stop()
            # Every turn has ended: nothing is in hand that was not settled.
            await session.write_mark(clean=True)
            feeders.cancel_scope.cancel()

    async def _arrived(
        self, session: Session, arrivals: trio.MemoryReceiveChannel[Sequence[Incoming]]
    ) -> Sequence[Incoming]:
        """The next deliveries; the newest mark is written by itself when there are none for a while."""
        try:
            with trio.move_on_after(self._settings.idle_mark_s) as self._receiving:
                return await arrivals.receive()
            if self._stopping.is_set():
                return ()
            await session.quiet()
            await session.write_mark()
            with trio.CancelScope() as self._receiving:
                if not self._stopping.is_set():
                    return await arrivals.receive()
        except trio.EndOfChannel:
            # Feeders end by raising alone, and theirs is the reason to tell: wait for the cancellation it brings.
            await trio.sleep_forever()
        return ()

    async def _feed(
        self, session: Session, consumer: Consumer, send: trio.MemorySendChannel[Sequence[Incoming]]
    ) -> None:
        """Pull while the lease holds, and read what comes while the turn before is being committed."""
        async with send:
            while True:
                session.check_lease()
                most = self._most()
                consumer.pull(most)
                deliveries = await consumer.take(most)
                if deliveries:
                    await send.send(self._read(deliveries, session.sealer))

    def _read(self, deliveries: Sequence[Delivery], sealer: ScopeSealer | None) -> Sequence[Incoming]:
        if sealer is not None:
            renew(sealer)
        return [read_delivery(d, self.scope, self._adapter, self._access, sealer) for d in deliveries]

    async def _extend(self, session: Session) -> None:
        """Deliveries in hand are extended until their turn ends, so a redelivery means dead, paused or cut off."""
        while True:
            await trio.sleep(self._settings.ack_wait_s / 3)
            for consumer in session.consumers.values():
                consumer.extend()

    async def _run(
        self, session: Session, suspicion: _Suspicion, incoming: Sequence[Incoming], turns: trio.Nursery
    ) -> None:
        """Run a batch as turns: together what may, alone what an earlier run of may have died."""
        await self._mark_suspects(session, suspicion, incoming)
        together: list[Incoming] = []
        most = self._most()
        for one in incoming:
            alone = one.suspect and not self._must_not_run(session, one)
            if together and (alone or len(together) >= most):
                await turns.start(protocol.turn, session, together)
                together = []
                most = self._most()
            if alone:
                await session.quiet()
                await protocol.attempt(session, one)
            else:
                together.append(one)
        if together:
            await turns.start(protocol.turn, session, together)

    def _most(self) -> int:
        """How many commands a turn may be now; what has arrived may have been taken under another answer."""
        return self._seat.most(self._settings.batch)

    async def _mark_suspects(self, session: Session, suspicion: _Suspicion, incoming: Sequence[Incoming]) -> None:
        maybe = [
            one
            for one in incoming
            if suspicion.covers(one.delivery)
            or session.waiting.attempt(one.key) is not None
            or (one.delivery.num_delivered > 1 and not session.waiting.was_parked(one))
        ]
        maybe = [one for one in maybe if one.fault is None]
        if not maybe:
            return
        reading = await self._rows.read([(one.key, one.hash) for one in maybe], [])
        for one in maybe:
            one.suspect = one.key not in reading.keys

    def _must_not_run(self, session: Session, one: Incoming) -> bool:
        """Whether no handler will be called for it now: it is out of attempts, or waits."""
        row = session.waiting.attempt(one.key)
        if row is not None and self._settings.retry.exhausted(row.attempts):
            return True
        return session.waiting.delay_s(one, self._clock.now()) is not None
