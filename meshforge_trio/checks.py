"""What a setting may be: ranges, and texts that are read later. Each check raises `Misconfigured` with the name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import attrs

from meshforge_trio.errors import Misconfigured
from meshforge_trio.keyring import parse_ring
from meshforge_trio.permissions import parse_rule
from meshforge_trio.policy import RetryPolicy
from meshforge_trio.signing import parse_key
from meshforge_trio.subjects import is_token

__all__ = [
    "DAY_S",
    "RETRY_CHECKS",
    "Check",
    "between",
    "each_between",
    "retry",
    "rings",
    "rules",
    "signing_keys",
    "workspaces",
]

DAY_S: Final = 86_400.0

Check = Callable[[Any, "attrs.Attribute[Any]", Any], None]


def between(low: float, high: float) -> Check:
    """A number from `low` to `high`."""

    def check(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if not low <= value <= high:
            raise Misconfigured(f"{attribute.name} is {value}, it must be between {low:g} and {high:g}")

    return check


def each_between(low: float, high: float) -> Check:
    """Numbers from `low` to `high`, at least one."""

    one = between(low, high)

    def check(settings: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if not value:
            raise Misconfigured(f"{attribute.name} is empty")
        for item in value:
            one(settings, attribute, item)

    return check


def rules(_: Any, _attribute: attrs.Attribute[Any], value: Any) -> None:
    """Lines as in `permissions.parse_rule`."""
    for text in value:
        parse_rule(text)


def signing_keys(_: Any, _attribute: attrs.Attribute[Any], value: Any) -> None:
    """Lines as in `signing.parse_key`."""
    for text in value:
        parse_key(text)


def rings(_: Any, _attribute: attrs.Attribute[Any], value: Any) -> None:
    """Lines as in `keyring.parse_ring`."""
    for text in value:
        parse_ring(text)


def workspaces(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    """Each `<tenant>/<workspace>`, none twice, at least one."""
    if not value:
        raise Misconfigured(f"{attribute.name} is empty: name at least one <tenant>/<workspace>")
    if len(set(value)) != len(value):
        raise Misconfigured(f"{attribute.name} names one twice: {', '.join(value)}")
    for workspace in value:
        parts = workspace.split("/")
        if len(parts) != 2 or not all(is_token(part) for part in parts):
            raise Misconfigured(
                f"{attribute.name}: {workspace!r:.150} is not <tenant>/<workspace>, each 1 to 64 of A-Z a-z 0-9 _ -"
            )


def retry_limit(_: Any, attribute: attrs.Attribute[Any], value: int) -> None:
    """0 for no limit, or 2 to 1,000: with 1 a process that dies would take its command's only call with it."""
    if value != 0 and not 2 <= value <= 1_000:
        raise Misconfigured(f"{attribute.name} is {value}, it must be between 2 and 1000, or 0 for no limit")


# The retry policy is pure and knows no files; what a person may set it to stands here.
RETRY_CHECKS: Final[Mapping[str, Check]] = {
    "limit": retry_limit,
    "delays_s": each_between(0.001, DAY_S),
    "jitter": between(0.0, 10.0),
    "handler_limit_s": between(0.05, DAY_S),
}


def retry(_: Any, _attribute: attrs.Attribute[Any], value: RetryPolicy) -> None:
    """A whole policy of retries."""
    for attribute in attrs.fields(RetryPolicy):
        if attribute.name in RETRY_CHECKS:
            RETRY_CHECKS[attribute.name](value, attribute, getattr(value, attribute.name))
