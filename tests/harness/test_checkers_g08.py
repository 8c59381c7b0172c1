"""G8: answers stay the same."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from chaos.checkers import judge
from chaos.evidence import Evidence, Sent, dumped_body
from chaos.history import Record
from chaos.rows import OutputRow
from chaos.workload import command
from meshforge_trio.subjects import Scope

from .crafted import (
    Broken,
    Cases,
    Sound,
    add_to,
    body_with,
    corpse,
    end,
    judgement,
    noting,
    output_of,
    rows_of,
    without,
)
from .paper import COUNTER, Paper
from .redriving import RedrivingPaper, redrive

CASES = Cases()


def heard(evidence: Evidence, row: OutputRow, body: bytes, msg_id: str = "") -> Evidence:
    told = {"subject": row.subject, "msg_id": msg_id or row.msg_id, **dumped_body(body)}
    return noting(evidence, ("client", "heard", told))


def of_key(key: str, scope: Scope = COUNTER) -> Any:
    """Picks what was heard of a key's decision."""
    ids = {row.msg_id for row in rows_of(end(), "outputs", key=key, scope=scope)}
    return lambda r: r.kind == "heard" and r["msg_id"] in ids


def unheard(evidence: Evidence, key: str, keep: int) -> Evidence:
    """With only the first copies of a key's answer."""
    picked = of_key(key)
    count = 0

    def unwanted(record: Record) -> bool:
        nonlocal count
        count += picked(record)
        return bool(picked(record)) and count > keep

    return without(evidence, unwanted)


@CASES.breaks("G8", "evt.default.demo.counter.added of key 'k1' was heard in another form than output 1")
def heard_in_two_forms() -> Evidence:
    row = output_of(end(), "k1")
    return heard(end(), row, body_with(row, payload={"total": 9}))


@CASES.breaks("G8", "of key 'k4' was heard in another form")
def answered_otherwise_under_another_id() -> Evidence:
    row = output_of(end(), "k4")
    return heard(end(), row, body_with(row, payload={"current_version": 3}), "f" * 32)


@CASES.breaks("G8", "key 'k1' was sent 3 times and answered 2")
def a_sending_without_an_answer() -> Evidence:
    # Once when it was decided, and once long after the last sending.
    row = output_of(end(), "k1")
    return heard(unheard(end(), "k1", 1), row, row.body)


@CASES.breaks("G8", "key 'k1' was sent and not answered after that")
def a_sending_after_the_last_answer() -> Evidence:
    evidence = end()
    latest = max(r.t for r in evidence.history if r.kind == "heard")
    again = Sent(attrs.evolve(evidence.sent[0].command, id="c1-again"))
    return noting(
        attrs.evolve(evidence, sent=[*evidence.sent, again]),
        ("client", "send", {"id": "c1-again", "key": "k1", "subject": again.subject, "phase": "main"}),
        ("client", "ok", {"id": "c1-again", "seq": 500}),
        at=latest + 1,
    )


@CASES.breaks("G8", "key 'k1' was sent and not answered after that")
def unanswered_though_the_server_was_back() -> Evidence:
    """What was lost before does not matter; what was asked for when the client listened again does."""
    evidence = a_sending_after_the_last_answer()
    latest = max(r.t for r in evidence.history if r.kind == "heard")
    return noting(evidence, ("nats", "down", {"why": "kill"}), ("nats", "up", {}), at=latest)


@CASES.holds("G8")
def answered_more_often_than_asked() -> Evidence:
    """A redelivery is answered, too."""
    row = output_of(end(), "k1")
    return heard(end(), row, row.body)


@CASES.holds("G8")
def the_server_swallowed_an_answer() -> Evidence:
    evidence = unheard(end(), "k1", 1)
    return noting(evidence, ("nats", "down", {"why": "kill"}), ("nats", "up", {}))


