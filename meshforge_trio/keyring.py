"""Key rings: the keys of one tenant's payloads in one file, and the codec over them.

AES-SIV (RFC 5297) by the library `cryptography`: deterministic, and what was changed or moved does not open. A ring has
several keys. The newest seals, all of them open, so keys rotate without anything being written again. Beside them lies
the key of hashes, which never rotates. Destroying a ring leaves the ids of its keys and when it was: what they sealed
cannot be read any more, by anybody, unless there is a copy of the ring somewhere.

    {"tenant": "acme", "hash_key": "...", "keys": [{"id": "k3f9a02c1", "made_at": "2026-11-22", "secret": "..."}],
     "destroyed": []}
"""

from __future__ import annotations

import base64
import binascii
import fcntl
import hmac
import importlib
import os
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import attrs
import orjson

from meshforge_trio.codec import Codecs, PayloadCodec, Sealed
from meshforge_trio.errors import Erased, Misconfigured, Poison
from meshforge_trio.subjects import is_token

__all__ = [
    "AesSiv",
    "Key",
    "KeyRings",
    "Ring",
    "change_ring",
    "codecs_of",
    "make_ring",
    "parse_ring",
    "read_ring",
    "rebased",
]

_SECRET_BYTES: Final = 64
_HASH_KEY_BYTES: Final = 32


@attrs.frozen
class Key:
    """One key. `made_at` is a date, for people."""

    id: str
    made_at: str
    secret: bytes = attrs.field(repr=False)


@attrs.frozen
class Tombstone:
    """A key that was destroyed."""

    id: str
    made_at: str
    destroyed_at: str


@attrs.frozen
class Ring:
    """The keys of a tenant, the newest last; after it was destroyed none, and a tombstone for each."""

    tenant: str
    hash_key: bytes = attrs.field(repr=False)
    keys: tuple[Key, ...]
    destroyed: tuple[Tombstone, ...] = ()

    @staticmethod
    def new(tenant: str, now: float) -> Ring:
        """A ring with one key. `now` is in seconds since 1970."""
        return Ring(tenant, secrets.token_bytes(_HASH_KEY_BYTES), (_new_key(now),))

    @property
    def erased(self) -> str | None:
        """Why nothing can be read any more; `None` while there are keys."""
        if self.keys:
            return None
        return f"the keys of tenant {self.tenant!r} were destroyed on {self.destroyed[-1].destroyed_at}"

    def rotated(self, now: float) -> Ring:
        """With one key more, which seals from now on. Raises `Misconfigured`: the ring was destroyed."""
        if self.erased is not None:
            raise Misconfigured(f"{self.erased}: a destroyed ring gets no new keys")
        return attrs.evolve(self, keys=(*self.keys, _new_key(now)))

    def emptied(self, now: float) -> Ring:
        """Without keys. What was destroyed before stays as it is."""
        graves = [Tombstone(key.id, key.made_at, _day(now)) for key in self.keys]
        return attrs.evolve(self, hash_key=b"", keys=(), destroyed=(*self.destroyed, *graves))

    def lacks(self, key: str) -> Poison:
        """Why what was sealed under a key that is not there cannot be opened."""
        for grave in self.destroyed:
            if grave.id == key:
                return Erased(f"key {key} of tenant {self.tenant!r} was destroyed on {grave.destroyed_at}")
        return Poison(
            f"key {key:.64} is not in the ring of tenant {self.tenant!r}: it was made in another copy of the ring, or "
            "is somebody else's",
            code="unknown_key",
            field="payload",
        )

    def as_json(self) -> bytes:
        """As it stands in its file."""
        document = {
            "tenant": self.tenant,
            "hash_key": base64.b64encode(self.hash_key).decode(),
            "keys": [{**_dated(key), "secret": base64.b64encode(key.secret).decode()} for key in self.keys],
            "destroyed": [{**_dated(grave), "destroyed_at": grave.destroyed_at} for grave in self.destroyed],
        }
        return orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)

    @staticmethod
    def of_json(content: bytes) -> Ring:
        """Read `as_json`. Raises `ValueError`, `KeyError` or `TypeError`: it is no ring."""
        told = orjson.loads(content)
        keys = [Key(str(k["id"]), str(k["made_at"]), _raw(k["secret"], _SECRET_BYTES)) for k in told["keys"]]
        graves = [Tombstone(str(g["id"]), str(g["made_at"]), str(g["destroyed_at"])) for g in told["destroyed"]]
        if not keys and not graves:
            raise ValueError("it holds no key")
        hash_key = _raw(told["hash_key"], _HASH_KEY_BYTES if keys else 0)
        return Ring(str(told["tenant"]), hash_key, tuple(keys), tuple(graves))


