"""Dead letters through the command line, with a real server and real workers: looked at, redriven, discarded."""

from __future__ import annotations

from base64 import b64decode
from pathlib import Path
from typing import Final

import orjson
import pytest

from meshforge_trio.policy import ExitCode
from meshforge_trio.server import PrivateServer

from .cli_world import Shop, eventually
from .dlq_world import (
    dead_shop,
    events,
    listed,
    mend,
    on_terminal,
    outcomes,
    publish,
    redrive,
    send,
    stop,
    total_of,
    waits,
)


@pytest.fixture
def at(tmp_path: Path, nats_server: PrivateServer) -> Shop:
    return dead_shop(tmp_path, nats_server.url)


# --- the round trip


def test_poison_is_mended_and_redriven_once(at: Shop) -> None:
    with at.served() as worker:
        send(at, "k-1", "k-2")
        send(at, "k-3", entity_id="t-2")
        first, second, third = waits(at, 3)
        stop(worker)
    assert [(d["key"], d["code"], d["state"], d["generation"]) for d in (first, second, third)] == [
        ("k-1", "broken", "waiting", 0),
        ("k-2", "broken", "waiting", 0),
        ("k-3", "broken", "waiting", 0),
    ]
    mend(at)
    with at.served() as worker:
        foretold = at.does("dlq", "redrive", "--agent", "total", "--dry-run", "--json")
        assert [d["prediction"] for d in foretold.documents] == ["would_run"] * 3
        assert total_of(at) == 0
        done = redrive(at, "--entity", "t-1", "--timeout", "60")
        assert done.code == ExitCode.OK, done
        assert outcomes(done) == {"k-1": "done", "k-2": "done"}
        assert "2 decided" in done.err
        assert (total_of(at), total_of(at, "t-2")) == (4, 0)
        again = redrive(at, "k-1", "k-2", "k-3", reason="again, in other words")
        assert again.code == ExitCode.OK, again
        assert outcomes(again) == {"k-1": "already", "k-2": "already", "k-3": "done"}
        assert (total_of(at), total_of(at, "t-2")) == (4, 2)
        # The first sending, once more, hears what came of the redriven one.
        answer = at.answers("call", "total", "add", '{"amount": 2}', "--entity", "t-1", "--key", "k-1")
        assert answer["name"] == "added"
        assert total_of(at) == 4
        told = [(e["payload"]["key"], e["payload"]["actor"], e["payload"]["reason"]) for e in events(at, "redriven")]
        assert told == [
            ("k-1", "kim", "the shelf is mended"),
            ("k-2", "kim", "the shelf is mended"),
            ("k-3", "kim", "again, in other words"),
        ]
        assert not listed(at)
        assert [d["key"] for d in listed(at, "--state", "redriven")] == ["k-1", "k-2", "k-3"]
        assert "its key is decided now" in at.does("dlq", "show", "k-1").out


def test_what_a_redrive_would_come_to(at: Shop) -> None:
    with at.served() as worker:
        send(at, "k-run")
        send(at, "k-conflict", entity_id="t-c", expected_version=0)
        send(at, "k-held", entity_id="t-h")
        publish(at, "cmd.default.demo.total.add", b"\xff\x00 no json")
        waits(at, 4)
        assert at.answers("call", "total", "plus", "--entity", "t-c")["payload"]["entity_version"] == 1
        stop(worker)
    with at.served(env={"DELAY_S": "3600"}) as worker:
        send(at, "k-fails", action="explode", entity_id="t-h")
        # An answer behind it: the failure is stored by now.
        eventually(lambda: "held" in at.does("dlq", "redrive", "--all", "--dry-run").out, "it waits")
        foretold = at.does("dlq", "redrive", "--all", "--dry-run", "--json")
        assert foretold.code == ExitCode.OK
        raw = next(d["key"] for d in foretold.documents if d["key"].startswith("raw:"))
        assert {d["key"]: d["prediction"] for d in foretold.documents} == {
            "k-run": "would_run",
            "k-conflict": "would_conflict",
            "k-held": "held",
            raw: "not_redrivable",
        }
        why = {d["key"]: d["why"] for d in foretold.documents}
        assert why["k-conflict"] == "it expects version 0, 't-c' is at 1"
        assert "behind 'k-fails', which fails: RuntimeError: boom" in why["k-held"]
        assert "1 would run" in foretold.err
        assert not events(at, "redriven"), "nothing was sent"
        refused = redrive(at, raw)
        assert (refused.code, outcomes(refused)) == (ExitCode.FAILED, {raw: "refused"})
        assert "mend its sender" in refused.document["text"]
        stop(worker)
    mend(at)
    with at.served():
        done = redrive(at, "k-run", "k-conflict", "k-held")
        assert (done.code, outcomes(done)) == (ExitCode.OK, dict.fromkeys(["k-run", "k-conflict", "k-held"], "done"))
        assert len(events(at, "conflict")) == 1
        after = at.does("dlq", "redrive", "k-run", raw, "--dry-run", "--json").documents
        assert {d["key"]: d["prediction"] for d in after} == {"k-run": "already_applied", raw: "not_redrivable"}


