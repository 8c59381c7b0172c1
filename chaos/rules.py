"""The rules of a plan: who may do what and where, and which rules can never fire."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, Literal

import attrs

from meshforge_trio.points import Point
from meshforge_trio.policy import ExitCode

__all__ = [
    "ALLOWED",
    "FRAMES",
    "SECONDS_MAX",
    "WORKERS_MAX",
    "Field",
    "Flaw",
    "Kind",
    "Plan",
    "Rule",
    "exit_of",
    "flaws",
    "kill_at",
    "kinds_at",
    "tokens",
    "unknown",
    "wrong",
]

#: Worker processes in one run.
WORKERS_MAX: Final = 12
#: The longest a fault may last.
SECONDS_MAX: Final = 60
_NTH_MAX: Final = 999_999_999

Field = Literal["actor", "worker", "at", "nth", "action", "seconds"]

_ANYWHERE: Final[Sequence[str]] = tuple(point.value for point in Point)
_UNLOCKED: Final[Sequence[str]] = tuple(place for place in _ANYWHERE if place != Point.IN_STORE)
_BEFORE_COMMIT: Final[Sequence[str]] = (
    "before_store",
    "in_store",
    "before_mark",
    "before_attempt",
    "before_hold",
    "before_dead_letter",
)
_LOCKED: Final = "a process that is stopped inside a transaction keeps the database locked"
_NO_COMMIT: Final = "no transaction follows"
# Where a worker meets what happened to its store's file: at the begin of a session, of a turn, and when idle.
_NEXT_COMMIT: Final[Sequence[str]] = ("after_lease", "before_store", "before_mark")
# Where a damaged stream makes a difference: not compared yet, behind the store, and as far as the store.
_COMPARED: Final[Sequence[str]] = ("after_lease", "before_store", "after_store", "after_ack")
# Where the next thing that a worker asks of the server has to be written.
_BEFORE_PUBLISH: Final[Sequence[str]] = ("after_lease", "before_store", "after_store", "in_publish")
_ELSEWHERE_THE_SAME: Final = "it is found where the worker looks next, which these places stand for"

#: What the proxy can count: the frames of NATS that the protocol lives by.
FRAMES: Final[Mapping[str, str]] = {
    "publish": "client to server: an event, a command or a dead letter is published",
    "puback": "server to client: the answer to a publish",
    "pull": "client to server: a request for deliveries",
    "delivery": "server to client: a command",
    "ack": "client to server: +ACK",
    "nak": "client to server: -NAK",
    "extend": "client to server: +WPI",
}


@attrs.frozen
class Kind:
    """A kind of action: what it does, where it may stand, and whether a time in seconds stands with it.

    `limit` says why it may not stand elsewhere. `exit` is the exit code with which the worker must then end by itself.
    """

    means: str
    seconds: Literal["may", "must", "never"] = "never"
    places: Sequence[str] = _ANYWHERE
    limit: str = ""
    exit: int | None = None


def _io_error(what: str, places: Sequence[str] = _BEFORE_COMMIT) -> Kind:
    means = f"from here on every {what} of this worker's store fails; it ends by itself, its successor has a good disk"
    return Kind(means, "never", places, _NO_COMMIT, exit=ExitCode.STORE_BROKEN)


def _lost_file(how: str) -> Kind:
    means = f"the store's file is {how} under the worker, which ends by itself; what was there is put back after that"
    return Kind(means, "never", _NEXT_COMMIT, _ELSEWHERE_THE_SAME, exit=ExitCode.STORE_BROKEN)


def _damage(what: str) -> Kind:
    means = f"{what} of the event and dead-letter streams, whose content the store has; start it again"
    return Kind(means, "never", _COMPARED, _ELSEWHERE_THE_SAME)


#: Who may do what: actor, action, and what is known of it. `meshforge-chaos points` prints this.
ALLOWED: Final[Mapping[str, Mapping[str, Kind]]] = {
    "worker": {
        "kill": Kind("SIGKILL; with seconds, the successor starts only that much later", "may"),
        "stop": Kind(
            "SIGSTOP; a successor takes over and drains, then SIGCONT; with seconds, SIGCONT after them, no successor",
            "may",
            _UNLOCKED,
            _LOCKED,
        ),
        "full": Kind(
            "no space for this worker's store from here on, until the seconds are over",
            "must",
            _BEFORE_COMMIT,
            _NO_COMMIT,
        ),
        # Inside a transaction everything has been read.
        "eio_read": _io_error("read", [place for place in _BEFORE_COMMIT if place != Point.IN_STORE]),
        "eio_write": _io_error("write"),
        "eio_sync": _io_error("fsync"),
        "lock": Kind(
            "another program holds the write lock of the store for the seconds",
            "must",
            _NEXT_COMMIT,
            _ELSEWHERE_THE_SAME,
        ),
        "unlink": _lost_file("deleted"),
        "replace": _lost_file("replaced by an empty one"),
    },
    "nats": {
        "kill": Kind("SIGKILL the server, start it again, with seconds that much later", "may", _UNLOCKED, _LOCKED),
        "restart": Kind("end the server in good order, start it again", "never", _UNLOCKED, _LOCKED),
        "pause": Kind("SIGSTOP the server, SIGCONT after the seconds", "must", _UNLOCKED, _LOCKED),
        "copy": Kind("take a copy of the server's store directory", "never", _UNLOCKED, _LOCKED),
        "rollback": Kind("SIGKILL the server, put the last copy back, start it again", "never", _UNLOCKED, _LOCKED),
        "truncate": _damage("SIGKILL the server, cut the end off the newest block"),
        "flip": _damage("SIGKILL the server, flip a bit in the middle of the newest block"),
        "rot": _damage("end the server in good order, so that it trusts its index, flip a bit in the newest block"),
        "full": Kind(
            "no write of the server to its disk succeeds; after the seconds SIGKILL, and a start on a disk with space",
            "must",
            _BEFORE_PUBLISH,
            _ELSEWHERE_THE_SAME,
        ),
        "limit": Kind(
            "another stream takes all that the server may store, for the seconds: publishes are refused",
            "must",
            _BEFORE_PUBLISH,
            _ELSEWHERE_THE_SAME,
        ),
    },
    "client": {
        "resend": Kind("send every command so far again, new ids, the same keys", "never", _UNLOCKED, _LOCKED),
    },
    "proxy": {
        "cut_before": Kind("drop the connection instead of forwarding the frame", "never", tuple(FRAMES)),
        "cut_after": Kind("forward the frame, then drop the connection", "never", tuple(FRAMES)),
        "swallow": Kind("lose this frame; the connection lives", "never", tuple(FRAMES)),
        "blackhole": Kind("lose this and all that follows, both ways; the connection stays open", places=tuple(FRAMES)),
    },
}

#: What a worker does not survive.
_ENDINGS: Final[Sequence[str]] = (
    "kill",
    *(action for action, kind in ALLOWED["worker"].items() if kind.exit is not None),
)


def _rounded(seconds: float | None) -> float | None:
    """To six digits, which is what the text keeps."""
    try:
        return None if seconds is None else float(f"{seconds:g}")
    except OverflowError:
        return math.inf


def _plain(place: str) -> str:
    return str(place)


def _together(rules: Iterable[Rule]) -> Sequence[Rule]:
    return tuple(rules)


@attrs.frozen
class Rule:
    """At the `nth` time that worker `number` is at `place`, or a frame of that kind passes, `actor` does `action`.

    All count from 1; rules of the proxy have the number 0. `seconds` is kept to six digits.
    """

    actor: str
    number: int
    place: str = attrs.field(converter=_plain)
    nth: int
    action: str
    seconds: float | None = attrs.field(default=None, converter=_rounded)

    def __str__(self) -> str:
        return "".join(token for _, token in tokens(self))


def tokens(rule: Rule) -> Iterator[tuple[Field | None, str]]:
    """The canonical text in parts, each with the field it shows."""
    yield "actor", rule.actor
    if rule.actor == "worker":
        yield from ((None, "#"), ("worker", str(rule.number)), (None, ":"))
    elif rule.actor == "proxy" or rule.number == 1:
        yield None, ":"
    else:
        yield from ((None, ":worker#"), ("worker", str(rule.number)), (None, "."))
    yield from (("at", rule.place), (None, "@"), ("nth", str(rule.nth)), (None, "="), ("action", rule.action))
    if rule.seconds is not None:
        yield from ((None, "("), ("seconds", f"{rule.seconds:g}"), (None, ")"))


@attrs.frozen
class Plan:
    """The faults of one run."""

    rules: Sequence[Rule] = attrs.field(default=(), converter=_together)

    def __str__(self) -> str:
        return "; ".join(str(rule) for rule in self.rules)

    def of(self, actor: str) -> Sequence[Rule]:
        """The rules by which `actor` acts."""
        return tuple(rule for rule in self.rules if rule.actor == actor)

    def of_worker(self, number: int) -> Sequence[Rule]:
        """The rules that count the hits of worker `number`, whoever acts."""
        return tuple(rule for rule in self.rules if rule.actor != "proxy" and rule.number == number)

    @property
    def workers(self) -> int:
        """The highest number of a worker that is named; at least 1."""
        return max([1, *(rule.number for rule in self.rules)])


def kill_at(point: str, nth: int, number: int = 1, action: str = "kill", seconds: float | None = None) -> Rule:
    """A rule by which a worker acts."""
    return Rule("worker", number, point, nth, action, seconds)


def kinds_at(point: str) -> Sequence[str]:
    """The actions of a worker that may stand at `point`.

    Raises:
        ValueError: no such point.
    """
    place = Point(point)
    return tuple(action for action, kind in ALLOWED["worker"].items() if place in kind.places)


# -- the checks ----------------------------------------------------------------------------------------------------


@attrs.frozen
class Flaw:
    """What is wrong with a field of the rule at `index`."""

    index: int
    field: Field
    reason: str


def flaws(rules: Sequence[Rule], mortal: bool) -> Iterator[Flaw]:
    """All that is wrong with a plan. `mortal`: a worker may end without a rule."""
    for index, rule in enumerate(rules):
        yield from (Flaw(index, field, reason) for field, reason in wrong(rule))
    yield from _in_vain(rules, mortal)


def wrong(rule: Rule) -> Iterator[tuple[Field, str]]:
    """What is wrong with a rule by itself, from left to right."""
    kinds = ALLOWED.get(rule.actor)
    if kinds is None:
        yield "actor", unknown("actor", rule.actor, ALLOWED)
        return
    if rule.actor == "proxy":
        if rule.number != 0:
            yield "worker", "a rule of the proxy counts frames, not the hits of a worker: its worker is 0"
    elif rule.number < 1:
        yield "worker", "workers count from 1, so this can never fire"
    elif rule.number > WORKERS_MAX:
        yield "worker", f"a run has {WORKERS_MAX} workers at most, so this can never fire"
    what, known = ("frame", tuple(FRAMES)) if rule.actor == "proxy" else ("point", _ANYWHERE)
    if rule.place not in known:
        yield "at", unknown(what, rule.place, known)
    if rule.nth < 1:
        yield "nth", "nth counts from 1, so this can never fire"
    elif rule.nth > _NTH_MAX:
        yield "nth", f"nth is {_NTH_MAX} at most: no run takes that long"
    kind = kinds.get(rule.action)
    if kind is None:
        owners = ", ".join(actor for actor in ALLOWED if rule.action in ALLOWED[actor])
        if owners:
            yield "action", f"{rule.action} is no action of {rule.actor} but of {owners}; there are: {', '.join(kinds)}"
        else:
            yield "action", unknown(f"action of {rule.actor}", rule.action, kinds)
        return
    if rule.place in known and rule.place not in kind.places:
        only = f"; it may at {', '.join(kind.places)}" if len(kind.places) < len(_UNLOCKED) else ""
        yield "at", f"{rule.actor} {rule.action} may not stand at {rule.place}: {kind.limit}{only}"
    yield from (("seconds", reason) for reason in _wrong_seconds(rule, kind))


def _wrong_seconds(rule: Rule, kind: Kind) -> Iterator[str]:
    seconds = rule.seconds
    if seconds is None:
        if kind.seconds == "must":
            yield f"{rule.action} needs its seconds, as in {rule.action}(0.5)"
    elif kind.seconds == "never":
        yield f"{rule.action} takes no seconds"
    elif math.isnan(seconds):
        yield "seconds must be a number"
    elif seconds <= 0:
        yield "seconds must be above 0"
    elif seconds > SECONDS_MAX:
        yield f"seconds must be {SECONDS_MAX} at most"


def _in_vain(rules: Sequence[Rule], mortal: bool) -> Iterator[Flaw]:
    """Which rules can never fire beside the others."""
    own = [rule for rule in rules if rule.actor == "worker"]
    ended = {rule.number for rule in own if _ends(rule)}
    kills: dict[tuple[int, str], Rule] = {}
    for rule in own:
        place = rule.number, rule.place
        if rule.action == "kill" and (place not in kills or rule.nth < kills[place].nth):
            kills[place] = rule
    first: dict[tuple[str, int, str, int], Rule] = {}
    copied = False
    for index, rule in enumerate(rules):
        trigger = rule.actor, rule.number, rule.place, rule.nth
        if trigger in first:
            yield Flaw(index, "actor", f"{first[trigger]} has the same trigger and comes first: this can never fire")
        first.setdefault(trigger, rule)
        if rule.action == "rollback" and not copied:
            yield Flaw(index, "action", "there is no copy to put back: a rule of nats with =copy must stand before it")
        copied |= rule.action == "copy"
        if rule.actor == "proxy":
            continue
        kill = kills.get((rule.number, rule.place), rule)
        if kill.nth < rule.nth:
            yield Flaw(index, "nth", f"worker#{rule.number} is dead by then of {kill}, so this can never fire")
        alive = next((number for number in range(1, rule.number) if number not in ended), None)
        if alive is not None and not mortal:
            reason = f"no rule ends worker#{alive} ({', '.join(_ENDINGS)}) or replaces it (stop without seconds)"
            yield Flaw(index, "worker", f"{reason}, so worker#{rule.number} is never started")


def _ends(rule: Rule) -> bool:
    return rule.action in _ENDINGS or (rule.action, rule.seconds) == ("stop", None)


def exit_of(rule: Rule) -> int | None:
    """The exit code with which the worker of `rule` must end by itself; `None` if it need not."""
    kind = ALLOWED[rule.actor].get(rule.action) if rule.actor in ALLOWED else None
    return None if kind is None else kind.exit


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """The reason given for a name that does not exist, with those that do."""
    names = list(known)
    close = difflib.get_close_matches(name[:40].lower(), names, 1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return f"no {what} {name!r:.40}{hint}; there are: {', '.join(names)}"
