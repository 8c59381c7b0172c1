"""Crash images: what may be on the disk when the power goes after a step of a tape.

What was synced is there. Of what was done since, `Disk` tries every image that is named in `Kind`; each is told by a
recipe, from which and the tape the very bytes can be made again.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, cast, get_args

import attrs

from chaos.power.tape import Delete, Note, Step, Sync, Tape, Truncate, Write

__all__ = ["FILES", "SECTOR", "Disk", "Kind", "Operation", "Recipe", "RecipeError", "parse_recipe", "put", "rebuild"]

#: Bytes that a disk writes whole or not at all.
SECTOR: Final = 512
#: Suffixes of the files that survive.
FILES: Final = ("", "-wal", "-journal")
_BESIDE: Final = ("-wal", "-journal")
#: Images by chance after each step.
_DRAWS: Final = 4
#: Operations a disk is taken to hold back, at most. What is older has reached it by itself.
_HELD_BACK_MAX: Final = 64

Operation = Write | Truncate | Delete

#: `none`: nothing of what is not durable. `prefix`: all of it up to an operation. `without`: all but one.
#: `only`: one alone. `first` and `last`: all before a write, and of that so many of its sectors. `some`: of everything
#: that is pending each sector or not, by chance.
Kind = Literal["none", "prefix", "without", "only", "first", "last", "some"]


class RecipeError(ValueError):
    """A text that is no recipe, or one of another tape."""


@attrs.frozen
class Recipe:
    """An image: the power goes after step `at`; `operation` is the step concerned, `sectors` how many of it.

    Of `some`, `sectors` is the number of the draw.
    """

    at: int
    kind: Kind
    operation: int = 0
    sectors: int = 0

    def __str__(self) -> str:
        if self.kind == "none":
            return f"{self.at}:none"
        if self.sectors:
            return f"{self.at}:{self.kind}:{self.operation}:{self.sectors}"
        return f"{self.at}:{self.kind}:{self.operation}"


def parse_recipe(text: str) -> Recipe:
    """Read what `str` makes of a recipe.

    Raises:
        RecipeError: it is something else.
    """
    found = re.fullmatch(r"(\d+):([a-z]+)(?::(\d+))?(?::(\d+))?", text)
    if found is None or found[2] not in get_args(Kind):
        raise RecipeError(f"{text!r:.60} is no recipe of an image: one looks like 812:prefix:805 or 812:first:812:3")
    return Recipe(int(found[1]), cast(Kind, found[2]), int(found[3] or 0), int(found[4] or 0))


class Disk:
    """The files as they are known to be on the disk, and what has been done to them since that may be there or not."""

    def __init__(self) -> None:
        self.files: dict[str, bytearray] = {file: bytearray() for file in FILES}
        self.pending: list[tuple[int, Operation]] = []
        #: Rises whenever what is durable may have changed.
        self.base = 0
        #: How many operations were taken to have reached the disk without a sync, for there being so many.
        self.settled = 0
        # Logs and journals with whose first sync SQLite syncs the directory.
        self._unnamed = set(_BESIDE)

    def take(self, at: int, step: Step) -> bool:
        """Do step number `at`; return whether images that were possible may be so no longer."""
        match step:
            case Note():
                return False
            case Sync(file):
                self._sync(file)
                self.base += 1
                return True
            case Delete(file, synced=True):
                self.pending = [(n, op) for n, op in self.pending if op.file != file]
                self.files[file].clear()
                self._names_are_durable()
                self._unnamed.add(file)
                self.base += 1
                return True
            case Delete(file):
                self._unnamed.add(file)
        self.pending.append((at, step))
        if len(self.pending) <= _HELD_BACK_MAX:
            return False
        put(self.files, [self.pending.pop(0)[1]])
        self.settled += 1
        self.base += 1
        return False

    def _sync(self, file: str) -> None:
        if file in self._unnamed:
            self._unnamed.discard(file)
            self._names_are_durable()
        put(self.files, [op for _, op in self.pending if op.file == file])
        self.pending = [(n, op) for n, op in self.pending if op.file != file]

    def _names_are_durable(self) -> None:
        """The directory was synced: a deleted file stays so, with all that had been done to it before."""
        for file in FILES:
            last = max((n for n, op in self.pending if op.file == file and isinstance(op, Delete)), default=None)
            if last is not None:
                self.files[file].clear()
                self.pending = [(n, op) for n, op in self.pending if op.file != file or n > last]

    def recipes(self, at: int, *, anew: bool) -> Iterator[Recipe]:
        """The images that may be found after step `at` and not before it; with `anew`, all of them."""
        if anew:
            yield Recipe(at, "none")
            for number, _ in self.pending:
                yield Recipe(at, "prefix", number)
        elif self.pending:
            yield Recipe(at, "prefix", self.pending[-1][0])
        if len(self.pending) > 1:
            newest = self.pending[-1][0]
            for number, _ in self.pending[: None if anew else -1]:
                yield Recipe(at, "without", number)
            yield Recipe(at, "only", newest)
            for draw in range(1, _DRAWS + 1):
                yield Recipe(at, "some", newest, draw)
        for number, operation in self.pending if anew else self.pending[-1:]:
            if isinstance(operation, Write):
                for sectors in range(1, _sectors(operation)):
                    yield Recipe(at, "first", number, sectors)
                    yield Recipe(at, "last", number, sectors)

    def operations(self, recipe: Recipe) -> Sequence[Operation]:
        """What an image has beyond what is durable, in order.

        Raises:
            RecipeError: its operation is not pending.
        """
        if recipe.kind == "none":
            return []
        known = dict(self.pending)
        if recipe.operation not in known:
            raise RecipeError(f"{recipe} speaks of step {recipe.operation}, which is durable there, or writes nothing")
        if recipe.kind == "some":
            return list(self._drawn(random.Random(str(recipe))))  # noqa: S311
        dropped = {number for number, _ in self.pending if not _has(recipe, number)}
        kept = [(n, op) for n, op in self.pending if n not in dropped and not self._elsewhere(n, op, dropped)]
        return [_torn(op, recipe) if n == recipe.operation and recipe.sectors else op for n, op in kept]

    def _drawn(self, chance: random.Random) -> Iterator[Operation]:
        """Of each write the sectors that chance takes, of what is no write all or nothing."""
        dropped: set[int] = set()
        for number, operation in self.pending:
            if self._elsewhere(number, operation, dropped):
                continue
            if isinstance(operation, Write):
                yield from (piece for piece in _pieces(operation) if chance.random() < 0.5)
            elif chance.random() < 0.5:
                yield operation
            else:
                dropped.add(number)

    def _elsewhere(self, number: int, operation: Operation, dropped: set[int]) -> bool:
        """Whether an operation went to a file that a deleted name does not stand for, since that stands for the old."""
        return any(
            n in dropped and n < number and isinstance(op, Delete) and op.file == operation.file
            for n, op in self.pending
        )


def _has(recipe: Recipe, number: int) -> bool:
    """Whether an image has any of an operation."""
    match recipe.kind:
        case "only":
            return number == recipe.operation
        case "without":
            return number != recipe.operation
    return number <= recipe.operation


def _sectors(write: Write) -> int:
    """How many sectors a write touches."""
    first, end = write.offset // SECTOR, write.offset + len(write.content)
    return -(-end // SECTOR) - first


def _pieces(write: Write) -> Iterator[Write]:
    """A write sector by sector."""
    start = 0
    while start < len(write.content):
        end = (write.offset + start) // SECTOR * SECTOR + SECTOR - write.offset
        yield Write(write.file, write.offset + start, write.content[start:end])
        start = end


def _torn(operation: Operation, recipe: Recipe) -> Write:
    """The first or the last sectors of a write; these lie where the disk has them, not where the write begins."""
    if not isinstance(operation, Write) or not 0 < recipe.sectors < _sectors(operation):
        raise RecipeError(f"{recipe}: step {recipe.operation} has no {recipe.sectors} sectors to be torn from others")
    first = operation.offset // SECTOR
    if recipe.kind == "first":
        edge = (first + recipe.sectors) * SECTOR - operation.offset
        return Write(operation.file, operation.offset, operation.content[:edge])
    edge = (first + _sectors(operation) - recipe.sectors) * SECTOR - operation.offset
    return Write(operation.file, operation.offset + edge, operation.content[edge:])


def put(files: Mapping[str, bytearray], operations: Sequence[Operation]) -> None:
    """Do operations to the bytes of files."""
    for operation in operations:
        content = files[operation.file]
        match operation:
            case Write(_, offset, written):
                if len(content) < offset:
                    content.extend(bytes(offset - len(content)))
                content[offset : offset + len(written)] = written
            case Truncate(_, size):
                del content[size:]
                content.extend(bytes(size - len(content)))
            case Delete():
                content.clear()


def rebuild(tape: Tape, recipe: Recipe, to: Path) -> Sequence[Path]:
    """Write the files of an image into the directory `to`, as `store.db` and what lies beside it; return their paths.

    Raises:
        RecipeError: the recipe is of another tape.
    """
    if recipe.at >= len(tape.steps):
        raise RecipeError(f"{recipe} is of another tape: this one has {len(tape.steps)} steps")
    disk = Disk()
    for at, step in enumerate(tape.steps[: recipe.at + 1]):
        disk.take(at, step)
    files: dict[str, Any] = {file: bytearray(content) for file, content in disk.files.items()}
    put(files, disk.operations(recipe))
    to.mkdir(parents=True, exist_ok=True)
    made = [(to / f"store.db{file}", content) for file, content in files.items() if content]
    for path, content in made:
        path.write_bytes(content)
    return [path for path, _ in made]
