"""Where words go: results to stdout, everything else to stderr.

A reader that has had enough, as `head` has, changes nothing: the exit code is still that of the verdict.
"""

from __future__ import annotations

import os
import sys
from typing import Any, Final, TextIO

import click
import orjson
from rich.console import Console

__all__ = ["Screen", "out", "print_json", "put", "show_error", "warn"]

_WIDTH: Final = 140


def put(text: str | bytes) -> None:
    """A line of the result."""
    try:
        click.echo(text)
    except BrokenPipeError:
        _unread(sys.stdout)


def warn(text: str) -> None:
    """A line on stderr."""
    try:
        click.echo(text, err=True)
    except BrokenPipeError:
        _unread(sys.stderr)


def show_error(error: click.ClickException) -> None:
    """What is wrong with the arguments, on stderr."""
    try:
        error.show()
    except BrokenPipeError:
        _unread(sys.stderr)


def print_json(document: Any) -> None:
    """One line of JSON on stdout."""
    put(orjson.dumps(document, option=orjson.OPT_NON_STR_KEYS, default=str))


def out() -> Console:
    """Tables on stdout: as wide as the terminal, or wide enough for what reads a pipe."""
    return Screen(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)


class Screen(Console):
    """A console that need not be looked at to the end."""

    def on_broken_pipe(self) -> None:
        """Go on in silence, instead of exiting with another code."""
        self.quiet = True
        _unread(sys.stderr if self.stderr else sys.stdout)


def _unread(stream: TextIO) -> None:
    # A second failure, when the interpreter closes the stream, would only be noise.
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
