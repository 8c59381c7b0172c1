"""What a worker adds to the runtime: a record of every call, and a probe that acts by plan. Nothing else changes."""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import pytest

from chaos.agents import audit, counter, patient
from chaos.faults.disk import FullDisk
from chaos.faults.disk_errors import FailingDisk
from chaos.history import VERSION, History, Record, read_history
from chaos.plan import parse_plan
from chaos.probe import FaultProbe
from chaos.worker import RecordedAgent
from chaos.workload import SCOPE, command
from meshforge_trio.agent import AgentAdapter, Context, Decision, Event
from meshforge_trio.envelope import CommandEnvelope, EventEnvelope
from meshforge_trio.errors import Refused
from meshforge_trio.points import Point
from meshforge_trio.policy import RetryPolicy

CONTEXT = Context(now=0.0, entity_id="a", version=3)


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    opened = History.open(tmp_path / "history.jsonl", "worker#1")
    opened.write("header", version=VERSION, scenario="s", plan="", app="a")
    yield opened
    opened.close()


def told(home: Path, *kinds: str) -> Sequence[Record]:
    return [record for record in read_history(home / "history.jsonl") if record.kind in kinds]


# -- calls ---------------------------------------------------------------------------------------------------------


def test_a_call_is_recorded_before_and_after(history: History, tmp_path: Path) -> None:
    agent = RecordedAgent(counter, history)
    add = command(SCOPE, "add", 1, {"amount": 2}, entity_id="a")
    decision = agent.receive(5, add, CONTEXT)
    assert decision == counter.receive(5, add, CONTEXT)
    agent.receive(6, add, CONTEXT)
    call, decided, other_call, other = told(tmp_path, "call", "decided")
    assert {name: call[name] for name in ("scope", "key", "id", "action", "entity", "version")} == {
        "scope": "default/demo/counter",
        "key": "k1",
        "id": "c1",
        "action": "add",
        "entity": "a",
        "version": 3,
    }
    assert (decided["scope"], decided["key"]) == ("default/demo/counter", "k1")
    # Another state, another decision; and both have names.
    assert call["before"] != other_call["before"]
    assert decided["digest"] != other["digest"]
    assert len(decided["digest"]) == len(call["before"]) == 16


def test_what_raises_was_called_and_decided_nothing(history: History, tmp_path: Path) -> None:
    agent = RecordedAgent(counter, history)
    with pytest.raises(Refused):
        agent.receive(0, command(SCOPE, "take", 1, {"amount": 2}, entity_id="a"), CONTEXT)
    query = command(SCOPE, "get", 2, entity_id="a", idempotency_key=None)
    assert isinstance(agent.receive(0, query, CONTEXT), Decision)
    assert [(record.kind, record["key"]) for record in told(tmp_path, "call", "decided")] == [
        ("call", "k1"),
        # Without a key it is known by its id, as in the store.
        ("call", "query:c2"),
        ("decided", "query:c2"),
    ]


async def test_what_is_awaited_is_recorded_when_it_is_there(history: History, tmp_path: Path) -> None:
    agent = RecordedAgent(patient, history)
    assert agent.concurrent
    awaited = agent.receive(1, command(SCOPE, "add", 1, {"amount": 2}, entity_id="a"), CONTEXT)
    assert isinstance(awaited, Awaitable)
    assert [record.kind for record in told(tmp_path, "call", "decided")] == ["call"]
    assert isinstance(await awaited, Decision)
    assert [record.kind for record in told(tmp_path, "call", "decided")] == ["call", "decided"]


def test_an_event_is_known_by_the_key_its_receiver_gives_it(history: History, tmp_path: Path) -> None:
    agent = RecordedAgent(audit, history)
    event = EventEnvelope(
        id="c1_added",
        tenant="default",
        workspace="demo",
        agent="counter",
        name="added",
        payload={"amount": 2},
        entity_id="a",
        idempotency_key="k1",
        causation_id="c1",
        ts=0.0,
    )
    agent.receive([], event, CONTEXT)
    (call,) = told(tmp_path, "call")
    assert (call["scope"], call["key"], call["action"]) == (
        "default/demo/audit",
        "evt:counter:c1_added:k1",
        "added",
    )


