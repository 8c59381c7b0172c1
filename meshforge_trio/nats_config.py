"""A nats-server's configuration in which the broker keeps tenants apart: an account for each, with its own JetStream.

Subjects, streams, consumers, Msg-Ids and limits of an account exist for that account alone, so nothing of another
tenant can be named, let alone reached: not by its subjects, not by a reply subject, not by the API. No exports and no
imports are written: what is not connected needs no rules. Within an account three users share the work:

    runtime     serves agents: the whole API, commands, events and dead letters of this tenant
    client      sends commands and hears events; may not send the runtime's own actions (`sys_*`)
    operator    a client that may: redrives, discards, looks

Users log in with nkeys (ed25519): the file holds public keys only, and each seed lies in a file of its own, mode 0600.

A plan with nodes is one of a cluster: each server gets a file of its own, with the same accounts and keys.
"""

from __future__ import annotations

import base64
import json
import os
import re
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

import attrs
import nkeys

from meshforge_trio.errors import Misconfigured
from meshforge_trio.locks import EXPIRE
from meshforge_trio.signing import Signer
from meshforge_trio.subjects import COMMANDS, DELIVER, DISCARD, EVENTS, FAILED, REDRIVE, is_token

__all__ = [
    "ROLES",
    "Node",
    "Role",
    "ServerPlan",
    "Tls",
    "accounts",
    "config_file",
    "inbox_prefix",
    "parse_node",
    "render",
    "seed_file",
    "signing_entries",
    "tenant_settings",
    "tenants_file",
    "write",
]

Role = Literal["runtime", "client", "operator"]
ROLES: Final[Sequence[Role]] = ("runtime", "client", "operator")

#: Hosts that mean every address of a machine, so none that could be dialled.
_EVERYWHERE: Final = frozenset({"0.0.0.0", "::", "[::]", ""})  # noqa: S104  (nothing is bound here)
_HERE: Final = "127.0.0.1:"
_DIRECTORY_MODE: Final = 0o700
_SEED_MODE: Final = 0o600
#: Actions that no client may send, whatever principal it claims.
_NODE: Final = re.compile(r"(?P<name>[^=,]+)=(?P<listen>[^=,\s]+:\d+),(?P<route>[^=,\s]+:\d+)")
_SYSTEM_ACTIONS: Final = (REDRIVE, DISCARD, DELIVER, EXPIRE)


@attrs.frozen
class Tls:
    """Paths of the server's certificate and key; `ca` with `verify` asks clients for a certificate, too."""

    cert: Path
    key: Path
    ca: Path | None = None
    verify: bool = False


@attrs.frozen
class Node:
    """One server of a cluster: where clients reach it (`listen`) and other servers (`route`), each `host:port`."""

    name: str
    listen: str
    route: str


@attrs.frozen
class ServerPlan:
    """What the configuration is to say. Sizes in bytes, per tenant; `listen` and `monitor` are `host:port`.

    With `nodes` there is a server for each of them, in the cluster of that name; `listen` is theirs then, and each
    keeps its streams in a directory of its own below `store_dir`.
    """

    tenants: Sequence[str]
    listen: str = "127.0.0.1:4222"
    store_dir: Path = Path("jetstream")
    file_bytes: int = 8 << 30
    max_connections: int = 1_000
    max_payload: int = 1 << 20
    sync_always: bool = True
    tls: Tls | None = None
    monitor: str | None = None
    cluster: str = "meshforge"
    nodes: Sequence[Node] = ()

    def __attrs_post_init__(self) -> None:
        if not self.tenants:
            raise Misconfigured("no tenant is named: `--tenant NAME`, as often as needed")
        for tenant in self.tenants:
            if not is_token(tenant):
                raise Misconfigured(f"tenant {tenant!r:.100} is not 1 to 64 of A-Z a-z 0-9 _ -")
        if len(set(self.tenants)) != len(self.tenants):
            raise Misconfigured(f"a tenant is named twice: {', '.join(self.tenants)}")
        if self.tls is not None and self.tls.verify and self.tls.ca is None:
            raise Misconfigured("clients are to be asked for certificates, and no authority is named: --tls-ca")
        for name in (self.cluster, *(node.name for node in self.nodes)):
            if not is_token(name):
                raise Misconfigured(f"{name!r:.100} is no name of a cluster or node: 1 to 64 of A-Z a-z 0-9 _ -")
        if len({node.name for node in self.nodes}) != len(self.nodes):
            raise Misconfigured(f"a node is named twice: {', '.join(node.name for node in self.nodes)}")


def parse_node(text: str) -> Node:
    """`NAME=HOST:PORT,HOST:PORT`: where clients reach a server, and where the other servers do.

    Raises:
        Misconfigured: it is no such text.
    """
    found = _NODE.fullmatch(text)
    if found is None:
        raise Misconfigured(f"node {text!r:.200} is not NAME=HOST:PORT,HOST:PORT, as nats-1=0.0.0.0:4222,nats-1:6222")
    return Node(found["name"], found["listen"], found["route"])


