"""The agents of the soak test: every kind of decision, and states that stay as small as they are.

`account` keeps a balance: decisions that depend on state, refusals, one that is not repeatable, one that always raises,
one that sends a command, a query. `tally` counts what it hears of it and what it is sent. `courier` awaits in its
handlers.
"""

from __future__ import annotations

import random

import attrs
import trio

from meshforge_trio.agent import Agent, Context, Event, Reply, Send
from meshforge_trio.envelope import JsonObject
from meshforge_trio.errors import Refused
from meshforge_trio.runtime import App

__all__ = ["account", "app", "courier", "tally"]


@attrs.frozen
class Amount:
    """What to add or take."""

    amount: int = 0
    note: str = ""


@attrs.frozen
class Moved:
    amount: int
    balance: int
    note: str = ""
    entity_version: int = 0


@attrs.frozen
class Drawn:
    pips: int
    entity_version: int = 0


account: Agent[int] = Agent("account", state=int, initial=int)


@account.command("deposit")
def deposit(balance: int, payload: Amount, ctx: Context) -> Moved:
    return Moved(payload.amount, balance + payload.amount, payload.note)


@account.command("withdraw")
def withdraw(balance: int, payload: Amount, ctx: Context) -> Moved:
    if payload.amount > balance:
        raise Refused(f"{payload.amount} is more than {balance}", code="insufficient", field="amount")
    return Moved(-payload.amount, balance - payload.amount, payload.note)


@account.command("draw")
def draw(balance: int, payload: Amount, ctx: Context) -> Drawn:
    """Decides differently each time it is asked: a second decision could not hide behind the first."""
    return Drawn(random.SystemRandom().randint(1, 1_000_000_000))


@account.command("report")
def report(balance: int, payload: Amount, ctx: Context) -> list[object]:
    return [Moved(0, balance), Send("tally", "note", {"balance": balance}, entity_id=ctx.entity_id)]


@account.command("explode")
def explode(balance: int, payload: Amount, ctx: Context) -> Moved:
    raise RuntimeError("boom")


@account.query("get")
def get(balance: int, payload: Amount, ctx: Context) -> Reply:
    return Reply("found", {"balance": balance})


@account.event("moved")
def moved(balance: int, event: Moved) -> int:
    return event.balance


@account.event("drawn")
def drawn(balance: int, event: Drawn) -> int:
    return balance


tally: Agent[int] = Agent("tally", state=int, initial=int)


@tally.on("account", "drawn")
def saw(count: int, payload: JsonObject, ctx: Context) -> Event:
    return Event("counted", {"count": count + 1})


@tally.command("note")
def note(count: int, payload: JsonObject, ctx: Context) -> Event:
    return Event("counted", {"count": count + 1})


@tally.event("counted")
def counted(count: int, payload: JsonObject) -> int:
    return int(payload["count"])


courier: Agent[int] = Agent("courier", state=int, initial=int)


@courier.command("carry")
async def carry(parcels: int, payload: Amount, ctx: Context) -> Moved:
    """Decided while other entities' handlers wait as well."""
    await trio.sleep(0.001)
    return Moved(payload.amount, parcels + payload.amount, payload.note)


@courier.event("moved")
def carried(parcels: int, event: Moved) -> int:
    return event.balance


app = App([account, tally, courier])
