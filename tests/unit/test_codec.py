"""A tenant with a codec: what is sealed, and what opens it."""

from __future__ import annotations

from typing import Any

import attrs
import orjson
import pytest
import trio
from doubles import SCOPE, USER, Desk, command, counter, event, outcomes
from hypothesis import given
from hypothesis import strategies as st
from sealed_doubles import RING, SECRET, Keys, desk, everything, opened, sealed_command, sealer, vault

from meshforge_trio import deadlines
from meshforge_trio.agent import Agent, Context, Deadline, Event
from meshforge_trio.codec import ScopeSealer, Sealed, Sealer, is_sealed
from meshforge_trio.entities import SNAPSHOT_EVERY, hashed, restore
from meshforge_trio.envelope import EventEnvelope, JsonObject, decode_command, encode
from meshforge_trio.errors import Poison
from meshforge_trio.keyring import AesSiv
from meshforge_trio.outgoing import as_message
from meshforge_trio.policy import RetryPolicy
from meshforge_trio.store.port import Head
from meshforge_trio.subjects import DELIVER, REDRIVE, Scope, command_subject

# -- envelopes -------------------------------------------------------------------------------------------------

payloads = st.dictionaries(st.text(max_size=8), st.none() | st.integers(-(2**63), 2**63 - 1) | st.text(), max_size=5)


@given(payloads)
def test_an_envelope_that_was_sealed_opens(payload: JsonObject) -> None:
    made = command(1, payload=payload)
    sealed = sealer().sealed(made)
    assert is_sealed(sealed.payload)
    assert decode_command(encode(sealed)) == sealed
    assert sealer().opened(sealed) == made
    assert encode(sealer().sealed(made)) == encode(sealed)


@pytest.mark.parametrize(
    "change",
    [
        {"id": "c2"},
        {"tenant": "u"},
        {"workspace": "v"},
        {"agent": "other"},
        {"action": "take"},
        {"idempotency_key": "k2"},
        {"entity_id": "b"},
        {"entity_id": None},
        {"expected_version": 1},
    ],
    ids=lambda change: "-".join(f"{name}-{value}" for name, value in change.items()),
)
def test_a_payload_opens_in_its_own_envelope_alone(change: dict[str, Any]) -> None:
    moved = attrs.evolve(sealed_command(1, payload={"text": SECRET}), **change)
    with pytest.raises(Poison, match="belongs elsewhere"):
        sealer().opened(moved)


def test_a_command_does_not_pass_for_an_event() -> None:
    sealed = sealed_command(1)
    fields = {name: getattr(sealed, name) for name in ("id", "tenant", "workspace", "agent", "entity_id", "payload")}
    with pytest.raises(Poison):
        sealer().opened(EventEnvelope(name="add", idempotency_key="k1", **fields))


@pytest.mark.parametrize(
    "payload",
    [
        {"$sealed": 1},
        {"$sealed": {"key": "k"}},
        {"$sealed": {"key": 1, "bytes": ""}},
        {"$sealed": {"key": "k", "bytes": "%"}},
    ],
    ids=["number", "without", "wrong", "no-base64"],
)
def test_a_malformed_seal_is_poison(payload: JsonObject) -> None:
    with pytest.raises(Poison, match="not what a codec makes"):
        Sealed.of(payload)
    (verdict,) = desk().take(command(1, payload=payload)).verdicts
    assert (verdict.outcome, verdict.incoming.key) == ("dead", "k1")


def test_a_codec_takes_what_json_carries_and_no_more() -> None:
    with pytest.raises(Poison, match="NaN"):
        sealer().sealed(command(1, payload={"x": float("nan")}))


def test_nothing_is_sealed_for_a_tenant_without_a_codec() -> None:
    assert ScopeSealer.of_scope(Keys(), Scope("u", "w", "counter")) is None
    assert Sealer.of(None, "t") is None
    made = command(1, payload={"text": SECRET})
    assert SECRET.encode() in as_message(made).body
    assert SECRET.encode() not in as_message(made, None, sealer()).body


# -- decisions -------------------------------------------------------------------------------------------------


def test_a_command_runs_whether_it_comes_sealed_or_not() -> None:
    at = desk()
    assert outcomes(at.take(sealed_command(1, payload={"amount": 5}), command(2, payload={"amount": 7}))) == [
        "decided",
        "decided",
    ]
    assert at.total() == 12
    assert all(is_sealed(orjson.loads(output.body)["payload"]) for output in at.outputs)
    assert [opened(output) for output in at.outputs] == [
        {"amount": 5, "entity_version": 1},
        {"amount": 7, "entity_version": 2},
    ]


def test_the_same_history_gives_the_same_bytes() -> None:
    first, second = desk(), desk()
    for at in (first, second):
        at.take(sealed_command(1, "twice"))
        at.take(sealed_command(2, "send", payload={"count": 2}))
    assert first.outputs == second.outputs


def test_nothing_of_a_payload_rests_readable() -> None:
    """Events, errors of handlers, dead letters of sealed, plain and unreadable messages, redriven ones."""
    text = {"text": SECRET}
    at = desk(adapter=vault())
    written = b""
    for batch in (
        [sealed_command(1, "keep", payload=text), command(2, "keep", payload=text)],
        [sealed_command(3, "explode", payload=text, entity_id="b")],
        [command(4, "explode", payload=text, entity_id="c")],
        [sealed_command(5, "poison", payload=text), command(6, "poison", payload=text)],
    ):
        written += everything(at.take(*batch))
    garbage = at.arrive(command_subject(SCOPE, "keep"), b'{"text": "%s"' % SECRET.encode())
    written += everything(trio.run(at.turn, garbage))
    at.now += 60
    again = [
        sealed_command(3, "explode", payload=text, entity_id="b"),
        command(4, "explode", payload=text, entity_id="c"),
    ]
    plan = at.take(*again)
    assert outcomes(plan) == ["dead", "dead"]
    written += everything(plan)
    assert len(at.dead) == 5
    fates = [
        attrs.evolve(
            command(20 + i, REDRIVE, entity_id=None),
            security_context=attrs.evolve(USER, principal_type="system"),
            payload={"key": f"k{i}", "generation": 0, "actor": SECRET, "reason": SECRET},
        )
        for i in (3, 4, 5, 6)
    ]
    plan = at.take(*fates)
    assert outcomes(plan) == ["decided"] * 4
    written += everything(plan)
    assert SECRET.encode() not in written
    assert b'"text"' not in written
    redriven = [output for output in plan.commit.outputs if output.kind == "command"]
    assert [opened(output) for output in redriven] == [text] * 4