def inbox_prefix(tenant: str, role: Role) -> str:
    """Where a user's answers arrive: a place that no other user may listen at. The setting `inbox_prefix`."""
    return f"_INBOX_{tenant}_{role}"


def render(plan: ServerPlan, public_keys: dict[tuple[str, Role], str], node: Node | None = None) -> str:
    """The whole file, of that node if the plan has any."""
    store_dir = plan.store_dir if node is None else plan.store_dir / node.name
    sync = "  # A PubAck is sent when the message is on disk: it survives the loss of power.\n  sync_interval: always\n"
    parts = [
        "# Written by `meshforge nats-config`, which keeps the keys when it is run again.\n",
        f"listen: {json.dumps(plan.listen if node is None else node.listen)}\n",
        f"http: {json.dumps(plan.monitor)}\n" if plan.monitor is not None else "",
        f"max_payload: {plan.max_payload}\n",
        "jetstream {\n",
        f"  store_dir: {json.dumps(str(store_dir))}\n",
        f"  max_file_store: {plan.file_bytes * len(plan.tenants)}\n",
        f"  max_memory_store: {16 << 20}\n",
        sync if plan.sync_always else "",
        "}\n",
        _tls(plan.tls),
        "" if node is None else _routes(plan, node),
        accounts(plan, public_keys),
    ]
    return "".join(parts)


def _routes(plan: ServerPlan, node: Node) -> str:
    """Who it is in the cluster, and how it finds the others; a route to itself is one the server knows to leave."""
    port = node.route.rpartition(":")[2]
    host = "127.0.0.1" if node.route.startswith("127.") else "0.0.0.0"  # noqa: S104
    routes = json.dumps([f"nats://{other.route}" for other in plan.nodes])
    return (
        f"server_name: {json.dumps(node.name)}\n"
        "cluster {\n"
        f"  name: {json.dumps(plan.cluster)}\n"
        f"  listen: {json.dumps(f'{host}:{port}')}\n"
        f"  routes: {routes}\n"
        "}\n"
    )


def accounts(plan: ServerPlan, public_keys: dict[tuple[str, Role], str]) -> str:
    """The accounts and their users; there is no user without a key, and no account that a stranger falls into."""
    blocks = []
    for tenant in plan.tenants:
        users = ",\n".join(_user(tenant, role, public_keys[tenant, role]) for role in ROLES)
        blocks.append(
            f"  {_account(tenant)} {{\n"
            f"    jetstream {{ max_file: {plan.file_bytes}, max_mem: 0, max_streams: 3 }}\n"
            f"    limits {{ max_connections: {plan.max_connections} }}\n"
            f"    users: [\n{users}\n    ]\n"
            "  }\n"
        )
    return "accounts {\n" + "".join(blocks) + "}\n"


def _account(tenant: str) -> str:
    # Quoted, since a tenant may look like a number.
    return json.dumps(f"TENANT_{tenant}")


def _user(tenant: str, role: Role, public_key: str) -> str:
    inbox = f"{inbox_prefix(tenant, role)}.>"
    deny: Sequence[str] = ()
    if role == "runtime":
        publish: Sequence[str] = (
            *(f"{prefix}.{tenant}.>" for prefix in ("cmd", "evt", "failed.cmd", "failed.evt")),
            "$JS.API.>",
            "$JS.ACK.>",
            inbox,
        )
    else:
        publish = (
            f"cmd.{tenant}.>",
            *(f"$JS.API.STREAM.INFO.{stream}" for stream in (COMMANDS, EVENTS, FAILED)),
            f"$JS.API.DIRECT.GET.{EVENTS}",
            inbox,
        )
    if role == "client":
        deny = tuple(f"cmd.{tenant}.*.*.{action}" for action in _SYSTEM_ACTIONS)
    listen = (f"evt.{tenant}.>", inbox)
    denied = f", deny: {json.dumps(list(deny))}" if deny else ""
    return (
        f"      {{ nkey: {public_key}, permissions: {{\n"
        f"        publish: {{ allow: {json.dumps(list(publish))}{denied} }}\n"
        f"        subscribe: {{ allow: {json.dumps(list(listen))} }}\n"
        "      } }"
    )


def _tls(tls: Tls | None) -> str:
    if tls is None:
        return ""
    lines = [f"  cert_file: {json.dumps(str(tls.cert))}", f"  key_file: {json.dumps(str(tls.key))}"]
    if tls.ca is not None:
        lines.append(f"  ca_file: {json.dumps(str(tls.ca))}")
    if tls.verify:
        lines.append("  verify: true")
    return "tls {\n" + "\n".join(lines) + "\n}\n"


# -- files -----------------------------------------------------------------------------------------------------


def seed_file(directory: Path, tenant: str, role: Role) -> Path:
    """Where the seed of a user lies: the setting `nkey_seed_file`."""
    return directory / f"{tenant}-{role}.nk"


