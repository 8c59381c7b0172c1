"""What the commands share: options that lead to settings, and how results are written."""

from __future__ import annotations

import getpass
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_args

import attrs
import click
import orjson
import trio

from meshforge_trio.codec import Codecs
from meshforge_trio.config import LogLevel, Settings, load_settings
from meshforge_trio.errors import Misconfigured, Poison
from meshforge_trio.keyring import codecs_of
from meshforge_trio.runtime import App
from meshforge_trio.signing import Signer
from meshforge_trio.subjects import Scope
from meshforge_trio.telemetry import set_up_logging

__all__ = [
    "Common",
    "cancel_on_signal",
    "checked_scope",
    "common_options",
    "principal_name",
    "print_json",
    "signer_of",
    "store_option",
    "url_option",
    "workspace_option",
    "workspaces_option",
]


F = TypeVar("F", bound=Callable[..., Any])

url_option = click.option("--url", metavar="URL", help="Address of the broker; several with commas.")
store_option = click.option("--store", metavar="FILE", help="The event store.")
workspace_option = click.option("--workspace", metavar="T/W", help="Tenant and workspace.")
workspaces_option = click.option(
    "--workspace", metavar="T/W", multiple=True, help="Tenant and workspace; may be given several times."
)


def common_options(function: F) -> F:
    """`--config`, `--log-level` and `--json`."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Write results for machines; log lines too."),
        click.option(
            "--log-level", type=click.Choice(get_args(LogLevel)), help="What is said on stderr, from this level on."
        ),
        click.option(
            "--config",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="TOML file with settings, instead of meshforge.toml.",
        ),
    ):
        function = option(function)
    return function


@attrs.frozen
class Common:
    """What the shared options of a command come to. `flags` are those that were given, by their setting's name."""

    settings: Settings
    as_json: bool
    config: Path | None
    flags: dict[str, Any]

    @property
    def workspace(self) -> tuple[str, str]:
        """Tenant and name of the first workspace."""
        tenant, _, name = self.settings.workspaces[0].partition("/")
        return tenant, name

    @property
    def here(self) -> Settings:
        """What holds for the tenant of the first workspace: its store, its log-in at the broker."""
        return self.settings.of_tenant(self.workspace[0])

    def codecs(self, app: App | None = None) -> Codecs | None:
        """The codecs of settings and app. Raises `Misconfigured`: a key ring cannot be read."""
        return codecs_of(self.settings.codec_keys, None if app is None else app.codecs)

    @staticmethod
    def take(given: dict[str, Any], *, log_level: LogLevel | None = None) -> Common:
        """Take the shared options out of a command's arguments, load the settings and set logging up.

        With `log_level` the command says nothing below it, whatever the settings say, unless `--log-level` does.

        Raises:
            Misconfigured: as `load_settings`.
        """
        config, as_json = given.pop("config"), given.pop("as_json")
        named = ("url", "store", "health_port", "log_level")
        flags: dict[str, Any] = {name: given.pop(name) for name in named if name in given}
        workspaces = given.pop("workspace", None)
        if workspaces:
            flags["workspaces"] = (workspaces,) if isinstance(workspaces, str) else tuple(workspaces)
        flags = {name: value for name, value in flags.items() if value is not None}
        settings = load_settings(config, flags=flags)
        level = flags.get("log_level") or log_level or settings.log_level
        set_up_logging(level, as_json=settings.log_json or as_json)
        return Common(settings, as_json, config, flags)


def checked_scope(common: Common, agent: str) -> Scope:
    """The scope of an agent in the first workspace.

    Raises:
        click.UsageError: the agent's name is no token, or reserved.
    """
    try:
        return Scope.checked(*common.workspace, agent)
    except Poison as error:
        raise click.UsageError(error.reason) from error


def principal_name(common: Common, given: str | None, option: str) -> str:
    """Who does it: as given, else as set, else the login name.

    Raises:
        Misconfigured: there is none of them; `option` is what to give.
    """
    name = given or common.settings.principal
    if name is not None:
        return name
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError) as error:
        raise Misconfigured(f"this user has no login name: say who does this with {option}") from error


def signer_of(settings: Settings) -> Signer | None:
    """The key that commands are signed with, if one is set.

    Raises:
        Misconfigured: its file cannot be read, or holds no seed.
    """
    return None if settings.signing_seed_file is None else Signer.from_file(settings.signing_seed_file)


async def cancel_on_signal(scope: trio.CancelScope) -> None:
    """Cancel `scope` at SIGINT or SIGTERM, as often as one comes."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            scope.cancel()


def print_json(document: Any) -> None:
    """One line of JSON on stdout."""
    click.echo(orjson.dumps(document, option=orjson.OPT_NON_STR_KEYS, default=str))
