"""`meshforge dlq sweep`: commands that lie in the command stream and that nobody will decide."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import attrs
import click
import orjson
import trio

from meshforge_trio.broker.bridge import open_loop
from meshforge_trio.cli.dlq_options import age, age_of, cells, print_table, table_of, whole_file
from meshforge_trio.cli.options import (
    Common,
    common_options,
    print_json,
    store_option,
    url_option,
    workspace_option,
)
from meshforge_trio.cli.reader import read_store
from meshforge_trio.clock import SystemClock
from meshforge_trio.dead_letters import encoded
from meshforge_trio.errors import Poison
from meshforge_trio.launch import connect_options
from meshforge_trio.policy import ExitCode
from meshforge_trio.sites import brokers, stores
from meshforge_trio.stranded import CommandStream, Kept, Stranded, Why, open_command_stream
from meshforge_trio.stranded import sweep as find_stranded
from meshforge_trio.subjects import COMMANDS, consumer_name, parse_subject

__all__ = ["sweep"]

_DO: Final[Mapping[Why, str]] = {
    "unaddressed": "serve that agent there with `meshforge run`, or mend the sender, then --export and --delete",
    "unattended": "start `meshforge run` for it, or --export and --delete if nobody wants them any more",
    "passed_over": "--export and --delete, then send them again under their keys",
}


@click.command(short_help="Find commands that nobody serves.")
@click.option("--older-than", type=age, default="5m", show_default=True, metavar="AGE", help="In the stream for AGE.")
@click.option("--export", "file", type=click.Path(path_type=Path), metavar="FILE", help="Write them whole to FILE.")
@click.option("--delete", is_flag=True, help="With --export: delete from the stream what was written.")
@click.option("--force", is_flag=True, help="Overwrite FILE if it exists.")
@click.option("--yes", is_flag=True, help="Do not ask before deleting.")
@url_option
@store_option
@workspace_option
@common_options
def sweep(older_than: float, file: Path | None, delete: bool, force: bool, yes: bool, **given: Any) -> int:
    """Find commands that lie in the command stream and that nobody will decide as things stand.

    Those that no consumer takes, whose consumer nobody pulls from, or whose consumer has passed them over. A store, if
    there is one, tells whose worker lives.

    Exit code 1 if any is found and left there, else 0.
    """
    if delete and file is None:
        raise click.UsageError("--delete needs --export FILE: nothing is deleted that was not written")
    common = Common.take(given, log_level="warning")

    async def run() -> int:
        async with open_loop(), AsyncExitStack() as stack:
            found: list[tuple[CommandStream, Stranded]] = []
            served, wanted = _served(common), _wanted(common)
            for settings in brokers(common.settings):
                stream = await stack.enter_async_context(open_command_stream(connect_options(settings)))
                here = await find_stranded(stream, served=served, older_than_s=older_than, wanted=wanted)
                found += [(stream, stranded) for stranded in here]
            _tell(common, [stranded for _, stranded in found])
            if file is None or not found:
                return ExitCode.FAILED if found else ExitCode.OK
            written = await _export(found, file, force=force)
            click.echo(f"{len(written)} written to {file}", err=True)
            if not delete:
                return ExitCode.FAILED
            question = f"delete these {len(written)} commands from {COMMANDS}?"
            if not yes and sys.stdin.isatty() and not click.confirm(question, err=True):
                click.echo("nothing was deleted", err=True)
                return ExitCode.FAILED
            gone = [await stream.delete(kept.found) for stream, kept in written]
            click.echo(f"{sum(gone)} deleted, {len(gone) - sum(gone)} were gone already", err=True)
            return ExitCode.OK

    return trio.run(run)


def _served(common: Common) -> frozenset[str]:
    """The consumers of scopes that a living process serves, as the stores know; none where there is no store."""
    found: set[str] = set()
    for path, _ in stores(common.settings):
        if path.is_file():
            with read_store(path) as store:
                found.update(consumer_name(scope) for scope in store.scopes if store.rows(scope).is_served())
    return frozenset(found)


def _wanted(common: Common) -> Callable[[str], bool]:
    """Whether a subject is of the workspace that was given; of any, if none was."""
    if "workspaces" not in common.flags:
        return lambda _: True

    def wanted(subject: str) -> bool:
        try:
            scope = parse_subject(subject).scope
        except Poison:
            return False
        return (scope.tenant, scope.workspace) == common.workspace

    return wanted


def _tell(common: Common, found: Sequence[Stranded]) -> None:
    now = SystemClock().now()
    table = table_of("subject", "#count", "#oldest", "#first seq", "why", "what to do")
    for stranded in found:
        old_s = max(0.0, now - stranded.oldest_at)
        if common.as_json:
            print_json(
                {
                    "subject": stranded.subject,
                    "why": stranded.why,
                    "detail": stranded.detail,
                    "count": len(stranded.seqs),
                    "oldest_s": old_s,
                    "first_seq": stranded.seqs[0],
                    "do": _DO[stranded.why],
                }
            )
        else:
            numbers = (str(len(stranded.seqs)), age_of(old_s), str(stranded.seqs[0]))
            table.add_row(*cells(stranded.subject, *numbers, stranded.detail, _DO[stranded.why]))
    if table.row_count:
        print_table(table)
    elif not found and not common.as_json:
        click.echo("no stranded commands", err=True)


async def _export(
    found: Sequence[tuple[CommandStream, Stranded]], file: Path, *, force: bool
) -> Sequence[tuple[CommandStream, Kept]]:
    """Write what is stranded whole, each stream in its order; returns what was written, once it is on the disk."""
    written: list[tuple[CommandStream, Kept]] = []
    with whole_file(file, force=force) as target:
        for stream in dict.fromkeys(stream for stream, _ in found):
            places = [(seq, each.why) for other, each in found if other is stream for seq in each.seqs]
            for seq, why in sorted(places):
                kept = await stream.kept(seq)
                # Whoever was served meanwhile needs no copy.
                if kept is not None:
                    target.write(orjson.dumps(_document(kept, why)) + b"\n")
                    written.append((stream, attrs.evolve(kept, headers=b"", body=b"")))
    return written


def _document(kept: Kept, why: Why) -> dict[str, Any]:
    return {
        "stream": COMMANDS,
        "seq": kept.found.seq,
        "subject": kept.found.subject,
        "at": kept.found.at,
        "time": datetime.fromtimestamp(kept.found.at, UTC).isoformat(),
        "why": why,
        **encoded("headers", kept.headers),
        **encoded("payload", kept.body),
    }
