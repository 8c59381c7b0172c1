"""Parcels on their way: one agent that moves them, one that counts what each courier has delivered."""

from __future__ import annotations

import attrs

from meshforge_trio.agent import Agent, Context, Event, Reply
from meshforge_trio.envelope import EventEnvelope, JsonObject
from meshforge_trio.errors import Refused
from meshforge_trio.runtime import App


@attrs.frozen
class Register:
    to: str


@attrs.frozen
class Deliver:
    courier: str


@attrs.frozen
class Registered:
    to: str
    entity_version: int = 0


@attrs.frozen
class Delivered:
    courier: str
    entity_version: int = 0


@attrs.frozen
class Parcel:
    """`courier` is who delivered it; empty while it is on its way."""

    to: str
    courier: str = ""


parcel: Agent[Parcel | None] = Agent("parcel", state=Parcel)


@parcel.command("register")
def register(state: Parcel | None, payload: Register, ctx: Context) -> Registered:
    if state is not None:
        raise Refused("this parcel is registered already", code="registered")
    return Registered(payload.to)


@parcel.command("deliver")
def deliver(state: Parcel | None, payload: Deliver, ctx: Context) -> Delivered:
    if state is None:
        raise Refused("there is no such parcel", code="unknown_parcel")
    if state.courier:
        raise Refused(f"{state.courier} has delivered it", code="delivered")
    return Delivered(payload.courier)


@parcel.query("get")
def get(state: Parcel | None, payload: JsonObject, ctx: Context) -> Reply:
    return Reply("found", attrs.asdict(state)) if state is not None else Reply("not_found")


@parcel.event("registered")
def registered(state: Parcel | None, event: Registered) -> Parcel:
    return Parcel(event.to)


@parcel.event("delivered")
def delivered(state: Parcel | None, event: Delivered) -> Parcel:
    assert state is not None
    return attrs.evolve(state, courier=event.courier)


courier: Agent[int] = Agent("courier", state=int, initial=int)


def _courier(event: EventEnvelope) -> str:
    return str(event.payload["courier"])


@courier.on("parcel", "delivered", entity=_courier)
def count(total: int, payload: JsonObject, ctx: Context) -> Event:
    return Event("counted", {"total": total + 1})


@courier.event("counted")
def counted(total: int, payload: JsonObject) -> int:
    return int(payload["total"])


app = App([parcel, courier])
