"""Deciding a batch: pure of I/O but for the handlers themselves, and of time but for `now`.

In stream order, for each delivery: security, then duplicate or mismatch, then hold, then query, then version, then
the adapter. What comes out is a `Plan`: one transaction, and what to send once it is committed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any

import attrs
import trio

from meshforge_trio.agent import AgentAdapter, Context, Decision, Event
from meshforge_trio.asides import DIED, Asides, failed
from meshforge_trio.drafts import Cause, Drafter, check_event_name, told
from meshforge_trio.entities import Entities, Entity
from meshforge_trio.envelope import CommandEnvelope, JsonObject
from meshforge_trio.errors import Erased, Poison, Refused
from meshforge_trio.intake import Incoming
from meshforge_trio.plan import Plan, Verdict, assemble
from meshforge_trio.policy import RetryPolicy, refusal
from meshforge_trio.preconditions import conflict, require_newest_fence
from meshforge_trio.redrive import Fates
from meshforge_trio.security import Violation
from meshforge_trio.store.port import Attempt, Commit, Output, Reading
from meshforge_trio.waiting import BEHIND_S, SOON_S, Waiting

__all__ = ["Decider"]


@attrs.define(eq=False)
class _Call:
    """A handler about to be called."""

    incoming: Incoming
    entity: Entity
    cause: Cause


class Decider:
    """Decides one batch. Made anew for each try, so nothing of a failed one is kept."""

    def __init__(
        self,
        adapter: AgentAdapter[Any],
        drafter: Drafter,
        policy: RetryPolicy,
        entities: Entities,
        waiting: Waiting,
        reading: Reading,
        now: float,
    ) -> None:
        self._adapter = adapter
        self._drafter = drafter
        self._policy = policy
        self._entities = entities
        self._waiting = waiting
        self._reading = reading
        self._now = now
        self._asides = Asides(drafter, now, reading.generations)
        self._fates = Fates(drafter, reading)
        self._decided: dict[str, Verdict] = {}
        self._fences: dict[str, int] = {}
        self._mismatched: dict[tuple[str, bytes], Verdict] = {}
        self._failed_here: dict[str, float] = {}
        self._failed_keys: dict[str, float] = {}
        self._passed: set[tuple[str, int]] = set()
        self._held_here: dict[tuple[str, str | None], set[int]] = {}

    # -- the batch ---------------------------------------------------------------------------------------------

    async def decide(self, batch: Sequence[Incoming], epoch: int, next_n: int) -> Plan:
        """Decide every delivery of `batch`; number the outputs from `next_n`."""
        if self._adapter.concurrent:
            verdicts = await self._decide_side_by_side(batch)
        else:
            verdicts = [self._passing(self._step(incoming)) for incoming in batch]
        commit = Commit(epoch, fences=self._fences)
        return assemble(self._make_room(verdicts), commit, next_n, self._entities, self._waiting)

    def _step(self, incoming: Incoming) -> Verdict:
        call = self._before_call(incoming)
        if isinstance(call, Verdict):
            return call
        try:
            decision = self._adapter.receive(call.entity.state, _message(incoming), self._context(call))
            return self._conclude(call, decision)
        except Exception as error:
            return self._refuse_or_fail(call, error)

    async def _decide_side_by_side(self, batch: Sequence[Incoming]) -> list[Verdict]:
        """Entities side by side, each in order; a repeated key stays with its first occurrence."""
        lanes: dict[str, list[int]] = {}
        lane_of: dict[str, str] = {}
        for i, incoming in enumerate(batch):
            own = f"e:{incoming.entity_id}" if incoming.entity_id is not None else f"k:{incoming.key}"
            lane = lane_of.setdefault(incoming.key, own)
            lanes.setdefault(lane, []).append(i)
        verdicts: dict[int, Verdict] = {}

        async def run(lane: list[int]) -> None:
            for i in lane:
                verdicts[i] = self._passing(await self._step_awaiting(batch[i]))

        async with trio.open_nursery() as nursery:
            for lane_indices in lanes.values():
                nursery.start_soon(run, lane_indices)
        return [verdicts[i] for i in range(len(batch))]

    async def _step_awaiting(self, incoming: Incoming) -> Verdict:
        call = self._before_call(incoming)
        if isinstance(call, Verdict):
            return call
        limit = self._policy.handler_limit_s
        try:
            decision = self._adapter.receive(call.entity.state, _message(incoming), self._context(call))
            if isinstance(decision, Awaitable):
                with trio.move_on_after(limit) as running:
                    decision = await decision
                if running.cancelled_caught:
                    return self._fail(call.incoming, f"the handler took longer than {limit:g} s and was cancelled")
            return self._conclude(call, decision)
        except Exception as error:
            return self._refuse_or_fail(call, error)

    # -- before the handler ------------------------------------------------------------------------------------

    def _before_call(self, incoming: Incoming) -> Verdict | _Call:
        """Everything that is decided without the agent; else the call to make."""
        known = self._known(incoming)
        if known is not None:
            return known
        fault = incoming.fault
        if fault is not None:
            if isinstance(fault, Violation):
                return self._settled(self._asides.violation(incoming, fault))
            if isinstance(fault, Erased):
                return self._settled(self._asides.erased(incoming, fault))
            return self._dead(incoming, fault.code, fault.reason, fault.field)
        if incoming.system:
            return self._system(incoming)
        wait = self._wait_s(incoming)
        if wait is not None:
            return Verdict(incoming, "held", wait_s=wait)
        generation = self._reading.generations.get(incoming.key, 0) if self._reading.generations else 0
        attempt = self._waiting.attempt(incoming.key)
        # The row of an attempt in progress counts the call that is about to be made.
        made = 0 if attempt is None else attempt.attempts - incoming.alone
        if self._policy.exhausted(made):
            last = self._drafter.shown(attempt) if attempt is not None and attempt.error else DIED
            return self._dead(incoming, "attempts_exhausted", f"the handler failed {made} times; last: {last}")
        if incoming.suspect and not incoming.alone:
            # Its hold ran out between being sorted and being decided: it may only run alone, so it comes again.
            self._held_at(incoming).add(incoming.delivery.stream_seq)
            return Verdict(incoming, "held", wait_s=SOON_S)
        cause = self._drafter.cause(incoming, self._now, generation)
        try:
            entity = self._entities.working(incoming.entity_id)
        except Exception as error:
            # Its stored history cannot be applied: that is this entity's trouble and nobody else's.
            return self._fail(incoming, f"reading the entity: {type(error).__name__}: {error}")
        call = _Call(incoming, entity, cause)
        message = incoming.message
        if isinstance(message, CommandEnvelope) and (
            message.expected_version is not None or message.fencing_token is not None
        ):
            return self._unmet(call, message) or call
        return call

    def _system(self, incoming: Incoming) -> Verdict:
        """What the runtime decides itself: the fate of a dead letter."""
        cause = self._drafter.cause(incoming, self._now, 0)
        try:
            return self._settled(self._fates.decide(incoming, cause))
        except Exception as error:
            cause = self._drafter.cause(incoming, self._now, 0)
            return self._refuse_or_fail(_Call(incoming, self._entities.working(None), cause), error)

    def _known(self, incoming: Incoming) -> Verdict | None:
        """A duplicate gets the first outcome again; the same key with another payload is refused."""
        here = self._decided.get(incoming.key)
        found = self._reading.keys.get(incoming.key)
        stored: Sequence[Output] | Verdict
        if here is not None:
            first, stored = here.incoming.hash, here
        elif found is not None:
            first, stored = found[0].payload_hash, found[1]
        else:
            return None
        # A record taken over from the streams does not know what its key stood for: it takes any payload for the first.
        if first not in (b"", incoming.hash) and not self._drafter.may_stand_for(first, incoming):
            return self._mismatch(incoming)
        return Verdict(incoming, "duplicate", echo=stored)

    def _mismatch(self, incoming: Incoming) -> Verdict:
        pair = (incoming.key, incoming.hash)
        refused = self._mismatched.get(pair) or self._reading.mismatches.get(pair)
        if refused is not None:
            return Verdict(incoming, "duplicate", echo=refused)
        verdict = self._mismatched[pair] = self._asides.mismatch(incoming)
        return verdict

    def _wait_s(self, incoming: Incoming) -> float | None:
        # Sent twice and failed once: a second call would be an attempt that nobody counts.
        wait = self._failed_keys.get(incoming.key)
        if wait is not None or incoming.query:
            return wait
        wait = self._waiting.delay_s(incoming, self._now, self._passed)
        if wait is None and self._policy.hold_entity and incoming.entity_id is not None:
            wait = self._failed_here.get(incoming.entity_id)
            if wait is None and any(seq < incoming.delivery.stream_seq for seq in self._held_at(incoming)):
                wait = SOON_S
        if wait is not None:
            self._held_at(incoming).add(incoming.delivery.stream_seq)
        return wait

    def _held_at(self, incoming: Incoming) -> set[int]:
        """Which of its entity this batch sends away: whom they wait for may come back in it, behind them."""
        return self._held_here.setdefault((incoming.delivery.stream, incoming.entity_id), set())

    def _unmet(self, call: _Call, command: CommandEnvelope) -> Verdict | None:
        """The verdict on a command whose version or fence does not fit; `None` lets it run."""
        incoming = call.incoming
        try:
            told = None if incoming.query else conflict(command, incoming.entity_id, call.entity.version)
            fence = require_newest_fence(command, {**self._reading.fences, **self._fences})
        except Refused as error:
            return self._refuse(call, error)
        if told is not None:
            draft = self._drafter.event(call.cause, "conflict", told, entity_id=incoming.entity_id, kind="record")
            return self._settled(Verdict(incoming, "conflict", [draft], generation=call.cause.generation))
        if fence is not None and not incoming.query:
            self._fences[fence[0]] = max(fence[1], self._fences.get(fence[0], 0))
        return None

    # -- after the handler -------------------------------------------------------------------------------------

    def _context(self, call: _Call) -> Context:
        return Context(self._now, call.incoming.entity_id, call.entity.version)

    def _conclude(self, call: _Call, decision: object) -> Verdict:
        """Turn a decision into drafts, and the entity's state forward; all of it or, on an error, nothing."""
        incoming, cause = call.incoming, call.cause
        if not isinstance(decision, Decision):
            raise Poison(f"the handler returned {decision!r:.200}, which is no Decision", code="nonsense")
        if incoming.query:
            return self._answer(call, decision)
        drafts: list[Output] = []
        entity = call.entity
        if decision.events:
            entity = self._apply(call, decision.events, drafts)
        drafts.extend(self._drafter.command(cause, send) for send in decision.commands)
        reply = decision.reply
        if reply is not None:
            check_event_name(reply.name)
            drafts.append(self._record(call, reply.name, reply.payload, entity.version))
        elif not decision.events and isinstance(incoming.message, CommandEnvelope):
            # Every command has an answer, so that a caller learns its fate.
            drafts.append(self._record(call, "accepted", {"action": incoming.message.action}, entity.version))
        self._entities.advance(incoming.entity_id, entity)
        return self._settled(Verdict(incoming, "decided", drafts, generation=cause.generation))

    def _apply(self, call: _Call, events: Sequence[Event], drafts: list[Output]) -> Entity:
        entity_id = call.incoming.entity_id
        version, chain, state = call.entity.version, call.entity.chain, call.entity.state
        for event in events:
            check_event_name(event.name)
            if entity_id is None:
                drafts.append(self._drafter.event(call.cause, event.name, event.payload, entity_id=None))
                continue
            version += 1
            payload = {**event.payload, "entity_version": version}
            draft = self._drafter.event(
                call.cause, event.name, payload, entity_id=entity_id, version=version, chain=chain
            )
            assert draft.chain is not None
            chain = draft.chain
            state = self._applied(state, Event(event.name, payload))
            drafts.append(draft)
        return Entity(version, chain, state, call.entity.saved)

    def _applied(self, state: Any, event: Event) -> Any:
        try:
            return self._adapter.apply(state, event)
        except Refused:
            raise  # what the state says of itself would not be true of it any more
        except Exception as error:
            # An event that cannot be applied now could not be replayed either.
            raise Poison(
                f"applying event {event.name!r} failed: {type(error).__name__}: {error}", code="unappliable"
            ) from error

    def _record(self, call: _Call, name: str, payload: JsonObject, version: int) -> Output:
        entity_id = call.incoming.entity_id
        if entity_id is not None:
            payload = {**payload, "entity_version": version}
        return self._drafter.event(call.cause, name, payload, entity_id=entity_id, kind="record")

    def _answer(self, call: _Call, decision: Decision) -> Verdict:
        if decision.reply is None or decision.events or decision.commands:
            raise Poison("a query returns one Reply and nothing else", code="nonsense")
        reply = decision.reply
        check_event_name(reply.name)
        return Verdict(call.incoming, "answered", [self._record(call, reply.name, reply.payload, call.entity.version)])

    def _refuse_or_fail(self, call: _Call, error: Exception) -> Verdict:
        meaning = self._policy.classify(error)
        if meaning == "refused":
            try:
                return self._refuse(call, refusal(error))
            except Poison as unfit:
                meaning, error = "poison", unfit
        if meaning == "poison":
            if not isinstance(error, Poison):
                return self._dead(call.incoming, type(error).__name__, f"{type(error).__name__}: {error}")
            field = None if error.field is None else told(error.field)
            return self._dead(call.incoming, told(error.code), error.reason, field)
        return self._fail(call.incoming, f"{type(error).__name__}: {error}")

    def _refuse(self, call: _Call, error: Refused) -> Verdict:
        if error.name != "refused":
            check_event_name(error.name)
        payload: JsonObject = {"code": error.code, "reason": told(error.reason), "field": error.field}
        draft = self._record(call, error.name, payload, call.entity.version)
        if call.incoming.query:
            return Verdict(call.incoming, "answered", [draft])
        return self._settled(Verdict(call.incoming, "refused", [draft], generation=call.cause.generation))

    def _fail(self, incoming: Incoming, error: str) -> Verdict:
        """The handler raised. Its command waits, or is given up; its neighbours are not concerned."""
        before = self._waiting.attempt(incoming.key)
        row = failed(before, incoming, error, self._now, self._drafter.hidden)
        if self._policy.exhausted(row.attempts):
            reason = f"the handler failed {row.attempts} times; last: {error}"
            return self._dead(incoming, "attempts_exhausted", reason, row=row)
        wait = self._policy.delay_s(row.attempts, row.key)
        attempt = attrs.evolve(row, next_at=self._now + wait)
        self._failed_keys[incoming.key] = wait
        if attempt.entity_id is not None:
            self._failed_here[attempt.entity_id] = min(wait, BEHIND_S)
        return Verdict(incoming, "failed", attempt=attempt, wait_s=wait)

    # -- set aside ---------------------------------------------------------------------------------------------

    def _dead(
        self, incoming: Incoming, code: str, reason: str, field: str | None = None, row: Attempt | None = None
    ) -> Verdict:
        """`row` is that of a call which has just ended; without it the one that is being made is not counted."""
        attempts = 0 if row is None else row.attempts
        if row is None:
            row = self._waiting.attempt(incoming.key)
            attempts = 0 if row is None else row.attempts - incoming.alone
            if row is not None and incoming.alone:
                row = failed(row, incoming, reason, self._now, self._drafter.hidden)
        return self._settled(self._asides.dead(incoming, code, reason, field=field, attempts=attempts, row=row))

    def _make_room(self, verdicts: list[Verdict]) -> list[Verdict]:
        """When more would wait than may, the commands that the others wait for are given up at once."""
        more = sum(v.wait_s is not None and not self._waiting.was_parked(v.incoming) for v in verdicts)
        if not self._waiting.overfull(more):
            return verdicts
        made: list[Verdict] = []
        for verdict in verdicts:
            if verdict.outcome == "failed" and verdict.attempt is not None:
                attempt = verdict.attempt
                failure = f"the handler failed {attempt.attempts} times; last: {self._drafter.shown(attempt)}"
                reason = f"too many commands wait; {failure}"
                made.append(self._dead(verdict.incoming, "hold_full", reason, row=attempt))
                continue
            if verdict.outcome == "held":
                verdict.wait_s = SOON_S
                made.extend(self._holder_given_up(verdict.incoming))
            made.append(verdict)
        return made

    def _holder_given_up(self, waiting: Incoming) -> list[Verdict]:
        key = self._waiting.failing_key(waiting.entity_id)
        holder = None if key is None else self._waiting.message(key)
        if holder is None or holder.key in self._decided:
            return []
        return [self._dead(holder, "hold_full", "too many later commands of its entity wait for it")]

    def _passing(self, verdict: Verdict) -> Verdict:
        if verdict.wait_s is None and self._waiting.parked:
            # What waited for it to come back need not wait for the next turn.
            self._passed.add((verdict.incoming.delivery.stream, verdict.incoming.delivery.stream_seq))
        if verdict.wait_s is None and self._held_here:
            self._held_at(verdict.incoming).discard(verdict.incoming.delivery.stream_seq)
        return verdict

    def _settled(self, verdict: Verdict) -> Verdict:
        self._decided[verdict.incoming.key] = verdict
        return verdict


def _message(incoming: Incoming) -> Any:
    assert incoming.message is not None
    return incoming.message
