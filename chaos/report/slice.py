"""The causal slice: of everything that happened, the 10 to 30 records that matter for some commands."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from typing import Final

import attrs

from chaos.history import Record
from chaos.report.concerns import Concern
from chaos.report.run import Command, Finding, Name
from chaos.report.turns import called

__all__ = ["LEAST", "MOST", "Slice", "causal_slice", "focus"]

#: How many records a slice has, where there are so many.
LEAST: Final = 10
MOST: Final = 30

#: What a record of the commands concerned is worth, by kind; 0 is worth most.
_OWN: Final = {"send": 0, "call": 0, "unknown": 0, "failed": 0, "ok": 1, "decided": 1, "heard": 1, "frame": 2}
_DERIVED: Final = {"call": 3, "heard": 3, "frame": 4, "decided": 4}
#: What changes the world is worth telling whatever the commands are.
_WORLD: Final = {
    "fault": 0,
    "exit": 0,
    "down": 1,
    "up": 1,
    "healed": 1,
    "spawn": 1,
    "image": 2,
    "listening": 3,
    "deaf": 1,
    "drained": 3,
}
_POINTS: Final = {"after_store": 1, "in_store": 1, "received": 2, "in_recovery": 3, "after_recovery": 3}
_OTHER_POINT: Final = 2
_AGAIN: Final = 4
_PADDING: Final = 9


@attrs.frozen
class Slice:
    """Indices into a history, rising. `left_out` are records of the same commands for which there was no room."""

    indices: Sequence[int]
    left_out: int = 0


def focus(
    findings: Sequence[Finding], history: Sequence[Record], concerns: Sequence[Concern], sent: Sequence[Command]
) -> frozenset[Name]:
    """The commands that findings are about: those with their keys, or that these go back to.

    With no keys, those of the scopes named; with no findings, or where nothing fits them, all of them.
    """
    known = {name for concern in concerns for name in concern.own} | {command.name for command in sent}
    by_key: dict[str, set[tuple[str, frozenset[Name]]]] = defaultdict(set)
    for name in known:
        by_key[name[1]].add((name[0], frozenset([name])))
    for index, name in called(history).items():
        if name not in known:
            by_key[name[1]].add((name[0], concerns[index].all))
    found: set[Name] = set()
    for finding in findings:
        for key in finding.keys:
            for scope, names in by_key.get(key, ()):
                if finding.scope in ("", scope):
                    found |= names
    if not found:
        scopes = {finding.scope for finding in findings if finding.scope}
        found = {name for name in known if name[0] in scopes}
    return frozenset(found or known)


def causal_slice(
    history: Sequence[Record],
    concerns: Sequence[Concern],
    names: Collection[Name],
    *,
    least: int = LEAST,
    most: int = MOST,
) -> Slice:
    """Pick what matters for the commands `names`.

    Faults, ends and starts of processes; their sends with the answers, the calls of their handlers, the points of the
    turns that decided them, frames and events of theirs. What is worth less goes first where there is no room, and of
    that what is farther from a fault. With less than `least`, the surroundings of the faults are added.
    """
    worth = list(_worths(history, concerns, frozenset(names)))
    if worth.count(0) > most // 2:
        # So many commands that none of them matters by itself: what lies around the faults does.
        worth = [
            1 if w <= _OTHER_POINT and record.kind not in _WORLD else w
            for w, record in zip(worth, history, strict=True)
        ]
    anchors = [i for i, record in enumerate(history) if record.kind == "fault"]
    if not anchors:
        anchors = [i for i, w in enumerate(worth) if w == 0] or [0]

    def priority(index: int) -> tuple[int, int, int]:
        at = bisect_left(anchors, index)
        distance = min(abs(index - anchor) for anchor in anchors[max(0, at - 1) : at + 1])
        return worth[index], distance, index

    candidates = sorted((i for i, record in enumerate(history) if record.kind != "header"), key=priority)
    matter = sum(worth[i] < _PADDING for i in candidates)
    taken = candidates[: min(max(matter, least), most)]
    return Slice(sorted(taken), max(0, matter - len(taken)))


def _worths(history: Sequence[Record], concerns: Sequence[Concern], names: frozenset[Name]) -> Iterator[int]:
    seen: set[tuple[str, str, frozenset[Name]]] = set()
    for record, concern in zip(history, concerns, strict=True):
        if record.kind in _WORLD:
            yield _WORLD[record.kind]
        elif record.kind == "point" and concern.own & names:
            # Of the publishes of a turn, one by one, the first says enough.
            again = record["point"] == "in_publish" and (record.actor, "in_publish", concern.own) in seen
            seen.add((record.actor, str(record["point"]), concern.own))
            yield _AGAIN if again else _POINTS.get(str(record["point"]), _OTHER_POINT)
        elif record.kind == "point" and record["point"] in ("in_recovery", "after_recovery"):
            yield _POINTS[str(record["point"])]
        elif concern.own & names:
            yield _OWN.get(record.kind, _PADDING)
        elif concern.derived & names:
            yield _DERIVED.get(record.kind, _PADDING)
        else:
            yield _PADDING
