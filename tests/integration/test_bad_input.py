"""Bad input on a real server: each ends as a stored refusal that names what is wrong; the next command is served."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterator, MutableMapping, Sequence
from pathlib import Path
from typing import Any, Final

import orjson
import pytest
import structlog.testing
import trio

from chaos.observer import open_observer
from chaos.workload import command
from meshforge_trio.broker.bridge import ConnectOptions, connect
from meshforge_trio.broker.port import Message
from meshforge_trio.envelope import JsonObject, encode
from meshforge_trio.errors import Poison
from meshforge_trio.server import PrivateServer
from meshforge_trio.subjects import COMMANDS, command_subject

from .bad_input_world import (
    ADD,
    DEADLINE_S,
    PATIENT,
    SCOPE,
    World,
    answer,
    assert_dead,
    fields,
    only_key,
    raw,
    serving,
    subject_of,
)


@pytest.fixture
def log() -> Iterator[Sequence[MutableMapping[str, Any]]]:
    with structlog.testing.capture_logs() as entries:
        yield entries


@pytest.fixture
async def world(
    aio_loop: object, nats_server: PrivateServer, tmp_path: Path, log: Sequence[MutableMapping[str, Any]]
) -> AsyncIterator[World]:
    path = tmp_path / "store.db"
    connection = await connect(ConnectOptions(urls=(nats_server.url,)))
    try:
        async with open_observer(nats_server.url) as observer, serving(nats_server, path):
            yield World(observer, connection, path, log)
    finally:
        await connection.aclose()


# --- messages that are no command

PUBACK: Final = b'{"stream":"MESHFORGE_COMMANDS","seq":2}'
TOKENS: Final = ("*", ">", "a*b", "a.b", "a b", "a\0b", "", "a" * 65)

UNREADABLE: Final[dict[str, tuple[bytes, str, str | None]]] = {
    "empty": (b"", "not_json", "body"),
    "text": (b"hello", "not_json", "body"),
    "binary": (b"\xff\x00\xfe", "not_json", "body"),
    "array": (b"[]", "bad_shape", "body"),
    "string": (b'"add"', "bad_shape", "body"),
    "number": (b"5", "bad_shape", "body"),
    "null": (b"null", "bad_shape", "body"),
    "unknown field": (orjson.dumps(fields(colour="red")), "unknown_field", "colour"),
    "misdirected PubAck": (PUBACK, "unknown_field", "stream"),
    "no id": (orjson.dumps(fields(id=...)), "missing_field", "id"),
    "no key": (orjson.dumps(fields(idempotency_key=...)), "missing_field", "idempotency_key"),
    "no tenant": (orjson.dumps(fields(tenant=...)), "missing_field", "tenant"),
    "id a number": (orjson.dumps(fields(id=5)), "wrong_type", "id"),
    "payload a list": (orjson.dumps(fields(payload=[])), "wrong_type", "payload"),
    "ts a text": (orjson.dumps(fields(ts="now")), "wrong_type", "ts"),
    "id with a space": (orjson.dumps(fields(id="a b")), "bad_id", "id"),
    "long key": (orjson.dumps(fields(idempotency_key="k" * 257)), "bad_idempotency_key", "idempotency_key"),
    "key of the runtime": (orjson.dumps(fields(idempotency_key="raw:1")), "bad_idempotency_key", "idempotency_key"),
    "endless chain": (orjson.dumps(fields(correlation_id="c" * 900_000)), "bad_correlation_id", "correlation_id"),
    "negative version": (orjson.dumps(fields(expected_version=-1)), "bad_expected_version", "expected_version"),
    "version a text": (orjson.dumps(fields(expected_version="1")), "wrong_type", "expected_version"),
    "version a fraction": (orjson.dumps(fields(expected_version=1.0)), "wrong_type", "expected_version"),
    "NaN": (raw(b'{"amount":NaN}'), "not_json", "body"),
    "infinite": (raw(b'{"amount":1e999}'), "not_json", "body"),
    "huge integer": (raw(b'{"amount":18446744073709551616}'), "huge_integer", "body"),
    "very huge integer": (raw(b'{"amount":' + b"9" * 300 + b"}"), "huge_integer", "body"),
    "lone surrogate": (raw(b'{"amount":"\\ud800"}'), "not_json", "body"),
    "10k deep": (raw(b'{"amount":' + b"[" * 10_000 + b"]" * 10_000 + b"}"), "not_json", "body"),
    "too deep to hash": (raw(b'{"amount":' + b"[" * 500 + b"]" * 500 + b"}"), "not_canonical", "payload"),
    "too deep for its digits": (
        raw(b'{"n":1234567890123456789,"amount":' + b"[" * 1000 + b"]" * 1000 + b"}"),
        "not_canonical",
        "payload",
    ),
    **{f"tenant {t!r:.9}": (orjson.dumps(fields(tenant=t)), "bad_token", "tenant") for t in TOKENS},
    **{f"{f} {TOKENS[2]}": (orjson.dumps(fields(**{f: TOKENS[2]})), "bad_token", f) for f in ("workspace", "agent")},
    **{f"action {t!r:.9}": (orjson.dumps(fields(action=t)), "bad_token", "action") for t in TOKENS},
}


@pytest.mark.parametrize("name", UNREADABLE)
async def test_what_is_no_command_is_set_aside_by_name(world: World, name: str) -> None:
    body, code, field = UNREADABLE[name]
    with trio.fail_after(DEADLINE_S):
        await world.put(ADD, body)
        evidence = await world.end()
    letter = assert_dead(evidence, f"failed.{ADD.decode()}", body, code, field)
    if body.isascii() and len(body) < 500_000:
        assert letter["payload"].encode() == body


@pytest.mark.parametrize(
    ("verb", "failed", "field"),
    [
        (b"*", "*", "subject verb"),
        (b">", ">", "subject verb"),
        (b"a*b", "a*b", "subject verb"),
        (b"a.b", "a.b", "subject"),
        (b"a\0b", "a_b", "subject verb"),
        (b"a\x0bb", "a_b", "subject verb"),
        (b"a\xffb", "a\\xffb", "subject verb"),
        ("é".encode(), "_", "subject verb"),
        (b"a" * 65, "a" * 65, "subject verb"),
        (b"a" * 3000, "a" * 487, "subject verb"),
    ],
    ids=lambda value: f"{value!r:.9}",
)
async def test_a_subject_that_is_none_is_set_aside(world: World, verb: bytes, failed: str, field: str) -> None:
    body = orjson.dumps(fields(action=verb.decode(errors="replace")))
    with trio.fail_after(DEADLINE_S):
        await world.put(b"cmd.default.demo.counter." + verb, body)
        evidence = await world.end()
    code = "bad_subject" if field == "subject" else "bad_token"
    assert_dead(evidence, f"failed.cmd.default.demo.counter.{failed}", body, code, field)


async def test_a_puback_that_comes_as_a_command_is_set_aside(world: World) -> None:
    """A command whose reply subject lies in the command stream: the server's answer is stored as the next command."""
    good = encode(command(SCOPE, "add", 1, {"amount": 1}, entity_id="a"))
    with trio.fail_after(DEADLINE_S):
        await world.put(ADD, good, reply=ADD, stored=2)
        evidence = await world.end()
    assert [key.outcome for key in evidence.rows.keys if key.key == "k1"] == ["decided"]
    (letter,) = [orjson.loads(failed.body) for failed in evidence.failed]
    assert (letter["code"], letter["field"]) == ("unknown_field", "stream")
    assert orjson.loads(letter["payload"])["stream"] == COMMANDS


