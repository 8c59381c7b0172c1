"""Pure verdicts: what an error causes, when to try again, when to give up.

| error            | what happens to the command                    | what happens to the engine            |
|------------------|------------------------------------------------|---------------------------------------|
| Refused          | refusal stored under its key, published, ACK   | goes on                               |
| Poison           | dead letter, ACK                               | goes on                               |
| Transient        | attempt counted, NAK with back-off, entity held| goes on                               |
| any other of a handler | as Transient                             | goes on                               |
| SessionLost, or Transient of the store | comes again after the reset | new session: reset, recover, pull  |
| StoreFull        | comes again after the reset                    | waits, then a new session             |
| Stale            | decided anew, three times at most              | then a new session                    |
| Fenced           | the new holder has it                          | stands by                             |
| Misconfigured    | stays in the stream                            | process ends, exit code 3             |
| StoreBroken      | stays in the stream                            | process ends, exit code 4             |
| anything else    | stays in the stream                            | restarted; too often: exit code 5     |
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import Final

import attrs

from meshforge_trio.errors import (
    Fenced,
    Misconfigured,
    Poison,
    Refused,
    Stale,
    StoreBroken,
    StoreFull,
    Transient,
)

__all__ = ["BACKOFF_MAX_S", "Disposition", "ExitCode", "RetryPolicy", "backoff", "disposition", "worst"]


_BACKOFF_FIRST_S: Final = 0.05
BACKOFF_MAX_S: Final = 5.0


def backoff(most_s: float = BACKOFF_MAX_S) -> Iterator[float]:
    """Seconds to wait before the first, second, ... try, without end."""
    wait = _BACKOFF_FIRST_S
    while True:
        yield wait
        wait = min(wait * 2, most_s)


class ExitCode:
    """Exit codes of every command of this project."""

    OK = 0
    FAILED = 1
    USAGE = 2
    MISCONFIGURED = 3
    STORE_BROKEN = 4
    TOO_MANY_RESTARTS = 5
    OUTCOME_UNKNOWN = 6
    INTERRUPTED = 130


class Disposition(StrEnum):
    """What an error of a session makes the supervisor do, mildest first."""

    STAND_BY = "stand_by"
    RESTART = "restart"
    WAIT_FOR_SPACE = "wait_for_space"
    CRASHED = "crashed"
    REFUSE_TO_START = "refuse_to_start"
    END_PROCESS = "end_process"


_TABLE: tuple[tuple[type[BaseException], Disposition], ...] = (
    (StoreBroken, Disposition.END_PROCESS),
    (Misconfigured, Disposition.REFUSE_TO_START),
    (StoreFull, Disposition.WAIT_FOR_SPACE),
    (Fenced, Disposition.STAND_BY),
    (Transient, Disposition.RESTART),
    (Stale, Disposition.RESTART),
    # A turn settles these itself; one that escapes is a defect, handled like any unknown error.
    (Refused, Disposition.CRASHED),
    (Poison, Disposition.CRASHED),
)


def disposition(error: BaseException) -> Disposition:
    """What the supervisor does about one error. Total: unknown errors are crashes."""
    for kind, verdict in _TABLE:
        if isinstance(error, kind):
            return verdict
    return Disposition.CRASHED


def worst(error: BaseException) -> BaseException:
    """The leaf of an exception group that decides what happens: the severest disposition wins."""
    if isinstance(error, BaseExceptionGroup):
        ranks = list(Disposition)
        leaves = [worst(inner) for inner in error.exceptions]
        return max(leaves, key=lambda leaf: ranks.index(disposition(leaf)))
    return error


@attrs.frozen
class RetryPolicy:
    """How often a handler is called for one command, and how long to wait in between.

    `limit` bounds the calls: at least `limit - 1`, at most `limit`, whatever dies in between.
    `delays_s` are the waits after the first, second, ... failure; the last one repeats.
    `hold_entity` keeps later commands of the entity waiting behind a failing one; without it they pass.
    `handler_limit_s` is how long one call may take.
    """

    limit: int = 5
    delays_s: tuple[float, ...] = (1.0, 5.0, 10.0, 30.0)
    hold_entity: bool = True
    handler_limit_s: float = 30.0

    def delay_s(self, attempts: int) -> float:
        """How long to wait after that many failed attempts."""
        return self.delays_s[min(attempts, len(self.delays_s)) - 1]

    def exhausted(self, attempts: int) -> bool:
        """Whether the handler may not be called again. One call more than was counted may have happened."""
        return attempts >= self.limit - 1