def tenants_file(directory: Path) -> Path:
    """Where the settings of the tenants lie, for meshforge.toml."""
    return directory / "tenants.toml"


def _reached(listen: str, known_as: str) -> str:
    """Where clients find who listens there; one that listens everywhere is known by another address."""
    host, _, port = listen.rpartition(":")
    return f"{known_as.rpartition(':')[0] if host in _EVERYWHERE else host}:{port}"


def tenant_settings(directory: Path, plan: ServerPlan) -> str:
    """A section of meshforge.toml for each tenant: where its runtime logs in, as whom, and its own store."""
    scheme = "nats" if plan.tls is None else "tls"
    servers = [_reached(node.listen, node.route) for node in plan.nodes] or [_reached(plan.listen, _HERE)]
    url = ",".join(f"{scheme}://{server}" for server in servers)
    parts = [
        "# Written by `meshforge nats-config`, for the end of meshforge.toml. Its `workspaces` name the tenants:\n",
        f"# workspaces = {json.dumps([f'{tenant}/<workspace>' for tenant in plan.tenants])}\n",
    ]
    for tenant in plan.tenants:
        seed = seed_file(directory.absolute(), tenant, "runtime")
        parts.append(
            f"\n[tenants.{tenant}]\n"
            f"url = {json.dumps(url)}\n"
            f"store = {json.dumps(f'{tenant}.db')}\n"
            f"nkey_seed_file = {json.dumps(str(seed))}\n"
            f"inbox_prefix = {json.dumps(inbox_prefix(tenant, 'runtime'))}\n"
        )
        if plan.tls is not None:
            parts.append(
                '# tls_ca_file = "..."  # who signed the server\'s certificate, if that is no public authority\n'
            )
    return "".join(parts)


def signing_entries(directory: Path, tenant: str) -> Sequence[str]:
    """Lines for the setting `signing_keys`: whose commands the keys in `directory` may sign, as their roles say.

    Raises:
        Misconfigured: a seed is missing, or is none.
    """
    principals: dict[Role, str] = {"client": "user:*", "operator": "system:*", "runtime": "*:*"}
    return [
        f"{tenant} {who} {Signer.from_file(seed_file(directory, tenant, role)).public_key}"
        for role, who in principals.items()
    ]


def config_file(directory: Path, node: Node | None = None) -> Path:
    """Where the configuration lies: of the only server, or of a node."""
    return directory / f"{'nats-server' if node is None else node.name}.conf"


def write(directory: Path, plan: ServerPlan, *, rotate: Sequence[str] = ()) -> Path:
    """Write the configuration, the seeds and the tenants' settings into `directory`; return the configuration's path.

    Of a cluster each node has a file, and the first one's path is returned; `config_file` tells all.

    Seeds that are there are kept, but for tenants in `rotate`, which get new ones. The server takes the file at its
    start or with `nats-server --signal reload`.

    Raises:
        Misconfigured: the directory cannot be written, a seed in it is none, or a tenant to rotate is not planned.
    """
    strangers = set(rotate) - set(plan.tenants)
    if strangers:
        raise Misconfigured(f"tenants to rotate that are not planned: {', '.join(sorted(strangers))}")
    try:
        directory.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
        keys = {
            (tenant, role): _key(seed_file(directory, tenant, role), anew=tenant in rotate)
            for tenant in plan.tenants
            for role in ROLES
        }
        servers: Sequence[Node | None] = plan.nodes or (None,)
        for node in servers:
            _replace(config_file(directory, node), render(plan, keys, node).encode(), 0o644)
        _replace(tenants_file(directory), tenant_settings(directory, plan).encode(), 0o644)
    except OSError as error:
        raise Misconfigured(f"cannot write {directory}: {error}") from error
    return config_file(directory, servers[0])


def _key(path: Path, *, anew: bool) -> str:
    """The public key of the seed at `path`, which is made if it is not there."""
    if anew or not path.exists():
        seed = nkeys.encode_seed(secrets.token_bytes(32), nkeys.PREFIX_BYTE_USER)  # type: ignore[no-untyped-call]
        _replace(path, bytes(seed) + b"\n", _SEED_MODE)
    try:
        pair: Any = nkeys.from_seed(bytearray(path.read_bytes().strip()))  # type: ignore[no-untyped-call]
        public = bytes(pair.public_key).decode()
        pair.wipe()
    except Exception as error:
        raise Misconfigured(
            f"{path} holds no seed of an nkey ({type(error).__name__}): move it away, and a new one is made"
        ) from error
    return public


def _replace(path: Path, content: bytes, mode: int) -> None:
    """Write `path` whole or not at all, never readable by others than `mode` says."""
    beside = path.with_name(f".{path.name}.{base64.b32encode(secrets.token_bytes(5)).decode()}")
    fd = os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(fd, "wb") as opened:
            opened.write(content)
            opened.flush()
            os.fsync(opened.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
