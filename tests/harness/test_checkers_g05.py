"""G5: everything committed is committed as a whole."""

from __future__ import annotations

from typing import Any

import attrs
import orjson
import pytest

from chaos.evidence import Evidence, Sent
from chaos.rows import KeyRow, Letter, OutputRow
from chaos.workload import command
from meshforge_trio.subjects import command_subject

from .crafted import (
    Broken,
    Cases,
    Sound,
    add,
    add_to,
    body_with,
    corpse,
    drop,
    edit,
    end,
    key_of,
    noting,
    output_of,
    rows_of,
)
from .paper import COUNTER, FRAGILE, OTHER, Paper
from .redriving import RedrivingPaper, discard, redrive

CASES = Cases()


@CASES.breaks("G5", "key 'k1' is recorded, its output 1 is missing")
def a_record_without_its_output() -> Evidence:
    return drop(end(), "outputs", output_of(end(), "k1"))


@CASES.breaks("G5", "output 1 (added) has no key record")
def an_output_without_its_record() -> Evidence:
    return drop(end(), "keys", key_of(end(), "k1"))


@CASES.breaks("G5", "key 'k1' claims output 2, which belongs to 'k2'")
def a_record_claims_anothers_output() -> Evidence:
    return edit(end(), "keys", key_of(end(), "k1"), first_n=2, last_n=2)


@CASES.breaks("G5", "output 1 belongs to 2 decisions, of ['k1', 'k2']")
def two_records_claim_one_output() -> Evidence:
    return edit(end(), "keys", key_of(end(), "k2"), first_n=1)


@CASES.breaks("G5", "key 'k1' is recorded, and has no outputs")
def a_command_without_an_answer() -> Evidence:
    return edit(end(), "keys", key_of(end(), "k1"), last_n=0)


@CASES.breaks("G5", "where 2 should be there is 3")
def numbers_with_a_gap() -> Evidence:
    return drop(drop(end(), "outputs", output_of(end(), "k2")), "keys", key_of(end(), "k2"))


@CASES.breaks("G5", "key 'k4' is recorded as decided, its outputs are [('record', 'conflict')]")
def a_conflict_recorded_as_decided() -> Evidence:
    return edit(end(), "keys", key_of(end(), "k4"), outcome="decided")


@CASES.breaks("G5", "key 'k1' is recorded as conflict, its outputs are [('event', 'added')]")
def a_decision_recorded_as_conflict() -> Evidence:
    return edit(end(), "keys", key_of(end(), "k1"), outcome="conflict")


@CASES.breaks("G5", "key 'k1' is recorded as refused, its outputs are [('event', 'added')]")
def a_decision_recorded_as_refused() -> Evidence:
    return edit(end(), "keys", key_of(end(), "k1"), outcome="refused")


@CASES.breaks("G5", "key 'k1' is recorded as dead, its outputs are [('event', 'added')]")
def a_decision_recorded_as_dead() -> Evidence:
    return edit(end(), "keys", key_of(end(), "k1"), outcome="dead")


@CASES.breaks("G5", "is recorded as mismatch, its outputs are [('record', 'refused')]")
def a_refusal_for_another_reason() -> Evidence:
    (refusal,) = rows_of(end(), "mismatches", scope=COUNTER)
    row = next(r for r in rows_of(end(), "outputs", scope=COUNTER) if r.n == refusal.first_n)
    return edit(end(), "outputs", row, body=body_with(row, payload={"code": "no"}))


@CASES.breaks("G5", "output 1 is id 'c1_added', its body says 'c9'")
def a_body_of_another_event() -> Evidence:
    row = output_of(end(), "k1")
    return edit(end(), "outputs", row, body=body_with(row, id="c9"))


@CASES.breaks("G5", "is key 'k7', its body says 'k8'")
def a_letter_of_another_key() -> Evidence:
    row = output_of(end(), "k7", "dead_letter")
    return edit(end(), "outputs", row, body=body_with(row, key="k8"))


@CASES.breaks("G5", "is action 'note', its body says 'nope'")
def a_command_of_another_action() -> Evidence:
    row = output_of(end(), "k10", "note")
    return edit(end(), "outputs", row, body=body_with(row, action="nope"))


@CASES.breaks("G5", "key 'k7' is dead, and its letter of generation 0 is missing")
def dead_without_a_letter() -> Evidence:
    return drop(end(), "dead", *rows_of(end(), "dead", scope=COUNTER))


@CASES.breaks("G5", "key 'k7' is decided, and has a dead letter of the same generation")
def alive_with_a_letter() -> Evidence:
    return edit(end(), "keys", key_of(end(), "k7"), outcome="decided")


@CASES.breaks("G5", "key 'k7' has a dead letter that is waiting, and no record")
def a_letter_without_a_record() -> Evidence:
    return drop(end(), "keys", key_of(end(), "k7"))


