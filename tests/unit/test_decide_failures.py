"""Deciding a batch when handlers fail: holds, attempts, dead letters, handlers side by side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import orjson
import pytest
import trio
import trio.testing
from doubles import Desk, command, counter, outcomes, told_by

from meshforge_trio.agent import Agent, Context, Decision, Event, Reply, Send
from meshforge_trio.envelope import JsonObject
from meshforge_trio.errors import Fenced, Poison, Refused, SessionLost, StoreBroken
from meshforge_trio.policy import RetryPolicy
from meshforge_trio.store.port import Attempt


def custom(handler: Callable[[], object]) -> Agent[int]:
    """The counter with an action that does whatever is asked."""
    agent = counter()

    @agent.command("custom")
    def call(total: int, payload: JsonObject, ctx: Context) -> object:
        return handler()

    return agent


def raising(error: BaseException) -> Callable[[], object]:
    def handler() -> object:
        raise error

    return handler


# --- what a handler can do wrong


def test_a_failing_handler_fails_its_command_and_holds_its_entity() -> None:
    desk = Desk()
    batch = [command(1), command(2, "explode"), command(3), command(4, entity_id="b"), command(5, entity_id=None)]
    plan = desk.take(*batch)
    assert outcomes(plan) == ["decided", "failed", "held", "decided", "decided"]
    assert [s.delay_s for s in plan.settlements] == [None, 1.0, 1.0, None, None]
    assert plan.commit.attempts == [
        Attempt("k2", "a", 1, 1001.0, 1000.0, 1000.0, "RuntimeError: boom", ((1000.0, "RuntimeError: boom"),))
    ]


def test_with_skip_later_commands_pass() -> None:
    desk = Desk(policy=RetryPolicy(limit=3, hold_entity=False))
    assert outcomes(desk.take(command(1, "explode"), command(2))) == ["failed", "decided"]


def test_a_command_sent_twice_is_tried_once_a_turn() -> None:
    """Each call must be counted, and a turn has one row for it."""
    for entity_id in ("a", None):
        desk = Desk(policy=RetryPolicy(limit=3, hold_entity=entity_id is None))
        first = command(1, "explode", entity_id=entity_id)
        plan = desk.take(first, attrs.evolve(first, id="c2"))
        assert outcomes(plan) == ["failed", "held"]
        assert [row.attempts for row in plan.commit.attempts] == [1]


def test_attempts_end_in_a_dead_letter_that_its_sender_hears_of() -> None:
    desk = Desk()
    desk.take(command(1, "explode"))
    desk.now += 10
    plan = desk.take(command(1, "explode"), command(2))
    assert outcomes(plan) == ["dead", "held"]
    assert [output.name for output in plan.commit.outputs] == ["dead_letter", "dead_lettered"]
    (dead,) = plan.commit.dead
    assert (dead.code, dead.attempts, dead.first_at, dead.last_at, dead.n) == (
        "attempts_exhausted",
        2,
        1000,
        1010,
        3 - 2,
    )
    assert dead.calls == ((1000.0, "RuntimeError: boom"), (1010.0, "RuntimeError: boom"))
    letter = orjson.loads(plan.commit.outputs[0].body)
    assert letter["calls"] == [{"at": at, "error": error} for at, error in dead.calls]
    assert letter["trace_id"] == dead.trace_id != ""
    assert "RuntimeError: boom" in dead.reason
    told = told_by(plan.verdicts[0])[1]
    assert (told["code"], told["attempts"]) == ("attempts_exhausted", 2)
    assert plan.commit.ended == ["k1"]
    assert outcomes(desk.take(command(2))) == ["decided"]
    assert outcomes(desk.take(command(1, "explode"))) == ["duplicate"]


def test_without_a_limit_it_fails_until_it_is_mended() -> None:
    desk = Desk(policy=RetryPolicy(limit=0, delays_s=(1.0,), jitter=0.0))
    for _ in range(40):
        plan = desk.take(command(1, "explode"), command(2))
        assert outcomes(plan) == ["failed", "held"]
        desk.now += 2
    assert (plan.commit.attempts[0].attempts, len(plan.commit.attempts[0].calls)) == (40, 32)


def test_poison_is_set_aside_at_once() -> None:
    plan = Desk().take(command(1, "poison"), command(2))
    assert outcomes(plan) == ["dead", "decided"]
    (dead,) = plan.commit.dead
    assert (dead.code, dead.reason, dead.attempts) == ("never", "never", 0)
    assert told_by(plan.verdicts[0])[1]["field"] == "amount"


@pytest.mark.parametrize(
    "result", [None, 5, "added", object(), [Event("added"), 5], Decision, (Reply("a"), Reply("b"))]
)
def test_a_nonsense_result_is_set_aside(result: object) -> None:
    plan = Desk(custom(lambda: result)).take(command(1, "custom"), command(2))
    assert outcomes(plan) == ["dead", "decided"]
    assert plan.commit.dead[0].code == "nonsense"


@pytest.mark.parametrize(
    ("result", "code"),
    [
        (Event("conflict"), "reserved_event"),
        (Event("dead_lettered"), "reserved_event"),
        (Event("refused"), "reserved_event"),
        (Reply("accepted"), "reserved_event"),
        (Event("a.b"), "bad_token"),
        (Event("lost"), "unappliable"),
        (Event("added", {"amount": float("nan")}), "not_json"),
        (Event("added", {"amount": 1, "text": "x" * 100_000}), "oversized"),
        (Event("added", {"amount": "x"}), "unappliable"),
        ([Event("added", {"amount": 1}), Send("a b", "do")], "bad_token"),
        ([Event("added", {"amount": 1}), Send("other", "do", {"text": "x" * 100_000})], "oversized"),
        ([Event("added", {"amount": 1}), Reply("ok", {"n": {1, 2}})], "not_json"),
        ([Event("added", {"amount": 1}), Event("added", {})], "unappliable"),
    ],
)
def test_an_output_that_cannot_be_sent_takes_the_whole_decision_with_it(result: object, code: str) -> None:
    desk = Desk(custom(lambda: result))
    desk.take(command(1))
    plan = desk.take(command(2, "custom"), command(3))
    assert outcomes(plan) == ["dead", "decided"]
    assert plan.commit.dead[0].code == code
    # Nothing of it stayed: neither state nor version nor chain.
    assert (desk.total(), desk.heads["a"].version) == (2, 2)
    assert [output.name for output in desk.outputs] == ["added", "dead_letter", "dead_lettered", "added"]


@pytest.mark.parametrize(
    "error",
    [
        ValueError("boom"),
        ExceptionGroup("many", [ValueError("boom")]),
        SessionLost("mine"),
        Fenced("mine"),
        StoreBroken("mine"),
        trio.TooSlowError(),
        OSError(5, "\udcff"),
        RuntimeError("x" * 10_000),
    ],
)
def test_whatever_a_handler_raises_is_its_own_failure(error: Exception) -> None:
    desk = Desk(custom(raising(error)))
    plan = desk.take(command(1, "custom"), command(2, entity_id="b"))
    assert outcomes(plan) == ["failed", "decided"]
    reason = plan.commit.attempts[0].error
    assert reason.startswith(type(error).__name__)
    assert len(reason.encode()) <= 2000
    desk.now += 10
    assert outcomes(desk.take(command(1, "custom"))) == ["dead"]


unfit: Any = ValueError("not a text")


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (Refused("x" * 200_000), "refused"),
        (Refused("\udcff"), "refused"),
        (Refused(unfit), "refused"),
        (Refused("no", name="a b"), "dead"),
        (Refused("no", name="conflict"), "dead"),
        (Refused("no", field="x" * 200_000), "dead"),
        (Refused("no", code=unfit), "dead"),
        (Poison("x" * 200_000), "dead"),
        (Poison("\udcff", field="\udcff"), "dead"),
        (Poison(unfit, code=unfit, field=unfit), "dead"),
    ],
)
def test_a_verdict_of_any_words_can_be_stored(error: Exception, outcome: str) -> None:
    desk = Desk(custom(raising(error)))
    plan = desk.take(command(1, "custom"), command(2))
    assert outcomes(plan) == [outcome, "decided"]
    for output in plan.commit.outputs:
        assert len(output.body) <= desk.body_max


def test_a_query_that_fails_holds_nobody() -> None:
    desk = Desk()
    sent = command(1, "get", idempotency_key=None, payload={"explode": True})
    plan = desk.take(sent, sent, command(2))
    assert outcomes(plan) == ["failed", "held", "decided"]
    assert plan.commit.attempts[0].entity_id is None
    desk.now += 10
    assert outcomes(desk.take(sent)) == ["dead"]


# --- alone, and on the edge of the limit


async def test_a_suspect_runs_alone_or_not_at_all() -> None:
    desk = Desk()
    suspect = desk.read(command(1))
    suspect.suspect = True
    assert outcomes(await desk.turn(suspect)) == ["held"]
    suspect.alone = True
    assert outcomes(await desk.turn(suspect)) == ["decided"]


async def test_an_attempt_in_progress_is_counted_once() -> None:
    """Its row was committed before the call: what is written afterwards says the same number."""
    calls: list[str] = []

    def fail() -> object:
        calls.append("called")
        raise RuntimeError("boom")

    desk = Desk(custom(fail), policy=RetryPolicy(limit=4, delays_s=(1.0,)))
    for made in (1, 2, 3):
        alone = desk.read(command(1, "custom"))
        alone.suspect = alone.alone = True
        desk.waiting.fail(Attempt("k1", "a", made, 0.0, 1000.0, 1000.0, ""), None)
        plan = await desk.turn(alone)
        assert len(calls) == made
        if made < 3:
            assert [row.attempts for row in plan.commit.attempts] == [made]
        desk.now += 10
    assert (outcomes(plan), plan.commit.dead[0].attempts) == (["dead"], 3)


async def test_who_died_too_often_is_not_called_again() -> None:
    calls: list[int] = []
    desk = Desk(custom(lambda: calls.append(1)))
    desk.waiting.fail(Attempt("k1", "a", 2, 0.0, 900.0, 990.0, ""), None)
    plan = await desk.turn(desk.read(command(1, "custom")))
    assert (outcomes(plan), calls) == (["dead"], [])
    (dead,) = plan.commit.dead
    assert (dead.attempts, dead.first_at, dead.last_at) == (2, 900.0, 990.0)
    assert "its process died" in dead.reason


def test_when_too_many_wait_the_one_they_wait_for_is_given_up() -> None:
    desk = Desk(held_max=2)
    desk.take(command(1, "explode"))
    assert outcomes(desk.take(command(2))) == ["held"]
    plan = desk.take(command(3), command(4, entity_id="b"))
    assert sorted(outcomes(plan)) == ["dead", "decided", "held"]
    (dead,) = plan.commit.dead
    assert (dead.key, dead.code) == ("k1", "hold_full")
    assert desk.waiting.attempt("k1") is None
    assert outcomes(desk.take(command(2), command(3))) == ["decided", "decided"]


async def test_what_waited_in_order_is_released_in_one_turn() -> None:
    desk = Desk()
    await desk.turn(desk.read(command(1, "explode")))
    late = [command(n) for n in range(2, 8)]
    assert outcomes(await desk.turn(*[desk.read(sent) for sent in late])) == ["held"] * 6
    desk.now += 10
    await desk.turn(desk.read(command(1, "explode")))
    # They come back in any order; nobody passes an earlier one.
    mixed = [desk.read(sent) for sent in [late[1], *late]]
    assert outcomes(await desk.turn(*mixed)) == ["held", *["decided"] * 6]


def test_when_too_many_wait_a_failure_is_given_up_at_once() -> None:
    desk = Desk(held_max=0)
    plan = desk.take(command(1, "explode"), command(2, entity_id="b"))
    assert outcomes(plan) == ["dead", "decided"]
    assert (plan.commit.dead[0].code, plan.commit.dead[0].attempts) == ("hold_full", 1)
    assert plan.commit.attempts == []


def test_a_redriven_command_is_decided_under_new_ids() -> None:
    desk = Desk()
    first = desk.take(command(1, "poison"))
    del desk.keys["k1"]
    desk.generations["k1"] = 1
    second = desk.take(command(1, "poison"))
    assert outcomes(second) == ["dead"]
    assert not {o.msg_id for o in first.commit.outputs} & {o.msg_id for o in second.commit.outputs}
    assert second.commit.keys[0].generation == second.commit.dead[0].generation == 1


# --- async handlers


@attrs.define(eq=False)
class Gate:
    """Handlers that wait until they are let through, and who is inside."""

    inside: list[str] = attrs.field(factory=list)
    log: list[str] = attrs.field(factory=list)
    most: int = 0
    opened: trio.Event = attrs.field(factory=trio.Event)

    def agent(self) -> Agent[int]:
        agent = counter()

        @agent.command("pass")
        async def enter(total: int, payload: JsonObject, ctx: Context) -> Event:
            who = f"{ctx.entity_id}{payload['n']}"
            self.log.append(f"+{who}")
            self.inside.append(who)
            self.most = max(self.most, len(self.inside))
            await self.opened.wait()
            self.inside.remove(who)
            self.log.append(f"-{who}")
            return Event("added", {"amount": 1})

        @agent.command("stuck")
        async def stuck(total: int, payload: JsonObject, ctx: Context) -> Event:
            await trio.sleep_forever()
            raise AssertionError("unreachable")

        @agent.command("hasty")
        async def hasty(total: int, payload: JsonObject, ctx: Context) -> Event:
            with trio.fail_after(0):
                await trio.sleep_forever()
            raise AssertionError("unreachable")

        return agent


async def test_entities_run_side_by_side_and_each_in_order() -> None:
    gate = Gate()
    desk = Desk(gate.agent())
    batch = [
        desk.read(command(n, "pass", entity_id=entity, payload={"n": n}))
        for n, entity in enumerate(["a", "b", "a", None, None, "b"])
    ]
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(desk.turn, *batch)
            await trio.testing.wait_all_tasks_blocked()
            assert sorted(gate.inside) == ["None3", "None4", "a0", "b1"]
            gate.opened.set()
    assert gate.most == 4
    for first, then in (("-a0", "+a2"), ("-b1", "+b5")):
        assert gate.log.index(first) < gate.log.index(then)
    # Numbered in stream order, whatever the order of the handlers.
    assert [output.key for output in desk.outputs] == [f"k{n}" for n in range(6)]
    assert desk.heads["a"].version == desk.heads["b"].version == 2


async def test_a_repeated_key_is_one_call_also_side_by_side() -> None:
    gate = Gate()
    gate.opened.set()
    desk = Desk(gate.agent())
    sent = command(1, "pass", entity_id=None, payload={"n": 1})
    other = attrs.evolve(sent, id="c2", entity_id="b")
    with trio.fail_after(10):
        plan = await desk.turn(desk.read(sent), desk.read(other), desk.read(sent))
    assert outcomes(plan) == ["decided", "refused", "duplicate"]
    assert gate.log == ["+None1", "-None1"]


async def test_a_failed_key_is_not_tried_in_another_entitys_place() -> None:
    """Two handlers at once on one entity would write one version twice."""
    desk = Desk(Gate().agent())
    failing = command(1, "explode")
    batch = [failing, attrs.evolve(failing, action="add", entity_id="b"), command(2, entity_id="b")]
    with trio.fail_after(10):
        plan = await desk.turn(*[desk.read(sent) for sent in batch])
    assert outcomes(plan) == ["failed", "held", "decided"]


async def test_a_handler_over_its_limit_is_a_failed_attempt(autojump_clock: trio.testing.MockClock) -> None:
    desk = Desk(Gate().agent(), policy=RetryPolicy(limit=3, handler_limit_s=7.0))
    with trio.fail_after(60):
        plan = await desk.turn(desk.read(command(1, "stuck")), desk.read(command(2, entity_id="b")))
    assert outcomes(plan) == ["failed", "decided"]
    assert plan.commit.attempts[0].error == "the handler took longer than 7 s and was cancelled"


async def test_a_time_out_of_the_handlers_own_is_not_blamed_on_the_limit() -> None:
    desk = Desk(Gate().agent())
    with trio.fail_after(10):
        plan = await desk.turn(desk.read(command(1, "hasty")))
    assert plan.commit.attempts[0].error.startswith("TooSlowError")
