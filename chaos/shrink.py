"""Shrinking: the smallest case that still breaks the same guarantee, found by trying smaller ones.

First the plan: rules go one at a time, hits come earlier. Then the batch, then the commands, in halves and then one by
one. What is left is gone through again until nothing more can go, or the tries or the time are used up. Every candidate
is really run, so what is reported has been seen to break.
"""

from __future__ import annotations

import shlex
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import attrs
import orjson
import trio

from chaos.again import discard
from chaos.case import Case
from chaos.evidence import Sent
from chaos.lab import Lab, Outcome
from chaos.mutants.patch import Patch
from chaos.plan import Plan, PlanError, Rule, check_plan

__all__ = ["Breaks", "Shrunk", "Violation", "shrink", "smallest"]

#: Whether a case breaks what it should: it is run for that.
Breaks = Callable[[Case], Awaitable[bool]]

_TRIES_MAX: Final = 60
_SECONDS_MAX: Final = 120.0
_BATCHES: Final = (1, 2, 8)
_TIMES: Final = 3


@attrs.frozen
class Shrunk:
    """The smallest case found, after how many tries. `whole` says that it sends every command of the first case."""

    case: Case
    tries: int
    whole: bool


@attrs.frozen
class Violation:
    """The smallest case found of a violation, and whether it lasts.

    It broke `guarantee` in `same` of `times` runs after it was found; `outcome` is the last of these that did.
    `replay` is the command that runs it again.
    """

    first: Outcome
    guarantee: str
    shrunk: Shrunk
    same: int
    times: int
    outcome: Outcome | None
    replay: str

    @property
    def shown(self) -> Outcome:
        """The run to look at."""
        return self.outcome or self.first


async def smallest(
    first: Outcome,
    lab: Lab,
    replay_of: Callable[[Case], str],
    *,
    tries_max: int = _TRIES_MAX,
    seconds_max: float = _SECONDS_MAX,
    patch: Patch | None = None,
) -> Violation:
    """Shrink the case of a violation, and see how often it breaks.

    `replay_of` says how a case of the same commands is run again; one with fewer is run from its directory.
    """
    guarantee = first.verdict.broken_ids[0]

    async def breaks(case: Case) -> bool:
        tried = discard(await lab.run(case, patch=patch))
        return guarantee in tried.verdict.broken_ids

    shrunk = await shrink(first.case, breaks, tries_max=tries_max, seconds_max=seconds_max)
    case = attrs.evolve(shrunk.case, replay=replay_of(shrunk.case), record_frames=True)
    same = 0
    found: Outcome | None = None
    for _ in range(_TIMES):
        outcome = await lab.run(case, patch=patch)
        if guarantee in outcome.verdict.broken_ids:
            same += 1
            if found is not None:
                discard(found)
            found = outcome
        else:
            discard(outcome)
    replay = case.replay
    if not shrunk.whole and found is not None and found.home is not None:
        replay = f"meshforge-chaos replay {shlex.quote(str(found.home))}"
        _retell(found.home / "run.json", replay=replay)
    if first.home is not None:
        _retell(first.home / "verdict.json", minimal=str(case.plan))
    return Violation(first, guarantee, shrunk, same, _TIMES, found, replay)


def _retell(path: Path, **fields: Any) -> None:
    path.write_bytes(orjson.dumps({**orjson.loads(path.read_bytes()), **fields}))


async def shrink(
    case: Case, breaks: Breaks, *, tries_max: int = _TRIES_MAX, seconds_max: float = _SECONDS_MAX
) -> Shrunk:
    """Make `case`, which breaks, smaller for as long as it breaks.

    At most `tries_max` candidates are run, and none is begun after `seconds_max`.
    """
    search = _Search(case, breaks, tries_max, trio.current_time() + seconds_max)
    await search.until_nothing_goes()
    return Shrunk(search.case, search.tries, len(search.case.sent) == len(case.sent))


class _Search:
    """The smallest case so far."""

    def __init__(self, case: Case, breaks: Breaks, tries_max: int, until: float) -> None:
        self.case = case
        self.tries = 0
        self._breaks = breaks
        self._tries_max = tries_max
        self._until = until
        self._seen = {_identity(case)}

    async def until_nothing_goes(self) -> None:
        before = None
        while before != _identity(self.case):
            before = _identity(self.case)
            await self._first_that_breaks(_plans)
            await self._first_that_breaks(_batches)
            await self._first_that_breaks(_workloads)

    async def _first_that_breaks(self, smaller: Callable[[Case], Iterator[Case]]) -> None:
        """Go to the first smaller case that breaks, and on from there, until none does."""
        went = True
        while went:
            went = False
            for candidate in smaller(self.case):
                if await self._still_breaks(candidate):
                    self.case, went = candidate, True
                    break

    async def _still_breaks(self, candidate: Case) -> bool:
        identity = _identity(candidate)
        spent = self.tries == self._tries_max or trio.current_time() >= self._until
        if spent or identity in self._seen:
            return False
        self._seen.add(identity)
        self.tries += 1
        return await self._breaks(candidate)


def _identity(case: Case) -> tuple[str, object, tuple[str, ...]]:
    return str(case.plan), case.engine.get("batch"), tuple(f"{sent.scope}/{sent.command.id}" for sent in case.sent)


# -- smaller cases, the most promising first -----------------------------------------------------------------------


def _plans(case: Case) -> Iterator[Case]:
    for rules in _fewer_rules(case.plan.rules):
        yield from _checked(case, rules)
    for index, rule in enumerate(case.plan.rules):
        for nth in _earlier(rule.nth):
            rules = list(case.plan.rules)
            rules[index] = attrs.evolve(rule, nth=nth)
            yield from _checked(case, rules)


def _fewer_rules(rules: Sequence[Rule]) -> Iterator[Sequence[Rule]]:
    """Without all; without each. Where a worker's end goes, those after it come one earlier."""
    if len(rules) > 1:
        yield ()
    for index, gone in enumerate(rules):
        left = [*rules[:index], *rules[index + 1 :]]
        yield left
        yield [attrs.evolve(rule, number=rule.number - 1) if rule.number > gone.number >= 1 else rule for rule in left]


def _earlier(nth: int) -> Iterator[int]:
    """1, then halfway, then one less."""
    yield from dict.fromkeys(value for value in (1, nth // 2, nth - 1) if 1 <= value < nth)


def _checked(case: Case, rules: Sequence[Rule]) -> Iterator[Case]:
    plan = Plan(rules)
    try:
        check_plan(plan, case.mortal)
    except PlanError:
        return
    yield attrs.evolve(case, plan=plan)


def _batches(case: Case) -> Iterator[Case]:
    for batch in _BATCHES:
        if batch < case.engine.get("batch", 0):
            yield attrs.evolve(case, engine={**case.engine, "batch": batch})


def _workloads(case: Case) -> Iterator[Case]:
    """Without a half, a quarter ... a single one of the commands; of each phase something stays."""
    phases = {sent.phase for sent in case.sent}
    size = len(case.sent) // 2
    while size:
        for start in range(0, len(case.sent), size):
            left: Sequence[Sent] = [*case.sent[:start], *case.sent[start + size :]]
            if {sent.phase for sent in left} == phases:
                yield attrs.evolve(case, sent=left)
        size //= 2
