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
from meshforge_trio.policy import ExitCode
from meshforge_trio.store.audit import Progress as Told

__all__ = ["backup", "restore", "verify"]


@click.command(short_help="Copy the store, beside running workers.")
@click.argument("dest", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace DEST if it exists.")
@click.option("--no-verify", is_flag=True, help="Do not check the copy from end to end.")
@store_option
@common_options
def backup(dest: Path, force: bool, no_verify: bool, **given: Any) -> int:
    """Copy the store to the file DEST as of one moment, while workers go on. Only its owner may read the copy.

    DEST is complete and checked when it appears under its name. Exit code 4 when the store is damaged.
    """
    common = Common.take(given, log_level="warning")
    with _shown_progress() as progress:
        made = backups.back_up(common.settings.store, dest, force=force, verify=not no_verify, progress=progress)
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
@common_options
def restore(source: Path, **given: Any) -> int:
    """Check the backup SRC and put it in the place of the store, which is moved aside and never deleted.

    Refused while a process lives on the store. What was decided since the backup is in the streams alone, so workers
    refuse to start until `meshforge reconcile` has compared them.
    """
    common = Common.take(given, log_level="warning")
    with _shown_progress() as progress:
        done = backups.restore(source, common.settings.store, progress=progress)
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
@common_options
def verify(file: Path | None, **given: Any) -> int:
    """Check the store, or the backup FILE: its pages, every entity's hash chain, keys, heads, dead letters, snapshots.

    Reads as of one moment, beside running workers. Every finding is listed; exit code 4 when there is one.
    """
    common = Common.take(given, log_level="warning")
    with _shown_progress() as progress:
        report = verifying.verify_store(file or common.settings.store, progress)
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
