"""Agents to be killed: between them they take every path of the protocol.

`counter` keeps a sum: decisions that depend on state, refusals, one that is not repeatable, one that always raises, two
that fail until the sum covers them, one that kills its process and one that leaves it, one that never returns, one
whose event no broker takes, two that send commands, a query that always raises. `audit` listens to it and takes its
commands. `patient` awaits in its handlers, for as long as it is told. `moody` has a policy of its own for what its
handlers raise.
"""

from __future__ import annotations

import os
import random
import signal

import attrs
import trio

from chaos.sealing import codecs
from meshforge_trio.agent import Agent, Context, Event, Reply, Send
from meshforge_trio.envelope import EventEnvelope, JsonObject
from meshforge_trio.errors import Poison, Refused
from meshforge_trio.locks import LockManagerAdapter
from meshforge_trio.policy import RetryPolicy
from meshforge_trio.runtime import App

__all__ = [
    "app",
    "audit",
    "counter",
    "counter_and_audit",
    "counter_and_moody",
    "counter_only",
    "counter_sealed",
    "locks_and_counter",
    "moody",
    "patient",
    "patient_only",
]


@attrs.frozen
class Amount:
    """What to add or take."""

    amount: int = 0


@attrs.frozen
class Added:
    amount: int
    total: int
    entity_version: int = 0


@attrs.frozen
class Drawn:
    amount: int
    total: int
    entity_version: int = 0


@attrs.frozen
class Rolled:
    pips: int
    entity_version: int = 0


@attrs.frozen
class Wait:
    """For how many seconds."""

    seconds: float


@attrs.frozen
class Waited:
    seconds: float
    entity_version: int = 0


counter: Agent[int] = Agent("counter", state=int, initial=int)


@counter.command("add")
def add(total: int, payload: Amount, ctx: Context) -> Added:
    return Added(payload.amount, total + payload.amount)


@counter.command("take")
def take(total: int, payload: Amount, ctx: Context) -> Added:
    if payload.amount > total:
        raise Refused(f"{payload.amount} is more than {total}", code="insufficient", field="amount")
    return Added(-payload.amount, total - payload.amount)


@counter.command("roll")
def roll(total: int, payload: Amount, ctx: Context) -> Rolled:
    """Decides differently each time it is asked: a second decision could not hide behind the first."""
    return Rolled(random.SystemRandom().randint(1, 1_000_000_000))


@counter.command("tell")
def tell(total: int, payload: Amount, ctx: Context) -> list[object]:
    note = Send("audit", "note", {"text": f"total {total}"}, entity_id=ctx.entity_id)
    return [Added(0, total), note]


@counter.command("fund")
def fund(total: int, payload: Amount, ctx: Context) -> list[object]:
    return [Added(0, total), Send("moody", "add", {"amount": payload.amount}, entity_id=ctx.entity_id)]


@counter.command("explode")
def explode(total: int, payload: Amount, ctx: Context) -> Added:
    raise RuntimeError("boom")


@counter.command("draw")
def draw(total: int, payload: Amount, ctx: Context) -> Drawn:
    """Fails while the sum does not cover it: whoever adds mends it."""
    if payload.amount > total:
        raise ArithmeticError(f"{payload.amount} is more than {total}")
    return Drawn(payload.amount, total - payload.amount)


@counter.command("charge")
def charge(total: int, payload: Amount, ctx: Context) -> Drawn:
    """The same, and gives up at once."""
    if payload.amount > total:
        raise Poison(f"{payload.amount} is more than {total}", code="not_covered")
    return Drawn(payload.amount, total - payload.amount)


@counter.command("quit")
def leave(total: int, payload: Amount, ctx: Context) -> Added:
    """Ends its process in the middle of everything."""
    os._exit(1)


@counter.command("die")
def die(total: int, payload: Amount, ctx: Context) -> Added:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


@counter.command("spin")
def spin(total: int, payload: Amount, ctx: Context) -> Added:
    while True:
        pass


@counter.command("bloat")
def bloat(total: int, payload: Amount, ctx: Context) -> Event:
    """Decides on an event of as many characters: with enough of them, one that no broker takes."""
    return Event("bloated", {"text": "x" * payload.amount})


@counter.query("stumble")
def stumble(total: int, payload: Amount, ctx: Context) -> Reply:
    raise RuntimeError("boom")


@counter.query("get")
def get(total: int, payload: Amount, ctx: Context) -> Reply:
    return Reply("found", {"total": total})


@counter.event("added")
def added(total: int, event: Added) -> int:
    return event.total


@counter.event("rolled")
def rolled(total: int, event: Rolled) -> int:
    return total


@counter.event("bloated")
def bloated(total: int, payload: JsonObject) -> int:
    return total


