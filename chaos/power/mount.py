"""One image after another as files that SQLite opens: on a file system in memory, rewritten only where they differ.

A database opened in exclusive mode keeps the index of its log in its own memory and writes nothing, so the same files
serve for thousands of images. What is read is the whole database as SQLite sees it: equal ones are told by their hash.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

import apsw
import attrs

from chaos.power.images import FILES, Operation, put
from chaos.power.tape import Write

__all__ = ["Mount", "Seen"]

#: Bytes that are compared, and hashed, together.
_BLOCK: Final = 4_096
_MODULUS: Final = 1 << 256
#: Beyond the end of any file.
_WHOLE: Final = 1 << 40
#: A file of fewer bytes holds no page, and with it SQLite deletes the log.
_SMALLEST: Final = 512


@attrs.frozen
class Seen:
    """What SQLite makes of an image: the whole database, or why there is none. `name` is the same for the same."""

    name: bytes
    content: bytes
    failure: str = ""


class Mount:
    """The files of one image, in a directory of its own. `close` it."""

    def __init__(self, directory: Path) -> None:
        """`directory` exists, and nobody else uses it."""
        self._paths = {file: directory / f"image.db{file}" for file in FILES}
        self._open: dict[str, int] = {}
        self._durable: dict[str, bytearray] = {file: bytearray() for file in FILES}
        self._work: dict[str, bytearray] = {file: bytearray() for file in FILES}
        self._dirty: dict[str, list[tuple[int, int]]] = {file: [] for file in FILES}
        self._hashes: dict[tuple[str, int], int] = {}
        self._sum = 0
        self._rewrite()

    def close(self) -> None:
        """Let go of the files; they stay."""
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()

    def rebase(self, files: Mapping[str, bytearray]) -> None:
        """From here on images are these files and what is put on top."""
        self._hashes.clear()
        for file in FILES:
            content = self._durable[file] = bytearray(files[file])
            for block in range(0, len(content), _BLOCK):
                self._hashes[file, block] = _hash(file, block, content[block : block + _BLOCK])
        self._sum = sum(self._hashes.values())
        self._rewrite()

    def take(self, operations: Sequence[Operation]) -> bytes:
        """Make the next image, of what is durable and these operations, in memory; return the hash of its bytes.

        That is the sum of the hashes of its blocks, so that only those that differ from what is durable are hashed.
        """
        self._restore()
        put(self._work, operations)
        for operation in operations:
            whole = (0, _WHOLE)
            span = (
                (operation.offset, operation.offset + len(operation.content)) if isinstance(operation, Write) else whole
            )
            self._dirty[operation.file].append(span)
        total = self._sum + sum(self._change(file, spans) for file, spans in self._dirty.items() if spans)
        sizes = b"".join(len(content).to_bytes(8, "big") for content in self._work.values())
        return (total % _MODULUS).to_bytes(32, "big") + sizes

    def _change(self, file: str, spans: Sequence[tuple[int, int]]) -> int:
        """By how much the sum of the hashes differs from that of what is durable."""
        old, new = self._durable[file], self._work[file]
        smaller, larger = sorted((len(old), len(new)))
        # What lies between the sizes, whether written or not, and the block in which it begins.
        between = [(max(smaller - 1, 0), larger)] if smaller < larger else []
        change = 0
        for block in _blocks([*spans, *between], larger):
            content = new[block : block + _BLOCK]
            if content != old[block : block + _BLOCK]:
                change += _hash(file, block, content) - self._hashes.get((file, block), 0)
        return change

    def look(self) -> Seen:
        """Open the image that was made last."""
        for file, spans in self._dirty.items():
            if spans:
                self._write(file, spans)
        try:
            with closing(apsw.Connection(str(self._paths[""]))) as connection:
                connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
                connection.execute("PRAGMA locking_mode = EXCLUSIVE")
                connection.execute("SELECT count(*) FROM sqlite_schema")
                content = connection.serialize("main")
        except apsw.Error as error:
            failure = f"{type(error).__name__}: {error}"
            seen = Seen(failure.encode(), b"", failure)
        else:
            seen = Seen(hashlib.sha256(content).digest(), content)
        if self._work["-journal"] or len(self._work[""]) < _SMALLEST:
            # SQLite has rolled back, or thrown a log away: what lies there now is not the image any more.
            self._rewrite()
        else:
            self._clean()
        return seen

    def _clean(self) -> None:
        """Have the files as they are durable again."""
        for file, spans in self._dirty.items():
            if spans:
                self._undo(file)
                self._write(file, spans)
                spans.clear()

    def _restore(self) -> None:
        """Have what is in memory as it is durable; the files were never touched."""
        for file, spans in self._dirty.items():
            if spans:
                self._undo(file)
                spans.clear()

    def _undo(self, file: str) -> None:
        old, new = self._durable[file], self._work[file]
        if len(new) > len(old):
            del new[len(old) :]
        for start, end in self._dirty[file]:
            new[start:end] = old[start:end]

    def _write(self, file: str, spans: Sequence[tuple[int, int]]) -> None:
        content, descriptor = memoryview(self._work[file]), self._open[file]
        for start, end in _merged(spans):
            os.pwrite(descriptor, content[start:end], start)
        content.release()
        os.ftruncate(descriptor, len(self._work[file]))

    def _rewrite(self) -> None:
        self.close()
        for file, path in self._paths.items():
            path.write_bytes(self._durable[file])
            self._open[file] = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            self._work[file][:] = self._durable[file]
            self._dirty[file].clear()


def _hash(file: str, block: int, content: bytes | bytearray) -> int:
    """Of one block at its place; 0 where there is none."""
    if not content:
        return 0
    return int.from_bytes(hashlib.sha256(f"{file} {block} ".encode() + content).digest(), "big")


def _merged(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _blocks(spans: Sequence[tuple[int, int]], size: int) -> list[int]:
    """Where the blocks begin that any of the spans touches."""
    found: list[int] = []
    for start, end in _merged(spans):
        first = start // _BLOCK * _BLOCK
        if found and first <= found[-1]:
            first = found[-1] + _BLOCK
        found.extend(range(first, min(end, size), _BLOCK))
    return found
