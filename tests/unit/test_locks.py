"""The lock manager: leases by the runtime's clock, tokens that only rise, nobody made to wait."""

from __future__ import annotations

from typing import Any, Final

import attrs
import pytest
import trio
from doubles import Desk, command, delivery, outcomes, told_by
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from meshforge_trio.agent import Deadline
from meshforge_trio.envelope import CommandEnvelope, SecurityContext, encode
from meshforge_trio.intake import read_delivery
from meshforge_trio.locks import EXPIRE, Lock, LockManagerAdapter
from meshforge_trio.plan import Plan
from meshforge_trio.security import Violation
from meshforge_trio.subjects import Scope, command_subject

LOCKS: Final = Scope("t", "w", "sys_lock_manager")


@attrs.define(eq=False)
class Locks:
    """A desk with a lock manager at it, and what is said to it."""

    desk: Desk = attrs.field(factory=lambda: Desk(LockManagerAdapter(), LOCKS))
    number: int = 0

    def ask(self, action: str, resource: str = "r", owner: str | None = "kim", **payload: Any) -> tuple[str, Any]:
        plan = self.plan(action, resource, owner, **payload)
        return told_by(plan.verdicts[0])

    def plan(self, action: str, resource: str = "r", owner: str | None = "kim", **payload: Any) -> Plan:
        self.number += 1
        if owner is not None:
            payload["owner_id"] = owner
        fields: dict[str, Any] = {"entity_id": None, "payload": {"resource_id": resource, **payload}}
        if action == "get":
            fields["idempotency_key"] = None
        return self.desk.take(command(self.number, action, scope=LOCKS, **fields))

    def lock(self, resource: str = "r") -> Lock:
        state = self.desk.total(resource)
        assert isinstance(state, Lock)
        return state

    def deadline(self, resource: str = "r") -> Deadline | None:
        return self.desk.adapter.deadline(self.lock(resource), self.desk.now)

    def fire(self, deadline: Deadline, resource: str = "r") -> Plan:
        self.number += 1
        order = CommandEnvelope(
            id=f"c{self.number}",
            tenant="t",
            workspace="w",
            agent=LOCKS.agent,
            action=deadline.action,
            idempotency_key=f"deadline:{resource}:{deadline.name}",
            entity_id=resource,
            payload=deadline.payload,
            security_context=SecurityContext("deadlines", "system"),
        )
        return self.desk.take(order)


def test_the_first_gets_it_and_the_next_is_denied_at_once() -> None:
    locks = Locks()
    name, told = locks.ask("acquire", ttl_seconds=30.0)
    assert (name, told) == (
        "acquired",
        {
            "resource_id": "r",
            "owner_id": "kim",
            "expires_at": 1030.0,
            "fencing_token": 1,
            "ttl_seconds": 30.0,
            "entity_version": 1,
        },
    )
    name, told = locks.ask("acquire", owner="lee", ttl_seconds=30.0)
    assert name == "denied"
    assert (told["resource_id"], told["requested_by"], told["current_owner"]) == ("r", "lee", "kim")
    assert told["reason"]
    assert locks.lock().owner_id == "kim"


def test_resources_do_not_know_of_each_other() -> None:
    locks = Locks()
    assert locks.ask("acquire", "a", ttl_seconds=1.0)[0] == "acquired"
    assert locks.ask("acquire", "b", "lee", ttl_seconds=1.0)[1]["fencing_token"] == 1


def test_its_holder_may_acquire_it_again_for_longer_and_never_for_less() -> None:
    locks = Locks()
    locks.ask("acquire", ttl_seconds=30.0)
    locks.desk.now += 10
    assert locks.ask("acquire", ttl_seconds=60.0)[1]["expires_at"] == 1070.0
    name, told = locks.ask("acquire", ttl_seconds=5.0)
    assert (name, told["expires_at"], told["fencing_token"]) == ("acquired", 1070.0, 1)


