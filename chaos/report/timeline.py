"""The timeline of a run: lanes, what lies on them, and when, as the page draws it.

One lane per client, one for the broker with its proxy, one per worker incarnation from its start to its end, one for
the store. On a worker's lane every turn has a bar of its own, and its points lie on it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

import attrs

from chaos.history import Record
from chaos.report.concerns import NOTHING, Concern
from chaos.report.run import Name, Run
from chaos.report.turns import Turn
from chaos.report.words import action_of, actor_of, bad, ending, told

__all__ = ["RECORDS_MAX", "timeline"]

#: How many records the page draws. Of more, those that say least are left out, and the page says so.
RECORDS_MAX: Final = 5_000

_TEXT_MAX: Final = 2_000
_TRACKS_MAX: Final = 4
#: What is left out last; the rest goes by its distance from a fault.
_KEPT: Final = frozenset(
    {
        "spawn",
        "exit",
        "fault",
        "healed",
        "down",
        "up",
        "listening",
        "deaf",
        "drained",
        "image",
        "send",
        "unknown",
        "failed",
    }
)
_COMMITS: Final = frozenset({"after_store", "after_mark"})
_FROM_SERVER: Final = frozenset({"puback", "delivery"})
#: Faults that last, so that the time until they are healed is shaded.
_LASTING: Final = frozenset({"stop", "pause", "full", "limit", "lock", "unlink", "replace", "blackhole"})
#: Those of a worker that lie with its store.
_OF_STORE: Final = frozenset({"full", "lock", "unlink", "replace"})


@attrs.define(eq=False)
class _Lane:
    """A lane; `begin` and `end` in milliseconds, `ending` how it ended."""

    name: str
    kind: str
    begin: float = 0.0
    end: float = 0.0
    ending: str = ""
    clean: bool = True
    tracks: int = 1
    spans: list[Mapping[str, Any]] = attrs.field(factory=list)


def timeline(
    run: Run, turns: Sequence[Turn], concerns: Sequence[Concern], kept: Sequence[int] = (), most: int = RECORDS_MAX
) -> Mapping[str, Any]:
    """Everything the page draws, as JSON values. `kept` are indices of records that are drawn in any case."""
    drawn = _drawn(run.history, frozenset(kept), most)
    place = {index: n for n, index in enumerate(drawn)}
    return {**_Timeline(run, turns, concerns, drawn).told(), "slice": [place[index] for index in kept]}


def _drawn(history: Sequence[Record], kept: frozenset[int], most: int) -> Sequence[int]:
    candidates = [i for i, record in enumerate(history) if record.kind != "header"]
    if len(candidates) <= most:
        return candidates
    faults = [i for i in candidates if history[i].kind == "fault"] or [0]

    def priority(index: int) -> tuple[bool, bool, int]:
        at = bisect_left(faults, index)
        distance = min(abs(index - fault) for fault in faults[max(0, at - 1) : at + 1])
        return index not in kept, history[index].kind not in _KEPT, distance

    return sorted(sorted(candidates, key=priority)[:most])


class _Timeline:
    """One page's worth."""

    def __init__(self, run: Run, turns: Sequence[Turn], concerns: Sequence[Concern], drawn: Sequence[int]) -> None:
        self._run = run
        self._concerns = concerns
        self._drawn = drawn
        self._lanes: dict[str, _Lane] = {}
        self._commands: dict[Name, int] = {}
        self._groups: dict[Concern, int] = {}
        self._tracks: dict[int, int] = {}
        self._end = run.ms(run.history[-1])
        self._lay_lanes()
        # Only on the lanes of workers is there room for turns.
        self._turns = [
            turn for turn in turns if turn.worker in self._lanes and self._lanes[turn.worker].kind == "worker"
        ]
        self._turn_of = {index: n for n, turn in enumerate(self._turns) for index in turn.records}

    def told(self) -> Mapping[str, Any]:
        """The whole of it."""
        self._pack_turns()
        self._shade()
        ids: dict[Name, list[str]] = defaultdict(list)
        for command in self._run.sent:
            self._number(command.name)
            ids[command.name].append(command.id)
        shown = {index: place for place, index in enumerate(self._drawn)}
        order = list(self._lanes)
        records = [self._record(index, order) for index in self._drawn]
        bars = [bar for n in range(len(self._turns)) if (bar := self._bar(n, order, shown)) is not None]
        total = len(self._run.history) - 1
        return {
            "end": self._end,
            "lanes": [attrs.asdict(lane) for lane in self._lanes.values()],
            "records": records,
            "turns": bars,
            "groups": [
                {"own": self._numbers(concern.own), "derived": self._numbers(concern.derived)}
                for concern in list(self._groups)
            ],
            "commands": [{"scope": name[0], "key": name[1], "ids": ids[name]} for name in self._commands],
            "total": total,
        }

    def _lay_lanes(self) -> None:
        history = self._run.history
        clients = dict.fromkeys(r.actor for r in history if r.actor.partition("#")[0] == "client")
        for actor in clients or ["client"]:
            self._lanes[actor] = _Lane(actor, "client", end=self._end, tracks=2)
        self._lanes["broker"] = _Lane("broker", "broker", end=self._end, tracks=1)
        if any(record.kind == "frame" for record in history):
            self._lanes["broker"].tracks = 3
        for record in history:
            actor = record.actor
            if actor not in self._lanes and actor not in ("harness", "nats", "proxy"):
                self._lanes[actor] = _Lane(actor, "worker", begin=self._run.ms(record), end=self._end)
            if record.kind == "exit" and actor in self._lanes:
                lane = self._lanes[actor]
                lane.end, lane.ending = self._run.ms(record), ending(record["status"])
                lane.clean = record["status"] == 0
        self._lanes["store"] = _Lane("store", "store", end=self._end)

    def _pack_turns(self) -> None:
        """A track for each turn, where none that is still open lies."""
        free: dict[str, list[float]] = defaultdict(list)
        for n, turn in enumerate(self._turns):
            begin, end, _ = self._times(turn)
            ends = free[turn.worker]
            track = next((track for track, at in enumerate(ends) if at <= begin), len(ends))
            if track == len(ends) and len(ends) < _TRACKS_MAX:
                ends.append(end)
            track = min(track, _TRACKS_MAX - 1)
            ends[track] = max(ends[track], end)
            self._tracks[n] = track + 1
            lane = self._lanes[turn.worker]
            lane.tracks = max(lane.tracks, track + 2)

    def _times(self, turn: Turn) -> tuple[float, float, bool]:
        """When it began and ended, and whether a fault cut it off: then it ends with its worker, or its session."""
        history = self._run.history
        begin, last = (self._run.ms(history[turn.records[i]]) for i in (0, -1))
        if turn.ended:
            return begin, last, False
        cut = history[turn.records[-1]].kind == "fault"
        for record in history[turn.records[-1] + 1 :]:
            if record.actor == turn.worker and (record.kind == "exit" or record.fields.get("point") == "after_lease"):
                return begin, self._run.ms(record) if cut else last, cut
            cut = cut or record.kind in ("fault", "down")
        return begin, self._end if cut else last, cut

    def _shade(self) -> None:
        """Mark the times in which something was stopped, cut off or full, and those of a server that is down."""
        history = self._run.history
        down: float | None = None
        for index, record in enumerate(history):
            if record.kind == "down" and down is None:
                down = self._run.ms(record)
            elif record.kind == "up" and down is not None:
                self._lanes["broker"].spans.append(_span(down, self._run.ms(record), "down"))
                down = None
            elif record.kind == "fault" and action_of(str(record["rule"])) in _LASTING:
                end = self._healed(index, record)
                action = action_of(str(record["rule"]))
                elsewhere = action in _OF_STORE and not str(record["rule"]).startswith("nats")
                name = "store" if elsewhere else self._lane_of(record)
                # Where the fault itself lies, its rule says what it is.
                self._lanes[name].spans.append(_span(self._run.ms(record), end, action, named=elsewhere))
        if down is not None:
            self._lanes["broker"].spans.append(_span(down, self._end, "down"))

    def _healed(self, index: int, fault: Record) -> float:
        for record in self._run.history[index + 1 :]:
            if record.kind == "healed" and record["rule"] == fault["rule"]:
                return self._run.ms(record)
        return self._lanes[self._lane_of(fault)].end

    def _lane_of(self, record: Record) -> str:
        actor = actor_of(str(record["rule"])) if record.kind in ("fault", "healed") else record.actor
        if record.kind == "image":
            return "store"
        if actor in ("nats", "proxy"):
            return "broker"
        if actor in self._lanes:
            return actor
        return record.actor if record.actor in self._lanes else "broker"

    def _record(self, index: int, order: Sequence[str]) -> Mapping[str, Any]:
        record = self._run.history[index]
        lane = self._lane_of(record)
        concern = self._concerns[index]
        return {
            "t": round(self._run.ms(record), 4),
            "lane": order.index(lane),
            "track": self._track(index, record, lane),
            "kind": record.kind,
            "actor": record.actor,
            "what": told(record),
            "group": -1 if concern == NOTHING else self._groups.setdefault(concern, len(self._groups)),
            "commit": record.kind == "point" and str(record["point"]) in _COMMITS,
            "bad": bad(record) or record.kind == "failed",
            "fields": {name: _shown(value) for name, value in record.fields.items()},
        }

    def _track(self, index: int, record: Record, lane: str) -> int:
        if record.kind in ("heard", "listening", "deaf"):
            return 1
        if record.kind == "frame":
            return 2 if str(record["frame"]) in _FROM_SERVER else 1
        if lane == record.actor and index in self._turn_of:
            return self._tracks[self._turn_of[index]]
        return 0

    def _bar(self, n: int, order: Sequence[str], shown: Mapping[int, int]) -> Mapping[str, Any] | None:
        turn = self._turns[n]
        records = [shown[index] for index in turn.records if index in shown]
        if not records:
            return None
        begin, end, cut = self._times(turn)
        concern = next((c for i in turn.records if (c := self._concerns[i]) != NOTHING), NOTHING)
        return {
            "lane": order.index(turn.worker),
            "track": self._tracks[n],
            "from": round(begin, 4),
            "to": round(end, 4),
            "cut": cut,
            "scope": turn.scope,
            "group": -1 if concern == NOTHING else self._groups.setdefault(concern, len(self._groups)),
        }

    def _numbers(self, names: frozenset[Name]) -> Sequence[int]:
        return sorted(self._number(name) for name in names)

    def _number(self, name: Name) -> int:
        return self._commands.setdefault(name, len(self._commands))


def _span(begin: float, end: float, what: str, *, named: bool = True) -> Mapping[str, Any]:
    return {"from": begin, "to": end, "what": what, "named": named}


def _shown(value: object) -> object:
    """A field as the page shows it: long texts cut, with a word on how long they are."""
    if isinstance(value, str) and len(value) > _TEXT_MAX:
        return f"{value[:_TEXT_MAX]}... ({len(value)} characters)"
    if isinstance(value, str | int | float | bool) or value is None:
        return value
    return _shown(str(value))
