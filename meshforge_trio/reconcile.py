"""Store and streams side by side, for when the runtime refuses to start, and what makes them agree again.

`compare` reads all of both and changes nothing. `Reconciler` does under the lease of the scope what was decided:

* what the streams lost is published again, where they are known to belong to the store;
* with "store" what they lack is published whatever they say: the store is right;
* with "stream" what the store does not know is taken over into it (`takeover`): the stream is right.

Each step can be killed and run again: what is published is read back first, what is taken over is committed decision
by decision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal

import attrs

from meshforge_trio.broker.jetstream import JetStreamEventBus
from meshforge_trio.broker.port import Broker, StoredMessage, StreamFacts
from meshforge_trio.clock import Clock
from meshforge_trio.codec import ScopeSealer
from meshforge_trio.comparison import Gaps, regions
from meshforge_trio.drafts import as_message
from meshforge_trio.errors import Fenced, MeshForgeError, Misconfigured
from meshforge_trio.points import no_probe
from meshforge_trio.recovery import StoredRows, confirmed_mark
from meshforge_trio.store.port import Commit, EventStore, Lease, Mark, Output, ScopeStore
from meshforge_trio.subjects import EVENTS, FAILED, Scope, event_filter, violation_subject
from meshforge_trio.takeover import belongs, takeover

__all__ = ["Comparison", "Done", "InUse", "Need", "Reconciler", "Right", "Side", "compare"]

_PAGE: Final = 256

#: Which side is right, if the streams do not say that they belong to the store.
Right = Literal["store", "stream"]
#: What a scope needs: nothing; a mark; what the streams lost; a decision which side is right.
Need = Literal["nothing", "mark", "refill", "decision"]

#: Called with what is being done, how much of it is done, and how much there is.
Progress = Callable[[str, int, int], None]


class InUse(MeshForgeError):
    """A process serves the scope: nothing may be changed beside it."""


@attrs.define
class Side:
    """One stream against the store.

    `held` is the sequence of each Msg-Id of the store that the stream holds, `expired`, `purged` and `missing` the
    numbers of outputs that it does not hold, `unknown` its messages of the scope that the store does not know,
    `copies` the sequences of messages that it holds a second time.
    """

    facts: StreamFacts
    stored: int = 0
    held: dict[str, int] = attrs.field(factory=dict)
    expired: Sequence[int] = ()
    purged: Sequence[int] = ()
    missing: Sequence[int] = ()
    unknown: list[StoredMessage] = attrs.field(factory=list)
    copies: list[int] = attrs.field(factory=list)


@attrs.define
class Comparison:
    """Store and streams of one scope.

    `confirmed` is the newest mark that the streams confirm, `newest` of all; `last_held` the highest number of an
    output that a stream holds.
    """

    scope: Scope
    outputs: int
    commands: int
    events: Side
    failed: Side
    newest: Mark | None
    confirmed: Mark | None
    last_held: int = 0

    @property
    def sides(self) -> Sequence[Side]:
        """The event stream and the dead-letter stream."""
        return (self.events, self.failed)

    @property
    def missing(self) -> Sequence[int]:
        """Numbers of outputs that were lost, or never published."""
        return sorted([*self.events.missing, *self.failed.missing])

    @property
    def need(self) -> Need:
        """What makes store and streams agree."""
        if any(side.unknown for side in self.sides):
            return "decision"
        unconfirmed = self.confirmed is None and self.outputs > 0
        if self.missing:
            return "decision" if unconfirmed else "refill"
        return "mark" if unconfirmed else "nothing"


async def compare(broker: Broker, rows: StoredRows, *, restarted: bool) -> Comparison:
    """Read the store's outputs of a scope and both streams, all of them.

    `restarted`: the server has, since the scope was last served.

    Raises:
        SessionLost: the broker failed.
    """
    scope = rows.scope
    events, failed = await _facts(broker, EVENTS), await _facts(broker, FAILED)
    numbers: dict[str, int] = {}
    lists: dict[str, list[tuple[int, str]]] = {EVENTS: [], FAILED: [], "": []}
    n = 0
    while page := await rows.outputs_after(n, _PAGE):
        for output in page:
            numbers[output.msg_id] = output.n
            lists[{"dead": FAILED, "command": ""}.get(output.kind, EVENTS)].append((output.n, output.msg_id))
        n = page[-1].n
    marks = await rows.marks()
    confirmed = await confirmed_mark(broker, rows, marks, events, failed, restarted=restarted) if marks else None
    found = Comparison(scope, n, len(lists[""]), Side(events), Side(failed), marks[0] if marks else None, confirmed)
    of_workspace = (scope.tenant, scope.workspace)
    await _sort(broker, found.events, event_filter(scope), numbers, scope)
    await _sort(broker, found.events, violation_subject(*of_workspace), numbers, scope)
    await _sort(broker, found.failed, f"failed.*.{scope.tenant}.{scope.workspace}.>", numbers, scope)
    found.events.unknown.sort(key=lambda message: message.seq)
    found.last_held = max((numbers[msg_id] for side in found.sides for msg_id in side.held), default=0)
    # Where the message of a mark has expired, so has what was published before.
    floor = next((mark for mark in marks if mark.event_seq < events.first_seq), None) if confirmed is not None else None
    for side, stream in ((found.events, EVENTS), (found.failed, FAILED)):
        gaps = Gaps(broker, side.facts, restarted=restarted)
        await _judge(side, lists[stream], floor, confirmed, gaps)
    return found


async def _facts(broker: Broker, stream: str) -> StreamFacts:
    """One that does not exist is empty."""
    try:
        return await broker.stream_facts(stream)
    except Misconfigured:
        return StreamFacts(stream, 1, 0, 0, 0.0, -1)


async def _sort(broker: Broker, side: Side, subject: str, numbers: Mapping[str, int], scope: Scope) -> None:
    """Tell the store's own messages from second copies and from unknown ones of the scope."""
    if not side.facts.messages:
        return
    seq = side.facts.first_seq
    while page := await broker.read_back(side.facts.name, subject, seq, _PAGE):
        for message in page:
            if message.msg_id in side.held:
                side.copies.append(message.seq)
            elif message.msg_id in numbers:
                side.held[message.msg_id] = message.seq
            elif belongs(message, scope):
                side.unknown.append(message)
        seq = page[-1].seq + 1


