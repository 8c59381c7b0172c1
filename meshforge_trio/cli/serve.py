"""`meshforge nats`: a private nats-server in the foreground."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any, Final

import click

from meshforge_trio.cli.options import Common, common_options, print_json
from meshforge_trio.policy import ExitCode
from meshforge_trio.server import PrivateServer

__all__ = ["nats"]

_POLL_S: Final = 0.5


@click.command(short_help="Start a private nats-server.")
@click.option("--port", type=click.IntRange(0, 65535), default=4222, show_default=True, help="0 takes a free one.")
@click.option(
    "--store-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the streams lie; without it they are removed at the end.",
)
@click.option("--sync-always", is_flag=True, help="Sync to disk before every PubAck: survives power loss, slow.")
@common_options
def nats(port: int, store_dir: Path | None, sync_always: bool, **given: Any) -> int:
    """Start a nats-server with JetStream on the loopback interface, print its URL, and end it on SIGTERM or SIGINT.

    For development. Production uses a server of its own.
    """
    common = Common.take(given)
    # SIGTERM then unwinds like Ctrl-C, so the server is stopped wherever the signal falls.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with PrivateServer(store_dir=store_dir, port=port, sync_interval="always" if sync_always else None) as server:
            if common.as_json:
                print_json({"url": server.url, "port": server.port, "pid": server.pid, "store": str(server.store_dir)})
            else:
                click.echo(server.url)
            while server.running:
                time.sleep(_POLL_S)
            click.echo(f"meshforge: nats-server ended by itself; it said:\n{server.log_tail()}", err=True)
    except KeyboardInterrupt:
        return ExitCode.OK
    return ExitCode.FAILED
