"""Two tenants in two accounts of a nats-server that `meshforge nats-config` has configured, served by one process."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import apsw
import attrs
import trio
from prometheus_client.parser import text_string_to_metric_families

from meshforge_trio.broker.bridge import ConnectOptions, open_loop
from meshforge_trio.broker.jetstream import open_broker
from meshforge_trio.envelope import SecurityContext
from meshforge_trio.nats_config import inbox_prefix, seed_file, tenants_file
from meshforge_trio.server import find_binary
from meshforge_trio.subjects import EVENTS
from meshforge_trio.sync_client import SyncMeshClient

from .cli_world import DEADLINE_S, Running, Shop, eventually, free_ports, shop
from .test_health import ask

TENANTS: Final = ("acme", "zeta")
USER: Final = SecurityContext("kim", "user")
_AGENTS: Final = 2

# What befalls tenant acme's disk is told to the agents, since they live in the process that has it. Commands that only
# read the app have a disk that is well.
TROUBLE: Final = """
import sys

from chaos.faults.disk import FullDisk
from chaos.faults.disk_errors import FailingDisk
from meshforge_trio.decisions import Event
from meshforge_trio.errors import Poison

if sys.argv[1] == "run":
    failing, full = FailingDisk("acme.db"), FullDisk("acme.db")


@order.command("fail")
def fail(state, payload: dict, ctx):
    failing.fail(payload["what"], payload["file"])
    return Event("updated", {"failed": 1})


@order.command("heal")
def heal(state, payload: dict, ctx):
    failing.heal()
    return Event("updated", {"healed": 1})


@order.command("fill")
def fill(state, payload: dict, ctx):
    full.fill(3600)
    return Event("updated", {"filled": 1})


@order.command("poison")
def poison(state, payload: dict, ctx):
    raise Poison("it never works")


@order.command("stumble")
def stumble(state, payload: dict, ctx):
    raise RuntimeError("not now")


@order.command("spin")
def spin(state, payload: dict, ctx):
    while True:
        pass
