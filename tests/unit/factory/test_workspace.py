"""A workspace on disk: what is written, kept, shown and refused."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path

import pytest

from meshforge_trio.errors import Misconfigured
from meshforge_trio.factory.workspace import MANIFEST, File, Update, plan_update, read_manifest, write_update

PROFILE = {"name": "local"}
RULE = 'def first() -> None:\n    """First."""\n'
FILES = (File("a.py", "a = 1\n"), File("deep/er/b.txt", "b\n"), File("run.sh", "#!/bin/sh\n", executable=True))


def plan(home: Path, files: Sequence[File] = FILES, keep: Sequence[str] = ()) -> Update:
    return plan_update(home, files, profile=PROFILE, keep=keep)


def kinds(update: Update) -> dict[str, str]:
    return {change.path: change.kind for change in update.changes}


def contents(home: Path) -> dict[str, str]:
    return {str(path.relative_to(home)): path.read_text() for path in sorted(home.rglob("*")) if path.is_file()}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A workspace of `FILES`."""
    made = tmp_path / "shop"
    write_update(plan(made))
    return made


# -- new -------------------------------------------------------------------------------------------------------


def test_a_new_workspace_has_every_file_its_mode_and_a_manifest(home: Path) -> None:
    assert {path: text for path, text in contents(home).items() if path != MANIFEST} == {f.path: f.text for f in FILES}
    assert stat.S_IMODE((home / "run.sh").stat().st_mode) == 0o755
    assert stat.S_IMODE((home / "a.py").stat().st_mode) == 0o644
    manifest = read_manifest(home)
    assert manifest is not None
    assert (manifest.profile, manifest.bases) == (PROFILE, {file.path: file.text for file in FILES})


