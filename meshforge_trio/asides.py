"""What is set aside instead of being decided by the agent: violations, mismatches, dead letters.

Each is a decision all the same: stored, published, answered, never made twice.
"""

from __future__ import annotations

from meshforge_trio.drafts import Drafter, told
from meshforge_trio.envelope import JsonObject
from meshforge_trio.intake import Incoming
from meshforge_trio.plan import Verdict
from meshforge_trio.security import Violation
from meshforge_trio.store.port import Attempt, DeadLetter

__all__ = ["Asides"]


class Asides:
    """Writes the verdicts on commands that no handler decides."""

    def __init__(self, drafter: Drafter, now: float) -> None:
        self._drafter = drafter
        self._now = now

    def violation(self, incoming: Incoming, violation: Violation) -> Verdict:
        """Told in the scope where the message arrived, without its payload."""
        cause = self._drafter.cause(incoming, self._now, 0)
        return Verdict(incoming, "violation", [self._drafter.violation(cause, incoming, violation)])

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
        generation: int,
    ) -> Verdict:
        """Stored under the key with the whole original, sent to the dead-letter stream, told to the caller.

        `attempts` are the calls of its handler, `row` what the store knows of them.
        """
        cause = self._drafter.cause(incoming, self._now, generation)
        first_at, last_at = (self._now, self._now) if row is None else (row.first_at, row.last_at)
        why: JsonObject = {
            "code": code,
            "reason": told(reason),
            "field": field,
            "attempts": attempts,
        }
        story = {**why, "first_at": first_at, "last_at": last_at, "generation": generation}
        letter = self._drafter.dead_letter(cause, incoming, story)
        answer = self._drafter.event(cause, "dead_lettered", why, entity_id=incoming.entity_id, kind="record")
        dead = DeadLetter(
            key=incoming.key,
            generation=generation,
            n=0,
            subject=incoming.delivery.subject,
            headers=incoming.delivery.headers,
            body=incoming.delivery.body,
            code=code,
            reason=told(reason),
            attempts=attempts,
            first_at=first_at,
            last_at=last_at,
        )
        return Verdict(incoming, "dead", [letter, answer], generation=generation, dead=dead)
