"""A decided batch becomes one transaction and what is sent after it."""

from __future__ import annotations

from doubles import Desk, command, counter, outcomes
from hypothesis import given
from hypothesis import strategies as st

from meshforge_trio.entities import Cache, Entities
from meshforge_trio.plan import Plan, Verdict, assemble
from meshforge_trio.policy import RetryPolicy
from meshforge_trio.store.port import Attempt, Commit, DeadLetter, Output
from meshforge_trio.waiting import Waiting


def output(name: str, kind: str = "event") -> Output:
    return Output(0, kind, "k", f"c_{name}", name, f"evt.t.w.counter.{name}", name, b'"trace_id":"' + b"ab" * 16 + b'"')  # type: ignore[arg-type]


def planned(verdicts: list[Verdict], *, next_n: int = 1, attempts: list[Attempt] | None = None) -> Plan:
    waiting = Waiting(attempts or [], RetryPolicy(), 10)
    return assemble(verdicts, Commit(7), next_n, Entities(Cache(1), counter(), {}), waiting)


def verdict(number: int, outcome: str, *outputs: Output, **more: object) -> Verdict:
    return Verdict(Desk().read(command(number)), outcome, outputs, **more)  # type: ignore[arg-type]


ATTEMPT = Attempt("k1", "a", 1, 5.0, 1.0, 1.0, "boom")


def test_outputs_are_numbered_in_stream_order() -> None:
    plan = planned(
        [verdict(1, "decided", output("a"), output("b")), verdict(2, "refused", output("c", "record"))], next_n=10
    )
    assert [(o.name, o.n) for o in plan.commit.outputs] == [("a", 10), ("b", 11), ("c", 12)]
    assert [(k.key, k.outcome, k.first_n, k.last_n) for k in plan.commit.keys] == [
        ("k1", "decided", 10, 11),
        ("k2", "refused", 12, 12),
    ]
    assert plan.commit.epoch == 7
    assert plan.writes


def test_a_decision_without_outputs_has_an_empty_range() -> None:
    (record,) = planned([verdict(1, "decided")], next_n=4).commit.keys
    assert (record.first_n, record.last_n) == (4, 3)


def test_a_mismatch_is_no_key() -> None:
    plan = planned([verdict(1, "refused", output("refused", "record"), mismatch=True)])
    assert plan.commit.keys == []
    assert [record.key for record in plan.commit.mismatches] == ["k1"]
    assert plan.writes


def test_a_dead_letter_knows_its_number() -> None:
    dead = DeadLetter("k1", 0, 0, "s", b"", b"", "never", "never", 0, 0.0, 0.0)
    plan = planned([verdict(1, "dead", output("dead_letter", "dead"), output("told", "record"), dead=dead)], next_n=5)
    assert [letter.n for letter in plan.commit.dead] == [5]


def test_failures_write_an_attempt_and_holds_nothing() -> None:
    failed = verdict(1, "failed", attempt=ATTEMPT, wait_s=2.0)
    plan = planned([failed, verdict(2, "held", wait_s=0.1)])
    assert plan.commit.attempts == [ATTEMPT]
    assert (plan.commit.keys, plan.commit.outputs) == ([], [])
    assert [settlement.delay_s for settlement in plan.settlements] == [2.0, 0.1]
    assert not planned([verdict(2, "held", wait_s=0.1)]).writes


def test_an_attempt_ends_with_its_command_whatever_became_of_it() -> None:
    for outcome in ("decided", "refused", "dead", "conflict", "duplicate", "answered"):
        assert planned([verdict(1, outcome)], attempts=[ATTEMPT]).commit.ended == ["k1"]
        assert planned([verdict(2, outcome)], attempts=[ATTEMPT]).commit.ended == []
    assert planned([verdict(1, "held", wait_s=1.0)], attempts=[ATTEMPT]).commit.ended == []
    # Also where nothing else is written, or the row would count for ever.
    assert planned([verdict(1, "duplicate")], attempts=[ATTEMPT]).writes


def test_duplicates_echo_what_core_subscribers_may_see() -> None:
    outputs = [output("a"), output("b", "record"), output("c", "command"), output("d", "dead")]
    plan = planned([verdict(1, "duplicate", echo=outputs)])
    assert [message.msg_id for message in plan.echoes] == ["a", "b"]
    first = verdict(1, "decided", output("x"))
    plan = planned([first, verdict(2, "duplicate", echo=first)])
    assert [message.msg_id for message in plan.echoes] == ["x"]
    assert len(plan.commit.outputs) == 1


def test_answers_are_not_stored() -> None:
    plan = planned([verdict(1, "answered", output("found", "record"))])
    assert [message.msg_id for message in plan.answers] == ["found"]
    assert not plan.writes
    assert [settlement.delay_s for settlement in plan.settlements] == [None]


@given(st.lists(st.tuples(st.sampled_from(["add", "refuse", "explode", "poison", "send"]), st.integers(1, 5))))
def test_every_delivery_is_settled_once(steps: list[tuple[str, int]]) -> None:
    desk = Desk()
    plan = desk.take(*[command(n, action, entity_id=f"{entity}") for n, (action, entity) in enumerate(steps)])
    assert [s.delivery for s in plan.settlements] == [v.incoming.delivery for v in plan.verdicts]
    assert len(plan.settlements) == len(steps)
    for outcome, settlement in zip(outcomes(plan), plan.settlements, strict=True):
        assert (settlement.delay_s is not None) == (outcome in ("failed", "held"))
    decided = [v for v in plan.verdicts if v.wait_s is None]
    assert [record.key for record in plan.commit.keys] == [v.incoming.key for v in decided]
    ranges = [n for record in plan.commit.keys for n in range(record.first_n, record.last_n + 1)]
    assert ranges == [o.n for o in plan.commit.outputs] == list(range(1, len(ranges) + 1))