async def _judge(
    side: Side, outputs: Sequence[tuple[int, str]], floor: Mark | None, confirmed: Mark | None, gaps: Gaps
) -> None:
    """Why the stream lacks what it lacks."""
    side.stored = len(outputs)
    absent = [n for n, msg_id in outputs if msg_id not in side.held]
    if confirmed is None:
        side.missing = absent
        return
    dead = side.facts.name == FAILED
    low, above = (0, 0) if floor is None else (floor.n, floor.failed_seq if dead else floor.event_seq)
    below = (confirmed.failed_seq if dead else confirmed.event_seq) + 1
    side.expired = [n for n in absent if n <= low] if above < side.facts.first_seq else []
    purged: list[int] = []
    told = [(n, msg_id) for n, msg_id in outputs if low < n <= confirmed.n]
    for region in regions(told, side.held, above, below):
        if await gaps.given_up(region):
            purged += region.missing
    side.purged = sorted(purged)
    given_up = {*side.expired, *side.purged}
    side.missing = [n for n in absent if n not in given_up]


@attrs.define
class Done:
    """What was done for a scope. `remembered` were refused: the server still knows the ids of what it lost."""

    taken_over: int = 0
    published: int = 0
    commands: int = 0
    remembered: int = 0
    mark: Mark | None = None


