"""Marks and reading back (R3), and no publish that may be a second one (R6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from chaos.mutants.catalogue import grounds
from chaos.mutants.mutant import Mutant, mutant
from chaos.mutants.patch import Edit

__all__ = ["MUTANTS"]

_RECOVERY: Final = "meshforge_trio.recovery"
_SESSION: Final = "meshforge_trio.session"

_UNBOUNDED: Final = Edit(
    _SESSION,
    "for output in outputs], min(left, self.settings.publish_timeout_s)\n",
    "for output in outputs], self.settings.publish_timeout_s\n",
)

#: What is compared below the newest mark finds what a mark too far on would hide.
_NOTHING_BELOW: Final = Edit(
    _RECOVERY,
    "    broker, mark = session.broker, session.mark\n    if session.lease.clean",
    "    broker, mark = session.broker, session.mark\n    if session.lease.epoch or session.lease.clean",
)

MUTANTS: Final[Sequence[Mutant]] = (
    mutant(
        "newest-mark-trusted",
        "R3",
        "G4",
        "Takes the newest mark for true without asking the stream whether it still holds what the mark names. What is "
        "compared below a mark must be overlooked for it: that finds what such a mark would hide.",
        grounds.copied_and_rolled_back,
        Edit(_RECOVERY, "    for mark in marks:\n", "    for mark in marks:\n        return mark\n"),
        _NOTHING_BELOW,
    ),
    mutant(
        "one-mark-kept",
        "R3",
        "G12",
        "Keeps one mark and overwrites it, so that after a deep rollback none is left that the stream confirms.",
        grounds.copied_and_rolled_back,
        Edit("meshforge_trio.store.rows", "    row = (newest or base) + 1\n", "    row = base + 1\n"),
        Edit(
            "meshforge_trio.store.rows",
            '        "INSERT INTO marks VALUES (?, ?, ?, ?, ?, ?, ?)",\n',
            '        "INSERT OR REPLACE INTO marks VALUES (?, ?, ?, ?, ?, ?, ?)",\n',
        ),
    ),
    mutant(
        "mark-before-puback",
        "R3",
        "G4",
        "Moves the mark when it hands the outputs to the socket: the next commit says that they are published. What is "
        "compared below a mark must be overlooked for it.",
        grounds.lost_publish,
        _NOTHING_BELOW,
        Edit(
            "meshforge_trio.protocol",
            "        at(BEFORE_PUBLISH)\n",
            "        at(BEFORE_PUBLISH)\n        session.published(plan)\n",
        ),
        Edit(
            "meshforge_trio.protocol",
            "            at(IN_PUBLISH)\n        session.published(plan)\n",
            "            at(IN_PUBLISH)\n",
        ),
        Edit(
            _SESSION,
            "            self.mark = moved(self.mark, plan.commit.outputs, self._acks, self.clock.now())\n",
            "            self.mark = attrs.evolve(self.mark, n=plan.commit.outputs[-1].n)\n",
        ),
    ),
    mutant(
        "no-read-back-of-events",
        "R3",
        "G4",
        "Publishes again whatever lies above the mark, and leaves it to the stream to know the Msg-Ids.",
        grounds.down_beyond_the_window,
        Edit(
            _RECOVERY,
            "    stored = {message.msg_id: message.seq for message in own}\n",
            "    stored: dict[str, int] = {}\n",
        ),
    ),
    mutant(
        "no-read-back-of-dead-letters",
        "R3",
        "G11",
        "Reads back the events and forgets that dead letters have a stream of their own.",
        grounds.set_aside_beyond_the_window,
        Edit(
            _RECOVERY,
            "    in_failed = {message.msg_id: message.seq for message in dead}\n",
            "    in_failed: dict[str, int] = {}\n",
        ),
    ),
    mutant(
        "retry-beyond-the-window",
        "R6",
        "G4",
        "Sends a publish again when its PubAck stays away, however long that took.",
        grounds.lost_puback,
        Edit(
            _SESSION,
            "        acks = await self.broker.publish(\n"
            "            [self._signed(as_message(output)) for output in outputs], min(left, "
            "self.settings.publish_timeout_s)\n"
            "        )\n",
            "        messages = [as_message(output) for output in outputs]\n"
            "        try:\n"
            "            acks = await self.broker.publish(messages, self.settings.publish_timeout_s)\n"
            "        except SessionLost:\n"
            "            acks = await self.broker.publish(messages, self.settings.publish_timeout_s)\n",
        ),
    ),
    mutant(
        "publish-however-late",
        "R6",
        "G4",
        "Goes on publishing after a long suspension, when a successor has done so and the stream has forgotten. Both "
        "the lease and the clock must be overlooked for it: each of the two ends the zombie's session by itself.",
        grounds.stopped_before_publish,
        Edit(_SESSION, "        if left <= 0:\n", "        if left < -3600:\n"),
        _UNBOUNDED,
        Edit(_SESSION, "        if not self.store.lease_valid():\n", "        if self.lease.epoch < 1:\n"),
    ),
)
