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
