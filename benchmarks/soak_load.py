"""The load of the soak test: commands drawn from a seed, round by round, with what is known of each beforehand.

Two tenants are sent the same ids, keys and entities. Ids begin with the round, so that what a round leaves in the store
can be told from what was there before.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

import attrs

from chaos.evidence import Sent
from chaos.workload import command
from meshforge_trio.envelope import JsonObject
from meshforge_trio.subjects import Scope

__all__ = ["WORKSPACES", "Load", "entity_prefix"]

#: What workers serve.
WORKSPACES: Final[Sequence[str]] = ("acme/soak", "globex/soak")
_ENTITIES: Final = 40
_HOT: Final = ("hot-1", "hot-2")
#: How many of the newest commands may be sent again.
_RECENT: Final = 60
_NOTE: Final = "n" * 100
#: What is sent how often.
_MIX: Final[dict[str, int]] = {
    "deposit": 400,
    "versioned": 60,
    "withdraw": 100,
    "draw": 30,
    "report": 50,
    "carry": 130,
    "get": 60,
    "again": 60,
    "mismatch": 10,
    "explode": 5,
    "trespass": 3,
}


def entity_prefix(number: int) -> str:
    """What the entities of round `number` begin with."""
    return f"r{number}-"


class Load:
    """The commands of one round, as many as are asked for."""

    def __init__(self, seed: str, number: int) -> None:
        self._random = random.Random(f"{seed}/load/{number}")  # noqa: S311
        self._prefix = entity_prefix(number)
        self._places = [(tenant, name) for tenant, _, name in (place.partition("/") for place in WORKSPACES)]
        self._counts = [0 for _ in WORKSPACES]
        self._recent: list[Sent] = []

    def batch(self, count: int, phase: str = "main") -> Sequence[Sent]:
        """The next `count` commands. Those of phase `after` are of the kinds that surely succeed."""
        mix = _MIX if phase == "main" else {kind: _MIX[kind] for kind in ("deposit", "carry", "get", "again")}
        kinds = self._random.choices(list(mix), list(mix.values()), k=count)
        return [attrs.evolve(self._one(kind), phase=phase) for kind in kinds]

    def again(self, count: int) -> Sequence[Sent]:
        """Up to `count` of the newest commands once more, as a client sends them that saw no answers."""
        return [self._resent(sent) for sent in self._recent[-count:]]

    def _one(self, kind: str) -> Sent:
        if kind == "again" and self._recent:
            return self._resent(self._random.choice(self._recent))
        if kind == "mismatch" and self._recent:
            return self._mismatched(self._random.choice(self._recent))
        place = self._random.randrange(len(self._places))
        made = self._trespass(place) if kind == "trespass" else self._command(kind, place)
        if not made.query and made.at is None:
            self._recent = [*self._recent[1 - _RECENT :], made]
        return made

    def _next_id(self, place: int) -> int:
        self._counts[place] += 1
        return self._counts[place]

    def _entity(self) -> str:
        drawn = self._random
        name = drawn.choice(_HOT) if drawn.random() < 0.2 else f"e{drawn.randrange(_ENTITIES)}"
        return f"{self._prefix}{name}"

    def _command(self, kind: str, place: int) -> Sent:
        number = self._next_id(place)
        agent = "courier" if kind == "carry" else "account"
        action = {"versioned": "deposit", "again": "deposit", "mismatch": "deposit"}.get(kind, kind)
        payload: JsonObject = {"amount": self._random.randint(1, 20), "note": _NOTE}
        expect = {"withdraw": ("decided", "refused"), "versioned": ("decided", "conflict"), "explode": ("dead",)}
        query = kind == "get"
        made = command(
            Scope(*self._places[place], agent),
            action,
            number,
            payload,
            id=f"{self._prefix}c{number}",
            idempotency_key=None if query else f"{self._prefix}k{number}",
            entity_id=self._entity(),
            expected_version=self._random.randint(0, 3) if kind == "versioned" else None,
        )
        return Sent(
            made, query=query, expect=() if query else expect.get(kind, ("decided",)), repeatable=kind != "draw"
        )

    def _resent(self, sent: Sent) -> Sent:
        made = attrs.evolve(sent.command, id=f"{self._prefix}c{self._next_id(self._place_of(sent))}")
        return attrs.evolve(sent, command=made)

    def _mismatched(self, sent: Sent) -> Sent:
        """The same key for something else."""
        number = self._next_id(self._place_of(sent))
        made = attrs.evolve(sent.command, id=f"{self._prefix}c{number}", payload={"amount": 1000 + number})
        return Sent(made, repeatable=sent.repeatable)

    def _place_of(self, sent: Sent) -> int:
        return self._places.index((sent.command.tenant, sent.command.workspace))

    def _trespass(self, place: int) -> Sent:
        """A command of one tenant, sent to the other."""
        number = self._next_id(place)
        claimed = Scope(*self._places[place], "account")
        into = Scope(*self._places[1 - place], "account")
        name = f"{self._prefix}t{place}-{number}"
        made = command(claimed, "deposit", number, {"amount": 13}, id=name, idempotency_key=name, entity_id="e0")
        return Sent(made, expect=("violation",), at=into, key=name)
