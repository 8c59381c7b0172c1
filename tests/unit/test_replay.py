"""Replay: what is rebuilt, and which event it names when the rows and the rebuilt state part."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshforge_trio.agent import Agent, Context, Event
from meshforge_trio.envelope import EventEnvelope, JsonObject, canonical, encode
from meshforge_trio.errors import Poison
from meshforge_trio.points import no_probe
from meshforge_trio.replay import ReplayReport, replay_scope, state_at, state_hash
from meshforge_trio.store.port import Commit, Head, Output, Snapshot, state_of_heads
from meshforge_trio.store.sqlite import SQLiteEventStore
from meshforge_trio.subjects import Scope, event_subject

SCOPE = Scope("t", "w", "counter")


def counter(schema: int = 1) -> Agent[int]:
    """Adds up what its events say."""
    agent: Agent[int] = Agent("counter", state=int, initial=int, schema=schema)

    @agent.event("added")
    def added(state: int, payload: dict[str, int]) -> int:
        return state + payload["n"]

    @agent.command("add")
    def add(state: int, payload: dict[str, int], ctx: Context) -> Event:
        return Event("added", payload)

    return agent


def bodied(entity: str, version: int, payload: JsonObject, name: str = "added") -> bytes:
    event = EventEnvelope(
        id=f"{entity}-{version}_{name}",
        tenant="t",
        workspace="w",
        agent="counter",
        name=name,
        idempotency_key=f"{entity}-{version}",
        entity_id=entity,
        payload={**payload, "entity_version": version},
    )
    return encode(event)


def chained(entity: str, amounts: Sequence[int], first_n: int = 1) -> list[Output]:
    """The events of one entity, as an engine stores them."""
    outputs, chain = [], b""
    for version, amount in enumerate(amounts, 1):
        body = bodied(entity, version, {"n": amount})
        chain = hashlib.sha256(chain + body).digest()
        outputs.append(
            Output(
                n=first_n + version - 1,
                kind="event",
                key=f"{entity}-{version}",
                event_id=f"{entity}-{version}_added",
                name="added",
                subject=event_subject(SCOPE, "added"),
                msg_id=f"m-{entity}-{version}",
                body=body,
                entity_id=entity,
                version=version,
                chain=chain,
            )
        )
    return outputs


@attrs.define
class Rows:
    """The rows of a scope in memory, where a test may change what a store never would."""

    outputs: list[Output]
    head_of: dict[str, Head]
    scope: Scope = SCOPE

    @staticmethod
    def of(entities: dict[str, list[int]]) -> Rows:
        outputs: list[Output] = []
        heads: dict[str, Head] = {}
        for entity, amounts in entities.items():
            own = chained(entity, amounts, len(outputs) + 1)
            outputs += own
            heads[entity] = Head(entity, len(own), own[-1].chain or b"")
        return Rows(outputs, heads)

    async def outputs_after(self, n: int, limit: int) -> Sequence[Output]:
        return [output for output in self.outputs if output.n > n][:limit]

    async def history(self, entity_id: str, after: int, limit: int) -> Sequence[Output]:
        own = [o for o in self.outputs if o.entity_id == entity_id and o.version is not None and o.version > after]
        return sorted(own, key=lambda output: output.version or 0)[:limit]

    async def heads(self, after: str, limit: int) -> Sequence[Head]:
        return [self.head_of[entity] for entity in sorted(self.head_of) if entity > after][:limit]

    def change(self, entity: str, at: int, **fields: Any) -> None:
        row = next(i for i, o in enumerate(self.outputs) if (o.entity_id, o.version) == (entity, at))
        self.outputs[row] = attrs.evolve(self.outputs[row], **fields)

    def snapshot(self, entity: str, version: int, state: int, schema: int = 1) -> None:
        head = self.head_of[entity]
        self.head_of[entity] = attrs.evolve(head, state=canonical(state), state_version=version, state_schema=schema)


def record(n: int, entity: str) -> Output:
    """A conflict: beside the chain."""
    body = bodied(entity, 0, {"reason": "no"}, "conflict")
    return Output(n, "record", "k", "c_conflict", "conflict", "s", "m", body, entity_id=entity)


async def test_a_store_that_is_right_has_no_difference() -> None:
    rows = Rows.of({"b": [1, 2, 3], "a": [5]})
    rows.snapshot("b", 2, 3)
    seen: list[int] = []
    report = await replay_scope(rows, counter(), seen.append)
    states = [(e, rows.head_of[e].version, rows.head_of[e].chain, canonical(s)) for e, s in (("a", 5), ("b", 6))]
    assert report == ReplayReport("t/w/counter", 2, 4, 1, state_of_heads(states), 0, None)
    assert sum(seen) == 4


async def test_records_take_no_part() -> None:
    rows, plain = Rows.of({"a": [1]}), Rows.of({"a": [1]})
    rows.outputs.append(record(2, "a"))
    assert await replay_scope(rows, counter()) == await replay_scope(plain, counter())


@pytest.mark.parametrize(
    ("harm", "kind", "version"),
    [
        (lambda rows: rows.change("a", 2, body=bodied("a", 2, {"n": 99})), "chain", 2),
        (lambda rows: rows.change("a", 2, chain=b"\0" * 32), "chain", 2),
        (lambda rows: rows.change("a", 2, chain=None), "chain", 2),
        (lambda rows: rows.change("a", 2, version=4), "version", 3),
        (lambda rows: rows.change("a", 2, event_id="other"), "identity", 2),
        (lambda rows: rows.change("a", 2, name="removed"), "identity", 2),
        (lambda rows: rows.snapshot("a", 2, 99), "snapshot", 2),
        (lambda rows: rows.head_of.update(a=attrs.evolve(rows.head_of["a"], version=2)), "head", 3),
        (lambda rows: rows.head_of.update(a=attrs.evolve(rows.head_of["a"], chain=b"x")), "head", 3),
        (lambda rows: rows.outputs.pop(), "head", 2),
        (lambda rows: rows.head_of.pop("a"), "headless", 1),
    ],
)
async def test_the_first_event_that_differs_is_named(harm: Callable[[Rows], object], kind: str, version: int) -> None:
    rows = Rows.of({"0": [7], "a": [1, 2, 3]})
    harm(rows)
    report = await replay_scope(rows, counter())
    difference = report.first_difference
    assert difference is not None
    assert report.differences == 1
    assert (difference.kind, difference.entity_id, difference.version) == (kind, "a", version)
    event = next((o.event_id for o in rows.outputs if (o.entity_id, o.version) == ("a", version)), "a-3_added")
    assert difference.event_id == event
    assert difference.expected != difference.got
    assert f"entity 'a' version {version}, event {event}" in str(difference)


def orphan(rows: Rows, version: int) -> None:
    """One more event of `a`, to which its head does not lead; the store follows links and does not show it."""
    stray = attrs.evolve(chained("a", [9] * version)[-1], n=len(rows.outputs) + 1, event_id="stray")
    rows.outputs.append(stray)


class Linked(Rows):
    async def history(self, entity_id: str, after: int, limit: int) -> Sequence[Output]:
        return [o for o in await super().history(entity_id, after, limit) if o.event_id != "stray"]


@pytest.mark.parametrize("version", [2, 3, 4])
async def test_an_event_that_its_head_does_not_lead_to_is_named(version: int) -> None:
    rows = Linked(**attrs.asdict(Rows.of({"a": [1, 2, 3], "b": [1]}), recurse=False))
    orphan(rows, version)
    report = await replay_scope(rows, counter())
    difference = report.first_difference
    assert difference is not None
    assert report.differences == 1
    assert (difference.kind, difference.entity_id, difference.version) == ("version", "a", version)
    assert (difference.event_id, difference.expected, difference.got) == ("stray", "no event", str(version))


async def test_an_event_out_of_order_is_named() -> None:
    rows = Linked(**attrs.asdict(Rows.of({"a": [1, 2, 3]}), recurse=False))
    rows.outputs.insert(2, attrs.evolve(rows.outputs[1], event_id="stray"))
    report = await replay_scope(rows, counter())
    assert report.first_difference is not None
    assert (report.first_difference.event_id, report.first_difference.expected) == ("stray", "3")


async def test_an_event_the_agent_cannot_apply_is_named() -> None:
    rows = Rows.of({"a": [1, 2]})
    silent: Agent[int] = Agent("counter", state=int, initial=int)
    report = await replay_scope(rows, silent)
    assert report.first_difference is not None
    assert report.first_difference.kind == "apply"
    assert report.first_difference.event_id == "a-1_added"
    assert "nothing applies event 'added'" in report.first_difference.got


async def test_one_bad_entity_does_not_hide_another() -> None:
    rows = Rows.of({"a": [1, 2], "b": [3], "c": [4, 5]})
    rows.change("a", 1, chain=b"")
    rows.change("c", 2, chain=b"")
    report = await replay_scope(rows, counter())
    assert report.differences == 2
    assert report.first_difference is not None
    assert report.first_difference.entity_id == "a"
    assert report.entities == 3


async def test_a_snapshot_of_another_shape_is_not_compared() -> None:
    rows = Rows.of({"a": [1, 2]})
    rows.snapshot("a", 1, 99, schema=1)
    report = await replay_scope(rows, counter(schema=2))
    assert (report.first_difference, report.snapshots) == (None, 0)
    assert (await state_hash(rows, counter(schema=2)))[0] == report.state_hash


@given(
    st.dictionaries(st.text(min_size=1), st.lists(st.integers(-5, 5), min_size=1, max_size=5), max_size=5), st.data()
)
def test_the_hash_from_heads_and_snapshots_is_that_of_the_replay(
    entities: dict[str, list[int]], data: st.DataObject
) -> None:
    rows = Rows.of(entities)
    for entity, amounts in entities.items():
        version = data.draw(st.integers(0, len(amounts)))
        if version:
            rows.snapshot(entity, version, sum(amounts[:version]))

    async def both() -> tuple[str, ReplayReport]:
        return (await state_hash(rows, counter()))[0], await replay_scope(rows, counter())

    digest, report = _run(both)
    assert report.first_difference is None
    assert digest == report.state_hash
    assert report.events == sum(map(len, entities.values()))


def _run(function: Callable[[], Any]) -> Any:
    # Nothing here waits for anything, so the coroutine runs to its end at once.
    coroutine = function()
    with pytest.raises(StopIteration) as ended:
        coroutine.send(None)
    return ended.value.value


async def test_state_at_a_version_is_what_it_was_then() -> None:
    rows = Rows.of({"a": [1, 2, 3]})
    for version, state in ((1, 1), (2, 3), (3, 6), (9, 6), (None, 6)):
        found = await state_at(rows, counter(), "a", version)
        assert (found.version, found.state) == (min(version or 3, 3), state)
        assert found.chain == rows.outputs[found.version - 1].chain
    assert (await state_at(rows, counter(), "nobody")).version == 0


async def test_state_of_an_event_nobody_applies_is_refused() -> None:
    silent: Agent[int] = Agent("counter", state=int, initial=int)
    with pytest.raises(Poison, match="nothing applies"):
        await state_at(Rows.of({"a": [1]}), silent, "a")


async def test_long_histories_are_read_page_by_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshforge_trio.replay._PAGE", 2)
    rows = Rows.of({"a": [1] * 5, "b": [1], "c": [1], "d": [1] * 3})
    whole = await replay_scope(rows, counter())
    assert (whole.entities, whole.events, whole.first_difference) == (4, 10, None)
    assert (await state_at(rows, counter(), "a")).state == 5
    rows.head_of.pop("d")
    report = await replay_scope(rows, counter())
    assert (report.differences, report.first_difference and report.first_difference.entity_id) == (1, "d")


async def test_it_reads_a_real_store(tmp_path: Path) -> None:
    store = await SQLiteEventStore.open(tmp_path / "s.db")
    try:
        rows = store.scope(SCOPE)
        lease = await rows.take_lease("server")
        assert lease is not None
        outputs = chained("a", [1, 2, 3])
        commit = Commit(
            lease.epoch,
            outputs=list(outputs),
            heads=[Head("a", 3, outputs[-1].chain or b"")],
            snapshots=[Snapshot("a", 3, 1, canonical(6))],
        )
        await rows.commit(commit, no_probe)
        report = await replay_scope(rows, counter())
        assert (report.entities, report.events, report.snapshots, report.first_difference) == (1, 3, 1, None)
        assert (await state_hash(rows, counter())) == (report.state_hash, 1)
        assert (await state_at(rows, counter(), "a", 2)).state == 3
    finally:
        await store.close()
