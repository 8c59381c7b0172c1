"""Key rings: the file, its keys, and the codec over them."""

from __future__ import annotations

import builtins
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshforge_trio.codec import Sealed
from meshforge_trio.config import load_settings
from meshforge_trio.errors import Erased, Misconfigured, Poison
from meshforge_trio.keyring import AesSiv, KeyRings, Ring, change_ring, codecs_of, make_ring, parse_ring, read_ring

NOW = 1_800_000_000.0
RING = Ring.new("acme", NOW)
CODEC = AesSiv(RING)

contents = st.binary(min_size=1, max_size=300)


@given(contents, st.binary(max_size=40))
def test_what_was_sealed_opens_and_is_the_same_each_time(plain: bytes, context: bytes) -> None:
    sealed = CODEC.seal(plain, context=context)
    assert CODEC.open(sealed, context=context) == plain
    assert CODEC.seal(plain, context=context) == sealed
    assert AesSiv(Ring.of_json(RING.as_json())).seal(plain, context=context) == sealed


@given(contents, st.integers(0), st.integers(1, 255))
def test_what_was_changed_does_not_open(plain: bytes, at: int, by: int) -> None:
    sealed = CODEC.seal(plain, context=b"here")
    changed = bytearray(sealed.content)
    changed[at % len(changed)] ^= by
    with pytest.raises(Poison, match="was changed, or belongs elsewhere"):
        CODEC.open(Sealed(sealed.key, bytes(changed)), context=b"here")


def test_what_was_moved_does_not_open() -> None:
    sealed = CODEC.seal(b"secret", context=b"here")
    with pytest.raises(Poison, match="belongs elsewhere"):
        CODEC.open(sealed, context=b"there")


def test_a_rotated_ring_seals_with_the_newest_key_and_opens_with_all() -> None:
    old = CODEC.seal(b"secret", context=b"here")
    rotated = AesSiv(RING.rotated(NOW))
    new = rotated.seal(b"secret", context=b"here")
    assert (rotated.open(old, context=b"here"), rotated.open(new, context=b"here")) == (b"secret", b"secret")
    assert new.key != old.key
    assert new.content != old.content
    assert rotated.digest(b"secret") == CODEC.digest(b"secret")
    with pytest.raises(Poison, match=f"key {new.key} is not in the ring"):
        CODEC.open(new, context=b"here")


def test_hashes_need_the_ring() -> None:
    assert AesSiv(Ring.new("acme", NOW)).digest(b"secret") != CODEC.digest(b"secret")


def test_a_destroyed_ring_says_when_and_does_nothing_more() -> None:
    sealed = CODEC.seal(b"secret", context=b"here")
    emptied = AesSiv(Ring.of_json(RING.emptied(NOW).as_json()))
    assert emptied.erased == "the keys of tenant 'acme' were destroyed on 2027-01-15"
    with pytest.raises(Erased, match=f"key {sealed.key} of tenant 'acme' was destroyed on 2027-01-15"):
        emptied.open(sealed, context=b"here")
    with pytest.raises(Erased):
        emptied.seal(b"more", context=b"here")
    with pytest.raises(Erased):
        emptied.digest(b"more")
    with pytest.raises(Misconfigured, match="a destroyed ring gets no new keys"):
        RING.emptied(NOW).rotated(NOW)


def test_a_destroyed_ring_holds_no_secret() -> None:
    kept = RING.emptied(NOW).as_json()
    for line in RING.as_json().splitlines():
        if b"secret" in line or b"hash_key" in line:
            assert line.split(b'"')[3] not in kept


# -- files -----------------------------------------------------------------------------------------------------


def test_a_ring_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "acme.ring"
    ring = make_ring(path, "acme", NOW)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert read_ring(path, "acme") == ring
    with pytest.raises(Misconfigured, match="exists: rotate its keys"):
        make_ring(path, "acme", NOW)
    assert read_ring(path, "acme") == ring


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o610])
def test_a_ring_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "acme.ring"
    make_ring(path, "acme", NOW)
    path.chmod(mode)
    with pytest.raises(Misconfigured, match=f"has mode {mode:04o}, others may read it: chmod 600"):
        read_ring(path, "acme")


