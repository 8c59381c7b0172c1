"""Dead letters as an operator meets them: chosen, foretold, asked for, shown."""

from __future__ import annotations

from base64 import b64decode
from typing import Any

import attrs
import pytest
import trio
from doubles import SCOPE, Desk, command, counter, event, outcomes
from hypothesis import given, settings
from hypothesis import strategies as st

from meshforge_trio.agent import Agent, Context, Event
from meshforge_trio.answers import OutcomeUnknown, Sent
from meshforge_trio.dead_letters import (
    Answer,
    Fate,
    Forecaster,
    Item,
    Wanted,
    as_document,
    ask,
    encoded,
    entity_of,
    fate_key,
)
from meshforge_trio.envelope import CommandEnvelope, EventEnvelope, JsonObject, SecurityContext, encode
from meshforge_trio.errors import Poison
from meshforge_trio.store.port import Attempt, DeadLetter, DeadState, KeyRecord, Reading
from meshforge_trio.subjects import REDRIVE

SYSTEM = SecurityContext("kim", "system")
EMPTY = Reading({}, {}, {}, {})


def letter(key: str = "k1", **fields: Any) -> DeadLetter:
    """A dead letter of command 1 of the doubles."""
    given: dict[str, Any] = {
        "generation": 0,
        "n": 1,
        "subject": "cmd.t.w.counter.add",
        "headers": b"NATS/1.0\r\n\r\n",
        "body": encode(command(1, idempotency_key=key)),
        "code": "broken",
        "reason": "The shelf is broken",
        "attempts": 1,
        "first_at": 900.0,
        "last_at": 1000.0,
        "entity_id": "a",
    }
    return DeadLetter(key=key, **{**given, **fields})


# --- which ones


@pytest.mark.parametrize(
    ("wanted", "taken"),
    [
        ({}, True),
        ({"keys": {"k1", "k2"}}, True),
        ({"keys": {"k2"}}, False),
        ({"generation": 0}, True),
        ({"generation": 1}, False),
        ({"entity_id": "a"}, True),
        ({"entity_id": "b"}, False),
        ({"error": "broken"}, True),
        ({"error": "SHELF"}, True),
        ({"error": "brok"}, True),
        ({"error": "Broken"}, True),
        ({"error": "nothing"}, False),
        ({"older_than_s": 60.0}, True),
        ({"older_than_s": 60.5}, False),
        ({"newer_than_s": 60.5}, True),
        ({"newer_than_s": 60.0}, False),
        ({"state": "waiting"}, True),
        ({"state": "redriven"}, False),
        ({"entity_id": "a", "error": "shelf", "state": "waiting"}, True),
        ({"entity_id": "a", "error": "shelf", "state": "discarded"}, False),
    ],
)
def test_what_is_wanted(wanted: dict[str, Any], taken: bool) -> None:
    assert Wanted(**wanted).takes(letter(), 1060.0) is taken


def test_an_error_is_a_code_or_a_part_of_the_reason() -> None:
    plainly = letter(code="E7", reason="gone")
    assert Wanted(error="E7").takes(plainly, 0.0)
    assert not Wanted(error="7").takes(plainly, 0.0)
    assert Wanted(error="on").takes(plainly, 0.0)


def test_the_entity_of_an_older_store_is_in_the_original() -> None:
    assert entity_of(letter(entity_id=None)) == "a"
    assert entity_of(letter(entity_id=None, body=b"no json")) is None
    assert entity_of(letter(entity_id=None, subject="cmd.odd")) is None
    assert entity_of(letter(entity_id=None, subject="evt.t.w.source.added", body=encode(event(1)))) is None


# --- what it would come to


def holder(key: str, entity: str | None = "a", error: str = "boom") -> Attempt:
    return Attempt(key, entity, 2, 2000.0, 900.0, 1000.0, error)


def record(outcome: Any, generation: int = 0) -> Reading:
    return attrs.evolve(EMPTY, keys={"k1": (KeyRecord("k1", b"", outcome, 1, 1, generation), ())})


