"""What tests of dead letters stand on: an app whose handlers work once they are mended, and the commands around it."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
from pathlib import Path
from typing import Any, Final

import trio

from meshforge_trio.broker.bridge import ConnectOptions, connect, open_loop, pub
from meshforge_trio.client import open_client
from meshforge_trio.envelope import SecurityContext
from meshforge_trio.policy import ExitCode

from .cli_world import DEADLINE_S, Result, Running, Shop, eventually

APP: Final = """
import os
from pathlib import Path
from meshforge_trio.agent import Agent, Event, Reply, Send
from meshforge_trio.crud import crud_agent
from meshforge_trio.errors import Poison
from meshforge_trio.policy import RetryPolicy
from meshforge_trio.runtime import App

order, inventory = crud_agent("order"), Agent("inventory", state=int, initial=int)
delay_s = float(os.environ.get("DELAY_S", "0.05"))
total = Agent("total", state=int, initial=int, retry=RetryPolicy(limit=3, delays_s=(delay_s,)))
MENDED = Path("mended").exists()


def act(payload):
    if not MENDED:
        raise Poison("the shelf [red] is broken\\n", code="broken")
    return Event("added", {"amount": payload.get("amount", 1)})


@total.command("add")
def add(state, payload: dict, ctx):
    return act(payload)


@inventory.command("add")
def add_stock(state, payload: dict, ctx):
    return act(payload)


@total.command("plus")
def plus(state, payload: dict, ctx):
    return Event("added", {"amount": 1})


@total.command("die")
def die(state, payload: dict, ctx):
    if not MENDED:
        os._exit(7)
    return act(payload)


@total.command("explode")
def explode(state, payload: dict, ctx):
    if not MENDED or payload.get("always"):
        raise RuntimeError("boom")
    return act(payload)


@total.on("order", "created")
def created(state, payload: dict, ctx):
    return act(payload)


@total.query("get")
def get(state, payload: dict, ctx):
    return Reply("found", {"total": state})


@total.event("added")
def added(state, payload: dict):
    return state + payload["amount"]


app = App([order, inventory, total])
"""


def dead_shop(home: Path, url: str) -> Shop:
    """Write the app."""
    (home / "shop.py").write_text(APP)
    return Shop(home, url)


def on_terminal(at: Shop, typed: str, *args: str) -> Result:
    """Run a command on a terminal with a line typed ahead, its stdout in a pipe; `err` is what the terminal shows."""
    ours, theirs = pty.openpty()
    try:
        os.write(ours, typed.encode() + b"\n")
        done = subprocess.run(
            at.command(*args),
            cwd=at.home,
            env=at.environment(),
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=theirs,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        shown = os.read(ours, 1 << 20).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    return Result(done.returncode, done.stdout, shown)


def publish(at: Shop, subject: str, body: bytes) -> None:
    """What no client of ours would send."""

    async def run() -> None:
        async with open_loop():
            connection = await connect(ConnectOptions(urls=(at.url,), name="stranger"))
            connection.write(pub(subject, "", body))
            await connection.round_trip(5.0)
            await connection.aclose()

    trio.run(run)


def mend(at: Shop) -> None:
    (at.home / "mended").touch()


def send(at: Shop, *keys: str, agent: str = "total", action: str = "add", **fields: Any) -> None:
    """Have the stream store a command of each key, for entity `t-1` unless said otherwise."""
    named: dict[str, Any] = {"entity_id": "t-1", **fields}

    async def run() -> None:
        principal = SecurityContext("kim", "user")
        async with open_client(at.url, tenant="default", workspace="demo", principal=principal) as client:
            await client.send_many(
                [client.command(agent, action, {"amount": 2}, idempotency_key=key, **named) for key in keys]
            )

    trio.run(run)


def listed(at: Shop, *filters: str) -> list[Any]:
    result = at.does("dlq", "list", *filters, "--json")
    assert result.code == ExitCode.OK, result
    return result.documents


def waits(at: Shop, count: int) -> list[Any]:
    """So many dead letters, as soon as they are there."""
    return eventually(lambda: found if at.store.exists() and len(found := listed(at)) == count else [], f"{count} dead")


def total_of(at: Shop, entity: str = "t-1") -> int:
    return int(at.answers("call", "total", "get", "--entity", entity)["payload"]["total"])


def outcomes(result: Result) -> dict[str, str]:
    return {document["key"]: document["outcome"] for document in result.documents}


def redrive(at: Shop, *args: str, reason: str = "the shelf is mended") -> Result:
    return at.does("dlq", "redrive", *args, "--reason", reason, "--actor", "kim", "--rate", "1000/s", "--json")


def events(at: Shop, name: str) -> list[Any]:
    found = [d["envelope"] for d in at.does("events", "--all", "--json").documents]
    return [envelope for envelope in found if envelope.get("name") == name]


def stop(worker: Running) -> None:
    worker.process.send_signal(signal.SIGTERM)
    assert worker.ended() == ExitCode.OK
