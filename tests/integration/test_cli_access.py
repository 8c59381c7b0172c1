"""Who may do what, as `meshforge run` holds it: rules and keys of the settings, and what a restart with others does."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nkeys
import pytest

from meshforge_trio.policy import ExitCode
from meshforge_trio.server import PrivateServer
from meshforge_trio.signing import Signer

from .cli_world import Result, Running, Shop, shop
from .dlq_world import stop

VIOLATION = "evt.default.demo.security.violation"


@pytest.fixture
def at(tmp_path: Path, nats_server: PrivateServer) -> Shop:
    return shop(tmp_path, nats_server.url)


@contextmanager
def serving(at: Shop, **settings: list[str] | str) -> Iterator[Running]:
    """A worker with these settings in its file; drained at the end."""
    lines = [f"{name} = {json.dumps(value)}\n" for name, value in settings.items()]
    file = at.home / "worker.toml"
    file.write_text("".join(lines))
    with at.served("--config", str(file)) as worker:
        yield worker
        stop(worker)


def ask(at: Shop, who: str, action: str, entity: str = "o-1", *, seed: Path | None = None, key: str = "") -> Result:
    options = ["--entity", entity, "--principal", who, "--json", *(["--key", key] if key else [])]
    signed = {} if seed is None else {"MESHFORGE_SIGNING_SEED_FILE": str(seed)}
    return at.does("call", "order", action, '{"items": 3}', *options, env=signed)


def answer(result: Result) -> tuple[int, str, str]:
    """Exit code, name, and the code of what was not let in."""
    return result.code, result.document["name"], result.document["payload"].get("code", "")


def violations(at: Shop) -> list[dict[str, Any]]:
    """As they are stored, with their subject."""
    found = at.does("events", "--all", "--json").documents
    stored = [d["envelope"] | {"subject": d["subject"]} for d in found if d["envelope"].get("name") == "violation"]
    assert all(envelope["subject"] == VIOLATION for envelope in stored)
    return stored


def decided(at: Shop) -> list[str]:
    return [d["envelope"]["name"] for d in at.does("events", "--agent", "order", "--json").documents]


# -- rules ---------------------------------------------------------------------------------------------------------


def test_what_no_rule_allows_is_a_violation_and_the_rest_is_decided(at: Shop) -> None:
    rules = ["deny user:guest-* -> order.update", "allow user:* -> order.*"]
    with serving(at, permissions=rules):
        assert answer(ask(at, "kim", "create")) == (ExitCode.OK, "created", "")
        assert answer(ask(at, "guest-7", "update")) == (ExitCode.FAILED, "violation", "forbidden")
        assert answer(ask(at, "guest-7", "get")) == (ExitCode.OK, "found", "")
        stock = at.does("call", "inventory", "create", "--entity", "i-1", "--principal", "kim", "--json")
        assert answer(stock) == (ExitCode.FAILED, "violation", "forbidden"), "no rule speaks of it"
    reasons = [(v["payload"]["principal_id"], v["payload"]["reason"]) for v in violations(at)]
    assert sorted(reasons) == [
        ("guest-7", "user:guest-7 may not send order.update"),
        ("kim", "user:kim may not send inventory.create"),
    ]
    assert decided(at) == ["created"]


def test_a_restart_with_other_rules_decides_by_these(at: Shop) -> None:
    with serving(at, permissions=["allow user:kim -> order"]):
        assert answer(ask(at, "lee", "create", key="k-1")) == (ExitCode.FAILED, "violation", "forbidden")
        assert answer(ask(at, "kim", "create")) == (ExitCode.OK, "created", "")
    with serving(at, permissions=["allow user:lee -> order"]):
        # What was not let in does not occupy its key.
        assert answer(ask(at, "lee", "update", key="k-1")) == (ExitCode.OK, "updated", "")
        assert answer(ask(at, "kim", "update")) == (ExitCode.FAILED, "violation", "forbidden")
    with serving(at):
        assert answer(ask(at, "kim", "update")) == (ExitCode.OK, "updated", "")
    assert decided(at) == ["created", "updated", "updated"]
    assert len(violations(at)) == 2


def test_a_rule_that_is_none_keeps_the_worker_from_starting(at: Shop) -> None:
    done = at.does("run", "shop:app", env={"MESHFORGE_PERMISSIONS": "permit user:* -> order"})
    assert done.code == ExitCode.MISCONFIGURED
    assert "MESHFORGE_PERMISSIONS" in done.err
    assert "allow|deny TYPE:ID -> AGENT.ACTION" in done.err


# -- signatures ----------------------------------------------------------------------------------------------------


def new_key(at: Shop, name: str) -> tuple[Path, str]:
    """A file with a seed, and its public key."""
    seed: bytes = nkeys.encode_seed(secrets.token_bytes(32), nkeys.PREFIX_BYTE_USER)  # type: ignore[no-untyped-call]
    file = at.home / f"{name}.nk"
    file.write_bytes(bytes(seed))
    return file, Signer.from_file(file).public_key


def test_unsigned_and_wrongly_signed_commands_are_violations(at: Shop) -> None:
    (kim, kims), (lee, lees), (stranger, _) = (new_key(at, name) for name in ("kim", "lee", "stranger"))
    keys = [f"default user:kim {kims}", f"default user:lee {lees}"]
    with serving(at, signing_keys=keys):
        assert answer(ask(at, "kim", "create")) == (ExitCode.FAILED, "violation", "unsigned")
        assert answer(ask(at, "kim", "create", seed=stranger)) == (ExitCode.FAILED, "violation", "unknown_key")
        assert answer(ask(at, "kim", "create", seed=lee)) == (ExitCode.FAILED, "violation", "wrong_key")
        assert answer(ask(at, "kim", "create", seed=kim)) == (ExitCode.OK, "created", "")
        assert answer(ask(at, "lee", "update", seed=lee)) == (ExitCode.OK, "updated", "")
    assert sorted(v["payload"]["code"] for v in violations(at)) == ["unknown_key", "unsigned", "wrong_key"]
    assert decided(at) == ["created", "updated"]


def test_a_key_that_was_taken_away_signs_for_nobody_after_the_restart(at: Shop) -> None:
    (old, olds), (new, news) = new_key(at, "old"), new_key(at, "new")
    with serving(at, signing_keys=[f"default user:kim {olds}", f"default user:kim {news}"]):
        assert answer(ask(at, "kim", "create", seed=old, key="k-1")) == (ExitCode.OK, "created", "")
        assert answer(ask(at, "kim", "update", seed=new)) == (ExitCode.OK, "updated", "")
    with serving(at, signing_keys=[f"default user:kim {news}"]):
        assert answer(ask(at, "kim", "update", seed=old)) == (ExitCode.FAILED, "violation", "unknown_key")
        assert answer(ask(at, "kim", "update", seed=new)) == (ExitCode.OK, "updated", "")
        # The key of the command is what it is, whoever signed it first.
        assert answer(ask(at, "kim", "create", seed=new, key="k-1")) == (ExitCode.OK, "created", "")
    assert decided(at) == ["created", "updated", "updated"]


def test_keys_and_rules_hold_together(at: Shop) -> None:
    (kim, kims), (runtime, runtimes) = new_key(at, "kim"), new_key(at, "runtime")
    settings: dict[str, list[str] | str] = {
        "permissions": ["allow user:kim -> order.create"],
        "signing_keys": [f"default user:kim {kims}", f"default *:* {runtimes}"],
        "signing_seed_file": str(runtime),
    }
    with serving(at, **settings):
        assert answer(ask(at, "kim", "create", seed=kim)) == (ExitCode.OK, "created", "")
        assert answer(ask(at, "kim", "update", seed=kim)) == (ExitCode.FAILED, "violation", "forbidden")
        assert answer(ask(at, "kim", "create", "o-2")) == (ExitCode.FAILED, "violation", "unsigned")
        assert answer(ask(at, "lee", "create", "o-2", seed=runtime)) == (ExitCode.FAILED, "violation", "forbidden")
    assert decided(at) == ["created"]
