"""Planted bugs: they are there when they say so, and nowhere else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from chaos.mutants.patch import (
    Edit,
    Patch,
    PatchError,
    assert_applied,
    check,
    diff_of,
    install,
    patch_from_json,
    patch_to_json,
)

CLOCK = Edit("meshforge_trio.clock", "        return time.time()\n", "        return 7.0\n")
TOKEN = Edit("meshforge_trio.subjects", "__all__ = [\n", 'PLANTED = "yes"\n\n__all__ = [\n')
STORE = Edit("meshforge_trio.store", '"""The event store: a port and who fills it."""', 'PLANTED = "package"')
POINTS = Edit("meshforge_trio.points", "def no_probe(point: Point) -> None:\n", "def no_probe(*_: Point) -> None:\n")


def run(script: str, home: Path | None = None) -> str:
    """The output of a script in a process of its own, in which nothing of the runtime is imported yet."""
    start = f"from chaos.mutants.patch import *\nCLOCK, TOKEN, STORE = {(CLOCK, TOKEN, STORE)!r}\n"
    done = subprocess.run([sys.executable, "-c", start + script], cwd=home, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def refused(patch: Patch) -> str:
    with pytest.raises(PatchError) as caught:
        check(patch)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- in a process of its own -----------------------------------------------------------------------------------------


def test_an_edited_module_is_imported_with_its_edits() -> None:
    out = run(
        """
patch = Patch("p", [CLOCK, TOKEN])
install(patch)
from meshforge_trio import clock, subjects
assert_applied(patch)
print(clock.SystemClock().now(), subjects.PLANTED, subjects.event_subject.__module__)
"""
    )
    assert out == "7.0 yes meshforge_trio.subjects"


def test_an_edited_module_is_otherwise_itself() -> None:
    names = "m.__file__, m.__name__, m.__package__, m.__spec__.origin, m.is_token.__code__.co_filename"
    plain = run(f"import meshforge_trio.subjects as m\nprint({names})")
    assert run(f"install(Patch('p', [TOKEN]))\nimport meshforge_trio.subjects as m\nprint({names})") == plain


def test_modules_without_edits_are_untouched() -> None:
    out = run(
        """
install(Patch("p", [CLOCK]))
import sys
import meshforge_trio.clock, meshforge_trio.engine
from importlib.machinery import SourceFileLoader
print(sorted(n for n, m in sys.modules.items() if n.startswith("meshforge_trio")
             and type(m.__spec__.loader) is not SourceFileLoader))
"""
    )
    assert out == "['meshforge_trio.clock']"


def test_a_package_can_be_edited_and_its_modules_are_found() -> None:
    out = run(
        """
patch = Patch("p", [STORE, Edit("meshforge_trio.store.port", "S7  No space", "S7  Plenty of")])
install(patch)
import meshforge_trio.store.port, meshforge_trio.store.sqlite
assert_applied(patch)
print(meshforge_trio.store.PLANTED, "Plenty of" in meshforge_trio.store.port.__doc__)
"""
    )
    assert out == "package True"


def test_a_forked_child_has_the_edits_whenever_it_imports() -> None:
    out = run(
        """
import os
patch = Patch("p", [CLOCK])
install(patch)
if os.fork() == 0:
    from meshforge_trio import clock
    assert_applied(patch)
    os._exit(int(clock.SystemClock().now()))
print(os.waitstatus_to_exitcode(os.wait()[1]))
"""
    )
    assert out == "7"


def test_the_real_code_stays_in_the_bytecode_cache(tmp_path: Path) -> None:
    """A cache with a planted bug in it would plant it in every process that follows."""
    (tmp_path / "victim.py").write_text("VALUE = 'real'\n")
    plant = "install(Patch('p', [Edit('victim', 'real', 'planted')]))\n"
    show = "import sys\nsys.path.insert(0, '.')\nsys.dont_write_bytecode = False\nimport victim\nprint(victim.VALUE)\n"
    assert run(plant + show, tmp_path) == "planted"
    assert not list(tmp_path.rglob("*.pyc"))
    assert run(show, tmp_path) == "real"
    (cached,) = tmp_path.rglob("*.pyc")
    before = cached.read_bytes()
    assert run(plant + show, tmp_path) == "planted"
    assert cached.read_bytes() == before
    assert run(show, tmp_path) == "real"
    assert (tmp_path / "victim.py").read_text() == "VALUE = 'real'\n"


def test_two_patches_over_two_modules() -> None:
    out = run(
        """
