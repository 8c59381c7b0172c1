"""G12: nothing is left at the end."""

from __future__ import annotations

import hashlib
from typing import Any

import attrs
import orjson
import pytest

from chaos.checkers import judge
from chaos.evidence import Evidence, Sent, envelope_of
from chaos.workload import command
from meshforge_trio.subjects import EVENTS

from .crafted import (
    Broken,
    Cases,
    Sound,
    corpse,
    edit,
    end,
    judgement,
    output_of,
    streams,
    without,
)
from .paper import COUNTER, Paper

CASES = Cases()


def add_to(entity: str, number: int, **more: Any) -> Sent:
    return Sent(command(COUNTER, "add", number, {"amount": 1}, entity_id=entity, **more), expect=("decided",))


@CASES.breaks("G12", "it did not drain in time; worker#1 ended with 5")
def workers_ended_and_nobody_finished() -> Evidence:
    paper = Paper()
    paper.send(add_to("a", 1))
    paper.history.write("exit", status=5)
    return paper.image(final=True)


@CASES.breaks("G12", "it did not drain in time")
def nobody_says_that_it_drained() -> Evidence:
    return without(end(), lambda r: r.kind == "drained")


@CASES.breaks("G12", "cmd.default.demo.counter.add key 'k1' at sequence 1 is still in the command stream")
def a_command_is_left() -> Evidence:
    left = corpse().commands[0]
    assert envelope_of(left)["id"] == "c4"
    first = attrs.evolve(left, seq=1, body=left.body.replace(b'"k4"', b'"k1"'))
    return streams(end(), "commands", lambda _: [first])


@CASES.breaks("G12", "default/demo/counter key 'k99' still waits for another attempt")
def an_attempt_is_left() -> Evidence:
    return attrs.evolve(end(), rows=attrs.evolve(end().rows, attempts={(COUNTER, "k99"): 1}))


@CASES.breaks("G12", "evt.default.demo.counter.conflict, is still to be published")
def an_output_is_left() -> Evidence:
    row = output_of(end(), "k4")
    return streams(end(), "events", lambda all_: [m for m in all_ if m.msg_id != row.msg_id])


@CASES.holds("G12")
def killed_workers_on_the_way() -> Evidence:
    assert [r["status"] for r in end().history if r.kind == "exit"] == [-9, -9, 0]
    return end()


@CASES.holds("G12")
def nothing_was_decided_but_an_answer_given() -> Evidence:
    paper = Paper()
    paper.send(Sent(command(COUNTER, "get", 1, entity_id="a", idempotency_key=None), query=True))
    return paper.drain()


def test_an_end_is_no_corpse() -> None:
    assert "G12" not in [each.id for each in judge(corpse())]


def test_planned_ends_are_not_named() -> None:
    evidence = attrs.evolve(corpse(), final=True)
    assert judgement(evidence, "G12").findings[0].what == "it did not drain in time"


def leased(name: str) -> Evidence:
    """An end with a lease in it, and in the command stream the runtime's own command of a deadline of that name."""
    event = output_of(end(), "k1")
    body = orjson.dumps({**envelope_of(event), "payload": {"fencing_token": 3, "expires_at": 17.5}})
    evidence = edit(end(), "outputs", event, body=body)
    digest = hashlib.sha256(f"{event.scope}\0{event.entity_id}\0{name}".encode()).hexdigest()
    late = corpse().commands[0]
    fields = {**envelope_of(late), "idempotency_key": f"deadline:{digest[:32]}", "action": "sys_expire"}
    late = attrs.evolve(late, seq=1, body=orjson.dumps(fields))
    return streams(evidence, "commands", lambda _: [late])


def test_a_deadline_that_came_at_the_very_end_is_left_to_the_next_start() -> None:
    assert judgement(leased("3:17.5"), "G12").holds
    (finding,) = judgement(leased("4:17.5"), "G12").findings
    assert "still in the command stream" in finding.what, "no lease had that one"


def test_what_expired_is_not_left() -> None:
    evidence = an_output_is_left()
    facts = {**evidence.facts, EVENTS: attrs.evolve(evidence.facts[EVENTS], first_seq=3)}
    assert judgement(attrs.evolve(evidence, facts=facts), "G12").holds


@pytest.mark.parametrize("case", CASES.params(CASES.broken))
def test_what_is_wrong_is_found(case: Broken) -> None:
    case.check()


@pytest.mark.parametrize("case", CASES.params(CASES.sound))
def test_what_is_right_passes(case: Sound) -> None:
    case.check()


def test_good_ends_are_not_named_and_scopes_are() -> None:
    evidence = without(a_command_is_left(), lambda r: r.kind == "drained")
    first, second = judgement(evidence, "G12").findings[:2]
    assert first.what == "it did not drain in time", "the last worker ended with 0"
    assert (list(second.keys), second.scope) == (["k1"], "default/demo/counter")
    odd = streams(evidence, "commands", lambda all_: [attrs.evolve(m, subject="nowhere") for m in all_])
    assert judgement(odd, "G12").findings[1].scope == ""
