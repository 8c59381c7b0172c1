"""Keys that rotate and are destroyed: what is still known, what is refused, and what a session does about it."""

from __future__ import annotations

from typing import Any, cast

import attrs
import orjson
import pytest
import trio
from doubles import SCOPE, USER, Desk, command, counter, delivery, event, outcomes
from sealed_doubles import NOW, RING, SECRET, Keys, desk, everything, sealed_command, sealer

from meshforge_trio.answers import Answers
from meshforge_trio.asides import Asides
from meshforge_trio.codec import Codecs, ScopeSealer, is_sealed
from meshforge_trio.drafts import Drafter
from meshforge_trio.engine import RuntimeEngine
from meshforge_trio.envelope import encode, payload_hash
from meshforge_trio.errors import Erased, Misconfigured, Transient
from meshforge_trio.intake import read_delivery
from meshforge_trio.keyring import AesSiv, Ring
from meshforge_trio.keys import opened_keys, renew
from meshforge_trio.locks import LockManagerAdapter
from meshforge_trio.outgoing import as_message
from meshforge_trio.store.port import Output
from meshforge_trio.subjects import DISCARD, REDRIVE, Scope, command_subject

# -- keys and hashes -------------------------------------------------------------------------------------------


def test_a_re_send_after_a_rotation_is_no_mismatch_and_hears_the_same_bytes() -> None:
    keys = Keys()
    at = desk(keys)
    first = at.take(sealed_command(1, by=sealer(keys), payload={"amount": 5})).commit.outputs[0]
    keys.ring = keys.ring.rotated(NOW)
    for again in (
        sealed_command(1, by=sealer(keys), id="c1-again", payload={"amount": 5}),
        sealed_command(1, payload={"amount": 5}),
        command(1, payload={"amount": 5}),
    ):
        plan = at.take(again)
        assert outcomes(plan) == ["duplicate"]
        assert [message.body for message in plan.echoes] == [first.body]
    assert outcomes(at.take(sealed_command(1, by=sealer(keys), payload={"amount": 6}))) == ["refused"]


def test_hashes_of_payloads_are_keyed() -> None:
    at = desk()
    made = command(1, payload={"amount": 5})
    at.take(made)
    at.take(by := event(1, payload={"amount": 5}))
    assert at.keys["k1"].payload_hash == payload_hash(made, AesSiv(RING).digest) != payload_hash(made)
    bare = read_delivery(delivery("evt.t.w.source.added", encode(by)), SCOPE, at.adapter)
    assert at.keys[bare.key].payload_hash != bare.hash


def test_names_of_unreadable_messages_are_keyed() -> None:
    arrived = delivery(command_subject(SCOPE, "add"), b"{")
    sealed, bare = (read_delivery(arrived, SCOPE, counter(), sealer=by) for by in (sealer(), None))
    assert sealed.key.startswith("raw:")
    assert sealed.key != bare.key


def test_what_was_decided_before_there_was_a_codec_is_still_known() -> None:
    at = Desk()
    first = at.take(command(1, payload={"amount": 5}), event(1, payload={"amount": 5}))
    at.codecs = Keys()
    again = at.take(sealed_command(1, payload={"amount": 5}), event(1, payload={"amount": 5}))
    assert outcomes(again) == ["duplicate", "duplicate"]
    assert [message.body for message in again.echoes] == [o.body for o in first.commit.outputs if o.kind == "event"]
    assert outcomes(at.take(sealed_command(1, payload={"amount": 6}))) == ["refused"]
    assert at.total() == 5 + 10


