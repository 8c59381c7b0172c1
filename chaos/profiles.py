"""How much a gate tries: on one's own machine, for a pull request, at night."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import attrs

from chaos.plan import ALLOWED
from meshforge_trio.points import Point

__all__ = ["PROFILES", "Profile"]


@attrs.frozen
class Profile:
    """How much is tried. `pairs` are the points whose ordered pairs are, `actors` those whose every cell is.

    `hits` bounds the hits of a point that are tried (0: all there are), `actions` the cells (none: all of the actors).
    `shrink_s` is how long smaller cases are looked for, for each violation.
    """

    name: str
    seeds: Sequence[int]
    batches: Sequence[int]
    pairs: Sequence[Point]
    actors: Sequence[str]
    kills_min: int
    shrink_s: float
    hits: int = 0
    actions: Sequence[str] = ()


PROFILES: Final[Mapping[str, Profile]] = {
    "quick": Profile(
        "quick",
        seeds=(0,),
        batches=(64,),
        pairs=(Point.AFTER_STORE, Point.AFTER_PUBLISH),
        actors=("worker",),
        kills_min=40,
        shrink_s=10.0,
        hits=2,
        actions=("kill",),
    ),
    "pr": Profile(
        "pr",
        seeds=(0,),
        batches=(1, 64),
        pairs=(Point.AFTER_RESET, Point.BEFORE_STORE, Point.AFTER_STORE, Point.AFTER_PUBLISH, Point.AFTER_ACK),
        actors=tuple(ALLOWED),
        kills_min=300,
        shrink_s=30.0,
    ),
    "nightly": Profile(
        "nightly",
        seeds=(0, 1, 2),
        batches=(1, 3, 64),
        pairs=tuple(Point),
        actors=tuple(ALLOWED),
        kills_min=2_000,
        shrink_s=600.0,
    ),
}
