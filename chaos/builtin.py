"""The scenarios that come with the harness, and how a scenario is found by its name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import attrs

from chaos.evidence import Sent
from chaos.lab import TRIES, Lab
from chaos.plan import parse_plan
from chaos.scenario import CaseOf, Note, Scenario, ScenarioError, load_scenario
from chaos.sweep import Fixed, Sweep
from chaos.workload import Workload, every_path
from meshforge_trio.points import Point

__all__ = [
    "BUILTIN",
    "CRASH_MATRIX",
    "EVERY_ACTION",
    "FIRST_DEATHS",
    "RECOVERY",
    "Each",
    "find_scenario",
    "known_scenarios",
]

#: Where scripts are looked for.
_FOLDER: Final = Path("scenarios")

#: What a session begins with, in the order of the protocol.
RECOVERY: Final[Sequence[Point]] = (
    Point.AFTER_LEASE,
    Point.AFTER_RESET,
    Point.BEFORE_RECOVERY,
    Point.IN_RECOVERY,
    Point.AFTER_RECOVERY,
)
#: Deaths that leave a successor something to do: outputs to publish, and a command that runs alone.
FIRST_DEATHS: Final[Sequence[str]] = ("worker#1:after_store@1=kill", "worker#1:before_store@1=kill")


@attrs.frozen
class Each:
    """These plans, each with each batch size. One with a rule that never fires says nothing, and is no fault."""

    what: str
    plans: Sequence[str]
    batches: Sequence[int] = (64,)

    def __str__(self) -> str:
        return f"{self.what}: {len(self.plans)} plans, batch {' and '.join(map(str, self.batches))}"

    async def explore(self, case_of: CaseOf, lab: Lab, note: Note) -> None:
        """See `Search.explore`."""
        plans = [parse_plan(text, mortal=True) for text in self.plans]
        cases = [case_of(plan, batch, False) for plan in plans for batch in self.batches]
        await lab.run_all(cases, note=note, tries=TRIES)


def _every_path(seed: int) -> Sequence[Sent]:
    return every_path()


CRASH_MATRIX: Final = Scenario(
    "crash-matrix",
    "A worker is killed at every hit of every point, alone and in a batch; then its successor, while it recovers.",
    "chaos.agents:counter_and_audit",
    _every_path,
    [
        Sweep(),
        Sweep(RECOVERY, before=FIRST_DEATHS[0], number=2),
        Sweep((Point.BEFORE_ATTEMPT, Point.IN_ATTEMPT), before=FIRST_DEATHS[1], number=2),
    ],
)


def _one_after_another(seed: int) -> Sequence[Sent]:
    """Enough turns before the one that fails, and one that takes longer than a delivery may lie unanswered."""
    commands = Workload()
    first = commands.send("patient", "add", {"amount": 1 + seed}, entity="a", expect=["decided"])
    for amount in (2, 3, 4):
        commands.send("patient", "add", {"amount": amount}, entity="ab"[amount % 2], expect=["decided"])
    commands.send("patient", "explode", entity="c", expect=["dead"])
    commands.send("patient", "wait", {"seconds": 0.5}, entity="d", expect=["decided"])
    commands.again(first, phase="after")
    commands.send("patient", "add", {"amount": 5}, entity="c", expect=["decided"], phase="after")
    return commands


EVERY_ACTION: Final = Scenario(
    "every-action",
    "Six commands, of which one fails and one takes its time: with one a turn they meet every point and frame.",
    "chaos.agents:patient_only",
    _one_after_another,
    [Fixed([""], batches=(1,))],
    engine={"ack_wait_s": 0.4, "publish_timeout_s": 0.4},
)

BUILTIN: Final[Mapping[str, Scenario]] = {scenario.name: scenario for scenario in (CRASH_MATRIX, EVERY_ACTION)}


def known_scenarios(folder: Path = _FOLDER) -> Sequence[str]:
    """The names of the scripts in `folder`, and of what comes with the harness."""
    scripts = [path.stem for path in sorted(folder.glob("*.py")) if not path.stem.startswith("_")]
    return [*scripts, *(name for name in BUILTIN if _module_name(name) not in scripts)]


def find_scenario(name: str) -> Scenario:
    """The scenario of a script's path, of the script `scenarios/<name>.py` here, or of the harness itself.

    Raises:
        ScenarioError: there is none of that name, or its script cannot be imported.
    """
    path = Path(name)
    if path.suffix == ".py" or path.is_file():
        return load_scenario(path)
    script = _FOLDER / f"{_module_name(name)}.py"
    if script.is_file():
        return attrs.evolve(load_scenario(script), source=name)
    if name in BUILTIN:
        return BUILTIN[name]
    known = known_scenarios()
    close = difflib.get_close_matches(_module_name(name), known, 1) or difflib.get_close_matches(name, known, 1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    raise ScenarioError(
        f"there is no scenario {name!r:.80}{hint}: give the path of a script, or one of: {', '.join(known)}"
    )


def _module_name(name: str) -> str:
    return name.replace("-", "_")
