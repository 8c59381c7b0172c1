"""A workspace on disk: written whole or not at all, and updated without losing what a person changed in it.

Of every generated file `.meshforge/manifest.json` keeps the text as it was generated, its base. A new generation
compares three texts: the base, the file as it lies there, and the new one.

    file = base             nobody touched it: it is replaced
    new = base              somebody did, and the PRD says nothing new of it: it stays
    all three differ        a conflict: shown as the change the PRD asks for, and nothing at all is written

A file that belongs to a person (`own`) is written once; later only functions that it lacks are added at its end.
"""

from __future__ import annotations

import ast
import difflib
import json
import os
import secrets
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal

import attrs

from meshforge_trio.errors import Misconfigured

__all__ = ["MANIFEST", "Change", "File", "Kind", "Manifest", "Update", "plan_update", "read_manifest", "write_update"]

MANIFEST: Final = ".meshforge/manifest.json"

_VERSION: Final = 1
_MODE: Final = 0o644
_MODE_EXECUTABLE: Final = 0o755

Kind = Literal["new", "updated", "removed", "kept", "unchanged", "conflict"]


@attrs.frozen
class File:
    """What is generated at `path`, relative and with `/`. `own` files belong to whoever works on the workspace."""

    path: str
    text: str
    executable: bool = False
    own: bool = False


