"""Clients that hold a lock in turn beside the workload: what they did, as it is judged, and the real ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from chaos.case import Case
from chaos.evidence import Evidence
from chaos.history import KINDS, Record
from chaos.holders import ONE_ACTS
from chaos.lab import Lab
from chaos.plan import parse_plan
from chaos.rows import Rows
from chaos.verdict import Status
from chaos.workload import Workload

FIRST, SECOND = "client#1", "client#2"
S = 1_000_000_000

Told = tuple[str, str, dict[str, Any]]


def judged(*told: Told) -> Sequence[str]:
    """What is said of a history, one record a second."""
    history = [Record(n * S, actor, kind, fields) for n, (actor, kind, fields) in enumerate(told, 1)]
    assert all(KINDS[record.kind] <= record.fields.keys() for record in history)
    judgement = ONE_ACTS.judge(Evidence(Rows(), history=history))
    assert not judgement.failure
    assert judgement.examined
    return [finding.what for finding in judgement.findings]


def holds(actor: str, token: int) -> Told:
    return actor, "holds", {"resource": "vault", "token": token}


def looks(actor: str, token: int, at: int, left_s: float) -> Told:
    return actor, "looks", {"token": token, "at": at * S, "left_s": left_s}


def tries(actor: str, token: int) -> Told:
    return actor, "tries", {"token": token}


def answered(actor: str, token: int, answer: str = "added") -> Told:
    return actor, "acts", {"token": token, "answer": answer}


def acts(actor: str, token: int, answer: str = "added") -> tuple[Told, Told]:
    return tries(actor, token), answered(actor, token, answer)


def lets_go(actor: str, token: int, why: str) -> Told:
    return actor, "lets_go", {"token": token, "why": why}


STOPPED: Told = (FIRST, "stopped", {})
WOKEN: Told = (FIRST, "woken", {})
LATE = acts(FIRST, 1, "stale_fencing_token")
BEGUN = (holds(FIRST, 1), *acts(FIRST, 1), looks(FIRST, 1, 2, 0.9), STOPPED, holds(SECOND, 2), *acts(SECOND, 2))


def test_one_after_the_other() -> None:
    end = (WOKEN, looks(FIRST, 1, 7, 0.0), lets_go(FIRST, 1, "lost"), *LATE, lets_go(SECOND, 2, "released"))
    assert judged(*BEGUN, *end) == []


def test_who_looked_before_and_wrote_it_down_after_is_no_second_holder() -> None:
    """A process may be stopped between the two."""
    assert judged(*BEGUN, WOKEN, looks(FIRST, 1, 4, 0.1), lets_go(FIRST, 1, "lost"), *LATE) == []


def test_two_holders_by_their_own_clocks() -> None:
    (said,) = judged(*BEGUN, WOKEN, looks(FIRST, 1, 8, 0.1), lets_go(FIRST, 1, "lost"), *LATE)
    assert said == "client#1 has token 1 and time left by its clock, while 2 is held"


def test_a_block_that_ends_as_if_nothing_had_been() -> None:
    (said,) = judged(*BEGUN, WOKEN, lets_go(FIRST, 1, "released"))
    assert said == "client#1 was stopped beyond its lease, and its block ended as if it had held it"


def test_who_asked_in_time_and_heard_the_answer_late_is_no_second_holder() -> None:
    """Its lease ran out before it was stopped: what it then tried was decided while nobody else held the lock."""
    first = (holds(FIRST, 1), *acts(FIRST, 1), lets_go(FIRST, 1, "lost"), tries(FIRST, 1), STOPPED)
    assert judged(*first, holds(SECOND, 2), *acts(SECOND, 2), WOKEN, answered(FIRST, 1)) == []


def test_an_outdated_holder_that_acts() -> None:
    (said,) = judged(*BEGUN, WOKEN, lets_go(FIRST, 1, "lost"), *acts(FIRST, 1))
    assert said == "client#1 acted under token 1 after 2: added"


def test_a_holder_that_is_refused_without_a_reason() -> None:
    (said,) = judged(*BEGUN, *acts(SECOND, 2, "stale_fencing_token"))
    assert said == "client#2 was refused under token 2, and none newer had been seen"


def test_a_token_that_is_given_twice() -> None:
    (said,) = judged(holds(FIRST, 1), holds(SECOND, 1))
    assert said == "token 1 was given twice, the second time to client#2"


def case(beside: str, plan: str = "") -> Case:
    commands = Workload()
    commands.send("counter", "add", {"amount": 1}, entity="a", expect=["decided"])
    commands.send("counter", "add", {"amount": 2}, entity="a", expect=["decided"], phase="after")
    return Case(
        "chaos.agents:locks_and_counter",
        commands,
        parse_plan(plan),
        engine={"batch": 1},
        claims=("G1", "G3", "G10", "one acts"),
        invariants=[ONE_ACTS],
        beside=beside,
    )


async def test_two_processes_hold_a_lock_in_turn_while_the_worker_dies(lab: Lab) -> None:
    outcome = await lab.run(case("chaos.holders:in_turn", "worker#1:after_store@4=kill"))
    assert outcome.status is Status.PASS, str(outcome)
    assert outcome.evidence is not None
    told = [(r.actor, r.kind) for r in outcome.evidence.history if r.actor in (FIRST, SECOND) and r.kind != "looks"]
    order = ["holds", "tries", "acts", "stopped", "woken", "lets_go", "tries", "acts"]
    assert [kind for actor, kind in told if actor == FIRST] == order
    assert [kind for actor, kind in told if actor == SECOND] == ["holds", "tries", "acts", "lets_go"]
    assert told.index((FIRST, "stopped")) < told.index((SECOND, "holds")) < told.index((FIRST, "woken"))
    # What they sent is known to the checkers, though it is none of the workload.
    theirs = [sent for sent in outcome.evidence.sent if sent.command.id not in ("c1", "c2")]
    assert {sent.command.action for sent in theirs} >= {"acquire", "add", "release"}
    assert {sent.outcome for sent in theirs} == {"unknown"}


async def failing(url: str, home: object, history: object) -> None:
    raise RuntimeError("no holder today")


@pytest.mark.parametrize("wrong", ["harness.test_holders:failing", "chaos.holders:nothing"])
async def test_what_goes_wrong_beside_makes_a_run_inconclusive(lab: Lab, wrong: str) -> None:
    outcome = await lab.run(case(wrong))
    assert outcome.status is Status.INCONCLUSIVE, str(outcome)
    assert {"harness.test_holders:failing": "no holder today"}.get(wrong, "is not there") in str(outcome)