def test_what_cannot_be_opened_is_set_aside_under_its_key_and_can_be_redriven() -> None:
    """Where a client has a newer copy of the ring than the worker."""
    newer = Keys(RING.rotated(NOW))
    at = desk()
    early = sealed_command(1, by=sealer(newer), payload={"amount": 5})
    (verdict,) = at.take(early).verdicts
    assert (verdict.outcome, verdict.incoming.key) == ("dead", "k1")
    assert verdict.dead is not None
    assert verdict.dead.code == "unknown_key"
    order = attrs.evolve(
        command(20, REDRIVE, entity_id=None),
        security_context=attrs.evolve(USER, principal_type="system"),
        payload={"key": "k1", "generation": 0, "actor": "kim", "reason": "the ring is there"},
    )
    (verdict,) = at.take(order).verdicts
    assert (verdict.outcome, at.dead["k1"].state) == ("refused", "waiting")
    at.codecs = newer
    plan = at.take(attrs.evolve(order, id="c21", idempotency_key="k21"))
    (again,) = [output for output in plan.commit.outputs if output.kind == "command"]
    assert outcomes(trio.run(at.turn, at.arrive(again.subject, again.body))) == ["decided"]
    assert at.total() == 5


# -- erased ----------------------------------------------------------------------------------------------------


def test_an_erased_tenant_repeats_what_it_decided_and_refuses_the_rest() -> None:
    keys = Keys()
    at = desk(keys)
    first = at.take(made := sealed_command(1, payload={"amount": 5})).commit.outputs[0]
    keys.destroy()
    plan = at.take(made, command(1, id="c1-again", payload={"amount": 5}), command(2, payload={"text": SECRET}))
    assert outcomes(plan) == ["duplicate", "duplicate", "refused"]
    assert [message.body for message in plan.echoes] == [first.body] * 2
    told = orjson.loads(plan.commit.outputs[0].body)
    assert told["payload"] == {
        "code": "erased",
        "reason": "the keys of tenant 't' were destroyed on 2027-01-15",
        "field": "payload",
    }
    assert SECRET.encode() not in everything(plan)
    again = at.take(command(2, id="c3", payload={"text": SECRET}))
    assert outcomes(again) == ["duplicate"]
    assert [message.body for message in again.echoes] == [plan.commit.outputs[0].body]


def test_an_erased_tenant_has_an_answer_to_everything() -> None:
    keys = Keys()
    keys.destroy()
    at = desk(keys)
    system = attrs.evolve(USER, principal_type="system")
    asked = attrs.evolve(command(3, DISCARD, entity_id=None), security_context=system)
    plan = at.take(
        command(1, "get", idempotency_key=None),
        command(2, idempotency_key=None),
        asked,
        event(4),
        attrs.evolve(command(5), security_context=None),
    )
    assert outcomes(plan) == ["answered", "refused", "refused", "refused", "violation"]
    garbage = at.arrive(command_subject(SCOPE, "add"), SECRET.encode())
    plan = trio.run(at.turn, garbage)
    assert outcomes(plan) == ["refused"]
    assert SECRET.encode() not in everything(plan)
    assert not at.dead


def test_keys_that_are_destroyed_end_the_session_and_are_not_used_by_what_is_under_way() -> None:
    keys = Keys()
    by = sealer(keys)
    renew(by)
    keys.ring = keys.ring.rotated(NOW)
    renew(by)
    assert by.sealed(command(1)).payload["$sealed"]["key"] == keys.ring.keys[-1].id
    keys.destroy()
    with pytest.raises(Transient, match="the keys changed under this session"):
        renew(by)
    # A turn that is under way seals on with a key that nobody has any more, rather than not at all.
    assert is_sealed(by.sealed(command(1)).payload)
    keys.lost = True
    with pytest.raises(Transient, match="the ring is gone"):
        renew(by)


@attrs.define
class _Store:
    """Has no rows to ask for."""

    place = "here"

    def scope(self, scope: Scope) -> None:
        """Nobody asks."""


def test_no_delivery_is_read_with_keys_that_are_gone() -> None:
    keys = Keys()
    by = sealer(keys)
    engine = RuntimeEngine(SCOPE, counter(), cast(Any, _Store()))
    arrived = delivery(command_subject(SCOPE, "add"), encode(command(1)))
    assert [one.fault for one in engine._read([arrived], by)] == [None]
    keys.destroy()
    with pytest.raises(Transient, match="the keys changed under this session"):
        engine._read([arrived], by)