one, two = Patch("one", [CLOCK]), Patch("two", [TOKEN])
install(one)
install(two)
from meshforge_trio import clock, subjects
assert_applied(one)
assert_applied(two)
print(clock.SystemClock().now(), subjects.PLANTED)
"""
    )
    assert out == "7.0 yes"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (
            "import meshforge_trio.clock\ninstall(Patch('p', [CLOCK]))",
            "p: meshforge_trio.clock is imported already: install the patch before",
        ),
        (
            "install(Patch('p', [TOKEN]))\ninstall(Patch('q', [CLOCK, TOKEN]))",
            "q: meshforge_trio.subjects is patched already, by p",
        ),
        ("install(Patch('p', []))", "p: has no edits, so it plants nothing"),
        (
            "patch = Patch('p', [CLOCK, TOKEN])\ninstall(patch)\nimport meshforge_trio.clock\nassert_applied(patch)",
            "p: meshforge_trio.subjects was never imported, so its edits are not applied",
        ),
        (
            "import meshforge_trio.clock\nassert_applied(Patch('p', [CLOCK]))",
            "p: meshforge_trio.clock was imported without its edits",
        ),
        (
            "install(Patch('q', [CLOCK]))\nimport meshforge_trio.clock\n"
            "assert_applied(Patch('p', [Edit('meshforge_trio.clock', 'time.time()', '8.0')]))",
            "p: meshforge_trio.clock was imported without its edits",
        ),
        (
            "install(Patch('p', [Edit('meshforge_trio.clock', 'return', 'yield')]))\nimport meshforge_trio.clock",
            "p: meshforge_trio.clock: this is there 3 times instead of once",
        ),
        (
            "install(Patch('p', [CLOCK, Edit('meshforge_trio.clock', 'no such', 'x')]))\nimport meshforge_trio.clock",
            "p: meshforge_trio.clock: this is there 0 times instead of once",
        ),
        (
            "install(Patch('p', [Edit('meshforge_trio.clock', 'import time', 'import (')]))\n"
            "import meshforge_trio.clock",
            "p: meshforge_trio.clock: what comes of the edits is no Python: ",
        ),
    ],
)
def test_a_bug_that_is_not_planted_is_an_error(script: str, reason: str) -> None:
    body = "\n".join(f"    {line}" for line in script.split("\n"))
    assert run(f"try:\n{body}\nexcept PatchError as error:\n    print(error)").startswith(reason)


def test_a_module_that_does_not_exist_stays_missing() -> None:
    script = """
install(Patch("p", [Edit("meshforge_trio.nowhere", "a", "b")]))
try:
    import meshforge_trio.nowhere
except ModuleNotFoundError as error:
    print(error)
"""
    assert run(script) == "No module named 'meshforge_trio.nowhere'"


def test_checking_and_showing_import_nothing() -> None:
    script = """
import sys
patch = Patch("p", [CLOCK, TOKEN, Edit("meshforge_trio.store.port", "S7  No space", "S7  Plenty of")])
check(patch)
print(len(diff_of(patch)) > 0, [name for name in sys.modules if name.startswith("meshforge_trio")])
"""
    assert run(script) == "True []"


# -- in this process -------------------------------------------------------------------------------------------------


def test_a_patch_that_fits_is_no_error() -> None:
    check(Patch("p", [CLOCK, TOKEN, STORE, POINTS]))


def test_a_patch_is_checked_against_the_real_source_where_another_is_installed() -> None:
    script = """
