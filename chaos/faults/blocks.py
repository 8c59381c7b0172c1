"""Damage to what a nats-server keeps of a stream on disk: a torn tail, a flipped bit, a lost index.

The server must be dead or paused beforehand and started anew afterwards. A stream is a directory of numbered block
files (`1.blk`, `2.blk`, ...), each a sequence of records, and, after an end in good order, `index.db`, which spares the
next start reading them. What the server makes of damage (2.15.1, one replica):

* a tail cut off: the stream is shorter, and sequences are given out a second time, unless an index survived that
  knows them: then they pass for deleted;
* a flipped bit and no index, as after a kill: the block is read up to the flip, and what lay behind it in the block is
  gone;
* a flipped bit and an index, as after an end in good order: the stream counts the message and never hands it out.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import attrs

__all__ = ["BlockError", "block_files", "flip_bit", "lose_index", "truncate_newest_block"]

# Length, sequence, time and length of the subject; the subject, the header block after its own length, the body and
# a checksum of eight bytes follow. All little-endian.
_HEAD: Final = struct.Struct("<IQqH")
_CHECKSUM: Final = 8
_WITH_HEADERS: Final = 1 << 31
# Set in the sequence of a record that deletes another, or was deleted itself.
_GONE: Final = (1 << 63) | (1 << 62)


class BlockError(ValueError):
    """There is no such stream on the disk, or nothing in it that could be damaged as asked."""


@attrs.frozen
class _Record:
    """A message in a block file: where it starts and ends, and where its body starts, in bytes."""

    seq: int
    start: int
    body: int
    end: int


def truncate_newest_block(store_dir: Path, stream: str, messages: int = 1, *, torn: bool = True) -> int:
    """Cut the newest `messages` messages off the newest block that holds any.

    `torn` cuts in the middle of a record, as a write cut short leaves it: the server says that it found damage. Else
    the block ends with a whole record, as after a power failure that lost the newest writes: the server says nothing.
    With an index it gives out none of the lost sequences again and takes them for deleted; without one it does not
    know of them. Returns the sequence of the oldest message lost.

    Raises:
        BlockError: there is no such stream, or its newest block holds fewer messages.
    """
    path, records = _newest(store_dir, stream)
    if len(records) < messages:
        raise BlockError(f"{path} holds {len(records)} messages, {messages} cannot be cut off")
    first = records[-messages]
    with path.open("r+b") as file:
        file.truncate((first.start + first.end) // 2 if torn else first.start)
    return first.seq


def flip_bit(store_dir: Path, stream: str, seq: int | None = None) -> int:
    """Flip one bit in the stored body of the message at `seq`, or of the one in the middle of the newest block.

    Returns the sequence.

    Raises:
        BlockError: there is no such stream or message.
    """
    if seq is None:
        path, records = _newest(store_dir, stream)
        record = records[len(records) // 2]
    else:
        path, record = _find(store_dir, stream, seq)
    with path.open("r+b") as file:
        at = (record.body + record.end - _CHECKSUM) // 2
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    return record.seq


def lose_index(store_dir: Path, stream: str) -> bool:
    """Remove the stream's index, so that the server reads every block when it starts; whether there was one."""
    index = _directory(store_dir, stream) / "index.db"
    found = index.exists()
    index.unlink(missing_ok=True)
    return found


def block_files(store_dir: Path, stream: str) -> Sequence[Path]:
    """The block files of a stream, oldest first.

    Raises:
        BlockError: there is no such stream.
    """
    return sorted(_directory(store_dir, stream).glob("*.blk"), key=lambda path: int(path.stem))


def _directory(store_dir: Path, stream: str) -> Path:
    found = [path for path in store_dir.glob(f"jetstream/*/streams/{stream}/msgs") if path.is_dir()]
    if len(found) != 1:
        raise BlockError(f"{store_dir} holds {len(found)} streams called {stream}, not one")
    return found[0]


def _newest(store_dir: Path, stream: str) -> tuple[Path, Sequence[_Record]]:
    for path in reversed(block_files(store_dir, stream)):
        if records := list(_records(path)):
            return path, records
    raise BlockError(f"stream {stream} holds no message on the disk")


def _find(store_dir: Path, stream: str, seq: int) -> tuple[Path, _Record]:
    for path in block_files(store_dir, stream):
        for record in _records(path):
            if record.seq == seq:
                return path, record
    raise BlockError(f"no block of stream {stream} holds sequence {seq}")


def _records(path: Path) -> Iterator[_Record]:
    """The messages of a block file that are whole and were not deleted."""
    block = path.read_bytes()
    start = 0
    while start + _HEAD.size <= len(block):
        length, seq, _, subject = _HEAD.unpack_from(block, start)
        end = start + (length & ~_WITH_HEADERS)
        body = start + _HEAD.size + subject
        if length & _WITH_HEADERS and body + 4 <= len(block):
            body += 4 + int.from_bytes(block[body : body + 4], "little")
        if end > len(block) or body + _CHECKSUM > end:
            if seq & _GONE and end <= len(block):
                start = end
                continue
            if end > len(block):
                return
            raise BlockError(f"{path} holds no records that can be read at byte {start} (compressed or encrypted?)")
        if seq and not seq & _GONE:
            yield _Record(seq, start, body, end)
        start = end