def test_what_dies_again_can_be_redriven_again(at: Shop) -> None:
    with at.served("--workers", "1"):
        send(at, "k-1", action="explode")
        waits(at, 1)
        again = redrive(at, "k-1", "--timeout", "60")
        assert (again.code, outcomes(again)) == (ExitCode.FAILED, {"k-1": "done"})
        assert "1 dead again" in again.err
        (letter,) = waits(at, 1)
        assert letter["generation"] == 1
        shown = at.does("dlq", "show", "k-1")
        assert "generation  1" in shown.out
        assert "generation 0: redriven, attempts_exhausted" in shown.out
        assert at.answers("dlq", "show", "k-1", "--generation", "0")["state"] == "redriven"
    mend(at)
    with at.served():
        assert redrive(at, "k-1").code == ExitCode.OK
        assert total_of(at) == 2


def test_an_event_is_redriven_to_whom_it_failed(at: Shop) -> None:
    with at.served() as worker:
        assert at.does("call", "order", "create", "--entity", "o-1").code == ExitCode.OK
        (letter,) = waits(at, 1)
        assert letter["subject"] == "evt.default.demo.order.created"
        stop(worker)
    mend(at)
    with at.served():
        assert redrive(at, "--all").code == ExitCode.OK
        assert total_of(at, "o-1") == 1
        assert len(events(at, "created")) == 1, "nobody else hears of it again"


# --- what a person sees


def test_a_dead_letter_is_shown_whole(at: Shop) -> None:
    with at.served("--workers", "2") as worker:
        send(at, "k-1")
        send(at, "k-2", action="die", entity_id="t-2")
        publish(at, "cmd.default.demo.total.add", b"\xff\x1b[31m")
        letters = {d["key"]: d for d in waits(at, 3)}
        stop(worker)
    raw = next(key for key in letters if key.startswith("raw:"))
    shown = at.does("dlq", "show", "k-1").out
    assert "reason      the shelf [red] is broken\\n" in shown
    assert '"idempotency_key": "k-1",' in shown
    assert "subject     cmd.default.demo.total.add" in shown
    assert "Nats-Msg-Id: " in shown
    died = at.does("dlq", "show", "k-2").out
    assert died.count("its process died") >= 2
    assert "\x1b" not in at.does("dlq", "show", raw).out
    assert "ff1b5b33316d" in at.does("dlq", "show", raw).out
    table = at.does("dlq", "list").out
    assert "the shelf [red] is broken\\n" in table
    assert len(table.splitlines()) == 4
    by_code = listed(at, "--error", "attempts_exhausted")
    assert [d["key"] for d in by_code] == ["k-2"]
    assert [d["key"] for d in listed(at, "--error", "SHELF")] == ["k-1"]
    assert [d["key"] for d in listed(at, "--entity", "t-2")] == ["k-2"]
    assert len(listed(at, "--newer-than", "1h")) == 3
    assert not listed(at, "--older-than", "1h")
    assert not listed(at, "--agent", "order")
    assert not listed(at, "--workspace", "else/where")


def test_export_is_whole_or_not_at_all(at: Shop) -> None:
    with at.served() as worker:
        send(at, "k-1")
        publish(at, "cmd.default.demo.total.add", b"\xff\x00")
        waits(at, 2)
        stop(worker)
    target = at.home / "dead.jsonl"
    assert at.does("dlq", "export", str(target)).code == ExitCode.OK
    first, second = [orjson.loads(line) for line in target.read_bytes().splitlines()]
    assert orjson.loads(first["payload"])["payload"] == {"amount": 2}
    assert (first["payload_encoding"], second["payload_encoding"]) == ("utf-8", "base64")
    assert b64decode(second["payload"]) == b"\xff\x00"
    assert first["headers"].startswith("NATS/1.0\r\nNats-Msg-Id: ")
    assert target.stat().st_mode & 0o777 == 0o600
    before = target.read_bytes()
    refused = at.does("dlq", "export", str(target), "--error", "broken")
    assert (refused.code, target.read_bytes()) == (ExitCode.FAILED, before)
    assert "--force" in refused.err
    assert at.does("dlq", "export", str(target), "--error", "broken", "--force").code == ExitCode.OK
    piped = at.does("dlq", "export", "-", "--error", "broken")
    assert piped.out.encode() == target.read_bytes() == before.splitlines(keepends=True)[0]
    assert at.does("dlq", "export", str(at.home / "no" / "such")).code == ExitCode.MISCONFIGURED
    assert [path.name for path in at.home.iterdir() if path.name.startswith(".dead")] == []


# --- discard


