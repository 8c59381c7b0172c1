"""The command `meshforge`: one module per kind of work, loaded when it is asked for.

Results go to stdout, for people or with `--json` for machines; everything else goes to stderr.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Mapping
from typing import Any, Final, NoReturn

import click

from meshforge_trio.errors import MeshForgeError, SessionLost
from meshforge_trio.masking import masked
from meshforge_trio.policy import ExitCode, worst
from meshforge_trio.runtime import exit_code
from meshforge_trio.telemetry import set_up_logging

__all__ = ["cli", "main"]

#: Where each command is, in the order of `--help`. A worker process must not pay for what only `tail` needs.
_COMMANDS: Final[Mapping[str, str]] = {
    "run": "run:run",
    "send": "talk:send",
    "call": "talk:call",
    "tail": "talk:tail",
    "events": "look:events",
    "state": "look:state",
    "replay": "rebuild:replay",
    "hash": "rebuild:hash_",
    "dlq": "dlq:dlq",
    "health": "health:health",
    "doctor": "doctor:doctor",
    "reconcile": "reconcile:reconcile",
    "backup": "keep:backup",
    "restore": "keep:restore",
    "verify": "keep:verify",
    "keys": "keys:keys",
    "nats": "serve:nats",
    "nats-config": "accounts:nats_config",
    "schema": "schema:schema",
    "new": "new:new",
    "prd": "prd:prd",
    "generate": "generate:generate",
}

_EPILOG: Final = """\b
Exit codes:
    0  done
    1  failed: a conflict, a refusal, a dead letter, a difference found, no connection
    2  wrong usage: an option, an argument, a payload that is no JSON object
    3  misconfigured: the message names what to mend; nothing was changed
    4  the store is broken: an I/O error or damage; nothing more was written
    5  something crashed again and again; restarting it would only hide that
    6  the outcome is unknown: no answer came in time, so send it again under the same key
  130  interrupted

Every option that has a key in meshforge.toml can also be set by a MESHFORGE_* environment variable, as
MESHFORGE_URL or MESHFORGE_ENGINE__BATCH. Flags win over the environment, the environment over the file.
"""


class _Commands(click.Group):
    """Loads a command's module when it is asked for, and turns errors into one line and an exit code."""

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

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; its return value is the exit code."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            leaf = worst(error)
            if isinstance(leaf, BrokenPipeError):
                # The reader of a pipe has had enough; a second failure at the interpreter's end would only be noise.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                return ExitCode.OK
            if ctx.params["debug"]:
                click.echo(masked(traceback.format_exc()).rstrip("\n"), err=True)
            return _told(leaf)


def _told(leaf: BaseException) -> int:
    """Say what went wrong in one line; the exit code that goes with it."""
    message = str(leaf) or type(leaf).__name__
    if isinstance(leaf, SessionLost):
        message += ". Is the server running? `meshforge nats` starts a private one; --url names another"
    elif not isinstance(leaf, MeshForgeError):
        message = f"unexpected {type(leaf).__name__}: {message}. `meshforge --debug ...` shows where"
    click.echo(f"meshforge: {masked(message)}", err=True)
    return exit_code(leaf)


@click.command(cls=_Commands, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.version_option(package_name="meshforge-trio")
def cli(debug: bool) -> None:
    """Event-sourced agents on NATS JetStream whose effects happen exactly once."""
    # Until a command has read its settings, only what matters is said.
    set_up_logging("debug" if debug else "warning")


def main() -> NoReturn:
    """Run the command line and exit."""
    try:
        code = cli.main(prog_name="meshforge", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        code = ExitCode.INTERRUPTED
    sys.exit(code or ExitCode.OK)
