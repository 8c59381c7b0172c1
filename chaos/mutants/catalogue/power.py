"""Power loss: what is told before it is on the disk. No kill shows it, since the page cache outlives a process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from chaos.mutants.mutant import Mutant
from chaos.mutants.patch import Edit, Patch
from chaos.power.ground import power_case

__all__ = ["MUTANTS"]

_STORE: Final = "meshforge_trio.store.sqlite"


def _mutant(name: str, guarantee: str, about: str, *edits: Edit) -> Mutant:
    return Mutant(name, "", guarantee, about, Patch(name, edits), power_case, "power")


MUTANTS: Final[Sequence[Mutant]] = (
    _mutant(
        "synchronous-normal",
        "G1",
        "Takes the setting that guides to SQLite recommend with a write-ahead log: that is synced when it is emptied, "
        "and not at each COMMIT.",
        Edit(_STORE, '        synchronous: Synchronous = "FULL",\n', '        synchronous: Synchronous = "NORMAL",\n'),
    ),
    _mutant(
        "checkpoint-unsynced",
        "G5",
        "Spares the disk the syncs of a checkpoint, since every commit has been synced to the log already.",
        Edit(
            _STORE,
            "                self.connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)\n",
            '                self.connection.pragma("synchronous", "OFF")\n'
            "                self.connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)\n"
            '                self.connection.pragma("synchronous", "FULL")\n',
        ),
    ),
)