@attrs.frozen
class Manifest:
    """What a workspace was generated from: the profile as in its TOML file, and the base of each file by its path."""

    profile: Mapping[str, Any]
    bases: Mapping[str, str]

    def dumped(self) -> str:
        """As it is written."""
        told = {"version": _VERSION, "profile": dict(self.profile), "files": dict(self.bases)}
        return json.dumps(told, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


@attrs.frozen
class Change:
    """What becomes of one file. `text` is what it holds afterwards (`None`: it is not there, or left as it is).

    `diff` shows what is added or replaced; of a conflict, what the PRD asks for. `why` says more for people.
    """

    path: str
    kind: Kind
    text: str | None = None
    diff: str = ""
    why: str = ""
    executable: bool = False


@attrs.frozen
class Update:
    """What a generation does to a directory."""

    directory: Path
    changes: Sequence[Change]
    manifest: Manifest

    @property
    def conflicts(self) -> Sequence[Change]:
        """What has to be settled by a person first."""
        return [change for change in self.changes if change.kind == "conflict"]

    @property
    def writes(self) -> Sequence[Change]:
        """What is not as it would be."""
        return [change for change in self.changes if change.kind in ("new", "updated", "removed", "conflict")]


# -- what there is ---------------------------------------------------------------------------------------------


def read_manifest(directory: Path) -> Manifest | None:
    """The manifest of the workspace in `directory`; `None` if there is no such directory, or an empty one.

    Raises:
        Misconfigured: it holds something else, or a manifest that cannot be read.
    """
    if directory.exists() and not directory.is_dir():
        raise Misconfigured(f"{directory} is no directory: name another --output")
    path = directory / MANIFEST
    if not path.exists():
        if directory.exists() and any(directory.iterdir()):
            raise Misconfigured(
                f"{directory} is not empty and holds no workspace ({MANIFEST} is missing): name another --output"
            )
        return None
    try:
        _refuse_links(directory, MANIFEST)
        told = json.loads(path.read_text())
        if told["version"] != _VERSION:
            raise ValueError(f"it is of version {told['version']!r:.20}, this reads {_VERSION}")
        if not all(isinstance(path, str) and isinstance(text, str) for path, text in told["files"].items()):
            raise TypeError("files must be texts by path")
        for name in told["files"]:
            _checked_path(name)
        return Manifest(dict(told["profile"]), told["files"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise Misconfigured(
            f"{path} cannot be read ({type(error).__name__}: {error}): take it from version control"
        ) from error


def _checked_path(path: str) -> PurePosixPath:
    parts = PurePosixPath(path)
    if parts.is_absolute() or not parts.parts or ".." in parts.parts or "\\" in path or "\0" in path:
        raise Misconfigured(f"{path!r:.200} is no path within a workspace")
    return parts


def _refuse_links(directory: Path, path: str) -> Path:
    """Where `path` lies in `directory`. Nothing is read or written through a symbolic link."""
    place = directory
    for part in _checked_path(path).parts:
        place = place / part
        if place.is_symlink():
            raise Misconfigured(f"{place} is a symbolic link, and nothing is generated through one: remove it")
    return place


# -- what is to be done ----------------------------------------------------------------------------------------


def plan_update(
    directory: Path, files: Sequence[File], *, profile: Mapping[str, Any], keep: Collection[str] = ()
) -> Update:
    """What writing `files` into `directory` comes to; nothing is written.

    `keep` are paths whose conflicts a person has settled: they stay as they are, and what is new counts as their base.

    Raises:
        Misconfigured: the directory holds something that is no workspace, a path leads through a symbolic link, or
            `keep` names a file that is not generated.
    """
    manifest = read_manifest(directory)
    bases = {} if manifest is None else manifest.bases
    strangers = sorted(set(keep) - {file.path for file in files} - set(bases))
    if strangers:
        raise Misconfigured(f"--keep {strangers[0]}: no such file is generated")
    changes = [_change(_refuse_links(directory, file.path), file, bases.get(file.path), keep) for file in files]
    wanted = {file.path for file in files}
    changes += [
        _left_over(_refuse_links(directory, path), path, base)
        for path, base in sorted(bases.items())
        if path not in wanted
    ]
    made = Manifest(profile, {file.path: file.text for file in sorted(files, key=lambda file: file.path)})
    return Update(directory, changes, made)


def _change(place: Path, file: File, base: str | None, keep: Collection[str]) -> Change:
    mine = _read(place)
    if mine is None:
        if base is not None:
            return Change(file.path, "kept", why="deleted by hand")
        return Change(file.path, "new", file.text, executable=file.executable)
    if mine == file.text:
        return Change(file.path, "unchanged")
    if file.own:
        return _with_missing_functions(file, mine)
    if mine == base:
        return Change(file.path, "updated", file.text, _diff(file.path, mine, file.text), executable=file.executable)
    if base == file.text or file.path in keep or (base is not None and _is_made(base, mine, file.text)):
        return Change(file.path, "kept", why="changed by hand")
    why = "changed by hand and by the PRD" if base is not None else "there already, and not generated"
    return Change(file.path, "conflict", None, _diff(file.path, mine if base is None else base, file.text), why)


def _is_made(base: str, mine: str, wanted: str) -> bool:
    """Whether all that the PRD asks for anew stands there already, beside what else was changed by hand."""
    return _replacements(base, wanted) <= _replacements(base, mine)


def _replacements(old: str, new: str) -> set[tuple[int, int, str]]:
    """What stands in which lines' place."""
    before, after = old.splitlines(keepends=True), new.splitlines(keepends=True)
    blocks = difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    return {(i, end, "".join(after[j:to])) for tag, i, end, j, to in blocks if tag != "equal"}


def _left_over(place: Path, path: str, base: str) -> Change:
    mine = _read(place)
    if mine == base:
        return Change(path, "removed", None, _diff(path, base, ""))
    return Change(path, "kept", why="no longer generated" + ("" if mine is None else ", and changed by hand"))


def _read(place: Path) -> str | None:
    try:
        with place.open(encoding="utf-8", newline="") as opened:
            return opened.read()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise Misconfigured(f"{place} cannot be read ({error}): move it away") from error


def _with_missing_functions(file: File, mine: str) -> Change:
    """Somebody's own file, and after it the functions that it lacks."""
    try:
        there = {node.name for node in ast.parse(mine).body if isinstance(node, ast.FunctionDef)}
    except SyntaxError as error:
        return Change(file.path, "conflict", None, "", f"it is no Python: line {error.lineno}: {error.msg}")
    lacking = [text for name, text in _functions(file.text) if name not in there]
    if not lacking:
        return Change(file.path, "kept", why="yours")
    text = mine.rstrip("\n") + "\n" + "".join(f"\n\n{function}\n" for function in lacking)
    return Change(file.path, "updated", text, _diff(file.path, mine, text), executable=file.executable)


def _functions(text: str) -> Iterator[tuple[str, str]]:
    lines = text.splitlines()
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef):
            yield node.name, "\n".join(lines[node.lineno - 1 : node.end_lineno])


def _diff(path: str, old: str, new: str) -> str:
    lines = difflib.unified_diff(old.splitlines(keepends=True), new.splitlines(keepends=True), f"a/{path}", f"b/{path}")
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


# -- doing it --------------------------------------------------------------------------------------------------


def write_update(update: Update) -> None:
    """Do it. A new workspace is made beside its place and moved there; of an old one every file is replaced whole.

    Killed between two files of an old workspace, it is finished by doing the same again.

    Raises:
        Misconfigured: there are conflicts, or something cannot be written.
    """
    if update.conflicts:
        raise Misconfigured(f"{update.conflicts[0].path}: {update.conflicts[0].why}")
    directory = update.directory
    manifest = Change(MANIFEST, "updated", update.manifest.dumped())
    try:
        if (directory / MANIFEST).exists():
            for change in (*update.changes, manifest):
                _apply(directory, change)
            return
        directory.absolute().parent.mkdir(parents=True, exist_ok=True)
        beside = directory.absolute().with_name(f".{directory.absolute().name}.{secrets.token_hex(4)}")
        beside.mkdir()
        try:
            for change in (*update.changes, manifest):
                _apply(beside, change)
            with suppress(FileNotFoundError):
                directory.rmdir()
            beside.rename(directory)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
    except OSError as error:
        raise Misconfigured(f"{directory} cannot be written: {error}") from error


def _apply(directory: Path, change: Change) -> None:
    place = _refuse_links(directory, change.path)
    if change.kind == "removed":
        place.unlink(missing_ok=True)
        with suppress(OSError):  # not empty: somebody has put something there
            place.parent.rmdir()
    if change.text is None:
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    beside = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
    mode = _MODE_EXECUTABLE if change.executable else _MODE
    fd = os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(fd, "w", encoding="utf-8", newline="") as opened:
            opened.write(change.text)
        beside.chmod(mode)
        beside.replace(place)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
