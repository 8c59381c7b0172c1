"""The fate of dead letters: redriven, discarded, each once, and refused where it cannot be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import orjson
import pytest
import trio
from doubles import SCOPE, USER, Desk, command, counter, delivery, event, outcomes, told_by

from meshforge_trio.agent import Agent, Context, Event
from meshforge_trio.envelope import CommandEnvelope, JsonObject, SecurityContext, encode
from meshforge_trio.errors import Misconfigured, Poison
from meshforge_trio.intake import read_delivery
from meshforge_trio.plan import Plan
from meshforge_trio.security import Violation
from meshforge_trio.store.port import Output
from meshforge_trio.subjects import DELIVER, DISCARD, REDRIVE

SYSTEM = SecurityContext("kim", "system")


@attrs.define(eq=False)
class Mendable:
    """An agent whose handlers work once they are mended."""

    mended: bool = False

    def agent(self) -> Agent[int]:
        agent = counter()

        @agent.command("fragile")
        def fragile(total: int, payload: JsonObject, ctx: Context) -> Event:
            return self.act(payload)

        @agent.on("source", "opened")
        def opened(total: int, payload: JsonObject, ctx: Context) -> Event:
            return self.act(payload)

        return agent

    def act(self, payload: JsonObject) -> Event:
        if not self.mended:
            raise Poison("broken", code="broken")
        return Event("added", {"amount": payload.get("amount", 1)})


def fate(action: str, key: str, *, number: int = 90, generation: int = 0, **fields: Any) -> CommandEnvelope:
    payload = {"key": key, "generation": generation, "actor": "kim", "reason": "mended", **fields}
    return command(number, action, entity_id=None, payload=payload, security_context=SYSTEM)


def again(plan: Plan) -> Output:
    """The command that a redrive sends."""
    (output,) = [output for output in plan.commit.outputs if output.kind == "command"]
    return output


def arrived(desk: Desk, output: Output) -> Plan:
    return trio.run(desk.turn, desk.arrive(output.subject, output.body))


def test_a_redriven_command_runs_under_its_own_key_and_a_new_id() -> None:
    mendable = Mendable()
    desk = Desk(mendable.agent())
    first = command(1, "fragile", payload={"amount": 7}, trace_id="a" * 32)
    assert outcomes(desk.take(first)) == ["dead"]
    mendable.mended = True
    plan = desk.take(fate(REDRIVE, "k1"))
    assert outcomes(plan) == ["decided"]
    name, told = told_by(attrs.evolve(plan.verdicts[0], outputs=[plan.commit.outputs[0]]))
    output = again(plan)
    assert (name, told) == (
        "redriven",
        {"key": "k1", "generation": 0, "actor": "kim", "reason": "mended", "command_id": output.event_id},
    )
    sent = orjson.loads(output.body)
    assert sent["id"] == output.msg_id == output.event_id != first.id
    assert (sent["idempotency_key"], sent["entity_id"], sent["payload"]) == ("k1", "a", {"amount": 7})
    assert (sent["trace_id"], sent["causation_id"]) == ("a" * 32, "c90")
    assert sent["security_context"] == {"principal_id": "kim", "principal_type": "user"}
    assert outcomes(arrived(desk, output)) == ["decided"]
    assert desk.total() == 7
    assert (desk.keys["k1"].outcome, desk.keys["k1"].generation) == ("decided", 1)


def test_redriving_twice_has_one_effect() -> None:
    mendable = Mendable()
    desk = Desk(mendable.agent())
    desk.take(command(1, "fragile"))
    mendable.mended = True
    order = fate(REDRIVE, "k1")
    plan = desk.take(order)
    assert outcomes(desk.take(order)) == ["duplicate"]
    other = desk.take(fate(REDRIVE, "k1", number=91))
    assert outcomes(other) == ["refused"]
    assert told_by(other.verdicts[0])[1]["code"] == "not_waiting"
    assert outcomes(arrived(desk, again(plan))) == ["decided"]
    assert outcomes(arrived(desk, again(plan))) == ["duplicate"]
    assert outcomes(desk.take(command(1, "fragile"))) == ["duplicate"], "the first sending, again"
    assert desk.total() == 1


def test_two_redrives_of_one_dead_letter_in_one_turn() -> None:
    """Written both, the transaction would be refused as stale each time it is decided anew."""
    desk = Desk(Mendable().agent())
    desk.take(command(1, "fragile"))
    plan = desk.take(fate(REDRIVE, "k1"), fate(DISCARD, "k1", number=91))
    assert outcomes(plan) == ["decided", "refused"]
    assert (plan.commit.redriven, plan.commit.discarded) == ([("k1", 0)], [])


def test_what_fails_again_is_a_dead_letter_of_the_next_generation() -> None:
    mendable = Mendable()
    desk = Desk(mendable.agent())
    first = desk.take(command(1, "fragile"))
    second = arrived(desk, again(desk.take(fate(REDRIVE, "k1"))))
    assert outcomes(second) == ["dead"]
    assert {o.msg_id for o in first.commit.outputs}.isdisjoint(o.msg_id for o in second.commit.outputs)
    assert outcomes(desk.take(fate(REDRIVE, "k1", number=91))) == ["refused"], "of generation 0"
    mendable.mended = True
    third = desk.take(fate(REDRIVE, "k1", number=92, generation=1))
    assert outcomes(arrived(desk, again(third))) == ["decided"]
    assert desk.keys["k1"].generation == 2


def test_a_discarded_dead_letter_stays_dead() -> None:
    desk = Desk(Mendable().agent())
    desk.take(command(1, "fragile"))
    plan = desk.take(fate(DISCARD, "k1"))
    name, told = told_by(plan.verdicts[0])
    assert name == "discarded"
    assert told == {"key": "k1", "generation": 0, "actor": "kim", "reason": "mended"}
    assert outcomes(desk.take(fate(REDRIVE, "k1", number=91))) == ["refused"]
    assert outcomes(desk.take(command(1, "fragile"))) == ["duplicate"]
    assert desk.keys["k1"].outcome == "dead"


def test_an_event_is_redriven_to_its_receiver_alone() -> None:
    mendable = Mendable()
    desk = Desk(mendable.agent())
    assert outcomes(desk.take(event(5, "opened", payload={"amount": 3}))) == ["dead"]
    (key,) = desk.keys
    mendable.mended = True
    output = again(desk.take(fate(REDRIVE, key)))
    assert output.subject == f"cmd.t.w.counter.{DELIVER}"
    plan = arrived(desk, output)
    assert outcomes(plan) == ["decided"]
    assert (desk.keys[key].outcome, desk.total()) == ("decided", 3)
    assert outcomes(desk.take(event(5, "opened", payload={"amount": 3}))) == ["duplicate"]


def test_a_redriven_event_that_fails_can_be_redriven_again() -> None:
    mendable = Mendable()
    desk = Desk(mendable.agent())
    desk.take(event(5, "opened"))
    (key,) = desk.keys
    assert outcomes(arrived(desk, again(desk.take(fate(REDRIVE, key))))) == ["dead"]
    mendable.mended = True
    output = again(desk.take(fate(REDRIVE, key, number=91, generation=1)))
    assert outcomes(arrived(desk, output)) == ["decided"]


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        ({}, "bad_payload"),
        ({"key": 5}, "bad_payload"),
        ({"key": ""}, "bad_payload"),
        ({"key": "k1", "generation": 0, "reason": "x"}, "bad_payload"),
        ({"key": "k1", "generation": 0, "actor": "kim", "reason": "x" * 2001}, "bad_payload"),
        ({"key": "k1", "generation": "0", "actor": "kim", "reason": "x"}, "not_waiting"),
        ({"key": "k1", "actor": "kim", "reason": "x"}, "not_waiting"),
        ({"key": "k9", "generation": 0, "actor": "kim", "reason": "x"}, "not_waiting"),
        ({"key": "k2", "generation": 0, "actor": "kim", "reason": "x"}, "not_waiting"),
    ],
)
def test_a_fate_for_nothing_is_refused(payload: Mapping[str, Any], code: str) -> None:
    desk = Desk(Mendable().agent())
    desk.take(command(1, "fragile"), command(2))
    plan = desk.take(command(90, REDRIVE, payload=dict(payload), security_context=SYSTEM))
    assert outcomes(plan) == ["refused"]
    assert told_by(plan.verdicts[0])[1]["code"] == code
    assert not plan.commit.redriven


def test_what_could_only_fail_again_is_not_redriven() -> None:
    desk = Desk()
    trio.run(desk.turn, desk.arrive("cmd.t.w.counter.add", b"no json"))
    (raw,) = desk.keys
    plan = desk.take(fate(REDRIVE, raw))
    assert told_by(plan.verdicts[0])[1]["code"] == "not_redrivable"
    assert outcomes(desk.take(fate(DISCARD, raw, number=91))) == ["decided"]


@pytest.mark.parametrize("action", [REDRIVE, DISCARD, DELIVER, "sys_else"])
@pytest.mark.parametrize("principal", [USER, SecurityContext("other", "agent"), SecurityContext("kim", "service")])
def test_actions_of_the_runtime_are_for_the_system(action: str, principal: SecurityContext) -> None:
    order = attrs.evolve(fate(action, "k1"), security_context=principal)
    incoming = read_delivery(delivery(f"cmd.t.w.counter.{action}", encode(order)), SCOPE, counter())
    assert isinstance(incoming.fault, Violation)
    assert incoming.fault.code == "not_system"


@pytest.mark.parametrize(
    ("inner", "code"),
    [
        (None, "bad_shape"),
        ({"id": "e1"}, "missing_field"),
        (orjson.loads(encode(event(1, "unheard"))), "not_subscribed"),
        (orjson.loads(encode(attrs.evolve(event(1, "added"), tenant="other"))), "scope_mismatch"),
    ],
)
def test_what_is_delivered_must_be_an_event_that_is_received(inner: object, code: str) -> None:
    order = command(1, DELIVER, payload={"event": inner}, security_context=SecurityContext("counter", "agent"))
    incoming = read_delivery(delivery(f"cmd.t.w.counter.{DELIVER}", encode(order)), SCOPE, counter())
    assert isinstance(incoming.fault, Poison)
    assert incoming.fault.code == code


def test_an_agent_has_no_action_of_the_runtime() -> None:
    with pytest.raises(Misconfigured, match="runtime's"):
        counter().command(REDRIVE)
