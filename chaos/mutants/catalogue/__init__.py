"""The catalogue of planted bugs: each a mistake that a person could make, each to be caught by its guarantee.

    effect      the order of the steps, the one transaction, the key
    sessions    how a session starts, and that only one engine is active
    recovery    marks, reading back, the duplicate window
    failures    attempts, holds, dead letters
    redrive     dead letters that come back
    answers     duplicates, queries, ids
    state       versions, the cache, replay
    isolation   tenants and workspaces
    locks       leases, fencing tokens
    faults      I/O errors, a store's file that is gone, damaged and full streams
    power       what is told before it is on the disk

Some rules stand behind each other: without one of them alone nothing falls, because the next one holds. Such a bug
plants all of them at once, and says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from chaos.mutants.catalogue import (
    answers,
    effect,
    failures,
    faults,
    isolation,
    locks,
    power,
    recovery,
    redrive,
    sessions,
    state,
)
from chaos.mutants.mutant import Mutant

__all__ = ["CATALOGUE"]

CATALOGUE: Final[Sequence[Mutant]] = (
    *effect.MUTANTS,
    *sessions.MUTANTS,
    *recovery.MUTANTS,
    *failures.MUTANTS,
    *redrive.MUTANTS,
    *answers.MUTANTS,
    *state.MUTANTS,
    *isolation.MUTANTS,
    *locks.MUTANTS,
    *faults.MUTANTS,
    *power.MUTANTS,
)
