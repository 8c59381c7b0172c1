"""The lock manager as `meshforge run` serves it: switched on by a setting, stranded without, kept through a kill."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from meshforge_trio.policy import ExitCode
from meshforge_trio.server import PrivateServer

from .cli_world import Result, Running, Shop, eventually, shop

ON = {"MESHFORGE_LOCK_MANAGER": "true"}


@pytest.fixture
def at(tmp_path: Path, nats_server: PrivateServer) -> Shop:
    return shop(tmp_path, nats_server.url)


def ask(at: Shop, action: str, owner: str, *options: str, **payload: Any) -> Result:
    body = json.dumps({"resource_id": "door", "owner_id": owner, **payload})
    return at.does("call", "sys_lock_manager", action, body, "--json", *options)


def acquire(at: Shop, owner: str, ttl_s: float) -> dict[str, Any]:
    answer = ask(at, "acquire", owner, ttl_seconds=ttl_s)
    assert answer.code == ExitCode.OK, answer
    payload: dict[str, Any] = answer.document["payload"]
    return payload | {"name": answer.document["name"]}


def told(at: Shop) -> list[tuple[str, int]]:
    """The chain of the lock: names and tokens, in order."""
    found = at.does("events", "--agent", "sys_lock_manager", "--entity", "door", "--json").documents
    return [(d["envelope"]["name"], d["envelope"]["payload"]["fencing_token"]) for d in found]


def kill(worker: Running) -> None:
    os.killpg(worker.process.pid, signal.SIGKILL)
    assert worker.ended() == -signal.SIGKILL


def test_a_worker_with_the_setting_leases_refreshes_and_frees(at: Shop) -> None:
    with at.served(env=ON) as worker:
        worker.said("serving", 3)
        first = acquire(at, "ada", 600.0)
        assert (first["name"], first["fencing_token"]) == ("acquired", 1)
        denied = ask(at, "acquire", "bob", ttl_seconds=600.0).document
        assert (denied["name"], denied["payload"]["current_owner"]) == ("denied", "ada")
        assert ask(at, "refresh", "ada", ttl_seconds=600.0).document["name"] == "refreshed"
        assert ask(at, "release", "ada").document["name"] == "released"
        assert acquire(at, "bob", 600.0)["fencing_token"] == 2
    assert told(at) == [("acquired", 1), ("refreshed", 1), ("released", 1), ("acquired", 2)]


def test_a_lease_ends_once_although_its_worker_was_killed(at: Shop) -> None:
    """The deadline is in no memory that a kill could take: whoever serves next reads it off the lock."""
    with at.served(env=ON) as worker:
        worker.said("serving", 3)
        assert acquire(at, "ada", 4.0)["fencing_token"] == 1
        kill(worker)
    assert told(at)[0] == ("acquired", 1)
    # It is over, or not yet: the second one waits for its end, the others find it ended.
    for _ in range(3):
        with at.served(env=ON) as worker:
            worker.said("serving", 3)
            eventually(lambda: len(told(at)) > 1, "it ends by itself")
            kill(worker)
    assert told(at) == [("acquired", 1), ("expired", 1)]
    with at.served(env=ON):
        assert acquire(at, "bob", 600.0)["fencing_token"] == 2
    assert told(at) == [("acquired", 1), ("expired", 1), ("acquired", 2)]


def test_without_the_setting_an_acquire_is_stranded_and_named(at: Shop) -> None:
    with at.served() as worker:
        assert ask(at, "acquire", "ada", "--timeout", "0.5", ttl_seconds=1.0).code == ExitCode.OUTCOME_UNKNOWN
        swept = at.does("dlq", "sweep", "--older-than", "0s", "--json")
        assert swept.code == ExitCode.FAILED
        assert (swept.document["subject"], swept.document["why"]) == ("cmd.default.demo.lock.acquire", "unaddressed")
        assert "meshforge run" in swept.document["do"]
        assert not [line for line in worker.said("serving", 2) if "lock" in line["scope"]]
    with at.served(env=ON) as worker:
        worker.said("serving", 3)
        eventually(lambda: len(told(at)) == 2, "what lay there is served, and ends")
    assert told(at)[0] == ("acquired", 1)
    with at.served():
        assert ask(at, "acquire", "bob", "--timeout", "0.5", ttl_seconds=1.0).code == ExitCode.OUTCOME_UNKNOWN
        swept = at.does("dlq", "sweep", "--older-than", "0s", "--json")
    assert (swept.document["subject"], swept.document["why"]) == ("cmd.default.demo.lock.acquire", "unattended")
