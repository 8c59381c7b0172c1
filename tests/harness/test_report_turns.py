"""Turns out of points: overlapping, of several engines, cut off, and of protocols that are broken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chaos.report.turns import called, turns

from .report_world import happened

Told = tuple[str, str, Mapping[str, Any]]

WHOLE = "received before_store in_store after_store before_publish in_publish after_publish before_ack after_ack"


def at(points: str, worker: str = "worker#1") -> list[Told]:
    return [(worker, "point", {"point": point, "nth": 1}) for point in points.split()]


def call(key: str, scope: str = "t/w/a", worker: str = "worker#1") -> list[Told]:
    fields = {"scope": scope, "key": key, "id": f"id-{key}", "action": "add", "entity": None}
    return [
        (worker, "call", {**fields, "version": 0, "before": ""}),
        (worker, "decided", {"scope": scope, "key": key, "digest": ""}),
    ]


def shown(*told: Told) -> list[str]:
    """Each turn as its points and kinds, with `+` where it ended."""
    history = happened(*told)
    return [
        " ".join(str(history[i].fields.get("point", history[i].kind)) for i in turn.records) + "+" * turn.ended
        for turn in turns(history)
    ]


def test_a_turn_is_its_points_its_calls_and_its_fault() -> None:
    history = happened(
        *at("after_lease after_recovery received"),
        *call("k1"),
        *call("k2"),
        *at("before_store in_store"),
        ("worker#1", "fault", {"rule": "worker#1:in_store@1=kill"}),
        ("worker#1", "exit", {"status": -9}),
    )
    (turn,) = turns(history)
    assert [history[i].kind for i in turn.records] == [
        *("point", "call", "decided", "call", "decided", "point", "point", "fault")
    ]
    assert (turn.worker, turn.scope, turn.ended) == ("worker#1", "t/w/a", False)
    assert turn.names == {("t/w/a", "k1"), ("t/w/a", "k2")}


def test_two_turns_of_an_engine_overlap() -> None:
    first = at("received before_store in_store after_store before_publish")
    between = at("received in_publish before_store in_publish after_publish in_store before_ack after_store after_ack")
    last = at("before_publish after_publish before_ack after_ack")
    assert shown(*first, *between, *last) == [
        "received before_store in_store after_store before_publish in_publish in_publish after_publish before_ack "
        "after_ack+",
        "received before_store in_store after_store before_publish after_publish before_ack after_ack+",
    ]


def test_a_handler_is_called_in_a_turn_of_its_scope() -> None:
    history = happened(
        *at("received received"),
        *call("k1", "t/w/a"),
        *call("k2", "t/w/b"),
        *call("k3", "t/w/a"),
        *at("before_store"),
    )
    assert [(turn.scope, {key for _, key in turn.names}) for turn in turns(history)] == [
        ("t/w/a", {"k1", "k3"}),
        ("t/w/b", {"k2"}),
    ]


def test_of_two_at_the_same_stage_the_one_that_waited_longer_goes_on() -> None:
    assert shown(*at("received received before_store before_store in_store after_store in_store after_store")) == [
        "received before_store in_store after_store",
        "received before_store in_store after_store",
    ]


def test_a_turn_with_nothing_to_write_passes_no_transaction() -> None:
    assert shown(*at("received before_store after_store before_publish after_publish before_ack after_ack")) == [
        "received before_store after_store before_publish after_publish before_ack after_ack+"
    ]
    # What is in the transaction comes out of it first.
    assert shown(*at("received received before_store in_store before_store after_store")) == [
        "received before_store in_store after_store",
        "received before_store",
    ]


def test_a_decision_is_made_anew_in_the_same_turn() -> None:
    assert shown(*at("received before_store in_store before_store in_store after_store")) == [
        "received before_store in_store before_store in_store after_store"
    ]


def test_an_attempt_is_one_turn_with_what_it_runs() -> None:
    assert shown(*at("before_attempt in_store in_attempt received"), *call("k1"), *at("before_store")) == [
        "before_attempt in_store in_attempt received call decided before_store"
    ]


def test_a_failure_and_a_dead_letter_are_stored_in_a_turn() -> None:
    points = "received before_hold before_dead_letter before_store in_store after_store after_hold after_dead_letter"
    assert shown(*at(f"{points} before_publish")) == [f"{points} before_publish"]


def test_a_mark_written_by_itself_is_of_no_turn() -> None:
    assert shown(*at("before_mark received in_store after_mark before_store in_store")) == [
        "received before_store in_store"
    ]
    # Of two marks at once each has its transaction.
    assert shown(*at("before_mark before_mark in_store after_mark received in_store after_mark")) == ["received"]


def test_workers_do_not_mix() -> None:
    told = [*at("received", "worker#1"), *at("received before_store", "worker#2"), *at("before_store", "worker#1")]
    history = happened(*told)
    assert [(turn.worker, len(turn.records)) for turn in turns(history)] == [("worker#1", 2), ("worker#2", 2)]


def test_a_session_after_a_fault_goes_on_with_nothing_of_before() -> None:
    fault = ("nats", "fault", {"rule": "nats:received@1=restart"})
    up: Told = ("nats", "up", {})
    told = [*at("received before_store in_store"), fault, *at("after_store"), up, *at("after_lease")]
    assert shown(*told, *at(WHOLE)) == ["received before_store in_store after_store", f"{WHOLE}+"]
    assert shown(*told, *at("before_publish")) == ["received before_store in_store after_store"]
    # Without a fault it is the session of another engine, and turns go on.
    assert shown(*at("received before_store after_lease in_store")) == ["received before_store in_store"]


def test_after_a_fault_a_turn_that_stands_still_comes_last() -> None:
    fault = ("worker#1", "fault", {"rule": "worker#1:before_store@1=full(1)"})
    told = [*at("received before_store"), fault, *at("received before_store in_store after_store")]
    assert shown(*told) == ["received before_store fault", "received before_store in_store after_store"]


def test_points_in_another_order_belong_to_the_newest_turn() -> None:
    assert shown(*at("received before_ack after_ack before_store in_store")) == ["received before_ack after_ack+"]
    assert shown(*at("received after_publish before_store in_store")) == [
        "received after_publish before_store in_store"
    ]
    assert shown(*at("before_store in_publish after_ack")) == []


def test_a_fault_outside_turns_is_of_none() -> None:
    fault = ("worker#1", "fault", {"rule": "worker#1:in_recovery@1=kill"})
    assert shown(*at("received in_recovery"), fault) == ["received"]


def test_a_call_outside_turns_is_of_none() -> None:
    assert shown(*call("k1")) == []
    assert shown(*at("received before_store in_store"), *call("k1")) == ["received before_store in_store"]


def test_calls_are_named_by_key_or_else_by_id() -> None:
    history = happened(
        ("w", "call", {"scope": "t/w/a", "key": "", "id": "q1", "action": "get", "entity": "a"}),
        ("w", "decided", {"scope": "t/w/a", "key": "", "digest": ""}),
        ("w", "call", {"scope": "t/w/a", "key": "k", "id": "c1", "action": "add", "entity": "a"}),
        ("w", "call", {"scope": "t/w/b", "key": "k", "id": "c1", "action": "add", "entity": "a"}),
        ("w", "decided", {"scope": "t/w/a", "key": "k", "digest": ""}),
        # An older record that names no scope: that of the newest call under its key.
        ("w", "decided", {"key": "k", "digest": ""}),
        ("w", "decided", {"key": "never called", "digest": ""}),
    )
    assert called(history) == {
        1: ("t/w/a", "id:q1"),
        2: ("t/w/a", "id:q1"),
        3: ("t/w/a", "k"),
        4: ("t/w/b", "k"),
        5: ("t/w/a", "k"),
        6: ("t/w/b", "k"),
    }
