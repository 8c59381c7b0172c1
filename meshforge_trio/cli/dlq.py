"""`meshforge dlq`: dead letters, looked at; their fates are in `dlq_fates`, the sweep in `dlq_sweep`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final

import click
import orjson
from rich.table import Table

from meshforge_trio.asides import DIED
from meshforge_trio.cli.dlq_fates import discard, redrive
from meshforge_trio.cli.dlq_options import (
    Selection,
    age_of,
    cells,
    filter_options,
    hex_lines,
    plain,
    print_table,
    table_of,
    whole_file,
)
from meshforge_trio.cli.dlq_sweep import sweep
from meshforge_trio.cli.options import Common, common_options, print_json, store_option, workspace_option
from meshforge_trio.cli.reader import ScopeFile, StoreFiles, read_stores
from meshforge_trio.clock import SystemClock
from meshforge_trio.dead_letters import as_document, as_summary
from meshforge_trio.policy import ExitCode
from meshforge_trio.store.port import DeadLetter

__all__ = ["body_lines", "dlq"]

_REASON_SHOWN: Final = 80
# To a table, so that the first ones show before the last one is read.
_TABLE_ROWS: Final = 500
_STATES: Final = ("waiting", "redriven", "discarded", "all")


def _state_option(function: Any) -> Any:
    kinds = click.Choice(_STATES)
    return click.option("--state", type=kinds, default="waiting", show_default=True, help="What became of it.")(
        function
    )


@click.group(short_help="Dead letters: list, show, redrive, discard, export, sweep.")
def dlq() -> None:
    """Look at dead letters and decide what becomes of them.

    A dead letter is a command that was given up, whole, with the story of its failure. Nothing is ever dropped: it
    waits until it is redriven or discarded.
    """


def _selection(given: dict[str, Any], **more: Any) -> Selection:
    state = given.pop("state")
    common = Common.take(given, log_level="warning")
    return Selection.take(common, given, SystemClock().now(), state=None if state == "all" else state, **more)


@click.command("list", short_help="List dead letters.")
@filter_options
@_state_option
@store_option
@workspace_option
@common_options
def list_(**given: Any) -> int:
    """List dead letters, those that wait for their fate unless --state says otherwise.

    Reads the file beside a running worker. With --json, one line per dead letter, without its original.
    """
    chosen = _selection(given)
    table = _table()
    count = 0
    with read_stores(chosen.common.settings) as store:
        for rows, letter in chosen.letters(store):
            count += 1
            if chosen.common.as_json:
                print_json(as_summary(rows.scope, letter))
                continue
            table.add_row(*cells(*_row(rows, letter, chosen.now)))
            if table.row_count == _TABLE_ROWS:
                print_table(table)
                table = _table()
    if table.row_count:
        print_table(table)
    click.echo(f"{count} dead letters", err=True)
    return ExitCode.OK


def _table() -> Table:
    return table_of("scope", "key", "#generation", "code", "reason", "#attempts", "#age", "state")


def _row(rows: ScopeFile, letter: DeadLetter, now: float) -> Sequence[str]:
    reason = letter.reason if len(letter.reason) <= _REASON_SHOWN else f"{letter.reason[: _REASON_SHOWN - 3]}..."
    numbers = (str(letter.attempts), age_of(now - letter.last_at))
    return (str(rows.scope), letter.key, str(letter.generation), letter.code, reason, *numbers, letter.state)


@click.command(short_help="Show a dead letter whole.")
@click.argument("key")
@click.option("--agent", metavar="NAME", help="Of this agent, where several have a dead letter of that key.")
@click.option("--generation", type=click.IntRange(0), metavar="N", help="Of this generation; else of the newest.")
@store_option
@workspace_option
@common_options
def show(key: str, agent: str | None, generation: int | None, **given: Any) -> int:
    """Show the dead letter of a KEY: the original, each call of its handler, and what became of it."""
    filters = {"agent": agent, "state": "all", "entity": None, "error": None, "older_than": None, "newer_than": None}
    chosen = _selection(given | filters, keys={key}, generation=generation)
    with read_stores(chosen.common.settings) as store:
        ((rows, letter),) = chosen.named(store)
        others = _others(store, rows, letter)
        if chosen.common.as_json:
            print_json(as_document(rows.scope, letter))
            return ExitCode.OK
        for line in _lines(rows, letter, others):
            click.echo(line)
    return ExitCode.OK


def _others(store: StoreFiles, rows: ScopeFile, letter: DeadLetter) -> Sequence[DeadLetter]:
    """The other generations of the same key."""
    same = (other for other in store.rows(rows.scope).dead_letters() if other.key == letter.key)
    return [other for other in same if other.generation != letter.generation]


def _lines(rows: ScopeFile, letter: DeadLetter, others: Sequence[DeadLetter]) -> Iterator[str]:
    yield f"scope       {rows.scope}"
    yield f"key         {plain(letter.key)}"
    yield f"generation  {letter.generation}"
    yield f"state       {_fate(rows, letter)}"
    for other in others:
        yield f"            generation {other.generation}: {other.state}, {other.code}"
    yield f"code        {plain(letter.code)}"
    yield f"reason      {plain(letter.reason)}"
    yield f"entity      {plain(letter.entity_id or '(none)')}"
    yield f"trace       {letter.trace_id or '(not recorded)'}"
    yield f"attempts    {letter.attempts}, first {_time(letter.first_at)}, last {_time(letter.last_at)}"
    for at, error in letter.calls:
        yield f"  {_time(at)}  {plain(error or DIED)}"
    yield f"subject     {plain(letter.subject)}"
    yield "headers"
    for line in letter.headers.split(b"\r\n")[1:]:
        if line:
            yield f"  {plain(line.decode(errors='backslashreplace'))}"
    yield f"payload     {len(letter.body)} bytes"
    yield from (f"  {line}" for line in body_lines(letter.body))


def _fate(rows: ScopeFile, letter: DeadLetter) -> str:
    if letter.state != "redriven":
        return letter.state
    found = rows.read(letter.key, None).keys.get(letter.key)
    return f"redriven, {'not decided yet' if found is None else f'its key is {found[0].outcome} now'}"


def body_lines(body: bytes) -> Iterator[str]:
    """JSON indented, other text with its control characters escaped, anything else as hexadecimal."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        yield from hex_lines(body)
        return
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    # Told in another form only where nothing is lost: no key that stands twice, no digit of a number.
    if found is not None and text in (_compact(found), json.dumps(found), json.dumps(found, ensure_ascii=False)):
        text = json.dumps(found, ensure_ascii=False, indent=2)
    yield from (plain(line) for line in text.split("\n"))


def _compact(document: Any) -> str:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")


@click.command(short_help="Write dead letters whole to a file.")
@click.argument("file", metavar="FILE|-")
@filter_options
@_state_option
@click.option("--force", is_flag=True, help="Overwrite FILE if it exists.")
@store_option
@workspace_option
@common_options
def export(file: str, force: bool, **given: Any) -> int:
    """Write dead letters with their originals to FILE, `-` for stdout, as JSON lines.

    `payload` and `headers` are text where they are UTF-8, else base64; `payload_encoding` says which. FILE is there
    whole or not at all. What is sealed stays so.
    """
    chosen = _selection(given)
    count = 0
    with read_stores(chosen.common.settings) as store, _target(file, force=force) as target:
        for rows, letter in chosen.letters(store, as_stored=True):
            target.write(orjson.dumps(as_document(rows.scope, letter)) + b"\n")
            count += 1
    click.echo(f"{count} written to {'stdout' if file == '-' else file}", err=True)
    return ExitCode.OK


@contextmanager
def _target(file: str, *, force: bool) -> Iterator[IO[bytes]]:
    if file == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    with whole_file(Path(file), force=force) as opened:
        yield opened


for _command in (list_, show, redrive, discard, export, sweep):
    dlq.add_command(_command)
