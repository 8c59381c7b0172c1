"""Events of a workspace as an iterator: in stream order, without gap or repeat, over any number of connections.

The stream sequence is the position, and every event is read back from the stream. A core subscription only says when
it is worth reading. So what is echoed to core subscribers but not stored never shows, a lost connection costs nothing
but a new subscription, and a slow reader holds one page in memory: no consumer on the server to lose, recreate or
leave behind. The price is one request per page, and every event crossing the wire twice.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from itertools import islice
from typing import Final

import structlog
import trio

from meshforge_trio.broker.port import StoredMessage
from meshforge_trio.codec import Sealer
from meshforge_trio.envelope import EventEnvelope, decode_event
from meshforge_trio.errors import Poison, SessionLost
from meshforge_trio.subjects import EVENTS
from meshforge_trio.uplink import Uplink, Wire

__all__ = ["EventFeed", "SeenIds"]

_PAGE: Final = 256
_REMEMBERED: Final = 65_536
_ROUND_TRIP_S: Final = 5.0
# A core subscriber may hear of an event just before the stream can be asked for it, so a wake-up is followed by
# further looks, which become rarer until they come once a second.
_LOOK_FIRST_S: Final = 0.002
_LOOK_MAX_S: Final = 1.0
_AGAIN_S: Final = 0.05

_log = structlog.get_logger("meshforge.client")


class SeenIds:
    """The last `capacity` Msg-Ids with the sequences they were seen at."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._seqs: OrderedDict[str, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._seqs)

    def add(self, msg_id: str, seq: int) -> bool:
        """Remember; return whether it is new."""
        new = msg_id not in self._seqs
        self._seqs[msg_id] = seq
        self._seqs.move_to_end(msg_id)
        if len(self._seqs) > self._capacity:
            self._seqs.popitem(last=False)
        return new

    def recent(self, count: int) -> list[tuple[str, int]]:
        """The last `count` that were added, with their sequences, in that order."""
        return list(islice(reversed(self._seqs.items()), count))[::-1]

    @property
    def oldest_seq(self) -> int:
        """The lowest of the remembered sequences; 0 when there is none."""
        return min(self._seqs.values(), default=0)


class EventFeed:
    """Made by `MeshClient.events`; one task iterates over it.

    What cannot be opened comes as it is: `codec.is_sealed(event.payload)` tells.

    Waits for the next event as long as it takes, over lost connections too: the caller sets a deadline if it has one.
    """

    def __init__(
        self,
        uplink: Uplink,
        tenant: str,
        workspace: str,
        subject: str,
        after_seq: int,
        sealer: Sealer | None = None,
    ) -> None:
        self._uplink = uplink
        self._sealer = sealer
        self._owner = (tenant, workspace)
        self._subject = subject
        #: Stream sequence of the last event given out: `events(after_seq=...)` goes on from there.
        self.last_seq = after_seq
        self._next_seq = after_seq + 1
        self._page: deque[StoredMessage] = deque()
        self._seen = SeenIds(_REMEMBERED)
        self._wire: Wire | None = None
        self._sid = 0
        self._forget_wire: Callable[[], None] | None = None
        self._in_place = False
        self._woken = trio.Event()
        self._look_s = _LOOK_FIRST_S

    def __aiter__(self) -> EventFeed:
        return self

    async def __anext__(self) -> EventEnvelope:
        """The next event.

        Raises:
            trio.ClosedResourceError: the client was closed.
            Misconfigured: the event stream is gone, or the keys of the tenant cannot be read.
        """
        await trio.lowlevel.checkpoint()
        while True:
            while self._page:
                event = self._read(self._page.popleft())
                if event is not None:
                    return event
            try:
                await self._turn_page()
            except SessionLost as lost:
                _log.info("feed_interrupted", subject=self._subject, reason=str(lost))
                await trio.sleep(_AGAIN_S)

    def close(self) -> None:
        """Give the subscription up."""
        if self._wire is not None and self._forget_wire is not None:
            self._forget_wire()
            self._wire.connection.unsubscribe(self._sid)

    def _read(self, stored: StoredMessage) -> EventEnvelope | None:
        """The event, unless it was given out before or is none of ours."""
        self.last_seq = stored.seq
        if stored.msg_id and not self._seen.add(stored.msg_id, stored.seq):
            return None
        try:
            event = decode_event(stored.body)
        except Poison as error:
            _log.warning("event_unreadable", subject=stored.subject, seq=stored.seq, reason=error.reason)
            return None
        if (event.tenant, event.workspace) != self._owner:
            _log.warning("event_of_another_workspace", subject=stored.subject, seq=stored.seq)
            return None
        return event if self._sealer is None else self._sealer.shown(event)

    async def _turn_page(self) -> None:
        wire = await self._uplink.wire()
        await self._settle_on(wire)
        self._page.extend(await wire.broker.read_back(EVENTS, self._subject, self._next_seq, _PAGE))
        if self._page:
            self._next_seq = self._page[-1].seq + 1
            self._look_s = _LOOK_FIRST_S
            return
        with trio.move_on_after(self._look_s):
            await self._woken.wait()
        self._look_s = _LOOK_FIRST_S if self._woken.is_set() else min(self._look_s * 2, _LOOK_MAX_S)
        self._woken = trio.Event()

    async def _settle_on(self, wire: Wire) -> None:
        """Subscribe on a new wire, and find the place again: a broker that lost its memory has reused sequences."""
        if wire is not self._wire:
            self._wire, self._in_place = wire, False
            self._sid = wire.connection.subscribe(self._subject, self._on_event)
            self._forget_wire = wire.connection.on_lost(self._wake)
        if self._in_place:
            return
        await wire.connection.round_trip(_ROUND_TRIP_S)
        self._next_seq = self.last_seq + 1
        recent = self._seen.recent(_PAGE)
        if recent:
            held = await wire.broker.read_back(EVENTS, self._subject, recent[0][1], len(recent))
            if [(stored.msg_id, stored.seq) for stored in held] != recent:
                # It has gone back in time, or the events have expired: read again what is remembered, and drop it.
                self._next_seq = self._seen.oldest_seq
        self._in_place = True

    def _on_event(self, _subject: bytes, _reply: bytes, _headers: bytes | None, _body: bytes) -> None:
        self._wake()

    def _wake(self) -> None:
        self._woken.set()