def test_after_its_time_another_gets_it_under_a_higher_token() -> None:
    locks = Locks()
    locks.ask("acquire", ttl_seconds=30.0)
    locks.desk.now += 30
    plan = locks.plan("acquire", owner="lee", ttl_seconds=30.0)
    assert [output.name for output in plan.commit.outputs] == ["expired", "acquired"]
    assert (locks.lock().owner_id, locks.lock().token) == ("lee", 2)


def test_a_refresh_is_its_holders_and_only_in_time() -> None:
    locks = Locks()
    assert locks.ask("refresh", ttl_seconds=30.0)[0] == "denied", "nobody holds it"
    locks.ask("acquire", ttl_seconds=30.0)
    assert locks.ask("refresh", owner="lee", ttl_seconds=30.0)[0] == "denied"
    locks.desk.now += 29
    name, told = locks.ask("refresh", ttl_seconds=30.0)
    assert (name, told["expires_at"], told["fencing_token"]) == ("refreshed", 1059.0, 1)
    locks.desk.now += 30
    assert locks.ask("refresh", ttl_seconds=30.0)[0] == "expired"
    assert not locks.lock().given


def test_a_release_is_its_holders_and_keeps_the_token() -> None:
    locks = Locks()
    locks.ask("acquire", ttl_seconds=30.0)
    assert locks.ask("release", owner="lee")[0] == "denied"
    assert locks.ask("release")[0] == "released"
    assert locks.ask("release")[0] == "denied"
    assert locks.ask("acquire", owner="lee", ttl_seconds=30.0)[1]["fencing_token"] == 2
    locks.desk.now += 31
    assert locks.ask("release", owner="lee")[0] == "expired"


def test_it_can_be_asked_for() -> None:
    locks = Locks()
    assert locks.ask("get", owner=None)[0] == "not_found"
    locks.ask("acquire", ttl_seconds=30.0)
    assert locks.ask("get", owner=None)[1]["owner_id"] == "kim"
    locks.desk.now += 30
    assert locks.ask("get", owner=None) == ("not_found", {"resource_id": "r", "fencing_token": 1, "entity_version": 1})


def test_a_sent_again_acquire_gets_the_first_answer_and_no_second_lease() -> None:
    locks = Locks()
    first = command(1, "acquire", scope=LOCKS, entity_id=None)
    first = attrs.evolve(first, payload={"resource_id": "r", "owner_id": "kim", "ttl_seconds": 30.0})
    assert outcomes(locks.desk.take(first)) == ["decided"]
    locks.desk.now += 40
    assert outcomes(locks.desk.take(attrs.evolve(first, id="c2"))) == ["duplicate"]
    assert locks.lock().until == 1030.0


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        ({"resource_id": "r", "owner_id": "kim", "ttl_seconds": 0.0}, "ttl_seconds"),
        ({"resource_id": "r", "owner_id": "kim", "ttl_seconds": -1.0}, "ttl_seconds"),
        ({"resource_id": "r", "owner_id": "kim", "ttl_seconds": 3601.0}, "ttl_seconds"),
        ({"resource_id": "r", "owner_id": "kim"}, "payload"),
        ({"resource_id": "r", "owner_id": "", "ttl_seconds": 1.0}, "owner_id"),
        ({"resource_id": "r", "owner_id": "x" * 257, "ttl_seconds": 1.0}, "owner_id"),
        ({"resource_id": "", "owner_id": "kim", "ttl_seconds": 1.0}, "resource_id"),
        ({"resource_id": 5, "owner_id": "kim", "ttl_seconds": 1.0}, "payload"),
        ({"owner_id": "kim", "ttl_seconds": 1.0}, "payload"),
        ({"resource_id": "r", "owner_id": "kim", "ttl_seconds": "1"}, "payload"),
    ],
)
def test_what_makes_no_lease_is_refused(payload: dict[str, Any], field: str) -> None:
    plan = Locks().desk.take(command(1, "acquire", scope=LOCKS, entity_id=None, payload=payload))
    assert outcomes(plan) == ["refused"]
    assert told_by(plan.verdicts[0])[1]["field"] == field