def _new_key(now: float) -> Key:
    return Key(f"k{secrets.token_hex(4)}", _day(now), secrets.token_bytes(_SECRET_BYTES))


def _dated(key: Key | Tombstone) -> dict[str, str]:
    return {"id": key.id, "made_at": key.made_at}


def _day(now: float) -> str:
    return datetime.fromtimestamp(now, UTC).date().isoformat()


def _raw(text: str, size: int) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"a key is no base64: {error}") from error
    if len(raw) != size:
        raise ValueError(f"a key has {len(raw)} bytes instead of {size}")
    return raw


# -- the codec -------------------------------------------------------------------------------------------------


class AesSiv:
    """The codec over a ring."""

    def __init__(self, ring: Ring) -> None:
        """Raises `Misconfigured`: the library is not installed."""
        cipher, self._tampered = _library()
        self._ring = ring
        self._ciphers = {key.id: cipher(key.secret) for key in ring.keys}
        self._newest = ring.keys[-1].id if ring.keys else ""

    @property
    def erased(self) -> str | None:
        """See `PayloadCodec.erased`."""
        return self._ring.erased

    def seal(self, plain: bytes, *, context: bytes) -> Sealed:
        """See `PayloadCodec.seal`."""
        self._check()
        return Sealed(self._newest, self._ciphers[self._newest].encrypt(plain, [context]))

    def open(self, sealed: Sealed, *, context: bytes) -> bytes:
        """See `PayloadCodec.open`."""
        cipher = self._ciphers.get(sealed.key)
        if cipher is None:
            raise self._ring.lacks(sealed.key)
        try:
            plain: bytes = cipher.decrypt(sealed.content, [context])
        except self._tampered as error:
            raise Poison(
                f"what key {sealed.key} sealed was changed, or belongs elsewhere", code="bad_seal", field="payload"
            ) from error
        return plain

    def digest(self, content: bytes) -> bytes:
        """See `PayloadCodec.digest`."""
        self._check()
        return hmac.digest(self._ring.hash_key, content, "sha256")

    def _check(self) -> None:
        if self._ring.erased is not None:
            raise Erased(self._ring.erased)


def _library() -> tuple[Callable[[bytes], Any], type[Exception]]:
    """AES-SIV, and what it raises for what it did not make. Loaded when it is asked for: most processes need none."""
    try:
        ciphers = importlib.import_module("cryptography.hazmat.primitives.ciphers.aead")
        errors = importlib.import_module("cryptography.exceptions")
    except ImportError as error:
        raise Misconfigured(
            "payloads are sealed with the library `cryptography`, which is not installed: "
            "pip install 'meshforge-trio[codec]'"
        ) from error
    return ciphers.AESSIV, errors.InvalidTag


# -- files -----------------------------------------------------------------------------------------------------


def parse_ring(text: str) -> tuple[str, Path]:
    """Read a line of the settings, `TENANT = FILE`. Raises `Misconfigured`: it is none."""
    tenant, equals, file = (part.strip() for part in text.partition("="))
    if not equals or not is_token(tenant) or not file:
        raise Misconfigured(f"key ring {text!r:.200} is not `TENANT = FILE`, as `acme = keys/acme.ring`")
    return tenant, Path(file)


def rebased(texts: Sequence[str], directory: Path) -> tuple[str, ...]:
    """Lines of a settings file, whose relative paths are relative to its `directory`."""
    return tuple(f"{tenant} = {directory / file}" for tenant, file in map(parse_ring, texts))


