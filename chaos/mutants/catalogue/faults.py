"""What befalls the files of the store and of the broker: I/O errors, a file that is gone, damaged and full streams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from chaos.mutants.catalogue import grounds
from chaos.mutants.mutant import Mutant, mutant
from chaos.mutants.patch import Edit

__all__ = ["MUTANTS"]

_RECOVERY: Final = "meshforge_trio.recovery"
_SCHEMA: Final = "meshforge_trio.store.schema"
_SESSION: Final = "meshforge_trio.session"

MUTANTS: Final[Sequence[Mutant]] = (
    mutant(
        "io-error-swallowed",
        "",
        "G3",
        "Logs an I/O error of the commit, goes on, publishes and ACKs what is not stored. The lease must overlook the "
        "broken store besides: it ends the session by itself.",
        grounds.failing_disk,
        Edit(
            _SESSION,
            "from meshforge_trio.errors import Fenced, SessionLost, Stale, Transient\n",
            "from meshforge_trio.errors import Fenced, SessionLost, Stale, StoreBroken, Transient\n",
        ),
        Edit(
            _SESSION,
            "            await self.rows.commit(plan.commit, self.probe)\n",
            "            try:\n"
            "                await self.rows.commit(plan.commit, self.probe)\n"
            "            except StoreBroken as error:\n"
            '                self._log.error("the store could not be written", reason=str(error))\n',
        ),
        Edit(
            "meshforge_trio.store.sqlite",
            "        return self._refusal is None and self.term.valid()\n",
            "        return self.term.valid()\n",
        ),
    ),
    mutant(
        "io-error-retried",
        "",
        "G12",
        "Takes an I/O error for something that passes and tries again, for ever, on a disk that stays broken; ending "
        "would have brought a successor on another.",
        grounds.failing_disk,
        Edit(
            _SCHEMA,
            '    return StoreBroken(f"{path}: {type(error).__name__}: {error}")\n',
            '    return Transient(f"{path}: {type(error).__name__}: {error}")\n',
        ),
    ),
    mutant(
        "deleted-file-unnoticed",
        "",
        "G1",
        "Goes on with the files that it has opened, whatever has become of their names: nobody finds what it commits.",
        grounds.deleted_store,
        Edit(
            "meshforge_trio.store.place",
            "            if now != before:\n",
            "            if now != before and not file:\n",
        ),
    ),
    mutant(
        "nothing-compared-below-the-mark",
        "R3",
        "G4",
        "Compares store and stream above the newest mark alone: what a server that was started anew has lost from "
        "amid its files stays lost.",
        grounds.rotten_stream,
        Edit(
            _RECOVERY,
            "    if session.lease.clean and session.lease.server_id == broker.facts.server_id:\n        return mark\n",
            "    if session.lease.epoch:\n        return mark\n",
        ),
    ),
    mutant(
        "refusal-taken-for-puback",
        "",
        "G4",
        "Counts the answers to its publishes and does not read them: what was refused passes for published.",
        grounds.refused_for_now,
        Edit(_SESSION, "            if ack.error:\n", "            if ack.error and ack.seq:\n"),
    ),
)
