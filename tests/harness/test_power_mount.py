"""Images as files: SQLite makes of each what it would make of it by itself, and the next one starts from clean ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import apsw
import hypothesis
import pytest
from hypothesis import strategies

from chaos.power.images import FILES, Disk, Operation, put
from chaos.power.mount import Mount
from chaos.power.tape import Delete, Note, Step, Sync, Tape, Truncate, Write
from chaos.power.vfs import RecordingDisk


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    (tmp_path / "mount").mkdir()
    made = Mount(tmp_path / "mount")
    yield made
    made.close()


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Sequence[Step]:
    """What SQLite does for a few commits, a checkpoint, more commits, and a rollback journal at the very beginning."""
    path, tape = tmp_path_factory.mktemp("recorded") / "a.db", Tape()
    disk = RecordingDisk(path, tape)
    with closing(apsw.Connection(str(path), vfs=disk.name)) as connection:
        connection.pragma("journal_mode", "WAL")
        connection.pragma("synchronous", "FULL")
        connection.execute("CREATE TABLE t(a, b)")
        for number in range(8):
            connection.execute("INSERT INTO t VALUES (?, randomblob(600))", (number,))
            if number == 4:
                connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
    disk.unregister()
    return tape.steps


def rows_of(content: bytes) -> list[int]:
    """The numbers in a database."""
    with closing(apsw.Connection(":memory:")) as connection:
        # A copy in memory has no log to be in the mode of.
        connection.deserialize("main", content[:18] + b"\x01\x01" + content[20:])
        found = connection.execute("SELECT 1 FROM sqlite_schema").fetchall()
        return [a for (a,) in connection.execute("SELECT a FROM t")] if found else []


def by_itself(files: Mapping[str, bytes | bytearray], directory: Path) -> list[int]:
    """The numbers that SQLite finds in files it opens as anybody does."""
    for file in (*FILES, "-shm"):
        (directory / f"b.db{file}").unlink(missing_ok=True)
        if files.get(file):
            (directory / f"b.db{file}").write_bytes(files[file])
    with closing(apsw.Connection(str(directory / "b.db"))) as connection:
        found = connection.execute("SELECT 1 FROM sqlite_schema").fetchall()
        return [a for (a,) in connection.execute("SELECT a FROM t")] if found else []


def test_each_image_is_what_sqlite_finds_in_such_files(steps: Sequence[Step], mount: Mount, tmp_path: Path) -> None:
    """Every fifth image of a real recording, opened here and as anybody would."""
    disk = Disk()
    compared = 0
    found_ever = set()
    for at, step in enumerate(steps):
        base = disk.base
        anew = disk.take(at, step)
        if disk.base != base or not at:
            mount.rebase(disk.files)
        for number, recipe in enumerate(disk.recipes(at, anew=anew)):
            operations = disk.operations(recipe)
            mount.take(operations)
            seen = mount.look()
            assert not seen.failure
            if number % 5 == 0:
                files = {file: bytearray(content) for file, content in disk.files.items()}
                put(files, operations)
                assert rows_of(seen.content) == by_itself(files, tmp_path), str(recipe)
                compared += 1
                found_ever.add(tuple(rows_of(seen.content)))
    assert not list((tmp_path / "mount").glob("*-shm")), (
        "an index that outlives its image could be believed by the next"
    )
    assert compared > 100
    assert found_ever == {tuple(range(number)) for number in range(9)}


def test_equal_content_has_one_name_and_other_content_another(steps: Sequence[Step], mount: Mount) -> None:
    disk = Disk()
    contents: dict[bytes, bytes] = {}
    for at, step in enumerate(steps):
        disk.take(at, step)
        mount.rebase(disk.files)
        mount.take([op for _, op in disk.pending])
        seen = mount.look()
        assert contents.setdefault(seen.name, seen.content) == seen.content
    assert len(set(contents.values())) == len(contents) > 8


def test_what_is_no_database_is_told(mount: Mount) -> None:
    mount.rebase({"": bytearray(b"nonsense" * 1024), "-wal": bytearray(), "-journal": bytearray()})
    mount.take([])
    assert "NotADBError" in mount.look().failure


def test_a_torn_page_is_told(steps: Sequence[Step], mount: Mount) -> None:
    """The first page of the database, of which SQLite finds the schema, is half of nothing."""
    disk = Disk()
    for at, step in enumerate(steps):
        disk.take(at, step)
    mount.rebase(disk.files)
    mount.take([Delete("-wal", synced=True), Write("", 100, bytes(2000))])
    assert "CorruptError" in mount.look().failure
    mount.take([])
    assert rows_of(mount.look().content) == list(range(8))


def test_a_rollback_leaves_nothing_behind(tmp_path: Path, mount: Mount) -> None:
    """A journal that is hot is played back by whoever opens the image; the next image has it once more."""
    path, tape = tmp_path / "c.db", Tape()
    disk_of_tape = RecordingDisk(path, tape)
    with closing(apsw.Connection(str(path), vfs=disk_of_tape.name)) as connection:
        connection.execute("CREATE TABLE t(a, b)")
        connection.execute("INSERT INTO t VALUES (1, 2)")
        tape.note("mark")
        connection.execute("INSERT INTO t VALUES (2, 3)")
    disk_of_tape.unregister()
    until = max(at for at, step in enumerate(tape.steps) if isinstance(step, Delete))
    disk = Disk()
    for at, step in enumerate(tape.steps[:until]):
        disk.take(at, step)
    mount.rebase(disk.files)
    for _ in range(2):
        mount.take([op for _, op in disk.pending])
        assert rows_of(mount.look().content) == [1]
    mount.take([*(op for _, op in disk.pending), Delete("-journal", synced=False)])
    assert rows_of(mount.look().content) == [1, 2]


# -- the hash of an image ------------------------------------------------------------------------------------------

files = strategies.sampled_from(FILES)
operations_made = strategies.lists(
    strategies.one_of(
        strategies.builds(
            Write,
            files,
            strategies.integers(0, 9_000),
            strategies.sampled_from([b"\0", b"x", b"xx" * 3000, bytes(5000), b"y" * 4096]),
        ),
        strategies.builds(Truncate, files, strategies.integers(0, 14_000)),
        strategies.builds(Delete, files, strategies.just(value=False)),
    ),
    max_size=5,
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    made = Mount(tmp_path_factory.mktemp("shared"))
    yield made
    made.close()


@hypothesis.given(durable=operations_made, images=strategies.lists(operations_made, min_size=1, max_size=4))
def test_images_have_one_hash_if_they_are_the_same_bytes(
    shared: Mount, durable: list[Operation], images: list[list[Operation]]
) -> None:
    base = {file: bytearray() for file in FILES}
    put(base, durable)
    names: dict[bytes, tuple[bytes, ...]] = {}
    for before in ({file: bytearray() for file in FILES}, base):
        shared.rebase(before)
        for image in images:
            operations = image if before is base else [*durable, *image]
            whole = {file: bytearray(content) for file, content in before.items()}
            put(whole, operations)
            content = tuple(bytes(whole[file]) for file in FILES)
            assert names.setdefault(shared.take(operations), content) == content
    assert len(set(names.values())) == len(names)


def test_a_sync_and_a_note_are_no_operations() -> None:
    assert not isinstance(Sync(""), Operation)
    assert not isinstance(Note("point"), Operation)