def test_without_a_codec_it_all_rests_readable() -> None:
    """So the test before can fail."""
    at = Desk(adapter=vault())
    written = everything(
        at.take(command(1, "keep", payload={"text": SECRET}), command(2, "poison", payload={"text": SECRET}))
    )
    assert written.count(SECRET.encode()) > 4


def test_a_dead_letter_tells_its_story_to_who_has_the_keys() -> None:
    at = desk(adapter=vault())
    made = command(1, "poison", payload={"text": SECRET})
    at.take(made)
    letter = at.dead["k1"]
    assert sealer().opened_text("k1", letter.reason) == f"never {SECRET}"
    assert sealer().opened_text("k2", letter.reason) == letter.reason
    assert sealer().opened_body("k1", letter.body) == encode(made)
    with pytest.raises(Poison):
        sealer().opened_body("k2", letter.body)
    (output,) = [output for output in at.outputs if output.kind == "dead"]
    told = orjson.loads(output.body)
    assert told["reason"] == letter.reason
    assert told["payload"].encode() == letter.body


def test_the_error_of_a_failing_command_is_quoted_when_it_dies() -> None:
    at = desk(adapter=vault())
    made = sealed_command(1, "explode", payload={"text": SECRET})
    at.take(made)
    attempt = at.waiting.attempt("k1")
    assert attempt is not None
    assert SECRET not in repr(attempt)
    at.now += 60
    at.take(made)
    reason = sealer().opened_text("k1", at.dead["k1"].reason)
    assert reason == f"the handler failed 2 times; last: RuntimeError: cannot keep {SECRET}"
    assert [sealer().opened_text("k1", error) for _, error in at.dead["k1"].calls] == [
        f"RuntimeError: cannot keep {SECRET}"
    ] * 2


def test_who_is_given_up_before_a_call_is_told_of_the_last_error_in_words() -> None:
    at = desk(adapter=vault())
    made = sealed_command(1, "explode", payload={"text": SECRET})
    at.take(made)
    at.now += 60
    at.policy = RetryPolicy(limit=2)
    at.take(made)
    reason = sealer().opened_text("k1", at.dead["k1"].reason)
    assert reason == f"the handler failed 1 times; last: RuntimeError: cannot keep {SECRET}"


def test_a_redriven_event_comes_sealed_and_is_that_event() -> None:
    at = desk(adapter=_broken_listener())
    by = sealer(scope=Scope("t", "w", "source"))
    at.take(by.sealed(event(1, payload={"amount": 1})))
    (key,) = at.dead
    order = attrs.evolve(
        command(20, REDRIVE, entity_id=None),
        security_context=attrs.evolve(USER, principal_type="system"),
        payload={"key": key, "generation": 0, "actor": "kim", "reason": "mended"},
    )
    plan = at.take(order)
    (again,) = [output for output in plan.commit.outputs if output.kind == "command"]
    assert again.name == DELIVER
    at.adapter = counter()
    incoming = at.arrive(command_subject(SCOPE, DELIVER), again.body)
    assert (incoming.key, incoming.fault) == (key, None)
    assert outcomes(trio.run(at.turn, incoming)) == ["decided"]


def _broken_listener() -> Agent[int]:
    agent: Agent[int] = Agent("counter", state=int, initial=int)

    @agent.on("source", "added")
    def heard(total: int, payload: JsonObject, ctx: Context) -> Event:
        raise Poison("not yet")

    return agent


def test_what_a_deadline_asks_for_is_sealed() -> None:
    scope = Scope("t", "w", "sys_lock_manager")
    asked = Deadline(5.0, "1", "expire", {"owner_id": SECRET})
    message = deadlines._command(scope, "door", asked, sealer())
    assert SECRET.encode() in deadlines._command(scope, "door", asked, None).body
    assert SECRET.encode() not in message.body
    assert sealer().opened(decode_command(message.body)).payload == {"owner_id": SECRET}


def test_state_hash_holds_keyed_digests() -> None:
    state = b'{"text":"yes"}'
    assert hashed(state, None) == state
    assert hashed(state, sealer()) == AesSiv(RING).digest(state)


def test_a_snapshot_is_sealed_for_its_place() -> None:
    at = desk(adapter=vault())
    batch = [sealed_command(i, "keep", payload={"text": f"{SECRET}-{i}"}) for i in range(1, SNAPSHOT_EVERY + 1)]
    plan = at.take(*batch)
    (snapshot,) = plan.commit.snapshots
    assert SECRET.encode() not in snapshot.state
    head = Head("a", SNAPSHOT_EVERY, b"", snapshot.state, snapshot.version, snapshot.schema)
    assert restore(at.adapter, head, sealer()).state == {"text": f"{SECRET}-{SNAPSHOT_EVERY}"}
    with pytest.raises(Poison, match="belongs elsewhere"):
        restore(at.adapter, attrs.evolve(head, entity_id="b"), sealer())
