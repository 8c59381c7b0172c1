"""The agent that is measured: a state that counts, one event per command."""

from __future__ import annotations

import attrs

from meshforge_trio.agent import Agent, Context
from meshforge_trio.runtime import App


@attrs.frozen
class Line:
    sku: str
    quantity: int
    note: str


@attrs.frozen
class Added:
    sku: str
    quantity: int
    note: str
    total: int


basket: Agent[int] = Agent("basket", state=int, initial=int)


@basket.command("add")
def add(total: int, payload: Line, ctx: Context) -> Added:
    return Added(payload.sku, payload.quantity, payload.note, total + payload.quantity)


@basket.event("added")
def added(total: int, event: Added) -> int:
    return event.total


app = App([basket])
