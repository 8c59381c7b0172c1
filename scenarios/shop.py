"""Two agents of a small shop: `order` takes orders and their lines, `inventory` keeps stock and hears of orders."""

from __future__ import annotations

import attrs

from meshforge_trio.agent import Agent, Context, Reply
from meshforge_trio.crud import crud_agent
from meshforge_trio.errors import Refused
from meshforge_trio.runtime import App


@attrs.frozen
class Order:
    customer: str
    lines: tuple[str, ...] = ()
    total: int = 0


@attrs.frozen
class Create:
    customer: str


@attrs.frozen
class AddLine:
    sku: str
    price: int


@attrs.frozen
class Created:
    customer: str


@attrs.frozen
class LineAdded:
    sku: str
    price: int
    total: int


@attrs.frozen
class Get:
    pass


order: Agent[Order | None] = Agent("order", state=Order | None)


@order.command("create")
def create(state: Order | None, payload: Create, ctx: Context) -> Created:
    if state is not None:
        raise Refused(f"order {ctx.entity_id} exists already", code="already_exists")
    return Created(payload.customer)


@order.command("add_line")
def add_line(state: Order | None, payload: AddLine, ctx: Context) -> LineAdded:
    if state is None:
        raise Refused(f"order {ctx.entity_id} does not exist", code="not_found")
    return LineAdded(payload.sku, payload.price, state.total + payload.price)


@order.query("get")
def get(state: Order | None, payload: Get, ctx: Context) -> Reply:
    return Reply("not_found") if state is None else Reply("found", attrs.asdict(state))


@order.event("created")
def created(state: Order | None, event: Created) -> Order:
    return Order(event.customer)


@order.event("line_added")
def line_added(state: Order | None, event: LineAdded) -> Order:
    assert state is not None
    return attrs.evolve(state, lines=(*state.lines, event.sku), total=event.total)


inventory = crud_agent("inventory")

app = App([order, inventory])