# --- messages that claim what is not theirs

MISMATCHED: Final[dict[str, tuple[JsonObject, str]]] = {
    "tenant": ({"tenant": "other"}, "scope_mismatch"),
    "workspace": ({"workspace": "other"}, "scope_mismatch"),
    "agent": ({"agent": "patient"}, "scope_mismatch"),
    "action": ({"action": "echo"}, "subject_mismatch"),
    "nobody": ({"security_context": ...}, "missing_security_context"),
    "nobody, said so": ({"security_context": None}, "missing_security_context"),
    "a text": ({"security_context": "kim"}, "bad_security_context"),
    "no type": ({"security_context": {"principal_id": "kim"}}, "bad_security_context"),
    "a god": ({"security_context": {"principal_id": "kim", "principal_type": "god"}}, "bad_security_context"),
    "no name": ({"security_context": {"principal_id": "", "principal_type": "user"}}, "bad_principal"),
    "a long name": ({"security_context": {"principal_id": "k" * 900_000, "principal_type": "user"}}, "bad_principal"),
    "a long type": (
        {"security_context": {"principal_id": "kim", "principal_type": "k" * 900_000}},
        "bad_security_context",
    ),
    "a long name elsewhere": (
        {"tenant": "other", "security_context": {"principal_id": "k" * 900_000, "principal_type": "user"}},
        "scope_mismatch",
    ),
    "a long cause": (
        {"security_context": {"principal_id": "kim", "principal_type": "user", "on_behalf_of": "k" * 900_000}},
        "bad_principal",
    ),
}


