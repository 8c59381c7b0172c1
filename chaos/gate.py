"""The gate: everything that a change must survive, and the proof that the harness would have noticed.

    regressions   what once went wrong, first
    sweeps        a kill at every hit of every point, of the successor too, pairs of kills
    scenarios     every script of the project
    cells         each action at each place that nothing of the above has reached
    mutants       planted bugs, each to be caught by the guarantee it names
    power loss    every crash image of what a run does to its disk

It fails closed. A guarantee that fell, or a bug that was not caught, is a violation. Too few kills, a place that was
never reached without a reason, a run or a mutant that could not be judged: then nothing is shown, and that is
inconclusive.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, Protocol

import attrs
import trio

from chaos.again import discard
from chaos.builtin import FIRST_DEATHS, RECOVERY, Each
from chaos.case import Case
from chaos.lab import Lab, Outcome
from chaos.mutants.detect import Detection, run_catalogue
from chaos.mutants.mutant import Mutant
from chaos.power.check import check_seeds
from chaos.power.result import PowerResult
from chaos.profiles import Profile
from chaos.scenario import Scenario, Search
from chaos.shrink import Violation, smallest
from chaos.sweep import Fixed, Pairs, Sweep
from chaos.tally import Cell, Tally, cells, reasons_for
from chaos.verdict import Status
from meshforge_trio.points import Point

__all__ = ["Gate", "Stage", "Target", "Watch", "judged", "plan_for", "run_gate"]

#: Stages at a time: the last runs of one leave room that the next can use.
_ABREAST: Final = 3
_SHRUNK_MAX: Final = 3
_KEPT_MAX: Final = 30
#: How long what needs a time lasts, in seconds.
_SECONDS: Final[Mapping[str, float]] = {"full": 0.3, "pause": 0.3, "lock": 0.3, "limit": 0.3}
#: What damages the broker's files: there must be events in them, and marks that speak of some which are left.
_DAMAGES: Final = frozenset({"truncate", "flip", "rot"})
_ALONE: Final = (Point.BEFORE_ATTEMPT, Point.IN_ATTEMPT)


@attrs.frozen
class Target:
    """What the gate is for. `base` is the scenario that is swept; a `strict` one has to reach every cell.

    `filler` is the scenario in which what nothing else has reached is tried; without one it is `base`.
    `regressions` are plans for `base`; `unreached` gives reasons for points that it never gets to. `kills_min`
    overrules the profile's. `power` makes the case of a seed whose disk is recorded, for the images of a power loss.
    """

    base: Scenario
    first: Sequence[Scenario] = ()
    scripts: Sequence[Scenario] = ()
    mutants: Sequence[Mutant] = ()
    strict: bool = True
    filler: Scenario | None = None
    regressions: Sequence[str] = ()
    unreached: Mapping[str, str] = attrs.field(factory=dict)
    kills_min: int | None = None
    power: Callable[[int], Case] | None = None


@attrs.define
class Stage:
    """One line of the gate's result: searches over one scenario with one seed, and what came of them."""

    kind: str
    name: str
    about: str
    scenario: Scenario
    searches: Sequence[Search]
    seed: int = 0
    tally: Tally = attrs.field(factory=Tally)
    seconds: float = 0.0


@attrs.define
class Gate:
    """What came of everything. `reasons` say why it shows less than it should; `excused` why cells were not reached.

    `power` is what came of the crash images of each seed.
    """

    profile: Profile
    target: Target
    stages: list[Stage] = attrs.field(factory=list)
    detections: Sequence[Detection] = ()
    power: dict[int, PowerResult] = attrs.field(factory=dict)
    violations: list[Violation] = attrs.field(factory=list)
    tally: Tally = attrs.field(factory=Tally)
    excused: Mapping[Cell, str] = attrs.field(factory=dict)
    reasons: list[str] = attrs.field(factory=list)
    seconds: float = 0.0

    @property
    def wanted(self) -> Sequence[Cell]:
        """The cells that must be reached.

        A broker that lost all that an agent's marks speak of is refused, and rightly; where that is, only a known
        workload tells, so somebody else's is spared.
        """
        actions = self.profile.actions
        found = [cell for cell in cells(*self.profile.actors) if not actions or cell.action in actions]
        return [cell for cell in found if self.target.strict or cell.action not in {"rollback", *_DAMAGES}]

    @property
    def missing(self) -> Sequence[Cell]:
        """Those that were neither reached nor excused."""
        return [cell for cell in self.tally.missing(self.wanted) if cell not in self.excused]

    @property
    def kills_min(self) -> int:
        """How many workers must have died."""
        return self.profile.kills_min if self.target.kills_min is None else self.target.kills_min

    @property
    def status(self) -> Status:
        """The verdict on all of it."""
        survived = any(judged(detection) is Status.VIOLATION for detection in self.detections)
        lost = any(result.status is Status.VIOLATION for result in self.power.values())
        if lost or survived or any(stage.tally.status is Status.VIOLATION for stage in self.stages):
            return Status.VIOLATION
        return Status.INCONCLUSIVE if self.reasons else Status.PASS


