"""What a scenario script ends with, so that it can be run by itself.

if __name__ == "__main__":
    main(SCENARIO)
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any, NoReturn

import attrs
import click

from chaos.cli import ending
from chaos.cli.options import run_options
from chaos.scenario import Scenario

__all__ = ["main"]


def main(scenario: Scenario) -> NoReturn:
    """Run `scenario` as the options on the command line say (`--help` lists them), show what came of it, and exit.

    The exit code is 0 for pass, 1 for a violation, 2 for inconclusive, 3 for wrong usage.
    """
    sys.exit(ending(command_of(scenario), Path(sys.argv[0]).name))


def command_of(scenario: Scenario) -> click.Command:
    """The command line of a script."""
    named = attrs.evolve(scenario, source=scenario.source or shlex.quote(sys.argv[0]))

    @click.command(name=scenario.name, help=scenario.about, context_settings={"help_option_names": ["-h", "--help"]})
    @click.option("--debug", is_flag=True, help="Show tracebacks.")
    @run_options
    def script(debug: bool, **given: Any) -> int:
        from chaos.cli.run import execute  # noqa: PLC0415

        return execute(named, given)

    return script
