"""The tape and what writes it: everything that is done to a database's files, in order, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from chaos.power.images import FILES, Operation, put
from chaos.power.session import check_complete
from chaos.power.tape import Delete, Note, Step, Sync, Tape, TapeError, Truncate, Write, load_tape
from chaos.power.vfs import RecordingDisk

STEPS: list[Step] = [
    Note("session", {"number": 1}),
    Write("-wal", 32, b"\x00\xff"),
    Sync("-wal"),
    Truncate("", 8),
    Delete("-journal", synced=False),
    Note("acked", {"consumer": "c", "subject": "cmd.a", "headers": b"h\xff", "body": b"{}"}),
]


# -- the file ------------------------------------------------------------------------------------------------------


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    Tape({"app": "a:b"}, STEPS).save(tmp_path / "tape")
    found = load_tape(tmp_path / "tape")
    assert (found.told, found.steps) == ({"app": "a:b"}, STEPS)


def test_a_truncated_tape_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tape"
    Tape({}, STEPS).save(path)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    with pytest.raises(TapeError, match="holds 5 steps of 6"):
        load_tape(path)


@pytest.mark.parametrize(
    "text", [b"", b"{", b'{"steps": 0}\n', b'{"version": 1, "steps": 1, "told": {}}\n{"step": "x"}\n']
)
def test_what_is_no_tape_is_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "tape").write_bytes(text)
    with pytest.raises(TapeError, match="no tape, or a damaged one"):
        load_tape(tmp_path / "tape")


def test_a_newer_tape_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tape").write_bytes(b'{"version": 2, "steps": 0, "told": {}}\n')
    with pytest.raises(TapeError, match="is of version 2, this reads up to 1"):
        load_tape(tmp_path / "tape")


# -- the disk ------------------------------------------------------------------------------------------------------


@pytest.fixture
def tape() -> Tape:
    return Tape()


@pytest.fixture
def disk(tmp_path: Path, tape: Tape) -> Iterator[RecordingDisk]:
    made = RecordingDisk(tmp_path / "a.db", tape)
    yield made
    made.unregister()


def written(path: Path, disk: RecordingDisk) -> apsw.Connection:
    """A database with two commits in its log."""
    connection = apsw.Connection(str(path), vfs=disk.name)
    connection.pragma("journal_mode", "WAL")
    connection.pragma("synchronous", "FULL")
    connection.execute("CREATE TABLE t(a)")
    connection.execute("INSERT INTO t VALUES (1)")
    return connection


def test_the_tape_comes_to_what_the_files_are(tmp_path: Path, tape: Tape, disk: RecordingDisk) -> None:
    with closing(written(tmp_path / "a.db", disk)) as connection:
        check_complete(tape, tmp_path / "a.db")
        connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        connection.execute("INSERT INTO t VALUES (2)")
        check_complete(tape, tmp_path / "a.db")
    check_complete(tape, tmp_path / "a.db")
    assert tape.steps[-1] == Delete("-wal", synced=False)
    files = {file: bytearray() for file in FILES}
    put(files, [step for step in tape.steps if isinstance(step, Operation)])
    assert bytes(files[""]) == (tmp_path / "a.db").read_bytes()


def test_a_write_past_the_tape_is_noticed(tmp_path: Path, tape: Tape, disk: RecordingDisk) -> None:
    with closing(written(tmp_path / "a.db", disk)), closing(apsw.Connection(str(tmp_path / "a.db"))) as other:
        other.execute("INSERT INTO t VALUES (3)")
        with pytest.raises(TapeError, match=r"a\.db-wal is: it was written to past the recording VFS"):
            check_complete(tape, tmp_path / "a.db")


def test_each_commit_is_synced_after_its_writes(tmp_path: Path, tape: Tape, disk: RecordingDisk) -> None:
    with closing(written(tmp_path / "a.db", disk)) as connection:
        tape.note("mark")
        connection.execute("INSERT INTO t VALUES (2)")
    after = tape.steps[tape.steps.index(Note("mark")) + 1 :]
    kinds = [type(step) for step in after[:3]]
    assert kinds == [Write, Write, Sync]
    assert {step.file for step in after[:3] if isinstance(step, Write | Sync)} == {"-wal"}


def test_other_files_are_not_recorded(tmp_path: Path, tape: Tape, disk: RecordingDisk) -> None:
    with closing(written(tmp_path / "b.db", disk)):
        pass
    assert tape.steps == []
    with closing(written(tmp_path / "a.db", disk)):
        assert (tmp_path / "a.db-shm").exists()
    assert {step.file for step in tape.steps if isinstance(step, Operation)} == {"", "-wal", "-journal"}
