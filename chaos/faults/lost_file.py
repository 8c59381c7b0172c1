"""A store's file that is deleted or replaced under whoever has it open, and put back later, as an operator would.

What is put back is what was there at that moment: whatever is written to the file that is gone is lost.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final, Literal

__all__ = ["LostFile", "Loss"]

#: What happens to the file: it is deleted, or another one takes its name.
Loss = Literal["unlink", "replace"]

#: The database and its write-ahead log; its index is made anew from them.
_PARTS: Final = ("", "-wal")
_WITH_INDEX: Final = (*_PARTS, "-shm")


class LostFile:
    """The file of the store at `path`; `kept` is a directory for what was there, made when it is lost.

    The caller sees to it that nobody is in a transaction that writes.
    """

    def __init__(self, path: Path, kept: Path) -> None:
        self._path = path
        self._kept = kept

    @property
    def lost(self) -> bool:
        """Whether it is gone and was not put back."""
        return self._kept.exists()

    def lose(self, how: Loss) -> None:
        """Keep a copy of what is there, then delete the file or put an empty one in its place.

        Raises:
            OSError: there is no file, or it is lost already.
        """
        self._kept.mkdir()
        for part in _PARTS:
            if self._of(part).exists():
                shutil.copyfile(self._of(part), self._kept / f"store.db{part}")
        if how == "unlink":
            self._path.unlink()
            return
        other = self._kept / "other.db"
        other.touch(0o600)
        other.replace(self._path)

    def put_back(self) -> None:
        """Put what was kept in place of whatever is there. Nobody may have it open."""
        for part in _WITH_INDEX:
            self._of(part).unlink(missing_ok=True)
        for part in _PARTS:
            kept = self._kept / f"store.db{part}"
            if kept.exists():
                shutil.copyfile(kept, self._of(part))
                self._of(part).chmod(0o600)
        shutil.rmtree(self._kept)

    def _of(self, part: str) -> Path:
        return self._path.with_name(self._path.name + part)
