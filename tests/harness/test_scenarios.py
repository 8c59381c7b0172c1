"""The scenario scripts: each can be loaded, says what it is about, and claims what its workload can show."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import orjson
import pytest

from chaos.case import Case
from chaos.checkers import CHECKERS
from chaos.evidence import Evidence, Sent
from chaos.history import Record
from chaos.lab import Lab, Outcome
from chaos.plan import check_plan
from chaos.rows import KeyRow, Letter, OutputRow, Rows
from chaos.scenario import Scenario, load_scenario, run_scenario
from chaos.verdict import Status, Verdict
from meshforge_trio.envelope import encode
from meshforge_trio.launch import load_app
from meshforge_trio.subjects import Scope

ROOT = Path(__file__).parents[2]
REGRESSIONS = ROOT / "scenarios/regressions"
SCRIPTS = [
    path
    for folder in (ROOT / "scenarios", REGRESSIONS)
    for path in sorted(folder.glob("*.py"))
    if "\nSCENARIO = " in path.read_text()
]

script = pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)


@cache
def loaded(path: Path) -> Scenario:
    return load_scenario(path)


class Listed(Lab):
    """Plays nothing: takes down what it is given, and says that no rule of it fired, so that sweeps go no further."""

    def __init__(self) -> None:
        self.cases: list[Case] = []

    async def run(self, case: Case, **_: Any) -> Outcome:
        self.cases.append(case)
        unhit = [str(rule) for rule in case.plan.rules]
        return Outcome(case, Verdict(Status.PASS, unhit=unhit), None, 0.0)


async def first_cases(path: Path) -> Sequence[Case]:
    """One case of each position that the searches of a script begin with."""
    listed = Listed()
    await run_scenario(loaded(path), listed)
    return listed.cases


def _identity(sent: Sent) -> tuple[Scope, str, bytes]:
    return sent.scope, sent.command.id, sent.body


# -- as they are written -------------------------------------------------------------------------------------------


def test_there_are_scripts_and_regressions() -> None:
    assert {path.stem for path in SCRIPTS} >= {"crash_matrix", "ledger", "zombies", "kill_reorders_entity"}


@script
def test_a_script_is_named_as_its_file(path: Path) -> None:
    assert loaded(path).name == path.stem.replace("_", "-")


def test_names_are_unique() -> None:
    names = Counter(loaded(path).name for path in SCRIPTS)
    assert not [name for name, count in names.items() if count > 1]


@script
def test_a_script_says_what_it_is_about(path: Path) -> None:
    """A regression says what went wrong and what forbids it; the others what is done and what must hold."""
    about = " ".join(loaded(path).about.split())
    assert len(about) > 150
    if path.parent == REGRESSIONS:
        assert re.search(r"\b(rules?|guarantee)\b", about, re.IGNORECASE)
    else:
        assert f"python scenarios/{path.name}" in about
        assert "must hold" in about or path.stem == "order_flow"


@script
def test_a_script_sends_something_when_the_faults_are_over(path: Path) -> None:
    phases = {sent.phase for sent in loaded(path).workload(0)}
    assert phases == {"main", "after"}


@script
def test_claims_are_guarantees_or_invariants_of_its_own(path: Path) -> None:
    scenario = loaded(path)
    known = {checker.id for checker in (*CHECKERS, *scenario.invariants)}
    assert set(scenario.claims) <= known
    assert {"G1", "G2", "G3", "G4", "G5", "G12", *(each.id for each in scenario.invariants)} <= set(scenario.claims)


@script
@pytest.mark.parametrize("seed", [0, 1, 7])
def test_a_workload_is_the_same_each_time(path: Path, seed: int) -> None:
    scenario = loaded(path)
    bodies = [encode(sent.command) for sent in scenario.workload(seed)]
    assert bodies == [encode(sent.command) for sent in scenario.workload(seed)]
    # An id may come again, but never for something else.
    places = Counter((scope, name) for scope, name, _ in {_identity(sent) for sent in scenario.workload(seed)})
    assert max(places.values()) == 1


@script
def test_commands_go_to_agents_that_are_there(path: Path) -> None:
    scenario = loaded(path)
    served = {scope for scope, _ in load_app(scenario.app).scopes(scenario.workspaces)}
    assert {sent.scope for sent in scenario.workload(0)} <= served


@script
async def test_every_plan_can_be_run(path: Path) -> None:
    cases = await first_cases(path)
    assert cases
    for case in cases:
        check_plan(case.plan, mortal=case.mortal)
        assert str(case.plan) in case.replay or not case.plan.rules
        assert orjson.loads(orjson.dumps(case.as_run(case.sent)))["scenario"] == loaded(path).name


async def test_regressions_are_small() -> None:
    """A plan that stands for one mistake has no rule too many, and its workload no command."""
    for path in SCRIPTS:
        if path.parent == REGRESSIONS:
            assert max(len(case.plan.rules) for case in await first_cases(path)) <= 3, path
            assert len(loaded(path).workload(0)) <= 25, path


def test_the_readme_tells_of_every_script() -> None:
    text = (ROOT / "scenarios/README.md").read_text()
    for path in SCRIPTS:
        assert f"[{path.stem}]({path.relative_to(ROOT / 'scenarios')})" in text, path


# -- the invariant of the ledger -----------------------------------------------------------------------------------

BANK = Scope("default", "demo", "account")


def row(n: int, name: str, entity: str, cents: int, key: str = "") -> OutputRow:
    """An event, or with `key` the command of that key."""
    body = orjson.dumps({"idempotency_key": key or f"k{n}", "payload": {"cents": cents}})
    kind = "command" if key else "event"
    return OutputRow(BANK, n, kind, f"k{n}", f"e{n}", name, "subject", f"m{n}", body, entity, None, None)


def found(rows: Sequence[OutputRow], decided: Sequence[str] = (), *, final: bool = True) -> Sequence[str]:
    keys = [KeyRow(BANK, key, b"", "decided", 0, 0) for key in decided]
    (conserved,) = loaded(ROOT / "scenarios/ledger.py").invariants
    judgement = conserved.judge(Evidence(Rows(outputs=rows, keys=keys), final=final))
    assert judgement.examined == len(rows)
    return [str(getattr(each, "what", each)) for each in judgement.findings]


OPENED = (row(1, "opened", "ann", 100), row(2, "opened", "bob", 10))
SENT = (row(3, "withdrawn", "ann", 60), row(4, "deposit", "bob", 60, key="d"))
ARRIVED = row(5, "deposited", "bob", 60)


def test_a_transfer_that_arrived_is_conserved() -> None:
    assert not found([*OPENED, *SENT, ARRIVED], ["d"])


def test_money_on_its_way_counts_on_a_corpse() -> None:
    assert not found([*OPENED, *SENT], final=False)


def test_money_still_on_its_way_at_the_end_is_lost() -> None:
    (finding,) = found([*OPENED, *SENT])
    assert "60 never arrived: d" in finding


def test_a_withdrawal_without_its_command_is_found() -> None:
    (finding,) = found([*OPENED, SENT[0]], final=False)
    assert "110 was paid in; accounts hold 50" in finding


def test_a_deposit_made_twice_is_found() -> None:
    (finding,) = found([*OPENED, *SENT, ARRIVED, row(6, "deposited", "bob", 60)], ["d"])
    assert "accounts hold 170" in finding


def test_a_deposit_before_its_key_is_found() -> None:
    (finding,) = found([*OPENED, *SENT, ARRIVED], final=False)
    assert "60 is on its way" in finding


def test_an_overdrawn_account_is_found() -> None:
    findings = found([*OPENED, row(3, "withdrawn", "bob", 11), row(4, "deposit", "ann", 11, key="d")], final=False)
    assert any("bob is overdrawn by 1 after output 3" in finding for finding in findings)


# -- the invariant of the store's faults ---------------------------------------------------------------------------


def course(*records: tuple[str, str, dict[str, Any]]) -> Evidence:
    return Evidence(Rows(), history=[Record(t, *record) for t, record in enumerate(records, 1)])


def fault(rule: str) -> tuple[str, str, dict[str, Any]]:
    return rule.split(":", maxsplit=1)[0], "fault", {"rule": rule}


def point(worker: str, name: str) -> tuple[str, str, dict[str, Any]]:
    return worker, "point", {"point": name, "nth": 1}


def ended(worker: str, status: int) -> tuple[str, str, dict[str, Any]]:
    return worker, "exit", {"status": status}


def said_of_ends(evidence: Evidence) -> list[str]:
    (ends,) = loaded(ROOT / "scenarios/store_faults.py").invariants
    judgement = ends.judge(evidence)
    assert not judgement.failure
    assert judgement.examined == sum(record.kind == "exit" for record in evidence.history)
    return [finding.what for finding in judgement.findings]


@pytest.mark.parametrize("status", [4, -9])
def test_a_worker_that_ends_of_its_broken_store(status: int) -> None:
    before = point("worker#1", "after_store")
    strike, other = fault("worker#1:before_store@2=eio_sync"), fault("worker#2:before_store@2=lock(1)")
    after = point("worker#1", "after_publish")
    evidence = course(before, strike, after, ended("worker#1", status), other, ended("worker#2", 0))
    assert said_of_ends(evidence) == []


def test_a_worker_that_survives_its_broken_store() -> None:
    evidence = course(fault("worker#1:before_mark@2=unlink"), ended("worker#1", 0))
    assert said_of_ends(evidence) == ["worker#1 ended with 0 after unlink"]


def test_a_worker_that_commits_to_its_broken_store() -> None:
    strike, stored = fault("worker#1:before_mark@2=replace"), point("worker#1", "after_store")
    (said,) = said_of_ends(course(strike, stored, ended("worker#1", 4)))
    assert said == "worker#1 took a turn for committed after replace"
    # What it had in its page cache it may still decide and write; and others' commits are theirs.
    unread = fault("worker#1:before_mark@2=eio_read")
    assert said_of_ends(course(unread, stored, ended("worker#1", 4))) == []
    assert said_of_ends(course(strike, ended("worker#1", 4), point("worker#2", "after_store"))) == []


# -- the invariant of the hot entity -------------------------------------------------------------------------------

COUNTER = Scope("default", "demo", "counter")
HOT = ROOT / "scenarios/hot_entity.py"


def called(*keys: str) -> list[tuple[str, str, dict[str, Any]]]:
    fields = {"scope": str(COUNTER), "id": "", "action": "", "entity": "", "version": 0, "before": ""}
    return [("worker#1", "call", {**fields, "key": key}) for key in keys]


def said_of_turns(calls: Sequence[str], decided: Sequence[str], *, code: str = "attempts_exhausted") -> list[str]:
    """What is said when handlers are called in one order, and keys decided in another."""
    (in_turn,) = loaded(HOT).invariants
    records = [KeyRow(COUNTER, key, b"", "decided", n, n) for n, key in enumerate(decided, 1)]
    letter = Letter(COUNTER, "k1", 0, "cmd", b"", code, 2)
    history = [Record(t, *record) for t, record in enumerate(called(*calls), 1)]
    judgement = in_turn.judge(
        Evidence(Rows(keys=records, dead=[letter]), sent=loaded(HOT).workload(0), history=history)
    )
    assert not judgement.failure
    assert judgement.examined == len(COLD)
    return [finding.what for finding in judgement.findings]


BEHIND = [sent.key for sent in loaded(HOT).workload(0) if sent.command.entity_id == "hot" and sent.phase == "main"][1:]
COLD = [sent.key for sent in loaded(HOT).workload(0) if sent.command.entity_id != "hot"]


def test_the_hot_entity_waits_alone() -> None:
    assert (len(BEHIND), len(COLD)) == (500, 100)
    assert said_of_turns(["k1", *COLD, "k1", *BEHIND], [*COLD, "k1", *BEHIND]) == []
    assert said_of_turns([*COLD, "k1"], COLD) == [], "it has not been called again"


def test_others_that_wait_for_the_hot_entity_are_found() -> None:
    late = COLD[-2:]
    (said,) = said_of_turns(["k1", *COLD[:-2], "k1", *late, *BEHIND], [*COLD, "k1", *BEHIND])
    assert said == "k1 was called again before 2 commands of other entities"
    (said,) = said_of_turns(["k1", *COLD, "k1", *BEHIND], [*COLD[:-2], "k1", *late, *BEHIND])
    assert said == "2 commands of other entities were decided behind k1"


def test_a_hot_entity_that_makes_no_room_is_found() -> None:
    (said,) = said_of_turns(["k1", *COLD, *BEHIND], [*COLD, "k1", *BEHIND], code="too_many_waiting")
    assert said == "k1 was given up early: too_many_waiting"
    (said,) = said_of_turns(["k1", *COLD, "k1", *BEHIND, BEHIND[3]], [*COLD, "k1", *BEHIND])
    assert said == "1 commands behind k1 were called more than once"
