"""Fault plans: one line of text, stored as it is, parsed with errors that point at the column.

    plan = rule *( ";" rule )
    rule = "worker" "#" number ":" point "@" nth "=" action

`worker#2` is the second worker process started in a run; `after_store@3` the third time it reaches that point.

    worker#1:after_store@2=kill; worker#2:in_recovery@1=kill
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, Literal, get_args

import attrs

from meshforge_trio.points import Point

__all__ = ["Action", "Plan", "PlanError", "Rule", "parse_plan"]

Action = Literal["kill", "stop"]

_RULE: Final = re.compile(r"\s*(?P<actor>[a-z]+)#(?P<number>\d+):(?P<point>[a-z_]+)@(?P<nth>\d+)=(?P<action>[a-z]+)\s*")


class PlanError(ValueError):
    """A plan that cannot be run, with the column at fault (from 1)."""

    def __init__(self, reason: str, text: str, column: int) -> None:
        super().__init__(f"{reason}\n  {text}\n  {' ' * (column - 1)}^ column {column}")
        self.reason = reason
        self.column = column


@attrs.frozen
class Rule:
    """At the `nth` time that worker `number` reaches `point`, do `action`. Both count from 1."""

    number: int
    point: Point
    nth: int
    action: Action = "kill"

    def __str__(self) -> str:
        return f"worker#{self.number}:{self.point}@{self.nth}={self.action}"


@attrs.frozen
class Plan:
    """The faults of one run."""

    rules: Sequence[Rule] = ()

    def __str__(self) -> str:
        return "; ".join(str(rule) for rule in self.rules)

    def of_worker(self, number: int) -> Sequence[Rule]:
        """The rules for one worker process."""
        return tuple(rule for rule in self.rules if rule.number == number)


def parse_plan(text: str) -> Plan:
    """Read a plan.

    Raises:
        PlanError: no such rule, point or action, or a rule that can never fire.
    """
    rules: list[Rule] = []
    column = 1
    for part in text.split(";") if text.strip() else []:
        rules.append(_parse_rule(part, text, column))
        column += len(part) + 1
    return Plan(tuple(rules))


def _parse_rule(part: str, text: str, column: int) -> Rule:
    found = _RULE.fullmatch(part)
    if found is None:
        at = column + len(part) - len(part.lstrip())
        raise PlanError("a rule is worker#NUMBER:POINT@NTH=ACTION", text, at)
    if found["actor"] != "worker":
        raise PlanError(f"no actor {found['actor']!r}; there is: worker", text, column + found.start("actor"))
    try:
        point = Point(found["point"])
    except ValueError:
        known = ", ".join(Point)
        raise PlanError(
            f"no point {found['point']!r}; there are: {known}", text, column + found.start("point")
        ) from None
    action = found["action"]
    for name in get_args(Action):
        if action == name:
            break
    else:
        raise PlanError(
            f"no action {action!r}; there are: {', '.join(get_args(Action))}", text, column + found.start("action")
        )
    number, nth = int(found["number"]), int(found["nth"])
    for group, value in (("number", number), ("nth", nth)):
        if value < 1:
            raise PlanError(f"{group} counts from 1, so this can never fire", text, column + found.start(group))
    return Rule(number, point, nth, "kill" if action == "kill" else "stop")
