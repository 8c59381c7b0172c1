"""G7: states can be rebuilt, decisions repeat."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import attrs
import pytest

from chaos.evidence import Evidence

from .crafted import (
    Broken,
    Cases,
    Sound,
    corpse,
    edit,
    end,
    noting,
    output_of,
)
from .paper import COUNTER

CASES = Cases()
HASH = "0" * 64


def head(evidence: Evidence, entity: str, **changes: Any) -> Evidence:
    heads = dict(evidence.rows.heads)
    heads[COUNTER, entity] = attrs.evolve(heads[COUNTER, entity], **changes)
    return attrs.evolve(evidence, rows=attrs.evolve(evidence.rows, heads=heads))


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
def what_follows_from_dice_may_differ_as_well() -> Evidence:
    fields, _ = call_of(end(), "evt:counter:c1_added:k1")
    differing = noting(end(), *called(fields, "other"))
    sent = [attrs.evolve(each, repeatable=each.key != "k1") for each in differing.sent]
    return attrs.evolve(differing, sent=sent)


@CASES.holds("G7")
def dice_may_fall_otherwise() -> Evidence:
    fields, _ = call_of(end(), "k9")
    return noting(end(), *called(fields, "other"))


@CASES.holds("G7")
def a_query_may_be_answered_otherwise() -> Evidence:
    fields, _ = call_of(end(), "query:c11")
    return noting(end(), *called(fields, "other"))


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


@pytest.mark.parametrize("case", CASES.params(CASES.broken))
def test_what_is_wrong_is_found(case: Broken) -> None:
    case.check()


@pytest.mark.parametrize("case", CASES.params(CASES.sound))
def test_what_is_right_passes(case: Sound) -> None:
    case.check()
