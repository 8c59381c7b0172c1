"""Crash images: what may be on a disk when the power goes, by what was synced and what was not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies

from chaos.power.images import FILES, SECTOR, Disk, Recipe, RecipeError, parse_recipe, put, rebuild
from chaos.power.tape import Delete, Note, Step, Sync, Tape, Truncate, Write


def after(steps: Sequence[Step]) -> tuple[Disk, Sequence[Recipe]]:
    """The disk after some steps, and the images that the last of them makes possible."""
    disk = Disk()
    anew = False
    for at, step in enumerate(steps):
        anew = disk.take(at, step)
    return disk, list(disk.recipes(len(steps) - 1, anew=anew))


def content(disk: Disk, recipe: Recipe, file: str = "-wal") -> bytes:
    """A file of an image."""
    files = {name: bytearray(durable) for name, durable in disk.files.items()}
    put(files, disk.operations(recipe))
    return bytes(files[file])


def contents(steps: Sequence[Step], *kinds: str, file: str = "-wal") -> list[bytes]:
    """A file of the images of some kinds."""
    disk, recipes = after(steps)
    return [content(disk, recipe, file) for recipe in recipes if recipe.kind in kinds]


A, B, C = Write("-wal", 0, b"a"), Write("-wal", 1, b"b"), Write("-wal", 2, b"c")


# -- which images --------------------------------------------------------------------------------------------------


def test_what_was_synced_is_there() -> None:
    assert contents([A, B, Sync("-wal")], "none") == [b"ab"]
    assert contents([A, B, Sync("")], "none") == [b""]


def test_the_writes_since_are_there_up_to_any_of_them() -> None:
    assert contents([A, Sync("-wal"), B, C], "prefix") == [b"abc"]
    assert contents([A, B, C, Sync("")], "prefix") == [b"a", b"ab", b"abc"]


def test_any_one_of_them_may_be_missing() -> None:
    assert contents([A, B, C], "without") == [b"\0bc", b"a\0c"]
    assert contents([A, B, C, Sync("")], "without") == [b"\0bc", b"a\0c", b"ab"]


def test_the_newest_may_be_there_alone() -> None:
    assert contents([A, B, C], "only") == [b"\0\0c"]


def test_a_write_is_torn_where_sectors_of_the_disk_meet() -> None:
    """One of two sectors and a bit that begins in the middle of a sector touches four."""
    write = Write("-wal", 100, b"x" * (2 * SECTOR + 450))
    first = contents([A, write], "first")
    assert first == [b"a" + bytes(99) + b"x" * (k * SECTOR - 100) for k in (1, 2, 3)]
    last = contents([A, write], "last")
    assert [len(each) for each in last] == [100 + len(write.content)] * 3
    assert [each.count(b"x") for each in last] == [len(write.content) - (k * SECTOR - 100) for k in (3, 2, 1)]
    assert all(each.endswith(b"x") for each in last)


def test_a_write_within_a_sector_is_not_torn() -> None:
    assert contents([Write("-wal", 32, b"x" * 24)], "first", "last") == []


def test_what_is_pending_when_another_file_is_synced_may_still_be_torn() -> None:
    write = Write("-wal", 0, b"x" * 2 * SECTOR)
    torn = [b"x" * SECTOR, bytes(SECTOR) + b"x" * SECTOR]
    assert contents([write, Write("-journal", 0, b"j"), Sync("")], "first", "last") == torn


def test_sectors_by_chance_are_old_or_new_and_the_same_each_time() -> None:
    old, new = Write("-wal", 0, b"o" * 3 * SECTOR), Write("-wal", 0, b"n" * 3 * SECTOR)
    drawn = contents([old, Sync("-wal"), new, new], "some")
    assert drawn == contents([old, Sync("-wal"), new, new], "some")
    assert len(set(drawn)) > 1
    for each in drawn:
        assert {each[at : at + SECTOR] for at in range(0, len(each), SECTOR)} <= {b"o" * SECTOR, b"n" * SECTOR}


def test_files_are_synced_one_by_one() -> None:
    steps: list[Step] = [A, Write("", 0, b"db"), Sync("-wal")]
    assert contents(steps, "none", file="") == [b""]
    assert contents(steps, "prefix", file="") == [b"db"]
    assert set(contents(steps, "none", "prefix")) == {b"a"}


def test_a_truncation_may_be_missing() -> None:
    steps: list[Step] = [A, B, C, Sync("-wal"), Truncate("-wal", 1), Write("-wal", 1, b"d")]
    assert contents(steps, "prefix", "without") == [b"ad", b"adc"]


def test_a_note_makes_no_image() -> None:
    assert not Disk().take(0, Note("point", {"point": "received"}))


# -- names ---------------------------------------------------------------------------------------------------------


def test_a_deleted_file_may_be_back_as_it_was() -> None:
    steps: list[Step] = [A, Sync("-wal"), B, Delete("-wal", synced=False)]
    assert contents(steps, "prefix", "without", "only") == [b"", b"", b""]
    disk, _ = after(steps)
    assert content(disk, Recipe(3, "none")) == b"a"
    assert content(disk, Recipe(3, "prefix", 2)) == b"ab"


def test_what_goes_to_the_new_file_is_not_seen_in_the_old_one() -> None:
    steps: list[Step] = [A, B, C, Sync("-wal"), Delete("-wal", synced=False), Write("-wal", 0, b"n")]
    disk, _ = after(steps)
    assert content(disk, Recipe(5, "without", 4)) == b"abc"
    assert content(disk, Recipe(5, "only", 5)) == b"abc"
    assert content(disk, Recipe(5, "prefix", 5)) == b"n"
    assert {content(disk, Recipe(5, "some", 5, draw)) for draw in range(1, 30)} == {b"abc", b"", b"n"}


def test_a_new_file_is_named_with_its_first_sync_and_the_deleted_ones_are_gone() -> None:
    steps: list[Step] = [
        Write("-journal", 0, b"j"),
        Sync("-journal"),
        Delete("-journal", synced=False),
        A,
        Sync("-wal"),
    ]
    disk, recipes = after(steps)
    assert [str(recipe) for recipe in recipes] == ["4:none"]
    assert (content(disk, recipes[0], "-journal"), content(disk, recipes[0])) == (b"", b"a")
    again: list[Step] = [
        *steps,
        Write("-journal", 0, b"k"),
        Sync("-journal"),
        Delete("-journal", synced=False),
        B,
        Sync("-wal"),
    ]
    disk, recipes = after(again)
    assert content(disk, Recipe(9, "none"), "-journal") == b"k"
    assert content(disk, recipes[-1], "-journal") == b""


def test_a_deletion_that_synced_the_directory_is_for_good() -> None:
    disk, recipes = after([A, Sync("-wal"), B, Delete("-wal", synced=True)])
    assert [content(disk, recipe) for recipe in recipes] == [b""]


# -- a disk that is never told to sync -----------------------------------------------------------------------------


def test_so_many_writes_reach_the_disk_by_themselves() -> None:
    steps: list[Step] = [Write("-wal", at, b"x") for at in range(100)]
    disk, recipes = after(steps)
    assert disk.settled == 100 - len(disk.pending) > 0
    assert bytes(disk.files["-wal"]) == b"x" * disk.settled
    assert content(disk, recipes[0]) == b"x" * 100


# -- recipes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["812:none", "812:prefix:805", "812:first:812:3", "9:some:9:4"])
def test_a_recipe_is_read_as_it_is_written(text: str) -> None:
    assert str(parse_recipe(text)) == text


@pytest.mark.parametrize("text", ["", "none", "812", "812:all:3", "812:prefix:x", "812:prefix:1:2:3"])
def test_what_is_no_recipe_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="is no recipe"):
        parse_recipe(text)


def test_an_image_is_made_again_from_its_recipe(tmp_path: Path) -> None:
    tape = Tape({}, [Write("", 0, b"db"), Sync(""), A, B, C])
    made = rebuild(tape, Recipe(4, "without", 3), tmp_path / "image")
    assert made == [tmp_path / "image/store.db", tmp_path / "image/store.db-wal"]
    assert [path.read_bytes() for path in made] == [b"db", b"a\0c"]


@pytest.mark.parametrize(
    ("recipe", "why"),
    [
        (Recipe(9, "none"), "this one has 5 steps"),
        (Recipe(4, "prefix", 0), "which is durable there"),
        (Recipe(4, "first", 2, 1), "has no 1 sectors"),
    ],
)
def test_a_recipe_of_another_tape_is_refused(tmp_path: Path, recipe: Recipe, why: str) -> None:
    with pytest.raises(RecipeError, match=why):
        rebuild(Tape({}, [Write("", 0, b"db"), Sync(""), A, B, C]), recipe, tmp_path)


# -- all of it together --------------------------------------------------------------------------------------------

files = strategies.sampled_from(FILES)
writes = strategies.builds(Write, files, strategies.integers(0, 1500), strategies.binary(min_size=1, max_size=1300))
steps_made = strategies.lists(
    strategies.one_of(
        writes,
        writes,
        strategies.builds(Truncate, files, strategies.integers(0, 2000)),
        strategies.builds(Sync, files),
        strategies.builds(Delete, files, strategies.booleans()),
    ),
    min_size=1,
    max_size=12,
)


@hypothesis.given(steps_made)
def test_an_image_is_made_of_nothing_but_what_was_written(steps: list[Step]) -> None:
    """Each byte is one that a write put there, or zero; with everything applied it is what the files are."""
    disk = Disk()
    now = {file: bytearray() for file in FILES}
    ever: dict[tuple[str, int], set[int]] = {}
    for at, step in enumerate(steps):
        anew = disk.take(at, step)
        if not isinstance(step, Sync | Note):
            put(now, [step])
        if isinstance(step, Write):
            for i, byte in enumerate(step.content):
                ever.setdefault((step.file, step.offset + i), {0}).add(byte)
        recipes = list(disk.recipes(at, anew=anew))
        assert len(set(recipes)) == len(recipes)
        for recipe in recipes:
            for file in FILES:
                found = content(disk, recipe, file)
                assert all(byte in ever.get((file, i), {0}) for i, byte in enumerate(found))
        newest = Recipe(at, "prefix", disk.pending[-1][0]) if disk.pending else Recipe(at, "none")
        assert all(content(disk, newest, file) == now[file] for file in FILES)
