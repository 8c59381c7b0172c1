"""The command `meshforge-chaos`: one module per kind of work, loaded when it is asked for.

Results go to stdout, for people or with `--json` for machines; progress and everything else go to stderr.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from typing import Final, NoReturn

import click

from chaos.cli.outlet import show_error, warn
from meshforge_trio.telemetry import set_up_logging

__all__ = ["INCONCLUSIVE", "INTERRUPTED", "USAGE", "cli", "ending", "main"]

INCONCLUSIVE: Final = 2
USAGE: Final = 3
INTERRUPTED: Final = 130

#: Where each command is, in the order of `--help`.
_COMMANDS: Final[Mapping[str, str]] = {
    "points": "points:points",
    "run": "run:run",
    "sweep": "sweep:sweep",
    "mutants": "mutants:mutants",
    "power": "power:power",
    "gate": "gate:gate",
    "replay": "rundir:replay",
    "judge": "rundir:judge",
    "report": "rundir:report",
}

_EPILOG: Final = """\b
Exit codes:
    0  pass: everything held, and there was enough to see
    1  violation: a guarantee does not hold, or a planted bug was not caught
    2  inconclusive: the runs show less than they should; the message says why
    3  wrong usage: a plan, scenario, history or run directory that cannot be read or names what does not exist
  130  interrupted
"""


class _Commands(click.Group):
    """Loads a command's module when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the table."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import it."""
        place = _COMMANDS.get(cmd_name)
        if place is None:
            return None
        module, _, attribute = place.partition(":")
        command: click.Command = getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
        return command


@click.command(cls=_Commands, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.version_option(package_name="meshforge-trio")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Kill real processes at named points of the protocol, and judge what is left against numbered guarantees."""
    ctx.obj = debug


def main() -> NoReturn:
    """Run the command line and exit."""
    sys.exit(ending(cli, "meshforge-chaos"))


def ending(command: click.Command, name: str, args: list[str] | None = None) -> int:
    """Run `command`, whose return value is its exit code; tell in one line what went wrong, as an exit code too."""
    set_up_logging("critical")
    arguments = sys.argv[1:] if args is None else args
    try:
        code = command.main(arguments, prog_name=name, standalone_mode=False)
    except click.ClickException as error:
        show_error(error)
        return USAGE
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except BaseException as error:
        if isinstance(error, SystemExit) or "--debug" in arguments:
            raise
        return _told(error, name)
    return int(code or 0)


def _told(error: BaseException, name: str) -> int:
    """Say what went wrong in one line; the exit code that goes with it. Whatever nobody foresaw is never a pass."""
    leaves = list(_leaves(error))
    kinds = _usage_errors()
    from chaos.cli.live import Interrupted  # noqa: PLC0415

    for leaf in leaves:
        if isinstance(leaf, KeyboardInterrupt | Interrupted):
            return INTERRUPTED
    for leaf in leaves:
        if isinstance(leaf, kinds):
            warn(f"{name}: {leaf}")
            return USAGE
    warn(f"{name}: inconclusive: {'; '.join(_cause(leaf) for leaf in leaves)}")
    return INCONCLUSIVE


def _usage_errors() -> tuple[type[Exception], ...]:
    from chaos.history import HistoryError  # noqa: PLC0415
    from chaos.plan import PlanError  # noqa: PLC0415
    from chaos.power.images import RecipeError  # noqa: PLC0415
    from chaos.power.tape import TapeError  # noqa: PLC0415
    from chaos.project import ProjectError  # noqa: PLC0415
    from chaos.report import ReportError  # noqa: PLC0415
    from chaos.scenario import ScenarioError  # noqa: PLC0415
    from chaos.verdict import RunError  # noqa: PLC0415

    return HistoryError, PlanError, ProjectError, RecipeError, ReportError, RunError, ScenarioError, TapeError


def _cause(leaf: BaseException) -> str:
    from chaos.mutants.patch import PatchError  # noqa: PLC0415
    from chaos.zygote import WorldError  # noqa: PLC0415
    from meshforge_trio.errors import MeshForgeError  # noqa: PLC0415

    message = str(leaf) or type(leaf).__name__
    if isinstance(leaf, MeshForgeError | WorldError | PatchError | OSError):
        return message
    return f"unexpected {type(leaf).__name__}: {message}. --debug shows where"


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error
