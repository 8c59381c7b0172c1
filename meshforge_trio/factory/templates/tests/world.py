"""What the tests run on: {{ "three nats-servers" if cluster else "a private nats-server" }} and the agents, processes that are gone afterwards.

With `NATS_URL` set both are there already, as `docker compose` starts them: then nothing is started.
"""

from __future__ import annotations

import os
{% if cluster %}
import socket
{% endif %}
import subprocess
import sys
import tempfile
{% if cluster %}
import time
{% endif %}
from collections.abc import Iterator, Mapping
from contextlib import {{ "ExitStack, " if cluster }}contextmanager
from pathlib import Path
from typing import Final

import attrs
{% if keys %}
from meshforge_trio.nats_config import {{ "Node, ServerPlan, config_file" if cluster else "ServerPlan" }}
{% endif %}
from meshforge_trio.server import {{ "find_binary" if cluster else "PrivateServer" }}
{% if keys %}

import keys
{% endif %}

ROOT: Final = Path(__file__).parents[1]
TENANT, WORKSPACE = {{ tenant | python }}, {{ workspace_name | python }}
_STOP_S: Final = 30.0


@attrs.frozen
class World:
    """Where to reach the agents.{{ " `keys` holds the seeds of this tenant's users." if keys }}{{ " `health_port` is the runtime's, 0 if it is not ours." if toggles.telemetry }}"""

    url: str
{% if keys %}
    keys: Path
{% endif %}
{% if toggles.telemetry %}
    health_port: int = 0
{% endif %}


@contextmanager
def world(default_url: str | None = None) -> Iterator[World]:
    """The agents and their broker: at `NATS_URL`, else at `default_url`, else of our own, with new keys and stores."""
    url = os.environ.get("NATS_URL", default_url)
    if url is not None:
        yield World(url{{ ', ROOT / ".keys"' if keys }})
        return
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
{% if cluster %}
        with cluster(home) as url:
            yield from _served(url, home)
{% elif keys %}
        signing_keys = keys.make(home / "keys", ServerPlan([TENANT]))
        with PrivateServer() as server:
            yield from _served(server.url, home, signing_keys)
{% else %}
        with PrivateServer() as server:
            yield from _served(server.url, home)
{% endif %}


{% if cluster %}
@contextmanager
def cluster(home: Path) -> Iterator[str]:
    """Three servers on loopback, as `keys.py` configures them but for their ports."""
    ports = _free_ports(6)
    nodes = [
        Node(f"nats-{number + 1}", f"127.0.0.1:{ports[2 * number]}", f"127.0.0.1:{ports[2 * number + 1]}")
        for number in range(3)
    ]
    plan = ServerPlan([TENANT], nodes=nodes, store_dir=home / "streams", cluster={{ slug | python }}, sync_always=False)
    (home / "signing_keys").write_text(keys.make(home / "keys", plan))
    with ExitStack() as servers:
        for node in nodes:
            log = servers.enter_context((home / f"{node.name}.log").open("wb"))
            command = [str(find_binary()), "-c", str(config_file(home / "keys", node))]
            server = subprocess.Popen(command, stdout=log, stderr=log, process_group=0)
            servers.callback(_end, server)
        urls = ",".join(f"nats://{node.listen}" for node in nodes)
        _wait_for_leader([home / f"{node.name}.log" for node in nodes])
        yield urls


def _free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [int(each.getsockname()[1]) for each in held]
    finally:
        for each in held:
            each.close()


def _wait_for_leader(logs: list[Path], limit_s: float = 60.0) -> None:
    """Until the servers have found each other and chosen who leads JetStream."""
    deadline = time.monotonic() + limit_s
    while not any("metadata leader" in log.read_text(errors="replace") for log in logs):
        if time.monotonic() > deadline:
            raise RuntimeError("the cluster chose no leader; its logs:\n" + "\n".join(log.read_text() for log in logs))
        time.sleep(0.05)


{% endif %}
def _served(url: str, home: Path{{ ", signing_keys: str" if keys and not cluster }}) -> Iterator[World]:
    """The agents, served by a process of their own with a store of its own."""
    settings = {
        "MESHFORGE_URL": url,
        "MESHFORGE_STORE": str(home / "meshforge.db"),
{% if toggles.telemetry %}
        "MESHFORGE_HEALTH_PORT": str(health_port := {{ "_free_ports(1)[0]" if cluster else "_free_port()" }}),
{% else %}
        "MESHFORGE_HEALTH_PORT": "0",
{% endif %}
{% if toggles.security == "signed" %}
        "MESHFORGE_SIGNING_KEYS": {{ '(home / "signing_keys").read_text()' if cluster else "signing_keys" }},
        "MESHFORGE_SIGNING_SEED_FILE": str(home / "keys" / f"{TENANT}-runtime.nk"),
{% endif %}
{% if cluster %}
        "MESHFORGE_NKEY_SEED_FILE": str(home / "keys" / f"{TENANT}-runtime.nk"),
{% endif %}
    }
    with runtime(settings):
        yield World(url{{ ', home / "keys"' if keys }}{{ ", health_port" if toggles.telemetry }})


@contextmanager
def runtime(settings: Mapping[str, str]) -> Iterator[None]:
    """The agents as `meshforge run` serves them, with these settings over those of meshforge.toml."""
    command = [sys.executable, "-m", "meshforge_trio", "run", "agents:app", "--log-level", "warning"]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **settings}, process_group=0)
    try:
        yield
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End it in good order, and if that takes too long, at once."""
    process.terminate()
    try:
        process.wait(_STOP_S)
    finally:
        process.kill()
        process.wait()
{% if toggles.telemetry and not cluster %}


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as held:
        return int(held.getsockname()[1])
{% endif %}
