"""A scenario: agents, a workload, the faults to try on it, and what must hold. Data; `chaos.lab` runs it.

SCENARIO = Scenario(
    "ledger", __doc__, "scenarios.ledger:app", workload, searches=[Sweep(batches=(1, 64))], invariants=[CONSERVED]
)
"""

from __future__ import annotations

import importlib.util
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import attrs

from chaos.case import Case
from chaos.checkers import Checker
from chaos.evidence import Sent
from chaos.lab import Lab, Outcome
from chaos.plan import Plan

__all__ = ["CaseOf", "Note", "Scenario", "ScenarioError", "Search", "load_scenario", "run_scenario"]

Note = Callable[[Outcome], None]
#: The case of a plan and a batch size; the third says whether its rules must fire.
CaseOf = Callable[[Plan, int, bool], Case]


class ScenarioError(ValueError):
    """There is no such scenario, or the file holds none."""


class Search(Protocol):
    """A way to choose plans."""

    def __str__(self) -> str:
        """What it tries, for people."""

    async def explore(self, case_of: CaseOf, lab: Lab, note: Note) -> None:
        """Run case after case, and `note` every outcome."""


@attrs.frozen
class Scenario:
    """What to run. `workload` makes the commands from a seed; the other fields are those of `Case`.

    `source` is how the command line names it, quoted for a shell: a name of the catalogue, or the path of a script.
    """

    name: str
    about: str
    app: str
    workload: Callable[[int], Sequence[Sent]]
    searches: Sequence[Search]
    engine: Mapping[str, Any] = attrs.field(factory=dict)
    retry: Mapping[str, Any] = attrs.field(factory=dict)
    limit: int = 3
    workspaces: Sequence[str] = ("default/demo",)
    lease_ttl_s: float = 1.0
    deadline_s: float = 30.0
    paced: bool = False
    mortal: bool = False
    claims: Sequence[str] = ("G1", "G2", "G3", "G4", "G5", "G12")
    invariants: Sequence[Checker] = ()
    beside: str = ""
    source: str = ""

    def case(
        self, plan: Plan, *, batch: int = 64, must_fire: bool = True, seed: int = 0, record_frames: bool = False
    ) -> Case:
        """The case of one plan."""
        source = self.source or shlex.quote(self.name)
        seeded = f" --seed {seed}" if seed else ""
        return Case(
            self.app,
            self.workload(seed),
            plan,
            name=self.name,
            engine={**self.engine, "batch": batch},
            retry=self.retry,
            limit=self.limit,
            workspaces=self.workspaces,
            lease_ttl_s=self.lease_ttl_s,
            deadline_s=self.deadline_s,
            paced=self.paced,
            mortal=self.mortal,
            must_fire=must_fire,
            record_frames=record_frames,
            claims=self.claims,
            invariants=self.invariants,
            beside=self.beside,
            source=source,
            replay=f"meshforge-chaos run {source} --batch {batch}{seeded} --plan {shlex.quote(str(plan))}",
        )


async def run_scenario(scenario: Scenario, lab: Lab, note: Note = lambda _: None, *, seed: int = 0) -> list[Outcome]:
    """Everything its searches try."""
    outcomes: list[Outcome] = []

    def take(outcome: Outcome) -> None:
        outcomes.append(outcome)
        note(outcome)

    def case_of(plan: Plan, batch: int, must_fire: bool) -> Case:
        return scenario.case(plan, batch=batch, must_fire=must_fire, seed=seed)

    for search in scenario.searches:
        await search.explore(case_of, lab, take)
    return outcomes


def load_scenario(path: Path) -> Scenario:
    """The `SCENARIO` of a script.

    The script's directory and the working directory are searched for what it imports.

    Raises:
        ScenarioError: there is no such file, it cannot be imported, or it holds no scenario.
    """
    path = path.resolve()
    if not path.is_file():
        raise ScenarioError(f"there is no scenario script {path}")
    for place in (str(Path.cwd()), str(path.parent)):
        if place not in sys.path:
            sys.path.insert(0, place)
    spec = importlib.util.spec_from_file_location(f"scenario_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ScenarioError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    # Its classes look themselves up by module while it is being imported.
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ScenarioError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    found = getattr(module, "SCENARIO", None)
    if not isinstance(found, Scenario):
        raise ScenarioError(f"{path} has no SCENARIO: set it to a chaos.scenario.Scenario")
    return attrs.evolve(found, source=found.source or shlex.quote(_shown(path)))


def _shown(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
