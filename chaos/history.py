"""The history of a run: one JSON object a line, written by every actor, in the order in which things happened.

Each actor writes through a descriptor opened for appending before anything else happens in it, one `write` a line:
the kernel keeps what it was given when the writer is killed, and lines of several processes do not mix.

    {"t": 81234567890, "actor": "worker#1", "kind": "point", "point": "after_store", "nth": 2}

`t` is nanoseconds of the machine's monotonic clock, the same for every process. The first line is a `header` with
the version of this schema.

| kind | actor | fields |
|---|---|---|
| `header` | harness | `version`, `scenario`, `plan`, `app` |
| `spawn` `exit` | worker#N | `pid`; `status`: exit code, or minus the signal |
| `point` | worker#N | `point`, `nth`: it is there for the nth time |
| `call` | worker#N | of a handler: `scope`, `key`, `id`, `action`, `entity`, `version`, `before`: digest of the state |
| `decided` | worker#N | `key`, `digest`: what the handler returned |
| `fault` | who acts | `rule`: the text of the plan's rule, written before the action |
| `healed` | who acted | `rule`: what the rule broke is whole again |
| `down` `up` | nats | `why` |
| `send` | client | `id`, `key`, `subject`, `phase` |
| `ok` `unknown` `failed` | client | `id`, and `seq`, or `reason` |
| `listening` `deaf` | client | what core subscribers hear is recorded from here on, or no longer |
| `heard` | client | `subject`, `msg_id`, `body` (text, or `body_base64`) |
| `holds` | client#N | `resource`, `token`: it has the lock from here on |
| `looks` | client#N | `token`, `at`: when, `left_s`: how much of its lease it has left, by its own clock |
| `tries` | client#N | `token`, under which it is about to act |
| `acts` | client#N | `token`, `answer`: the name of what it was answered under that token |
| `lets_go` | client#N | `token`, `why`: `lost` where its block was cancelled, else `released` |
| `stopped` `woken` | client#N | its process, by SIGSTOP and SIGCONT |
| `frame` | proxy | `frame`, `conn`, `bytes`, and what it has of `subject`, `msg_id`, `seq`, `id`; `lost` if it was |
| `drained` | harness | everything that was sent is decided |
| `image` | harness | `number`, `final`: store and streams were copied |
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import attrs
import orjson

__all__ = ["KINDS", "VERSION", "History", "HistoryError", "Record", "now_ns", "read_history"]

#: Of this schema. A reader refuses a newer one.
VERSION: Final = 1

#: Every kind of record with the fields it cannot do without.
KINDS: Final[Mapping[str, frozenset[str]]] = {
    "header": frozenset({"version", "scenario", "plan", "app"}),
    "spawn": frozenset({"pid"}),
    "exit": frozenset({"status"}),
    "point": frozenset({"point", "nth"}),
    "call": frozenset({"scope", "key", "id", "action", "entity", "version", "before"}),
    "decided": frozenset({"key", "digest"}),
    "fault": frozenset({"rule"}),
    "healed": frozenset({"rule"}),
    "down": frozenset({"why"}),
    "up": frozenset(),
    "send": frozenset({"id", "key", "subject", "phase"}),
    "ok": frozenset({"id", "seq"}),
    "unknown": frozenset({"id", "reason"}),
    "failed": frozenset({"id", "reason"}),
    "listening": frozenset(),
    "deaf": frozenset({"reason"}),
    "heard": frozenset({"subject", "msg_id"}),
    "holds": frozenset({"resource", "token"}),
    "looks": frozenset({"token", "at", "left_s"}),
    "tries": frozenset({"token"}),
    "acts": frozenset({"token", "answer"}),
    "lets_go": frozenset({"token", "why"}),
    "stopped": frozenset(),
    "woken": frozenset(),
    "frame": frozenset({"frame", "conn", "bytes"}),
    "drained": frozenset(),
    "image": frozenset({"number", "final"}),
}


class HistoryError(ValueError):
    """A history that cannot be judged: truncated, of a newer version, or not a history at all."""


def now_ns() -> int:
    """The clock of histories."""
    return time.monotonic_ns()


@attrs.frozen
class Record:
    """One line. `t` is nanoseconds of `now_ns`, `fields` what its kind carries beside."""

    t: int
    actor: str
    kind: str
    fields: Mapping[str, Any] = attrs.field(factory=dict)

    def __getitem__(self, field: str) -> Any:
        return self.fields[field]


class History:
    """Writes lines to a descriptor. Costs one system call a line; nothing is buffered in this process."""

    def __init__(self, descriptor: int, actor: str) -> None:
        """`descriptor` is open for appending and stays the caller's."""
        self._descriptor = descriptor
        self.actor = actor

    @classmethod
    def open(cls, path: Path, actor: str) -> History:
        """Append to `path`, which is made if it is missing. `close` it."""
        return cls(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), actor)

    def write(self, kind: str, *, actor: str | None = None, **fields: Any) -> None:
        """Append one record, by `actor` if that is not whose history this is."""
        line = {"t": now_ns(), "actor": actor or self.actor, "kind": kind, **fields}
        os.write(self._descriptor, orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))

    def of(self, actor: str) -> History:
        """The same file, written by another actor of this process."""
        return History(self._descriptor, actor)

    def close(self) -> None:
        """Close the descriptor, for every actor that shares it."""
        os.close(self._descriptor)


def read_history(path: Path) -> Sequence[Record]:
    """Read a history back.

    Raises:
        HistoryError: it is missing, empty, truncated, of a newer version, or a line is no record of its kind.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise HistoryError(f"{path}: {error.strerror or error}") from error
    records = list(_records(path, text))
    if not records or records[0].kind != "header":
        raise HistoryError(f"{path}: does not begin with a header: not a history, or its beginning is missing")
    return records


def _records(path: Path, text: bytes) -> Iterator[Record]:
    lines = text.split(b"\n")
    if lines[-1]:
        raise HistoryError(f"{path}: truncated in line {len(lines)}: the last line has no end")
    for number, line in enumerate(lines[:-1], 1):
        record = _record(line, f"{path}: line {number}")
        if record.kind == "header" and (type(record["version"]) is not int or record["version"] > VERSION):
            raise HistoryError(
                f"{path}: written in version {record['version']!r:.40} of the schema, this reads up to {VERSION}: "
                "judge it with the version that wrote it"
            )
        yield record


def _record(line: bytes, where: str) -> Record:
    try:
        fields = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise HistoryError(f"{where} is no JSON: {error}") from error
    if not isinstance(fields, dict):
        raise HistoryError(f"{where} is no object")
    t, actor, kind = (fields.pop(name, None) for name in ("t", "actor", "kind"))
    if type(t) is not int or not isinstance(actor, str) or not isinstance(kind, str):
        raise HistoryError(f"{where} lacks t, actor or kind")
    needed = KINDS.get(kind)
    if needed is None:
        raise HistoryError(f"{where} is of the unknown kind {kind!r:.40}")
    missing = sorted(needed - fields.keys())
    if missing:
        raise HistoryError(f"{where}: {kind} lacks {', '.join(missing)}")
    return Record(t, actor, kind, fields)