class Watch(Protocol):
    """Who is told how far it is."""

    def stage(self, name: str) -> None:
        """What begins."""

    def note(self, outcome: Outcome) -> None:
        """One more run of the protocol as it is."""

    def caught(self, detection: Detection) -> None:
        """One more planted bug has been tried."""


def judged(detection: Detection) -> Status:
    """Pass: caught. Violation: survived, or the true protocol fell on the same run. Else nothing is shown."""
    if detection.proven:
        return Status.PASS
    last = detection.outcome.status if detection.true_passes else detection.truth.status
    return Status.INCONCLUSIVE if last is Status.INCONCLUSIVE else Status.VIOLATION


async def run_gate(target: Target, profile: Profile, lab: Lab, watch: Watch) -> Gate:
    """Run everything that `profile` asks for. What goes wrong is in the result."""
    gate = Gate(profile, target)
    began = time.monotonic()
    await _run_stages(gate, list(_regressions(target)), lab, watch)
    await _run_stages(gate, [*_sweeps(target, profile), *_scripts(target, profile)], lab, watch)
    await _run_stages(gate, list(_left_over(gate)), lab, watch)
    watch.stage(f"{len(target.mutants)} planted bugs" + (", and power loss after every write" if target.power else ""))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(check_seeds, target.power, profile.seeds, gate.power)
        gate.detections = await run_catalogue(target.mutants, lab, watch.caught)
    for detection in gate.detections:
        if detection.proven:
            discard(detection.outcome)
    gate.excused = dict(_excused(gate))
    gate.reasons = list(_reasons(gate))
    await _shrink_violations(gate, lab, watch)
    gate.seconds = time.monotonic() - began
    return gate


async def _run_stages(gate: Gate, stages: Sequence[Stage], lab: Lab, watch: Watch) -> None:
    gate.stages += stages
    room = trio.Semaphore(_ABREAST)
    async with trio.open_nursery() as nursery:
        for stage in stages:
            await room.acquire()
            watch.stage(stage.name)
            nursery.start_soon(_run_stage, gate, stage, lab, watch, room.release)


async def _run_stage(gate: Gate, stage: Stage, lab: Lab, watch: Watch, release: Callable[[], None]) -> None:
    began = time.monotonic()

    def note(outcome: Outcome) -> None:
        kept = gate.tally.total - gate.tally.runs[Status.PASS]
        told = outcome if kept < _KEPT_MAX else discard(outcome)
        stage.tally.note(told)
        gate.tally.note(told)
        watch.note(told)

    for search in stage.searches:
        await search.explore(
            lambda plan, batch, must: stage.scenario.case(plan, batch=batch, must_fire=must, seed=stage.seed), lab, note
        )
    stage.seconds = time.monotonic() - began
    release()


# -- what is run ---------------------------------------------------------------------------------------------------


def _regressions(target: Target) -> Iterator[Stage]:
    if target.regressions:
        yield Stage(
            "regression",
            f"regressions of {target.base.name}",
            "Plans that once broke something.",
            target.base,
            [Fixed(target.regressions, mortal=target.base.mortal)],
        )
    for scenario in target.first:
        yield _stage("regression", scenario, 0)


def _stage(kind: str, scenario: Scenario, seed: int) -> Stage:
    name = f"{scenario.name}, seed {seed}" if seed else scenario.name
    return Stage(kind, name, scenario.about, scenario, scenario.searches, seed)


def _sweeps(target: Target, profile: Profile) -> Iterator[Stage]:
    base = target.base
    hits = f"the first {profile.hits} hits" if profile.hits else "every hit"
    for seed in profile.seeds:
        seeded = f", seed {seed}" if seed else ""
        yield Stage(
            "sweep",
            f"kill at {hits} ({base.name}{seeded})",
            f"A worker is killed at {hits} of every point; its successor finishes.",
            base,
            [Sweep(batches=profile.batches, nth_max=profile.hits)],
            seed,
        )
        yield Stage(
            "sweep",
            f"kill the successor ({base.name}{seeded})",
            "The successor of a killed worker is killed while it recovers, and while it runs a command alone.",
            base,
            [
                Sweep(RECOVERY, batches=profile.batches, before=FIRST_DEATHS[0], number=2, nth_max=profile.hits),
                Sweep(_ALONE, batches=profile.batches, before=FIRST_DEATHS[1], number=2, nth_max=profile.hits),
            ],
            seed,
        )
        yield Stage(
            "sweep",
            f"pairs of kills ({base.name}{seeded})",
            "A worker is killed at one point, its successor at another.",
            base,
            [Pairs(profile.pairs, profile.pairs)],
            seed,
        )


def _scripts(target: Target, profile: Profile) -> Iterator[Stage]:
    for seed in profile.seeds:
        for scenario in target.scripts:
            if scenario.name != target.base.name:
                yield _stage("scenario", scenario, seed)


