"""How a session starts (R2), and that only one engine is active (R1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from chaos.mutants.catalogue import grounds
from chaos.mutants.mutant import Mutant, mutant
from chaos.mutants.patch import Edit

__all__ = ["MUTANTS"]

_ENGINE: Final = "meshforge_trio.engine"
_CONSUMER: Final = "meshforge_trio.broker.consumer"

_NO_RESET: Final = Edit(
    "meshforge_trio.broker.jetstream",
    "        await self._api.reset_consumer(consumer.stream, consumer.name)\n",
    "",
)

MUTANTS: Final[Sequence[Mutant]] = (
    mutant(
        "no-epoch-check",
        "R1",
        "G12",
        "Does not look at the lease again inside the transaction: a zombie writes that a command waits which its "
        "successor has given up long ago, and nobody ever takes that row away.",
        grounds.stopped_before_hold,
        Edit("meshforge_trio.store.rows", "    if row != (epoch, holder):\n", "    if row is None:\n"),
    ),
    mutant(
        "no-recovery",
        "R2",
        "G4",
        "Trusts that what is committed has been published: what a crash cut off is never looked for.",
        grounds.killed_after_store,
        Edit(
            "meshforge_trio.recovery",
            "    while page := await session.rows.outputs_after(n, _PAGE):\n        # A stream tells",
            "    for page in ():\n        # A stream tells",
        ),
    ),
    mutant(
        "recovery-once-per-process",
        "R2",
        "G4",
        "Recovers when the process starts and never again: a server that goes back in time under it is not noticed.",
        grounds.copied_and_rolled_back,
        Edit(
            "meshforge_trio.recovery",
            "_PAGE: Final = 256\n",
            "_PAGE: Final = 256\n_served: Final[set[Scope]] = set()\n",
        ),
        Edit(
            "meshforge_trio.recovery",
            "    at(BEFORE_RECOVERY)\n",
            "    at(BEFORE_RECOVERY)\n"
            "    if scope in _served:\n"
            "        at(AFTER_RECOVERY)\n"
            "        return 0\n"
            "    _served.add(scope)\n",
        ),
    ),
    mutant(
        "no-consumer-reset",
        "R2",
        "G13",
        "Pulls at once and leaves what its predecessor had in hand to come again by itself, behind what is new. The "
        "check of the consumer sequence went with it: alone it ends each such session (see no-reset-but-checked).",
        grounds.killed_before_store,
        _NO_RESET,
        Edit(
            _CONSUMER,
            "        if consumer_seq != self._consumer_seq + 1:\n",
            "        if consumer_seq <= self._consumer_seq:\n",
        ),
    ),
    mutant(
        "no-reset-but-checked",
        "R2",
        "G12",
        "Does not reset the consumer, and still takes a sequence that does not start at 1 for somebody else's doing.",
        grounds.killed_before_store,
        _NO_RESET,
    ),
)
