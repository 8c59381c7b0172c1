"""`meshforge-chaos gate`: one command for a build: pass, violation, or not enough to say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import click
import orjson

from chaos.builtin import EVERY_ACTION, find_scenario
from chaos.certificate import certificate, certificate_text
from chaos.cli.live import Board, in_lab
from chaos.cli.options import Order, check_place, lab_options
from chaos.cli.outlet import put, warn
from chaos.cli.results import page_of, tell_failures, write_report
from chaos.gate import Gate, Target, run_gate
from chaos.junit import junit_xml
from chaos.lab import Lab
from chaos.power.ground import power_case
from chaos.profiles import PROFILES
from chaos.project import Project, ProjectError, app_scenario, load_project
from chaos.scenario import Scenario, load_scenario
from chaos.tally import told_outcome
from chaos.verdict import EXIT_CODES

if TYPE_CHECKING:
    from chaos.mutants.mutant import Mutant

__all__ = ["gate", "target_of"]

_BASE: Final = "crash-matrix"
#: Somebody else's gate plants one bug for each of these, to show that the harness would notice.
_SENTINELS: Final = ("G1", "G2", "G3", "G4", "G5")
#: What a workload of a few commands comes to.
_KILLS_MIN: Final = 40
_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command(short_help="Everything a change must survive.")
@click.option(
    "--profile", type=click.Choice(list(PROFILES)), default="pr", show_default=True, help="How much is tried."
)
@click.option("--app", metavar="MODULE:ATTR", help="These agents; needs --workload.")
@click.option(
    "--workload", type=_FILE, metavar="FILE", help="The commands to send to --app; `run --help` has the form."
)
@click.option("--junit", type=_FILE, metavar="FILE", help="Write JUnit XML.")
@click.option(
    "--json",
    "document",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    metavar="FILE",
    help="Write the result for machines; - is stdout.",
)
@click.option(
    "--certificate", "proof", type=_FILE, metavar="FILE", help="Write the certificate: JSON, and .txt beside it."
)
@lab_options
def gate(profile: str, app: str | None, workload: Path | None, **given: Any) -> int:
    """Run the regressions, kill at every hit of every point, run every script of ./scenarios, reach every action at
    every place, and plant bugs that have to be caught.

    Agents of your own are named by --app and --workload, or in pyproject.toml:

    \b
        [tool.meshforge-chaos]
        app = "parcels:app"
        workload = "commands.jsonl"

    It is inconclusive, and not a pass, when an action at a place was never reached without a reason, when too few
    workers were killed, or when a planted bug could not be judged. Violations are made as small as they get and run
    again, to see whether they last.
    """
    junit, document, proof = (given.pop(name) for name in ("junit", "document", "proof"))
    for path in (junit, document, proof):
        if path is not None and str(path) != "-":
            check_place(path.parent)
    order = Order.take(given)
    target = target_of(_project(app, workload))

    async def work(lab: Lab, board: Board) -> Gate:
        return await run_gate(target, PROFILES[profile], lab, board)

    found = in_lab(order, work)
    told = certificate(found)
    _show(found, told, quiet=document is not None and str(document) == "-")
    _write(found, told, junit, document, proof)
    return EXIT_CODES[found.status]


def _project(app: str | None, workload: Path | None) -> Project:
    project = load_project(Path.cwd())
    if app is None and workload is None:
        return project
    return attrs.evolve(project, app=app or project.app, workload=workload or project.workload)


def target_of(project: Project) -> Target:
    """What there is to run in the working directory.

    Raises:
        ProjectError: an app without a workload, or the other way round.
        ScenarioError: a script cannot be imported.
    """
    from chaos.mutants.catalogue import CATALOGUE  # noqa: PLC0415

    scripts = list(_scripts(project.scenarios))
    first = list(_scripts(project.scenarios / "regressions"))
    if (project.app is None) != (project.workload is None):
        raise ProjectError("an app and its workload go together: name both, by options or in pyproject.toml")
    if project.app is None or project.workload is None:
        base = next((script for script in scripts if script.name == _BASE), None) or find_scenario(_BASE)
        mutants, kills_min = CATALOGUE, project.kills_min
    else:
        base = app_scenario(project.app, project.workload, project.invariants)
        mutants, kills_min = _sentinels(CATALOGUE), project.kills_min or _KILLS_MIN
    return Target(
        base,
        first,
        scripts,
        mutants,
        strict=project.app is None,
        filler=EVERY_ACTION if project.app is None else None,
        regressions=project.regressions,
        unreached=project.unreached,
        kills_min=kills_min,
        power=power_case if project.app is None else None,
    )


def _scripts(folder: Path) -> Iterator[Scenario]:
    """The scenarios of the scripts in `folder`; what is no scenario is not one of the gate's."""
    for path in sorted(folder.glob("*.py")):
        if not path.stem.startswith("_") and "SCENARIO" in path.read_text():
            yield load_scenario(path)


def _sentinels(catalogue: Sequence[Mutant]) -> Sequence[Mutant]:
    """For each of some guarantees the first bug that breaks it."""
    return [next(mutant for mutant in catalogue if mutant.guarantee == id_) for id_ in _SENTINELS]


def _show(found: Gate, told: Mapping[str, Any], *, quiet: bool) -> None:
    """The reports of the smallest violations, of the first others, and the certificate."""

    def say(line: str) -> None:
        (warn if quiet else put)(line)

    for violation in found.violations:
        text = write_report(violation.shown)
        say(text if text is not None else str(violation.shown))
        say(f"{violation.guarantee} broke in {violation.same} of {violation.times} runs of the smallest plan")
        say(f"  replay: {violation.replay}")
        if violation.shown.home is not None:
            say(f"  page:   {page_of(violation.shown.home)}")
    tell_failures(found.tally, say, reports=0 if found.violations else 3)
    say(certificate_text(told).rstrip("\n"))


def _write(found: Gate, told: Mapping[str, Any], junit: Path | None, document: Path | None, proof: Path | None) -> None:
    if junit is not None:
        _put(junit, junit_xml(found))
    if proof is not None:
        _put(proof, orjson.dumps(told, option=orjson.OPT_INDENT_2))
        _put(proof.with_suffix(".txt"), certificate_text(told).encode())
    if document is not None:
        failed = [*found.tally.violations, *found.tally.inconclusive]
        whole = orjson.dumps({**told, "failures": [told_outcome(outcome) for outcome in failed]})
        if str(document) == "-":
            put(whole)
        else:
            _put(document, whole)


def _put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
