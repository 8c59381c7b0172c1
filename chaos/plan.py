"""Fault plans: one line of text, stored as it is, read with errors that point at the column.

    plan   = rule *( ";" rule )
    rule   = "worker" "#" N ":" POINT "@" nth "=" action
           | ( "nats" | "client" ) ":" [ "worker" "#" N "." ] POINT "@" nth "=" action
           | "proxy" ":" FRAME "@" nth "=" action
    action = name [ "(" seconds ")" ]

`worker#2` is the second worker process started in a run; `after_store@3` the third time it reaches that point. A rule
of nats or the client counts the hits of a worker too, `worker#1` unless it names another. A rule of the proxy counts
the frames of a kind in the whole run. `ALLOWED` and `FRAMES` say what there is.

    worker#1:after_store@2=kill; nats:worker#2.in_recovery@1=restart; proxy:puback@3=swallow

The same as JSON:

    {"version": 1, "rules": [
        {"actor": "worker", "worker": 1, "at": "after_store", "nth": 2, "action": "kill", "seconds": null}]}
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import attrs

from chaos.rules import (
    ALLOWED,
    FRAMES,
    SECONDS_MAX,
    WORKERS_MAX,
    Field,
    Flaw,
    Kind,
    Plan,
    Rule,
    exit_of,
    flaws,
    kill_at,
    kinds_at,
    tokens,
    unknown,
    wrong,
)

__all__ = [
    "ALLOWED",
    "FRAMES",
    "SECONDS_MAX",
    "VERSION",
    "WORKERS_MAX",
    "Kind",
    "Plan",
    "PlanError",
    "Rule",
    "check_plan",
    "exit_of",
    "kill_at",
    "kinds_at",
    "parse_plan",
    "plan_from_json",
    "plan_to_json",
]

#: Of the JSON form. A reader refuses a newer one.
VERSION: Final = 1


class PlanError(ValueError):
    """A plan that cannot be run, with the column at fault (from 1). Without a text, `reason` names the field."""

    def __init__(self, reason: str, text: str | None = None, column: int = 1) -> None:
        shown = "" if text is None else "".join(c if c.isprintable() else " " for c in text)
        caret = "" if text is None else f"\n  {shown}\n  {' ' * (column - 1)}^ column {column}"
        super().__init__(reason + caret)
        self.reason = reason
        self.column = column


def check_plan(plan: Plan, mortal: bool = False) -> None:
    """Check a plan that was put together from rules; `parse_plan` and `plan_from_json` check what they read.

    `mortal` says that the agents may end their own process, so that a worker needs no rule to have a successor.

    Raises:
        PlanError: as `parse_plan`; the column is that of the canonical text.
    """
    columns: list[Mapping[Field, int]] = []
    at = 1
    for rule in plan.rules:
        where: dict[Field, int] = {}
        for field, token in tokens(rule):
            if field is not None:
                where[field] = at
            at += len(token)
        at += len("; ")
        columns.append(where)
    _raise_first(flaws(plan.rules, mortal), str(plan), columns)


def _raise_first(found: Iterable[Flaw], text: str, columns: Sequence[Mapping[Field, int]]) -> None:
    for flaw in found:
        where = columns[flaw.index]
        beside = where["action"] if flaw.field == "seconds" else where["actor"]
        raise PlanError(flaw.reason, text, where.get(flaw.field, beside))


# -- text ----------------------------------------------------------------------------------------------------------

_SPACE: Final = re.compile(r"\s*")
_NAME: Final = re.compile(r"[^\s;:#@=.()]+")
_COUNT: Final = re.compile(r"-?[0-9]+")
_TIME: Final = re.compile(r"-?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


def parse_plan(text: str, *, mortal: bool = False) -> Plan:
    """Read a plan; `mortal` as for `check_plan`. An empty text is a plan without faults.

    Raises:
        PlanError: no such actor, point, frame or action, one where it may not stand, a number out of its range, or a
            rule that can never fire.
    """
    if not text.strip():
        return Plan()
    scanner = _Scanner(text)
    rules: list[Rule] = []
    columns: list[Mapping[Field, int]] = []
    while not rules or scanner.more():
        rule, where = scanner.rule()
        rules.append(rule)
        columns.append(where)
        own = (Flaw(len(rules) - 1, field, reason) for field, reason in wrong(rule))
        _raise_first(own, text, columns)
    _raise_first(flaws(rules, mortal), text, columns)
    return Plan(rules)


class _Scanner:
    """Reads tokens from `text`, from `at` on."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def more(self) -> bool:
        """Go past the semicolon after a rule; false at the end of the text."""
        if self.at == len(self.text):
            return False
        self._need(";", "; and another rule, or the end")
        return True

    def rule(self) -> tuple[Rule, Mapping[Field, int]]:
        """The next rule, with the columns of its fields, and the white space around it."""
        columns: dict[Field, int] = {}
        self._take(_SPACE, "")
        columns["actor"] = self.at + 1
        actor = self._take(_NAME, f"an actor: {', '.join(ALLOWED)}")
        if actor not in ALLOWED:
            raise PlanError(unknown("actor", actor, ALLOWED), self.text, columns["actor"])
        number = 0 if actor == "proxy" else 1
        if actor == "worker":
            self._need("#", "the number of the worker: worker#1")
            columns["worker"], number = self._count("the number of the worker: worker#1")
        self._need(":", f"a colon and then a {'frame' if actor == 'proxy' else 'point'}")
        if actor in ("nats", "client") and self._skip("worker#"):
            columns["worker"], number = self._count("the number of the worker: worker#1")
            self._need(".", "a dot and then a point")
        columns["at"] = self.at + 1
        place = self._take(_NAME, "a frame" if actor == "proxy" else "a point")
        self._need("@", "@ and then which time: @1 is the first")
        columns["nth"], nth = self._count("which time: @1 is the first")
        self._need("=", "= and then an action")
        columns["action"] = self.at + 1
        action = self._take(_NAME, f"an action: {', '.join(ALLOWED[actor])}")
        seconds = None
        if self._skip("("):
            columns["seconds"] = self.at + 1
            seconds = float(self._take(_TIME, "a number of seconds"))
            self._need(")", "a closing parenthesis after the seconds")
        self._take(_SPACE, "")
        return Rule(actor, number, place, nth, action, seconds), columns

    def _need(self, mark: str, wanted: str) -> None:
        if not self._skip(mark):
            raise PlanError(f"expected {wanted}", self.text, self.at + 1)

    def _skip(self, mark: str) -> bool:
        found = self.text.startswith(mark, self.at)
        self.at += len(mark) * found
        return found

    def _take(self, pattern: re.Pattern[str], wanted: str) -> str:
        found = pattern.match(self.text, self.at)
        if found is None:
            raise PlanError(f"expected {wanted}", self.text, self.at + 1)
        self.at = found.end()
        return found[0]

    def _count(self, wanted: str) -> tuple[int, int]:
        """A column and the number there. One that is far too long is cut: it stays far too high."""
        column = self.at + 1
        digits = self._take(_COUNT, wanted)
        value = int(digits.lstrip("-0")[:18] or "0")
        return column, -value if digits.startswith("-") else value


