"""Scratch directories: one a process, gone with it, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from chaos.scratch import file_name

CODE = """
import sys, time
from pathlib import Path
import chaos.scratch as scratch
scratch._IN_MEMORY, scratch._BYTES_MIN = Path(sys.argv[1]), int(sys.argv[2])
print(scratch.scratch_directory(), flush=True)
assert scratch.scratch_directory() == scratch.scratch_directory()
(scratch.scratch_directory() / "file").touch()
sys.stdin.read()
"""


def started(where: Path, *, bytes_min: int = 0) -> tuple[subprocess.Popen[str], Path]:
    """A process that has a scratch directory until its stdin is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, str(where), str(bytes_min)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(where.parent)},
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def ended(process: subprocess.Popen[str]) -> None:
    process.communicate(timeout=30)
    assert process.returncode == 0


def test_it_goes_with_its_process(tmp_path: Path) -> None:
    (tmp_path / "shm").mkdir()
    process, made = started(tmp_path / "shm")
    assert made.parent == tmp_path / "shm"
    assert made.is_dir()
    ended(process)
    assert not made.exists()


def test_what_a_killed_process_leaves_goes_with_the_next_and_what_is_in_use_stays(tmp_path: Path) -> None:
    (tmp_path / "shm").mkdir()
    living, stays = started(tmp_path / "shm")
    killed, left = started(tmp_path / "shm")
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=30)
    (left / "more").mkdir()
    unfinished = tmp_path / "shm/meshforge-scratch-being-made"
    unfinished.mkdir()
    assert left.exists()
    following, _ = started(tmp_path / "shm")
    assert not left.exists()
    assert stays.exists()
    assert list(unfinished.iterdir()) == []
    ended(following)
    ended(living)


def test_without_much_space_in_memory_it_is_with_other_temporary_files(tmp_path: Path) -> None:
    (tmp_path / "shm").mkdir()
    for where, bytes_min in ((tmp_path / "shm", 1 << 62), (tmp_path / "none", 0)):
        process, made = started(where, bytes_min=bytes_min)
        assert made.parent == tmp_path
        ended(process)


@pytest.mark.parametrize(
    ("text", "name"), [("../seats", "---seats"), ("a b/c", "a-b-c"), ("test_x[é]", "test_x-é-"), ("x" * 99, "x" * 60)]
)
def test_any_text_names_a_file(text: str, name: str) -> None:
    assert file_name(text) == name