def _left_over(gate: Gate) -> Iterator[Stage]:
    """What nothing else has reached is tried at its first hit."""
    plans = [plan_for(cell) for cell in gate.tally.missing(gate.wanted)]
    scenario = gate.target.filler or gate.target.base
    if plans:
        yield Stage(
            "sweep",
            f"every other action ({scenario.name})",
            "Each action at each place that no other stage has reached.",
            scenario,
            [Each("every action at its place", plans, gate.profile.batches[:1])],
        )


def plan_for(cell: Cell) -> str:
    """A plan that reaches `cell`, if the workload gets there one command at a time."""
    seconds = f"({_SECONDS[cell.action]:g})" if cell.action in _SECONDS else ""
    if cell.actor == "proxy":
        return f"proxy:{cell.place}@1={cell.action}{seconds}"
    before, number, nth = _ground(cell)
    who = f"worker#{number}:" if cell.actor == "worker" else f"{cell.actor}:worker#{number}."
    return "; ".join([*before, f"{who}{cell.place}@{nth}={cell.action}{seconds}"])


def _ground(cell: Cell) -> tuple[Sequence[str], int, int]:
    """What must happen before, and then at which worker's which hit."""
    # A first worker has nothing to recover and nobody to suspect.
    which = 1 if cell.place in _ALONE else 0 if cell.place in RECOVERY else None
    if cell.action in _DAMAGES:
        return ([], 1, 5) if which is None else (["worker#1:after_ack@5=kill"], 2, 1)
    if cell.action != "rollback":
        return ([], 1, 1) if which is None else ([FIRST_DEATHS[which]], 2, 1)
    # A server that has lost everything that marks speak of is refused, so one has to be written before the copy.
    before = ["worker#1:after_publish@1=kill", "nats:worker#2.received@1=copy"]
    if which is not None:
        return [*before, FIRST_DEATHS[which].replace("#1", "#2").replace("@1", "@3")], 3, 1
    return before, 2, 2 if cell.place in (Point.RECEIVED, Point.BEFORE_MARK, Point.AFTER_MARK) else 1


# -- what is made of it --------------------------------------------------------------------------------------------


def _excused(gate: Gate) -> Iterator[tuple[Cell, str]]:
    """Reasons for cells that were not reached. Without strictness, that no run gets there is one."""
    missing = gate.tally.missing(gate.wanted)
    found = reasons_for(gate.tally, missing)
    for cell in missing:
        if cell.place in gate.target.unreached:
            yield cell, gate.target.unreached[cell.place]
        elif not gate.target.strict and cell.actor != "worker":
            yield cell, "the run that waited for it ended without it"
        elif not gate.target.strict and not gate.tally.passed[cell.place]:
            yield cell, found[cell]


def _reasons(gate: Gate) -> Iterator[str]:
    for stage in gate.stages:
        left = stage.tally.runs[Status.INCONCLUSIVE]
        if left:
            first = "; ".join(stage.tally.inconclusive[0].verdict.reasons).split("\n", 1)[0]
            yield f"{stage.name}: {left} of {stage.tally.total} runs are inconclusive: {first}"
        elif not stage.tally.total:
            yield f"{stage.name}: nothing was run"
    if gate.missing:
        shown = ", ".join(map(str, gate.missing[:10])) + (" ..." if len(gate.missing) > 10 else "")
        yield f"never reached: {len(gate.missing)} of {len(gate.wanted)}: {shown}"
    if gate.tally.kills < gate.kills_min:
        yield f"{gate.tally.kills} workers were killed, {gate.kills_min} is the least"
    for detection in gate.detections:
        if judged(detection) is Status.INCONCLUSIVE:
            yield f"planted bug not judged: {str(detection).split(chr(10), 1)[0]}"
    for seed, result in gate.power.items():
        yield from (f"power loss, seed {seed}: {reason}".split("\n", 1)[0] for reason in result.reasons)
    if not gate.detections:
        yield "no bug was planted, so nothing shows that one would be caught"


async def _shrink_violations(gate: Gate, lab: Lab, watch: Watch) -> None:
    """Of each kind of violation the first, as small as it gets."""
    kinds: dict[tuple[str, str], tuple[Stage, Outcome]] = {}
    for stage in gate.stages:
        for outcome in stage.tally.violations:
            kinds.setdefault((stage.scenario.name, outcome.verdict.broken_ids[0]), (stage, outcome))
    async with trio.open_nursery() as nursery:
        for stage, outcome in list(kinds.values())[:_SHRUNK_MAX]:
            watch.stage(f"looking for the smallest plan that breaks as {outcome.case.plan} does")
            nursery.start_soon(_shrink_one, gate, stage, outcome, lab)


async def _shrink_one(gate: Gate, stage: Stage, outcome: Outcome, lab: Lab) -> None:
    def replay_of(case: Case) -> str:
        batch = int(case.engine.get("batch", 64))
        return stage.scenario.case(case.plan, batch=batch, seed=stage.seed).replay

    gate.violations.append(await smallest(outcome, lab, replay_of, seconds_max=gate.profile.shrink_s))
