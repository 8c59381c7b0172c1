"""What the commands of `meshforge dlq` share: which dead letters are meant, how they are shown and written to files."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from base64 import b16encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final, TypeVar

import attrs
import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from meshforge_trio.cli.options import Common, checked_scope
from meshforge_trio.cli.reader import ScopeFile, StoreFiles
from meshforge_trio.codec import ScopeSealer
from meshforge_trio.dead_letters import Wanted, shown
from meshforge_trio.errors import Misconfigured
from meshforge_trio.store.port import DeadLetter

__all__ = [
    "Selection",
    "age",
    "age_of",
    "cells",
    "filter_options",
    "hex_lines",
    "plain",
    "print_table",
    "table_of",
    "whole_file",
]

F = TypeVar("F", bound=Callable[..., Any])

_UNIT_S: Final = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_AGE: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)([smhd])")
# A pipe has no width: nothing is folded for it.
_PIPE_WIDTH: Final = 100_000


def age(text: str) -> float:
    """Read a duration as 30s, 15m, 2h or 7d; in seconds.

    Raises:
        click.BadParameter: it is none.
    """
    found = _AGE.fullmatch(text)
    if found is None:
        raise click.BadParameter(f"{text!r:.50} is no age: write 30s, 15m, 2h or 7d")
    return float(found[1]) * _UNIT_S[found[2]]


def age_of(seconds: float) -> str:
    """A duration in its largest unit that is not below one: `42s`, `15m`, `2h`, `7d`."""
    for unit in ("d", "h", "m"):
        if seconds >= _UNIT_S[unit]:
            return f"{int(seconds // _UNIT_S[unit])}{unit}"
    return f"{max(0, int(seconds))}s"


def filter_options(function: F) -> F:
    """`--agent`, `--entity`, `--error`, `--older-than` and `--newer-than`."""
    for option in (
        click.option("--newer-than", type=age, metavar="AGE", help="Died less than AGE ago."),
        click.option("--older-than", type=age, metavar="AGE", help="Died at least AGE ago: 30s, 15m, 2h, 7d."),
        click.option("--error", metavar="TEXT", help="Of this code, or with this text in the reason."),
        click.option("--entity", metavar="ID", help="Of this entity."),
        click.option("--agent", metavar="NAME", help="Of this agent."),
    ):
        function = option(function)
    return function


@attrs.frozen
class Selection:
    """Which dead letters are meant, of which scopes. `now` is the wall-clock second that ages are counted from."""

    common: Common
    agent: str | None
    wanted: Wanted
    now: float

    @staticmethod
    def take(common: Common, given: dict[str, Any], now: float, **more: Any) -> Selection:
        """Take the filter options out of a command's arguments; `more` are further fields of `Wanted`.

        Raises:
            click.UsageError: the agent's name is no token, or reserved; a filter is empty.
        """
        names = {"entity_id": "entity", "error": "error", "older_than_s": "older_than", "newer_than_s": "newer_than"}
        agent = given.pop("agent")
        if agent is not None:
            checked_scope(common, agent)
        fields = {field: given.pop(option) for field, option in names.items()}
        if "" in (agent, fields["entity_id"], fields["error"]):
            # From a variable that was not set, most likely, and every reason has it in it.
            raise click.UsageError("a filter is empty: leave it out, or say what is meant")
        return Selection(common, agent, Wanted(**fields, **more), now)

    @property
    def restricts(self) -> bool:
        """Whether anything was given that narrows the choice; a workspace alone does not."""
        return self.agent is not None or attrs.evolve(self.wanted, state=None) != Wanted()

    def scopes(self, store: StoreFiles) -> Iterator[ScopeFile]:
        """The scopes that are meant; of all workspaces unless one was given."""
        for scope in store.scopes:
            here = "workspaces" not in self.common.flags or (scope.tenant, scope.workspace) == self.common.workspace
            if here and self.agent in (None, scope.agent):
                yield store.rows(scope)

    def letters(self, store: StoreFiles, *, as_stored: bool = False) -> Iterator[tuple[ScopeFile, DeadLetter]]:
        """The dead letters that are meant, scope by scope, each in the order in which they died.

        What is sealed in them is opened, so far as there are keys, unless they are wanted `as_stored`.
        """
        codecs = self.common.codecs()
        for rows in self.scopes(store):
            sealer = ScopeSealer.of_scope(codecs, rows.scope)
            for letter in rows.dead_letters():
                opened = shown(letter, sealer)
                if self.wanted.takes(opened, self.now):
                    yield rows, letter if as_stored else opened

    def named(self, store: StoreFiles) -> Sequence[tuple[ScopeFile, DeadLetter]]:
        """As `letters`, where keys were given: of each key its newest generation.

        Raises:
            click.UsageError: two scopes have a dead letter of one key.
            click.ClickException: there is none of some key.
        """
        newest: dict[str, tuple[ScopeFile, DeadLetter]] = {}
        for rows, letter in self.letters(store):
            other = newest.get(letter.key)
            if other is not None and other[0].scope != rows.scope:
                raise click.UsageError(
                    f"{other[0].scope} and {rows.scope} both have a dead letter of {letter.key!r}: say which with "
                    "--agent, or --workspace"
                )
            newest[letter.key] = (rows, letter)
        missing = sorted(set(self.wanted.keys) - newest.keys())
        if missing:
            raise click.ClickException(
                f"there is no such dead letter: {', '.join(map(repr, missing))}. "
                "`meshforge dlq list --state all` shows those there are"
            )
        return sorted(newest.values(), key=lambda found: (found[0].scope, found[1].n))


# -- showing ---------------------------------------------------------------------------------------------------


def plain(text: str) -> str:
    """Text from strangers on one line: what is not printable is escaped, so no terminal takes orders from it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def hex_lines(content: bytes, most: int = 1024) -> Iterator[str]:
    """Bytes for people: 16 to a line, with their place, as hexadecimal and as ASCII; no more than `most`."""
    for at in range(0, min(len(content), most), 16):
        row = content[at : at + 16]
        shown = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in row)
        yield f"{at:08x}  {b16encode(row).decode().lower():<32}  {shown}"
    if len(content) > most:
        yield f"... {len(content)} bytes; --json or `meshforge dlq export` have them all"


