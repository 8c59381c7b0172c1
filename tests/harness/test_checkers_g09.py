"""G9: nothing leaves its scope."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from chaos.evidence import Evidence, Sent, dumped_body
from chaos.rows import OutputRow
from chaos.workload import command, trespass
from meshforge_trio.envelope import SecurityContext
from meshforge_trio.subjects import EVENTS

from .crafted import (
    Broken,
    Cases,
    Sound,
    add,
    add_to,
    body_with,
    drop,
    edit,
    end,
    judgement,
    key_of,
    noting,
    output_of,
    rows_of,
    streams,
)
from .paper import AUDIT, COUNTER, OTHER, Paper

CASES = Cases()


def violation_of(evidence: Evidence) -> OutputRow:
    row: OutputRow
    (row,) = rows_of(evidence, "outputs", scope=COUNTER, name="violation")
    return row


@CASES.breaks("G9", "default/demo/counter output 1: an event of acme/demo/counter")
def an_event_in_anothers_rows() -> Evidence:
    row = output_of(end(), "k1")
    return edit(end(), "outputs", row, body=body_with(row, tenant="acme"))


@CASES.breaks("G9", "output 1: added goes to evt.acme.demo.counter.added")
def an_event_goes_to_another_tenant() -> Evidence:
    return edit(end(), "outputs", output_of(end(), "k1"), subject="evt.acme.demo.counter.added")


@CASES.breaks("G9", "evt.acme.demo.counter.added carries an event of default/demo/counter")
def an_event_in_anothers_stream() -> Evidence:
    return streams(
        end(), "events", lambda all_: [attrs.evolve(all_[0], subject="evt.acme.demo.counter.added"), *all_[1:]]
    )


@CASES.breaks("G9", "evt.acme.demo.counter.added carries an event of default/demo/counter")
def an_answer_heard_by_another_tenant() -> Evidence:
    body = dumped_body(output_of(end(), "k1").body)
    return noting(end(), ("client", "heard", {"subject": "evt.acme.demo.counter.added", "msg_id": "00", **body}))


@CASES.breaks("G9", "a command to acme/demo/audit")
def a_command_to_another_tenant() -> Evidence:
    row = output_of(end(), "k10", "note")
    return edit(end(), "outputs", row, subject="cmd.acme.demo.audit.note", body=body_with(row, tenant="acme"))


@CASES.breaks("G9", "a command to default/demo/audit goes to cmd.acme.demo.audit.note")
def a_command_that_says_otherwise_than_its_subject() -> Evidence:
    return edit(end(), "outputs", output_of(end(), "k10", "note"), subject="cmd.acme.demo.audit.note")


@CASES.breaks("G9", "a dead letter of cmd.acme.demo.counter.explode")
def a_letter_of_another_tenant() -> Evidence:
    row = output_of(end(), "k7", "dead_letter")
    return edit(end(), "outputs", row, body=body_with(row, subject="cmd.acme.demo.counter.explode"))


@CASES.breaks("G9", "is used in ['acme/demo', 'default/demo']")
def an_id_of_two_tenants() -> Evidence:
    ours, theirs = output_of(end(), "k1"), output_of(end(), "k1", scope=OTHER)
    return edit(end(), "outputs", theirs, msg_id=ours.msg_id)


@CASES.breaks("G9", "acme/demo/counter key 'k1' is gone and undecided, as if it were that of ['default/demo/counter']")
def a_key_taken_for_another_tenants() -> Evidence:
    return drop(end(), "keys", key_of(end(), "k1", OTHER))


@CASES.breaks("G9", "acme/demo/audit applied 'evt:counter:c90_added:k90', an event of ['default/demo']")
def an_event_applied_by_another_tenant() -> Evidence:
    paper = Paper()
    paper.send(add_to("a", 90))
    evidence = paper.drain()
    (record,) = rows_of(evidence, "keys", scope=AUDIT)
    return add(evidence, "keys", attrs.evolve(record, scope=attrs.evolve(AUDIT, tenant="acme")))


@CASES.breaks("G9", "(id c77), which claims to be acme/demo/counter, is gone, and no violation is stored")
def a_trespass_without_a_violation() -> Evidence:
    return drop(end(), "outputs", violation_of(end()))


@CASES.breaks("G9", "was sent 1 times, and 2 violations are stored")
def a_trespass_with_two_violations() -> Evidence:
    row = violation_of(end())
    last = max(each.n for each in rows_of(end(), "outputs", scope=COUNTER))
    return add(end(), "outputs", attrs.evolve(row, n=last + 1, msg_id="a" * 32))


@CASES.breaks("G9", "had an effect in acme/demo/counter: output")
def a_trespass_with_an_effect() -> Evidence:
    row = output_of(end(), "k1", scope=OTHER)
    return edit(end(), "outputs", row, body=body_with(row, causation_id="c77"))


@CASES.breaks("G9", "is published 0 times")
def a_violation_nobody_heard_of() -> Evidence:
    row = violation_of(end())
    return streams(end(), "events", lambda all_: [m for m in all_ if m.msg_id != row.msg_id])


def mistold(**payload: Any) -> Evidence:
    row = violation_of(end())
    return edit(end(), "outputs", row, body=body_with(row, payload=payload))


@CASES.breaks("G9", "carries ['payload'] beside what it may tell")
def a_violation_with_the_payload() -> Evidence:
    return mistold(payload={"amount": 13})


@CASES.breaks("G9", "has the code 'amount 13'")
def a_violation_with_the_payload_as_code() -> Evidence:
    return mistold(code="amount 13")


@CASES.breaks("G9", "names the subject 'cmd.acme.demo.counter.add'")
def a_violation_of_another_subject() -> Evidence:
    return mistold(subject="cmd.acme.demo.counter.add")


@CASES.breaks("G9", "names the principal 'root'")
def a_violation_of_another_principal() -> Evidence:
    return mistold(principal_id="root")


def with_secret(reason: str) -> Evidence:
    """A trespass whose payload would be recognised."""
    paper = Paper()
    sent = trespass(COUNTER, OTHER, 1)
    payload = {"notes": ["pike", {"deep": "swordfish"}], "agent": "counter", "short": "ame", "n": 1}
    paper.send(attrs.evolve(sent, command=attrs.evolve(sent.command, payload=payload)))
    evidence = paper.drain()
    row = violation_of(evidence)
    body = body_with(row, payload={"reason": reason})
    events = [attrs.evolve(m, body=body) if m.msg_id == row.msg_id else m for m in evidence.events]
    heard = [
        attrs.evolve(r, fields={**r.fields, **dumped_body(body)})
        if r.kind == "heard" and r["msg_id"] == row.msg_id
        else r
        for r in evidence.history
    ]
    return attrs.evolve(edit(evidence, "outputs", row, body=body), events=events, history=heard)


@CASES.breaks("G9", "echoes ['swordfish'] of the payload")
def a_violation_that_echoes() -> Evidence:
    return with_secret("envelope says swordfish")


@CASES.breaks("G9", "a violation (output 1) is told of command c1, with which nothing was wrong")
def an_honest_command_taken_for_a_trespass() -> Evidence:
    paper = Paper()
    sent = trespass(COUNTER, OTHER, 1)
    paper.send(attrs.evolve(sent, expect=("decided",), at=None, command=attrs.evolve(sent.command, tenant="default")))
    honest = paper.sent[0]
    paper.commands[1] = attrs.evolve(paper.commands[1], body=sent.body, subject=honest.subject)
    return paper.drain()


@CASES.holds("G9")
def a_trespass_is_told_of() -> Evidence:
    assert violation_of(end()).subject == "evt.default.demo.security.violation"
    return end()


@CASES.holds("G9")
def a_trespass_under_an_id_that_the_other_tenant_uses() -> Evidence:
    paper = Paper()
    paper.send(Sent(command(OTHER, "add", 1, {"amount": 1}, entity_id="a")), trespass(COUNTER, OTHER, 1))
    return paper.drain()


@CASES.holds("G9")
def a_trespass_is_repeated() -> Evidence:
    paper = Paper()
    sent = trespass(COUNTER, OTHER, 1)
    paper.send(sent, attrs.evolve(sent, command=attrs.evolve(sent.command, id="c1-again")))
    return paper.drain()


@CASES.holds("G9")
def a_trespass_still_waits() -> Evidence:
    paper = Paper()
    paper.send(trespass(COUNTER, OTHER, 1))
    paper.kill("received")
    return paper.corpse


@CASES.holds("G9")
def a_command_of_nobody() -> Evidence:
    paper = Paper()
    nobody = attrs.evolve(command(COUNTER, "add", 1, {"amount": 1}), security_context=None)
    paper.send(Sent(nobody, expect=("violation",)), add_to("a", 2))
    return paper.drain()


@CASES.holds("G9")
def a_long_name_is_told_in_part() -> Evidence:
    paper = Paper()
    context = SecurityContext("x" * 300, "user")
    paper.send(Sent(attrs.evolve(command(COUNTER, "add", 1), security_context=context), expect=("violation",)))
    return paper.drain()


@CASES.holds("G9")
def a_violation_may_name_what_everybody_knows() -> Evidence:
    """The word is in the payload, and in the subject as well."""
    return with_secret("envelope names acme/demo/counter, subject names default/demo/counter")


@CASES.breaks("G9", "is gone, and no violation is stored")
def a_trespass_of_which_nothing_was_expected() -> Evidence:
    sent = [attrs.evolve(each, expect=()) for each in end().sent]
    return attrs.evolve(a_trespass_without_a_violation(), sent=sent)


@CASES.breaks("G9", "echoes ['pike'] of the payload")
def a_violation_that_echoes_a_short_text() -> Evidence:
    return with_secret("envelope says pike")


@CASES.holds("G9")
def a_trespass_was_lost_on_the_way() -> Evidence:
    paper = Paper()
    paper.send(attrs.evolve(trespass(COUNTER, OTHER, 1), outcome="unknown"), add_to("a", 2))
    del paper.commands[1]
    return paper.drain()


@CASES.holds("G9")
def a_trespass_was_forgotten_by_the_broker() -> Evidence:
    """And so was a command whose key another tenant uses as well."""
    paper = Paper()
    paper.send(Sent(command(OTHER, "add", 2, {"amount": 1}, entity_id="a")))
    paper.copy()
    paper.send(trespass(COUNTER, OTHER, 1), add_to("a", 2))
    assert paper.roll_back()
    return paper.drain()


@CASES.holds("G9")
def a_violation_is_not_yet_published() -> Evidence:
    paper = Paper()
    paper.send(trespass(COUNTER, OTHER, 1))
    paper.turn(COUNTER, dies="committed")
    return paper.corpse


@CASES.holds("G9")
def a_trespass_under_an_id_that_is_used_where_it_arrives() -> Evidence:
    paper = Paper()
    paper.send(add_to("a", 1), trespass(COUNTER, OTHER, 1))
    return paper.drain()


@CASES.holds("G9")
def a_command_of_nobody_of_which_nothing_was_expected() -> Evidence:
    paper = Paper()
    paper.send(Sent(attrs.evolve(command(COUNTER, "add", 1, {"amount": 1}), security_context=None)))
    return paper.drain()


@pytest.mark.parametrize("case", CASES.params(CASES.broken))
def test_what_is_wrong_is_found(case: Broken) -> None:
    case.check()


@pytest.mark.parametrize("case", CASES.params(CASES.sound))
def test_what_is_right_passes(case: Sound) -> None:
    case.check()


def test_what_concerns_one_tenant_only_is_for_others_to_judge() -> None:
    paper = Paper()
    paper.send(add_to("a", 1))
    evidence = paper.drain()
    assert judgement(drop(evidence, "keys", key_of(evidence, "k1")), "G9").holds, (
        "undecided, and not taken for another's"
    )
    record = next(record for record in rows_of(evidence, "keys") if record.key.startswith("evt:"))
    assert judgement(edit(evidence, "keys", record, key="evt:nothing"), "G9").holds, "an event of nobody's"
    rubbish = streams(evidence, "events", lambda all_: [*all_, attrs.evolve(all_[0], body=b"{", msg_id="00")])
    assert judgement(rubbish, "G9").holds, "no event at all"


def test_a_violation_that_expired_is_not_missed() -> None:
    evidence = a_violation_nobody_heard_of()
    facts = {**evidence.facts, EVENTS: attrs.evolve(evidence.facts[EVENTS], first_seq=3)}
    assert judgement(attrs.evolve(evidence, facts=facts), "G9").holds
