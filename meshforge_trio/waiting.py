"""What waits: commands whose handler failed, and the later commands of their entities behind them.

Which command failed, how often and until when lies in the store (rule R8), so a hold outlives the process. What is
only here is `parked`: the stream sequences that were NAKed in this session. A NAKed message may come back behind a
later one, and whoever arrives while an earlier one of its entity is parked goes back too. The next session's reset
brings everything again in stream order, so `parked` starts empty.
"""

from __future__ import annotations

from collections.abc import Container, Iterable

import attrs

from meshforge_trio.intake import Incoming
from meshforge_trio.policy import RetryPolicy
from meshforge_trio.store.port import Attempt

__all__ = ["BEHIND_S", "SOON_S", "Waiting"]

#: How soon to look again for a message that only waits for another one to come back first.
SOON_S = 0.1
#: How long at most to send a command away that waits behind a failing one: should that be given up, nobody can call
#: back what was sent away for longer, and it would keep room in the consumer meanwhile.
BEHIND_S = 1.0


class Waiting:
    """The failing commands of a scope and everything NAKed because of them."""

    def __init__(self, attempts: Iterable[Attempt], policy: RetryPolicy, held_max: int) -> None:
        self._policy = policy
        self._held_max = held_max
        self._failing: dict[str, Attempt] = {}
        self._key_of_entity: dict[str, str] = {}
        self._message: dict[str, Incoming] = {}
        self._parked: dict[tuple[str, str | None], set[int]] = {}
        self._parked_total = 0
        for attempt in attempts:
            self.fail(self._as_ended(attempt), None)

    def _as_ended(self, attempt: Attempt) -> Attempt:
        """An attempt whose process died in the call failed like any other: it waits, and its neighbours come first."""
        if attempt.next_at or self._policy.exhausted(attempt.attempts):
            return attempt
        wait = self._policy.delay_s(attempt.attempts, attempt.key)
        return attrs.evolve(attempt, next_at=attempt.last_at + wait)

    @property
    def parked(self) -> int:
        """How many deliveries are NAKed and not back yet."""
        return self._parked_total

    def overfull(self, more: int) -> bool:
        """Whether with `more` waiting there would be too many: what is held never fills `max_ack_pending`."""
        return more > 0 and self._parked_total + more > self._held_max

    def attempt(self, key: str) -> Attempt | None:
        """The attempt row of a key."""
        return self._failing.get(key)

    def fail(self, attempt: Attempt, incoming: Incoming | None) -> None:
        """A handler failed, or is about to be called alone; the row is committed."""
        self._failing[attempt.key] = attempt
        if attempt.entity_id is not None:
            self._key_of_entity.setdefault(attempt.entity_id, attempt.key)
        if incoming is not None:
            self._remember(incoming)

    def _remember(self, incoming: Incoming) -> None:
        """This is the failing command, unless an earlier one of the same key is."""
        known = self._message.get(incoming.key)
        here = incoming.delivery
        if known is None or known.delivery.stream != here.stream or here.stream_seq <= known.delivery.stream_seq:
            self._message[incoming.key] = incoming

    def end(self, key: str) -> None:
        """The command is decided: nobody waits for it any more."""
        attempt = self._failing.pop(key, None)
        self._message.pop(key, None)
        if attempt is None or attempt.entity_id is None or self._key_of_entity.get(attempt.entity_id) != key:
            return
        del self._key_of_entity[attempt.entity_id]
        # Where `skip` was in force before, several commands of an entity may be failing.
        for other in self._failing.values():
            if other.entity_id == attempt.entity_id:
                self._key_of_entity[attempt.entity_id] = other.key
                return

    def message(self, key: str) -> Incoming | None:
        """The delivery of a failing command, if it came in this session."""
        return self._message.get(key)

    def failing_key(self, entity_id: str | None) -> str | None:
        """Which command an entity is held for."""
        return None if entity_id is None else self._key_of_entity.get(entity_id)

    def delay_s(self, incoming: Incoming, now: float, passed: Container[tuple[str, int]] = ()) -> float | None:
        """How long this delivery must still wait; `None` lets it run.

        `passed` are (stream, sequence) that this turn has decided: parked still, and not to be waited for.
        """
        own = self._failing.get(incoming.key)
        if own is not None and own.next_at > now:
            return own.next_at - now
        if not self._policy.hold_entity or incoming.entity_id is None:
            return None
        holder = self._key_of_entity.get(incoming.entity_id)
        stream, here = incoming.delivery.stream, incoming.delivery.stream_seq
        if holder == incoming.key:
            # Whoever is parked waits for it, also those before it in the stream: a redrive has freed their key again.
            # It is the first that was sent under the key; another may use the same one, and say something else.
            first = self._message.get(incoming.key)
            later = first is not None and first.delivery.stream == stream and first.delivery.stream_seq < here
            return SOON_S if later else None
        if holder is not None:
            return min(max(self._failing[holder].next_at - now, SOON_S), BEHIND_S)
        earlier = self._parked.get((stream, incoming.entity_id))
        if earlier and any(seq < here and (stream, seq) not in passed for seq in earlier):
            return SOON_S
        return None

    def was_parked(self, incoming: Incoming) -> bool:
        """Whether this session NAKed it without a call of its handler having died."""
        return incoming.delivery.stream_seq in self._parked.get((incoming.delivery.stream, incoming.entity_id), ())

    def park(self, incoming: Incoming) -> None:
        """It was NAKed."""
        if incoming.key in self._failing:
            # After a restart this is the first that is seen of it.
            self._remember(incoming)
        sequences = self._parked.setdefault((incoming.delivery.stream, incoming.entity_id), set())
        self._parked_total += incoming.delivery.stream_seq not in sequences
        sequences.add(incoming.delivery.stream_seq)

    def unpark(self, incoming: Incoming) -> None:
        """It was ACKed."""
        if not self._parked:
            return
        place = (incoming.delivery.stream, incoming.entity_id)
        sequences = self._parked.get(place)
        if sequences is None or incoming.delivery.stream_seq not in sequences:
            return
        sequences.discard(incoming.delivery.stream_seq)
        self._parked_total -= 1
        if not sequences:
            del self._parked[place]