# -- JSON ----------------------------------------------------------------------------------------------------------

_TYPES: Final[Mapping[Field, tuple[type, ...]]] = {
    "actor": (str,),
    "worker": (int,),
    "at": (str,),
    "nth": (int,),
    "action": (str,),
    "seconds": (int, float, type(None)),
}


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """The plan as JSON has it."""
    return {
        "version": VERSION,
        "rules": [dict(zip(_TYPES, attrs.astuple(rule), strict=True)) for rule in plan.rules],
    }


def plan_from_json(value: object, *, mortal: bool = False) -> Plan:
    """Read a plan from parsed JSON; `mortal` as for `check_plan`.

    Raises:
        PlanError: a newer version, a field that is missing, unknown or of the wrong type, named as `rules[0].nth`,
            or what `parse_plan` refuses.
    """
    if not isinstance(value, dict):
        raise PlanError("a plan is an object with version and rules")
    version, listed = value.get("version"), value.get("rules")
    if type(version) is int and version > VERSION:
        raise PlanError(f"version: the plan is of version {version}, this reads up to {VERSION}: use what wrote it")
    _need_fields("", value, ("version", "rules"))
    if version != VERSION or type(version) is not int:
        raise PlanError(f"version: must be {VERSION}, not {version!r:.40}")
    if not isinstance(listed, list):
        raise PlanError(f"rules: must be a list, not {type(listed).__name__}")
    rules = [_rule_from_json(item, f"rules[{index}]") for index, item in enumerate(listed)]
    for flaw in flaws(rules, mortal):
        raise PlanError(f"rules[{flaw.index}].{flaw.field}: {flaw.reason}")
    return Plan(rules)


def _rule_from_json(item: object, where: str) -> Rule:
    if not isinstance(item, dict):
        raise PlanError(f"{where}: must be an object, not {type(item).__name__}")
    _need_fields(f"{where}.", item, tuple(_TYPES))
    for field, types in _TYPES.items():
        if type(item[field]) not in types:
            names = " or ".join("null" if kind is type(None) else kind.__name__ for kind in types)
            raise PlanError(f"{where}.{field}: must be {names}, not {type(item[field]).__name__}")
    return Rule(*(item[field] for field in _TYPES))


def _need_fields(prefix: str, item: Mapping[Any, Any], needed: Sequence[str]) -> None:
    for field in needed:
        if field not in item:
            raise PlanError(f"{prefix}{field}: is missing")
    for field in item:
        if field not in needed:
            name = field if isinstance(field, str) and field.isidentifier() else repr(field)
            raise PlanError(f"{prefix}{name:.40}: there is no such field; there are: {', '.join(needed)}")
