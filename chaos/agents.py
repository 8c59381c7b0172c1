"""Agents to be killed: between them they take every path of the protocol.

`counter` keeps a sum: decisions that depend on state, refusals, one that is not repeatable, one that always raises,
one that kills its process, one that never returns, one that sends a command. `audit` listens to it and takes its
commands. `patient` awaits in its handler.
"""

from __future__ import annotations

import os
import random
import signal

import attrs
import trio

from meshforge_trio.agent import Agent, Context, Event, Reply, Send
from meshforge_trio.envelope import EventEnvelope, JsonObject
from meshforge_trio.errors import Refused
from meshforge_trio.runtime import App

__all__ = ["app", "audit", "counter", "counter_only", "patient"]


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
class Rolled:
    pips: int
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


@counter.command("explode")
def explode(total: int, payload: Amount, ctx: Context) -> Added:
    raise RuntimeError("boom")


@counter.command("die")
def die(total: int, payload: Amount, ctx: Context) -> Added:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


@counter.command("spin")
def spin(total: int, payload: Amount, ctx: Context) -> Added:
    while True:
        pass


@counter.query("get")
def get(total: int, payload: Amount, ctx: Context) -> Reply:
    return Reply("found", {"total": total})


@counter.event("added")
def added(total: int, event: Added) -> int:
    return event.total


@counter.event("rolled")
def rolled(total: int, event: Rolled) -> int:
    return total


audit: Agent[list[str]] = Agent("audit", state=list, initial=list)


@audit.on("counter", "added")
def saw(lines: list[str], payload: JsonObject, ctx: Context) -> Event:
    return Event("seen", {"amount": payload["amount"]})


def _dice(event: EventEnvelope) -> str:
    return f"dice-{event.entity_id}"


@audit.on("counter", "rolled", entity=_dice)
def saw_dice(lines: list[str], payload: JsonObject, ctx: Context) -> Event:
    return Event("seen", {"amount": payload["pips"]})


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


@patient.event("added")
def patiently_added(total: int, event: Added) -> int:
    return event.total


app = App([counter, audit, patient])
#: For faults that must not fall into another agent's commit.
counter_only = App([counter])