class Odd(AgentAdapter[object]):
    """States that are no JSON, decisions that are none."""

    name = "odd"
    schema = 7

    def __init__(self, decision: Any) -> None:
        self.decision = decision

    def initial(self) -> object:
        return object()

    def receive(self, state: object, message: CommandEnvelope | EventEnvelope, ctx: Context) -> Decision:
        made: Decision = self.decision
        return made

    def apply(self, state: object, event: Event) -> object:
        return (state, event)

    def is_query(self, action: str) -> bool:
        return action == "ask"

    def entity_of(self, event: EventEnvelope) -> str | None:
        return "always this"

    def load(self, value: Any) -> object:
        return [value]


def test_everything_else_is_the_agents_own(history: History) -> None:
    odd = Odd(None)
    agent = RecordedAgent(odd, history)
    event = Event("e", {})
    assert (agent.name, agent.schema, agent.concurrent, agent.subscriptions) == ("odd", 7, False, ())
    assert agent.retry is None
    odd.retry = RetryPolicy(limit=7)
    assert RecordedAgent(odd, history).retry == RetryPolicy(limit=7)
    assert RecordedAgent(audit, history).subscriptions == audit.subscriptions
    assert type(agent.initial()) is object
    assert agent.apply("state", event) == ("state", event)
    assert (agent.is_query("ask"), agent.is_query("tell")) == (True, False)
    assert agent.entity_of(None) == "always this"  # type: ignore[arg-type]
    assert (agent.dump("state"), agent.load("state")) == ("state", ["state"])


@pytest.mark.parametrize("nonsense", [None, "text", 5])
def test_nonsense_is_passed_on_for_the_engine_to_refuse(history: History, tmp_path: Path, nonsense: object) -> None:
    agent = RecordedAgent(Odd(nonsense), history)
    assert agent.receive(object(), command(SCOPE, "add", 1), CONTEXT) is nonsense
    (call,) = told(tmp_path, "call", "decided")
    assert call["before"] == "unwritable object"


@pytest.mark.parametrize("value", [object(), {1: 2}, "\ud800", 2**70])
def test_what_cannot_be_written_has_no_digest_and_is_passed_on(history: History, tmp_path: Path, value: object) -> None:
    decision = Decision((Event("added", {"amount": value}),))
    assert RecordedAgent(Odd(decision), history).receive({}, command(SCOPE, "add", 1), CONTEXT) is decision
    (decided,) = told(tmp_path, "decided")
    assert decided["digest"] == "unwritable dict"


# -- points --------------------------------------------------------------------------------------------------------


def probe_of(
    plan: str, history: History, disk: FullDisk | None = None, failing: FailingDisk | None = None
) -> FaultProbe:
    return FaultProbe(parse_plan(plan).of_worker(1), history, disk, failing)


def test_every_hit_of_every_point_is_recorded(history: History, tmp_path: Path) -> None:
    probe = probe_of("", history)
    for point in (Point.RECEIVED, Point.BEFORE_STORE, Point.RECEIVED):
        probe(point)
    points = [(record["point"], record["nth"]) for record in told(tmp_path, "point", "fault")]
    assert points == [("received", 1), ("before_store", 1), ("received", 2)]


