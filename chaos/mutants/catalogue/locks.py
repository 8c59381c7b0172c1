"""Locks (G10): who holds what, until when, under which token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from chaos.mutants.catalogue import grounds
from chaos.mutants.mutant import Mutant, mutant
from chaos.mutants.patch import Edit

__all__ = ["MUTANTS"]

_LOCKS: Final = "meshforge_trio.locks"

MUTANTS: Final[Sequence[Mutant]] = (
    mutant(
        "leased-to-whoever-asks",
        "",
        "G10",
        "Forgets to look whose lease it is: whoever asks is taken for the holder who asks again.",
        grounds.locked,
        Edit(
            _LOCKS,
            "            if lock.owner_id != asked.owner_id:\n"
            '                return [_denied(lock, asked, "it is held")]\n',
            "",
        ),
    ),
    mutant(
        "token-not-raised",
        "",
        "G10",
        "Gives the next holder the token of the one before, so that nobody can tell them apart.",
        grounds.locked,
        Edit(_LOCKS, "ctx.now + asked.ttl_seconds, lock.token + 1)]", "ctx.now + asked.ttl_seconds, lock.token or 1)]"),
    ),
    mutant(
        "fence-not-compared",
        "",
        "G10",
        "Keeps the tokens that commands bring and never compares them: a holder whose lease is over still acts.",
        grounds.guarded,
        Edit("meshforge_trio.preconditions", "    if token < seen:\n", "    if token < 0:\n"),
    ),
    mutant(
        "deadline-at-once",
        "",
        "G10",
        "Takes a length of time for a moment: every lease is over as soon as its deadline is looked at.",
        grounds.locked,
        Edit(
            _LOCKS,
            "            in_s=max(min(state.until - now, state.ttl_seconds), 0.0),\n",
            "            in_s=max(min(state.ttl_seconds - now, state.ttl_seconds), 0.0),\n",
        ),
    ),
)
