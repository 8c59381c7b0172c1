"""How often the server syncs to disk: told by its configuration file or its monitoring port, and by nothing else."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import attrs

from meshforge_trio.doctor.rules import Finding, rule
from meshforge_trio.errors import Misconfigured

__all__ = ["Syncing", "examine_syncing", "of_config_file", "of_monitor"]

_COMMENT: Final = re.compile(r"(^|\s)(#|//).*$", re.MULTILINE)
_SETTING: Final = re.compile(r"(?:^|[\s{,;])sync(?:_interval)?\s*[:=\s]\s*[\"']?([A-Za-z0-9.]+)", re.IGNORECASE)
_INCLUDE: Final = re.compile(r"(?:^|[\s{,;])include\s", re.IGNORECASE)
_MONITOR_S: Final = 5.0
_NS: Final = 1_000_000_000
_DEFAULT: Final = "2m"


@attrs.frozen
class Syncing:
    """`interval` is `always`, or a time in words; "" where it could not be found out. `where` is who told."""

    interval: str
    where: str


def of_config_file(path: Path) -> Syncing:
    """What a configuration file of nats-server says. Files it includes are not read.

    Raises:
        Misconfigured: it cannot be read.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Misconfigured(f"the server's configuration {path} cannot be read: {error}") from error
    text = _COMMENT.sub("", text)
    told = _SETTING.search(text)
    if told is not None:
        return Syncing(told[1].lower(), str(path))
    return Syncing("" if _INCLUDE.search(text) else _DEFAULT, str(path))


def of_monitor(url: str) -> Syncing:
    """What the monitoring port of a server says, as http://127.0.0.1:8222. Blocks.

    Raises:
        Misconfigured: it is no address of one, or does not answer as one.
    """
    where = f"{url.rstrip('/')}/varz"
    if not where.startswith(("http://", "https://")):
        raise Misconfigured(f"{url!r} is no http:// address of a monitoring port")
    try:
        with urllib.request.urlopen(where, timeout=_MONITOR_S) as answer:  # noqa: S310  (the scheme is checked)
            told: Mapping[str, Any] = json.load(answer)
        config = told.get("jetstream", {}).get("config", {})
    except (OSError, ValueError, AttributeError, urllib.error.URLError) as error:
        raise Misconfigured(f"the monitoring port {where} does not answer as one of nats-server: {error}") from error
    if config.get("sync_always"):
        return Syncing("always", where)
    interval = config.get("sync_interval")
    return Syncing(f"{interval / _NS:g}s" if isinstance(interval, int | float) else "", where)


def examine_syncing(told: Syncing | None, *, durable: bool) -> Finding:
    """The rule on syncing. With `durable` nothing that was confirmed may be lost with the power."""
    the = rule("server-sync")
    if told is None or not told.interval:
        where = "no client can ask for sync_interval" if told is None else f"{told.where} does not say sync_interval"
        do = "`--monitor http://HOST:8222` or `--server-config FILE` of the server tells it"
        return Finding(the, "warn" if durable else "unknown", where, do)
    what = f"sync_interval is {told.interval} ({told.where})"
    if told.interval == "always":
        return Finding(the, "ok", what)
    return Finding(
        the, "refuse" if durable else "warn", what, "`sync_interval: always` in the server's jetstream block"
    )
