"""`meshforge backup`, `meshforge restore` and `meshforge verify`: the store's file, kept safe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from meshforge_trio import backup as backups
from meshforge_trio import verify as verifying
from meshforge_trio.cli.options import Common, common_options, print_json, store_option
from meshforge_trio.errors import MeshForgeError
from meshforge_trio.policy import ExitCode, worst_code
from meshforge_trio.runtime import exit_code
from meshforge_trio.sites import stores
from meshforge_trio.store.audit import Progress as Told

__all__ = ["backup", "restore", "verify"]

_tenant_option = click.option("--tenant", metavar="NAME", help="The store of this tenant, where there are several.")


@click.command(short_help="Copy the store, beside running workers.")
@click.argument("dest", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace DEST if it exists.")
@click.option("--no-verify", is_flag=True, help="Do not check the copy from end to end.")
@store_option
@_tenant_option
@common_options
def backup(dest: Path, force: bool, no_verify: bool, tenant: str | None, **given: Any) -> int:
    """Copy the store to the file DEST as of one moment, while workers go on. Only its owner may read the copy.

    DEST is complete and checked when it appears under its name. Exit code 4 when the store is damaged.
    """
    common = Common.take(given, log_level="warning")
    store = _store_of(common, tenant)
    with _shown_progress() as progress:
        made = backups.back_up(store, dest, force=force, verify=not no_verify, progress=progress)
    if common.as_json:
        print_json(attrs.asdict(made))
        return ExitCode.OK
    _tell_scopes(made.scopes)
    checked = "checked" if made.verified else "not checked"
    click.echo(f"{made.path}: {made.bytes} bytes, {made.outputs} outputs, {checked}")
    return ExitCode.OK


@click.command(short_help="Put a backup in the place of the store.")
@click.argument("source", metavar="SRC", type=click.Path(path_type=Path))
@store_option
@_tenant_option
@common_options
def restore(source: Path, tenant: str | None, **given: Any) -> int:
    """Check the backup SRC and put it in the place of the store, which is moved aside and never deleted.

    Refused while a process lives on the store. What was decided since the backup is in the streams alone, so workers
    refuse to start until `meshforge reconcile` has compared them.
    """
    common = Common.take(given, log_level="warning")
    store = _store_of(common, tenant)
    with _shown_progress() as progress:
        done = backups.restore(source, store, progress=progress)
    if common.as_json:
        print_json(attrs.asdict(done))
        return ExitCode.OK
    _tell_scopes(done.scopes)
    if done.aside:
        click.echo(f"The store before is {done.aside}")
    click.echo(
        f"{done.store} is now what {done.backup} was: {done.outputs} outputs. The streams may be ahead of it: run "
        "`meshforge reconcile` before any worker"
    )
    return ExitCode.OK


@click.command(short_help="Check a store from end to end.")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@store_option
@_tenant_option
@common_options
def verify(file: Path | None, tenant: str | None, **given: Any) -> int:
    """Check the store, or the backup FILE: its pages, every entity's hash chain, keys, heads, dead letters, snapshots.

    Where tenants have stores of their own, each is checked. Reads as of one moment, beside running workers. Every
    finding is listed; exit code 4 when there is one.
    """
    common = Common.take(given, log_level="warning")
    if file is not None or tenant is not None:
        return _verify(common, file or _store_of(common, tenant))
    found = [path for path, _ in stores(common.settings)]
    codes = []
    for path in found:
        try:
            codes.append(_verify(common, path))
        except MeshForgeError as error:
            if len(found) == 1:
                raise
            # One that cannot be read at all hides nothing of the others.
            click.echo(f"meshforge: {path}: {error}", err=True)
            codes.append(exit_code(error))
    return worst_code(codes)


def _verify(common: Common, path: Path) -> int:
    with _shown_progress() as progress:
        report = verifying.verify_store(path, progress)
    if common.as_json:
        print_json({**attrs.asdict(report), "whole": report.whole})
    else:
        for finding in report.findings:
            click.echo(str(finding))
        click.echo(
            f"{report.path}: {report.scopes} scopes, {report.entities} entities, {report.events} events, "
            f"{report.outputs} outputs, {report.keys} keys, {report.dead_letters} dead letters, "
            f"{report.snapshots} snapshots: "
            + ("whole" if report.whole else f"DAMAGED, {len(report.findings)} findings")
        )
    return ExitCode.OK if report.whole else ExitCode.STORE_BROKEN


def _store_of(common: Common, tenant: str | None) -> Path:
    """The store of a tenant, or the only one there is.

    Raises:
        click.UsageError: there are several and no tenant is named, or no workspace is of that tenant.
    """
    known = {each.partition("/")[0]: None for each in common.settings.workspaces}
    if tenant is None:
        found = stores(common.settings)
        if len(found) > 1:
            raise click.UsageError(f"there are several stores: name a tenant with --tenant, one of {', '.join(known)}")
        return found[0][0]
    if tenant not in known:
        raise click.UsageError(f"no workspace is of tenant {tenant!r}; there are {', '.join(known)}")
    return common.settings.of_tenant(tenant).store


def _tell_scopes(scopes: Sequence[backups.ScopeCopy]) -> None:
    for each in scopes:
        click.echo(
            f"{each.scope}: {each.outputs} outputs, {each.published} of them known to be published, "
            f"{each.entities} entities, {each.dead_letters} dead letters"
        )


@contextmanager
def _shown_progress() -> Iterator[Told]:
    """A bar for each kind of work, on stderr where that is a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks: dict[str, TaskID] = {}

        def told(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what)
            bar.update(tasks[what], completed=done, total=total or None)

        yield told