def test_a_ring_of_another_tenant_is_refused(tmp_path: Path) -> None:
    make_ring(tmp_path / "acme.ring", "acme", NOW)
    with pytest.raises(Misconfigured, match="is tenant 'acme''s, not 'zeta''s"):
        read_ring(tmp_path / "acme.ring", "zeta")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b'{"tenant": "acme", "hash_key": "", "keys": [], "destroyed": []}',
        RING.as_json().replace(b'"hash_key": "', b'"hash_key": "AA'),
        RING.as_json()[:-40],
        bytes(400),
    ],
    ids=["empty", "list", "object", "keyless", "longer", "cut", "zeros"],
)
def test_a_damaged_ring_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "acme.ring"
    path.touch(mode=0o600)
    path.write_bytes(content)
    with pytest.raises(Misconfigured, match="is no key ring, or a damaged one"):
        read_ring(path, "acme")


def test_a_change_puts_another_file_there_and_wipes_the_one_before(tmp_path: Path) -> None:
    path, before = tmp_path / "acme.ring", tmp_path / "before"
    make_ring(path, "acme", NOW)
    before.hardlink_to(path)
    emptied = change_ring(path, "acme", lambda ring: ring.emptied(NOW))
    assert read_ring(path, "acme") == emptied
    assert path.stat().st_mode & 0o777 == 0o600
    assert set(before.read_bytes()) == {0}
    assert sorted(each.name for each in tmp_path.iterdir()) == ["acme.ring", "before"]


def test_whoever_asks_gets_the_keys_of_now(tmp_path: Path) -> None:
    path = tmp_path / "acme.ring"
    make_ring(path, "acme", NOW)
    codecs = KeyRings({"acme": path})
    first = codecs("acme")
    assert codecs("acme") is first
    assert first is not None
    change_ring(path, "acme", lambda ring: ring.rotated(NOW))
    second = codecs("acme")
    assert second is not None
    assert second.seal(b"x", context=b"").key != first.seal(b"x", context=b"").key
    change_ring(path, "acme", lambda ring: ring.emptied(NOW))
    third = codecs("acme")
    assert third is not None
    assert third.erased is not None
    path.unlink()
    with pytest.raises(Misconfigured, match="No such file"):
        codecs("acme")


def test_rings_come_before_the_codecs_of_the_code(tmp_path: Path) -> None:
    make_ring(tmp_path / "acme.ring", "acme", NOW)
    codecs = codecs_of([f"acme = {tmp_path / 'acme.ring'}"], lambda tenant: CODEC if tenant == "own" else None)
    assert codecs is not None
    assert codecs("own") is CODEC
    assert isinstance(codecs("acme"), AesSiv)
    assert codecs("acme") is not CODEC
    assert codecs("zeta") is None
    assert codecs_of([]) is None


def test_settings_name_rings(tmp_path: Path) -> None:
    file = tmp_path / "meshforge.toml"
    file.write_text('codec_keys = ["acme = keys/acme.ring", "zeta=/run/zeta.ring"]\n')
    settings = load_settings(file, environ={})
    assert dict(map(parse_ring, settings.codec_keys)) == {
        "acme": tmp_path / "keys/acme.ring",
        "zeta": Path("/run/zeta.ring"),
    }
    for nonsense in ("acme", "= keys", "a b = keys", "acme = "):
        with pytest.raises(Misconfigured, match="is not `TENANT = FILE`"):
            load_settings(environ={}, flags={"codec_keys": [nonsense]})
    with pytest.raises(Misconfigured, match="names a tenant twice"):
        codecs_of(["acme = a", "acme = b"])


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__
    for name in [name for name in sys.modules if name.split(".")[0] == "cryptography"]:
        monkeypatch.delitem(sys.modules, name)

    def refuse(name: str, *more: object) -> object:
        if name.split(".", maxsplit=1)[0] == "cryptography":
            raise ImportError(name)
        return real(name, *more)  # type: ignore[arg-type]

    monkeypatch.setattr("importlib.import_module", refuse)
    with pytest.raises(Misconfigured, match=r"pip install 'meshforge-trio\[codec\]'"):
        AesSiv(RING)