"""


@attrs.frozen
class Sites:
    """A directory with the app, its settings and the server's configuration; commands run in it."""

    shop: Shop
    server_port: int
    health_port: int

    @property
    def home(self) -> Path:
        """Where everything lies."""
        return self.shop.home

    @property
    def conf(self) -> Path:
        """What `meshforge nats-config` has written."""
        return self.home / "conf"

    def store(self, tenant: str) -> Path:
        """The store of a tenant."""
        return self.home / f"{tenant}.db"

    def settle(self, more: str = "", sections: str | None = None) -> None:
        """Write meshforge.toml: what nats-config has written, unless `sections` says other."""
        workspaces = json.dumps([f"{tenant}/shop" for tenant in TENANTS])
        told = tenants_file(self.conf).read_text() if sections is None else sections
        (self.home / "meshforge.toml").write_text(f"workspaces = {workspaces}\n{more}\n{told}")

    @contextmanager
    def started(self, *args: str) -> Iterator[Running]:
        """One `meshforge run` for both tenants."""
        with self.shop.starts("run", "shop:app", "--json", "--health-port", str(self.health_port), *args) as running:
            yield running

    @contextmanager
    def served(self, tenants: Sequence[str] = TENANTS, *args: str) -> Iterator[Running]:
        """As `started`, once these tenants are served."""
        with self.started(*args) as running:
            self.serving(running, tenants)
            yield running

    def serving(self, running: Running, tenants: Sequence[str]) -> None:
        """Wait until every agent of these tenants is served."""

        def all_are() -> bool:
            told = {line["scope"] for line in running.lines() if line["event"] == "serving"}
            return all(sum(scope.startswith(f"{t}/") for scope in told) == _AGENTS for t in tenants)

        eventually(all_are, f"{tenants} served: {running.log.read_text()}")

    def drained(self, running: Running) -> int:
        """SIGTERM; the exit code."""
        running.process.send_signal(signal.SIGTERM)
        return running.ended()

    def options(self, tenant: str) -> ConnectOptions:
        """How a client of the tenant dials."""
        return ConnectOptions(
            urls=(f"nats://127.0.0.1:{self.server_port}",),
            nkey_seed=seed_file(self.conf, tenant, "client").read_text(),
            inbox_prefix=inbox_prefix(tenant, "client"),
        )

    def client(self, tenant: str) -> SyncMeshClient:
        """A client of the tenant, not yet connected."""
        return SyncMeshClient(self.options(tenant), tenant=tenant, workspace="shop", principal=USER)

    @contextmanager
    def clients(self) -> Iterator[dict[str, SyncMeshClient]]:
        """A client of each tenant."""
        with ExitStack() as stack:
            yield {tenant: stack.enter_context(self.client(tenant)) for tenant in TENANTS}

    def health(self, path: str) -> tuple[int, str]:
        """What the process says of itself."""
        return ask(self.health_port, path)

    def becomes(self, path: str, status: int, text: str) -> str:
        """Wait until that is what it says; the body."""

        def said() -> str | None:
            found, body = self.health(path)
            return body if (found, text in body) == (status, True) else None

        return eventually(said, f"{path} {status} {text}: {self.health(path)}")

    def metrics(self, name: str, tenant: str) -> float:
        """The sum of a metric over everything that belongs to a tenant."""
        return sum(
            sample.value
            for family in text_string_to_metric_families(self.health("/metrics")[1])
            for sample in family.samples
            if sample.name == name and tenant in (sample.labels.get("tenant"), sample.labels.get("tenants"))
        )

    def keys(self, tenant: str) -> dict[str, int]:
        """How many events of commands the tenant's store holds under each key."""
        found: dict[str, int] = {}
        for event in self.shop.does("events", "--workspace", f"{tenant}/shop", "--json").documents:
            key = event["envelope"]["idempotency_key"]
            found[key] = found.get(key, 0) + 1
        return found

    def told(self, tenant: str) -> list[tuple[str, str]]:
        """Subject and key of every event in the stream of the tenant's account, whomever it is about."""
        runtime = ConnectOptions(
            urls=(self.shop.url,),
            nkey_seed=seed_file(self.conf, tenant, "runtime").read_text(),
            inbox_prefix=inbox_prefix(tenant, "runtime"),
        )

        async def read() -> list[tuple[str, str]]:
            async with open_loop(), open_broker(runtime) as broker:
                found = await broker.read_back(EVENTS, ">", 1, 1_000)
                return [(message.subject, json.loads(message.body)["idempotency_key"]) for message in found]

        return trio.run(read)

    def decides(self, tenant: str, keys: dict[str, int]) -> None:
        """Wait until the tenant's store holds that many events under these keys, and no others."""
        eventually(lambda: self.keys(tenant) == keys, f"{tenant} decides {keys}: {self.keys(tenant)}")

    def tenants_in(self, tenant: str) -> set[str]:
        """Whose scopes a store holds, read without our code."""
        connection = apsw.Connection(str(self.store(tenant)), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            return {row[0] for row in connection.execute("SELECT DISTINCT tenant FROM scopes")}
        finally:
            connection.close()


@contextmanager
def sites(home: Path, *options: str, url: str = "nats") -> Iterator[Sites]:
    """A server with the accounts of both tenants, and settings for one process that serves them."""
    (health_port, server_port) = (free_ports(), free_ports())
    made = Sites(shop(home, f"{url}://127.0.0.1:{server_port}"), server_port, health_port)
    with (home / "shop.py").open("a") as app:
        app.write(TROUBLE)
    names = [word for tenant in TENANTS for word in ("--tenant", tenant)]
    listen = f"127.0.0.1:{server_port}"
    run = made.shop.does(
        "nats-config", "conf", *names, "--listen", listen, "--max-file", str(64 << 20), "--sync-lazy", *options
    )
    assert run.code == 0, run
    made.settle()
    with (home / "server.log").open("wb") as log:
        command = [str(find_binary()), "-c", str(made.conf / "nats-server.conf")]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0)
    try:
        _wait_for(process, server_port, home / "server.log")
        yield made
    finally:
        process.kill()
        process.wait(DEADLINE_S)
        shutil.rmtree(made.conf / "jetstream", ignore_errors=True)


def _wait_for(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Until the server greets with JetStream on."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
                greeting = connection.makefile("rb").readline()
        except OSError:
            greeting = b""
        if b'"jetstream":true' in greeting:
            return
        time.sleep(0.02)
    raise AssertionError(log.read_text())


def without(text: str, tenant: str, key: str) -> str:
    """Settings of tenants with one line of one section less."""
    sections = text.split("\n[")
    return "\n[".join(
        "\n".join(line for line in section.split("\n") if not line.startswith(f"{key} ="))
        if section.startswith(f"tenants.{tenant}]")
        else section
        for section in sections
    )
