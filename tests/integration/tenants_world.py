"""Two tenants on a real nats-server, kept apart by the broker or by nothing but the runtime, and one who attacks.

`protected`: the server has the accounts of `meshforge nats-config`, and each tenant's runtime its own connection.
`open`: one account without log-in for all; commands have to be signed, and the attacker has keys of tenant a.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final, Literal

import attrs
import orjson
import trio

from meshforge_trio.agent import Agent, Context, Event, Reply
from meshforge_trio.broker.bridge import Connection, ConnectOptions, connect
from meshforge_trio.broker.jetstream import JetStreamBroker, open_broker
from meshforge_trio.client import MeshClient, open_client
from meshforge_trio.config import Settings
from meshforge_trio.envelope import JsonObject, SecurityContext
from meshforge_trio.nats_config import ROLES, Role, ServerPlan, accounts, inbox_prefix, seed_file, write
from meshforge_trio.runtime import App, Runtime
from meshforge_trio.server import PrivateServer
from meshforge_trio.signing import Signer
from meshforge_trio.store.sqlite import SQLiteEventStore
from meshforge_trio.subjects import EVENTS

Kind = Literal["protected", "open"]
TENANTS: Final = ("a", "b")
DEADLINE_S: Final = 30


def account() -> Agent[int]:
    """A balance: what an attacker would like to change."""
    agent: Agent[int] = Agent("account", state=int, initial=int)

    @agent.command("add")
    def add(total: int, payload: JsonObject, ctx: Context) -> Event:
        return Event("added", {"amount": payload["amount"]})

    @agent.query("get")
    def get(total: int, payload: JsonObject, ctx: Context) -> Reply:
        return Reply("found", {"total": total})

    @agent.event("added")
    def added(total: int, payload: JsonObject) -> int:
        return total + int(payload["amount"])

    return agent


@attrs.define(eq=False)
class Tenants:
    """A server with tenants a and b, both served; `home` holds seeds and stores."""

    kind: Kind
    server: PrivateServer
    home: Path

    def options(self, tenant: str, role: Role) -> ConnectOptions:
        """How that user dials."""
        if self.kind == "open":
            return ConnectOptions(urls=(self.server.url,))
        return ConnectOptions(
            urls=(self.server.url,),
            nkey_seed=seed_file(self.home, tenant, role).read_text(),
            inbox_prefix=inbox_prefix(tenant, role),
        )

    def signer(self, tenant: str, role: Role) -> Signer:
        """The key of a user's commands."""
        return Signer.from_file(seed_file(self.home, tenant, role))

    @property
    def entries(self) -> tuple[str, ...]:
        """Who may sign for whom; nobody has to where the broker knows who is who."""
        if self.kind == "protected":
            return ()
        users = [f"{tenant} user:* {self.signer(tenant, 'client').public_key}" for tenant in TENANTS]
        return (*users, *(f"{tenant} *:* {self.signer(tenant, 'runtime').public_key}" for tenant in TENANTS))

    @asynccontextmanager
    async def client(self, tenant: str) -> AsyncIterator[MeshClient]:
        """An honest client of the tenant."""
        async with open_client(
            self.options(tenant, "client"),
            tenant=tenant,
            workspace="w",
            principal=SecurityContext("kim", "user"),
            signer=self.signer(tenant, "client"),
        ) as mesh:
            yield mesh

    @asynccontextmanager
    async def connection(self, tenant: str, role: Role) -> AsyncIterator[Connection]:
        """A bare connection with a user's credentials, for what no client would do."""
        made = await connect(self.options(tenant, role))
        try:
            yield made
        finally:
            await made.aclose()

    async def told(self, tenant: str) -> Mapping[str, int]:
        """How often the tenant's event stream holds an event of each name."""
        async with open_broker(self.options(tenant, "runtime")) as broker:
            found: dict[str, int] = {}
            for message in await broker.read_back(EVENTS, f"evt.{tenant}.>", 1, 1000):
                name = str(orjson.loads(message.body)["name"])
                found[name] = found.get(name, 0) + 1
        return found


@asynccontextmanager
async def tenants(kind: Kind, home: Path) -> AsyncIterator[Tenants]:
    """Both tenants served: over a connection each, or over one, as the server has it."""
    plan = ServerPlan(TENANTS, store_dir=home / "unused", file_bytes=64 << 20)
    write(home, plan)
    keys = {(t, role): Signer.from_file(seed_file(home, t, role)).public_key for t in TENANTS for role in ROLES}
    config = accounts(plan, keys) if kind == "protected" else ""
    with PrivateServer(config=config) as server:
        world = Tenants(kind, server, home)
        async with AsyncExitStack() as stack:
            if kind == "protected":
                for tenant in TENANTS:
                    await stack.enter_async_context(_served(world, (f"{tenant}/w",), tenant))
            else:
                await stack.enter_async_context(_served(world, ("a/w", "b/w"), "a"))
            yield world


@asynccontextmanager
async def _served(world: Tenants, workspaces: Sequence[str], tenant: str) -> AsyncIterator[Runtime]:
    store = await SQLiteEventStore.open(world.home / f"{tenant}.db")
    settings = Settings(url=world.server.url, workspaces=tuple(workspaces), signing_keys=world.entries)

    def dial() -> AbstractAsyncContextManager[JetStreamBroker]:
        return open_broker(world.options(tenant, "runtime"))

    runtime = Runtime(App([account()]), settings, store, dial)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(runtime.run)
            with trio.fail_after(DEADLINE_S):
                for engine in runtime.engines:
                    await engine.serving.wait()
            yield runtime
            runtime.stop()
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
            await store.close()