def test_what_is_discarded_stays_dead(at: Shop) -> None:
    with at.served() as worker:
        send(at, "k-1", "k-2")
        waits(at, 2)
        reason = ("--reason", "the customer is gone", "--actor", "kim")
        done = at.does("dlq", "discard", "k-1", *reason, "--json")
        assert (done.code, outcomes(done)) == (ExitCode.OK, {"k-1": "done"})
        assert outcomes(at.does("dlq", "discard", "k-1", *reason, "--json")) == {"k-1": "already"}
        late = redrive(at, "k-1")
        assert (late.code, outcomes(late)) == (ExitCode.FAILED, {"k-1": "refused"})
        assert late.document["text"] == "it was discarded before"
        (told,) = events(at, "discarded")
        assert told["payload"] == {"key": "k-1", "generation": 0, "actor": "kim", "reason": "the customer is gone"}
        assert at.answers("dlq", "show", "k-1")["state"] == "discarded"
        assert [d["key"] for d in listed(at)] == ["k-2"]
        answer = at.does("call", "total", "add", '{"amount": 2}', "--entity", "t-1", "--key", "k-1", "--json")
        assert answer.document["name"] == "dead_lettered"
        stop(worker)


@pytest.mark.parametrize(("typed", "code", "left"), [("n", ExitCode.FAILED, 1), ("y", ExitCode.OK, 0)])
def test_a_terminal_is_asked(at: Shop, typed: str, code: int, left: int) -> None:
    with at.served():
        send(at, "k-1")
        waits(at, 1)
        result = on_terminal(at, typed, "dlq", "discard", "--all", "--reason", "no use", "--json")
        assert result.code == code
        assert "discard 1 dead letters?" in result.err
        # The progress bar takes nothing of what is for machines.
        assert outcomes(result) == ({} if left else {"k-1": "done"})
        assert ("100%" in result.err) is not bool(left)
        if not left:
            again = on_terminal(at, typed, "dlq", "discard", "k-1", "--reason", "no use")
            assert "k-1: already: it was discarded before" in again.out
        waits(at, left) if left else eventually(lambda: not listed(at), "none waits")


# --- what is refused


REFUSED: Final[tuple[tuple[tuple[str, ...], int, str], ...]] = (
    (("show", "nosuch"), ExitCode.FAILED, "there is no such dead letter: 'nosuch'"),
    (
        ("redrive", "k-1", "nosuch", "--agent", "total", "--reason", "x"),
        ExitCode.FAILED,
        "there is no such dead letter: 'nosuch'",
    ),
    (("show", "k-1"), ExitCode.USAGE, "default/demo/inventory and default/demo/total both have a dead letter"),
    (("redrive", "k-1", "--reason", "x"), ExitCode.USAGE, "say which with --agent, or --workspace"),
    (("redrive", "--reason", "x"), ExitCode.USAGE, "KEYs, filters, or --all"),
    (("redrive", "--workspace", "default/demo", "--reason", "x"), ExitCode.USAGE, "KEYs, filters, or --all"),
    (("redrive", "--error", "", "--reason", "x"), ExitCode.USAGE, "a filter is empty"),
    (("redrive", "--all"), ExitCode.USAGE, "give --reason: who does it and why is stored"),
    (("discard", "--all", "--reason", " "), ExitCode.USAGE, "give --reason: who does it and why is stored"),
    (("discard", "--all", "--reason", "x" * 2001), ExitCode.USAGE, "--reason has 2001 characters"),
    (("list", "--older-than", "5"), ExitCode.USAGE, "'5' is no age: write 30s, 15m, 2h or 7d"),
    (("list", "--newer-than", "-1h"), ExitCode.USAGE, "is no age"),
    (("list", "--agent", "a.b"), ExitCode.USAGE, "is not a subject token"),
    (("list", "--state", "gone"), ExitCode.USAGE, "'gone' is not one of"),
    (("redrive", "--all", "--reason", "x", "--rate", "0"), ExitCode.USAGE, "is no rate"),
    (("redrive", "--all", "--reason", "x", "--actor", "y" * 257), ExitCode.USAGE, "--actor has 257 characters"),
    (("redrive", "--all", "--reason", "\udcff"), ExitCode.USAGE, "--reason is not UTF-8"),
    (("sweep", "--delete"), ExitCode.USAGE, "--delete needs --export FILE"),
    (("list", "--store", "nosuch.db"), ExitCode.MISCONFIGURED, "there is no store nosuch.db"),
)


def test_what_is_refused(at: Shop) -> None:
    with at.served():
        send(at, "k-1")
        send(at, "k-1", agent="inventory")
        waits(at, 2)
        for args, code, told in REFUSED:
            result = at.does("dlq", *args)
            assert (args, result.code) == (args, code), result
            assert told in result.err + result.out
            assert "Traceback" not in result.err
        assert len(listed(at)) == 2
        assert outcomes(redrive(at, "k-1", "--agent", "total")) == {"k-1": "done"}
