"""`meshforge keys`: key rings of tenants, made, rotated and destroyed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import attrs
import click

from meshforge_trio.cli.options import Common, common_options, print_json, store_option
from meshforge_trio.cli.reader import SealedRows, read_store
from meshforge_trio.clock import SystemClock
from meshforge_trio.errors import Misconfigured
from meshforge_trio.keyring import Ring, change_ring, make_ring, parse_ring, read_ring
from meshforge_trio.policy import ExitCode
from meshforge_trio.subjects import Scope, is_token

__all__ = ["keys"]

F = TypeVar("F", bound=Callable[..., Any])


@click.group(short_help="Key rings: new, list, rotate, destroy.")
def keys() -> None:
    """Make, list, rotate and destroy the keys that seal the payloads of tenants.

    The key `codec_keys` of the settings names a ring for each tenant that has one. Workers notice changes themselves.
    """


def _ring_options(function: F) -> F:
    path = click.Path(dir_okay=False, path_type=Path)
    option = click.option("--file", type=path, metavar="FILE", help="The ring; else as `codec_keys` names it.")
    return click.argument("tenant")(option(function))


@keys.command(short_help="Make the key ring of a tenant.")
@_ring_options
@common_options
def new(tenant: str, file: Path | None, **given: Any) -> int:
    """Make a key ring with one key for TENANT, in a file that only its owner may read.

    Keep a copy elsewhere: without the ring the tenant's payloads are lost. A copy outlives a destruction.
    """
    common = Common.take(given, log_level="warning")
    if not is_token(tenant):
        raise click.UsageError(f"tenant {tenant!r:.100} is not 1 to 64 of A-Z a-z 0-9 _ -")
    path = _path(common, tenant, file)
    ring = make_ring(path, tenant, SystemClock().now())
    if common.as_json:
        print_json(_document(path, ring))
    else:
        click.echo(f'{path}: key {ring.keys[0].id}\n\ncodec_keys = ["{tenant} = {path.absolute()}"]')
    return ExitCode.OK


@keys.command("list", short_help="List the key rings of the settings.")
@common_options
def list_(**given: Any) -> int:
    """List the rings that `codec_keys` names, with their keys: the newest of each seals, all open."""
    common = Common.take(given, log_level="warning")
    for tenant, path in map(parse_ring, common.settings.codec_keys):
        ring = read_ring(path, tenant)
        if common.as_json:
            print_json(_document(path, ring))
            continue
        click.echo(f"{tenant}  {path}")
        for key in ring.keys:
            click.echo(f"  {key.id}  made {key.made_at}{', seals' if key is ring.keys[-1] else ''}")
        for grave in ring.destroyed:
            click.echo(f"  {grave.id}  made {grave.made_at}, destroyed {grave.destroyed_at}")
    return ExitCode.OK


@keys.command(short_help="Add a key that seals from now on.")
@_ring_options
@common_options
def rotate(tenant: str, file: Path | None, **given: Any) -> int:
    """Add a key to the ring of TENANT. It seals from now on; the older ones open what they sealed.

    Where clients have copies of the ring, give it to the workers first.
    """
    common = Common.take(given, log_level="warning")
    path = _path(common, tenant, file)
    ring = change_ring(path, tenant, lambda ring: ring.rotated(SystemClock().now()))
    if common.as_json:
        print_json(_document(path, ring))
    else:
        click.echo(f"{path}: key {ring.keys[-1].id} seals from now on, {len(ring.keys)} keys open")
    return ExitCode.OK


@keys.command(short_help="Destroy all keys of a tenant: its payloads are erased.")
@_ring_options
@click.option("--yes", is_flag=True, help="Do not ask.")
@store_option
@common_options
def destroy(tenant: str, file: Path | None, yes: bool, **given: Any) -> int:
    """Destroy every key of TENANT. Nothing that they sealed can be read any more, in stores, streams and backups.

    Ids, subjects, keys and hash chains stay, so `verify` passes. It cannot be undone, except by whoever has a copy of
    the ring: destroy those, too.
    """
    common = Common.take(given, log_level="warning")
    path = _path(common, tenant, file)
    ring = read_ring(path, tenant)
    if ring.erased is not None:
        click.echo(f"{ring.erased}; nothing was done", err=True)
        return ExitCode.OK
    for scope, rows in _sealed(common.settings.store, tenant):
        click.echo(
            f"{scope}: {rows.outputs} outputs of {rows.entities} entities, {rows.snapshots} snapshots and "
            f"{rows.dead} dead letters become unreadable",
            err=True,
        )
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("this destroys keys: say --yes")
        if not click.confirm(f"destroy {len(ring.keys)} keys of {tenant}, for ever?", err=True):
            click.echo("nothing was done", err=True)
            return ExitCode.FAILED
    ring = change_ring(path, tenant, lambda ring: ring.emptied(SystemClock().now()))
    if common.as_json:
        print_json(_document(path, ring))
    else:
        click.echo(f"{path}: {ring.erased}")
    return ExitCode.OK


def _path(common: Common, tenant: str, file: Path | None) -> Path:
    if file is not None:
        return file
    rings = dict(map(parse_ring, common.settings.codec_keys))
    if tenant not in rings:
        raise Misconfigured(f"`codec_keys` names no ring of tenant {tenant!r}: name it there, or give --file")
    return rings[tenant]


def _sealed(store: Path, tenant: str) -> Iterator[tuple[Scope, SealedRows]]:
    if not store.is_file():
        return
    with read_store(store) as opened:
        for scope in opened.scopes:
            if scope.tenant == tenant:
                yield scope, opened.rows(scope).sealed()


def _document(path: Path, ring: Ring) -> dict[str, Any]:
    return {
        "tenant": ring.tenant,
        "file": str(path),
        "keys": [{"id": key.id, "made_at": key.made_at} for key in ring.keys],
        "destroyed": [attrs.asdict(grave) for grave in ring.destroyed],
    }
