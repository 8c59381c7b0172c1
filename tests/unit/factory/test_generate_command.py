"""`meshforge generate`: what it says, writes and returns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from generated import DEMO

from meshforge_trio.cli import cli
from meshforge_trio.factory.profiles import PROFILES
from meshforge_trio.policy import ExitCode


def generate(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["generate", *map(str, arguments)], standalone_mode=False)


def at(home: Path, *more: str | Path, prd: Path = DEMO) -> Result:
    return generate("--prd", prd, "--output", home, *more)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A workspace of the demo."""
    made = tmp_path / "shop"
    assert at(made).return_value == ExitCode.OK
    return made


def renamed(home: Path) -> Path:
    """The workspace's PRD, changed so that one handler refuses in other words."""
    changed = home.parent / "changed.md"
    changed.write_text(DEMO.read_text().replace("each need a written offer", "each need an offer in writing"))
    return changed


def test_the_profiles_are_listed() -> None:
    listed = generate("--list-profiles").output
    for name in PROFILES:
        assert name in listed
    assert "lock_manager=on, security=signed" in listed


def test_it_says_what_it_wrote_and_what_comes_next(tmp_path: Path) -> None:
    done = at(tmp_path / "shop")
    assert "new       agents/order.py\n" in done.output
    assert "is ready: its README.md has the two commands that come next" in done.output
    assert (tmp_path / "shop/prd.md").read_text() == DEMO.read_text()


def test_again_there_is_nothing_to_do(home: Path) -> None:
    done = at(home, prd=home / "prd.md")
    assert done.output == "Nothing to do: the workspace is what the PRD says.\n"
    assert at(home, "--check").return_value == ExitCode.OK


def test_what_is_set_stays_set_until_it_is_set_anew(home: Path) -> None:
    app = home / "agents/__init__.py"
    at(home, "--set", "lock_manager=on")
    assert "LockManagerAdapter()" in app.read_text()
    assert "Nothing to do" in at(home).output
    at(home, "--profile", "local")
    assert "LockManagerAdapter()" not in app.read_text()


def test_a_changed_prd_changes_what_nobody_edited(home: Path) -> None:
    check = at(home, "--check", prd=renamed(home))
    assert check.return_value == ExitCode.FAILED
    assert "+        raise Refused(" in check.output
    assert "each need a written offer" in (home / "agents/order.py").read_text()
    assert at(home, prd=renamed(home)).return_value == ExitCode.OK
    assert "each need an offer in writing" in (home / "agents/order.py").read_text()


def test_a_conflict_is_a_diff_and_the_way_out_is_named(home: Path) -> None:
    order = home / "agents/order.py"
    mine = order.read_text() + "\n# Mine.\n"
    order.write_text(mine)
    done = at(home, prd=renamed(home))
    assert done.return_value == ExitCode.FAILED
    assert "conflict  agents/order.py  (changed by hand and by the PRD)" in done.output
    assert "offer in writing" in done.output
    assert "Nothing was written. Make these changes by hand, then say so: --keep agents/order.py" in done.stderr
    assert order.read_text() == mine
    assert (home / "prd.md").read_text() == DEMO.read_text()
    assert at(home, "--keep", "agents/order.py", prd=renamed(home)).return_value == ExitCode.OK
    assert order.read_text() == mine
    assert at(home, "--check", prd=renamed(home)).return_value == ExitCode.OK


def test_rules_in_words_are_named_and_never_written_over(tmp_path: Path) -> None:
    home, prd = tmp_path / "shop", tmp_path / "prd.md"
    rule = "- entity: new\n- custom: only members may order on Sundays"
    prd.write_text(DEMO.read_text().replace("- entity: new", rule, 1))
    done = at(home, prd=prd)
    assert "rules/order.py create_only_members_may_order_on_sundays" in done.output
    assert (
        "rules.create_only_members_may_order_on_sundays(state, payload, ctx)" in (home / "agents/order.py").read_text()
    )
    mine = (home / "rules/order.py").read_text() + "\n    raise ValueError\n"
    (home / "rules/order.py").write_text(mine)
    prd.write_text(prd.read_text().replace("- custom:", "- custom: nobody orders twice a minute\n- custom:", 1))
    assert at(home, prd=prd).return_value == ExitCode.OK
    now = (home / "rules/order.py").read_text()
    assert now.startswith(mine)
    assert "def create_nobody_orders_twice_a_minute(" in now


def test_for_machines_it_is_one_document(tmp_path: Path) -> None:
    document = json.loads(at(tmp_path / "shop", "--profile", "cluster", "--json").output)
    assert document["profile"] == "cluster"
    assert document["component_toggles"]["security"] == "signed"
    assert document["written"] is True
    assert {"path": "keys.py", "change": "new", "why": "", "diff": ""} in document["files"]


def test_of_a_wrong_prd_every_problem_is_told_and_nothing_is_written(tmp_path: Path) -> None:
    prd = tmp_path / "wrong.md"
    prd.write_text(
        DEMO.read_text().replace("| integer |", "| integr |", 1).replace("refuse `gone` unless", "refuse `gone` unles")
    )
    done = at(tmp_path / "shop", prd=prd)
    assert done.return_value == ExitCode.MISCONFIGURED
    assert "nothing was written" in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("wrong.md:")]) == 2
    assert not (tmp_path / "shop").exists()


def test_a_prd_that_is_not_there_is_told(tmp_path: Path) -> None:
    done = at(tmp_path / "shop", prd=tmp_path / "gone.md")
    assert done.return_value == ExitCode.MISCONFIGURED
    assert "gone.md cannot be read: No such file or directory" in done.stderr
