"""`meshforge nats-config`: a configuration of nats-server in which the broker keeps tenants apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from meshforge_trio.cli.options import Common, common_options, print_json
from meshforge_trio.nats_config import (
    ROLES,
    ServerPlan,
    Tls,
    config_file,
    inbox_prefix,
    parse_node,
    seed_file,
    tenants_file,
    write,
)
from meshforge_trio.policy import ExitCode

__all__ = ["nats_config"]

_FILE = click.Path(path_type=Path)


@click.command("nats-config", short_help="Write a nats-server configuration with an account per tenant.")
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.option("--tenant", "tenants", multiple=True, required=True, metavar="NAME", help="May be given several times.")
@click.option("--listen", default="127.0.0.1:4222", show_default=True, metavar="HOST:PORT")
@click.option("--store-dir", type=_FILE, metavar="DIR", help="Where the streams lie; default: beside the file.")
@click.option("--max-file", default=8 << 30, show_default=True, metavar="BYTES", help="Disk for each tenant's streams.")
@click.option(
    "--sync-lazy", is_flag=True, help="Acknowledge before the disk has it: faster, and power loss may lose it."
)
@click.option("--tls-cert", type=_FILE, metavar="FILE", help="The server's certificate.")
@click.option("--tls-key", type=_FILE, metavar="FILE", help="Its key.")
@click.option("--tls-ca", type=_FILE, metavar="FILE", help="Who signs certificates of clients.")
@click.option("--tls-verify", is_flag=True, help="Clients need a certificate.")
@click.option("--monitor", metavar="HOST:PORT", help="Where the monitoring port listens; none unless given.")
@click.option(
    "--node",
    "nodes",
    multiple=True,
    metavar="NAME=HOST:PORT,HOST:PORT",
    help="A server of a cluster: where clients reach it, and where its peers do. Once for each.",
)
@click.option("--cluster", default="meshforge", show_default=True, metavar="NAME", help="The cluster's name.")
@click.option("--rotate", multiple=True, metavar="NAME", help="New keys for this tenant.")
@common_options
def nats_config(directory: Path, tenants: tuple[str, ...], **given: Any) -> int:
    """Write DIRECTORY/nats-server.conf, a seed for each user of each tenant, and DIRECTORY/tenants.toml.

    The last one has sections for meshforge.toml: one `meshforge run` then serves these tenants, each in its account.

    Each tenant has an account with its own JetStream, and three users: runtime, client, operator. Run again it keeps
    the keys; a tenant that is no longer named is no longer in the file, and its seeds stay. With --node there is a file
    DIRECTORY/NAME.conf for each server of a cluster, all with the same accounts.
    """
    tls = _tls(given.pop("tls_cert"), given.pop("tls_key"), given.pop("tls_ca"), given.pop("tls_verify"))
    plan = ServerPlan(
        tenants,
        listen=given.pop("listen"),
        store_dir=given.pop("store_dir") or directory.absolute() / "jetstream",
        file_bytes=given.pop("max_file"),
        sync_always=not given.pop("sync_lazy"),
        tls=tls,
        monitor=given.pop("monitor"),
        cluster=given.pop("cluster"),
        nodes=tuple(parse_node(text) for text in given.pop("nodes")),
    )
    rotate = given.pop("rotate")
    common = Common.take(given, log_level="warning")
    write(directory, plan, rotate=rotate)
    paths = [str(config_file(directory, node)) for node in plan.nodes or (None,)]
    users = [
        {
            "tenant": tenant,
            "user": role,
            "nkey_seed_file": str(seed_file(directory, tenant, role)),
            "inbox_prefix": inbox_prefix(tenant, role),
        }
        for tenant in tenants
        for role in ROLES
    ]
    if common.as_json:
        told = {"config": paths[0], "configs": paths, "tenants": str(tenants_file(directory)), "users": users}
        print_json(told)
        return ExitCode.OK
    for path in paths:
        click.echo(f"{path}\n\nnats-server -c {path}\n")
    click.echo(f"{tenants_file(directory)}: for meshforge.toml\n\n{tenants_file(directory).read_text()}")
    for user in users:
        click.echo(f"{user['tenant']} {user['user']}:")
        click.echo(f'  nkey_seed_file = "{user["nkey_seed_file"]}"\n  inbox_prefix = "{user["inbox_prefix"]}"')
    return ExitCode.OK


def _tls(cert: Path | None, key: Path | None, ca: Path | None, verify: bool) -> Tls | None:
    if cert is None and key is None:
        if ca is not None or verify:
            raise click.UsageError("--tls-ca and --tls-verify need --tls-cert and --tls-key")
        return None
    if cert is None or key is None:
        raise click.UsageError("--tls-cert and --tls-key go together")
    return Tls(cert, key, ca, verify)
