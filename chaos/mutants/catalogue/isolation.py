"""Tenants and workspaces (G9): what one may see of another, which is nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from chaos.mutants.catalogue import grounds
from chaos.mutants.mutant import Mutant, mutant
from chaos.mutants.patch import Edit

__all__ = ["MUTANTS"]

_ROWS: Final = "meshforge_trio.store.rows"

MUTANTS: Final[Sequence[Mutant]] = (
    mutant(
        "key-without-tenant",
        "",
        "G9",
        "Looks a key up without its scope: one tenant's command is answered with another tenant's event.",
        grounds.identical_tenants,
        Edit(
            _ROWS,
            'f"SELECT {_KEY} FROM keys WHERE scope = ? AND key IN"',
            'f"SELECT {_KEY}, scope FROM keys WHERE ? AND key IN"',
        ),
        Edit(
            _ROWS,
            "        key, payload_hash, outcome, first_n, last_n, generation = row\n",
            "        key, payload_hash, outcome, first_n, last_n, generation, found_in = row\n",
        ),
        Edit(
            _ROWS,
            "        records[key] = (record, _outputs_between(connection, number, first_n, last_n))\n",
            "        records[key] = (record, _outputs_between(connection, found_in, first_n, last_n))\n",
        ),
    ),
    mutant(
        "subscribed-across-tenants",
        "",
        "G9",
        "Subscribes to the events of an agent by its name alone, and hears those of every tenant.",
        grounds.neighbours,
        Edit(
            "meshforge_trio.engine",
            "                    event_subject(Scope(self.scope.tenant, self.scope.workspace, s.agent), s.name)\n",
            '                    event_subject(Scope("*", "*", s.agent), s.name)\n',
        ),
    ),
    mutant(
        "violation-not-stored",
        "",
        "G9",
        "Drops a trespasser's command without a word: nobody ever learns of the attempt.",
        grounds.identical_tenants,
        Edit(
            "meshforge_trio.decide",
            "                return self._settled(self._asides.violation(incoming, fault))\n",
            '                return Verdict(incoming, "duplicate")\n',
        ),
    ),
    mutant(
        "tenant-from-the-envelope",
        "",
        "G9",
        "Believes what an envelope says of its tenant and never compares it with the subject it came on.",
        grounds.identical_tenants,
        Edit(
            "meshforge_trio.security",
            "    if claimed != address.scope:\n",
            "    if claimed.agent != address.scope.agent:\n",
        ),
    ),
)