@pytest.mark.parametrize("name", MISMATCHED)
async def test_what_claims_too_much_is_a_violation(world: World, name: str) -> None:
    change, code = MISMATCHED[name]
    with trio.fail_after(DEADLINE_S):
        await world.put(ADD, orjson.dumps(fields(**change)))
        evidence = await world.end()
    record = only_key(evidence)
    assert record.outcome == "violation"
    assert record.key.startswith("raw:"), "it must not occupy the key it claims"
    output, payload = answer(evidence)
    assert output.subject == "evt.default.demo.security.violation"
    assert (payload["code"], payload["subject"]) == (code, ADD.decode())
    assert payload["reason"]
    assert len(output.body) < 10_000
    assert not evidence.failed


# --- commands that are understood and refused

REFUSED: Final[dict[str, tuple[JsonObject, str, str]]] = {
    "unknown action": ({"action": "subtract"}, "unknown_action", "action"),
    "payload without its field": ({"payload": {}}, "bad_payload", "payload"),
    "payload of another type": ({"payload": {"amount": "1"}}, "bad_payload", "payload"),
    "payload with more": ({"payload": {"amount": 1, "x" * 600_000: 1}}, "bad_payload", "payload"),
    "version without entity": (
        {"entity_id": ..., "expected_version": 1},
        "expected_version_without_entity",
        "expected_version",
    ),
    "a handler's no": ({"action": "raise", "payload": {"what": "refuse"}}, "no", "amount"),
    "a handler's long no": ({"action": "raise", "payload": {"what": "refuse_long"}}, "no", ""),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_cannot_be_done_is_refused_by_name(world: World, name: str) -> None:
    change, code, field = REFUSED[name]
    body = orjson.dumps(fields(**change))
    with trio.fail_after(DEADLINE_S):
        await world.put(subject_of(body), body)
        evidence = await world.end()
    assert (only_key(evidence).key, only_key(evidence).outcome) == ("k1", "refused")
    output, payload = answer(evidence)
    assert output.name == "refused"
    assert (payload["code"], payload["field"]) == (code, field or None)
    assert payload["reason"]
    assert not evidence.failed


# --- handlers

FAILING: Final[dict[str, tuple[str, str, str | None]]] = {
    **{f"return {what}": ("return", "nonsense", None) for what in ("none", "text")},
    "return payload": ("return", "attempts_exhausted", None),
    "return nan": ("return", "not_json", "payload"),
    "return huge": ("return", "not_json", "payload"),
    "return reserved": ("return", "reserved_event", None),
    "return unapplied": ("return", "unappliable", None),
    "return half": ("return", "unappliable", None),
    "return oversized": ("return", "oversized", "payload"),
    "return sends_oversized": ("return", "oversized", "payload"),
    "return sends_astray": ("return", "bad_token", "agent"),
    "raise explode": ("raise", "attempts_exhausted", None),
    "raise mumble": ("raise", "attempts_exhausted", None),
    "raise poison": ("raise", "never", "amount"),
    "raise refuse_astray": ("raise", "bad_token", "event name"),
}


@pytest.mark.parametrize("name", FAILING)
async def test_what_a_handler_does_wrong_is_set_aside(world: World, name: str) -> None:
    action, code, field = FAILING[name]
    body = orjson.dumps(fields(action=action, payload={"what": name.split()[1]}))
    with trio.fail_after(DEADLINE_S):
        await world.put(subject_of(body), body)
        evidence = await world.end()
    letter = assert_dead(evidence, f"failed.{subject_of(body).decode()}", body, code, field)
    assert letter["attempts"] == (2 if code == "attempts_exhausted" else 0)
    # Nothing of a decision that failed in part was kept.
    assert evidence.rows.heads[SCOPE, "a"].version == 1


async def test_a_handler_that_never_returns_is_cancelled_and_set_aside(world: World) -> None:
    body = encode(command(PATIENT, "sleep", 1, {}, entity_id="a"))
    with trio.fail_after(DEADLINE_S):
        await world.put(command_subject(PATIENT, "sleep").encode(), body)
        evidence = await world.end(PATIENT)
    subject = f"failed.{command_subject(PATIENT, 'sleep')}"
    letter = assert_dead(evidence, subject, body, "attempts_exhausted", None)
    assert "took longer than 0.2 s" in letter["reason"]
    assert letter["attempts"] == 2


async def test_a_query_that_fails_is_set_aside_each_time_it_is_sent(world: World) -> None:
    """Queries have no key, and clients send them again under the same id."""
    body = orjson.dumps(fields(action="get", payload={"explode": True}, idempotency_key=...))
    with trio.fail_after(DEADLINE_S):
        for _ in range(2):
            await world.put(subject_of(body), body)
            await world.observer.drained()
        evidence = await world.end()
    assert_dead(evidence, f"failed.{subject_of(body).decode()}", body, "attempts_exhausted", None)


# --- sizes


async def test_a_command_too_large_for_the_server_never_leaves(world: World) -> None:
    body = orjson.dumps(fields(payload={"amount": 1, "text": "x" * 2_000_000}))
    with trio.fail_after(DEADLINE_S):
        broker = await world.observer.broker()
        with pytest.raises(Poison) as caught:
            await broker.publish([Message(ADD.decode(), body, "c1")], 5.0)
        assert (caught.value.code, caught.value.field) == ("too_large", "payload")
        evidence = await world.end()
    assert [key.key for key in evidence.rows.keys] == ["k900"]


@pytest.mark.parametrize("filling", ["x", "\x01"])
async def test_a_command_whose_event_would_be_too_large_is_set_aside(world: World, filling: str) -> None:
    """The largest message the server takes: an event has more to say than its command, and a letter even more."""
    empty = orjson.dumps(fields(action="echo", payload={"text": ""}))
    width = len(orjson.dumps(filling)) - 2
    body = orjson.dumps(fields(action="echo", payload={"text": filling * ((1_048_576 - len(empty)) // width)}))
    with trio.fail_after(DEADLINE_S):
        await world.put(subject_of(body), body)
        evidence = await world.end()
    letter = assert_dead(evidence, f"failed.{subject_of(body).decode()}", body, "oversized", "payload")
    # Too large to travel in the letter; the store keeps it whole.
    assert "payload" not in letter
    assert letter["payload_sha256"] == hashlib.sha256(body).hexdigest()


async def test_many_bad_ones_at_once_do_not_hold_up_the_good(world: World) -> None:
    bad = [body for body, _, _ in UNREADABLE.values()]
    with trio.fail_after(DEADLINE_S):
        for body in bad:
            world.connection.write(b"PUB %b  %d\r\n%b\r\n" % (ADD, len(body), body))
        await world.connection.round_trip(DEADLINE_S)
        evidence = await world.end()
    different = len(set(bad))
    assert (len(evidence.failed), len(evidence.rows.dead)) == (different, different)
    assert len({message.msg_id for message in evidence.failed}) == different
