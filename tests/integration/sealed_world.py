"""Two tenants served by one worker on a real nats-server: acme has a key ring, zeta has none."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

import attrs
import trio

from meshforge_trio.broker.jetstream import open_broker
from meshforge_trio.client import MeshClient, open_client
from meshforge_trio.codec import Codecs
from meshforge_trio.envelope import SecurityContext
from meshforge_trio.keyring import codecs_of
from meshforge_trio.server import PrivateServer
from meshforge_trio.subjects import EVENTS

from .cli_world import Running, Shop

#: Planted into payloads; found in a file, it rests readable there.
SECRET: Final = "rosebud-4711-was-a-sledge"
KIM: Final = SecurityContext("kim", "user")

_APP: Final = """
from meshforge_trio.agent import Agent, Event, Reply, Send
from meshforge_trio.errors import Poison, Refused
from meshforge_trio.policy import RetryPolicy
from meshforge_trio.runtime import App

safe = Agent("safe", state=dict, initial=dict, retry=RetryPolicy(limit=3, delays_s=(0.05,)))
clerk = Agent("clerk", state=dict, initial=dict)


@safe.command("keep")
def keep(state, payload: dict, ctx):
    return [Event("kept", payload), Send("clerk", "note", payload, entity_id=ctx.entity_id)]


@safe.command("refuse")
def refuse(state, payload: dict, ctx):
    raise Refused(f"not {payload['text']}")


@safe.command("explode")
def explode(state, payload: dict, ctx):
    raise RuntimeError(f"cannot hold {payload['text']}")


@safe.query("get")
def get(state, payload: dict, ctx):
    return Reply("found", state)


@safe.event("kept")
def kept(state, payload: dict):
    return {"text": payload["text"]}


@clerk.command("note")
def note(state, payload: dict, ctx):
    return ()


app = App([safe, clerk])
"""


@attrs.frozen
class Sealed:
    """The directory in which commands run; `server` keeps its streams below it."""

    shop: Shop
    server: PrivateServer
    ring: Path

    def codecs(self) -> Codecs | None:
        """Of clients that have the ring."""
        return codecs_of([f"acme = {self.ring}"])

    @contextmanager
    def served(self) -> Iterator[Running]:
        """Both agents and the lock manager of both tenants, with everything logged."""
        with self.shop.starts("run", "shop:app", "--json", "--log-level", "debug") as running:
            running.said("serving", 6)
            yield running

    @asynccontextmanager
    async def client(self, tenant: str = "acme", *, codecs: bool = True) -> AsyncIterator[MeshClient]:
        """A client of the tenant, with its keys unless said otherwise."""
        own = self.codecs() if codecs else None
        with trio.fail_after(60):
            async with open_client(self.server.url, tenant=tenant, workspace="w", principal=KIM, codecs=own) as mesh:
                yield mesh

    async def streamed(self, tenant: str) -> list[bytes]:
        """The bodies of the tenant's events, as the stream has them."""
        async with open_broker(self.server.url) as broker:
            return [message.body for message in await broker.read_back(EVENTS, f"evt.{tenant}.>", 1, 10_000)]

    def holding(self, text: str) -> list[str]:
        """The files below the directory in which `text` stands, by their paths there."""
        home, sought = self.shop.home, text.encode()
        files = [path for path in home.rglob("*") if path.is_file()]
        return sorted(str(path.relative_to(home)) for path in files if sought in path.read_bytes())


@contextmanager
def sealed_shop(home: Path, *, ring: bool = True) -> Iterator[Sealed]:
    """The app, a server and, unless said otherwise, a ring of acme."""
    (home / "shop.py").write_text(_APP)
    settings = 'workspaces = ["acme/w", "zeta/w"]\nstore = "store/shop.db"\nlock_manager = true\n'
    path = home / "keys" / "acme.ring"
    (home / "meshforge.toml").write_text(settings + ('codec_keys = ["acme = keys/acme.ring"]\n' if ring else ""))
    with PrivateServer(store_dir=home / "streams") as server:
        made = Sealed(Shop(home, server.url), server, path)
        if ring:
            made.shop.answers("keys", "new", "acme")
        yield made
