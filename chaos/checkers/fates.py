"""What became of dead letters, read out of a store: which were redriven or discarded, by whom, and as what.

A dead letter that is redriven keeps its row and its outputs; its key is free, until the command that was sent again
is decided under it in the next generation.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import attrs

from chaos.rows import Letter, OutputRow, Rows
from meshforge_trio.subjects import Scope

__all__ = ["Fate", "Fates"]


@attrs.frozen
class Fate:
    """A stored `redriven` or `discarded`: `record` says it of the dead letter of `key` in `generation`.

    `again` is the command that a redrive sends, if it is there.
    """

    record: OutputRow
    key: str
    generation: int
    again: OutputRow | None = None

    @property
    def scope(self) -> Scope:
        """Whose dead letter it is."""
        return self.record.scope


class Fates:
    """`rows`, read; `told` gives the body of an output."""

    def __init__(self, rows: Rows, told: Callable[[OutputRow], Mapping[str, Any]]) -> None:
        self._rows = rows
        self._told = told

    @cached_property
    def letters(self) -> Mapping[tuple[Scope, str], Sequence[Letter]]:
        """The dead letters of each key, by generation."""
        found: dict[tuple[Scope, str], list[Letter]] = defaultdict(list)
        for letter in sorted(self._rows.dead, key=lambda letter: letter.generation):
            found[letter.scope, letter.key].append(letter)
        return dict(found)

    def newest(self, scope: Scope, key: str) -> Letter | None:
        """The dead letter that a key ended in last."""
        return next(iter(reversed(self.letters.get((scope, key), ()))), None)

    @cached_property
    def outputs(self) -> Mapping[tuple[Scope, str, int], Sequence[OutputRow]]:
        """What was sent of each dead letter, by (scope, key, generation): the letter, and what its caller is told."""
        at = {(row.scope, row.n): row for row in self._rows.outputs}
        found: dict[tuple[Scope, str, int], Sequence[OutputRow]] = {}
        for row in self._rows.outputs:
            generation = self._told(row).get("generation") if row.kind == "dead" else None
            if type(generation) is int:
                answer = at.get((row.scope, row.n + 1))
                answers = [answer] if answer and (answer.key, answer.name) == (row.key, "dead_lettered") else []
                found.setdefault((row.scope, row.key, generation), [row, *answers])
        return found

    @cached_property
    def past(self) -> frozenset[tuple[Scope, int]]:
        """(scope, number) of the outputs of dead letters that were redriven: they belong to no key record any more."""
        places = [
            (letter.scope, row.n)
            for letter in self._rows.dead
            if letter.state == "redriven"
            for row in self.outputs.get((letter.scope, letter.key, letter.generation), ())
        ]
        return frozenset(places)

    @cached_property
    def decided(self) -> Sequence[Fate]:
        """Every fate that is stored, in order."""
        return list(self._decided())

    def _decided(self) -> Iterator[Fate]:
        sent = {(row.scope, row.key, row.event_id): row for row in self._rows.outputs if row.kind == "command"}
        for row in self._rows.outputs:
            if row.kind == "record" and row.name in ("redriven", "discarded"):
                payload = self._told(row).get("payload")
                told = payload if isinstance(payload, dict) else {}
                generation = told.get("generation")
                again = sent.get((row.scope, row.key, str(told.get("command_id"))))
                yield Fate(row, str(told.get("key")), generation if type(generation) is int else -1, again)

    @cached_property
    def of_command(self) -> Mapping[tuple[Scope, int], Fate]:
        """The redrive that each command sent again belongs to, by the scope and number of its output."""
        return {(fate.scope, fate.again.n): fate for fate in self.decided if fate.again is not None}

    @cached_property
    def generation_of(self) -> Mapping[tuple[Scope, str, str], int]:
        """In which generation each command sent again runs, by scope, key and its id."""
        return {
            (fate.scope, fate.key, fate.again.event_id): fate.generation + 1
            for fate in self.decided
            if fate.again is not None
        }

    def under_way(self, scope: Scope, key: str) -> bool:
        """Whether its newest dead letter was redriven. It is not decided again until there is a record."""
        letter = self.newest(scope, key)
        return letter is not None and letter.state == "redriven"

    def done_since(self, scope: Scope, key: str, generation: int, decided_in: int | None) -> bool:
        """Whether a generation's redrive came to an end; `decided_in` is the generation of the key's record, if any."""
        newest = self.newest(scope, key)
        return max(-1 if decided_in is None else decided_in, -1 if newest is None else newest.generation) > generation
