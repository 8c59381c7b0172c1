"""Where runs happen: in memory, if the machine has a file system there, else with the system's temporary files.

A SIGKILL keeps the page cache, so a process crash looks the same on either; a file system in memory has no disk to
wait for.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

__all__ = ["scratch_directory"]

_IN_MEMORY: Final = Path("/dev/shm")  # noqa: S108
#: What some runs at a time need, with room to spare; containers often have less.
_BYTES_MIN: Final = 1 << 30


def scratch_directory() -> Path | None:
    """A directory for temporary files that are written much; `None` stands for the system's own."""
    if not (_IN_MEMORY.is_dir() and os.access(_IN_MEMORY, os.W_OK | os.X_OK)):
        return None
    return _IN_MEMORY if shutil.disk_usage(_IN_MEMORY).free >= _BYTES_MIN else None
