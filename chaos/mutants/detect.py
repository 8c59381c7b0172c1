"""Whether planted bugs are caught: each on the very run that the protocol as it is passes.

A bug counts as caught when the guarantee that it names falls. If the true protocol fails the same run as well, the
run says nothing, and so neither does the catch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs
import trio

from chaos.case import Case
from chaos.lab import TRIES, Lab, Outcome
from chaos.mutants.mutant import Mutant
from chaos.power.check import check_power
from chaos.verdict import Status

__all__ = ["Detection", "TrueRuns", "detect", "run_catalogue"]


@attrs.frozen
class Detection:
    """What came of one planted bug.

    `fell` are all guarantees that fell with it, `outcome` the last of the `tries` runs with it, `truth` the run of
    the protocol as it is.
    """

    mutant: Mutant
    caught: bool
    fell: Sequence[str]
    true_passes: bool
    outcome: Outcome
    truth: Outcome
    tries: int = 1

    @property
    def proven(self) -> bool:
        """Whether the harness has shown that it catches this bug: a survivor it is else, or a run that says nothing."""
        return self.caught and self.true_passes

    def __str__(self) -> str:
        name = self.mutant.name
        if not self.true_passes:
            return f"{name}: says nothing, the true protocol does not pass the same run: {self.truth.verdict}"
        fell = ", ".join(self.fell) or "nothing"
        if self.caught:
            return f"{name}: caught by {self.mutant.guarantee} (fell: {fell})"
        return f"{name}: survived: {self.mutant.guarantee} had to fall, {fell} fell ({self.outcome.status})"


class TrueRuns:
    """Runs of the protocol as it is, one for each case, however many bugs are tried on it."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._turns: dict[str, trio.Lock] = {}
        self._outcomes: dict[str, Outcome] = {}

    async def of(self, case: Case, proof: str = "run") -> Outcome:
        """What comes of `case` without a bug; `proof` as of a mutant. Cases of the same name are the same case."""
        async with self._turns.setdefault(case.name, trio.Lock()):
            if case.name not in self._outcomes:
                power = proof == "power"
                self._outcomes[case.name] = (
                    (await check_power(case)).outcome if power else await self._lab.run(case, tries=TRIES)
                )
            return self._outcomes[case.name]


async def detect(mutant: Mutant, lab: Lab, tries: int = 1, *, true_runs: TrueRuns | None = None) -> Detection:
    """Run the case of `mutant` without it and, if that passes, with it: up to `tries` times until it is caught.

    `true_runs` spares the run without it where another bug has needed the same one.

    Raises:
        ValueError: `tries` is less than 1.
    """
    if tries < 1:
        raise ValueError(f"tries is {tries}, it must be at least 1")
    case = mutant.case()
    truth = await (true_runs or TrueRuns(lab)).of(case, mutant.proof)
    if truth.status is not Status.PASS:
        return Detection(mutant, False, (), False, truth, truth, 0)
    mutated = attrs.evolve(case, replay=f"meshforge-chaos mutants {mutant.name}")
    tried = 0
    caught = False
    try:
        while tried < tries and not caught:
            tried += 1
            outcome = await _with_bug(mutant, mutated, lab)
            caught = outcome.status is Status.VIOLATION and mutant.guarantee in outcome.verdict.broken_ids
    finally:
        await lab.let_go(mutant.patch)
    return Detection(mutant, caught, tuple(outcome.verdict.broken_ids), True, outcome, truth, tried)


async def _with_bug(mutant: Mutant, case: Case, lab: Lab) -> Outcome:
    if mutant.proof == "power":
        return (await check_power(case, patch=mutant.patch, until=mutant.guarantee)).outcome
    return await lab.run(case, patch=mutant.patch, tries=TRIES)


async def run_catalogue(
    mutants: Sequence[Mutant], lab: Lab, note: Callable[[Detection], None] = lambda _: None, *, tries: int = 1
) -> Sequence[Detection]:
    """Detect many side by side, as many at a time as the lab has servers; the results are in their order."""
    true_runs = TrueRuns(lab)
    found: dict[int, Detection] = {}

    async def one(number: int, mutant: Mutant) -> None:
        found[number] = await detect(mutant, lab, tries, true_runs=true_runs)
        note(found[number])

    async with trio.open_nursery() as nursery:
        for number, mutant in enumerate(mutants):
            nursery.start_soon(one, number, mutant)
    return [found[number] for number in range(len(mutants))]
