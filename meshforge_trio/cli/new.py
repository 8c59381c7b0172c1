"""`meshforge new`: a PRD from questions and answers."""

from __future__ import annotations

from pathlib import Path

import click

from meshforge_trio.factory.interview import interview
from meshforge_trio.factory.prd import read_prd
from meshforge_trio.factory.problems import PrdError
from meshforge_trio.policy import ExitCode

__all__ = ["new"]


class _Terminal:
    """Questions on stderr, answers from stdin: typed or piped."""

    def ask(self, question: str, default: str = "") -> str:
        """One line."""
        answer: str = click.prompt(question, default=default, show_default=bool(default), err=True)
        return answer

    def tell(self, text: str) -> None:
        """One line."""
        click.echo(text, err=True)


@click.command(short_help="Write a PRD from your answers to questions.")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path), default=Path("prd.md"))
def new(file: Path) -> int:
    """Ask what a workspace is to do, and write it down as a PRD in FILE (prd.md).

    An answer that makes no sense is asked for again. Nothing is written before the last answer, and a FILE that exists
    is left alone. The exit code is 1 if the whole has a problem that no single answer had.
    """
    if file.exists():
        raise click.UsageError(f"{file} exists already; name another file")
    try:
        text = interview(_Terminal())
    except click.Abort:
        click.echo("\nThe answers ended before the questions; nothing was written.", err=True)
        raise
    try:
        with file.open("x", encoding="utf-8") as written:
            written.write(text)
    except FileExistsError as error:
        raise click.UsageError(f"{file} was written by somebody else meanwhile; name another file") from error
    try:
        read_prd(text, file.name)
    except PrdError:
        click.echo(f"{file}\n\nmeshforge prd check {file}")
        return ExitCode.FAILED
    click.echo(f"{file}\n\nmeshforge generate --prd {file} --profile local --output {file.stem}-workspace")
    return ExitCode.OK