@pytest.mark.parametrize(
    ("rule", "sent"),
    [
        ("worker#1:received@2=kill", signal.SIGKILL),
        ("worker#1:received@2=kill(0.5)", signal.SIGKILL),
        ("worker#1:received@2=stop", signal.SIGSTOP),
        ("nats:received@2=kill", signal.SIGSTOP),
        ("client:received@2=resend", signal.SIGSTOP),
        # What lies outside the process: the server's disk, not its own; its store's lock and file.
        ("nats:in_publish@2=full(1)", signal.SIGSTOP),
        ("worker#1:before_mark@2=lock(1)", signal.SIGSTOP),
        ("worker#1:before_mark@2=unlink", signal.SIGSTOP),
        ("worker#1:before_mark@2=replace", signal.SIGSTOP),
    ],
)
def test_a_rule_is_recorded_and_then_acted_on(
    history: History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: str, sent: signal.Signals
) -> None:
    """At its hit alone; rules of the server and the client stop the process until the harness has acted."""
    signals: list[tuple[int, int]] = []

    def kill(pid: int, number: int) -> None:
        assert told(tmp_path, "fault"), "it must be written down before"
        signals.append((pid, number))

    monkeypatch.setattr("chaos.probe.os.kill", kill)
    probe = probe_of(rule, history)
    here = Point(parse_plan(rule).rules[0].place)
    for point in (here, Point.AFTER_ACK, here, here):
        probe(point)
    assert signals == [(os.getpid(), sent)]
    assert [record["rule"] for record in told(tmp_path, "fault")] == [rule]


def test_a_disk_is_filled_and_says_when_it_has_room_again(history: History, tmp_path: Path) -> None:
    rule = "worker#1:before_store@1=full(60)"
    disk = FullDisk(tmp_path / "store.db")
    probe = probe_of(rule, history, disk)
    probe(Point.BEFORE_STORE)
    assert disk.full
    assert [record["rule"] for record in told(tmp_path, "fault")] == [rule]
    assert told(tmp_path, "healed") == []
    disk.on_healed()
    assert [record["rule"] for record in told(tmp_path, "healed")] == [rule]


@pytest.fixture
def failing(tmp_path: Path) -> Iterator[FailingDisk]:
    made = FailingDisk(tmp_path / "store.db")
    yield made
    made.unregister()


def outcome(connection: apsw.Connection, sql: str) -> str:
    try:
        connection.execute(sql).fetchall()
    except apsw.IOError:
        return "I/O error"
    return "done"


@pytest.mark.parametrize(
    ("action", "reads", "writes"),
    [("eio_read", "I/O error", "I/O error"), ("eio_write", "done", "I/O error"), ("eio_sync", "done", "I/O error")],
)
def test_a_disk_fails_from_its_rule_on(
    history: History, tmp_path: Path, failing: FailingDisk, action: str, reads: str, writes: str
) -> None:
    probe = probe_of(f"worker#1:before_mark@2={action}", history, failing=failing)
    with closing(apsw.Connection(os.fspath(tmp_path / "store.db"))) as connection:
        connection.pragma("journal_mode", "wal")
        connection.pragma("synchronous", "FULL")
        connection.execute("CREATE TABLE t(x); INSERT INTO t VALUES (1)")
        probe(Point.BEFORE_MARK)
        assert outcome(connection, "INSERT INTO t VALUES (2)") == "done"
        assert told(tmp_path, "fault") == []
        probe(Point.BEFORE_MARK)
        assert [record["rule"] for record in told(tmp_path, "fault")] == [f"worker#1:before_mark@2={action}"]
        assert outcome(connection, "SELECT * FROM t") == reads
        assert outcome(connection, "INSERT INTO t VALUES (3)") == writes
        failing.heal()


def test_what_was_read_before_is_forgotten_at_every_point(
    history: History, tmp_path: Path, failing: FailingDisk
) -> None:
    """A thread that used the store when its disk failed keeps its page cache until then."""
    probe = probe_of("worker#1:before_mark@1=eio_read", history, failing=failing)
    probe(Point.BEFORE_MARK)
    failing.heal()
    with closing(apsw.Connection(os.fspath(tmp_path / "store.db"))) as connection:
        connection.execute("CREATE TABLE t(x); INSERT INTO t VALUES (1)")
        probe(Point.BEFORE_STORE)
        assert outcome(connection, "SELECT * FROM t") == "I/O error"
        failing.heal()
