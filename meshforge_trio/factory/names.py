"""Which names a PRD may use: what is a subject token and a Python name, and is not taken by either."""

from __future__ import annotations

import builtins
import keyword
import re
from typing import Final

from meshforge_trio.factory.model import Position
from meshforge_trio.factory.problems import Problems
from meshforge_trio.subjects import RESERVED_EVENTS, SYSTEM_PREFIX

__all__ = ["TITLE_LENGTH_MAX", "Namespace", "check_code", "check_name", "check_title", "check_token"]

TITLE_LENGTH_MAX: Final = 80
_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,63}")
_TOKEN: Final = re.compile(r"[a-z][a-z0-9_-]{0,63}")

#: What generated modules call something else.
_OF_THE_CODE: Final = frozenset(
    {
        "annotations",
        "any",
        "app",
        "agent",
        "attrs",
        "cattrs",
        "context",
        "ctx",
        "decimal",
        "decision",
        "entity_id",
        "event",
        "exists",
        "final",
        "fields",
        "literal",
        "now",
        "payload",
        "refused",
        "reply",
        "self",
        "send",
        "state",
        "typing",
    }
)
#: What expressions call something else.
_OF_EXPRESSIONS: Final = frozenset({"nothing", "true", "false", "default"})
_BUILTINS: Final = frozenset(dir(builtins)) | frozenset(keyword.kwlist) | frozenset({"match", "case"})
#: Devices of Windows, whatever follows them: no file can be called so.
_DEVICES: Final = frozenset(
    {"con", "prn", "aux", "nul", *(f"com{i}" for i in range(10)), *(f"lpt{i}" for i in range(10))}
)
_AGENTS: Final = frozenset({"lock", "security", "dead_letters", "scenarios", "tests", "agents", "meshforge_trio"})
_EVENTS: Final = RESERVED_EVENTS | {"found", "not_found"}
_FIELDS: Final = frozenset({"entity_version", "schema_version"})
#: Codes of refusals that the runtime and every command have already.
_CODES: Final = frozenset({"bad_payload", "already_exists", "not_found", "unknown_action", "conflict"})


def check_name(name: str, kind: str, where: Position, problems: Problems, owner: str = "") -> str:
    """Complain about a name that no agent, command, event, query or field may have. `owner` makes a better one.

    Returns the name to go on with: as it should have been written, if that can be guessed.
    """
    if not _NAME.fullmatch(name):
        problems.add(
            where,
            f"{name!r:.80} cannot be the name of {_a(kind)}",
            f"use 1 to 64 small letters, digits and '_', a letter first{_instead(_spelled(name))}",
        )
        return _spelled(name) or name
    taken = _taken_by(name, kind)
    if taken:
        better = f"{name}_{owner}" if owner and kind != "field" else f"the_{name}" if kind == "field" else f"{name}s"
        problems.add(where, f"{name!r} cannot be the name of {_a(kind)}: {taken}", f"take another, like {better!r}")
    return name


def _taken_by(name: str, kind: str) -> str:
    if name in _BUILTINS:
        return "Python has it already"
    if name.startswith(SYSTEM_PREFIX):
        return f"names that begin with {SYSTEM_PREFIX!r} are the runtime's own"
    if name in _OF_THE_CODE:
        return "generated code uses it"
    if name in _OF_EXPRESSIONS:
        return "it means something in expressions"
    if name in _DEVICES:
        return "no file may be called so on every system"
    of_runtime = {"agent": _AGENTS, "event": _EVENTS, "field": _FIELDS}.get(kind, frozenset())
    return "the runtime has it already" if name in of_runtime else ""


def check_token(text: str, kind: str, where: Position, problems: Problems) -> None:
    """Complain about a tenant or workspace that is no part of a subject."""
    if not _TOKEN.fullmatch(text) or text in _DEVICES:
        problems.add(
            where,
            f"{text!r:.80} cannot be the name of a {kind}",
            f"use 1 to 64 small letters, digits, '_' and '-', a letter first{_instead(_spelled(text))}",
        )


def check_code(code: str, where: Position, problems: Problems) -> None:
    """Complain about the code of a refusal that says something else already."""
    if not _NAME.fullmatch(code):
        problems.add(
            where,
            f"{code!r:.80} cannot be the code of a refusal",
            f"use 1 to 64 small letters, digits and '_', a letter first{_instead(_spelled(code))}",
        )
    elif code in _CODES:
        problems.add(where, f"{code!r} cannot be the code of a refusal: the runtime has it already", "take another")


def check_title(title: str, where: Position, problems: Problems) -> None:
    """Complain about a title from which no name of a directory can be made."""
    if not title or len(title) > TITLE_LENGTH_MAX:
        problems.add(where, f"a title of {len(title)} characters", f"use 1 to {TITLE_LENGTH_MAX}")
    elif "/" in title or "\\" in title or ".." in title:
        problems.add(where, "a title that looks like a path", "leave out '/', '\\' and '..'")
    elif not (title[0].isascii() and title[0].isalpha()):
        problems.add(where, f"a title that begins with {title[0]!r}", "begin with a letter from A to Z")


class Namespace:
    """Names that stand beside each other: none may be there twice, nor look the same to code that joins words."""

    def __init__(self, problems: Problems) -> None:
        self._problems = problems
        self._taken: dict[str, tuple[str, str, Position]] = {}

    def take(self, name: str, kind: str, where: Position) -> bool:
        """Take a name; whether it was free. If not, that is a problem."""
        key = name.replace("_", "").casefold()
        found = self._taken.setdefault(key, (name, kind, where))
        if found[2] == where:
            return True
        same = "the same name as" if found[0] == name else "a name too much like"
        self._problems.add(
            where, f"{kind} {name!r} has {same} the {found[1]} {found[0]!r} in line {found[2].line}", "take another"
        )
        return False


def _a(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def _spelled(name: str) -> str:
    """The name as it would have to be written, if it can be guessed."""
    words = "".join(letter if letter.isascii() and letter.isalnum() else " " for letter in name.lower()).split()
    guess = "_".join(words)
    return guess if _NAME.fullmatch(guess) else ""


def _instead(guess: str) -> str:
    return f", like {guess!r}" if guess else ""