install(Patch("p", [CLOCK]))
check(Patch("q", [CLOCK]))
print(diff_of(Patch("q", [CLOCK])).count("return time.time()"))
"""
    assert run(script) == "1"


def test_what_does_not_fit_is_refused() -> None:
    clock = "meshforge_trio.clock"
    assert refused(Patch("p", [])) == "p: has no edits, so it plants nothing"
    assert "there is no module meshforge_trio.nowhere" in refused(Patch("p", [Edit("meshforge_trio.nowhere", "a", "")]))
    assert "there is no module no" in refused(Patch("p", [Edit("no.such.module", "a", "")]))
    assert "there is no module meshforge_trio.clock.x" in refused(Patch("p", [Edit("meshforge_trio.clock.x", "a", "")]))
    assert "time has no source file to patch" in refused(Patch("p", [Edit("time", "a", "b")]))
    assert "0 times instead of once, adapt the patch" in refused(Patch("p", [Edit(clock, "no such", "x")]))
    assert "3 times instead of once" in refused(Patch("p", [Edit(clock, "return", "x")]))
    assert "is none" in refused(Patch("p", [Edit(clock, "", "x")]))
    assert "is none" in refused(Patch("p", [Edit(clock, "return time.time()", "return time.time()")]))
    assert "is no Python" in refused(Patch("p", [Edit(clock, "return time.time()", "return (")]))
    assert "is no Python" in refused(Patch("p", [Edit(clock, "return time.time()", "return '\0'")]))


def test_edits_of_one_module_are_made_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "swapped.py").write_text("first = 1\nsecond = 2\naaa = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    there = Edit("swapped", "second", "first")
    assert "-second = 2\n" in diff_of(Patch("p", [there, Edit("swapped", "first", "second")]))
    check(Patch("p", [Edit("swapped", "first = 1", "x = 0"), Edit("swapped", "\nsecond = 2", "\ny = 0")]))
    assert "overlaps with another edit: 'second = 2'" in refused(
        Patch("p", [Edit("swapped", "second = 2", ""), Edit("swapped", "1\nsecond", "2\nsecond")])
    )
    assert "2 times" in refused(Patch("p", [Edit("swapped", "aa", "b")]))


def test_a_patch_is_shown_as_a_diff() -> None:
    assert diff_of(Patch("p", [STORE])) == (
        "--- a/meshforge_trio/store/__init__.py\n"
        "+++ b/meshforge_trio/store/__init__.py\n"
        "@@ -1 +1 @@\n"
        '-"""The event store: a port and who fills it."""\n'
        '+PLANTED = "package"\n'
    )
    two = diff_of(Patch("p", [CLOCK, TOKEN]))
    assert "--- a/meshforge_trio/clock.py\n" in two
    assert "-        return time.time()\n+        return 7.0\n" in two
    assert "+++ b/meshforge_trio/subjects.py\n" in two


def test_a_patch_as_json_is_the_same_patch() -> None:
    patch = Patch("p", [CLOCK, TOKEN])
    again = patch_from_json(orjson.loads(orjson.dumps(patch_to_json(patch))))
    assert again == patch
    assert hash(again) == hash(patch)


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"name": "p"},
        {"name": "p", "edits": 1},
        {"name": "p", "edits": [{"module": "m", "old": "a"}]},
        {"name": "p", "edits": ["edit"]},
        {"name": 1, "edits": []},
        {"name": "p", "edits": [{"module": "m", "old": "a", "new": None}]},
    ],
)
def test_json_that_is_no_patch(value: dict[str, object]) -> None:
    with pytest.raises(PatchError, match="no patch"):
        patch_from_json(value)


def test_an_installed_patch_is_told_from_none() -> None:
    import meshforge_trio.clock  # noqa: F401

    with pytest.raises(PatchError, match="without its edits"):
        assert_applied(Patch("p", [CLOCK]))
    with pytest.raises(PatchError, match="imported already"):
        install(Patch("p", [CLOCK]))
