"""A tenant with a codec: what is sealed, what opens it, and what is left when the keys are gone."""

from __future__ import annotations

from typing import Any

import attrs
import orjson
import pytest
import trio
from doubles import SCOPE, USER, Desk, command, counter, delivery, event, outcomes
from hypothesis import given
from hypothesis import strategies as st

from meshforge_trio.agent import Agent, Context, Event
from meshforge_trio.asides import Asides
from meshforge_trio.codec import Codecs, PayloadCodec, ScopeSealer, Sealed, Sealer, is_sealed
from meshforge_trio.drafts import Drafter
from meshforge_trio.entities import SNAPSHOT_EVERY, restore
from meshforge_trio.envelope import CommandEnvelope, EventEnvelope, JsonObject, decode_command, encode, payload_hash
from meshforge_trio.errors import Erased, Misconfigured, Poison, Transient
from meshforge_trio.intake import read_delivery
from meshforge_trio.keyring import AesSiv, Ring
from meshforge_trio.keys import opened_keys, renew
from meshforge_trio.locks import LockManagerAdapter
from meshforge_trio.outgoing import as_message
from meshforge_trio.plan import Plan
from meshforge_trio.store.port import Head, Output
from meshforge_trio.subjects import DELIVER, DISCARD, REDRIVE, Scope, command_subject

NOW = 1_800_000_000.0
RING = Ring.new("t", NOW)
SECRET = "rosebud-4711"


@attrs.define
class Keys:
    """A `Codecs` whose ring a test may change."""

    ring: Ring = RING
    lost: bool = False

    def __call__(self, tenant: str) -> PayloadCodec | None:
        if self.lost:
            raise Misconfigured("the ring is gone")
        return AesSiv(self.ring) if tenant == "t" else None

    def destroy(self) -> None:
        self.ring = self.ring.emptied(NOW)


def sealer(codecs: Codecs | None = None, scope: Scope = SCOPE) -> ScopeSealer:
    found = ScopeSealer.of_scope(codecs or Keys(), scope)
    assert found is not None
    return found


def vault() -> Agent[JsonObject]:
    """Keeps a text, tells it on, quotes it in its errors."""
    agent: Agent[JsonObject] = Agent("counter", state=dict, initial=dict)

    @agent.command("keep")
    def keep(state: JsonObject, payload: JsonObject, ctx: Context) -> Event:
        return Event("kept", {"text": payload["text"]})

    @agent.command("explode")
    def explode(state: JsonObject, payload: JsonObject, ctx: Context) -> Event:
        raise RuntimeError(f"cannot keep {payload['text']}")

    @agent.command("poison")
    def poison(state: JsonObject, payload: JsonObject, ctx: Context) -> Event:
        raise Poison(f"never {payload['text']}")

    @agent.event("kept")
    def kept(state: JsonObject, payload: JsonObject) -> JsonObject:
        return {"text": payload["text"]}

    return agent


def desk(keys: Keys | None = None, adapter: Any = None) -> Desk:
    return Desk(adapter=adapter or counter(), codecs=keys or Keys())


def sealed_command(number: int, action: str = "add", *, by: Sealer | None = None, **fields: Any) -> CommandEnvelope:
    return (by or sealer()).sealed(command(number, action, **fields))


def opened(output: Output, by: ScopeSealer | None = None) -> Any:
    return orjson.loads((by or sealer()).shown_body(output.body))["payload"]


def everything(plan: Plan) -> bytes:
    """All that a commit writes and a turn publishes."""
    told = [repr(plan.commit).encode()]
    told += [output.body for output in plan.commit.outputs]
    told += [message.body for message in (*plan.echoes, *plan.answers)]
    return b"\n".join(told)


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
