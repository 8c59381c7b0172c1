"""What is masked in a text, and what is not."""

from __future__ import annotations

import base64
import secrets
from typing import Any

import hypothesis.strategies as st
import nkeys
import pytest
from hypothesis import given

from meshforge_trio.broker.bridge import ConnectOptions, connect
from meshforge_trio.config import load_settings
from meshforge_trio.errors import MeshForgeError, Misconfigured, SessionLost
from meshforge_trio.masking import address, masked

# What may stand in user info without being quoted, and what people write there all the same.
_USERINFO = st.text("abcXYZ019:@/?#!$&()*+;=%._~-", min_size=1, max_size=30)


@given(_USERINFO, st.sampled_from(["host:4222", "127.0.0.1:9", "[::1]:4222"]), st.sampled_from(["nats", "tls"]))
def test_user_info_is_masked_whatever_is_in_it(userinfo: str, host: str, scheme: str) -> None:
    assert masked(f"no answer of {scheme}://{userinfo}@{host}, again") == f"no answer of {scheme}://***@{host}, again"
    assert address(f"{scheme}://{userinfo}@{host}") == f"{scheme}://***@{host}"


def test_each_address_of_a_list_keeps_its_host() -> None:
    assert masked("tls://a:b@one:1,tls://c@two:2") == "tls://***@one:1,tls://***@two:2"


@pytest.mark.parametrize(
    "text",
    [
        "nats://host:4222",
        "user:kim@example.com may not send order.create",
        "mail kim@example.com about nats://host:4222",
        "the key UABCDEFGHIJKLMNOPQRSTUVWXYZ234567ABCDEFGHIJKLMNOPQRSTUVWXYZ is in nobody's name",
        "SUMMARY OF SUCCESSES",
        "",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert masked(text) == text


@pytest.mark.parametrize(
    "kind", ["PREFIX_BYTE_USER", "PREFIX_BYTE_ACCOUNT", "PREFIX_BYTE_SERVER", "PREFIX_BYTE_OPERATOR"]
)
def test_seeds_are_masked_wherever_they_stand(kind: str) -> None:
    made: Any = nkeys.encode_seed(secrets.token_bytes(32), getattr(nkeys, kind))  # type: ignore[no-untyped-call]
    seed = bytes(made).decode()
    for text in (seed, f"'{seed}' is no public key", f"/etc/{seed}/x", f"no file {seed}\n"):
        assert seed[4:] not in masked(text)
        assert "***" in masked(text)
    assert base64.b32decode(seed + "=" * (-len(seed) % 8)), "what was masked is what would be used"


@pytest.mark.parametrize(
    "setting",
    [
        {"signing_keys": ("acme user:kim {0}",)},
        {"permissions": ("allow user:{0}",)},
        {"password": ["{0}"]},
        {"url": ["{0}"]},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_a_setting_that_is_refused_is_told_without_the_seed_in_it(setting: dict[str, Any]) -> None:
    made: Any = nkeys.encode_seed(secrets.token_bytes(32), nkeys.PREFIX_BYTE_USER)  # type: ignore[no-untyped-call]
    seed = bytes(made).decode()
    ((name, value),) = setting.items()
    filled = tuple(text.format(seed) for text in value) if isinstance(value, tuple) else [seed]
    with pytest.raises(Misconfigured, match=r"command line: ") as refused:
        load_settings(environ={}, flags={name: filled})
    assert seed[4:] not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("nats://kim:hunter2@127.0.0.1:9", SessionLost),
        ("nats://hunter2@127.0.0.1:9", SessionLost),
        ("nats://kim:hunter2@127.0.0.1:port", SessionLost),
        ("http://kim:hunter2@127.0.0.1:9", Misconfigured),
        ("kim:hunter2@127.0.0.1:9", Misconfigured),
        ("hunter2@", Misconfigured),
    ],
)
async def test_what_a_client_is_told_of_an_address_is_without_user_info(
    aio_loop: object, url: str, error: type[MeshForgeError]
) -> None:
    with pytest.raises(error) as raised:
        await connect(ConnectOptions(urls=(url,)))
    assert "hunter2" not in str(raised.value)
