"""Planted bugs as small patches over the real source, applied when a module is imported and nowhere else.

    Patch("ack before store", [Edit("meshforge_trio.protocol", "        at(BEFORE_ACK)\\n", "")])

The source stays as it is, on disk and in the bytecode cache. An edit whose snippet is not there exactly once is an
error: a patch that no longer fits is not a bug that was planted.

Nothing of the runtime is imported here, so that a process can install a patch before it imports what is patched.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import decode_source, spec_from_file_location
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import attrs

__all__ = [
    "Edit",
    "Patch",
    "PatchError",
    "assert_applied",
    "check",
    "diff_of",
    "install",
    "patch_from_json",
    "patch_to_json",
]


class PatchError(Exception):
    """A patch that does not fit the source, or comes too late: the bug is not planted."""


@attrs.frozen
class Edit:
    """In `module` the snippet `old`, which is there exactly once, becomes `new`."""

    module: str
    old: str
    new: str


def _together(edits: Iterable[Edit]) -> Sequence[Edit]:
    return tuple(edits)


@attrs.frozen
class Patch:
    """One planted bug. All snippets of a module are looked for in its real source, so they must not overlap."""

    name: str
    edits: Sequence[Edit] = attrs.field(converter=_together)

    @property
    def modules(self) -> Sequence[str]:
        """Those that are edited, in the order of their first edit."""
        return tuple(dict.fromkeys(edit.module for edit in self.edits))


def install(patch: Patch) -> None:
    """Have the modules of `patch` imported with its edits, in this process and those it forks.

    Raises:
        PatchError: it has no edits, one of them is imported already, or another patch over it is installed.
    """
    _need_edits(patch)
    for module in patch.modules:
        if module in sys.modules:
            raise PatchError(f"{patch.name}: {module} is imported already: install the patch before")
        for finder in sys.meta_path:
            if isinstance(finder, _Finder) and module in finder.patch.modules:
                raise PatchError(f"{patch.name}: {module} is patched already, by {finder.patch.name}")
    sys.meta_path.insert(0, _Finder(patch))


def assert_applied(patch: Patch) -> None:
    """Make sure that this process runs with every edit of `patch`. Call it when all is imported.

    Raises:
        PatchError: a module of it was never imported, or not through the patch.
    """
    for name in patch.modules:
        module = sys.modules.get(name)
        if module is None:
            raise PatchError(f"{patch.name}: {name} was never imported, so its edits are not applied")
        loader = module.__spec__.loader if module.__spec__ else None
        if not isinstance(loader, _Loader) or loader.patch != patch:
            raise PatchError(f"{patch.name}: {name} was imported without its edits")


def check(patch: Patch) -> None:
    """Make sure, without importing anything of it, that every edit fits today's source and the result compiles.

    Raises:
        PatchError: it has no edits, a module has no source, a snippet is not there exactly once, or what comes of it is
            no Python.
    """
    _need_edits(patch)
    for module in patch.modules:
        path = _path(patch, _located(patch, module))
        _compiled(patch, module, _edited(patch, module, _source(path)), path)


def diff_of(patch: Patch) -> str:
    """The patch as a unified diff.

    Raises:
        PatchError: it does not fit the source.
    """
    lines: list[str] = []
    for module in patch.modules:
        spec = _located(patch, module)
        before = _source(_path(patch, spec))
        name = module.replace(".", "/") + (".py" if spec.submodule_search_locations is None else "/__init__.py")
        after = _edited(patch, module, before)
        lines += difflib.unified_diff(_lines(before), _lines(after), f"a/{name}", f"b/{name}")
    return "".join(lines)


def patch_to_json(patch: Patch) -> dict[str, Any]:
    """The patch as JSON has it."""
    return attrs.asdict(patch)


def patch_from_json(value: Mapping[str, Any]) -> Patch:
    """Read what `patch_to_json` made.

    Raises:
        PatchError: it is something else.
    """
    try:
        edits = [Edit(edit["module"], edit["old"], edit["new"]) for edit in value["edits"]]
        patch = Patch(value["name"], edits)
    except (KeyError, TypeError) as error:
        raise PatchError(f"no patch: {type(error).__name__}: {error}") from error
    if not all(isinstance(text, str) for text in (patch.name, *(t for edit in edits for t in attrs.astuple(edit)))):
        raise PatchError("no patch: its name and the module, old and new of its edits must be text")
    return patch


# -- import ----------------------------------------------------------------------------------------------------------


class _Finder(MetaPathFinder):
    """Stands first and takes the modules of one patch; every other module is for those behind it."""

    def __init__(self, patch: Patch) -> None:
        self.patch = patch

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self.patch.modules:
            return None
        real = _unpatched(fullname, path)
        if real is None:
            return None
        file = _path(self.patch, real)
        return spec_from_file_location(
            fullname,
            file,
            loader=_Loader(self.patch, fullname, file),
            submodule_search_locations=real.submodule_search_locations,
        )


class _Loader(SourceFileLoader):
    """Compiles the edited source each time: what is cached under the name of the file is, and stays, the real code."""

    def __init__(self, patch: Patch, module: str, path: Path) -> None:
        super().__init__(module, str(path))
        self.patch = patch

    def get_code(self, fullname: str) -> CodeType:
        path = Path(self.path)
        return _compiled(self.patch, fullname, _edited(self.patch, fullname, _source(path)), path)


def _unpatched(name: str, path: Sequence[str] | None) -> ModuleSpec | None:
    """Where a module would come from without patches. `path` is that of its package."""
    for finder in sys.meta_path:
        spec = None if isinstance(finder, _Finder) else finder.find_spec(name, path)
        if spec is not None:
            return spec
    return None


def _located(patch: Patch, module: str) -> ModuleSpec:
    """Find a module by its full name without importing its packages, which `importlib.util.find_spec` would do."""
    path: Sequence[str] | None = None
    package, _, _ = module.rpartition(".")
    if package:
        path = _located(patch, package).submodule_search_locations or ()
    spec = _unpatched(module, path)
    if spec is None:
        raise PatchError(f"{patch.name}: there is no module {module}")
    return spec


def _need_edits(patch: Patch) -> None:
    if not patch.edits:
        raise PatchError(f"{patch.name}: has no edits, so it plants nothing")


def _path(patch: Patch, spec: ModuleSpec) -> Path:
    if not spec.has_location or spec.origin is None or not spec.origin.endswith(".py"):
        raise PatchError(f"{patch.name}: {spec.name} has no source file to patch")
    return Path(spec.origin)


def _source(path: Path) -> str:
    return decode_source(path.read_bytes())


def _lines(source: str) -> Sequence[str]:
    return [f"{line}\n" for line in source.removesuffix("\n").split("\n")]


def _edited(patch: Patch, module: str, source: str) -> str:
    """The source with every edit of the module."""
    spots: list[tuple[int, Edit]] = []
    for edit in patch.edits:
        if edit.module != module:
            continue
        if edit.old in ("", edit.new):
            raise PatchError(f"{patch.name}: {module}: an edit from {edit.old!r:.80} to {edit.new!r:.80} is none")
        count, at = _occurrences(source, edit.old)
        if count != 1:
            raise PatchError(
                f"{patch.name}: {module}: this is there {count} times instead of once, adapt the patch to the source: "
                f"{edit.old!r:.160}"
            )
        spots.append((at, edit))
    spots.sort(key=lambda spot: spot[0])
    parts: list[str] = []
    end = 0
    for at, edit in spots:
        if at < end:
            raise PatchError(f"{patch.name}: {module}: this overlaps with another edit: {edit.old!r:.160}")
        parts += source[end:at], edit.new
        end = at + len(edit.old)
    return "".join([*parts, source[end:]])


def _occurrences(source: str, snippet: str) -> tuple[int, int]:
    """How often a snippet is there, overlapping ones too, and where the last one begins."""
    count, last = 0, -1
    while (at := source.find(snippet, last + 1)) >= 0:
        count, last = count + 1, at
    return count, last


def _compiled(patch: Patch, module: str, source: str, path: Path) -> CodeType:
    try:
        return compile(source, str(path), "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        raise PatchError(f"{patch.name}: {module}: what comes of the edits is no Python: {error}") from error
