"""Versions and order (G6, G13), the cache, and replay (G7)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from chaos.mutants.catalogue import grounds
from chaos.mutants.mutant import Mutant, mutant
from chaos.mutants.patch import Edit

__all__ = ["MUTANTS"]

_AGENTS: Final = "chaos.agents"
_DECIDE: Final = "meshforge_trio.decide"
_ENGINE: Final = "meshforge_trio.engine"
_SESSION: Final = "meshforge_trio.session"

# Memory follows before COMMIT has returned, and outlives the session that learned that it did not.
_CACHE_KEPT: Final = (
    Edit(
        _SESSION,
        "        if plan.writes:\n            mark = ",
        "        assert self._entities is not None\n"
        "        self._entities.keep()\n"
        "        if plan.writes:\n            mark = ",
    ),
    Edit(
        _ENGINE,
        "        self._last_epoch = -1\n",
        "        self._last_epoch = -1\n        self._cache = Cache(self._settings.cache_entities)\n",
    ),
    Edit(
        _ENGINE,
        "            cache=Cache(settings.cache_entities),\n",
        "            cache=self._cache,\n",
    ),
)

MUTANTS: Final[Sequence[Mutant]] = (
    mutant(
        "version-not-checked-again",
        "",
        "G6",
        "Reads versions before the transaction and trusts them in it; and the cache took the turn's copy before "
        "COMMIT and outlived its failure. With the check such a cache is only stuck (see cache-ahead-of-the-store).",
        grounds.full_disk,
        *_CACHE_KEPT,
        Edit(
            "meshforge_trio.store.links",
            "        if output.version != version + 1:\n",
            "        if output.version <= version:\n",
        ),
    ),
    mutant(
        "cache-ahead-of-the-store",
        "",
        "G12",
        "Moves the cache on before COMMIT returned, keeps it when the commit fails, and decides from it again and "
        "again what the store refuses. Forgetting it on a refusal would heal it.",
        grounds.full_disk,
        *_CACHE_KEPT,
        Edit(_SESSION, "        self.cache.clear()\n", "        self._entities = None\n"),
    ),
    mutant(
        "conflict-raises-the-version",
        "",
        "G6",
        "Puts a conflict into the entity's chain, so that being refused makes the next one outdated too.",
        grounds.refusals,
        Edit(
            _DECIDE,
            'call.cause, "conflict", told, entity_id=incoming.entity_id, kind="record")\n',
            "\n"
            '                call.cause, "conflict", told, entity_id=incoming.entity_id, version=version,\n'
            "                chain=call.entity.chain,\n"
            "            )\n"
            "            assert draft.chain is not None\n"
            "            raised = attrs.evolve(call.entity, version=version, chain=draft.chain)\n"
            "            self._entities.advance(incoming.entity_id, raised)\n",
        ),
        Edit(
            _DECIDE,
            "        if told is not None:\n",
            "        if told is not None:\n            version = call.entity.version + 1\n",
        ),
    ),
    mutant(
        "clock-in-apply",
        "",
        "G7",
        "Asks for the time while applying an event: replayed on another day the state is another.",
        grounds.replayed,
        Edit(_AGENTS, "import signal\n", "import signal\nimport time\n"),
        Edit(
            _AGENTS,
            '@counter.event("added")\ndef added(total: int, event: Added) -> int:\n    return event.total\n',
            '@counter.event("added")\ndef added(total: int, event: Added) -> int:\n'
            "    return event.total + int(time.time()) // 86_400\n",
        ),
    ),
    mutant(
        "set-order-in-apply",
        "",
        "G7",
        "Goes through a set while applying an event: in another process its order is another.",
        grounds.replayed,
        Edit(
            _AGENTS,
            '    return [*lines, str(payload["amount"])]\n',
            '    return list({*lines, str(payload["amount"])})\n',
        ),
    ),
    mutant(
        "published-out-of-order",
        "",
        "G13",
        "Publishes a turn's outputs from the last to the first.",
        grounds.together,
        Edit(
            _SESSION,
            "        for i in range(0, len(outputs), size or 1):\n",
            "        for i in reversed(range(0, len(outputs), size or 1)):\n",
        ),
    ),
)
