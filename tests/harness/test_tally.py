"""The tally: what counts as reached, as a kill, as held."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from chaos.checkers import Judgement
from chaos.evidence import Evidence
from chaos.history import Record
from chaos.plan import ALLOWED, FRAMES
from chaos.rows import Rows
from chaos.tally import Cell, Tally, cells, rank, reasons_for, shown_hits, told_outcome
from chaos.verdict import ImageJudgement, Status
from meshforge_trio.points import Point

from .drill import case_of, happens

KILL = "worker#1:after_store@2=kill"
KILLED = Cell("worker", "after_store", "kill")


def tally_of(*outcomes: object) -> Tally:
    tally = Tally()
    for outcome in outcomes:
        tally.note(outcome)  # type: ignore[arg-type]
    return tally


def test_a_kill_with_its_receipt_reaches_its_cell() -> None:
    tally = tally_of(happens(case_of(KILL)))
    assert tally.kills == 1
    assert tally.status is Status.PASS
    reach = tally.reached[KILLED]
    assert (reach.times, reach.hits) == (1, {2})
    assert [proof.to_json() for proof in reach.proofs] == [
        {"scenario": "crash-matrix", "batch": 64, "plan": KILL, "rule": KILL, "pid": 1000, "signal": 9}
    ]


def test_a_process_that_ended_otherwise_is_no_kill() -> None:
    tally = tally_of(happens(case_of(KILL), status_of_dead=1))
    assert tally.kills == 0
    assert KILLED not in tally.reached


def test_a_rule_that_never_fired_reaches_nothing() -> None:
    assert not tally_of(happens(case_of(KILL), unhit=[KILL])).reached


def test_runs_that_were_made_again_are_counted_apart() -> None:
    tally = tally_of(attrs.evolve(happens(case_of(KILL)), tries=3), happens(case_of(KILL)))
    assert (tally.total, tally.again, tally.to_json()["again"]) == (2, 2, 2)


def test_a_run_that_cannot_be_trusted_reaches_nothing_but_its_points_were_passed() -> None:
    tally = tally_of(happens(case_of(KILL), reasons=["worker#1 ended with 3"]))
    assert not tally.reached
    assert tally.passed["after_store"] == 1
    assert reasons_for(tally, [KILLED]) == {KILLED: "reached, but not in a run that can be trusted"}
    assert tally.status is Status.INCONCLUSIVE


def test_why_a_cell_was_not_reached() -> None:
    tally = tally_of(happens(case_of("")))
    hold, nak = Cell("worker", "before_hold", "kill"), Cell("proxy", "nak", "cut_after")
    assert reasons_for(tally, [hold, nak]) == {hold: "no run of this workload passes the point"}


def test_a_violation_reaches_its_cell_too() -> None:
    tally = tally_of(happens(case_of(KILL), fell=["G2"]))
    assert KILLED in tally.reached
    assert tally.status is Status.VIOLATION
    assert [outcome.verdict.broken_ids for outcome in tally.violations] == [["G2"]]
    assert tally.violations[0].evidence is None


def test_other_actors_need_no_receipt() -> None:
    plan = "nats:received@1=copy; nats:after_ack@2=rollback; proxy:puback@3=swallow; worker#1:before_store@1=full(0.5)"
    tally = tally_of(happens(case_of(plan)))
    assert set(tally.reached) == {
        Cell("nats", "received", "copy"),
        Cell("nats", "after_ack", "rollback"),
        Cell("proxy", "puback", "swallow"),
        Cell("worker", "before_store", "full"),
    }
    assert tally.kills == 0


def test_guarantees_are_added_up() -> None:
    tally = tally_of(happens(case_of(KILL)), happens(case_of(KILL), fell=["G2", "ledger"]))
    assert attrs.astuple(tally.guarantees["G1"])[1:] == (2, 6, 0, 0)
    assert attrs.astuple(tally.guarantees["G2"])[1:] == (2, 6, 1, 0)
    assert attrs.astuple(tally.guarantees["G10"])[1:] == (0, 0, 0, 0)
    assert list(tally.to_json()["guarantees"]) == ["G1", "G2", "G10", "ledger"]


def test_a_checker_that_failed_is_counted() -> None:
    outcome = happens(case_of(""))
    failed = ImageJudgement(1, True, Judgement("G1", "sentence", 0, (), "KeyError: 'x'"))
    tally = tally_of(attrs.evolve(outcome, verdict=attrs.evolve(outcome.verdict, judgements=[failed])))
    assert tally.guarantees["G1"].unjudged == 1


def test_nothing_run_is_no_pass() -> None:
    assert Tally().status is Status.INCONCLUSIVE


def test_cells_are_what_plans_allow() -> None:
    found = cells()
    assert len(set(found)) == len(found)
    assert len(found) == sum(len(kind.places) for kinds in ALLOWED.values() for kind in kinds.values())
    assert {cell.place for cell in cells("proxy")} == set(FRAMES)
    assert {cell.place for cell in cells("worker")} == set(Point)
    assert Cell("worker", "in_store", "stop") not in found


def test_the_coverage_names_what_is_missing() -> None:
    tally = tally_of(happens(case_of(KILL)))
    stop = Cell("worker", "received", "stop")
    hold = Cell("worker", "after_hold", "kill")
    assert tally.missing([KILLED, stop]) == [stop]
    told = tally.coverage_json([KILLED, stop, hold], {hold: "none of ours raises"})
    assert [cell["reason"] for cell in told] == [None, "never reached", "none of ours raises"]
    assert [len(cell["receipts"]) for cell in told] == [1, 0, 0]
    assert told[0]["hits"] == [2]


def test_outcomes_beyond_a_number_are_only_counted() -> None:
    outcome = happens(case_of(KILL), fell=["G2"])
    tally = tally_of(*[outcome] * 300)
    assert tally.runs[Status.VIOLATION] == 300
    assert len(tally.violations) == 200


@pytest.mark.parametrize(
    ("hits", "text"), [(set(), ""), ({1}, "1"), ({3, 1, 2}, "1-3"), ({1, 2, 5, 7, 8}, "1-2, 5, 7-8")]
)
def test_hits_are_shown_as_spans(hits: set[int], text: str) -> None:
    assert shown_hits(hits) == text


def test_guarantees_sort_by_number_and_names_behind() -> None:
    assert sorted(["G10", "ledger", "G2", "Gx", "G1"], key=rank) == ["G1", "G2", "G10", "Gx", "ledger"]


def test_an_outcome_is_told_with_its_replay(tmp_path: Path) -> None:
    outcome = attrs.evolve(happens(case_of(KILL), fell=["G2"]), home=tmp_path)
    told = told_outcome(outcome)
    assert told["replay"] == f"meshforge-chaos run crash-matrix --batch 64 --plan '{KILL}'"
    assert (told["status"], told["broken"], told["directory"]) == ("violation", ["G2"], str(tmp_path))
    assert told["receipts"] == [{"rule": KILL, "pid": 1000, "status": -9}]


def test_points_are_counted_by_run() -> None:
    outcome = happens(case_of(""))
    history = [Record(n, "worker#1", "point", {"point": "received", "nth": n}) for n in range(1, 4)]
    assert tally_of(attrs.evolve(outcome, evidence=Evidence(Rows(), history=history))).passed["received"] == 1
