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

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from typing import Final, Literal

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

__all__ = [
    "BACKOFF_MAX_S",
    "Disposition",
    "ExitCode",
    "Failure",
    "RetryPolicy",
    "backoff",
    "disposition",
    "refusal",
    "worst",
    "worst_code",
]


_BACKOFF_FIRST_S: Final = 0.05
BACKOFF_MAX_S: Final = 5.0


def refusal(error: Exception) -> Refused:
    """An error of a handler as the answer that it means."""
    return error if isinstance(error, Refused) else Refused(str(error), code=type(error).__name__)


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


#: Mildest first; any other code counts as FAILED.
_SEVERITY: Final = (
    ExitCode.OK,
    ExitCode.FAILED,
    ExitCode.TOO_MANY_RESTARTS,
    ExitCode.MISCONFIGURED,
    ExitCode.STORE_BROKEN,
)


def worst_code(codes: Sequence[int]) -> int:
    """The severest of exit codes; death by a signal counts as FAILED."""
    known = [code if code in _SEVERITY else ExitCode.FAILED for code in codes]
    return max(known, key=_SEVERITY.index, default=ExitCode.OK)


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


#: What a handler's error means: try again, set aside, or an answer.
Failure = Literal["transient", "poison", "refused"]


def _names(given: Iterable[str | type[BaseException]]) -> tuple[str, ...]:
    return tuple(each if isinstance(each, str) else f"{each.__module__}.{each.__qualname__}" for each in given)


@attrs.frozen
class RetryPolicy:
    """How often a handler is called for one command, and how long to wait in between.

    `limit` bounds the calls: at least `limit - 1`, at most `limit`, whatever dies in between; 0 is no bound.
    `delays_s` are the waits after the first, second, ... failure; the last one repeats. Each is drawn out by up to its
    share `jitter`, so that what failed together is not tried together.
    `hold_entity` keeps later commands of the entity waiting behind a failing one; without it they pass.
    `handler_limit_s` is how long one call may take.
    `transient`, `poison` and `refused` name exception types that a handler may raise, as `ValueError` or
    `module.Name`, and what they mean; the most specific class of an error decides. Given as classes they become names.
    """

    limit: int = 5
    delays_s: tuple[float, ...] = (1.0, 5.0, 10.0, 30.0)
    jitter: float = 0.1
    hold_entity: bool = True
    handler_limit_s: float = 30.0
    transient: tuple[str, ...] = attrs.field(default=(), converter=_names)
    poison: tuple[str, ...] = attrs.field(default=(), converter=_names)
    refused: tuple[str, ...] = attrs.field(default=(), converter=_names)

    def classify(self, error: Exception) -> Failure:
        """What an error of a handler means for its command."""
        for kind in type(error).__mro__:
            names = {kind.__qualname__, f"{kind.__module__}.{kind.__qualname__}"}
            if kind is Refused or not names.isdisjoint(self.refused):
                return "refused"
            if kind is Poison or not names.isdisjoint(self.poison):
                return "poison"
            if not names.isdisjoint(self.transient):
                return "transient"
        return "transient"

    def delay_s(self, attempts: int, key: str) -> float:
        """How long to wait after that many failed attempts of a command; the same each time it is asked."""
        base = self.delays_s[min(attempts, len(self.delays_s)) - 1]
        # Of the key, not of chance: the same command on the same history decides the same.
        drawn = hashlib.blake2b(f"{key}/{attempts}".encode(errors="backslashreplace"), digest_size=4).digest()
        return base * (1.0 + self.jitter * int.from_bytes(drawn) / 0xFFFFFFFF)

    def exhausted(self, attempts: int) -> bool:
        """Whether the handler may not be called again. One call more than was counted may have happened."""
        if self.limit == 0:
            return False
        return attempts >= self.limit - 1