@pytest.mark.parametrize(
    ("dead", "reading", "prediction", "why"),
    [
        (letter(), EMPTY, "would_run", "'a' is at version 0"),
        (letter(), record("dead"), "would_run", "'a' is at version 0"),
        (letter(state="redriven"), EMPTY, "already_applied", "not decided yet"),
        (letter(state="redriven"), record("conflict", 1), "already_applied", "its key is conflict"),
        (letter(state="redriven"), record("dead", 1), "already_applied", "died again, as generation 1"),
        (letter(state="discarded"), record("dead"), "not_redrivable", "discarded"),
        (letter("raw:00"), EMPTY, "not_redrivable", "mend its sender"),
        (letter("query:00"), EMPTY, "not_redrivable", "query"),
        (letter(body=b"no json"), EMPTY, "not_redrivable", "cannot be read"),
        (letter(), record("decided"), "already_applied", "its key is decided"),
        (letter(entity_id=None, subject="evt.t.w.source.added"), EMPTY, "would_run", "no entity"),
        (letter(body=encode(command(1, expected_version=3))), EMPTY, "would_conflict", "expects version 3"),
        (letter(body=encode(command(1, expected_version=0))), EMPTY, "would_run", "expects version 0"),
    ],
)
def test_what_a_redrive_would_come_to(dead: DeadLetter, reading: Reading, prediction: str, why: str) -> None:
    made = Forecaster([], hold_entity=True).forecast(dead, reading)
    assert made.prediction == prediction
    assert why in made.why


@pytest.mark.parametrize(
    ("row", "hold_entity", "prediction"),
    [
        (holder("k7"), True, "held"),
        (holder("k7", error=""), True, "held"),
        (holder("k7"), False, "would_run"),
        (holder("k7", "b"), True, "would_run"),
        (holder("k7", None), True, "would_run"),
        (holder("k1"), True, "would_run"),
    ],
)
def test_an_entity_behind_a_failing_command(row: Attempt, hold_entity: bool, prediction: str) -> None:
    made = Forecaster([row], hold_entity=hold_entity).forecast(letter(), EMPTY)
    assert made.prediction == prediction
    if prediction == "held":
        assert f"behind 'k7', which fails: {row.error or 'its process died'}" in made.why


@attrs.define(eq=False)
class Mendable:
    """An agent whose handlers work once they are mended."""

    mended: bool = False

    def agent(self) -> Agent[int]:
        agent = counter()

        @agent.command("fragile")
        def fragile(total: int, payload: JsonObject, ctx: Context) -> Event:
            if not self.mended:
                raise Poison("broken", code="broken")
            return Event("added", {"amount": 1})

        return agent


EXPECTED = st.one_of(st.none(), st.integers(0, 4))


@settings(max_examples=60)
@given(
    sent=st.lists(st.tuples(st.sampled_from("ab"), EXPECTED), min_size=1, max_size=8),
    later=st.lists(st.sampled_from("ab"), max_size=4),
)
def test_it_comes_as_foretold(sent: list[tuple[str, int | None]], later: list[str]) -> None:
    """The forecast against the engine's own decisions, for handlers that answer with one event."""
    mendable = Mendable()
    desk = Desk(mendable.agent())
    died = 0
    for number, (entity, expected) in enumerate(sent, 1):
        # They die whatever they expect: the entity is at that version when they come.
        while expected is not None and desk_version(desk, entity) < expected:
            desk.take(command(1000 + len(desk.keys), entity_id=entity))
        plan = desk.take(command(number, "fragile", entity_id=entity, expected_version=expected))
        died += outcomes(plan) == ["dead"]
    for number, entity in enumerate(later, 500):
        desk.take(command(number, entity_id=entity))
    mendable.mended = True
    letters = list(desk.dead.values())
    assert len(letters) == died
    forecaster = Forecaster([], hold_entity=True)
    foretold = [forecaster.forecast(each, desk.reading()).prediction for each in letters]
    came = []
    for number, each in enumerate(letters, 600):
        payload = {"key": each.key, "generation": 0, "actor": "kim", "reason": "mended"}
        order = command(number, REDRIVE, entity_id=None, payload=payload, security_context=SYSTEM)
        (again,) = [output for output in desk.take(order).commit.outputs if output.kind == "command"]
        came += outcomes(trio.run(desk.turn, desk.arrive(again.subject, again.body)))
    assert [{"would_run": "decided", "would_conflict": "conflict"}[each] for each in foretold] == came


def desk_version(desk: Desk, entity: str) -> int:
    return desk.heads[entity].version if entity in desk.heads else 0


# --- asking


@attrs.define(eq=False)
class Teller:
    """A client that answers what it was told to, and the store beside it."""

    answer: EventEnvelope | None = None
    state: DeadState = "waiting"
    sent: list[tuple[str, str, JsonObject, dict[str, Any]]] = attrs.field(factory=list)
    looks: int = 0

    async def call(self, agent: str, action: str, payload: JsonObject, **fields: Any) -> EventEnvelope:
        self.sent.append((agent, action, payload, fields))
        if self.answer is None:
            raise OutcomeUnknown("no answer", command(1))
        return self.answer

    async def send(self, agent: str, action: str, payload: JsonObject, **fields: Any) -> Sent:
        self.sent.append((agent, action, payload, fields))
        return Sent("c1", "k1", 1, duplicate=False)

    def state_of(self, item: Item) -> DeadState:
        self.looks += 1
        return self.state

    def asked(self, fate: Fate, *, await_answer: bool = True) -> Answer:
        async def run() -> Answer:
            client: Any = self
            item = Item(SCOPE, "k1", 2)
            return await ask(
                client,
                item,
                fate,
                self.state_of,
                actor="kim",
                reason="x",
                timeout_s=5.0,
                await_answer=await_answer,
            )

        return trio.run(run)