def test_a_client_knows_its_own_mismatch_by_the_keyed_hash() -> None:
    """Of an earlier sending: its id names the hash of the payload that was refused."""
    by = sealer()
    made = command(1, payload={"amount": 5})
    answers = Answers(by)
    with answers.expect(made) as waiter:
        for digest in (None, by.digest):
            told = by.sealed(
                event(
                    9,
                    "refused",
                    agent=SCOPE.agent,
                    id=f"c0_{payload_hash(made, digest).hex()[:16]}_refused",
                    idempotency_key="k1",
                    causation_id="c0",
                    payload={"code": "idempotency_mismatch", "reason": "used", "field": "idempotency_key"},
                )
            )
            assert waiter.answer is None
            answers.receive(b"", b"", None, encode(told))
        assert waiter.answer is not None
        assert waiter.answer.payload["code"] == "idempotency_mismatch"


def test_a_client_follows_its_keys() -> None:
    keys = Keys()
    by = sealer(keys)
    newer = Keys(RING.rotated(NOW))
    sent = sealed_command(1, by=sealer(newer), payload={"text": SECRET})
    assert by.shown(sent) == sent
    keys.ring = newer.ring
    assert by.shown(sent).payload == {"text": SECRET}
    keys.destroy()
    with pytest.raises(Erased):
        as_message(command(1), None, by)
    assert by.shown(sent) == sent


# -- a session starts ------------------------------------------------------------------------------------------


@attrs.define
class _Rows:
    """The last output of a scope."""

    output: Output
    scope: Scope = SCOPE

    async def outputs_after(self, n: int, limit: int) -> list[Output]:
        return [self.output] if n < 1 else []


async def _begun(codecs: Codecs | None, output: Output) -> ScopeSealer | None:
    rows: Any = _Rows(output)
    return await opened_keys(codecs, rows, 2)


async def test_a_session_needs_the_keys_of_what_is_stored() -> None:
    at = desk()
    plan, _ = await at.decide(at.read(command(1)))
    (sealed,) = plan.commit.outputs
    assert await _begun(Keys(), sealed) is not None
    with pytest.raises(Misconfigured, match="name its key ring in `codec_keys`"):
        await _begun(None, sealed)
    with pytest.raises(Misconfigured, match="put the right key ring in its place"):
        await _begun(Keys(Ring.new("t", NOW)), sealed)
    erased = await _begun(Keys(RING.emptied(NOW)), sealed)
    assert erased is not None
    assert erased.erased is not None
    with pytest.raises(Transient, match="the ring is gone"):
        await _begun(Keys(lost=True), sealed)


async def test_a_codec_may_come_to_a_scope_that_has_none() -> None:
    plan, _ = await Desk().decide(Desk().read(command(1)))
    (plain,) = plan.commit.outputs
    assert await _begun(None, plain) is None
    assert await _begun(Keys(), plain) is not None


def test_locks_are_sealed_as_well() -> None:
    scope = Scope("t", "w", "sys_lock_manager")
    at = Desk(adapter=LockManagerAdapter(), scope=scope, codecs=Keys())
    asked = {"resource_id": "door", "owner_id": SECRET, "ttl_seconds": 5.0}
    plan = at.take(command(1, "acquire", scope=scope, entity_id="door", payload=asked))
    assert outcomes(plan) == ["decided"]
    assert SECRET.encode() not in everything(plan)


def test_a_refusal_for_an_erased_tenant_has_the_generation_of_its_key() -> None:
    """Its Msg-Id must not be that of an answer before the redrive."""
    keys = Keys()
    keys.destroy()
    incoming = desk(keys).read(command(1))
    assert isinstance(incoming.fault, Erased)
    made = [
        Asides(Drafter(SCOPE, 10_000, sealer(keys)), NOW, generations).erased(incoming, incoming.fault)
        for generations in ({}, {"k1": 1})
    ]
    assert [verdict.generation for verdict in made] == [0, 1]
    assert made[0].outputs[0].msg_id != made[1].outputs[0].msg_id
