"""Entities in memory: a turn's own copies, the cache of a session, snapshots."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from doubles import Desk, command, counter
from hypothesis import given
from hypothesis import strategies as st

from meshforge_trio.agent import Agent, Context, Event
from meshforge_trio.entities import SNAPSHOT_EVERY, Cache, Entities, Entity, replayed, restore
from meshforge_trio.envelope import JsonObject
from meshforge_trio.store.port import Commit, Head


def entity(version: int, state: Any = 0, saved: int = 0) -> Entity:
    return Entity(version, b"chain", state, saved)


def body(amount: int) -> bytes:
    return orjson.dumps({"name": "added", "payload": {"amount": amount}})


# --- restoring


def test_an_entity_without_head_is_new() -> None:
    assert restore(counter(), None) == Entity(0, b"", 0, 0)


def test_an_entity_is_its_snapshot_and_what_came_after() -> None:
    head = Head("a", 5, b"c", b"100", 3, 1, [body(1), body(2)])
    assert restore(counter(), head) == Entity(5, b"c", 103, 3)
    assert restore(counter(), Head("a", 2, b"c", tail=[body(1), body(2)])) == Entity(2, b"c", 3, 0)


@given(st.lists(st.integers(-9, 9), max_size=20), st.integers(0, 20))
def test_it_does_not_matter_where_the_snapshot_lies(amounts: list[int], cut: int) -> None:
    bodies = [body(amount) for amount in amounts]
    state = replayed(counter(), 0, bodies[:cut])
    assert replayed(counter(), state, bodies[cut:]) == replayed(counter(), 0, bodies) == sum(amounts)


# --- a turn


def test_a_turn_works_on_its_own_copies() -> None:
    cache = Cache(10)
    cache.put({"a": entity(1)})
    turn = Entities(cache, counter(), {})
    turn.advance("a", entity(2))
    assert turn.working("a").version == 2
    assert Entities(cache, counter(), {}).working("a").version == 1
    turn.keep()
    assert Entities(cache, counter(), {}).working("a").version == 2


def test_what_was_only_read_is_kept_too_and_not_written() -> None:
    cache = Cache(10)
    turn = Entities(cache, counter(), {"a": Head("a", 2, b"c", tail=[body(1), body(2)])})
    assert turn.working("a") is turn.working("a")
    turn.advance("a", turn.working("a"))
    commit = Commit(1)
    turn.write_to(commit)
    turn.keep()
    assert commit.heads == []
    assert cache.get("a") == Entity(2, b"c", 3, 0)


def test_without_an_id_there_is_nothing_to_keep() -> None:
    cache = Cache(10)
    turn = Entities(cache, counter(), {})
    assert turn.working(None) == Entity(0, b"", 0, 0)
    turn.advance(None, entity(1))
    turn.keep()
    assert not cache.keys()


def test_heads_of_what_changed_are_written() -> None:
    turn = Entities(Cache(10), counter(), {})
    turn.advance("a", entity(1))
    turn.advance("b", entity(3))
    turn.advance("a", entity(2))
    commit = Commit(1)
    turn.write_to(commit)
    assert commit.heads == [Head("a", 2, b"chain"), Head("b", 3, b"chain")]
    assert commit.snapshots == []


# --- the cache


def test_the_cache_forgets_what_was_used_longest_ago() -> None:
    cache = Cache(2)
    cache.put({"a": entity(1), "b": entity(1)})
    cache.put({"a": entity(2)})
    cache.put({"c": entity(1)})
    assert set(cache.keys()) == {"a", "c"}
    assert cache.get("b") is None
    cache.clear()
    assert not cache.keys()


def test_a_cache_of_nothing_works() -> None:
    desk = Desk(cache=Cache(0))
    for number in range(3):
        desk.take(command(number))
    assert desk.total() == 3
    assert not desk.cache.keys()


# --- snapshots


def test_a_snapshot_is_due_after_so_many_events() -> None:
    desk = Desk()
    due = [n for n in range(1, 2 * SNAPSHOT_EVERY + 2) if desk.take(command(n)).commit.snapshots]
    assert due == [SNAPSHOT_EVERY, 2 * SNAPSHOT_EVERY]


def test_one_turn_writes_one_snapshot_of_an_entity() -> None:
    desk = Desk()
    batch = [command(n) for n in range(3 * SNAPSHOT_EVERY)]
    (snapshot,) = desk.take(*batch).commit.snapshots
    assert (snapshot.entity_id, snapshot.version, snapshot.state) == ("a", 192, b"192")
    assert snapshot.schema == 1
    assert not desk.take(command(1000)).commit.snapshots


def stubborn(state: Any) -> Agent[Any]:
    agent: Agent[Any] = Agent("counter", state=Any, initial=lambda: state)

    @agent.command("add")
    def add(total: Any, payload: JsonObject, ctx: Context) -> Event:
        return Event("added")

    @agent.event("added")
    def added(total: Any, payload: JsonObject) -> Any:
        return total

    return agent


def deep() -> Any:
    value: Any = []
    for _ in range(300):
        value = [value]
    return value


@pytest.mark.parametrize("state", [object(), float("nan"), [float("inf")], {"a": 2**70}, deep()])
def test_a_state_that_cannot_be_dumped_costs_its_snapshot_and_no_more(state: Any) -> None:
    """The history is whole, and a command must not fail for what an optimisation lacks."""
    desk = Desk(stubborn(state))
    plan = desk.take(*[command(n) for n in range(SNAPSHOT_EVERY + 1)])
    assert plan.commit.snapshots == []
    assert plan.commit.heads[0].version == SNAPSHOT_EVERY + 1


def test_a_state_with_null_is_dumped() -> None:
    desk = Desk(stubborn({"a": None}))
    (snapshot,) = desk.take(*[command(n) for n in range(SNAPSHOT_EVERY)]).commit.snapshots
    assert snapshot.state == b'{"a":null}'