@CASES.breaks("G5", "the letter sent is not the one stored: attempts, payload differ")
def a_letter_of_another_command() -> Evidence:
    (letter,) = rows_of(end(), "dead", scope=COUNTER)
    return edit(end(), "dead", letter, body=b"{}", attempts=9)


def binary_letter(body_max: int = 100_000) -> Evidence:
    paper = Paper(body_max=body_max)
    paper.send_raw(command_subject(COUNTER, "add"), b"\xff\xfe" + b"x" * 1000)
    return paper.drain()


@CASES.breaks("G5", "the letter sent is not the one stored: payload_base64 differ")
def a_letter_of_other_bytes() -> Evidence:
    evidence = binary_letter()
    return edit(evidence, "dead", evidence.rows.dead[0], body=b"")


@CASES.breaks("G5", "the letter sent is not the one stored: payload_sha256 differ")
def a_long_letter_of_other_bytes() -> Evidence:
    evidence = binary_letter(800)
    return edit(evidence, "dead", evidence.rows.dead[0], body=b"")


@CASES.breaks("G5", "key 'k6' is decided and still counts attempts")
def a_decided_command_counts_attempts() -> Evidence:
    return attrs.evolve(end(), rows=attrs.evolve(end().rows, attempts={(COUNTER, "k6"): 1}))


@CASES.breaks("G5", "key 'k1' is decided and still counts attempts")
def at_the_end_also_one_that_was_sent_again() -> Evidence:
    return attrs.evolve(end(), rows=attrs.evolve(end().rows, attempts={(COUNTER, "k1"): 1}))


@CASES.breaks("G5", "key 'k3' is decided and still counts attempts")
def on_a_corpse_one_that_was_sent_once() -> Evidence:
    return attrs.evolve(corpse(), rows=attrs.evolve(corpse().rows, attempts={(COUNTER, "k3"): 1}))


@CASES.holds("G5")
def killed_between_counting_and_calling_a_command_just_decided() -> Evidence:
    """Both sendings of a key were in hand at a kill. The first is decided; the second was told to run alone before."""
    evidence = attrs.evolve(corpse(), rows=attrs.evolve(corpse().rows, attempts={(COUNTER, "k1"): 1}))
    return noting(evidence, ("worker#1", "point", {"point": "in_attempt", "nth": 1}))


@CASES.holds("G5")
def a_letter_in_bytes() -> Evidence:
    return binary_letter()


@CASES.holds("G5")
def a_letter_too_long_to_be_sent_whole() -> Evidence:
    return binary_letter(800)


@CASES.holds("G5")
def an_event_that_leads_to_nothing() -> Evidence:
    paper = Paper((COUNTER, FRAGILE))
    paper.send(add_to("a", 1))
    evidence = paper.drain()
    record: KeyRow
    (record,) = rows_of(evidence, "keys", scope=FRAGILE)
    assert record.last_n < record.first_n
    return evidence


@CASES.holds("G5")
def two_scopes_count_from_one() -> Evidence:
    assert output_of(end(), "k1", scope=OTHER).n == output_of(end(), "k1").n == 1
    return end()


def told_as(row: OutputRow, payload: dict[str, Any]) -> bytes:
    return orjson.dumps({**orjson.loads(row.body), "payload": payload})


@CASES.breaks("G5", "key 'k6' is recorded as refused, its outputs are [('record', 'refused')]")
def a_refusal_without_a_reason() -> Evidence:
    row = output_of(end(), "k6")
    return edit(end(), "outputs", row, body=told_as(row, {"code": "no"}))


@CASES.breaks("G5", "key 'k1' is recorded as refused, its outputs are [('event', 'added')]")
def an_event_that_looks_like_a_refusal() -> Evidence:
    row = output_of(end(), "k1")
    evidence = edit(end(), "outputs", row, body=told_as(row, {"code": "no", "reason": "no"}))
    return edit(evidence, "keys", key_of(end(), "k1"), outcome="refused")


@CASES.breaks("G5", "is recorded as mismatch, its outputs are [('record', 'refused'), ('event', 'added')]")
def a_refusal_of_two_outputs() -> Evidence:
    (refusal,) = rows_of(end(), "mismatches", scope=COUNTER)
    return edit(end(), "mismatches", refusal, last_n=refusal.last_n + 1)


def redriven() -> RedrivingPaper:
    """Of two dead letters one is discarded, the other redriven and set aside again."""
    paper = RedrivingPaper((COUNTER,))
    explosions = [Sent(command(COUNTER, "explode", n, entity_id="a"), expect=("dead",)) for n in (1, 2)]
    paper.send(*explosions)
    paper.drain()
    paper.send(redrive(COUNTER, 3, "k1"), discard(COUNTER, 4, "k2"))
    paper.turn(COUNTER, dies="committed")
    return paper


@CASES.holds("G5")
def a_key_is_free_and_its_letter_redriven() -> Evidence:
    return redriven().corpse


