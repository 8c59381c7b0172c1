"""Statements of many rows.

apsw gives up the interpreter lock around every step of a statement, so with a statement per row a commit beside a busy
event loop waits for that lock a thousand times.
"""
# ruff: noqa: S608  (SQL is put together from constants; every value is bound)

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import apsw

__all__ = ["insert", "select_in"]

# Rows, or names, to a statement. Few sizes, so that the prepared statements stay in the connection's cache.
_CHUNKS: Final = (64, 8, 1)


def insert(connection: apsw.Connection, into: str, rows: Sequence[tuple[Any, ...]], then: str = "") -> None:
    """Insert rows in their order. Violations roll the whole transaction back.

    Without OR ROLLBACK a statement of many rows keeps a copy of every page it touches, to undo itself alone.
    """
    if not rows:
        return
    one = "(" + ", ".join("?" * len(rows[0])) + ")"
    start = 0
    for size in _CHUNKS:
        sql = f"INSERT OR ROLLBACK INTO {into} VALUES {', '.join([one] * size)}{then}"
        while len(rows) - start >= size:
            connection.execute(sql, [value for row in rows[start : start + size] for value in row])
            start += size


def select_in(
    connection: apsw.Connection, select: str, number: int, names: Sequence[str], then: str = ""
) -> Iterator[tuple[Any, ...]]:
    """Rows of `select ... scope = ? AND name IN`; the last statement is filled up with a name it already has."""
    start = 0
    while start < len(names):
        size = next((size for size in _CHUNKS if len(names) - start >= size // 2), 1)
        chunk = names[start : start + size]
        sql = f"{select} ({', '.join('?' * size)}){then}"
        yield from connection.execute(sql, [number, *chunk, *[chunk[-1]] * (size - len(chunk))])
        start += size
