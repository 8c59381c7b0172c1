"""Turns, as the points of a worker tell them.

A point names no turn, and a worker runs several side by side: two of an engine overlap, and every scope has an engine.
So each point goes to the turn that it can continue, by the order of `meshforge_trio.protocol`; of several such turns to
the one that has waited longest, since the lock of the store and the publishing are first come, first served. This may
err between engines that are at the same stage, never within one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import attrs

from chaos.history import Record
from chaos.report.run import Name

__all__ = ["Turn", "called", "turns"]


def _table(**rows: str) -> Mapping[str, frozenset[str]]:
    return {point: frozenset(after.split()) for point, after in rows.items()}


#: What comes after each point of a turn.
_NEXT: Final = _table(
    before_attempt="in_store",
    in_attempt="received",
    received="before_hold before_dead_letter before_store",
    before_hold="before_dead_letter before_store",
    before_dead_letter="before_store",
    before_store="in_store",
    in_store="after_store in_attempt",
    after_store="after_hold after_dead_letter before_publish",
    after_hold="after_dead_letter before_publish",
    after_dead_letter="before_publish",
    before_publish="in_publish after_publish",
    in_publish="in_publish after_publish",
    after_publish="before_ack",
    before_ack="after_ack",
)
#: What may come instead: there was nothing to write, or the store changed under a decision and it is made anew.
_ELSE: Final = _table(
    before_attempt="in_attempt",
    before_store="after_store before_hold before_dead_letter before_store",
    in_store="before_hold before_dead_letter before_store",
)
_BEGIN: Final = ("received", "before_attempt")
_END: Final = "after_ack"
_DECIDING: Final = ("received", "before_hold", "before_dead_letter", "before_store")
#: What sessions may not survive.
_UPSETS: Final = ("fault", "healed", "down", "up")
_POINTS: Final = frozenset(_NEXT) | {_END}


@attrs.define(eq=False)
class Turn:
    """One turn of one worker: its records by index, in order, and the commands its handlers were called for."""

    worker: str
    records: list[int]
    at: str
    scope: str = ""
    names: set[Name] = attrs.field(factory=set)

    @property
    def ended(self) -> bool:
        """Whether it came to its last point."""
        return self.at == _END


def called(history: Sequence[Record]) -> Mapping[int, Name]:
    """The name of the command that each `call` is for, and each `decided`, by index.

    A decision is that of the newest call of its worker under its key.
    """
    found: dict[int, Name] = {}
    newest: dict[tuple[str, str], Name] = {}
    for index, record in enumerate(history):
        if record.kind == "call":
            key = str(record["key"] or "")
            name = str(record["scope"]), key or f"id:{record['id']}"
            newest[record.actor, key] = newest[record.actor, f"{name[0]} {key}"] = found[index] = name
        elif record.kind == "decided":
            key, scope = str(record["key"] or ""), record.fields.get("scope")
            at = record.actor, key if scope is None else f"{scope} {key}"
            if at in newest:
                found[index] = newest[at]
    return found


def turns(history: Sequence[Record]) -> Sequence[Turn]:
    """Every turn, in the order in which they began."""
    found: list[Turn] = []
    workers: dict[str, _Worker] = {}
    names = called(history)
    upset = -1
    for index, record in enumerate(history):
        worker = workers.setdefault(record.actor, _Worker(record.actor))
        if record.kind in _UPSETS:
            upset = index
        if record.kind == "point":
            turn = worker.reach(index, str(record["point"]), upset)
            if turn is not None and turn.records == [index]:
                found.append(turn)
        elif record.kind == "fault" and worker.last is not None:
            worker.last.records.append(index)
        elif record.kind == "call":
            worker.call(index, names[index])
        elif record.kind == "decided" and index in names:
            worker.decide(index, names[index])
    return found


class _Worker:
    """The open turns of one worker, those that have waited longest first."""

    def __init__(self, actor: str) -> None:
        self.actor = actor
        #: Whose the newest point was; none for a point outside turns.
        self.last: Turn | None = None
        self._open: list[Turn] = []
        self._callers: dict[Name, Turn] = {}
        #: Marks being written by themselves, which pass `in_store` too.
        self._marks = 0

    def reach(self, index: int, point: str, upset: int) -> Turn | None:
        """Give a point to its turn. `upset` is the index of the newest fault or end of one, of whomever."""
        if point == "after_lease":
            # A session that begins after a fault goes on with nothing that was open before.
            self._open = [turn for turn in self._open if turn.records[-1] > upset]
        elif point in ("before_mark", "after_mark"):
            self._marks = max(0, self._marks + (1 if point == "before_mark" else -1))
        self.last = self._taker(point, upset) if point in _POINTS else None
        if self.last is not None:
            self.last.records.append(index)
            self._open.remove(self.last)
        elif point in _BEGIN:
            self.last = Turn(self.actor, [index], point)
        if self.last is not None:
            self.last.at = point
            if point != _END:
                self._open.append(self.last)
        return self.last

    def _taker(self, point: str, upset: int) -> Turn | None:
        """The turn that goes on with `point`; where no turn can, as under a broken protocol, the newest.

        One that has not moved since the newest upset may be cut off by it, and comes after the others.
        """
        likely = sorted(self._open, key=lambda turn: turn.records[-1] <= upset)
        for after in (_NEXT, _ELSE):
            for turn in likely:
                if point in after.get(turn.at, ()):
                    return turn
        if point in _BEGIN or (point == "in_store" and self._marks):
            return None
        return self._open[-1] if self._open else None

    def call(self, index: int, name: Name) -> None:
        """A handler is called, in a turn of its scope that is deciding."""
        deciding = [turn for turn in self._open if turn.at in _DECIDING and turn.scope in (name[0], "")]
        turn = min(deciding, key=lambda turn: turn.scope == "", default=None)
        if turn is not None:
            turn.scope = name[0]
            turn.names.add(name)
            turn.records.append(index)
            self._callers[name] = turn

    def decide(self, index: int, name: Name) -> None:
        """A handler has returned."""
        if name in self._callers:
            self._callers[name].records.append(index)
