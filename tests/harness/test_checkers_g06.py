"""G6: versions run without gap or fork."""

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
    add_to,
    body_with,
    drop,
    edit,
    end,
    judgement,
    key_of,
    output_of,
)
from .paper import COUNTER, Paper

CASES = Cases()


def head(evidence: Evidence, entity: str, **changes: Any) -> Evidence:
    heads = dict(evidence.rows.heads)
    heads[COUNTER, entity] = attrs.evolve(heads[COUNTER, entity], **changes)
    return attrs.evolve(evidence, rows=attrs.evolve(evidence.rows, heads=heads))


@CASES.breaks("G6", "'a': versions run [1, 3, 4]")
def a_gap() -> Evidence:
    return drop(end(), "outputs", output_of(end(), "k3"))


@CASES.breaks("G6", "'a': versions run [1, 2, 2, 4]")
def a_fork() -> Evidence:
    return edit(end(), "outputs", output_of(end(), "k9"), version=2)


@CASES.breaks("G6", "'a': payloads say [1, 7, 3, 4], the store [1, 2, 3, 4]")
def a_payload_tells_another_version() -> Evidence:
    row = output_of(end(), "k3")
    return edit(end(), "outputs", row, body=body_with(row, payload={"entity_version": 7}))


@CASES.breaks("G6", "as those before them")
def a_link_leads_elsewhere() -> Evidence:
    return edit(end(), "outputs", output_of(end(), "k3"), prev=0)


@CASES.breaks("G6", "'a': head says version 3 at output")
def a_head_behind_its_events() -> Evidence:
    return head(end(), "a", version=3)


@CASES.breaks("G6", "at output 1, there are 4 events, the last is output")
def a_head_names_another_output() -> Evidence:
    return head(end(), "a", last_n=1)


@CASES.breaks("G6", "'a': has 4 events and no head")
def events_without_a_head() -> Evidence:
    heads = {place: row for place, row in end().rows.heads.items() if place != (COUNTER, "a")}
    return attrs.evolve(end(), rows=attrs.evolve(end().rows, heads=heads))


@CASES.breaks("G6", "'z': has a head and no events")
def a_head_without_events() -> Evidence:
    heads = {**end().rows.heads, (COUNTER, "z"): end().rows.heads[COUNTER, "a"]}
    return attrs.evolve(end(), rows=attrs.evolve(end().rows, heads=heads))


@CASES.breaks("G6", "'a': a record has version 3 in the chain of its entity (output 4)")
def a_conflict_raised_the_version() -> Evidence:
    return edit(end(), "outputs", output_of(end(), "k4"), version=3)


@CASES.breaks("G6", "'a': conflict tells version 1, it was 2 (output 4)")
def a_conflict_tells_an_old_version() -> Evidence:
    row = output_of(end(), "k4")
    return edit(end(), "outputs", row, body=body_with(row, payload={"current_version": 1}))


@CASES.breaks("G6", "'a': conflict at version 2, which was the one expected")
def a_conflict_without_a_reason() -> Evidence:
    row = output_of(end(), "k4")
    return edit(end(), "outputs", row, body=body_with(row, payload={"expected_version": 2}))


@CASES.breaks("G6", "'b': refused tells version 5, it was 1")
def a_refusal_tells_another_version() -> Evidence:
    row = output_of(end(), "k6")
    return edit(end(), "outputs", row, body=body_with(row, payload={"entity_version": 5}))


@CASES.breaks("G6", "'a': key 'k3' expected version ['0'] and was decided at 1")
def decided_at_another_version_than_expected() -> Evidence:
    sent = [_expecting(each, 0) if (each.scope, each.key) == (COUNTER, "k3") else each for each in end().sent]
    evidence = attrs.evolve(end(), sent=sent)
    (digest,) = {each.digest for each in sent if (each.scope, each.key) == (COUNTER, "k3")}
    return edit(evidence, "keys", key_of(end(), "k3"), payload_hash=digest)


def _expecting(sent: Sent, version: int) -> Sent:
    return Sent(attrs.evolve(sent.command, expected_version=version), sent.outcome, expect=sent.expect)


@CASES.holds("G6")
def a_conflict_between_two_events() -> Evidence:
    assert output_of(end(), "k3").n < output_of(end(), "k4").n < output_of(end(), "k9").n
    return end()


@CASES.holds("G6")
def an_expected_version_that_was_met() -> Evidence:
    paper = Paper()
    paper.send(add_to("a", 1, expected_version=0), add_to("a", 2, expected_version=1))
    return paper.drain()


@CASES.holds("G6")
def a_command_without_an_entity() -> Evidence:
    paper = Paper()
    paper.send(Sent(command(COUNTER, "add", 1, {"amount": 1})), add_to("a", 2, expected_version=0))
    return paper.drain()


@CASES.breaks("G6", "'a': a record has version None in the chain of its entity (output 4)")
def a_conflict_in_the_chain() -> Evidence:
    return edit(end(), "outputs", output_of(end(), "k4"), chain=b"\0" * 32)


@CASES.breaks("G6", "'a': a record has version None in the chain of its entity (output 4)")
def a_conflict_with_a_link() -> Evidence:
    return edit(end(), "outputs", output_of(end(), "k4"), prev=3)


@pytest.mark.parametrize("case", CASES.params(CASES.broken))
def test_what_is_wrong_is_found(case: Broken) -> None:
    case.check()


@pytest.mark.parametrize("case", CASES.params(CASES.sound))
def test_what_is_right_passes(case: Sound) -> None:
    case.check()


def test_others_may_use_the_name_of_a_version() -> None:
    """In the payload of a command, or of an event of no entity, it is the agent's own."""
    row = output_of(end(), "k10", "note")
    evidence = edit(end(), "outputs", row, body=body_with(row, payload={"entity_version": 900}))
    assert judgement(evidence, "G6").holds
    paper = Paper()
    paper.send(Sent(command(COUNTER, "add", 1, {"amount": 1})))
    evidence = paper.drain()
    row = output_of(evidence, "k1")
    evidence = edit(evidence, "outputs", row, body=body_with(row, payload={"entity_version": 900}))
    assert judgement(evidence, "G6").holds
