"""The faults of the soak test, drawn from its seed: at any time, at points of the protocol, and at frames."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

import attrs

from chaos.plan import Rule
from chaos.rules import ALLOWED, FRAMES, kinds_at
from meshforge_trio.points import Point

__all__ = ["LEASE_S", "Strike", "draw_frames", "draw_plan", "draw_storm"]

#: The term of a lease in the soak, in seconds. A worker that is stopped for longer is taken over.
LEASE_S: Final = 2.0
_STRIKES: Final[dict[str, int]] = {
    "kill": 5,
    "corpse": 4,
    "stop": 3,
    "takeover": 3,
    "drain": 1,
    "restart": 1,
    "down": 1,
    "pause": 2,
    "resend": 2,
}
_SECONDS: Final[dict[str, tuple[float, float]]] = {
    "stop": (0.05, 0.8),
    "takeover": (LEASE_S * 1.2, LEASE_S * 1.8),
    "down": (0.1, 1.0),
    "pause": (0.1, 1.5),
}
#: How far apart strikes are, in seconds.
_GAP_S: Final = (0.5, 2.5)
#: Points that a worker passes many times; the others come a few times in its life.
_OFTEN: Final = frozenset(
    point for point in Point if point.value.endswith(("_store", "_publish", "_ack")) or point is Point.RECEIVED
)
#: How far apart faults at frames of one kind are.
_FRAMES_APART: Final = (1_500, 9_000)
_FRAME_RULES: Final = 400


@attrs.frozen
class Strike:
    """Something to do `at_s` seconds into a round; `lot` chooses whom it befalls."""

    at_s: float
    kind: str
    seconds: float
    lot: float


def draw_storm(seed: str, number: int, seconds: float) -> Sequence[Strike]:
    """The strikes of round `number`, which lasts `seconds`."""
    drawn = random.Random(f"{seed}/storm/{number}")  # noqa: S311
    strikes: list[Strike] = []
    at = drawn.uniform(*_GAP_S)
    while at < seconds:
        kind = drawn.choices(list(_STRIKES), list(_STRIKES.values()))[0]
        strikes.append(Strike(at, kind, round(drawn.uniform(*_SECONDS.get(kind, (0, 0))), 2), drawn.random()))
        at += drawn.uniform(*_GAP_S)
    return strikes


def draw_plan(seed: str, serial: int, number: int) -> Sequence[Rule]:
    """The rules of the worker that is started as `serial`th, under the name of `number`."""
    drawn = random.Random(f"{seed}/plan/{serial}")  # noqa: S311
    rules: list[Rule] = []
    places = drawn.sample(list(Point), 4)
    for place, (action, chance) in zip(
        places, (("kill", 0.5), ("stop", 0.3), ("full", 0.2), ("nats", 0.15)), strict=True
    ):
        nth = drawn.randint(1, 60) if place in _OFTEN else drawn.randint(1, 3)
        seconds = round(drawn.uniform(0.05, 0.6), 2)
        wanted = drawn.random() < chance
        if action == "nats":
            allowed = place in ALLOWED["nats"]["pause"].places
            rule = Rule("nats", number, place, nth, "pause", seconds)
        else:
            allowed = action in kinds_at(place)
            rule = Rule("worker", number, place, nth, action, None if action == "kill" else seconds)
        if wanted and allowed:
            rules.append(rule)
    return rules


def draw_frames(seed: str) -> Sequence[Rule]:
    """What the proxy does to frames, more than the longest soak comes to.

    No publish is swallowed: several travel together, and no network loses one from among them and delivers the rest.
    """
    drawn = random.Random(f"{seed}/frames")  # noqa: S311
    rules: list[Rule] = []
    for frame in FRAMES:
        actions = [action for action in ALLOWED["proxy"] if (frame, action) != ("publish", "swallow")]
        nth = 0
        for _ in range(_FRAME_RULES):
            nth += drawn.randint(*_FRAMES_APART)
            rules.append(Rule("proxy", 0, frame, nth, drawn.choice(actions)))
    return rules
