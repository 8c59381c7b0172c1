"""Settings of streams and consumers that nobody here asks for and that break what is promised.

What is asked for is compared in `api`; everything else the operator may choose, but for what stands here. Each function
takes a configuration as the server tells it and returns what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

__all__ = ["unfit_consumer", "unfit_stream"]

#: A count that limits nothing.
_UNLIMITED: Final = (None, -1, 0)


def unfit_stream(config: Mapping[str, Any]) -> Iterator[str]:
    """What of a stream's settings would lose, alter or refuse messages."""
    for key, effect in (
        ("max_msgs", "beyond it the oldest message is dropped or the newest refused"),
        ("max_msgs_per_subject", "a message drops or bars others of its subject"),
    ):
        if config.get(key) not in _UNLIMITED:
            yield f"{key} is {config[key]}: {effect}"
    for key, effect in (
        ("no_ack", "publishes are never confirmed"),
        ("sealed", "nothing can be published"),
        ("mirror", "it takes no publishes of its own"),
        ("sources", "messages of other streams get into it"),
        ("subject_transform", "messages are stored under other subjects"),
        ("allow_rollup_hdrs", "a publisher can delete what others have published"),
    ):
        if config.get(key):
            yield f"{key} is set: {effect}"
    if config.get("persist_mode") == "async":
        yield "persist_mode is 'async': publishes are confirmed before they are written"


def unfit_consumer(config: Mapping[str, Any]) -> Iterator[str]:
    """What of a consumer's settings would alter deliveries or keep them away."""
    if config.get("headers_only"):
        yield "headers_only is set: commands arrive without their bodies and would be dead-lettered"
    if config.get("deliver_subject"):
        yield "deliver_subject is set: it pushes, and nothing can be pulled from it"
    if config.get("priority_groups"):
        yield "priority_groups is set: pulls without a group are refused"
    for key in ("max_batch", "max_expires", "max_bytes"):
        if config.get(key) not in _UNLIMITED:
            yield f"{key} is {config[key]}: larger pulls are refused"
    if config.get("backoff"):
        yield "backoff is set: it stands in for ack_wait"