def table_of(*columns: str, title: str | None = None) -> Table:
    """An empty table; a column that begins with `#` holds numbers."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column.lstrip("#"), justify="right" if column[0] == "#" else "left", overflow="fold")
    return table


def print_table(table: Table) -> None:
    """To stdout."""
    console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=_PIPE_WIDTH)
    console.print(table)


def cells(*texts: str) -> Sequence[Text]:
    """A row of a table. As `Text`, in which brackets are brackets and no markup."""
    return [Text(plain(text)) for text in texts]


# -- files -----------------------------------------------------------------------------------------------------


@contextmanager
def whole_file(path: Path, *, force: bool) -> Iterator[IO[bytes]]:
    """A file that is there with all that was written to it, on the disk, or not at all. Readable by its owner only.

    Raises:
        click.ClickException: it exists, and `force` is not given.
        Misconfigured: it cannot be written.
    """
    exists = f"{path} exists: --force overwrites it, or choose another name"
    if not force and path.exists():
        raise click.ClickException(exists)
    try:
        fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        draft = Path(name)
        try:
            with os.fdopen(fd, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if force:
                draft.replace(path)
            else:
                # Unlike a rename this fails where another program was faster.
                path.hardlink_to(draft)
        finally:
            draft.unlink(missing_ok=True)
        _sync_directory(path.parent)
    except FileExistsError as error:
        raise click.ClickException(exists) from error
    except OSError as error:
        raise Misconfigured(f"{path} cannot be written: {error.strerror}") from error


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