@counter.event("drawn")
def drawn(total: int, event: Drawn) -> int:
    return event.total


audit: Agent[list[str]] = Agent("audit", state=list, initial=list)


@audit.on("counter", "added")
def saw(lines: list[str], payload: JsonObject, ctx: Context) -> Event:
    return Event("seen", {"amount": payload["amount"]})


def _dice(event: EventEnvelope) -> str:
    return f"dice-{event.entity_id}"


@audit.on("counter", "rolled", entity=_dice)
def saw_dice(lines: list[str], payload: JsonObject, ctx: Context) -> Event:
    return Event("seen", {"amount": payload["pips"]})


@audit.on("counter", "drawn")
def saw_drawn(lines: list[str], payload: JsonObject, ctx: Context) -> Event:
    """Cannot use it in an empty book: a note mends that."""
    if not lines:
        raise Poison(f"nothing is written of {ctx.entity_id}", code="empty")
    return Event("seen", {"amount": -payload["amount"]})


@audit.command("note")
def note(lines: list[str], payload: JsonObject, ctx: Context) -> Event:
    return Event("noted", payload)


@audit.event("seen")
def seen(lines: list[str], payload: JsonObject) -> list[str]:
    return [*lines, str(payload["amount"])]


@audit.event("noted")
def noted(lines: list[str], payload: JsonObject) -> list[str]:
    return [*lines, payload["text"]]


patient: Agent[int] = Agent("patient", state=int, initial=int)


@patient.command("add")
async def add_slowly(total: int, payload: Amount, ctx: Context) -> Added:
    """Decided while other entities' handlers wait as well."""
    await trio.sleep(0.001)
    return Added(payload.amount, total + payload.amount)


@patient.command("wait")
async def wait(total: int, payload: Wait, ctx: Context) -> Waited:
    """Has its delivery in hand for as long as it is told."""
    await trio.sleep(payload.seconds)
    return Waited(payload.seconds)


@patient.command("explode")
async def explode_slowly(total: int, payload: Amount, ctx: Context) -> Added:
    await trio.sleep(0.001)
    raise RuntimeError("boom")


@patient.event("added")
def patiently_added(total: int, event: Added) -> int:
    return event.total


@patient.event("waited")
def waited(total: int, event: Waited) -> int:
    return total


moody: Agent[int] = Agent(
    "moody",
    state=int,
    initial=int,
    retry=RetryPolicy(
        limit=3,
        delays_s=(0.05,),
        hold_entity=False,
        handler_limit_s=0.8,
        transient=(KeyError,),
        poison=(LookupError,),
        refused=(PermissionError,),
    ),
)


@moody.command("add")
async def add_in_a_mood(total: int, payload: Amount, ctx: Context) -> Added:
    return Added(payload.amount, total + payload.amount)


@moody.command("draw")
async def draw_in_a_mood(total: int, payload: Amount, ctx: Context) -> Drawn:
    """Fails while the sum does not cover it, and waits for nobody: whoever adds may pass."""
    if payload.amount > total:
        raise ArithmeticError(f"{payload.amount} is more than {total}")
    return Drawn(payload.amount, total - payload.amount)


@moody.command("forbid")
async def forbid(total: int, payload: Amount, ctx: Context) -> Added:
    raise PermissionError("not you")


@moody.command("miss")
async def miss(total: int, payload: Amount, ctx: Context) -> Added:
    raise IndexError("not there")


@moody.command("stray")
async def stray(total: int, payload: Amount, ctx: Context) -> Added:
    raise KeyError("not there yet")


@moody.command("wait")
async def wait_in_a_mood(total: int, payload: Wait, ctx: Context) -> Waited:
    await trio.sleep(payload.seconds)
    return Waited(payload.seconds)


@moody.event("added")
def added_in_a_mood(total: int, event: Added) -> int:
    return event.total


@moody.event("drawn")
def drawn_in_a_mood(total: int, event: Drawn) -> int:
    return event.total


@moody.event("waited")
def waited_in_a_mood(total: int, event: Waited) -> int:
    return total


app = App([counter, audit, patient])
#: The two that `chaos.workload.every_path` needs: a sweep starts thousands of workers.
counter_and_audit = App([counter, audit])
#: For faults that must not fall into another agent's commit.
counter_only = App([counter])
#: Where one tenant's payloads are sealed.
counter_sealed = App([counter, audit], codecs)
#: For what takes its time: deliveries that are long in hand, turns that overlap.
patient_only = App([patient])
#: The lock manager, and what a lock may guard.
locks_and_counter = App([LockManagerAdapter(), counter])
#: Two policies of retries side by side, the general one and one of its own.
counter_and_moody = App([counter, moody])
