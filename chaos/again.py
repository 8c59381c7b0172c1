"""A run from its directory: judged or run once more, or thrown away."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import orjson

from chaos.builtin import find_scenario
from chaos.case import Case
from chaos.checkers import Checker
from chaos.evidence import Sent
from chaos.lab import Outcome
from chaos.mutants.patch import Patch, PatchError, patch_from_json
from chaos.project import ProjectError, load_project
from chaos.scenario import ScenarioError
from chaos.verdict import Run, RunError, load_run

__all__ = ["Past", "discard", "load_past"]


@attrs.frozen
class Past:
    """A run that was. `patch` is the bug that was planted in it, if one was; `broken` the guarantees that fell.

    `lacking` says which of its own invariants cannot be judged again, and why; empty if all can.
    """

    case: Case
    patch: Patch | None
    broken: Sequence[str]
    lacking: str = ""


def load_past(home: Path) -> Past:
    """Read the directory of a run.

    Raises:
        RunError: it holds none, or one that is damaged, incomplete, or of a newer version.
    """
    run = load_run(home)
    try:
        invariants, lacking = _invariants(run.told)
        return Past(_case(run, invariants), _patch(home / "patch.json"), _broken(home / "verdict.json"), lacking)
    except (OSError, KeyError, TypeError, ValueError, PatchError) as error:
        raise RunError(f"{home} cannot be run again: {type(error).__name__}: {error}") from error


def _case(run: Run, invariants: Sequence[Checker]) -> Case:
    told = run.told
    return Case(
        told["app"],
        [_first(sent) for sent, record in zip(run.sent, told["sent"], strict=True) if not record["again"]],
        run.plan,
        name=told["scenario"],
        engine=told["engine"],
        retry=told["retry"],
        limit=told["limit"],
        workspaces=tuple(told["workspaces"]),
        lease_ttl_s=told["lease_ttl_s"],
        deadline_s=told["deadline_s"],
        paced=told["paced"],
        mortal=told["mortal"],
        must_fire=told["must_fire"],
        record_frames=told["record_frames"],
        claims=tuple(told["claims"]),
        invariants=invariants,
        beside=told.get("beside", ""),
        source=told["source"],
        replay=told["replay"],
    )


def _first(sent: Sent) -> Sent:
    """As it was before it was sent."""
    return attrs.evolve(sent, outcome="ok")


def _invariants(told: Mapping[str, Any]) -> tuple[Sequence[Checker], str]:
    """The invariants by which the run was judged, as far as they are found; which are not, and why."""
    source = shlex.split(told["source"])
    judged_by = told.get("invariants", ())
    found: Sequence[Checker] = ()
    try:
        if source and not source[0].startswith("-"):
            why = f"the scenario {source[0]} does not have them"
            found = find_scenario(source[0]).invariants
        else:
            # A test of the project's own may have been without them.
            why = "pyproject.toml of the working directory does not name them"
            found = [checker for checker in load_project(Path.cwd()).invariants if checker.id in judged_by]
    except (ProjectError, ScenarioError) as error:
        why = str(error)
    known = {checker.id for checker in found}
    lacking = [id_ for id_ in judged_by if id_ not in known]
    return tuple(found), f"not judged again: {', '.join(lacking)}: {why}" if lacking else ""


def _patch(path: Path) -> Patch | None:
    return patch_from_json(orjson.loads(path.read_bytes())) if path.exists() else None


def _broken(path: Path) -> Sequence[str]:
    if not path.exists():
        return ()
    judgements = orjson.loads(path.read_bytes())["judgements"]
    return list(dict.fromkeys(judgement["id"] for judgement in judgements if judgement["findings"]))


def discard(outcome: Outcome) -> Outcome:
    """Delete what was kept of a run; the outcome without it."""
    if outcome.home is not None:
        shutil.rmtree(outcome.home, ignore_errors=True)
    return attrs.evolve(outcome, home=None)
