"""Logging: structured, to stderr, for people or for machines; results of commands have stdout to themselves.

A line carries what its place knows (scope, key, entity, trace id) as fields. What a field's name marks as secret, user
info in an address, and the seed of an nkey, is masked before anything is rendered.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, Final

import orjson
import structlog

from meshforge_trio.config import LogLevel
from meshforge_trio.masking import MASK, masked

__all__ = ["mask_secrets", "set_up_logging"]

_SECRET: Final = re.compile(r"password|passwd|secret|token|seed|credential|api_?key|authorization", re.IGNORECASE)
#: Nesting beyond this is not looked into; nothing here logs that deep.
_DEPTH_MAX: Final = 6

_LEVELS: Final[Mapping[LogLevel, int]] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}


def set_up_logging(level: LogLevel = "info", *, as_json: bool = False) -> None:
    """Send log lines of `level` and above to stderr, as JSON lines or for a person to read.

    What is below the level costs one comparison. Warnings of libraries that use the standard library's logging
    come out in the same form.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        mask_secrets,
    ]
    renderer: structlog.typing.Processor
    factory: Any
    if as_json:
        renderer = structlog.processors.JSONRenderer(serializer=_dumps)
        factory = structlog.BytesLoggerFactory(sys.stderr.buffer)
    else:
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback, pad_event_to=0
        )
        factory = structlog.WriteLoggerFactory(sys.stderr)
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=factory,
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(handlers=[_Forward()], level=max(_LEVELS[level], logging.WARNING), force=True)


def _dumps(value: Any, **_: Any) -> bytes:
    return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS)


class _Forward(logging.Handler):
    """Passes a record of the standard library's logging on."""

    def emit(self, record: logging.LogRecord) -> None:
        exc_info = record.exc_info if record.exc_info and record.exc_info[0] is not None else None
        structlog.get_logger().log(record.levelno, record.getMessage(), logger=record.name, exc_info=exc_info)


def mask_secrets(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor: mask values whose key says that they are secret, user info in addresses, and seeds."""
    return {key: _masked(key, value, _DEPTH_MAX) for key, value in event.items()}


def _masked(key: object, value: Any, depth: int) -> Any:
    if isinstance(key, str) and value is not None and _SECRET.search(key):
        return MASK
    if isinstance(value, str):
        return masked(value)
    if depth and isinstance(value, Mapping):
        return {inner: _masked(inner, item, depth - 1) for inner, item in value.items()}
    if depth and isinstance(value, list | tuple):
        return [_masked(None, item, depth - 1) for item in value]
    return value
