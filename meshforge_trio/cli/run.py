"""`meshforge run`: serve an app in this process, or in several."""

from __future__ import annotations

import sys
from typing import Any

import click
import structlog

from meshforge_trio.cli.options import Common, common_options, store_option, url_option, workspaces_option
from meshforge_trio.launch import load_app, run_app, with_components
from meshforge_trio.workers import end_with_parent, supervise

__all__ = ["run"]


@click.command(short_help="Serve the agents of an app.")
@click.argument("app", metavar="MODULE:ATTR")
@click.option("--workers", type=click.IntRange(1, 256), default=1, show_default=True, help="Number of processes.")
@url_option
@store_option
@workspaces_option
@click.option(
    "--health-port", type=click.IntRange(0, 65535), metavar="PORT", help="Answer /livez, /readyz, /healthz, /metrics."
)
@click.option("--worker", type=click.IntRange(0), hidden=True)
@click.option("--parent-fd", type=click.IntRange(3), hidden=True)
@common_options
def run(app: str, workers: int, worker: int | None, parent_fd: int | None, **given: Any) -> int:
    """Serve the agents of an app until SIGTERM or SIGINT, which finish what is in hand first.

    MODULE:ATTR names an App, an agent or a list of agents (ATTR is `app` unless given); the working directory is
    searched first. With several workers the scopes are spread over as many processes on the same stores, and those of
    a worker that dies are taken over by the others. Where tenants have stores or accounts of their own, what breaks
    one of them stops that tenant alone.
    """
    common = Common.take(given)
    if parent_fd is not None:
        end_with_parent(parent_fd)
    if worker is not None:
        structlog.contextvars.bind_contextvars(worker=worker)
    if workers == 1 or worker is not None:
        return run_app(app, common.settings, worker=worker or 0, workers=workers)
    # What no worker could ever serve is found before the first is started.
    with_components(load_app(app), common.settings).scopes(common.settings.workspaces)
    return supervise(_worker_command(app, workers, common), workers, common.settings.drain_s)


def _worker_command(app: str, workers: int, common: Common) -> list[str]:
    """The command line of a worker, but for its number: this one's, with the same file and flags."""
    command = [sys.executable, "-m", "meshforge_trio", "run", app, "--workers", str(workers)]
    if common.config is not None:
        command += ["--config", str(common.config)]
    for name in ("url", "store", "health_port", "log_level"):
        if name in common.flags:
            command += [f"--{name.replace('_', '-')}", str(common.flags[name])]
    for workspace in common.flags.get("workspaces", ()):
        command += ["--workspace", workspace]
    return [*command, "--json"] if common.as_json else command
