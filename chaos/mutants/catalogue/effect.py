"""The order of the steps, the one transaction, the key: what `protocol.turn` lives by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from chaos.mutants.catalogue import grounds
from chaos.mutants.mutant import Mutant, mutant
from chaos.mutants.patch import Edit

__all__ = ["MUTANTS"]

_PROTOCOL: Final = "meshforge_trio.protocol"
_STORE: Final = "meshforge_trio.store.sqlite"
_ROWS: Final = "meshforge_trio.store.rows"

_ONE_COMMIT: Final = """\
                rows.write(connection, number, commit)
                if commit.clean:
                    rows.end_cleanly(connection, number)
                at(IN_STORE)
"""
_TWO_COMMITS: Final = """\
                keys, commit.keys = commit.keys, []
                rows.write(connection, number, commit)
                if commit.clean:
                    rows.end_cleanly(connection, number)
                connection.execute("COMMIT")
                at(IN_STORE)
                connection.execute("BEGIN IMMEDIATE")
                rows.write(connection, number, Commit(commit.epoch, keys=keys))
                commit.keys = keys
"""
_KEYS_REPLACED: Final = Edit(
    _ROWS,
    '        insert(connection, f"keys(scope, {_KEY})", keys)\n',
    "        newest_wins = (\n"
    '            " ON CONFLICT(scope, key) DO UPDATE SET payload_hash = excluded.payload_hash,"\n'
    '            " outcome = excluded.outcome, first_n = excluded.first_n, last_n = excluded.last_n"\n'
    "        )\n"
    '        insert(connection, f"keys(scope, {_KEY})", keys, newest_wins)\n',
)

MUTANTS: Final[Sequence[Mutant]] = (
    mutant(
        "ack-before-store",
        "",
        "G1",
        "ACKs as soon as it has decided: a crash before the commit takes the command with it.",
        grounds.killed_before_store,
        Edit(
            _PROTOCOL,
            "        at(BEFORE_STORE)\n        try:\n",
            "        session.settle(plan)\n        at(BEFORE_STORE)\n        try:\n",
        ),
    ),
    mutant(
        "publish-before-store",
        "",
        "G3",
        "Publishes first and commits afterwards: a crash in between leaves an event that nobody decided.",
        grounds.killed_before_store,
        Edit(
            _PROTOCOL,
            "        at(BEFORE_STORE)\n        try:\n",
            "        await session.publish_until(\n"
            "            plan.commit.outputs, session.clock.elapsed() + session.publish_within_s\n"
            "        )\n"
            "        at(BEFORE_STORE)\n        try:\n",
        ),
    ),
    mutant(
        "two-commits",
        "",
        "G5",
        "Commits events and outbox first and the key record after them: a crash in between parts them for ever.",
        grounds.killed_in_store,
        Edit(_STORE, _ONE_COMMIT, _TWO_COMMITS),
    ),
    mutant(
        "swallowed-disk-full",
        "",
        "G1",
        "Takes a full disk for something to be logged, goes on, publishes and ACKs what was never stored.",
        grounds.full_disk,
        Edit(
            "meshforge_trio.session",
            "from meshforge_trio.errors import Fenced, SessionLost, Stale, Transient\n",
            "from meshforge_trio.errors import Fenced, SessionLost, Stale, StoreFull, Transient\n",
        ),
        Edit(
            "meshforge_trio.session",
            "            await self.rows.commit(plan.commit, self.probe)\n",
            "            try:\n"
            "                await self.rows.commit(plan.commit, self.probe)\n"
            "            except StoreFull as error:\n"
            '                self._log.error("the store is full", reason=str(error))\n',
        ),
    ),
    mutant(
        "dedupe-in-memory",
        "",
        "G2",
        "Remembers the keys it has seen in this turn and never asks the store; its unique key went to an upsert with "
        "it, which otherwise refuses the second decision.",
        grounds.sent_again,
        Edit(
            "meshforge_trio.decide",
            "        found = self._reading.keys.get(incoming.key)\n",
            "        found = None\n",
        ),
        _KEYS_REPLACED,
    ),
    mutant(
        "dedupe-by-message-id",
        "",
        "G2",
        "Names an effect by the id of its message instead of the key: whoever sends it again under a new id gets it "
        "again. What it sends still bears the client's key.",
        grounds.sent_again,
        Edit(
            "meshforge_trio.intake",
            "    return Incoming(delivery, name, payload_hash(command), command, entity_id, system=system)\n",
            "    return Incoming(delivery, command.id, payload_hash(command), command, entity_id, system=system)\n",
        ),
        Edit(
            "meshforge_trio.drafts",
            "        return Cause(incoming.key, stem, ts, trace, message, generation)\n",
            "        return Cause(message.idempotency_key or incoming.key, stem, ts, trace, message, generation)\n",
        ),
    ),
)