class Reconciler:
    """Makes store and streams of one scope agree, as its active engine for that time.

    The caller keeps the term of the store alive meanwhile.
    """

    def __init__(
        self,
        store: EventStore,
        broker: Broker,
        scope: Scope,
        clock: Clock,
        progress: Progress = lambda what, done, total: None,
        sealer: ScopeSealer | None = None,
    ) -> None:
        """`sealer` opens the payloads of what is taken over from the streams."""
        self._sealer = sealer
        self._store = store
        self._broker = broker
        self._rows: ScopeStore = store.scope(scope)
        self._clock = clock
        self._progress = progress
        self._lease: Lease | None = None

    @property
    def _term(self) -> Lease:
        if self._lease is None:
            raise Fenced(f"{self._rows.scope}: the lease was not taken")
        return self._lease

    async def begin(self) -> Comparison:
        """Take the lease, and compare.

        Raises:
            InUse: a process serves the scope.
        """
        lease = await self._rows.take_lease(self._broker.facts.server_id)
        if lease is None:
            raise InUse(f"{self._rows.scope} is being served: stop its workers first; nothing was changed")
        self._lease = lease
        return await self._compared()

    async def _compared(self) -> Comparison:
        restarted = self._term.server_id != self._broker.facts.server_id
        return await compare(self._broker, self._rows, restarted=restarted)

    async def act(self, found: Comparison, right: Right | None) -> Done:
        """Do what `found` needs, or what follows from the side that is right, and write a mark.

        Raises:
            Misconfigured: what the stream holds cannot be taken over.
            Fenced, SessionLost, StoreFull, StoreBroken: what was done until then stays done, and the next run goes on.
        """
        done = Done()
        if right == "stream" and any(side.unknown for side in found.sides):
            done.taken_over = await takeover(self._rows, found, self._term.epoch, self._progress, self._sealer)
            found = await self._compared()
        if right != "stream" or found.confirmed is not None:
            await self._publish(found, done, right)
        if not done.remembered:
            done.mark = await self._mark(found)
            await self._rows.commit(Commit(self._term.epoch, mark=done.mark), no_probe)
        return done

    async def end(self) -> None:
        """End the term as clean as it was found: who died with what in hand is for the next engine to know."""
        lease, self._lease = self._term, None
        if lease.clean:
            await self._rows.commit(Commit(lease.epoch, clean=True), no_probe)
        else:
            await self._rows.take_lease(lease.server_id)

    async def _publish(self, found: Comparison, done: Done, right: Right | None) -> None:
        wanted = set(found.missing)
        if right == "store":
            wanted.update(found.events.purged, found.failed.purged)
        # No stream tells what became of commands to others. A server that still holds an output has not gone back
        # behind it; those numbered above the last such one are sent again, and their receivers know them by their keys.
        sides = {EVENTS: found.events, FAILED: found.failed}
        n = min([*wanted, found.last_held + 1]) - 1
        bus = JetStreamEventBus(self._broker)
        while page := await self._rows.outputs_after(n, _PAGE):
            n = page[-1].n
            burst = [o for o in page if o.n in wanted or (o.kind == "command" and o.n > found.last_held)]
            if not self._store.lease_valid():
                raise Fenced(f"{self._rows.scope}: the lease ran out; run it again")
            acks = await bus.publish([as_message(output) for output in burst])
            for output, ack in zip(burst, acks, strict=True):
                if output.kind == "command":
                    done.commands += 1
                elif ack.duplicate and not await self._holds(ack.stream, ack.seq, output):
                    done.remembered += 1
                else:
                    sides[ack.stream].held[output.msg_id] = ack.seq
                    done.published += 1
            self._progress("published", n, found.outputs)

    async def _holds(self, stream: str, seq: int, output: Output) -> bool:
        found = await self._broker.read_back(stream, ">", seq, 1)
        return bool(found) and found[0].seq == seq and found[0].msg_id == output.msg_id

    async def _mark(self, found: Comparison) -> Mark:
        """Everything is published: named by the highest message of each stream that is the scope's."""
        places = []
        for side in found.sides:
            known = [(seq, msg_id) for msg_id, seq in side.held.items()]
            known += [(message.seq, message.msg_id) for message in side.unknown]
            places.append(max(known) if known else await self._last(side.facts))
        (event_seq, event_id), (failed_seq, failed_id) = places
        n = found.outputs
        return Mark(n, event_seq, event_id, failed_seq, failed_id, self._clock.now())

    async def _last(self, facts: StreamFacts) -> tuple[int, str]:
        """The last message of a stream in which the scope has none; where it was deleted, where nothing was yet."""
        found = await self._broker.read_back(facts.name, ">", facts.last_seq, 1) if facts.messages else ()
        if found:
            return found[0].seq, found[0].msg_id
        return (0, "") if facts.messages else (facts.last_seq, "")
