"""G13: everything comes in its order."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from chaos.evidence import Evidence, Sent
from chaos.workload import command

from .crafted import (
    Broken,
    Cases,
    Sound,
    edit,
    end,
    judgement,
    key_of,
    noting,
    output_of,
    rows_of,
    streams,
)
from .paper import COUNTER, Paper
from .redriving import RedrivingPaper, redrive

CASES = Cases()


def add_to(entity: str, number: int, **more: Any) -> Sent:
    return Sent(command(COUNTER, "add", number, {"amount": 1}, entity_id=entity, **more), expect=("decided",))


def expecting(evidence: Evidence, key: str, *outcomes: str) -> Evidence:
    """As if the workload had known other outcomes of a key."""
    sent = [attrs.evolve(s, expect=outcomes) if (s.scope, s.key) == (COUNTER, key) else s for s in evidence.sent]
    return attrs.evolve(evidence, sent=sent)


@CASES.breaks("G13", "'a': sent ['k1', 'k3', 'k4', 'k9', 'k13'], decided ['k3', 'k1', 'k4', 'k9', 'k13']")
def decided_in_another_order() -> Evidence:
    one, three = key_of(end(), "k1"), key_of(end(), "k3")
    swapped = edit(end(), "keys", one, first_n=three.first_n, last_n=three.last_n)
    return edit(swapped, "keys", three, first_n=one.first_n, last_n=one.last_n)


@CASES.breaks("G13", "'a': sent ['k2', 'k1'], decided ['k1', 'k2']")
def decided_in_the_order_of_sending_instead_of_the_streams() -> Evidence:
    """Two clients: the one that sent later was stored first."""
    paper = Paper()
    paper.send(add_to("a", 1), add_to("a", 2))
    evidence = paper.drain()
    seqs = {"c1": 2, "c2": 1}
    history = [
        attrs.evolve(r, fields={**r.fields, "seq": seqs[r["id"]]}) if r.kind == "ok" else r for r in evidence.history
    ]
    return attrs.evolve(evidence, history=history)


@CASES.breaks("G13", "'b': key 'k2' was decided for a later sending than c2")
def decided_for_the_later_of_two_payloads() -> Evidence:
    """As if the second had overtaken the first."""
    (refusal,) = rows_of(end(), "mismatches", scope=COUNTER)
    record = key_of(end(), "k2")
    swapped = edit(end(), "keys", record, payload_hash=refusal.payload_hash)
    return edit(swapped, "mismatches", refusal, payload_hash=record.payload_hash)


@CASES.breaks("G13", "out of order")
def published_in_another_order() -> Evidence:
    ours = [m for m in end().events if m.msg_id in {output_of(end(), k).msg_id for k in ("k1", "k3")}]
    seqs = {ours[0].msg_id: ours[1].seq, ours[1].msg_id: ours[0].seq}
    return streams(end(), "events", lambda all_: [attrs.evolve(m, seq=seqs.get(m.msg_id, m.seq)) for m in all_])


def comes_last(evidence: Evidence, *keys: str) -> Evidence:
    """As if the events of these keys had been published again behind all others."""
    last = evidence.events[-1].seq
    again = {output_of(evidence, key).msg_id: last + 1 + place for place, key in enumerate(keys)}
    return streams(evidence, "events", lambda all_: [attrs.evolve(m, seq=again.get(m.msg_id, m.seq)) for m in all_])


def rotten(times: int) -> Evidence:
    """The end, after so many flipped bits."""
    rules = [("worker#1", "fault", {"rule": f"nats:after_ack@{number}=rot"}) for number in range(1, times + 1)]
    # The marks are for another guarantee.
    return attrs.evolve(noting(end(), *rules), rows=attrs.evolve(end().rows, marks=[]))


@CASES.holds("G13")
def one_came_last_that_was_lost_from_amid_the_stream() -> Evidence:
    return comes_last(rotten(1), "k1")


@CASES.breaks("G13", "out of order")
def one_came_last_and_nothing_was_lost() -> Evidence:
    return comes_last(rotten(0), "k1")


@CASES.breaks("G13", "out of order")
def two_came_last_and_one_was_lost() -> Evidence:
    return comes_last(rotten(1), "k3", "k1")


@CASES.breaks("G13", "'b': key 'k6' was refused, which in stream order it is not")
def refused_on_another_state() -> Evidence:
    return expecting(end(), "k6", "decided")


@CASES.holds("G13")
def two_entities_in_any_order() -> Evidence:
    paper = Paper()
    paper.send(add_to("a", 1), add_to("b", 2))
    paper.commands = dict(reversed(paper.commands.items()))
    return paper.drain()


@CASES.holds("G13")
def a_key_whose_first_sending_may_be_lost() -> Evidence:
    """Nobody knows whether the first sending was stored; the second came after another command."""
    paper = Paper()
    first = add_to("a", 1)
    paper.send(attrs.evolve(first, outcome="unknown"))
    del paper.commands[1]
    paper.send(add_to("a", 2), attrs.evolve(first, command=attrs.evolve(first.command, id="c1-again")))
    return paper.drain()


@CASES.holds("G13")
def a_key_that_the_broker_forgot_and_the_client_sent_again() -> Evidence:
    paper = Paper()
    paper.history.write("fault", rule="nats:after_store@1=copy")
    first = add_to("a", 1)
    paper.send(first)
    paper.history.write("fault", rule="nats:after_store@2=rollback")
    del paper.commands[1]
    paper.history.write("up", actor="nats")
    paper.send(add_to("a", 2), attrs.evolve(first, command=attrs.evolve(first.command, id="c1-again")))
    return paper.drain()


@CASES.holds("G13")
def an_outcome_after_one_that_had_bad_luck() -> Evidence:
    """What it would have added is missing, so the next one is refused: by right."""
    paper = Paper()
    take = Sent(command(COUNTER, "take", 2, {"amount": 1}, entity_id="a"), expect=("decided",))
    paper.send(add_to("a", 1), take)
    paper.recover()
    for stage in ("decided", "counted", "counted"):
        paper.turn(COUNTER, 1, dies=stage)
    evidence = paper.drain()
    assert (key_of(evidence, "k1").outcome, key_of(evidence, "k2").outcome) == ("dead", "refused")
    return evidence


@CASES.holds("G13")
def a_key_used_for_two_entities() -> Evidence:
    """Order holds within an entity only: the second may be decided first."""
    paper = Paper()
    paper.send(add_to("a", 1), attrs.evolve(add_to("b", 2, idempotency_key="k1"), expect=()))
    paper.commands = dict(reversed(paper.commands.items()))
    return attrs.evolve(paper.drain(), limit=0)


@CASES.breaks("G13", "'a': key 'k3' was decided, which in stream order it is not")
def decided_on_another_state() -> Evidence:
    return expecting(end(), "k3", "refused")


@CASES.breaks("G13", "'c': key 'k8' was decided, which in stream order it is not")
def decided_on_another_state_behind_poison() -> Evidence:
    return expecting(end(), "k8", "refused")


@CASES.holds("G13")
def an_outcome_after_one_that_was_lost() -> Evidence:
    paper = Paper()
    paper.send(attrs.evolve(add_to("a", 1), outcome="unknown"))
    del paper.commands[1]
    paper.send(Sent(command(COUNTER, "take", 2, {"amount": 1}, entity_id="a"), expect=("decided",)))
    evidence = paper.drain()
    assert key_of(evidence, "k2").outcome == "refused"
    return evidence


@CASES.holds("G13")
def commands_of_no_entity_in_any_order() -> Evidence:
    paper = Paper()
    paper.send(*[Sent(command(COUNTER, "add", n, {"amount": 1})) for n in (1, 2)], add_to("a", 3))
    paper.commands = dict(reversed(paper.commands.items()))
    return paper.drain()


def redriven(*behind: Sent) -> RedrivingPaper:
    """Set aside, and redriven when others of its entity were decided."""
    paper = RedrivingPaper((COUNTER,))
    draw = Sent(command(COUNTER, "draw", 1, {"amount": 2}, entity_id="a"), expect=("dead", "decided"))
    paper.send(draw, add_to("a", 2), add_to("a", 3))
    paper.drain()
    paper.send(*behind, redrive(COUNTER, 9, "k1"))
    return paper


@CASES.holds("G13")
def redriven_behind_what_came_after_it() -> Evidence:
    evidence = redriven().drain()
    assert key_of(evidence, "k1").first_n > key_of(evidence, "k3").first_n
    return evidence


@CASES.holds("G13")
def redriven_and_set_aside_again() -> Evidence:
    paper = RedrivingPaper((COUNTER,))
    paper.send(Sent(command(COUNTER, "explode", 1, entity_id="a"), expect=("dead",)), add_to("a", 2))
    paper.drain()
    paper.send(redrive(COUNTER, 3, "k1"), add_to("a", 4))
    return paper.drain()


@CASES.breaks("G13", "'a': sent ['k1', 'k2', 'k3'], decided ['k2', 'k1', 'k3']")
def set_aside_in_another_order_before_it_was_redriven() -> Evidence:
    evidence = redriven().drain()
    record = key_of(evidence, "k2")
    return edit(evidence, "keys", record, first_n=0)


@CASES.breaks("G13", "key 'k1' was decided when it was redriven, before ['k4'], which the stream took earlier")
def redriven_before_what_the_stream_had_taken() -> Evidence:
    evidence = redriven(add_to("a", 4)).drain()
    last = key_of(evidence, "k4")
    return edit(evidence, "keys", last, first_n=last.first_n + 90, last_n=last.last_n + 90)


@pytest.mark.parametrize("case", CASES.params(CASES.broken))
def test_what_is_wrong_is_found(case: Broken) -> None:
    case.check()


@pytest.mark.parametrize("case", CASES.params(CASES.sound))
def test_what_is_right_passes(case: Sound) -> None:
    case.check()


def test_conflicts_are_for_another_guarantee() -> None:
    assert judgement(expecting(end(), "k4", "decided"), "G13").holds
