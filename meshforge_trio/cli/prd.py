"""`meshforge prd`: whether a PRD can be understood, with everything that is wrong with it."""

from __future__ import annotations

from pathlib import Path

import attrs
import click

from meshforge_trio.cli.options import print_json
from meshforge_trio.factory.prd import load_prd
from meshforge_trio.factory.problems import PrdError
from meshforge_trio.policy import ExitCode

__all__ = ["prd"]


@click.group(short_help="PRDs: check.")
def prd() -> None:
    """Look at a PRD, the document that `meshforge generate` makes a workspace from."""


@prd.command(short_help="Everything that is wrong with a PRD.")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Write the problems for machines.")
def check(file: Path, as_json: bool) -> int:
    """Read FILE, play its examples through, and say what is wrong with it: line, column and what to do about it.

    Nothing is written. The exit code is 2 if there is a problem.
    """
    try:
        found = load_prd(file)
    except PrdError as error:
        if as_json:
            print_json({"file": str(file), "problems": [attrs.asdict(problem) for problem in error.problems]})
        else:
            for problem in error.problems:
                click.echo(f"{file}:{problem}")
        return ExitCode.USAGE
    if as_json:
        print_json({"file": str(file), "problems": []})
    else:
        counts = {
            "agents": len(found.agents),
            "commands": sum(len(agent.commands) for agent in found.agents),
            "events": sum(len(agent.events) for agent in found.agents),
            "invariants": len(found.invariants),
            "examples": len(found.examples),
        }
        click.echo(f"{file}: {', '.join(f'{count} {name}' for name, count in counts.items())}; no problem")
    return ExitCode.OK
