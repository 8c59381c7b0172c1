"""Text that may hold a secret, made fit to be shown: user info of addresses and seeds of nkeys, wherever they are."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["MASK", "address", "masked"]

MASK: Final = "***"

# Up to the last `@` of an address: a password may hold one. A comma ends it: lists of addresses are split there.
_USERINFO: Final = re.compile(r"(?<=://)[^\s,'\"]+(?=@)")
#: `S`, the kind of its owner, and at least as much of it as would be of use.
_SEED: Final = re.compile(r"(?<![A-Z2-7])S[ACNOUX][A-Z2-7]{30,}")


def masked(text: str) -> str:
    """The text without user info of addresses and without seeds of nkeys."""
    return _SEED.sub(MASK, _USERINFO.sub(MASK, text))


def address(url: str) -> str:
    """An address without its user info, also where it is no proper one."""
    scheme, slashes, rest = url.rpartition("://")
    userinfo, at, host = rest.rpartition("@")
    return masked(f"{scheme}{slashes}{MASK if userinfo else ''}{at}{host}")
