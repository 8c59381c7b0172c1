"""Named points of the protocol, in the order in which a command meets them.

A point's name says what is true there; the same name is crash point, log line, span event and metric label.
A probe is called at each point, synchronously: it may observe or kill, never delay or alter
(delays, drops and duplicates belong to wrappers of the two ports).
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Final

__all__ = [
    "AFTER_ACK",
    "AFTER_DEAD_LETTER",
    "AFTER_HOLD",
    "AFTER_LEASE",
    "AFTER_MARK",
    "AFTER_PUBLISH",
    "AFTER_RECOVERY",
    "AFTER_RESET",
    "AFTER_STORE",
    "BEFORE_ACK",
    "BEFORE_ATTEMPT",
    "BEFORE_DEAD_LETTER",
    "BEFORE_HOLD",
    "BEFORE_MARK",
    "BEFORE_PUBLISH",
    "BEFORE_RECOVERY",
    "BEFORE_STORE",
    "IN_ATTEMPT",
    "IN_PUBLISH",
    "IN_RECOVERY",
    "IN_STORE",
    "RECEIVED",
    "Point",
    "Probe",
    "no_probe",
]


class Point(StrEnum):
    """Where a probe is called. Order of definition is order of the protocol."""

    # a session begins
    AFTER_LEASE = "after_lease"
    AFTER_RESET = "after_reset"
    BEFORE_RECOVERY = "before_recovery"
    IN_RECOVERY = "in_recovery"
    AFTER_RECOVERY = "after_recovery"
    # a turn
    RECEIVED = "received"
    BEFORE_STORE = "before_store"
    IN_STORE = "in_store"
    AFTER_STORE = "after_store"
    BEFORE_PUBLISH = "before_publish"
    IN_PUBLISH = "in_publish"
    AFTER_PUBLISH = "after_publish"
    BEFORE_ACK = "before_ack"
    AFTER_ACK = "after_ack"
    # a command that runs alone because an earlier run of it may have died
    BEFORE_ATTEMPT = "before_attempt"
    IN_ATTEMPT = "in_attempt"
    # a turn that stores a failure or a dead letter
    BEFORE_HOLD = "before_hold"
    AFTER_HOLD = "after_hold"
    BEFORE_DEAD_LETTER = "before_dead_letter"
    AFTER_DEAD_LETTER = "after_dead_letter"
    # a mark written by itself, when idle and at shutdown
    BEFORE_MARK = "before_mark"
    AFTER_MARK = "after_mark"


# The members by themselves: Python 3.11 finds one in its class by a slow detour.
AFTER_LEASE: Final = Point.AFTER_LEASE
AFTER_RESET: Final = Point.AFTER_RESET
BEFORE_RECOVERY: Final = Point.BEFORE_RECOVERY
IN_RECOVERY: Final = Point.IN_RECOVERY
AFTER_RECOVERY: Final = Point.AFTER_RECOVERY
RECEIVED: Final = Point.RECEIVED
BEFORE_STORE: Final = Point.BEFORE_STORE
IN_STORE: Final = Point.IN_STORE
AFTER_STORE: Final = Point.AFTER_STORE
BEFORE_PUBLISH: Final = Point.BEFORE_PUBLISH
IN_PUBLISH: Final = Point.IN_PUBLISH
AFTER_PUBLISH: Final = Point.AFTER_PUBLISH
BEFORE_ACK: Final = Point.BEFORE_ACK
AFTER_ACK: Final = Point.AFTER_ACK
BEFORE_ATTEMPT: Final = Point.BEFORE_ATTEMPT
IN_ATTEMPT: Final = Point.IN_ATTEMPT
BEFORE_HOLD: Final = Point.BEFORE_HOLD
AFTER_HOLD: Final = Point.AFTER_HOLD
BEFORE_DEAD_LETTER: Final = Point.BEFORE_DEAD_LETTER
AFTER_DEAD_LETTER: Final = Point.AFTER_DEAD_LETTER
BEFORE_MARK: Final = Point.BEFORE_MARK
AFTER_MARK: Final = Point.AFTER_MARK

Probe = Callable[[Point], None]


def no_probe(point: Point) -> None:
    """The probe of production: does nothing."""
