"""What the commands share: their options, how a plan is given, and how results for machines are written."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import attrs
import click
import orjson

from chaos.plan import Plan, PlanError, parse_plan, plan_from_json

__all__ = [
    "Order",
    "batches_option",
    "check_place",
    "json_option",
    "lab_options",
    "numbers",
    "read_plan",
    "run_options",
    "seed_option",
]

F = TypeVar("F", bound=Callable[..., Any])

json_option = click.option("--json", "as_json", is_flag=True, help="Write the result for machines.")
seed_option = click.option("--seed", type=int, default=0, show_default=True, help="Given to the workload.")
batches_option = click.option("--batches", metavar="N,N", help="Most commands of one turn; each is tried.")


@attrs.frozen
class Order:
    """What the shared options of a command come to. `reports` is where the directories of runs go."""

    parallel: int
    reports: Path
    keep: bool = False
    as_json: bool = False

    @staticmethod
    def take(given: dict[str, Any]) -> Order:
        """Take the shared options out of a command's arguments."""
        reports = given.pop("report")
        if reports is not None:
            check_place(reports)
        else:
            # Only a name: nothing is made unless there is something to keep.
            reports = Path(tempfile.gettempdir()) / f"meshforge-chaos-{os.getpid()}"
        return Order(given.pop("parallel"), reports, given.pop("keep", False), given.pop("as_json", False))


def lab_options(function: F) -> F:
    """`--parallel` and `--report`."""
    for option in (
        click.option(
            "--report",
            type=click.Path(path_type=Path, file_okay=False),
            metavar="DIR",
            help="Keep the runs that do not pass here, each with a page. [default: a new temporary directory]",
        ),
        click.option(
            "--parallel",
            type=click.IntRange(1, 64),
            default=3 * (os.cpu_count() or 1),
            show_default="three times the cores",
            help="Runs at a time; mostly they wait.",
        ),
    ):
        function = option(function)
    return function


def run_options(function: F) -> F:
    """What a scenario is run with."""
    for option in (
        json_option,
        lab_options,
        click.option("--keep", is_flag=True, help="Keep the runs that pass, too."),
        seed_option,
        click.option("--batch", type=click.IntRange(1, 65_536), metavar="N", help="Most commands of one turn."),
        click.option(
            "--plan", metavar="PLAN", help="Run this one plan: its text, @FILE with the text, or a .json file."
        ),
    ):
        function = option(function)
    return function


def read_plan(given: str, *, mortal: bool = False) -> Plan:
    """The plan that `--plan` gives; `mortal` as for `chaos.plan.check_plan`.

    Raises:
        PlanError: it cannot be read or run.
    """
    if not given.startswith("@") and not given.endswith(".json"):
        return parse_plan(given, mortal=mortal)
    path = Path(given.removeprefix("@"))
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"the plan {path} cannot be read: {error}") from error
    if path.suffix != ".json":
        return parse_plan(" ".join(text.split("\n")).strip(), mortal=mortal)
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise PlanError(f"the plan {path} is no JSON, or a truncated one: {error}") from error
    return plan_from_json(value, mortal=mortal)


def check_place(path: Path) -> None:
    """Say now that nothing can be written to `path`, and not when hours of runs are over.

    Raises:
        click.UsageError: what is there, or above it, is no directory, or none that may be written to.
    """
    above = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
    if not above.is_dir():
        raise click.UsageError(f"{path} cannot be made: {above} is no directory")
    if not os.access(above, os.W_OK | os.X_OK):
        raise click.UsageError(f"{path} cannot be made: {above} may not be written to")


def numbers(text: str | None, default: tuple[int, ...]) -> tuple[int, ...]:
    """`1,64` as numbers, each at least 1.

    Raises:
        click.UsageError: it is something else.
    """
    if text is None:
        return default
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise click.UsageError(f"{text!r} is no list of numbers, as 1,64") from error
    if min(found) < 1:
        raise click.UsageError(f"{text!r}: each must be 1 or more")
    return found