@CASES.holds("G8")
def sent_again_under_the_same_id() -> Evidence:
    """The stream takes it for the same message and stores it once."""
    paper = Paper()
    once = add_to("a", 1)
    paper.send(once)
    paper.sent.append(once)
    paper.history.write("send", actor="client", id="c1", key="k1", subject=once.subject, phase="main")
    paper.history.write("ok", actor="client", id="c1", seq=1)
    paper.send(Sent(attrs.evolve(once.command, id="c2")))
    return paper.drain()


@CASES.holds("G8")
def refusals_and_conflicts_are_repeated() -> Evidence:
    paper = Paper()
    take = Sent(command(COUNTER, "take", 1, {"amount": 9}, entity_id="a"))
    late = add_to("b", 2, expected_version=4)
    again = [Sent(attrs.evolve(each.command, id=f"{each.command.id}-again")) for each in (take, late)]
    paper.send(take, late, *again)
    return paper.drain()


@CASES.breaks("G8", "key 'k6' was sent and not answered after that")
def never_answered() -> Evidence:
    return unheard(end(), "k6", 0)


@CASES.holds("G8")
def sent_and_lost() -> Evidence:
    """What the stream never stored needs no answer."""
    lost = attrs.evolve(add_to("z", 90), outcome="unknown")
    evidence = attrs.evolve(end(), sent=[*end().sent, lost])
    return noting(evidence, ("client", "send", {"id": "c90", "key": "k90", "subject": lost.subject, "phase": "main"}))


def redriven() -> RedrivingPaper:
    """A command was refused for ever: set aside, redriven when it could work, and asked for twice after that."""
    paper = RedrivingPaper((COUNTER,))
    draw = Sent(command(COUNTER, "draw", 1, {"amount": 1}, entity_id="a"), expect=("dead", "decided"))
    paper.send(draw)
    paper.drain()
    paper.send(add_to("a", 2), redrive(COUNTER, 3, "k1"))
    paper.drain()
    again = [attrs.evolve(draw, command=attrs.evolve(draw.command, id=f"c{n}")) for n in (4, 5)]
    paper.send(again[0])
    paper.drain()
    paper.send(again[1])
    return paper


def answers(evidence: Evidence, name: str) -> list[Record]:
    """What was heard of key `k1` under this name."""
    row = output_of(evidence, "k1", name)
    return [r for r in evidence.history if r.kind == "heard" and r["msg_id"] == row.msg_id]


@CASES.holds("G8")
def whoever_asks_hears_the_outcome_in_force() -> Evidence:
    evidence = redriven().drain()
    assert (len(answers(evidence, "dead_lettered")), len(answers(evidence, "drawn"))) == (1, 3)
    return evidence


@CASES.breaks("G8", "key 'k1' was sent after it was redriven, and not answered as it is now")
def the_last_sending_heard_what_was_past() -> Evidence:
    evidence = redriven().drain()
    last = answers(evidence, "drawn")[-1]
    row = output_of(evidence, "k1", "dead_lettered")
    return heard(without(evidence, lambda r: r is last), row, row.body)


@CASES.breaks("G8", "key 'k1' was sent 2 times after it was redriven, and answered less often")
def a_sending_heard_what_was_past() -> Evidence:
    evidence = redriven().drain()
    first = answers(evidence, "drawn")[1]
    row = output_of(evidence, "k1", "dead_lettered")
    return heard(without(evidence, lambda r: r is first), row, row.body)


@CASES.breaks("G8", "key 'k1' was sent and not answered after that")
def nobody_heard_what_came_of_it() -> Evidence:
    evidence = redriven().drain()
    unheard_of = answers(evidence, "drawn")
    return without(evidence, lambda r: any(r is each for each in unheard_of))


@pytest.mark.parametrize("case", CASES.params(CASES.broken))
def test_what_is_wrong_is_found(case: Broken) -> None:
    case.check()


@pytest.mark.parametrize("case", CASES.params(CASES.sound))
def test_what_is_right_passes(case: Sound) -> None:
    case.check()


def test_answers_are_not_judged_before_the_end() -> None:
    assert "G8" not in [each.id for each in judge(corpse())]
    # An end that did not drain: what was heard is compared, what was not heard is not missed.
    assert judgement(attrs.evolve(corpse(), final=True), "G8").holds
