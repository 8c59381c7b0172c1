"""G6, G7, G8: versions without gaps, states that can be rebuilt, answers that stay the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
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
    body_with,
    corpse,
    drop,
    edit,
    end,
    judgement,
    key_of,
    noting,
    output_of,
    rows_of,
    without,
)
from .paper import COUNTER, Paper

CASES = Cases()
HASH = "0" * 64


def add_to(entity: str, number: int, **more: Any) -> Sent:
    return Sent(command(COUNTER, "add", number, {"amount": 1}, entity_id=entity, **more))


def head(evidence: Evidence, entity: str, **changes: Any) -> Evidence:
    heads = dict(evidence.rows.heads)
    heads[COUNTER, entity] = attrs.evolve(heads[COUNTER, entity], **changes)
    return attrs.evolve(evidence, rows=attrs.evolve(evidence.rows, heads=heads))


# -- G6 --------------------------------------------------------------------------------------------------------------


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


# -- G7 --------------------------------------------------------------------------------------------------------------


@CASES.breaks("G7", "'a' version 1: body does not hash to its chain")
def a_byte_of_an_event() -> Evidence:
    row = output_of(end(), "k1")
    return edit(end(), "outputs", row, body=row.body.replace(b'"amount":5', b'"amount":6'))


@CASES.breaks("G7", "'a': events do not hash to the head")
def a_head_of_another_chain() -> Evidence:
    return head(end(), "a", chain=hashlib.sha256(b"").digest())


@CASES.breaks("G7", "was recorded, 0000")
def rebuilt_to_another_state() -> Evidence:
    return attrs.evolve(end(), rebuilt={COUNTER: [HASH, HASH]})


@CASES.breaks("G7", "processes with other hash seeds, clocks and zones rebuild ['0000")
def rebuilt_to_two_states() -> Evidence:
    """Nothing was recorded to compare with: they differ all the same."""
    evidence = attrs.evolve(end(), rows=attrs.evolve(end().rows, state_hashes={}))
    return attrs.evolve(evidence, rebuilt={COUNTER: [HASH, "1" * 64]})


@CASES.breaks("G7", "default/demo/counter cannot be rebuilt: default/demo/counter: entity 'a'")
def cannot_be_rebuilt() -> Evidence:
    return attrs.evolve(end(), rebuilt={COUNTER: ["default/demo/counter: entity 'a' version 1: apply differs"]})


@CASES.breaks("G7", "a state hash after output 900 is recorded, there are 1")
def a_hash_of_what_does_not_exist() -> Evidence:
    hashes = {**end().rows.state_hashes, COUNTER: (900, HASH)}
    return attrs.evolve(end(), rows=attrs.evolve(end().rows, state_hashes=hashes))


def called(call: Mapping[str, Any], digest: str, **fields: Any) -> list[tuple[str, str, dict[str, Any]]]:
    """A call like this one in another process, and what it decided."""
    again = {**call, **fields}
    decided = {"scope": again["scope"], "key": again["key"], "digest": digest}
    return [("worker#9", "call", again), ("worker#9", "decided", decided)]


def call_of(evidence: Evidence, key: str) -> tuple[Mapping[str, Any], str]:
    """The first call of a key, and the digest of what it decided."""
    fields = next(r.fields for r in evidence.history if r.kind == "call" and r["key"] == key)
    return fields, next(r["digest"] for r in evidence.history if r.kind == "decided" and r["key"] == key)


@CASES.breaks("G7", "key 'k8': add on 'c' at version 0 was decided in 2 ways")
def decided_otherwise_on_the_same_state() -> Evidence:
    fields, _ = call_of(end(), "k8")
    return noting(end(), *called(fields, "other"))


@CASES.breaks("G7", "key 'evt:counter:c1_added:k1': added on 'a' at version 0 was decided in 2 ways")
def an_event_was_decided_otherwise() -> Evidence:
    fields, _ = call_of(end(), "evt:counter:c1_added:k1")
    return noting(end(), *called(fields, "other"))


@CASES.holds("G7")
def decided_alike_after_a_kill() -> Evidence:
    fields, digest = call_of(end(), "k8")
    return noting(end(), *called(fields, digest))


@CASES.holds("G7")
def decided_otherwise_on_another_state() -> Evidence:
    fields, _ = call_of(end(), "k8")
    return noting(end(), *called(fields, "other", before="another"))


@CASES.holds("G7")
def decided_otherwise_for_another_payload() -> Evidence:
    """The same key, twice on the same state, for the first payload and for the second."""
    fields, _ = call_of(end(), "k2")
    return noting(end(), *called(fields, "other", id="c12"))


@CASES.holds("G7")
def dice_may_fall_otherwise() -> Evidence:
    fields, _ = call_of(end(), "k9")
    return noting(end(), *called(fields, "other"))


@CASES.holds("G7")
def a_query_may_be_answered_otherwise() -> Evidence:
    fields, digest = call_of(end(), "")
    assert fields["action"] == "get"
    keyed = {**fields, "key": "q"}
    return noting(end(), *called(fields, "other"), *called(keyed, digest), *called(keyed, "other"))


@CASES.holds("G7")
def a_call_that_came_to_no_decision() -> Evidence:
    fields, digest = call_of(end(), "k8")
    raised, _ = called(fields, "")
    return noting(end(), raised, *called(fields, digest), ("worker#8", "decided", {"key": "k8", "digest": "x"}))


@CASES.holds("G7")
def a_hash_recorded_before_the_last_output() -> Evidence:
    hashes = {**end().rows.state_hashes, COUNTER: (1, HASH)}
    return attrs.evolve(end(), rows=attrs.evolve(end().rows, state_hashes=hashes))


@CASES.holds("G7")
def nothing_was_recorded_or_rebuilt() -> Evidence:
    return corpse()


# -- G8 --------------------------------------------------------------------------------------------------------------


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


@CASES.breaks("G8", "key 'k1' was sent again and not answered after that")
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


@CASES.breaks("G8", "key 'k1' was sent again and not answered after that")
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
