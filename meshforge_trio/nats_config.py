"""A nats-server's configuration in which the broker keeps tenants apart: an account for each, with its own JetStream.

Subjects, streams, consumers, Msg-Ids and limits of an account exist for that account alone, so nothing of another
tenant can be named, let alone reached: not by its subjects, not by a reply subject, not by the API. No exports and no
imports are written: what is not connected needs no rules. Within an account three users share the work:

    runtime     serves agents: the whole API, commands, events and dead letters of this tenant
    client      sends commands and hears events; may not send the runtime's own actions (`sys_*`)
    operator    a client that may: redrives, discards, looks

Users log in with nkeys (ed25519): the file holds public keys only, and each seed lies in a file of its own, mode 0600.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

import attrs
import nkeys

from meshforge_trio.errors import Misconfigured
from meshforge_trio.locks import EXPIRE
from meshforge_trio.subjects import COMMANDS, DELIVER, DISCARD, EVENTS, FAILED, REDRIVE, is_token

__all__ = [
    "ROLES",
    "Role",
    "ServerPlan",
    "Tls",
    "accounts",
    "inbox_prefix",
    "render",
    "seed_file",
    "tenant_settings",
    "tenants_file",
    "write",
]

Role = Literal["runtime", "client", "operator"]
ROLES: Final[Sequence[Role]] = ("runtime", "client", "operator")

#: Hosts that mean every address of a machine, so none that could be dialled.
_EVERYWHERE: Final = frozenset({"0.0.0.0", "::", "[::]", ""})  # noqa: S104  (nothing is bound here)
_DIRECTORY_MODE: Final = 0o700
_SEED_MODE: Final = 0o600
#: Actions that no client may send, whatever principal it claims.
_SYSTEM_ACTIONS: Final = (REDRIVE, DISCARD, DELIVER, EXPIRE)


@attrs.frozen
class Tls:
    """Paths of the server's certificate and key; `ca` with `verify` asks clients for a certificate, too."""

    cert: Path
    key: Path
    ca: Path | None = None
    verify: bool = False


@attrs.frozen
class ServerPlan:
    """What the configuration is to say. Sizes in bytes, per tenant; `listen` is `host:port`."""

    tenants: Sequence[str]
    listen: str = "127.0.0.1:4222"
    store_dir: Path = Path("jetstream")
    file_bytes: int = 8 << 30
    max_connections: int = 1_000
    max_payload: int = 1 << 20
    sync_always: bool = True
    tls: Tls | None = None

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


def inbox_prefix(tenant: str, role: Role) -> str:
    """Where a user's answers arrive: a place that no other user may listen at. The setting `inbox_prefix`."""
    return f"_INBOX_{tenant}_{role}"


def render(plan: ServerPlan, public_keys: dict[tuple[str, Role], str]) -> str:
    """The whole file."""
    sync = "  # A PubAck is sent when the message is on disk: it survives the loss of power.\n  sync_interval: always\n"
    parts = [
        "# Written by `meshforge nats-config`, which keeps the keys when it is run again.\n",
        f"listen: {json.dumps(plan.listen)}\n",
        f"max_payload: {plan.max_payload}\n",
        "jetstream {\n",
        f"  store_dir: {json.dumps(str(plan.store_dir))}\n",
        f"  max_file_store: {plan.file_bytes * len(plan.tenants)}\n",
        f"  max_memory_store: {16 << 20}\n",
        sync if plan.sync_always else "",
        "}\n",
        _tls(plan.tls),
        accounts(plan, public_keys),
    ]
    return "".join(parts)


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


def tenant_settings(directory: Path, plan: ServerPlan) -> str:
    """A section of meshforge.toml for each tenant: where its runtime logs in, as whom, and its own store."""
    host, _, port = plan.listen.rpartition(":")
    scheme = "nats" if plan.tls is None else "tls"
    url = f"{scheme}://{'127.0.0.1' if host in _EVERYWHERE else host}:{port}"
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


def write(directory: Path, plan: ServerPlan, *, rotate: Sequence[str] = ()) -> Path:
    """Write the configuration, the seeds and the tenants' settings into `directory`; return the configuration's path.

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
        path = directory / "nats-server.conf"
        _replace(path, render(plan, keys).encode(), 0o644)
        _replace(tenants_file(directory), tenant_settings(directory, plan).encode(), 0o644)
    except OSError as error:
        raise Misconfigured(f"cannot write {directory}: {error}") from error
    return path


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
