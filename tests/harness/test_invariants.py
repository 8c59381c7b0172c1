"""Invariants over states: judged on rows that hold, and on rows that break them in each way."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import orjson
import pytest
from click.testing import CliRunner

from chaos.checkers import Checker
from chaos.cli.gate import target_of
from chaos.evidence import Evidence, Sent
from chaos.invariants import of_all, of_all_chains, of_each, of_each_step
from chaos.project import ProjectError, load_project
from chaos.rows import OutputRow, Rows
from chaos.workload import command
from meshforge_trio.agent import Agent, Context, Event
from meshforge_trio.runtime import App
from meshforge_trio.subjects import Scope

APP: Final = "invariants_bank:app"
ACCOUNT: Final = Scope("default", "demo", "account")
BANK: Final = Scope("default", "demo", "bank")
OTHER: Final = Scope("default", "other", "account")


def adding(name: str) -> Agent[int]:
    agent: Agent[int] = Agent(name, state=int, initial=int)

    @agent.command("move")
    def move(state: int, payload: dict[str, Any], ctx: Context) -> Event:
        return Event("moved", {"by": payload["by"]})

    @agent.event("moved")
    def moved(state: int, event: dict[str, Any]) -> int:
        return state + int(event["by"])

    return agent


@pytest.fixture(autouse=True)
def app(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two agents whose states are sums."""
    module = ModuleType("invariants_bank")
    vars(module)["app"] = App([adding("account"), adding("bank")])
    monkeypatch.setitem(sys.modules, "invariants_bank", module)


class Story:
    """Rows of events, one after another, and the commands that began it all."""

    def __init__(self) -> None:
        self.rows: list[OutputRow] = []
        self.sent: list[Sent] = []
        self._versions: dict[tuple[Scope, str], int] = {}

    def asks(self, number: int, action: str, scope: Scope = ACCOUNT) -> Story:
        self.sent.append(Sent(command(scope, action, number)))
        return self

    def moves(self, entity: str, *steps: int, chain: str = "c1", key: str = "", scope: Scope = ACCOUNT) -> Story:
        """One decision: an event for each step."""
        for by in steps:
            version = self._versions[scope, entity] = self._versions.get((scope, entity), 0) + 1
            n = 1 + sum(row.scope == scope for row in self.rows)
            body = orjson.dumps({"name": "moved", "payload": {"by": by}, "correlation_id": chain})
            row = OutputRow(scope, n, "event", key or f"{chain}-{n}", "", "moved", "", "", body, entity, version, b"")
            self.rows.append(row)
        return self

    def told(self, *, final: bool = True) -> Evidence:
        return Evidence(Rows(self.rows), sent=self.sent, final=final)


def findings(checker: Checker, story: Story) -> Sequence[str]:
    judgement = checker.judge(story.told())
    assert judgement.failure == ""
    assert judgement.examined > 0
    return [finding.what for finding in judgement.findings]


POSITIVE: Final = of_each("account: balance >= 0", APP, "account", lambda state: state >= 0)
RISES: Final = of_each_step("account: balance never decreases", APP, "account", lambda before, after: before <= after)
EVEN: Final = of_all("sum(account) == sum(bank)", APP, lambda s: sum(s["account"].values()) == sum(s["bank"].values()))
CONSTANT: Final = of_all_chains(
    "sum(account) is constant",
    APP,
    lambda states: sum(states["account"].values()),
    lambda changed: changed == 0,
    besides=[("account", "open")],
)


def test_each_entity_is_judged_after_each_decision() -> None:
    assert findings(POSITIVE, Story().moves("a", 5).moves("a", -5).moves("b", 1)) == []
    (found,) = findings(POSITIVE, Story().moves("a", 5).moves("a", -6).moves("a", 1))
    assert found == "default/demo/account 'a' at version 2 (moved): it does not hold of -1"


def test_within_a_decision_it_may_be_broken() -> None:
    assert findings(POSITIVE, Story().moves("a", -5, 5, key="k1")) == []


def test_what_another_entity_or_workspace_has_is_no_part_of_it() -> None:
    assert findings(POSITIVE, Story().moves("a", 5).moves("b", 5).moves("a", -5)) == []
    assert len(findings(POSITIVE, Story().moves("a", 5).moves("a", -5, scope=OTHER))) == 1


