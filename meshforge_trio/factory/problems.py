"""What is wrong with a PRD: all of it at once, each with its place and what to write instead."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Final

import attrs

from meshforge_trio.errors import MeshForgeError
from meshforge_trio.factory.model import Position

__all__ = ["PROBLEMS_MAX", "Enough", "PrdError", "Problem", "Problems", "Unreadable", "closest", "did_you_mean"]

#: Nobody mends more than that before reading it again.
PROBLEMS_MAX: Final = 1_000
#: Names among which a misspelled one is looked for.
_KNOWN_MAX: Final = 1_000


@attrs.frozen(order=True)
class Problem:
    """One mistake. `line` and `column` count from 1; `suggestion` says what to do about it."""

    line: int
    column: int
    what: str
    suggestion: str = ""

    def __str__(self) -> str:
        """Line, column, and what is wrong."""
        return f"{self.line}:{self.column}: {self.what}" + (f"; {self.suggestion}" if self.suggestion else "")


class PrdError(MeshForgeError):
    """A PRD that cannot be understood, or that contradicts itself. `problems` are in the order of the text."""

    def __init__(self, problems: Sequence[Problem], name: str = "prd.md") -> None:
        self.problems = tuple(sorted(problems))
        self.name = name
        super().__init__("\n".join(f"{name}:{problem}" for problem in self.problems))


class Unreadable(Exception):
    """A sentence of a PRD ends making sense at a place. Caught where the next sentence begins."""

    def __init__(self, where: Position, what: str, suggestion: str = "") -> None:
        super().__init__(what)
        self.where = where
        self.what = what
        self.suggestion = suggestion


class Enough(Exception):
    """There are `PROBLEMS_MAX` problems, and one more."""


class Problems:
    """Collects mistakes while a PRD is read. A place is complained about once."""

    def __init__(self) -> None:
        self._found: dict[Position, Problem] = {}
        self._unknown: set[tuple[str, ...]] = set()

    def __len__(self) -> int:
        """How many there are."""
        return len(self._found)

    def __iter__(self) -> Iterator[Problem]:
        """In the order in which they were found."""
        return iter(self._found.values())

    def add(self, where: Position, what: str, suggestion: str = "") -> None:
        """Take one.

        Raises:
            Enough: there is no room for it.
        """
        if len(self._found) >= PROBLEMS_MAX and where not in self._found:
            raise Enough
        self._found.setdefault(where, Problem(where.line, where.column, what, suggestion))

    def unknown(self, where: Position, kind: str, name: str, known: Iterable[str], owner: str = "") -> None:
        """Take a name that nothing has. A name that is written in many places is missing once."""
        key = (kind, owner, name)
        if key in self._unknown:
            return
        self._unknown.add(key)
        known = sorted(islice(known, _KNOWN_MAX))
        of = f" of {owner}" if owner else ""
        suggestion = did_you_mean(name, known) or (
            f"there is: {', '.join(known[:12])}" if known else f"there is no {kind}{of} yet"
        )
        self.add(where, f"unknown {kind} {name!r}{of}", suggestion)


def closest(word: str, known: Iterable[str]) -> str | None:
    """The known word that was probably meant."""
    known = list(islice(known, _KNOWN_MAX))
    found = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if not found:
        found = [name for name in known if name.casefold() == word.casefold()]
    return found[0] if found else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A suggestion, or nothing if no known word is near."""
    found = closest(word, known)
    return f"did you mean {found!r}?" if found is not None else ""
