"""Signed commands: proven, or a violation that says why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import nkeys
import pytest
from doubles import SCOPE, command, counter, delivery
from hypothesis import given
from hypothesis import strategies as st

from meshforge_trio.config import load_settings
from meshforge_trio.envelope import CommandEnvelope, SecurityContext, encode
from meshforge_trio.errors import Misconfigured
from meshforge_trio.intake import Incoming, read_delivery
from meshforge_trio.outgoing import as_message
from meshforge_trio.security import Access, Violation
from meshforge_trio.signing import HEADER, KeyRegistry, Signer, parse_key
from meshforge_trio.subjects import command_subject


def seed(number: int) -> str:
    """The same each time: these keys are in the names of tests, which workers that run side by side must agree on."""
    made: Any = nkeys.encode_seed(bytes([number]) * 32, nkeys.PREFIX_BYTE_USER)  # type: ignore[no-untyped-call]
    return bytes(made).decode()


KIM, LEE = Signer(seed(1)), Signer(seed(2))


def block(headers: dict[str, str]) -> bytes:
    return b"NATS/1.0\r\n" + b"".join(f"{name}: {value}\r\n".encode() for name, value in headers.items()) + b"\r\n"


def read(
    order: CommandEnvelope, *entries: str, signer: Signer | None = KIM, headers: bytes | None = None, body: bytes = b""
) -> Incoming:
    message = as_message(order, signer)
    sent = delivery(
        message.subject, body or message.body, headers=block(dict(message.headers)) if headers is None else headers
    )
    return read_delivery(sent, SCOPE, counter(), Access(keys=KeyRegistry.of(entries)))


def code(incoming: Incoming) -> str | None:
    assert incoming.fault is None or isinstance(incoming.fault, Violation)
    return None if incoming.fault is None else incoming.fault.code


def entry(who: str = "user:kim", signer: Signer = KIM, tenant: str = "t") -> str:
    return f"{tenant} {who} {signer.public_key}"


def test_a_command_of_its_principal_is_let_in() -> None:
    assert code(read(command(1), entry())) is None
    assert code(read(command(1), entry("user:*"))) is None
    assert code(read(command(1), entry("*:kim"), entry("agent:order"))) is None


def test_without_keys_nothing_has_to_be_signed() -> None:
    assert code(read(command(1), signer=None)) is None
    assert code(read(command(1), signer=LEE)) is None


@pytest.mark.parametrize(
    ("entries", "signer", "said"),
    [
        ([entry()], None, "unsigned"),
        ([entry()], LEE, "unknown_key"),
        ([entry(), entry("user:lee", LEE)], LEE, "wrong_key"),
        ([entry(tenant="other")], KIM, "wrong_key"),
        ([entry("agent:kim")], KIM, "wrong_key"),
        ([entry("user:k?m")], KIM, "wrong_key"),
    ],
)
def test_what_is_not_proven_is_a_violation(entries: list[str], signer: Signer | None, said: str) -> None:
    incoming = read(command(1), *entries, signer=signer)
    assert code(incoming) == said
    assert incoming.key.startswith("raw:"), "it does not occupy the key it claims"


def test_nothing_of_a_signed_command_can_be_changed() -> None:
    order = command(1, payload={"amount": 1})
    body = encode(order)
    for changed in (
        attrs.evolve(order, payload={"amount": 9}),
        attrs.evolve(order, id="c9"),
        attrs.evolve(order, idempotency_key="k9"),
        attrs.evolve(order, entity_id="b"),
        attrs.evolve(order, ts=5.5),
    ):
        assert code(read(order, entry(), body=encode(changed))) == "bad_signature"
    assert code(read(order, entry(), body=body)) is None


def test_a_signature_does_not_move_to_another_subject() -> None:
    order = command(1)
    headers = block(dict(KIM.headers(command_subject(SCOPE, "take"), encode(order))))
    assert code(read(order, entry(), headers=headers)) == "bad_signature"


@pytest.mark.parametrize(
    "line",
    [
        "",
        f"{HEADER}:",
        f"{HEADER}: x",
        f"{HEADER}: {KIM.public_key}",
        f"{HEADER}: {KIM.public_key} !!!!",
        f"X{HEADER}: {KIM.public_key} AAAA",
    ],
)
def test_a_malformed_header_is_none(line: str) -> None:
    headers = b"NATS/1.0\r\n" + (line.encode() + b"\r\n" if line else b"") + b"\r\n"
    assert code(read(command(1), entry(), headers=headers)) == "unsigned"


@pytest.mark.parametrize("signature", ["AAAA", "A" * 88, "A", "=" * 88])
def test_a_signature_that_is_none_is_bad(signature: str) -> None:
    headers = block({HEADER: f"{KIM.public_key} {signature}"})
    assert code(read(command(1), entry(), headers=headers)) == "bad_signature"


def test_a_key_is_changed_by_having_two_for_a_while() -> None:
    old, new = entry(), entry(signer=LEE)
    for signer in (KIM, LEE):
        assert code(read(command(1), old, new, signer=signer)) is None
    assert code(read(command(1), new, signer=KIM)) == "unknown_key"


def test_a_recorded_command_sent_again_is_the_same_command() -> None:
    order = command(1)
    first, again = read(order, entry()), read(order, entry())
    assert (first.key, first.hash) == (again.key, again.hash)


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_headers_and_bodies_of_any_kind_are_judged(headers: bytes, body: bytes) -> None:
    registry = KeyRegistry.of([entry()])
    told = registry.objection("cmd.t.w.counter.add", headers, body, "t", SecurityContext("kim", "user"))
    assert told is not None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "t user:kim",
        f"user:kim {KIM.public_key}",
        f"t.x user:kim {KIM.public_key}",
        f"t person:kim {KIM.public_key}",
        f"t user:kim {KIM.public_key[:-1]}",
        f"t user:kim {KIM.public_key[:-1]}A",
        f"t user:kim S{KIM.public_key[1:]}",
        "t user:kim UAAA",
    ],
)
def test_what_is_no_entry_is_told(text: str) -> None:
    with pytest.raises(Misconfigured, match="key"):
        parse_key(text)


def test_a_wrong_entry_of_the_settings_is_told_at_the_start() -> None:
    with pytest.raises(Misconfigured, match="TENANT TYPE:ID"):
        load_settings(environ={}, flags={"signing_keys": ["nonsense"]})
    assert load_settings(environ={}, flags={"signing_keys": [entry()]}).signing_keys == (entry(),)


def test_a_seed_comes_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "seed.nk"
    text = seed(3)
    path.write_text(f"{text}\n")
    assert Signer.from_file(path).public_key == Signer(text).public_key
    path.write_text("no seed")
    with pytest.raises(Misconfigured, match="seed"):
        Signer.from_file(path)
    with pytest.raises(Misconfigured, match=r"missing\.nk"):
        Signer.from_file(tmp_path / "missing.nk")
