"""The agent of a bank: `account` takes deposits and pays out, and a withdrawal sends the deposit to the other account.

A module of its own, so that workers need not import the harness with it.
"""

from __future__ import annotations

import attrs

from meshforge_trio.agent import Agent, Context, Send
from meshforge_trio.errors import Refused
from meshforge_trio.runtime import App


@attrs.frozen
class Money:
    cents: int


@attrs.frozen
class Transfer:
    cents: int
    to: str


@attrs.frozen
class Opened:
    cents: int
    entity_version: int = 0


@attrs.frozen
class Withdrawn:
    cents: int
    to: str
    entity_version: int = 0


@attrs.frozen
class Deposited:
    cents: int
    entity_version: int = 0


account: Agent[int] = Agent("account", state=int, initial=int)


@account.command("open")
def open_account(balance: int, payload: Money, ctx: Context) -> Opened:
    return Opened(payload.cents)


@account.command("withdraw")
def withdraw(balance: int, payload: Transfer, ctx: Context) -> list[object]:
    if payload.cents > balance:
        raise Refused(f"{ctx.entity_id} has {balance}, not {payload.cents}", code="short", field="cents")
    return [
        Withdrawn(payload.cents, payload.to),
        Send("account", "deposit", {"cents": payload.cents}, entity_id=payload.to),
    ]


@account.command("deposit")
def deposit(balance: int, payload: Money, ctx: Context) -> Deposited:
    return Deposited(payload.cents)


@account.event("opened")
def opened(balance: int, event: Opened) -> int:
    return balance + event.cents


@account.event("withdrawn")
def withdrawn(balance: int, event: Withdrawn) -> int:
    return balance - event.cents


@account.event("deposited")
def deposited(balance: int, event: Deposited) -> int:
    return balance + event.cents


app = App([account])
