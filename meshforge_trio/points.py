"""Named points of the protocol, in the order in which a command meets them.

A point's name says what is true there; the same name is crash point, log line, span event and metric label.
A probe is called at each point, synchronously: it may observe or kill, never delay or alter
(delays, drops and duplicates belong to wrappers of the two ports).
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

__all__ = ["Point", "Probe", "no_probe"]


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


Probe = Callable[[Point], None]


def no_probe(point: Point) -> None:
    """The probe of production: does nothing."""
