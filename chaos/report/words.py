"""Words for records, and text that fits into columns.

What a run carries may hold anything: escape sequences, line ends, text that turns direction. All of it is made visible,
since it goes to terminals and next to words of ours.
"""

from __future__ import annotations

import signal
import textwrap
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import orjson

from chaos.history import Record

__all__ = ["action_of", "actor_of", "bad", "clipped", "columns", "ending", "padded", "plain", "told", "wrapped"]

_TURNS_DIRECTION: Final = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_UNSEEN: Final = frozenset({"Cc", "Cs", "Zl", "Zp"})
_KEY_COLUMNS: Final = 44


def plain(text: object) -> str:
    """Text with everything in it visible: control characters and those that turn the direction as escapes."""
    line = str(text)
    if line.isascii() and line.isprintable():
        return line
    return "".join(
        f"\\u{ord(c):04x}" if c in _TURNS_DIRECTION or unicodedata.category(c) in _UNSEEN else c for c in line
    )


def columns(text: str) -> int:
    """How many columns of a terminal it takes."""
    if text.isascii():
        return len(text)
    return sum(_columns(c) for c in text)


def _columns(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def clipped(text: object, most: int = _KEY_COLUMNS, tail: int = 8) -> str:
    """Plain text of at most `most` columns; of a longer one the beginning and, for telling ids apart, the end."""
    line = plain(text)
    if columns(line) <= most:
        return line
    tail = min(tail, max(0, most - 8))
    end = _within(line[::-1], tail)[::-1] if tail else ""
    return f"{_within(line, most - 3 - columns(end))}...{end}"


def _within(line: str, most: int) -> str:
    used = 0
    for at, character in enumerate(line):
        used += _columns(character)
        if used > most:
            return line[:at]
    return line


def padded(text: str, width: int) -> str:
    """Text filled with spaces up to `width` columns."""
    return text + " " * (width - columns(text))


def wrapped(text: object, width: int, indent: str = "") -> Sequence[str]:
    """Plain text in lines of at most `width` columns, each behind `indent`."""
    lines: list[str] = []
    for part in textwrap.wrap(plain(text), max(20, width - len(indent)), break_on_hyphens=False) or [""]:
        # `textwrap` counts characters, and some take two columns.
        rest = part
        while rest:
            line = _within(rest, width - len(indent))
            lines.append(indent + line)
            rest = rest[len(line) :]
    return lines


def actor_of(rule: str) -> str:
    """Who acts by a rule, as its text says: `worker#1` of `worker#1:after_store@2=kill`."""
    return rule.partition(":")[0].strip()


def action_of(rule: str) -> str:
    """What a rule does: `kill` of `worker#1:after_store@2=kill(2)`."""
    return rule.rpartition("=")[2].partition("(")[0].strip()


def ending(status: object) -> str:
    """How a process ended, by its exit code or minus its signal."""
    if type(status) is int and status < 0:
        try:
            return f"killed by {signal.Signals(-status).name}"
        except ValueError:
            return f"killed by signal {-status}"
    return f"exit code {status}"


def told(record: Record) -> str:
    """What happened, in one line without who and when."""
    tell = _TELL.get(record.kind)
    return plain(record.kind if tell is None else tell(record.fields))


def bad(record: Record) -> bool:
    """Whether it is a fault, or an end in bad order."""
    return record.kind == "fault" or (record.kind == "exit" and record["status"] != 0)


_Fields = Mapping[str, Any]


def _send(f: _Fields) -> str:
    key = f"key {clipped(f['key'])}" if f["key"] else "no key"
    after = "" if f["phase"] == "main" else f", phase {clipped(f['phase'])}"
    return f"sends {clipped(f['id'], 28)} ({key}) to {clipped(f['subject'])}{after}"


def _heard(f: _Fields) -> str:
    try:
        envelope = orjson.loads(f["body"])
        name, key, payload = envelope["name"], envelope.get("idempotency_key"), envelope.get("payload")
    except (KeyError, TypeError, AttributeError, orjson.JSONDecodeError):
        return f"hears something on {clipped(f['subject'])}, Msg-Id {clipped(f['msg_id'], 16)}"
    version = payload.get("entity_version") if isinstance(payload, dict) else None
    entity = envelope.get("entity_id")
    of = "" if entity is None else f" {clipped(entity, 20)}" + ("" if version is None else f" v{version}")
    return f"hears {clipped(envelope.get('agent'), 20)}.{clipped(name, 24)}{of} (key {clipped(key, 32)})"


def _call(f: _Fields) -> str:
    entity = "" if f["entity"] is None else f" on {clipped(f['entity'], 20)} v{f['version']}"
    agent = str(f["scope"]).rpartition("/")[2]
    return f"calls {clipped(agent, 20)}.{clipped(f['action'], 24)}{entity} for key {clipped(f['key'] or f['id'])}"


def _frame(f: _Fields) -> str:
    named = f" {clipped(f['id'], 24)}" if f.get("id") else ""
    seq = f" sequence {f['seq']}" if f.get("seq") else ""
    return f"frame {clipped(f['frame'], 12)}{named}{seq} {clipped(f.get('subject') or '', 36)} ({f['bytes']} bytes)"


_TELL: Final[Mapping[str, Callable[[_Fields], str]]] = {
    "header": lambda f: f"run of {clipped(f['scenario'])}",
    "spawn": lambda f: f"starts, pid {f['pid']}",
    "exit": lambda f: f"ends: {ending(f['status'])}",
    "point": lambda f: f"{clipped(f['point'])}@{f['nth']}",
    "call": _call,
    "decided": lambda f: f"decides key {clipped(f['key'])}, digest {clipped(f['digest'], 16, 0)}",
    "fault": lambda f: f"FAULT {clipped(f['rule'], 70)}",
    "healed": lambda f: f"healed {clipped(f['rule'], 70)}",
    "down": lambda f: f"server goes down: {clipped(f['why'], 60)}",
    "up": lambda f: "server is up" + (f": {clipped(f['why'], 60)}" if f.get("why") else ""),
    "send": _send,
    "ok": lambda f: f"PubAck of {clipped(f['id'], 28)}: stored at {f['seq']}",
    "unknown": lambda f: f"outcome of {clipped(f['id'], 28)} unknown: {clipped(f['reason'], 50)}",
    "failed": lambda f: f"{clipped(f['id'], 28)} failed: {clipped(f['reason'], 60)}",
    "listening": lambda _: "listens to events from here on",
    "deaf": lambda f: f"hears no more events: {clipped(f['reason'], 60)}",
    "heard": _heard,
    "holds": lambda f: f"holds {clipped(f['resource'], 28)} under token {f['token']}",
    "looks": lambda f: f"looks at its lease: token {f['token']}, {clipped(f['left_s'], 8)} s left",
    "tries": lambda f: f"is about to act under token {f['token']}",
    "acts": lambda f: f"acted under token {f['token']}: {clipped(f['answer'], 28)}",
    "lets_go": lambda f: f"lets go of token {f['token']}: {clipped(f['why'], 28)}",
    "stopped": lambda _: "STOPPED",
    "woken": lambda _: "goes on",
    "frame": _frame,
    "drained": lambda _: "everything sent is decided",
    "image": lambda f: f"image {f['number']} taken, {'at the end' if f['final'] else 'of the corpse'}",
}
