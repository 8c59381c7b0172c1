"""Workloads: numbered commands with what is known of them beforehand."""

from __future__ import annotations

import pytest

from chaos.workload import GARBAGE, SCOPE, Workload, command, every_path, garbage_key, trespass
from meshforge_trio.broker.port import Delivery
from meshforge_trio.envelope import SecurityContext, encode, payload_hash
from meshforge_trio.security import check
from meshforge_trio.subjects import COMMANDS, DISCARD, REDRIVE, Scope, parse_subject


def test_commands_are_numbered_as_they_are_added() -> None:
    commands = Workload("acme/main")
    first = commands.send("parcel", "register", {"to": "Ada"}, entity="p-1", expect=["decided"])
    query = commands.send("parcel", "get", entity="p-1", query=True)
    again = commands.again(first, phase="after")
    last = commands.send("parcel", "roll", key="mine", expected_version=2, repeatable=False, phase="after")
    assert list(commands) == [first, query, again, last]
    assert (len(commands), commands[0], commands[1:3]) == (4, first, [query, again])
    assert [sent.command.id for sent in commands] == ["c1", "c2", "c3", "c4"]
    assert [sent.key for sent in commands] == ["k1", "", "k1", "mine"]
    assert first.scope == Scope("acme", "main", "parcel")
    assert (first.command.entity_id, first.command.payload, first.expect) == ("p-1", {"to": "Ada"}, ("decided",))
    # The same command as a client sends it that never saw its answer.
    assert (again.digest, again.phase, first.phase) == (payload_hash(first.command), "after", "main")
    assert (last.command.expected_version, last.repeatable, last.query) == (2, False, False)
    assert (query.query, query.command.idempotency_key) == (True, None)


def test_every_path_has_every_kind_of_command() -> None:
    workload = every_path()
    assert len({sent.command.id for sent in workload}) == len(workload)
    assert {outcome for sent in workload for outcome in sent.expect} == {"decided", "conflict", "refused", "dead"}
    assert {sent.phase for sent in workload} == {"main", "after"}
    assert any(sent.query for sent in workload)
    assert any(not sent.repeatable for sent in workload)
    elsewhere = every_path(Scope("other", "demo", "counter"))
    assert [sent.command.id for sent in elsewhere] == [sent.command.id for sent in workload]
    assert {sent.scope.tenant for sent in elsewhere} == {"other"}


def test_an_operator_decides_the_fate_of_a_dead_letter() -> None:
    commands = Workload("acme/main")
    first = commands.send("parcel", "deliver", entity="p-1", expect=["dead"])
    redriven = commands.redrive("parcel", first.key, 1, phase="after")
    discarded = commands.discard("parcel", "raw:1", expect=["refused"])
    assert list(commands) == [first, redriven, discarded]
    assert [sent.command.action for sent in commands] == ["deliver", REDRIVE, DISCARD]
    assert redriven.command.payload == {"key": "k1", "generation": 1, "actor": "operator", "reason": "as planned"}
    assert (redriven.scope, redriven.key, redriven.phase) == (Scope("acme", "main", "parcel"), "k2", "after")
    assert (redriven.command.entity_id, redriven.expect, discarded.expect) == (None, ("decided",), ("refused",))
    assert redriven.command.security_context == SecurityContext("operator", "system")
    assert check(parse_subject(redriven.subject), redriven.command) is None
    assert commands.again(redriven).command.id == "c4"


def test_a_trespass_is_sent_where_it_does_not_belong() -> None:
    other = Scope("other", "demo", "counter")
    sent = trespass(SCOPE, other, 7)
    assert (sent.scope, sent.command.tenant, sent.subject) == (SCOPE, "other", "cmd.default.demo.counter.add")
    assert (sent.expect, sent.key) == (("violation",), "trespass-7")


@pytest.mark.parametrize("headers", [b"", b"NATS/1.0\r\nA: b\r\n\r\n"])
def test_garbage_is_named_as_the_runtime_names_it(headers: bytes) -> None:
    from meshforge_trio.intake import raw_key

    delivery = Delivery("cmd.default.demo.counter.add", headers, GARBAGE, "", COMMANDS, 1, 1, 1)
    assert garbage_key(delivery.subject, GARBAGE, headers) == raw_key(delivery)[0]


def test_a_command_may_be_told_otherwise() -> None:
    made = command(SCOPE, "add", 1, id="mine", idempotency_key="key", ts=5.0)
    assert (made.id, made.idempotency_key, made.ts, made.payload) == ("mine", "key", 5.0, {})
    assert encode(made)
