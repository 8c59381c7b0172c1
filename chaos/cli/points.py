"""`meshforge-chaos points`: where faults can be put, and which."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import click
from rich.table import Table

from chaos.cli.options import json_option
from chaos.cli.outlet import out, print_json
from chaos.plan import ALLOWED, FRAMES
from meshforge_trio.points import Point

__all__ = ["WHERE", "points"]

#: What is true at each point.
WHERE: Final[Mapping[Point, str]] = {
    Point.AFTER_LEASE: "a session begins: this process is the active engine of the scope",
    Point.AFTER_RESET: "un-ACKed commands will come again, in stream order",
    Point.BEFORE_RECOVERY: "the newest mark that the streams confirm is chosen",
    Point.IN_RECOVERY: "something that an earlier session committed and never published is published",
    Point.AFTER_RECOVERY: "everything committed is in its stream; nothing has been pulled yet",
    Point.RECEIVED: "a turn begins: commands have arrived, nothing is decided",
    Point.BEFORE_STORE: "all is decided, nothing is written",
    Point.IN_STORE: "inside the transaction: everything is written, COMMIT is not yet called",
    Point.AFTER_STORE: "COMMIT has returned, nothing is published",
    Point.BEFORE_PUBLISH: "the turn before has published; this one is about to",
    Point.IN_PUBLISH: "a burst of outputs has its PubAcks, the next is not sent",
    Point.AFTER_PUBLISH: "every output has its PubAck",
    Point.BEFORE_ACK: "duplicates and queries are answered, no command is ACKed",
    Point.AFTER_ACK: "every command of the turn is ACKed",
    Point.BEFORE_ATTEMPT: "a command whose earlier run may have died is about to run alone",
    Point.IN_ATTEMPT: "its attempt is committed, its handler has not been called",
    Point.BEFORE_HOLD: "a handler has raised; that is not stored yet",
    Point.AFTER_HOLD: "its failure is stored, its entity held",
    Point.BEFORE_DEAD_LETTER: "a command is given up; that is not stored yet",
    Point.AFTER_DEAD_LETTER: "its dead letter is stored under its key, not published",
    Point.BEFORE_MARK: "idle, or shutting down: how far outputs are published is about to be stored",
    Point.AFTER_MARK: "that is stored",
}


#: So few places are listed with an action.
_FEW: Final = 6


@click.command(short_help="List the points where faults can be put.")
@json_option
def points(as_json: bool) -> int:
    """List the points of the protocol in its order, the frames a proxy can tell apart, and what can be done at each."""
    if as_json:
        print_json({"points": [_point(point) for point in Point], "frames": [_frame(frame) for frame in FRAMES]})
        return 0
    console = out()
    table = _table("point", "worker", "nats, client", "where")
    for point in Point:
        others = "yes" if _kinds("nats", point) else "-"
        table.add_row(point.value, ", ".join(_kinds("worker", point)), others, WHERE[point])
    console.print(table)
    frames = _table("frame", "proxy", "what")
    for frame, what in FRAMES.items():
        frames.add_row(frame, ", ".join(_kinds("proxy", frame)), what)
    console.print(frames)
    kinds = _table("actor", "action", "seconds", "what it does", "where, if only there")
    for actor, allowed in ALLOWED.items():
        for action, kind in allowed.items():
            only = ", ".join(kind.places) if len(kind.places) <= _FEW else ""
            kinds.add_row(actor, action, kind.seconds, kind.means, only)
    console.print(kinds)
    return 0


def _table(*names: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in names:
        table.add_column(name)
    return table


def _kinds(actor: str, place: str) -> list[str]:
    return [action for action, kind in ALLOWED[actor].items() if place in kind.places]


def _point(point: Point) -> Mapping[str, Any]:
    kinds = {actor: _kinds(actor, point) for actor in ("worker", "nats", "client")}
    return {"name": point.value, "where": WHERE[point], **kinds}


def _frame(frame: str) -> Mapping[str, Any]:
    return {"name": frame, "where": FRAMES[frame], "proxy": _kinds("proxy", frame)}