def said(name: str, **payload: Any) -> EventEnvelope:
    return EventEnvelope(id="e", tenant="t", workspace="w", agent="counter", name=name, payload=payload)


@pytest.mark.parametrize(
    ("fate", "answer", "state", "outcome", "told"),
    [
        ("redrive", said("redriven"), "redriven", "done", ""),
        ("discard", said("discarded"), "discarded", "done", ""),
        ("redrive", said("refused", code="not_waiting"), "redriven", "already", "redriven before"),
        ("redrive", said("refused", code="idempotency_mismatch"), "redriven", "already", "redriven before"),
        ("discard", said("refused", code="not_waiting"), "discarded", "already", "discarded before"),
        ("redrive", said("refused", code="not_waiting"), "discarded", "refused", "it was discarded meanwhile"),
        ("discard", said("refused", code="not_waiting"), "redriven", "refused", "it was redriven meanwhile"),
        ("redrive", said("refused", code="idempotency_mismatch", reason="r"), "waiting", "refused", "mismatch: r"),
        ("redrive", said("refused", code="not_redrivable", reason="raw"), "waiting", "refused", "not_redrivable: raw"),
        ("redrive", said("violation", code="not_system", reason="no"), "waiting", "refused", "not_system: no"),
        ("redrive", said("dead_lettered", code="big", reason="r"), "waiting", "refused", "redrive 'redrive:k1:2'"),
        ("redrive", None, "waiting", "unknown", "no answer within 5 s"),
        ("redrive", None, "redriven", "done", "the answer was lost"),
    ],
)
def test_what_an_answer_means(
    fate: Fate, answer: EventEnvelope | None, state: DeadState, outcome: str, told: str
) -> None:
    teller = Teller(answer, state)
    made = teller.asked(fate)
    assert made.outcome == outcome
    assert told in made.text
    assert teller.looks <= 1
    ((agent, action, payload, fields),) = teller.sent
    assert (agent, action) == ("counter", f"sys_{fate}")
    assert payload == {"key": "k1", "generation": 2, "actor": "kim", "reason": "x"}
    assert fields == {"idempotency_key": f"{fate}:k1:2", "timeout_s": 5.0}


def test_an_answer_that_is_not_awaited() -> None:
    assert Teller().asked("redrive", await_answer=False).outcome == "unknown"
    assert Teller(state="redriven").asked("redrive", await_answer=False).outcome == "done"


KEYS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=256)


@given(first=st.tuples(KEYS, st.integers(0, 99)), other=st.tuples(KEYS, st.integers(0, 99)))
def test_the_key_of_a_fate_is_its_own(first: tuple[str, int], other: tuple[str, int]) -> None:
    key = fate_key("redrive", *first)
    CommandEnvelope(id="c", tenant="t", workspace="w", agent="a", action="b", idempotency_key=key)
    assert len(key) <= 256
    assert (key == fate_key("redrive", *other)) is (first == other)
    assert key != fate_key("discard", *first)


@pytest.mark.parametrize(
    ("dead", "state"),
    [
        ({}, "redriven"),
        ({"k1": letter(generation=1)}, "redriven"),
        ({"k1": letter()}, "waiting"),
        ({"k1": letter(state="discarded")}, "discarded"),
    ],
)
def test_what_became_of_it_is_read_from_its_key(dead: dict[str, DeadLetter], state: str) -> None:
    assert Item(SCOPE, "k1", 0).state_in(attrs.evolve(EMPTY, dead=dead)) == state


# --- what is told


@given(st.binary(max_size=200))
def test_bytes_come_back_from_a_document(content: bytes) -> None:
    document = encoded("payload", content)
    text = document["payload"]
    assert content == (text.encode() if document["payload_encoding"] == "utf-8" else b64decode(text))


def test_a_document_tells_each_call() -> None:
    document = as_document(SCOPE, letter(calls=((1.0, ""), (2.0, "boom"))))
    assert document["calls"] == [{"at": 1.0, "error": "its process died"}, {"at": 2.0, "error": "boom"}]
