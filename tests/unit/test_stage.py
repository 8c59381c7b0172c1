"""An app played in memory: what it decides, in which order, and where it differs from nothing but time."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import attrs
import pytest

from meshforge_trio.agent import Agent, Context, Event, Reply, Send
from meshforge_trio.crud import crud_agent
from meshforge_trio.envelope import EventEnvelope, JsonObject
from meshforge_trio.errors import Misconfigured, Refused
from meshforge_trio.locks import LOCK_MANAGER, LockManagerAdapter
from meshforge_trio.runtime import App
from meshforge_trio.stage import Stage


@attrs.frozen
class Item:
    stock: int = 0
    price: Decimal = Decimal(0)


@attrs.frozen
class Take:
    count: int


@attrs.frozen
class Names:
    names: tuple[str, ...]


@attrs.frozen
class Taken:
    count: int
    at: float
    price: Decimal = Decimal("1.50")


item: Agent[Item] = Agent("item", state=Item, initial=Item)
shop: Agent[int] = Agent("shop", state=int, initial=int)
books: Agent[int] = Agent("books", state=int, initial=int)


@item.command("take")
def take(state: Item, payload: Take, ctx: Context) -> Taken:
    if payload.count > 5:
        raise Refused("too many", code="too_many")
    return Taken(payload.count, ctx.now)


@item.event("taken")
def taken(state: Item, event: Taken) -> Item:
    return Item(state.stock - event.count, event.price)


@item.query("get")
def get(state: Item, payload: dict[str, Any], ctx: Context) -> Reply:
    return Reply("found", {"stock": state.stock})


@shop.command("sell")
def sell(state: int, payload: dict[str, Any], ctx: Context) -> list[Event | Send]:
    return [Event("sold"), Send("item", "take", {"count": payload["count"]}, entity_id="lamp")]


@shop.command("sell_twice")
def sell_twice(state: int, payload: dict[str, Any], ctx: Context) -> list[Event | Send]:
    return [Send("item", "take", {"count": count}, entity_id="lamp") for count in (1, 2)]


@shop.event("sold")
def sold(state: int, event: dict[str, Any]) -> int:
    return state + 1


def _total(event: EventEnvelope) -> str:
    return "total"


@books.on("item", "taken", entity=_total)
def note(state: int, payload: dict[str, Any], ctx: Context) -> Event:
    return Event("noted", {"sum": state + payload["count"]})


@books.event("noted")
def noted(state: int, event: dict[str, Any]) -> int:
    return int(event["sum"])


APP = App([item, shop, books])


def test_all_that_follows_has_happened() -> None:
    stage = Stage(APP)
    told = stage.send("shop", "sell", {"count": 3}, entity="s", at=7.0)
    assert (told.agent, told.name, told.entity) == ("shop", "sold", "s")
    assert [(event.agent, event.name) for event in stage.events] == [
        ("shop", "sold"),
        ("item", "taken"),
        ("books", "noted"),
    ]
    assert stage.state("item", "lamp") == Item(-3, Decimal("1.50"))
    assert stage.state("books", "total") == 3
    assert stage.happened("item", "taken", "lamp", count=3, at=7.0, price=Decimal("1.5"))
    assert not stage.happened("item", "taken", "door")
    assert not stage.happened("item", "taken", count=4)
    assert not stage.happened("item", "taken", colour="red")


def test_what_comes_first_is_decided_first() -> None:
    stage = Stage(APP)
    assert stage.send("shop", "sell_twice", entity="s").name == "accepted"
    told = [(event.name, event.payload.get("count") or event.payload["sum"]) for event in stage.events]
    assert told == [("taken", 1), ("taken", 2), ("noted", 1), ("noted", 3)]


def test_what_is_sent_is_decided_before_what_others_hear() -> None:
    first: Agent[int] = Agent("first", state=int, initial=int)

    @first.command("go")
    def go(state: int, payload: dict[str, Any], ctx: Context) -> list[Event | Send]:
        return [Event("gone"), Send("item", "take", {"count": 1}, entity_id="lamp")]

    @first.event("gone")
    def gone(state: int, event: dict[str, Any]) -> int:
        return 1

    second: Agent[int] = Agent("second", state=int, initial=int)

    @second.on("first", "gone")
    def heard(state: int, payload: dict[str, Any], ctx: Context) -> Event:
        return Event("heard")

    @second.event("heard")
    def noticed(state: int, event: dict[str, Any]) -> int:
        return 1

    stage = Stage(App([first, second, item]))
    stage.send("first", "go", entity="f")
    assert [event.name for event in stage.events] == ["gone", "taken", "heard"]


def test_what_is_sent_arrives_as_json_carries_it() -> None:
    lister: Agent[int] = Agent("lister", state=int, initial=int)

    @lister.command("pass_on")
    def pass_on(state: int, payload: Names, ctx: Context) -> list[Event | Send]:
        return [Event("listed", {"names": payload.names}), Send("lister", "keep", {"names": payload.names})]

    @lister.command("keep")
    def keep(state: int, payload: Names, ctx: Context) -> Event:
        return Event("kept", {"names": payload.names})

    @lister.event("listed")
    @lister.event("kept")
    def count(state: int, payload: dict[str, Any]) -> int:
        assert isinstance(payload["names"], list)
        return state + 1

    stage = Stage(App([lister]))
    assert stage.send("lister", "pass_on", {"names": ("a", "b")}).name == "listed"
    assert stage.happened("lister", "kept", names=["a", "b"])


def test_a_refusal_is_an_answer_and_changes_nothing() -> None:
    stage = Stage(APP)
    told = stage.send("item", "take", {"count": 9}, entity="lamp")
    assert (told.name, told.code) == ("refused", "too_many")
    assert not stage.exists("item", "lamp")
    assert stage.state("item", "lamp") == Item()


def test_of_a_decision_that_leads_to_what_must_not_be_nothing_happens() -> None:
    glass: Agent[int] = Agent("glass", state=int, initial=int)

    @glass.command("pour")
    def pour(state: int, payload: JsonObject, ctx: Context) -> list[Event]:
        return [Event("poured")] * payload["times"]

    @glass.event("poured")
    def poured(state: int, event: JsonObject) -> int:
        if state == 2:
            raise Refused("it is full", code="full")
        return state + 1

    stage = Stage(App([glass]))
    assert stage.send("glass", "pour", {"times": 1}, entity="g").name == "poured"
    assert stage.send("glass", "pour", {"times": 2}, entity="g").code == "full"
    assert (stage.state("glass", "g"), len(stage.events)) == (1, 1)
    assert stage.send("glass", "pour", {"times": 1}, entity="g", expected_version=1).name == "poured"


def test_a_version_that_does_not_fit_is_a_conflict() -> None:
    stage = Stage(APP)
    stage.given("item", "take", {"count": 1}, entity="lamp")
    told = stage.send("item", "take", {"count": 1}, entity="lamp", expected_version=0)
    assert (told.name, told.payload) == ("conflict", {"expected_version": 0, "current_version": 1})
    assert stage.send("item", "take", {"count": 1}, entity="lamp", expected_version=1).name == "taken"


def test_what_was_given_is_no_event_of_the_example() -> None:
    stage = Stage(APP)
    stage.given("item", "take", {"count": 1}, entity="lamp")
    assert stage.events == []
    assert stage.exists("item", "lamp")
    with pytest.raises(AssertionError, match="take of item was refused: too many"):
        stage.given("item", "take", {"count": 9}, entity="lamp")


def test_a_query_is_answered() -> None:
    stage = Stage(APP)
    stage.given("item", "take", {"count": 1}, entity="lamp")
    assert stage.send("item", "get", entity="lamp").payload == {"stock": -1}


def test_values_are_told_apart_by_their_type() -> None:
    stage = Stage(App([crud_agent("note")]))
    stage.send("note", "create", {"yes": True, "one": 1, "list": ["a", "b"], "price": "2.0"}, entity="n")
    assert stage.happened("note", "created", yes=True, one=1, list=("a", "b"), price=Decimal(2))
    assert not stage.happened("note", "created", one=True)
    assert not stage.happened("note", "created", yes=1)
    assert not stage.happened("note", "created", list=("a",))
    assert not stage.happened("note", "created", one=Decimal(1))


def test_an_agent_that_names_its_entities_itself_does_so_here() -> None:
    stage = Stage(App([LockManagerAdapter()]))
    wanted = {"resource_id": "door", "owner_id": "ann", "ttl_seconds": 10.0}
    assert stage.send(LOCK_MANAGER, "acquire", wanted, at=100.0).name == "acquired"
    assert stage.send(LOCK_MANAGER, "acquire", {**wanted, "owner_id": "bob"}, at=109.0).name == "denied"
    assert stage.send(LOCK_MANAGER, "acquire", {**wanted, "owner_id": "bob"}, at=110.0).name == "expired"
    assert stage.state(LOCK_MANAGER, "door").owner_id == "bob"


def test_agents_that_answer_each_other_for_ever_are_found_out() -> None:
    echo: Agent[int] = Agent("echo", state=int, initial=int)

    @echo.command("call")
    def call(state: int, payload: dict[str, Any], ctx: Context) -> Send:
        return Send("echo", "call", entity_id="e")

    with pytest.raises(Misconfigured, match="agents that never stop"):
        Stage(App([echo])).send("echo", "call", entity="e")


def test_an_agent_that_is_not_there_is_told() -> None:
    with pytest.raises(Misconfigured, match="no agent 'itm'; it has: books, item, shop"):
        Stage(APP).send("itm", "take")


def test_an_agent_that_waits_has_no_place_on_it() -> None:
    slow: Agent[int] = Agent("slow", state=int, initial=int)

    @slow.command("wait")
    async def wait(state: int, payload: dict[str, Any], ctx: Context) -> Event:
        return Event("waited")

    with pytest.raises(Misconfigured, match="asynchronously"):
        Stage(App([slow])).send("slow", "wait", entity="s")