def test_another_entity_than_the_resource_is_refused() -> None:
    payload = {"resource_id": "r", "owner_id": "kim", "ttl_seconds": 1.0}
    plan = Locks().desk.take(command(1, "acquire", scope=LOCKS, entity_id="x", payload=payload))
    assert told_by(plan.verdicts[0])[1]["field"] == "entity_id"


# -- the deadline --------------------------------------------------------------------------------------------------


def test_the_deadline_ends_the_lease_it_was_set_for() -> None:
    locks = Locks()
    assert locks.deadline() is None
    locks.ask("acquire", ttl_seconds=30.0)
    deadline = locks.deadline()
    assert deadline is not None
    assert (deadline.in_s, deadline.action) == (30.0, EXPIRE)
    locks.desk.now += 30
    assert [output.name for output in locks.fire(deadline).commit.outputs] == ["expired"]
    assert outcomes(locks.fire(deadline)) == ["duplicate"], "it fires once"
    assert locks.deadline() is None


def test_a_deadline_that_was_overtaken_does_nothing() -> None:
    locks = Locks()
    locks.ask("acquire", ttl_seconds=30.0)
    first = locks.deadline()
    locks.desk.now += 20
    locks.ask("refresh", ttl_seconds=30.0)
    second = locks.deadline()
    assert first is not None
    assert second is not None
    assert first.name != second.name
    locks.desk.now += 10
    assert [output.name for output in locks.fire(first).commit.outputs] == ["accepted"]
    assert locks.lock().given
    locks.ask("release")
    locks.desk.now += 20
    assert [output.name for output in locks.fire(second).commit.outputs] == ["accepted"]


def test_a_clock_that_was_set_back_makes_no_lease_longer_than_it_was_given_for() -> None:
    locks = Locks()
    locks.ask("acquire", ttl_seconds=30.0)
    locks.desk.now -= 3600
    deadline = locks.deadline()
    assert deadline is not None
    assert deadline.in_s == 30.0
    assert [output.name for output in locks.fire(deadline).commit.outputs] == ["expired"]


@pytest.mark.parametrize("kind", ["user", "agent", "service"])
def test_nobody_but_the_system_ends_a_lease(kind: Any) -> None:
    order = command(1, EXPIRE, scope=LOCKS, entity_id="r", security_context=SecurityContext("kim", kind))
    incoming = read_delivery(delivery(command_subject(LOCKS, EXPIRE), encode(order)), LOCKS, LockManagerAdapter())
    assert isinstance(incoming.fault, Violation)


def test_a_client_has_no_key_of_the_deadlines() -> None:
    payload = {"resource_id": "r", "owner_id": "kim", "ttl_seconds": 1.0}
    order = command(1, "acquire", scope=LOCKS, entity_id=None, idempotency_key="deadline:x", payload=payload)
    assert outcomes(Locks().desk.take(order)) == ["dead"]


# -- against a model -----------------------------------------------------------------------------------------------

OWNERS = st.sampled_from(["kim", "lee", "max"])
RESOURCES = st.sampled_from(["r", "s"])
TTLS = st.sampled_from([1.0, 10.0, 30.0])


