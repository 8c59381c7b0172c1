"""The command line against a real server and real worker processes."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import apsw
import attrs
import pytest
import structlog

from meshforge_trio.cli import main
from meshforge_trio.policy import ExitCode
from meshforge_trio.server import PrivateServer

from .cli_world import Result, Shop, alive, eventually, shop


@pytest.fixture
def at(tmp_path: Path, nats_server: PrivateServer) -> Shop:
    return shop(tmp_path, nats_server.url)


@attrs.frozen
class Inline(Shop):
    """Runs commands in this process, which is faster."""

    patch: pytest.MonkeyPatch
    capture: pytest.CaptureFixture[str]

    def does(self, *args: str, stdin: str = "", env: dict[str, str] | None = None) -> Result:
        assert not stdin
        with self.patch.context() as patch:
            patch.chdir(self.home)
            patch.setattr(sys, "path", sys.path[:])
            patch.setattr(sys, "argv", ["meshforge", *args])
            patch.setattr(os, "environ", self.environment(env))
            with pytest.raises(SystemExit) as ended:
                main()
        for name in ("shop", "broken"):
            sys.modules.pop(name, None)
        out, err = self.capture.readouterr()
        assert isinstance(ended.value.code, int)
        return Result(ended.value.code, out, err)


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Shop]:
    """A place without a server."""
    made = shop(tmp_path, "nats://127.0.0.1:9")
    root = logging.getLogger()
    handlers = root.handlers[:]
    yield Inline(made.home, made.url, monkeypatch, capsys)
    structlog.reset_defaults()
    root.handlers[:] = handlers


# --- the round trip


def test_run_send_call_events_state_replay_hash(at: Shop) -> None:
    with at.served() as worker:
        sent = at.answers("send", "order", "create", '{"items": 1}', "--entity", "o-1", "--key", "k-1")
        assert (sent["idempotency_key"], sent["duplicate"]) == ("k-1", False)
        again = at.does(
            "call", "order", "create", "-", "--entity", "o-1", "--key", "k-1", "--json", stdin='{"items":1}'
        )
        assert again.document["payload"] == {"items": 1, "entity_version": 1}
        for items in (2, 3):
            updated = at.answers("call", "order", "update", f'{{"items": {items}}}', "--entity", "o-1")
        assert updated["payload"] == {"items": 3, "entity_version": 3}
        found = at.answers("call", "order", "get", "--entity", "o-1")
        assert (found["name"], found["payload"]["items"]) == ("found", 3)
        assert at.does("call", "inventory", "create", "--entity", "i-1").code == ExitCode.OK

        # While the worker serves: read-only, and no lease changes hands.
        events = at.does("events", "--agent", "order", "--json").documents
        assert [event["envelope"]["name"] for event in events] == ["created", "updated", "updated"]
        later = at.does("events", "--agent", "order", "--entity", "o-1", "--after", "1", "--json").documents
        assert [event["version"] for event in later] == [2, 3]
        state = at.answers("state", "order", "o-1", "--app", "shop:app", "--at", "2")
        assert (state["state"], state["entity_version"]) == ({"items": 2}, 2)
        assert state["chain"] == events[1]["chain"]
        assert at.answers("state", "order", "o-1", "--app", "shop:app")["state"] == {"items": 3}
        live = {d["scope"]: d["state_hash"] for d in at.does("hash", "--app", "shop:app", "--json").documents}
        assert at.answers("call", "order", "get", "--entity", "o-1")["payload"]["items"] == 3
        assert [line["epoch"] for line in worker.said("serving")] == [1, 1]
        worker.process.send_signal(signal.SIGTERM)
        assert worker.ended() == ExitCode.OK

    replayed = at.does("replay", "--app", "shop:app", "--json")
    assert replayed.code == ExitCode.OK
    assert {d["scope"]: d["state_hash"] for d in replayed.documents} == live
    assert {d["scope"]: d["recorded"] for d in replayed.documents} == live
    order = next(d for d in replayed.documents if d["scope"] == "default/demo/order")
    assert (order["entities"], order["events"], order["first_difference"]) == (1, 3, None)


def test_results_for_people_name_the_same(at: Shop) -> None:
    with at.served():
        assert "stored: id " in at.does("send", "order", "create", "--entity", "o-1").out
        assert "order.found o-1" in at.does("call", "order", "get", "--entity", "o-1").out
    (line,) = [line for line in at.does("events").out.splitlines() if "created" in line]
    assert "o-1" in line
    assert "version 1" in at.does("state", "order", "o-1", "--app", "shop").out
    assert "1 entities, 1 events" in at.does("replay", "--app", "shop", "--scope", "default/demo/order").out
    (line,) = at.does("hash", "--app", "shop", "--scope", "default/demo/order").out.splitlines()
    assert line.endswith("  default/demo/order")
    assert len(line.split()[0]) == 64


def test_call_tells_what_went_wrong_by_its_exit_code(at: Shop) -> None:
    with at.served():
        assert at.does("call", "order", "create", "--entity", "o-1").code == ExitCode.OK
        refused = at.does("call", "order", "create", "--entity", "o-1", "--json")
        assert (refused.code, refused.document["name"]) == (ExitCode.FAILED, "refused")
        conflict = at.does("call", "order", "update", "--entity", "o-1", "--expected-version", "7")
        assert conflict.code == ExitCode.FAILED
        assert "conflict" in conflict.err
        silence = at.does("call", "nobody", "create", "--timeout", "0.5", "--key", "mine")
        assert silence.code == ExitCode.OUTCOME_UNKNOWN
        assert "outcome is unknown" in silence.err
        assert "'mine'" in silence.err
    silence = at.does("call", "order", "get", "--entity", "o-1", "--timeout", "0.5")
    assert silence.code == ExitCode.OUTCOME_UNKNOWN


def test_tail_follows_and_ends_when_told(at: Shop) -> None:
    with at.served(), at.starts("tail", "--agent", "order", "--name", "created", "--from-start", "--json") as tail:
        names = []
        assert tail.process.stdout is not None
        for entity in ("o-1", "o-2"):
            at.answers("call", "order", "create", "--entity", entity)
            at.answers("call", "inventory", "create", "--entity", entity)
            names.append(json.loads(tail.process.stdout.readline())["entity_id"])
        assert names == ["o-1", "o-2"]
        tail.process.send_signal(signal.SIGINT)
        assert tail.ended() == ExitCode.OK
        counted = at.does("tail", "--from-start", "--count", "3", "--json")
        assert [event["agent"] for event in counted.documents] == ["order", "inventory", "order"]


# --- signals


def test_sigterm_finishes_what_is_in_hand(at: Shop) -> None:
    keys = ["k-1", "k-2", "k-3"]
    with at.served() as worker:
        for key in keys:
            assert at.does("send", "order", "slow", '{"s": 1}', "--entity", key, "--key", key).code == ExitCode.OK
        eventually((at.home / "slow-k-1").exists, "the first one is in hand")
        worker.process.send_signal(signal.SIGTERM)
        assert worker.ended() == ExitCode.OK
        worker.said("drained")
    with at.served():
        for key in keys:
            answer = at.answers("call", "order", "slow", '{"s": 1}', "--entity", key, "--key", key)
            assert answer["name"] == "accepted"
    stored = [d["envelope"]["idempotency_key"] for d in at.does("events", "--all", "--json").documents]
    assert stored == keys


def test_the_second_interrupt_ends_at_once(at: Shop) -> None:
    with at.served() as worker:
        at.answers("send", "order", "slow", '{"s": 3600}', "--entity", "o-1")
        eventually((at.home / "slow-o-1").exists, "a handler blocks the worker")

        def interrupted() -> bool:
            # Two of one kind may arrive as one, so as many as it takes.
            worker.process.send_signal(signal.SIGINT)
            return worker.process.poll() is not None

        eventually(interrupted, "its end")
        assert worker.ended() == ExitCode.INTERRUPTED


# --- what is refused, and how


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("nosuch:app", "module 'nosuch' cannot be imported: ModuleNotFoundError: No module named 'nosuch'"),
        ("broken:app", "module 'broken' cannot be imported: ZeroDivisionError: division by zero"),
        ("shop:nothing", "module 'shop' has no attribute 'nothing'; apps and agents in it: "),
        ("shop:App", "it must be an App, an agent, or a list of agents"),
        (":app", "is not <module>:<attribute>"),
    ],
)
@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_app_that_cannot_be_loaded(offline: Shop, spec: str, told: str, workers: str) -> None:
    (offline.home / "broken.py").write_text("1 / 0\n")
    result = offline.does("run", spec, "--workers", workers)
    assert result.code == ExitCode.MISCONFIGURED
    assert told in result.err
    assert "Traceback" not in result.err


def test_debug_shows_where(tmp_path: Path) -> None:
    result = shop(tmp_path, "nats://127.0.0.1:9").does("--debug", "run", "nosuch:app")
    assert result.code == ExitCode.MISCONFIGURED
    assert "Traceback" in result.err
    assert "load_app" in result.err


@pytest.mark.parametrize(
    "args",
    [
        ("call", "order", "create", "{nope"),
        ("call", "order", "create", "[]"),
        ("call", "order", "create", '{"n": NaN}'),
        ("call", "or.der", "create"),
        ("call", "security", "create"),
        ("send", "order", "create", "--expected-version", "-1"),
        ("events", "--entity", "o-1"),
        ("replay", "--app", "shop", "--scope", "order"),
        ("run",),
        ("schema", "answer"),
        ("nosuch",),
    ],
)
def test_wrong_usage(offline: Shop, args: tuple[str, ...]) -> None:
    offline.store.parent.mkdir()
    apsw.Connection(str(offline.store)).close()
    result = offline.does(*args)
    assert result.code in (ExitCode.USAGE, ExitCode.MISCONFIGURED), result
    assert result.out == ""
    assert "Traceback" not in result.err


def test_an_unknown_key_is_told_with_the_nearest(offline: Shop) -> None:
    (offline.home / "meshforge.toml").write_text("[engine]\nbathc = 1\n")
    result = offline.does("run", "shop:app")
    assert result.code == ExitCode.MISCONFIGURED
    assert "meshforge.toml: unknown key 'engine.bathc'; the nearest known one is 'engine.batch'" in result.err
    (offline.home / "meshforge.toml").unlink()
    result = offline.does("call", "order", "get", env={"MESHFORGE_WORKSPACE": "a/b"})
    assert result.code == ExitCode.MISCONFIGURED
    assert "'MESHFORGE_WORKSPACES'" in result.err


def test_no_server_is_told_with_what_to_do(offline: Shop) -> None:
    result = offline.does("call", "order", "get", "--entity", "o-1")
    assert result.code == ExitCode.FAILED
    assert "127.0.0.1:9" in result.err
    assert "meshforge nats" in result.err
    assert len(result.err.splitlines()) == 1


@pytest.mark.parametrize("args", [("events",), ("state", "order", "o", "--app", "shop"), ("hash", "--app", "shop")])
def test_no_store_is_told_and_none_is_made(offline: Shop, args: tuple[str, ...]) -> None:
    result = offline.does(*args)
    assert result.code == ExitCode.MISCONFIGURED
    assert "there is no store" in result.err
    assert not offline.store.exists()


def test_a_foreign_or_damaged_file_is_told(offline: Shop) -> None:
    offline.store.parent.mkdir()
    offline.store.write_bytes(b"x" * 8192)
    result = offline.does("events")
    assert result.code == ExitCode.STORE_BROKEN
    assert "damaged or not a database" in result.err
    offline.store.unlink()
    other = apsw.Connection(str(offline.store))
    other.execute("CREATE TABLE mine(x)")
    other.close()
    result = offline.does("events")
    assert result.code == ExitCode.MISCONFIGURED
    assert "no event store of this version" in result.err


def test_what_is_not_there_is_told(at: Shop) -> None:
    with at.served():
        at.answers("call", "order", "create", "--entity", "o-1")
    for args, code, told in (
        (("state", "order", "o-2", "--app", "shop"), ExitCode.FAILED, "'o-2' has no events"),
        (("state", "order", "o-1", "--app", "shop", "--at", "2"), ExitCode.FAILED, "has version 1, not 2"),
        (("state", "nobody", "o-1", "--app", "shop"), ExitCode.MISCONFIGURED, "no agent 'nobody'; it has: inv"),
        (("events", "--agent", "nobody"), ExitCode.MISCONFIGURED, "no scope default/demo/nobody; it has: default/"),
        (("hash", "--app", "shop", "--scope", "t/w/order"), ExitCode.MISCONFIGURED, "no scope t/w/order"),
        (("replay", "--app", "shop", "--workspace", "a/b"), ExitCode.MISCONFIGURED, "no scope of that workspace"),
        (("replay", "--app", "shop:order"), ExitCode.MISCONFIGURED, "the app has no agent 'inventory'"),
    ):
        result = at.does(*args)
        assert result.code == code, (args, result)
        assert told in result.err


# --- replay finds what was tampered with


def test_replay_names_the_event_that_was_changed(at: Shop) -> None:
    with at.served():
        for entity in ("o-1", "o-2", "o-3"):
            at.answers("call", "order", "create", '{"items": 1}', "--entity", entity)
        changed = at.answers("call", "order", "update", '{"items": 2}', "--entity", "o-2")
        at.answers("call", "order", "update", '{"items": 3}', "--entity", "o-2")
    connection = apsw.Connection(str(at.store))
    connection.execute(
        "UPDATE outputs SET body = CAST(replace(CAST(body AS TEXT), '\"items\":2', '\"items\":9') AS BLOB)"
        " WHERE event_id = ?",
        (changed["id"],),
    )
    assert connection.changes() == 1
    connection.close()
    result = at.does("replay", "--app", "shop", "--json")
    assert result.code == ExitCode.FAILED
    order = next(d for d in result.documents if d["scope"] == "default/demo/order")
    difference = order["first_difference"]
    assert (difference["entity_id"], difference["version"], difference["event_id"]) == ("o-2", 2, changed["id"])
    assert len(difference["expected"]) == len(difference["got"]) == 64
    told = at.does("replay", "--app", "shop")
    assert told.code == ExitCode.FAILED
    assert f"entity 'o-2' version 2, event {changed['id']}: chain differs" in told.out


def test_replay_compares_with_the_state_that_was_served(at: Shop) -> None:
    with at.served() as worker:
        at.answers("call", "order", "create", '{"items": 1}', "--entity", "o-1")
        worker.process.send_signal(signal.SIGTERM)
        assert worker.ended() == ExitCode.OK
    with apsw.Connection(str(at.store)) as connection:
        connection.execute("UPDATE state_hashes SET state_hash = ?", ("0" * 64,))
        assert connection.changes() == 2
    told = at.does("replay", "--app", "shop")
    assert told.code == ExitCode.FAILED
    assert f"the state rebuilt is not the state that was served: {'0' * 64}, got" in told.out


def test_the_store_is_readable_after_a_kill(at: Shop) -> None:
    with at.served() as worker:
        at.answers("call", "order", "create", '{"items": 1}', "--entity", "o-1")
        worker.process.kill()
        worker.ended()
        before = {
            path.name: path.read_bytes() for path in at.store.parent.iterdir() if path.name.endswith(("db", "wal"))
        }
        assert at.does("replay", "--app", "shop").code == ExitCode.OK
        assert at.answers("state", "order", "o-1", "--app", "shop")["state"] == {"items": 1}
        after = {
            path.name: path.read_bytes() for path in at.store.parent.iterdir() if path.name.endswith(("db", "wal"))
        }
        assert before == after, "looking at a corpse must not change it"


# --- the rest


def test_nats_serves_until_it_is_told_to_end(offline: Shop) -> None:
    with offline.starts("nats", "--port", "0", "--json") as server:
        assert server.process.stdout is not None
        told = json.loads(server.process.stdout.readline())
        there = Shop(offline.home, told["url"])
        with there.served():
            assert there.does("call", "order", "create", "--entity", "o-1").code == ExitCode.OK
        server.process.send_signal(signal.SIGTERM)
        assert server.ended() == ExitCode.OK
        eventually(lambda: not alive(told["pid"]), "nats-server ends")
        assert not Path(told["store"]).exists()


def test_nats_keeps_a_store_directory_that_was_named(offline: Shop) -> None:
    kept = offline.home / "streams"
    with offline.starts("nats", "--port", "0", "--store-dir", str(kept), "--sync-always") as server:
        assert server.process.stdout is not None
        assert server.process.stdout.readline().startswith(b"nats://127.0.0.1:")
        server.process.send_signal(signal.SIGINT)
        assert server.ended() == ExitCode.OK
    assert (kept / "jetstream").is_dir()


def test_a_reader_that_has_had_enough_is_no_error(at: Shop) -> None:
    with at.served():
        for entity in ("o-1", "o-2"):
            at.answers("call", "order", "create", "--entity", entity)
        with at.starts("tail", "--from-start", "--json") as tail:
            assert tail.process.stdout is not None
            tail.process.stdout.readline()
            tail.process.stdout.readline()
            tail.process.stdout.close()
            at.answers("call", "order", "create", "--entity", "o-3")
            assert tail.ended() == ExitCode.OK
            assert tail.log.read_text() == ""


def test_schema_and_help(offline: Shop) -> None:
    command = offline.answers("schema", "command")
    assert command["title"] == "CommandEnvelope"
    assert offline.answers("schema")["command"] == command
    help_text = offline.does("--help").out
    for code in (0, 1, 2, 3, 4, 5, 6, 130):
        assert f" {code}  " in help_text
    assert offline.does("run", "--help").code == ExitCode.OK
