"""A PRD, from its file to its model: read, checked, and its examples played through."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Final

from meshforge_trio.factory.declarations import declare
from meshforge_trio.factory.model import Position, Prd
from meshforge_trio.factory.outline import read_outline
from meshforge_trio.factory.problems import PROBLEMS_MAX, Enough, PrdError, Problem, Problems
from meshforge_trio.factory.reach import check_endings, check_reach
from meshforge_trio.factory.rehearsal import rehearse
from meshforge_trio.factory.resolution import resolve

__all__ = ["BYTES_MAX", "load_prd", "problems_of_sentences", "read_prd"]

BYTES_MAX: Final = 1 << 20
_BYTE_ORDER_MARKS: Final = (b"\xff\xfe", b"\xfe\xff")


def load_prd(path: Path) -> Prd:
    """The model of a file.

    Raises:
        PrdError: it is no text that can be read, or what it says is wrong; with every problem of it.
        OSError: it cannot be opened.
    """
    with path.open("rb") as file:
        body = file.read(BYTES_MAX + 1)
    return read_prd(_decoded(body, path.name), path.name)


def _decoded(body: bytes, name: str) -> str:
    if len(body) > BYTES_MAX:
        raise _unreadable(name, f"the file is larger than {BYTES_MAX} bytes", "divide it into several workspaces")
    if body.startswith(_BYTE_ORDER_MARKS):
        raise _unreadable(name, "the file is UTF-16", "save it as UTF-8")
    if b"\0" in body:
        raise _unreadable(name, "the file is binary", "a PRD is a Markdown text")
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = body[: error.start].count(b"\n") + 1
        raise _unreadable(name, f"byte {error.start} is no UTF-8", "save the file as UTF-8", line) from error


def _unreadable(name: str, what: str, suggestion: str, line: int = 1) -> PrdError:
    return PrdError([Problem(line, 1, what, suggestion)], name)


def read_prd(text: str, name: str = "prd.md") -> Prd:
    """The model of a text; `name` is what problems call it.

    Raises:
        PrdError: what it says is wrong; with every problem of it. Examples are played through once the rest is right.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.strip():
        raise _unreadable(name, "the file is empty", "begin with a line like '# My shop'")
    problems = Problems()
    try:
        prd = _resolved(text, problems)
        check_reach(prd, problems)
        if not problems:
            # Only what is sound can be played.
            rehearse(prd, problems)
    except Enough as error:
        lines = text.split("\n")
        what = f"there are more than {PROBLEMS_MAX} problems"
        more = Problem(len(lines), len(lines[-1]) + 1, what, "mend these, then check it again")
        raise PrdError([*problems, more], name) from error
    if problems:
        raise PrdError(list(problems), name)
    return prd


def problems_of_sentences(text: str) -> list[Problem]:
    """What is wrong with each sentence of a text that is not finished yet. What is only missing is not told."""
    problems = Problems()
    with suppress(Enough):
        check_endings(_resolved(text, problems), problems)
    return sorted(problems)


def _resolved(text: str, problems: Problems) -> Prd:
    for number, line in enumerate(text.split("\n"), 1):
        for column, letter in enumerate(line, 1):
            if not (letter.isprintable() or letter == "\t"):
                problems.add(Position(number, column), f"the character {letter!r} is not text", "remove it")
    # Markdown would put another character into its place, and what is there could not be found again.
    text = text.replace("\0", "\ufffd")
    return resolve(declare(read_outline(text, problems), problems), problems)
