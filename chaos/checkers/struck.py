"""What struck during a run, read from its history: faults, ends of workers, and what answers they may have swallowed.

The correct protocol makes no promise that a fault must not break: a core subscriber whose server dies may miss an
answer, a broker that is put back to an older copy has forgotten. Checkers ask here what may be expected.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Final

import attrs

from chaos.history import Record
from chaos.rules import ALLOWED

__all__ = ["Fault", "Incident", "Strikes"]

_RULE: Final = re.compile(r"(?P<who>(?P<actor>[a-z]+)(?:#\d+)?):.*=(?P<action>[a-z_]+)(?:\(.*\))?")
#: What a worker does not survive: nothing of it is in doubt that its end does not put in doubt.
_ENDS: Final = frozenset({"kill", *(action for action, kind in ALLOWED["worker"].items() if kind.exit is not None)})
#: What keeps a worker from writing for a while.
_UNWRITTEN: Final = frozenset({"full", "lock"})
#: Damage to what the broker has on its disk.
_DAMAGES: Final = frozenset({"truncate", "flip", "rot"})
#: Past every moment of a history.
_NEVER: Final = 1 << 63


@attrs.frozen
class Fault:
    """A rule of the plan that fired at `t`. `who` is `worker#1` for one about a worker, else the same as `actor`."""

    t: int
    actor: str
    who: str
    action: str


@attrs.frozen
class Incident:
    """A worker that did not go on as it was at `t`: it ended uncleanly, was stopped, or could not write.

    A call of a handler counted by then may never have been made, or never have ended. `calls` are the (scope, key)
    that it may have happened to; with `any_call` it may have been any.
    """

    t: int
    worker: str
    calls: frozenset[tuple[str, str]]
    any_call: bool

    def concerns(self, scope: str, key: str) -> bool:
        """Whether an attempt of this command may have ended in it."""
        return self.any_call or (scope, key) in self.calls


class Strikes:
    """`history`, read."""

    def __init__(self, history: Sequence[Record]) -> None:
        self._history = history

    @cached_property
    def faults(self) -> Sequence[Fault]:
        """Every rule that fired, in order."""
        return [_fault(record) for record in self._history if record.kind == "fault"]

    @cached_property
    def rollbacks(self) -> Sequence[tuple[int, int]]:
        """(from, to) for each time the broker went back to a copy: what it stored in between may be gone."""
        found = []
        copied = 0
        for fault in self.faults:
            if (fault.actor, fault.action) == ("nats", "copy"):
                copied = fault.t
            elif (fault.actor, fault.action) == ("nats", "rollback"):
                ups = (r.t for r in self._history if r.kind == "up" and r.t >= fault.t)
                found.append((copied, next(ups, _NEVER)))
        return found

    @cached_property
    def forgetful(self) -> bool:
        """Whether the broker ever lost what it had stored: it went back to a copy, or its files were damaged."""
        return bool(self.rollbacks) or any(f.actor == "nats" and f.action in _DAMAGES for f in self.faults)

    @cached_property
    def rotten(self) -> int:
        """How many messages were lost from amid a stream: they come back behind those that followed them."""
        return sum((fault.actor, fault.action) == ("nats", "rot") for fault in self.faults)

    @cached_property
    def hearing_since(self) -> int | None:
        """From when on a core subscriber hears everything; `None` if that is never certain.

        What touches the server or the network may swallow answers, which no stream keeps: only what is asked for
        later must be heard.
        """
        since, listens = 0, any(record.kind == "heard" for record in self._history)
        for record in self._history:
            if record.kind in ("listening", "deaf"):
                since, listens = record.t, record.kind == "listening"
            elif _touches_answers(record):
                since = record.t
        return since if listens else None

    @cached_property
    def uncounted_calls(self) -> int:
        """How many calls of a handler may have gone uncounted: the process lived on, and its commit did not happen."""
        harmless = {*(("worker", action) for action in _ENDS), ("client", "resend"), ("nats", "copy")}
        return sum((fault.actor, fault.action) not in harmless for fault in self.faults)

    @cached_property
    def incidents(self) -> Sequence[Incident]:
        """Every worker's unclean end, stop, full disk and locked store, in order."""
        ends = [(r.t, r.actor, False) for r in self._history if r.kind == "exit" and r["status"] != 0]
        lived = [fault for fault in self.faults if fault.actor == "worker" and fault.action not in _ENDS]
        stops = [(fault.t, fault.who, fault.action in _UNWRITTEN) for fault in lived]
        return [self._incident(*each) for each in sorted(ends + stops)]

    def _incident(self, t: int, worker: str, any_call: bool) -> Incident:
        """A worker has at most one attempt under way per scope: that of its last call, or one not yet called.

        Points do not tell their scope, so an attempt that was counted may be anybody's until every scope has called.
        """
        scopes = {record["scope"] for record in self._history if record.kind == "call"}
        last: dict[str, str] = {}
        called: set[str] | None = None
        for record in self._history:
            if record.actor != worker or record.t > t:
                continue
            if record.kind == "call":
                last[record["scope"]] = record["key"]
                if called is not None:
                    called.add(record["scope"])
                    called = None if called >= scopes else called
            elif record.kind == "point" and record["point"] in ("before_attempt", "in_attempt"):
                called = set()
        return Incident(t, worker, frozenset(last.items()), any_call or called is not None)


def _fault(record: Record) -> Fault:
    """The rule of a `fault` or `healed` record; a rule of another grammar may be anything."""
    rule = _RULE.fullmatch(str(record["rule"]))
    if rule is None:
        return Fault(record.t, "unknown", "unknown", "unknown")
    return Fault(record.t, rule["actor"], rule["who"], rule["action"])


def _touches_answers(record: Record) -> bool:
    """Whether it stands between the workers and whoever listens."""
    if record.kind in ("fault", "healed"):
        return _fault(record).actor not in ("worker", "client")
    return record.kind in ("down", "up")
