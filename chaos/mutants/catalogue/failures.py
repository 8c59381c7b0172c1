"""Commands that fail: attempts (R7), holds (R8), dead letters (R5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from chaos.mutants.catalogue import grounds
from chaos.mutants.mutant import Mutant, mutant
from chaos.mutants.patch import Edit

__all__ = ["MUTANTS"]

_DECIDE: Final = "meshforge_trio.decide"
_ENGINE: Final = "meshforge_trio.engine"
_PLAN: Final = "meshforge_trio.plan"
_WAITING: Final = "meshforge_trio.waiting"

_NOBODY_SUSPECTED: Final = Edit(
    _ENGINE, "            one.suspect = one.key not in reading.keys\n", "            one.suspect = False\n"
)

MUTANTS: Final[Sequence[Mutant]] = (
    mutant(
        "attempts-not-counted",
        "R7",
        "G11",
        "Counts what a handler raises, and forgets that one may take its process with it.",
        grounds.blamed,
        _NOBODY_SUSPECTED,
    ),
    mutant(
        "attempts-kept-by-the-broker",
        "R7",
        "G11",
        "Takes the broker's count of deliveries for its own, which begins anew with every session.",
        grounds.blamed,
        _NOBODY_SUSPECTED,
        Edit(
            _DECIDE,
            "        made = 0 if attempt is None else attempt.attempts - incoming.alone\n",
            "        made = incoming.delivery.num_delivered - 1\n",
        ),
        Edit(
            _DECIDE,
            "        if self._policy.exhausted(row.attempts):\n",
            "        if self._policy.exhausted(incoming.delivery.num_delivered):\n",
        ),
    ),
    mutant(
        "one-call-too-many",
        "R7",
        "G11",
        "Forgets that one call more than was counted may have happened: the first run pays nothing.",
        grounds.blamed,
        Edit(
            "meshforge_trio.policy",
            "        return attempts >= self.limit - 1\n",
            "        return attempts >= self.limit\n",
        ),
    ),
    mutant(
        "attempts-charged-to-the-held",
        "R7",
        "G11",
        "Counts an attempt for whatever is redelivered, also for what only waited: it asks neither whether it had sent "
        "the command back itself, nor whether the command may run now. Either question alone would do.",
        grounds.explosions,
        Edit(
            _ENGINE,
            "            or (one.delivery.num_delivered > 1 and not session.waiting.was_parked(one))\n",
            "            or one.delivery.num_delivered > 1\n",
        ),
        Edit(
            _ENGINE,
            "        return session.waiting.delay_s(one, self._clock.now()) is not None\n",
            "        return False\n",
        ),
    ),
    mutant(
        "dead-letter-without-key",
        "R5",
        "G5",
        "Takes a dead letter for the end of the matter and records no decision under its key.",
        grounds.held_back,
        Edit(
            _PLAN,
            "        (commit.mismatches if verdict.mismatch else commit.keys).append(record)\n",
            "        if verdict.dead is None:\n"
            "            (commit.mismatches if verdict.mismatch else commit.keys).append(record)\n",
        ),
    ),
    mutant(
        "set-aside-before-dedupe",
        "R5",
        "G12",
        "Sets a bad message aside before it asks whether that was done already: the unique key refuses it each time "
        "it comes again, and it is never ACKed.",
        grounds.killed_before_ack,
        Edit(
            _DECIDE,
            "        known = self._known(incoming)\n"
            "        if known is not None:\n"
            "            return known\n"
            "        fault = incoming.fault\n",
            "        fault = incoming.fault\n",
        ),
        Edit(
            _DECIDE,
            "        wait = self._wait_s(incoming)\n        if wait is not None:\n            return Verdict(",
            "        known = self._known(incoming)\n"
            "        if known is not None:\n"
            "            return known\n"
            "        wait = self._wait_s(incoming)\n        if wait is not None:\n            return Verdict(",
        ),
    ),
    mutant(
        "no-hold",
        "R8",
        "G13",
        "NAKs the command that failed and runs those behind it, its own entity's too.",
        grounds.held_back,
        Edit(
            _WAITING,
            "        if not self._policy.hold_entity or incoming.entity_id is None:\n",
            "        if self._policy.hold_entity or incoming.entity_id is None:\n",
        ),
    ),
    mutant(
        "held-and-acked",
        "R8",
        "G1",
        "ACKs every command of its turn, also those that failed or wait behind one.",
        grounds.held_back,
        Edit(
            _PLAN,
            "        plan.settlements.append(Settlement(incoming.delivery, verdict.wait_s))\n",
            "        plan.settlements.append(Settlement(incoming.delivery, None))\n",
        ),
    ),
    mutant(
        "hold-in-memory",
        "R8",
        "G11",
        "Keeps what failed, and how often, in memory: each new process starts to count again.",
        grounds.killed_holding,
        Edit(
            _ENGINE,
            "            waiting=Waiting(await self._rows.attempts(), ",
            "            waiting=Waiting((), ",
        ),
    ),
    mutant(
        "no-room-made",
        "R8",
        "G12",
        "Lets any number of commands wait behind a failing one, until they are all that may be in hand.",
        grounds.crowded,
        Edit(
            _WAITING,
            "        return more > 0 and self._parked_total + more > self._held_max\n",
            "        return False\n",
        ),
    ),
)
