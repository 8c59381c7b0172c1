"""The builder: what it takes, what it makes of a handler's result, what it refuses at registration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
from doubles import command, event

from meshforge_trio.agent import Agent, AgentAdapter, Context, Decision, Event, Reply, Send, Subscription
from meshforge_trio.envelope import EventEnvelope, JsonObject
from meshforge_trio.errors import Misconfigured, Poison, Refused

CTX = Context(now=1.0, entity_id="a", version=0)


@attrs.frozen
class Add:
    amount: int
    note: str = ""


@attrs.frozen
class Added:
    amount: int
    entity_version: int = 0


@attrs.frozen
class Sum:
    total: int = 0


def shop() -> Agent[Sum]:
    agent: Agent[Sum] = Agent("counter", state=Sum, initial=Sum)

    @agent.command("add")
    def add(state: Sum, payload: Add, ctx: Context) -> Added:
        return Added(payload.amount)

    @agent.query("get")
    def get(state: Sum, payload: JsonObject, ctx: Context) -> Reply:
        return Reply("found", {"total": state.total})

    @agent.event("added")
    def added(state: Sum, event: Added) -> Sum:
        return Sum(state.total + event.amount)

    @agent.on("source", "added")
    def heard(state: Sum, payload: Add, ctx: Context) -> Added:
        return Added(payload.amount)

    return agent


def decided_by(agent: AgentAdapter[Any], *, action: str = "add", **payload: Any) -> Decision:
    decision = agent.receive(agent.initial(), command(1, action, payload=payload), CTX)
    assert isinstance(decision, Decision)
    return decision


def returning(result: object) -> Agent[Sum]:
    agent = shop()

    @agent.command("return")
    def give_back(state: Sum, payload: JsonObject, ctx: Context) -> object:
        return result

    return agent


# --- deciding


def test_payloads_are_structured_and_events_named() -> None:
    assert decided_by(shop(), amount=3) == Decision((Event("added", {"amount": 3, "entity_version": 0}),))


def test_an_event_moves_the_state() -> None:
    agent = shop()
    assert agent.apply(Sum(1), Event("added", {"amount": 2, "entity_version": 5})) == Sum(3)


def test_a_stored_event_may_have_fields_that_are_gone() -> None:
    assert shop().apply(Sum(), Event("added", {"amount": 2, "colour": "red"})) == Sum(2)


@pytest.mark.parametrize(
    ("result", "decision"),
    [
        (Added(1), Decision((Event("added", {"amount": 1, "entity_version": 0}),))),
        ([], Decision([], [], None)),
        (Reply("ok"), Decision([], [], Reply("ok"))),
        (Send("b", "do"), Decision([], [Send("b", "do")], None)),
        (
            (Event("x"), Send("b", "do"), Added(1), Reply("ok")),
            Decision([Event("x"), Event("added", {"amount": 1, "entity_version": 0})], [Send("b", "do")], Reply("ok")),
        ),
        (Decision((Event("x"),)), Decision((Event("x"),))),
    ],
)
def test_what_a_handler_may_return(result: object, decision: Decision) -> None:
    assert decided_by(returning(result), action="return") == decision


@pytest.mark.parametrize(
    "result", [None, 5, "added", {"amount": 1}, Sum(), [None], (Reply("a"), Reply("b")), [[Added(1)]], Added, object()]
)
def test_nonsense_is_poison(result: object) -> None:
    with pytest.raises(Poison, match="a handler returned") as caught:
        decided_by(returning(result), action="return")
    assert caught.value.code == "nonsense"


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        ({}, "amount"),
        ({"amount": "3"}, "amount"),
        ({"amount": True}, "amount"),
        ({"amount": 3.0}, "amount"),
        ({"amount": 3, "colour": 1}, "colour"),
        ({"amount": 3, "note": None}, "note"),
    ],
)
def test_a_payload_that_does_not_fit_is_refused_by_name(payload: JsonObject, words: str) -> None:
    with pytest.raises(Refused, match=words) as caught:
        decided_by(shop(), **payload)
    assert (caught.value.code, caught.value.field) == ("bad_payload", "payload")


def test_every_fault_of_a_payload_is_named_at_once() -> None:
    with pytest.raises(Refused) as caught:
        decided_by(shop(), amount="x", note=5)
    assert "payload.amount" in caught.value.reason
    assert "payload.note" in caught.value.reason


def test_an_unknown_action_names_the_known_ones() -> None:
    with pytest.raises(Refused, match="no action 'ad'; it has: add, get") as caught:
        decided_by(shop(), action="ad")
    assert (caught.value.code, caught.value.field) == ("unknown_action", "action")


def test_queries_and_actions() -> None:
    agent = shop()
    assert agent.is_query("get")
    assert not agent.is_query("add")
    assert not agent.is_query("unknown")
    assert agent.actions == ["add", "get"]
    assert decided_by(agent, action="get").reply == Reply("found", {"total": 0})


# --- events of others


def test_foreign_events_are_structured_leniently() -> None:
    decision = shop().receive(Sum(), event(1, payload={"amount": 4, "entity_version": 7}), CTX)
    assert decision == Decision((Event("added", {"amount": 4, "entity_version": 0}),))


def test_a_foreign_event_that_does_not_fit_is_poison() -> None:
    """Nobody waits for a refusal of it."""
    with pytest.raises(Poison, match=r"e1.*amount") as caught:
        shop().receive(Sum(), event(1, payload={"amount": "4"}), CTX)
    assert caught.value.code == "bad_payload"


def test_subscriptions_and_the_choice_of_the_entity() -> None:
    agent = shop()

    @agent.on("source", "moved", entity=lambda moved: f"x-{moved.entity_id}")
    def moved(state: Sum, payload: JsonObject, ctx: Context) -> Event:
        return Event("added")

    assert list(agent.subscriptions) == [Subscription("source", "added"), Subscription("source", "moved")]
    assert agent.entity_of(event(1, "moved")) == "x-a"
    assert agent.entity_of(event(1, "added")) == "a"


# --- async


async def test_an_async_handler_makes_the_agent_concurrent() -> None:
    assert not shop().concurrent
    agent = shop()

    @agent.command("later")
    async def later(state: Sum, payload: Add, ctx: Context) -> Added:
        return Added(payload.amount)

    assert agent.concurrent
    decision = agent.receive(Sum(), command(1, "later", payload={"amount": 2}), CTX)
    assert not isinstance(decision, Decision)
    assert await decision == decided_by(agent, amount=2)


# --- state


def test_states_are_dumped_and_loaded() -> None:
    agent = shop()
    assert agent.load(agent.dump(Sum(4))) == Sum(4)
    assert agent.load({"total": 4, "a field that is gone": 1}) == Sum(4)
    plain: Agent[JsonObject] = Agent("plain", initial=dict)
    assert plain.load(plain.dump({"a": 1})) == {"a": 1}
    assert Agent("bare").initial() is None


@attrs.frozen
class Tagged:
    tags: set[str]
    more: frozenset[int] = frozenset()


@attrs.frozen
class Tags:
    tags: frozenset[str] = frozenset()


def test_sets_are_written_in_one_order_everywhere() -> None:
    """Their own order differs with the hash seed, and states and events are hashed."""
    agent: Agent[Tags] = Agent("counter", state=Tags, initial=Tags)

    @agent.command("tag")
    def tag(state: Tags, payload: JsonObject, ctx: Context) -> Tagged:
        return Tagged(set(payload["tags"]), frozenset({30, 4, 200}))

    @agent.event("tagged")
    def tagged(state: Tags, event: Tagged) -> Tags:
        return Tags(state.tags | event.tags)

    words = [f"word {n}" for n in range(20)]
    (decided,) = decided_by(agent, action="tag", tags=words).events
    assert decided.payload == {"tags": sorted(words), "more": [200, 30, 4]}
    state = agent.apply(Tags(), decided)
    assert agent.dump(state) == {"tags": sorted(words)}
    assert agent.load(agent.dump(state)) == state
    assert agent.dump({"b", "a"}) == ["a", "b"]  # type: ignore[arg-type]


def test_an_event_that_nobody_applies_is_poison() -> None:
    with pytest.raises(Poison, match="nothing applies event 'lost'") as caught:
        shop().apply(Sum(), Event("lost"))
    assert caught.value.code == "unknown_event"


class Plain(AgentAdapter[int]):
    """The least an adapter can be."""

    name = "plain"

    def initial(self) -> int:
        return 0

    def receive(self, state: int, message: Any, ctx: Context) -> Decision:
        return Decision()

    def apply(self, state: int, event: Event) -> int:
        return state + 1


def test_an_adapter_needs_three_methods() -> None:
    plain = Plain()
    assert not plain.is_query("get")
    assert plain.entity_of(event(1)) == "a"
    assert plain.load(plain.dump(5)) == 5
    assert not plain.concurrent
    assert plain.schema == 1


# --- registration


def nothing(state: Sum, payload: JsonObject, ctx: Context) -> Event:
    return Event("added")


def moves(state: Sum, event: JsonObject) -> Sum:
    return state


def moves_by_class(state: Sum, event: Added) -> Sum:
    return state


@pytest.mark.parametrize(
    ("register", "words"),
    [
        (lambda agent: agent.command("add")(nothing), "two handlers for action 'add'"),
        (lambda agent: agent.query("add")(nothing), "two handlers for action 'add'"),
        (lambda agent: agent.command("a.b")(nothing), "no subject token"),
        (lambda agent: agent.on("source", "added")(nothing), "two handlers for event 'added' of 'source'"),
        (lambda agent: agent.event("added")(moves), "two functions apply event 'added'"),
        (lambda agent: agent.event("conflict")(moves), "reserved"),
        (lambda agent: agent.event("a b")(moves), "no subject token"),
        (lambda agent: agent.event("other")(moves_by_class), "Added names two events"),
        (lambda agent: agent.command("short")(lambda: None), "takes 0 parameters"),
    ],
)
def test_mistakes_are_told_at_registration(register: Callable[[Agent[Sum]], object], words: str) -> None:
    with pytest.raises(Misconfigured, match=words):
        register(shop())


@pytest.mark.parametrize("name", ["", "a.b", "a" * 65])
def test_an_agent_needs_a_name_that_is_a_token(name: str) -> None:
    with pytest.raises(Misconfigured, match="agent name"):
        Agent(name)


def test_a_handler_is_still_the_function_it_was() -> None:
    agent = shop()
    assert agent.command("more")(nothing) is nothing
    assert agent.event("moved")(moves) is moves
    assert agent.on("third", "x")(nothing) is nothing


def test_an_event_without_a_chooser_concerns_its_own_entity() -> None:
    foreign = EventEnvelope(id="e", tenant="t", workspace="w", agent="nobody", name="x", entity_id="b")
    assert shop().entity_of(foreign) == "b"