def read_ring(path: Path, tenant: str) -> Ring:
    """The ring in a file.

    Raises:
        Misconfigured: it cannot be read, others may read it, it is no ring, or another tenant's.
    """
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read()
    except OSError as error:
        raise Misconfigured(f"key ring {path} of tenant {tenant!r}: {error.strerror}") from error
    if mode & 0o077:
        raise Misconfigured(f"key ring {path} has mode {mode:04o}, others may read it: chmod 600 {path}")
    try:
        ring = Ring.of_json(content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Misconfigured(f"{path} is no key ring, or a damaged one: {type(error).__name__}: {error}") from error
    if ring.tenant != tenant:
        raise Misconfigured(f"key ring {path} is tenant {ring.tenant!r}'s, not {tenant!r}'s")
    return ring


def make_ring(path: Path, tenant: str, now: float) -> Ring:
    """Write a new ring with one key to a file that only its owner may read.

    Raises:
        Misconfigured: the file exists, or cannot be written.
    """
    ring = Ring.new(tenant, now)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _alone(path):
            if path.exists():
                raise Misconfigured(f"{path} exists: rotate its keys, or name another file")
            _put(path, ring)
    except OSError as error:
        raise Misconfigured(f"key ring {path} cannot be written: {error.strerror}") from error
    return ring


def change_ring(path: Path, tenant: str, change: Callable[[Ring], Ring]) -> Ring:
    """Put another ring in the place of a file's, all at once. Nobody else changes it meanwhile.

    The bytes of the file before are overwritten, for what that is worth: file systems and disks may keep copies.

    Raises:
        Misconfigured: as `read_ring`; it cannot be written.
    """
    try:
        with _alone(path):
            ring = change(read_ring(path, tenant))
            with path.open("r+b") as before:
                _put(path, ring)
                before.write(bytes(os.fstat(before.fileno()).st_size))
                before.flush()
                os.fsync(before.fileno())
    except OSError as error:
        raise Misconfigured(f"key ring {path} cannot be written: {error.strerror}") from error
    return ring


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the lock of the file's directory: a rotation beside a destruction would bring keys back."""
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
        os.fsync(directory)
    finally:
        os.close(directory)


def _put(path: Path, ring: Ring) -> None:
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    draft = Path(name)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(ring.as_json())
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


class KeyRings:
    """The codecs of the tenants that have a ring. A `Codecs`: it looks at the file each time it is asked."""

    def __init__(self, rings: Mapping[str, Path], others: Codecs | None = None) -> None:
        """`others` is asked for tenants without a ring."""
        self._paths = dict(rings)
        self._others = others
        self._seen: dict[str, tuple[tuple[int, ...], AesSiv]] = {}

    def __call__(self, tenant: str) -> PayloadCodec | None:
        """The codec of a tenant as of now. Raises `Misconfigured`: its file is missing or unusable."""
        path = self._paths.get(tenant)
        if path is None:
            return None if self._others is None else self._others(tenant)
        try:
            found = path.stat()
        except OSError as error:
            raise Misconfigured(f"key ring {path} of tenant {tenant!r}: {error.strerror}") from error
        # A ring is changed by putting another file in its place.
        look = (found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size)
        seen = self._seen.get(tenant)
        if seen is None or seen[0] != look:
            seen = self._seen[tenant] = look, AesSiv(read_ring(path, tenant))
        return seen[1]


def codecs_of(lines: Sequence[str], own: Codecs | None = None) -> Codecs | None:
    """The codecs of settings (`codec_keys`) and of the code, `None` where there are none.

    Raises:
        Misconfigured: a file is missing or unusable; a tenant has two.
    """
    rings = dict(map(parse_ring, lines))
    if len(rings) != len(lines):
        raise Misconfigured("codec_keys names a tenant twice")
    if not rings:
        return own
    codecs = KeyRings(rings, own)
    for tenant in rings:
        codecs(tenant)
    return codecs
