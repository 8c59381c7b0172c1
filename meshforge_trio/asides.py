"""What is set aside instead of being decided by the agent: violations, mismatches, dead letters.

Each is a decision all the same: stored, published, answered, never made twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import attrs

from meshforge_trio.drafts import Drafter, told
from meshforge_trio.envelope import JsonObject
from meshforge_trio.errors import Erased
from meshforge_trio.intake import Incoming
from meshforge_trio.plan import Verdict
from meshforge_trio.security import Violation
from meshforge_trio.store.port import Attempt, DeadLetter

__all__ = ["DIED", "Asides", "called", "failed"]

#: What is told of a call that came to no end.
DIED: Final = "its process died"
#: How many calls of a handler a row keeps, and how much of each error.
_CALLS_MAX: Final = 32
_CALL_ERROR_MAX: Final = 500


def called(before: Attempt | None, incoming: Incoming, now: float) -> Attempt:
    """The row of a command whose handler is about to be called. It says so of a process that dies in the call."""
    return Attempt(
        key=incoming.key,
        # A query that fails keeps nobody waiting.
        entity_id=None if incoming.query else incoming.entity_id,
        attempts=1 if before is None else before.attempts + 1,
        next_at=0.0,
        first_at=now if before is None else before.first_at,
        last_at=now,
        error="" if before is None else before.error,
        calls=(*(() if before is None else before.calls), (now, ""))[-_CALLS_MAX:],
    )


def failed(
    before: Attempt | None, incoming: Incoming, error: str, now: float, hidden: Callable[[str, str], str]
) -> Attempt:
    """The row of a command whose handler raised; the call is in it already if it ran alone.

    `hidden` makes of a key and what is told under it what may rest: see `Drafter.hidden`.
    """
    row = before if before is not None and incoming.alone else called(before, incoming, now)
    at = row.calls[-1][0] if row.calls else now
    text, key = told(error), incoming.key
    calls = (*row.calls[:-1], (at, hidden(key, text[:_CALL_ERROR_MAX])))
    return attrs.evolve(row, last_at=now, error=hidden(key, text), calls=calls)


class Asides:
    """Writes the verdicts on commands that no handler decides."""

    def __init__(self, drafter: Drafter, now: float, generations: Mapping[str, int]) -> None:
        """`generations` is how often keys were redriven; absent means never."""
        self._drafter = drafter
        self._now = now
        self._generations = generations

    def violation(self, incoming: Incoming, violation: Violation) -> Verdict:
        """Told in the scope where the message arrived, without its payload."""
        cause = self._drafter.cause(incoming, self._now, 0)
        return Verdict(incoming, "violation", [self._drafter.violation(cause, incoming, violation)])

    def erased(self, incoming: Incoming, why: Erased) -> Verdict:
        """Nothing of the tenant can be read any more: refused in words of the runtime alone, which nobody seals."""
        generation = self._generations.get(incoming.key, 0)
        cause = self._drafter.cause(incoming, self._now, generation)
        payload: JsonObject = {"code": why.code, "reason": why.reason, "field": why.field}
        refused = self._drafter.event(cause, "refused", payload, entity_id=incoming.entity_id, kind="record", bare=True)
        return Verdict(incoming, "answered" if incoming.query else "refused", [refused], generation=generation)

    def mismatch(self, incoming: Incoming) -> Verdict:
        """The key was used for something else: refused, while the first outcome stands."""
        cause = self._drafter.cause(incoming, self._now, 0)
        # Its ids must differ from the first outcome's, so the payload hash goes into them.
        cause.salt = incoming.hash.hex()
        cause.stem = f"{cause.stem}_{cause.salt[:16]}"
        payload: JsonObject = {
            "code": "idempotency_mismatch",
            "reason": "this idempotency_key was used with another action, entity, version or payload",
            "field": "idempotency_key",
        }
        refused = self._drafter.event(cause, "refused", payload, entity_id=incoming.entity_id, kind="record")
        return Verdict(incoming, "refused", [refused], mismatch=True)

    def dead(
        self,
        incoming: Incoming,
        code: str,
        reason: str,
        *,
        field: str | None,
        attempts: int,
        row: Attempt | None,
    ) -> Verdict:
        """Stored under the key with the whole original, sent to the dead-letter stream, told to the caller.

        `attempts` are the calls of its handler, `row` what the store knows of them.
        """
        generation = self._generations.get(incoming.key, 0)
        cause = self._drafter.cause(incoming, self._now, generation)
        first_at, last_at = (self._now, self._now) if row is None else (row.first_at, row.last_at)
        why: JsonObject = {
            "code": code,
            "reason": told(reason),
            "field": field,
            "attempts": attempts,
        }
        calls = () if row is None else row.calls
        hidden = self._drafter.hidden(incoming.key, told(reason))
        story = {
            **why,
            "reason": hidden,
            "first_at": first_at,
            "last_at": last_at,
            "calls": [{"at": at, "error": error or DIED} for at, error in calls],
            "generation": generation,
        }
        letter = self._drafter.dead_letter(cause, incoming, story)
        answer = self._drafter.event(cause, "dead_lettered", why, entity_id=incoming.entity_id, kind="record")
        dead = DeadLetter(
            key=incoming.key,
            generation=generation,
            n=0,
            subject=incoming.delivery.subject,
            headers=incoming.delivery.headers,
            body=self._drafter.original(incoming),
            code=code,
            reason=hidden,
            attempts=attempts,
            first_at=first_at,
            last_at=last_at,
            entity_id=incoming.entity_id,
            trace_id=cause.trace_id,
            calls=calls,
        )
        return Verdict(incoming, "dead", [letter, answer], generation=generation, dead=dead)
