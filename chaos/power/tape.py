"""The tape: what a store's files went through, and what the outside was told meanwhile, in one order.

A step stands where it was complete: a write or a sync after it returned, a promise before it left the process. So
whatever was promised before a step was promised to the outside at the earliest then.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import attrs
import orjson

__all__ = ["Delete", "Note", "Step", "Sync", "Tape", "TapeError", "Truncate", "Write", "load_tape"]

#: Of the file.
_VERSION: Final = 1


class TapeError(ValueError):
    """A file that holds no tape, or one that cannot be read."""


@attrs.frozen
class Write:
    """`content` at `offset` of the file with this suffix: "" is the database, "-wal" its log."""

    file: str
    offset: int
    content: bytes


@attrs.frozen
class Truncate:
    """The file was cut to `size` bytes."""

    file: str
    size: int


@attrs.frozen
class Sync:
    """Everything written to the file before is durable."""

    file: str


@attrs.frozen
class Delete:
    """The file is gone; with `synced` its name is as well, whatever happens."""

    file: str
    synced: bool


@attrs.frozen
class Note:
    """What happened beside the files.

    | kind | fields |
    |---|---|
    | `point` | `point`: it was passed |
    | `session` | `number`: a session of the runtime begins |
    | `acked` | `consumer`, `subject`, `headers`, `body`: a delivery, ACKed from here on |
    | `published` | `msg_id`, `subject`, `body`: on its way to its stream |
    | `echoed` | `msg_id`, `subject`, `body`: on its way to core subscribers |
    """

    kind: str
    fields: Mapping[str, Any] = attrs.field(factory=dict)

    def __getitem__(self, field: str) -> Any:
        return self.fields[field]


Step = Write | Truncate | Sync | Delete | Note

_KINDS: Final[Mapping[str, type[Any]]] = {"write": Write, "truncate": Truncate, "sync": Sync, "delete": Delete}
_NAMES: Final = {kind: name for name, kind in _KINDS.items()}


class Tape:
    """Steps, appended by any thread. `told` says what was recorded."""

    def __init__(self, told: Mapping[str, Any] | None = None, steps: Sequence[Step] = ()) -> None:
        self.told: dict[str, Any] = dict(told or {})
        self.steps: list[Step] = list(steps)
        # Kept apart: the list itself is what every thread appends to, in one operation of the interpreter.
        self.append = self.steps.append

    def note(self, kind: str, **fields: Any) -> None:
        """Append a note."""
        self.append(Note(kind, fields))

    def save(self, path: Path) -> None:
        """Write one JSON line for `told`, and one for each step."""
        lines: list[Mapping[str, Any]] = [{"version": _VERSION, "steps": len(self.steps), "told": self.told}]
        lines += [_dumped(step) for step in self.steps]
        path.write_bytes(b"".join(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE) for line in lines))


def load_tape(path: Path) -> Tape:
    """Read what `Tape.save` wrote.

    Raises:
        TapeError: it is missing, truncated, of a newer version, or something else.
    """
    try:
        first, *lines = map(orjson.loads, path.read_bytes().splitlines())
        if first["version"] > _VERSION:
            raise TapeError(f"{path} is of version {first['version']}, this reads up to {_VERSION}")
        if len(lines) != first["steps"]:
            raise TapeError(f"{path} holds {len(lines)} steps of {first['steps']}: it is truncated; record it again")
        return Tape(first["told"], [_loaded(line) for line in lines])
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        if isinstance(error, TapeError):
            raise
        raise TapeError(f"{path} is no tape, or a damaged one: {type(error).__name__}: {error}") from error


def _dumped(step: Step) -> Mapping[str, Any]:
    if isinstance(step, Note):
        return {"note": step.kind, **{name: _dumped_value(value) for name, value in step.fields.items()}}
    fields = attrs.asdict(step)
    return {"step": _NAMES[type(step)], **{name: _dumped_value(value) for name, value in fields.items()}}


def _dumped_value(value: Any) -> Any:
    return {"base64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value


def _loaded(line: dict[str, Any]) -> Step:
    fields = {name: _loaded_value(value) for name, value in line.items()}
    if "note" in fields:
        return Note(fields.pop("note"), fields)
    made: Step = _KINDS[fields.pop("step")](**fields)
    return made


def _loaded_value(value: Any) -> Any:
    return base64.b64decode(value["base64"], validate=True) if isinstance(value, dict) else value