@CASES.holds("G5")
def redriven_discarded_and_set_aside_again() -> Evidence:
    evidence = redriven().drain()
    assert [letter.state for letter in evidence.rows.dead] == ["redriven", "discarded", "waiting"]
    return evidence


def letter_in(evidence: Evidence, state: str) -> Letter:
    letter: Letter
    (letter,) = rows_of(evidence, "dead", state=state)
    return letter


def raised(evidence: Evidence, **generations: int) -> Evidence:
    table = {(COUNTER, key): n for key, n in generations.items()}
    return attrs.evolve(evidence, rows=attrs.evolve(evidence.rows, generations=table))


@CASES.breaks("G5", "output 1 (dead_letter) has no key record")
def a_key_is_free_and_its_letter_waits() -> Evidence:
    evidence = redriven().corpse
    return edit(evidence, "dead", letter_in(evidence, "redriven"), state="waiting")


@CASES.breaks("G5", "key 'k1' has a dead letter that is waiting, and no record")
def freed_without_its_fate() -> Evidence:
    return a_key_is_free_and_its_letter_waits()


@CASES.breaks("G5", "key 'k1' was redriven, and its record of generation 0 stands")
def redriven_and_not_freed() -> Evidence:
    evidence = redriven().corpse
    digest = evidence.sent[0].digest
    return add(evidence, "keys", KeyRow(COUNTER, "k1", digest, "dead", 1, 2))


@CASES.breaks("G5", "key 'k1' has a dead letter of generation 0 that is redriven, and its generation is 0")
def redriven_and_its_generation_not_raised() -> Evidence:
    return raised(redriven().corpse)


@CASES.breaks("G5", "key 'k2' has a dead letter of generation 0 that is discarded, and its generation is 1")
def discarded_and_its_generation_raised() -> Evidence:
    return raised(redriven().corpse, k1=1, k2=1)


@CASES.breaks("G5", "key 'k1' is decided in generation 1, and 2 is its generation")
def decided_in_a_generation_that_is_over() -> Evidence:
    return raised(redriven().drain(), k1=2)


@CASES.breaks("G5", "key 'k3' was redriven, and has no dead letter")
def a_generation_without_a_letter() -> Evidence:
    return raised(redriven().corpse, k1=1, k3=1)


@CASES.breaks("G5", "key 'k1' has dead letters of generations [1]")
def the_letter_of_a_generation_is_lost() -> Evidence:
    evidence = redriven().drain()
    return drop(evidence, "dead", letter_in(evidence, "redriven"))


@CASES.breaks("G5", "key 'k1' has a dead letter of generation 0 that is discarded, and a later one")
def discarded_and_set_aside_again() -> Evidence:
    evidence = redriven().drain()
    return edit(evidence, "dead", letter_in(evidence, "redriven"), state="discarded")


@CASES.breaks("G5", "its dead letter of generation 0 is redriven, and no output says that it was redriven")
def redriven_and_nobody_says_so() -> Evidence:
    evidence = redriven().drain()
    row = output_of(evidence, "k3", "redriven")
    return edit(evidence, "outputs", row, name="done", body=body_with(row, name="done"))


@CASES.breaks("G5", "its dead letter of generation 0 is waiting, and an output says that it was discarded")
def said_to_be_discarded_and_still_waiting() -> Evidence:
    evidence = redriven().drain()
    return edit(evidence, "dead", letter_in(evidence, "discarded"), state="waiting")


@CASES.breaks("G5", "key 'k1' was redriven, and nothing was sent again")
def redriven_and_nothing_sent() -> Evidence:
    evidence = redriven().drain()
    row = output_of(evidence, "k3", "redriven")
    return edit(evidence, "outputs", row, body=body_with(row, payload={"command_id": "none"}))


@CASES.breaks("G5", "key 'k3' is recorded as decided, its outputs are [('record', 'redriven')]")
def the_decision_of_a_redrive_is_cut_off() -> Evidence:
    evidence = redriven().drain()
    record = key_of(evidence, "k3")
    return edit(evidence, "keys", record, last_n=record.first_n)


@CASES.breaks("G5", "key 'k1' was dead in generation 0, the outputs of that are [('dead', 'dead_letter')]")
def what_the_caller_was_told_of_a_letter_is_lost() -> Evidence:
    evidence = redriven().drain()
    return drop(evidence, "outputs", output_of(evidence, "k1", "dead_lettered"))


@CASES.breaks("G5", "key 'k1': the letter sent is not the one stored: attempts differ")
def a_letter_that_was_redriven_is_misquoted() -> Evidence:
    evidence = redriven().drain()
    return edit(evidence, "dead", letter_in(evidence, "redriven"), attempts=9)


@pytest.mark.parametrize("case", CASES.params(CASES.broken))
def test_what_is_wrong_is_found(case: Broken) -> None:
    case.check()


@pytest.mark.parametrize("case", CASES.params(CASES.sound))
def test_what_is_right_passes(case: Sound) -> None:
    case.check()