class Machine(RuleBasedStateMachine):
    """A dictionary of (owner, until, token) knows what every answer must be, whatever is asked in whatever order."""

    def __init__(self) -> None:
        super().__init__()
        self.locks = Locks()
        self.held: dict[str, tuple[str, float]] = {}
        self.tokens: dict[str, int] = {}

    def holder(self, resource: str) -> str | None:
        owner, until = self.held.get(resource, ("", 0.0))
        return owner if until > self.locks.desk.now else None

    @rule(resource=RESOURCES, owner=OWNERS, ttl=TTLS)
    def acquire(self, resource: str, owner: str, ttl: float) -> None:
        holder = self.holder(resource)
        plan = self.locks.plan("acquire", resource, owner, ttl_seconds=ttl)
        last = plan.commit.outputs[-1]
        if holder not in (None, owner):
            assert last.name == "denied"
            return
        assert last.name == "acquired"
        until = self.locks.desk.now + ttl
        if holder == owner:
            until = max(until, self.held[resource][1])
        else:
            self.tokens[resource] = self.tokens.get(resource, 0) + 1
        self.held[resource] = (owner, until)

    @rule(resource=RESOURCES, owner=OWNERS, ttl=TTLS)
    def refresh(self, resource: str, owner: str, ttl: float) -> None:
        holder = self.holder(resource)
        (output,) = self.locks.plan("refresh", resource, owner, ttl_seconds=ttl).commit.outputs
        assert (output.name == "refreshed") == (holder == owner)
        if holder == owner:
            self.held[resource] = (owner, max(self.locks.desk.now + ttl, self.held[resource][1]))

    @rule(resource=RESOURCES, owner=OWNERS)
    def release(self, resource: str, owner: str) -> None:
        holder = self.holder(resource)
        (output,) = self.locks.plan("release", resource, owner).commit.outputs
        assert (output.name == "released") == (holder == owner)
        if holder == owner:
            del self.held[resource]

    @rule(seconds=st.sampled_from([0.5, 5.0, 60.0]))
    def pass_time(self, seconds: float) -> None:
        self.locks.desk.now += seconds

    @rule(resource=RESOURCES)
    def deadline_comes(self, resource: str) -> None:
        deadline = self.locks.deadline(resource)
        if deadline is not None and deadline.in_s == 0.0:
            self.locks.fire(deadline, resource)
            assert not self.locks.lock(resource).given

    @invariant()
    def states_are_those_of_the_model(self) -> None:
        for resource in ("r", "s"):
            lock = self.locks.lock(resource)
            holder = self.holder(resource)
            if holder is not None:
                assert (lock.owner_id, lock.until) == self.held[resource]
            else:
                assert not lock.given or lock.until <= self.locks.desk.now
            assert lock.token == self.tokens.get(resource, 0)


TestMachine = Machine.TestCase


# -- fences --------------------------------------------------------------------------------------------------------


def fenced(number: int, token: int, resource: str = "r", **fields: Any) -> CommandEnvelope:
    return command(number, resource_id=resource, fencing_token=token, **fields)


def test_a_command_under_an_older_lease_is_refused() -> None:
    desk = Desk()
    batch = [fenced(1, 5), fenced(2, 5), fenced(3, 4), fenced(4, 1, "s"), fenced(5, 6)]
    assert outcomes(desk.take(*batch)) == ["decided", "decided", "refused", "decided", "decided"]
    assert desk.fences == {"r": 6, "s": 1}
    plan = desk.take(fenced(6, 5), command(7))
    assert outcomes(plan) == ["refused", "decided"]
    assert told_by(plan.verdicts[0])[1]["code"] == "stale_fencing_token"
    assert outcomes(desk.take(fenced(6, 9))) == ["duplicate"], "the key stands for the command, not for the lease"


def test_what_is_refused_for_its_version_leaves_no_fence() -> None:
    desk = Desk()
    assert outcomes(desk.take(fenced(1, 5, expected_version=7))) == ["conflict"]
    assert desk.fences == {}


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"resource_id": "r"}, "resource_id"),
        ({"fencing_token": 1}, "fencing_token"),
        ({"resource_id": "", "fencing_token": 1}, "resource_id"),
        ({"resource_id": "x" * 257, "fencing_token": 1}, "resource_id"),
        ({"resource_id": "r", "fencing_token": 0}, "fencing_token"),
        ({"resource_id": "r", "fencing_token": 2**63}, "fencing_token"),
    ],
)
def test_half_a_fence_is_named(fields: dict[str, Any], field: str) -> None:
    desk = Desk()
    order = command(1, **fields)
    plan = trio.run(desk.turn, desk.arrive("cmd.t.w.counter.add", encode(order)))
    assert (plan.commit.dead[0].code, outcomes(plan)) == (f"bad_{field}", ["dead"])
