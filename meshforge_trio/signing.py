"""Signed commands: who sends one proves it with an ed25519 key, and the runtime knows whose key that is.

A signature covers the subject and the body, byte for byte, so nothing of a command can be changed or moved to another
subject. It stands in a header, `Meshforge-Signature: <public key> <signature>`, the key as an nkey, the signature in
base64. A command that somebody recorded and sends again is the same command: its idempotency key, which is signed, has
one effect for ever.

The registry says which keys there are: `TENANT TYPE:ID PUBLIC_KEY` per line, `*` for any number of characters in the
id. A principal may have several keys; to change one, add the new one, then take the old one away.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, get_args

import attrs
import nacl.exceptions
import nacl.signing
import nkeys

from meshforge_trio.envelope import PrincipalType, SecurityContext
from meshforge_trio.errors import Misconfigured
from meshforge_trio.masking import masked
from meshforge_trio.permissions import id_fits
from meshforge_trio.subjects import is_token

__all__ = ["HEADER", "KeyEntry", "KeyRegistry", "Signer", "parse_key"]

HEADER: Final = "Meshforge-Signature"

_LINE: Final = re.compile(
    rb"\r\n" + HEADER.encode() + rb":[ \t]*([A-Z2-7]+) ([A-Za-z0-9+/=]+)[ \t]*\r\n", re.IGNORECASE
)
_PUBLIC_KEY_BYTES: Final = 35
_ENTRY: Final = re.compile(r"(?P<tenant>\S+)\s+(?P<kind>[a-z*]+):(?P<who>\S+)\s+(?P<key>[A-Z2-7]+)")


def _covered(subject: str, body: bytes) -> bytes:
    """What is signed. The length keeps a part of the subject from passing for a part of the body."""
    name = subject.encode(errors="surrogateescape")
    return b"meshforge/1\0" + len(name).to_bytes(4, "big") + name + body


class Signer:
    """Signs with one key. Made from the seed of an nkey."""

    def __init__(self, seed: str) -> None:
        """Raises `Misconfigured`: it is no seed."""
        try:
            pair: Any = nkeys.from_seed(bytearray(seed.strip().encode()))  # type: ignore[no-untyped-call]
        except Exception as error:
            raise Misconfigured(f"the signing seed cannot be used ({type(error).__name__})") from error
        self._pair = pair
        self.public_key = bytes(pair.public_key).decode()

    @staticmethod
    def from_file(path: Path) -> Signer:
        """The key whose seed is in a file. Raises `Misconfigured`."""
        try:
            return Signer(path.read_text())
        except (OSError, UnicodeDecodeError) as error:
            raise Misconfigured(f"signing seed {path}: {error}") from error

    def headers(self, subject: str, body: bytes) -> Mapping[str, str]:
        """The header that proves who sent `body` to `subject`. The same each time."""
        signature = base64.b64encode(self._pair.sign(_covered(subject, body))).decode()
        return {HEADER: f"{self.public_key} {signature}"}


@attrs.frozen
class KeyEntry:
    """Whose key it is. `who` may hold `*`."""

    tenant: str
    kind: str
    who: str
    public_key: str

    def speaks_for(self, tenant: str, context: SecurityContext) -> bool:
        """Whether this key may sign for the principal in that tenant."""
        return (
            self.tenant == tenant
            and self.kind in ("*", context.principal_type)
            and id_fits(self.who, context.principal_id)
        )


def parse_key(text: str) -> KeyEntry:
    """Read a line of the registry.

    Raises:
        Misconfigured: it is none; says how one looks.
    """
    found = _ENTRY.fullmatch(text.strip())
    if found is None or not is_token(found["tenant"]):
        raise Misconfigured(f"key {masked(text)!r:.200} is not `TENANT TYPE:ID PUBLIC_KEY`, as `acme user:kim UABC...`")
    kinds = get_args(PrincipalType)
    if found["kind"] != "*" and found["kind"] not in kinds:
        raise Misconfigured(
            f"key {masked(text)!r:.200}: {found['kind']!r} is no type of principal; there are: {', '.join(kinds)}, *"
        )
    _raw_key(found["key"])
    return KeyEntry(found["tenant"], found["kind"], found["who"], found["key"])


def _raw_key(public_key: str) -> bytes:
    """The 32 bytes of an nkey of a user. Raises `Misconfigured`."""
    try:
        raw = base64.b32decode(public_key + "=" * (-len(public_key) % 8))
    except binascii.Error as error:
        raise Misconfigured(f"{masked(public_key)!r:.100} is no public key: {error}") from error
    crc = int.from_bytes(raw[-2:], "little")
    expected = nkeys.crc16(bytearray(raw[:-2]))  # type: ignore[no-untyped-call]
    if len(raw) != _PUBLIC_KEY_BYTES or raw[0] != nkeys.PREFIX_BYTE_USER or crc != expected:
        raise Misconfigured(
            f"{masked(public_key)!r:.100} is no public key of a user: it begins with U and ends in a check sum"
        )
    return raw[1:-2]


class KeyRegistry:
    """Which keys may sign for whom. Without entries nothing has to be signed."""

    def __init__(self, entries: Sequence[KeyEntry]) -> None:
        self._entries: dict[str, list[KeyEntry]] = {}
        self._keys: dict[str, nacl.signing.VerifyKey] = {}
        for entry in entries:
            self._entries.setdefault(entry.public_key, []).append(entry)
            self._keys[entry.public_key] = nacl.signing.VerifyKey(_raw_key(entry.public_key))

    @staticmethod
    def of(texts: Sequence[str]) -> KeyRegistry:
        """Entries as they stand in the settings. Raises `Misconfigured`."""
        return KeyRegistry([parse_key(text) for text in texts])

    def __bool__(self) -> bool:
        return bool(self._entries)

    def objection(
        self, subject: str, headers: bytes, body: bytes, tenant: str, context: SecurityContext
    ) -> tuple[str, str] | None:
        """Why this command is not its principal's, as code and reason; `None` when it is proven."""
        if not self._entries:
            return None
        found = _LINE.search(headers)
        if found is None:
            return "unsigned", f"commands have to be signed: the header {HEADER} is missing or malformed"
        public_key = found[1].decode()
        entries = self._entries.get(public_key)
        if entries is None:
            return "unknown_key", f"the key {public_key[:12]}... is in nobody's name"
        if not any(entry.speaks_for(tenant, context) for entry in entries):
            who = f"{context.principal_type}:{context.principal_id}"
            return "wrong_key", f"the key {public_key[:12]}... does not speak for {who} in this tenant"
        try:
            signature = base64.b64decode(found[2], validate=True)
            self._keys[public_key].verify(_covered(subject, body), signature)
        except (binascii.Error, nacl.exceptions.BadSignatureError, ValueError):
            return "bad_signature", "the signature is not that of this subject and body"
        return None
