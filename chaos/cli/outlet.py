"""Where words go: results to stdout, everything else to stderr.

A reader of stdout that has had enough, as `head` has, changes nothing: the exit code is still that of the verdict.
"""

from __future__ import annotations

import os
import sys
from typing import Any, Final

import click
import orjson
from rich.console import Console

__all__ = ["out", "print_json", "put", "warn"]

_WIDTH: Final = 140


def put(text: str | bytes) -> None:
    """A line of the result."""
    try:
        click.echo(text)
    except BrokenPipeError:
        _unread()


def warn(text: str) -> None:
    """A line on stderr."""
    click.echo(text, err=True)


def print_json(document: Any) -> None:
    """One line of JSON on stdout."""
    put(orjson.dumps(document, option=orjson.OPT_NON_STR_KEYS, default=str))


def out() -> Console:
    """Tables on stdout: as wide as the terminal, or wide enough for what reads a pipe."""
    return _Tables(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)


class _Tables(Console):
    def on_broken_pipe(self) -> None:
        """Go on in silence, instead of exiting with another code."""
        self.quiet = True
        _unread()


def _unread() -> None:
    # A second failure, when the interpreter closes the stream, would only be noise.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