def test_of_a_corpse_entities_are_judged_and_the_whole_is_not() -> None:
    assert (POSITIVE.on_corpse, RISES.on_corpse, EVEN.on_corpse, CONSTANT.on_corpse) == (True, True, False, False)
    assert not POSITIVE.judge(Story().moves("a", -1).told(final=False)).holds


def test_steps_are_judged_from_one_decision_to_the_next() -> None:
    assert findings(RISES, Story().moves("a", -9).moves("a", 1)) == []
    (found,) = findings(RISES, Story().moves("a", 9).moves("a", -1))
    assert "from 9 to 8" in found


def test_all_entities_together_are_judged_at_the_end() -> None:
    even = Story().moves("a", 3).moves("b", 4).moves("x", 7, scope=BANK)
    assert findings(EVEN, even) == []
    (found,) = findings(EVEN, even.moves("x", 1, scope=BANK))
    assert "account 'a': 3; account 'b': 4; bank 'x': 8" in found


def test_workspaces_are_not_added_up() -> None:
    story = Story().moves("a", 7).moves("x", 7, scope=BANK).moves("a", 1, scope=OTHER)
    (found,) = findings(EVEN, story)
    assert found.startswith("default/other: ")


def test_a_chain_may_change_a_value_on_its_way_and_has_to_give_it_back() -> None:
    story = Story().asks(1, "open").asks(2, "pay")
    story.moves("a", 10, chain="c1").moves("a", -3, chain="c2").moves("b", 3, chain="c2")
    assert findings(CONSTANT, story) == []
    (found,) = findings(CONSTANT, story.asks(3, "pay").moves("a", -3, chain="c3"))
    assert found == "default/demo: pay of account (c3) changed it by -3"


def test_a_chain_that_nobody_asked_for_counts_as_well() -> None:
    (found,) = findings(CONSTANT, Story().moves("a", 1, chain="c9"))
    assert found == "default/demo: a command of an agent (c9) changed it by 1"


def test_nothing_to_examine_is_told() -> None:
    assert POSITIVE.judge(Story().moves("x", 1, scope=BANK).told()).examined == 0
    assert CONSTANT.judge(Story().asks(1, "open").moves("a", 1).told()).examined == 0


def test_an_invariant_that_raises_has_not_judged() -> None:
    broken = of_each("broken", APP, "account", lambda state: state.missing)
    assert "AttributeError" in broken.judge(Story().moves("a", 1).told()).failure


# -- in the configuration of a project -------------------------------------------------------------------------


def project(home: Path, line: str, source: str = "") -> None:
    (home / "own_invariants.py").write_text(source)
    text = '[tool.meshforge-chaos]\napp = "invariants_bank:app"\nworkload = "w.jsonl"\n'
    (home / "pyproject.toml").write_text(f"{text}{line}\n")
    (home / "w.jsonl").write_text('{"agent": "account", "action": "move"}\n')


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory to import from, and nothing left of it afterwards."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "own_invariants", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


SOURCE = "from chaos.checkers import Checker\nMINE = [Checker('mine', 'Mine.', lambda evidence: [1])]\nNONE = [1]\n"


def test_a_project_has_its_invariants_judged_by_the_gate_and_by_replays(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project(home, 'invariants = "own_invariants:MINE"', SOURCE)
    found = load_project(home)
    assert [checker.id for checker in found.invariants] == ["mine"]
    assert [checker.id for checker in target_of(found).base.invariants] == ["mine"]
    judged: list[str] = []

    def execute(scenario: Any, given: Any) -> int:
        judged.extend(checker.id for checker in scenario.invariants)
        return 0

    monkeypatch.setattr("chaos.cli.run.execute", execute)
    from chaos.cli import cli

    done = CliRunner().invoke(cli, ["run", "--app", APP, "--workload", "w.jsonl"], standalone_mode=False)
    assert done.return_value == 0, done.output
    assert judged == ["mine"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("invariants = 1", "invariants must be <module>:<attribute>"),
        ('invariants = "own_invariants"', "invariants must be <module>:<attribute>"),
        ('invariants = "own_invariants:GONE"', "own_invariants:GONE cannot be imported: AttributeError"),
        ('invariants = "gone_invariants:MINE"', "gone_invariants:MINE cannot be imported: ModuleNotFoundError"),
        ('invariants = "own_invariants:NONE"', "own_invariants:NONE must be a list of chaos.checkers.Checker"),
    ],
)
def test_invariants_that_are_none_are_told(home: Path, line: str, said: str) -> None:
    project(home, line, SOURCE)
    with pytest.raises(ProjectError, match=said):
        load_project(home)