def test_an_empty_directory_is_filled_and_missing_parents_are_made(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for home in (tmp_path / "empty", tmp_path / "not/there/yet"):
        write_update(plan(home))
        assert (home / "a.py").read_text() == "a = 1\n"


def test_planning_writes_nothing(tmp_path: Path) -> None:
    update = plan(tmp_path / "shop")
    assert set(kinds(update).values()) == {"new"}
    assert list(tmp_path.iterdir()) == []


def test_killed_on_the_way_it_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    die_at_file(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        write_update(plan(tmp_path / "shop"))
    assert list(tmp_path.iterdir()) == []


def die_at_file(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    real, count = os.open, 0

    def dying(*arguments: object, **more: object) -> int:
        nonlocal count
        count += 1
        if count == number:
            raise KeyboardInterrupt
        return real(*arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", dying)


# -- again -----------------------------------------------------------------------------------------------------


def test_the_same_again_changes_nothing(home: Path) -> None:
    before = contents(home)
    update = plan(home)
    assert set(kinds(update).values()) == {"unchanged"}
    assert not update.writes
    write_update(update)
    assert contents(home) == before


def test_a_file_that_nobody_edited_follows_the_prd(home: Path) -> None:
    update = plan(home, (File("a.py", "a = 2\n"), *FILES[1:]))
    (change,) = update.writes
    assert (change.kind, change.path) == ("updated", "a.py")
    assert "-a = 1\n+a = 2\n" in change.diff
    write_update(update)
    assert (home / "a.py").read_text() == "a = 2\n"


def test_an_edited_file_stays_as_long_as_the_prd_says_nothing_new_of_it(home: Path) -> None:
    (home / "a.py").write_text("a = 1  # mine\n")
    update = plan(home, (*FILES, File("c.py", "c\n")))
    assert kinds(update) == {"a.py": "kept", "deep/er/b.txt": "unchanged", "run.sh": "unchanged", "c.py": "new"}
    write_update(update)
    assert (home / "a.py").read_text() == "a = 1  # mine\n"


@pytest.mark.parametrize(
    ("mine", "kind"),
    [
        ("# mine\na\nB\nc\nd\ne\nF\n", "kept"),
        ("# mine\na\nB\nc\nd\ne\nf\n", "conflict"),
        ("# mine\na\nB!\nc\nd\ne\nF\n", "conflict"),
        ("a\nB\nc\nd\ne\nF\n", "unchanged"),
    ],
    ids=["all", "half", "otherwise", "nothing else"],
)
def test_what_was_made_to_the_letter_beside_other_edits_is_no_conflict(tmp_path: Path, mine: str, kind: str) -> None:
    home = tmp_path / "shop"
    write_update(plan(home, [File("a.txt", "a\nb\nc\nd\ne\nf\n")]))
    (home / "a.txt").write_text(mine)
    asked = [File("a.txt", "a\nB\nc\nd\ne\nF\n")]
    assert kinds(plan(home, asked)) == {"a.txt": kind}
    if kind == "kept":
        write_update(plan(home, asked))
        assert (home / "a.txt").read_text() == mine
        assert kinds(plan(home, [File("a.txt", "a\nB\nc\nd\nE\nF\n")])) == {"a.txt": "conflict"}


def test_what_both_changed_is_shown_and_nothing_at_all_is_written(home: Path) -> None:
    (home / "a.py").write_text("a = 1  # mine\n")
    before = contents(home)
    update = plan(home, (File("a.py", "a = 2\n"), File("c.py", "c\n")))
    (conflict,) = update.conflicts
    assert conflict.path == "a.py"
    assert conflict.diff == "--- a/a.py\n+++ b/a.py\n@@ -1 +1 @@\n-a = 1\n+a = 2\n"
    with pytest.raises(Misconfigured, match=r"a\.py: changed by hand and by the PRD"):
        write_update(update)
    assert contents(home) == before


def test_a_conflict_is_settled_by_making_the_change_or_by_keeping_ones_own(home: Path) -> None:
    newer = (File("a.py", "a = 2\n"), *FILES[1:])
    (home / "a.py").write_text("a = 2\n")
    assert not plan(home, newer).conflicts
    (home / "a.py").write_text("a = 2  # mine\n")
    settled = plan(home, newer, keep=["a.py"])
    assert not settled.conflicts
    write_update(settled)
    assert (home / "a.py").read_text() == "a = 2  # mine\n"
    assert kinds(plan(home, newer))["a.py"] == "kept"


def test_a_stranger_in_the_place_of_a_new_file_is_a_conflict(home: Path) -> None:
    (home / "c.py").write_text("mine\n")
    (conflict,) = plan(home, (*FILES, File("c.py", "c\n"))).conflicts
    assert "-mine\n+c\n" in conflict.diff


def test_a_file_that_was_deleted_stays_deleted(home: Path) -> None:
    (home / "a.py").unlink()
    write_update(plan(home, (File("a.py", "a = 2\n"), *FILES[1:])))
    assert not (home / "a.py").exists()


def test_what_is_no_longer_generated_goes_unless_it_was_edited(home: Path) -> None:
    (home / "a.py").write_text("mine\n")
    update = plan(home, FILES[2:])
    assert kinds(update) == {"run.sh": "unchanged", "a.py": "kept", "deep/er/b.txt": "removed"}
    write_update(update)
    assert (home / "a.py").exists()
    assert not (home / "deep/er").exists()
    assert set(kinds(plan(home, FILES[2:]))) == {"run.sh"}


def test_killed_between_two_files_it_is_finished_by_doing_it_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    newer = (File("a.py", "a = 2\n"), File("deep/er/b.txt", "bb\n"), FILES[2])
    with monkeypatch.context() as patched:
        die_at_file(patched, 2)
        with pytest.raises(KeyboardInterrupt):
            write_update(plan(home, newer))
    assert (home / "a.py").read_text() == "a = 2\n"
    assert (home / "deep/er/b.txt").read_text() == "b\n"
    write_update(plan(home, newer))
    assert (home / "deep/er/b.txt").read_text() == "bb\n"
    assert not list(home.rglob(".*.*"))


# -- files of a person -----------------------------------------------------------------------------------------


def test_a_file_of_ones_own_is_only_ever_added_to(home: Path) -> None:
    own = File("rules.py", RULE, own=True)
    write_update(plan(home, (*FILES, own)))
    mine = '"""Mine."""\n\n\ndef first() -> None:\n    raise ValueError\n'
    (home / "rules.py").write_text(mine)
    second = 'def second() -> None:\n    """Second."""\n'
    grown = File("rules.py", f"{RULE}\n\n{second}", own=True)
    write_update(plan(home, (*FILES, grown)))
    assert (home / "rules.py").read_text() == f"{mine}\n\n{second}"
    write_update(plan(home, (*FILES, own)))
    assert (home / "rules.py").read_text() == f"{mine}\n\n{second}"


def test_a_file_of_ones_own_that_is_no_python_is_a_conflict(home: Path) -> None:
    own = File("rules.py", RULE, own=True)
    write_update(plan(home, (*FILES, own)))
    (home / "rules.py").write_text("def (\n")
    (conflict,) = plan(home, (*FILES, own)).conflicts
    assert conflict.why.startswith("it is no Python: line 1")


# -- refused ---------------------------------------------------------------------------------------------------


def test_a_directory_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(Misconfigured, match="is not empty and holds no workspace"):
        plan(tmp_path)
    with pytest.raises(Misconfigured, match="is no directory"):
        plan(tmp_path / "thesis.txt")


def test_nothing_is_written_through_a_symbolic_link(home: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (home / "linked").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Misconfigured, match="linked is a symbolic link"):
        plan(home, (*FILES, File("linked/x.py", "x\n")))
    (home / "a.py").unlink()
    (home / "a.py").symlink_to(tmp_path / "elsewhere/a.py")
    with pytest.raises(Misconfigured, match=r"a\.py is a symbolic link"):
        plan(home)


@pytest.mark.parametrize("path", ["../out.py", "/etc/x", "a/../../x", "", "a\\b", "a\0b"])
def test_a_path_that_leads_out_is_refused(home: Path, path: str) -> None:
    with pytest.raises(Misconfigured, match="is no path within a workspace"):
        plan(home, (*FILES, File(path, "x\n")))
    told = json.loads((home / MANIFEST).read_text())
    (home / MANIFEST).write_text(json.dumps({**told, "files": {path: "x\n"}}))
    with pytest.raises(Misconfigured, match="is no path within a workspace"):
        read_manifest(home)


@pytest.mark.parametrize(
    "text", ["", "[]", '{"version": 2, "profile": {}, "files": {}}', '{"version": 1, "profile": {}, "files": {"a": 1}}']
)
def test_a_manifest_that_is_none_is_refused(home: Path, text: str) -> None:
    (home / MANIFEST).write_text(text)
    with pytest.raises(Misconfigured, match="take it from version control"):
        plan(home)


def test_keeping_a_file_that_is_not_generated_is_refused(home: Path) -> None:
    with pytest.raises(Misconfigured, match=r"--keep b\.py: no such file"):
        plan(home, keep=["b.py"])


def test_a_file_that_is_no_text_is_told(home: Path) -> None:
    (home / "a.py").write_bytes(b"\xff\xfe")
    with pytest.raises(Misconfigured, match=r"a\.py cannot be read"):
        plan(home)


def test_what_cannot_be_written_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def full(path: str, flags: int, *more: int, **named: int) -> int:
        if flags & os.O_CREAT:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", full)
    with pytest.raises(Misconfigured, match=r"cannot be written: .*No space left"):
        write_update(plan(tmp_path / "shop"))
    assert list(tmp_path.iterdir()) == []
