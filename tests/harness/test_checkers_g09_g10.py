"""G9, G10: nothing leaves its scope, and nobody holds what another one holds."""

from __future__ import annotations

from typing import Any, Final

import attrs
import orjson
import pytest

from chaos.evidence import Evidence, Sent, dumped_body
from chaos.history import Record
from chaos.rows import KeyRow, OutputRow, Rows
from chaos.workload import command, trespass
from meshforge_trio.envelope import SecurityContext
from meshforge_trio.subjects import Scope, event_subject

from .crafted import (
    Broken,
    Cases,
    Sound,
    add,
    body_with,
    drop,
    edit,
    end,
    judgement,
    key_of,
    noting,
    output_of,
    rows_of,
    streams,
)
from .paper import AUDIT, COUNTER, OTHER, Paper

CASES = Cases()
LOCKS: Final = Scope("default", "demo", "sys_lock_manager")


def add_to(entity: str, number: int, **more: Any) -> Sent:
    return Sent(command(COUNTER, "add", number, {"amount": 1}, entity_id=entity, **more))


def violation_of(evidence: Evidence) -> OutputRow:
    row: OutputRow
    (row,) = rows_of(evidence, "outputs", scope=COUNTER, name="violation")
    return row


# -- G9 --------------------------------------------------------------------------------------------------------------


@CASES.breaks("G9", "default/demo/counter output 1: an event of acme/demo/counter")
def an_event_in_anothers_rows() -> Evidence:
    row = output_of(end(), "k1")
    return edit(end(), "outputs", row, body=body_with(row, tenant="acme"))


@CASES.breaks("G9", "output 1: added goes to evt.acme.demo.counter.added")
def an_event_goes_to_another_tenant() -> Evidence:
    return edit(end(), "outputs", output_of(end(), "k1"), subject="evt.acme.demo.counter.added")


@CASES.breaks("G9", "evt.acme.demo.counter.added carries an event of default/demo/counter")
def an_event_in_anothers_stream() -> Evidence:
    return streams(
        end(), "events", lambda all_: [attrs.evolve(all_[0], subject="evt.acme.demo.counter.added"), *all_[1:]]
    )


@CASES.breaks("G9", "evt.acme.demo.counter.added carries an event of default/demo/counter")
def an_answer_heard_by_another_tenant() -> Evidence:
    body = dumped_body(output_of(end(), "k1").body)
    return noting(end(), ("client", "heard", {"subject": "evt.acme.demo.counter.added", "msg_id": "00", **body}))


@CASES.breaks("G9", "a command to acme/demo/audit")
def a_command_to_another_tenant() -> Evidence:
    row = output_of(end(), "k10", "note")
    return edit(end(), "outputs", row, subject="cmd.acme.demo.audit.note", body=body_with(row, tenant="acme"))


@CASES.breaks("G9", "a command to default/demo/audit goes to cmd.acme.demo.audit.note")
def a_command_that_says_otherwise_than_its_subject() -> Evidence:
    return edit(end(), "outputs", output_of(end(), "k10", "note"), subject="cmd.acme.demo.audit.note")


@CASES.breaks("G9", "a dead letter of cmd.acme.demo.counter.explode")
def a_letter_of_another_tenant() -> Evidence:
    row = output_of(end(), "k7", "dead_letter")
    return edit(end(), "outputs", row, body=body_with(row, subject="cmd.acme.demo.counter.explode"))


@CASES.breaks("G9", "is used in ['acme/demo', 'default/demo']")
def an_id_of_two_tenants() -> Evidence:
    ours, theirs = output_of(end(), "k1"), output_of(end(), "k1", scope=OTHER)
    return edit(end(), "outputs", theirs, msg_id=ours.msg_id)


@CASES.breaks("G9", "acme/demo/counter key 'k1' is gone and undecided, as if it were that of ['default/demo/counter']")
def a_key_taken_for_another_tenants() -> Evidence:
    return drop(end(), "keys", key_of(end(), "k1", OTHER))


@CASES.breaks("G9", "acme/demo/audit applied 'evt:counter:c90_added:k90', an event of ['default/demo']")
def an_event_applied_by_another_tenant() -> Evidence:
    paper = Paper()
    paper.send(add_to("a", 90))
    evidence = paper.drain()
    (record,) = rows_of(evidence, "keys", scope=AUDIT)
    return add(evidence, "keys", attrs.evolve(record, scope=attrs.evolve(AUDIT, tenant="acme")))


@CASES.breaks("G9", "(id c77), which claims to be acme/demo/counter, is gone, and no violation is stored")
def a_trespass_without_a_violation() -> Evidence:
    return drop(end(), "outputs", violation_of(end()))


@CASES.breaks("G9", "was sent 1 times, and 2 violations are stored")
def a_trespass_with_two_violations() -> Evidence:
    row = violation_of(end())
    last = max(each.n for each in rows_of(end(), "outputs", scope=COUNTER))
    return add(end(), "outputs", attrs.evolve(row, n=last + 1, msg_id="a" * 32))


@CASES.breaks("G9", "had an effect in acme/demo/counter: output")
def a_trespass_with_an_effect() -> Evidence:
    row = output_of(end(), "k1", scope=OTHER)
    return edit(end(), "outputs", row, body=body_with(row, causation_id="c77"))


@CASES.breaks("G9", "is published 0 times")
def a_violation_nobody_heard_of() -> Evidence:
    row = violation_of(end())
    return streams(end(), "events", lambda all_: [m for m in all_ if m.msg_id != row.msg_id])


def mistold(**payload: Any) -> Evidence:
    row = violation_of(end())
    return edit(end(), "outputs", row, body=body_with(row, payload=payload))


@CASES.breaks("G9", "carries ['payload'] beside what it may tell")
def a_violation_with_the_payload() -> Evidence:
    return mistold(payload={"amount": 13})


@CASES.breaks("G9", "has the code 'amount 13'")
def a_violation_with_the_payload_as_code() -> Evidence:
    return mistold(code="amount 13")


@CASES.breaks("G9", "names the subject 'cmd.acme.demo.counter.add'")
def a_violation_of_another_subject() -> Evidence:
    return mistold(subject="cmd.acme.demo.counter.add")


@CASES.breaks("G9", "names the principal 'root'")
def a_violation_of_another_principal() -> Evidence:
    return mistold(principal_id="root")


def with_secret(reason: str) -> Evidence:
    """A trespass whose payload would be recognised."""
    paper = Paper()
    sent = trespass(COUNTER, OTHER, 1)
    payload = {"notes": ["hunter2", {"deep": "swordfish"}], "agent": "counter", "short": "in", "n": 1}
    paper.send(attrs.evolve(sent, command=attrs.evolve(sent.command, payload=payload)))
    evidence = paper.drain()
    row = violation_of(evidence)
    body = body_with(row, payload={"reason": reason})
    events = [attrs.evolve(m, body=body) if m.msg_id == row.msg_id else m for m in evidence.events]
    heard = [
        attrs.evolve(r, fields={**r.fields, **dumped_body(body)})
        if r.kind == "heard" and r["msg_id"] == row.msg_id
        else r
        for r in evidence.history
    ]
    return attrs.evolve(edit(evidence, "outputs", row, body=body), events=events, history=heard)


@CASES.breaks("G9", "echoes ['swordfish'] of the payload")
def a_violation_that_echoes() -> Evidence:
    return with_secret("envelope says swordfish")


@CASES.breaks("G9", "a violation (output 1) is told of command c1, with which nothing was wrong")
def an_honest_command_taken_for_a_trespass() -> Evidence:
    paper = Paper()
    sent = trespass(COUNTER, OTHER, 1)
    paper.send(attrs.evolve(sent, expect=("decided",), at=None, command=attrs.evolve(sent.command, tenant="default")))
    honest = paper.sent[0]
    paper.commands[1] = attrs.evolve(paper.commands[1], body=sent.body, subject=honest.subject)
    return paper.drain()


@CASES.holds("G9")
def a_trespass_is_told_of() -> Evidence:
    assert violation_of(end()).subject == "evt.default.demo.security.violation"
    return end()


@CASES.holds("G9")
def a_trespass_under_an_id_that_the_other_tenant_uses() -> Evidence:
    paper = Paper()
    paper.send(Sent(command(OTHER, "add", 1, {"amount": 1}, entity_id="a")), trespass(COUNTER, OTHER, 1))
    return paper.drain()


@CASES.holds("G9")
def a_trespass_is_repeated() -> Evidence:
    paper = Paper()
    sent = trespass(COUNTER, OTHER, 1)
    paper.send(sent, attrs.evolve(sent, command=attrs.evolve(sent.command, id="c1-again")))
    return paper.drain()


@CASES.holds("G9")
def a_trespass_still_waits() -> Evidence:
    paper = Paper()
    paper.send(trespass(COUNTER, OTHER, 1))
    paper.kill("received")
    return paper.corpse


@CASES.holds("G9")
def a_command_of_nobody() -> Evidence:
    paper = Paper()
    nobody = attrs.evolve(command(COUNTER, "add", 1, {"amount": 1}), security_context=None)
    paper.send(Sent(nobody, expect=("violation",)), add_to("a", 2))
    return paper.drain()


@CASES.holds("G9")
def a_long_name_is_told_in_part() -> Evidence:
    paper = Paper()
    context = SecurityContext("x" * 300, "user")
    paper.send(Sent(attrs.evolve(command(COUNTER, "add", 1), security_context=context), expect=("violation",)))
    return paper.drain()


@CASES.holds("G9")
def a_violation_may_name_what_everybody_knows() -> Evidence:
    """The word is in the payload, and in the subject as well."""
    return with_secret("envelope names acme/demo/counter, subject names default/demo/counter")


# -- G10 -------------------------------------------------------------------------------------------------------------


def locked(*told: tuple[str, dict[str, Any]], scope: Scope = LOCKS, ttl: float | None = None) -> Evidence:
    """What a lock manager committed, one event per command, the last of which was killed before it published."""
    outputs, keys, sent = [], [], []
    for n, (name, payload) in enumerate(told, 1):
        fields = {"resource_id": "r", **payload}
        ts = fields.pop("ts", float(n))
        asked: dict[str, Any] = {"resource_id": "r"} if ttl is None else {"resource_id": "r", "ttl_seconds": ttl}
        each = Sent(command(scope, "ask", n, asked))
        body = orjson.dumps(
            {
                "id": f"c{n}_{name}",
                "tenant": scope.tenant,
                "workspace": scope.workspace,
                "agent": scope.agent,
                "name": name,
                "idempotency_key": f"k{n}",
                "payload": fields,
                "ts": ts,
                "causation_id": f"c{n}",
            }
        )
        subject = event_subject(scope, name)
        outputs.append(
            OutputRow(scope, n, "event", f"k{n}", f"c{n}_{name}", name, subject, f"m{n}", body, None, None, None)
        )
        keys.append(KeyRow(scope, f"k{n}", each.digest, "decided", n, n))
        sent.append(each)
    return Evidence(Rows(outputs, keys), sent=sent, final=False, history=[Record(1, "harness", "header", {})])


def acquired(owner: str, until: float, token: int, **more: Any) -> tuple[str, dict[str, Any]]:
    return "acquired", {"owner_id": owner, "expires_at": until, "fencing_token": token, **more}


def refreshed(owner: str, until: float, **more: Any) -> tuple[str, dict[str, Any]]:
    return "refreshed", {"owner_id": owner, "expires_at": until, **more}


def released(owner: str, **more: Any) -> tuple[str, dict[str, Any]]:
    return "released", {"owner_id": owner, **more}


EXPIRED: Final[tuple[str, dict[str, Any]]] = ("expired", {})


@CASES.breaks("G10", "resource 'r', output 2: acquired by 'b' at 2.0, and 'a' holds it until 60.0")
def two_holders() -> Evidence:
    return locked(acquired("a", 60.0, 1), acquired("b", 62.0, 2))


@CASES.breaks("G10", "acquired by 'b' at 59.0, and 'a' holds it until 60.0")
def two_holders_by_the_clock_of_the_runtime() -> Evidence:
    """What the client says of the time is not believed."""
    return locked(acquired("a", 60.0, 1), acquired("b", 69.0, 2, ts=1e9), ttl=10.0)


@CASES.breaks("G10", "acquired by 'b' at 65.0, and 'a' holds it until 90.0")
def two_holders_after_a_refresh() -> Evidence:
    return locked(acquired("a", 60.0, 1), refreshed("a", 90.0), acquired("b", 99.0, 2, ts=65.0))


@CASES.breaks("G10", "fencing token 1 follows 1")
def a_token_twice() -> Evidence:
    return locked(acquired("a", 60.0, 1), released("a"), acquired("b", 63.0, 1))


@CASES.breaks("G10", "fencing token 3 follows 7")
def a_token_that_falls() -> Evidence:
    return locked(acquired("a", 60.0, 7), released("a"), acquired("a", 63.0, 3))


@CASES.breaks("G10", "refreshed with fencing token 2, that of the lease is 1")
def a_refresh_with_another_token() -> Evidence:
    return locked(acquired("a", 60.0, 1), refreshed("a", 90.0, fencing_token=2))


@CASES.breaks("G10", "refreshed by 'b', and 'a' holds it")
def refreshed_by_another() -> Evidence:
    return locked(acquired("a", 60.0, 1), refreshed("b", 90.0))


@CASES.breaks("G10", "refreshed by 'a', and 'b' holds it")
def refreshed_by_a_sleeper() -> Evidence:
    return locked(acquired("a", 60.0, 1), acquired("b", 160.0, 2, ts=61.0), refreshed("a", 200.0))


@CASES.breaks("G10", "released by 'b', and 'a' holds it")
def released_by_another() -> Evidence:
    return locked(acquired("a", 60.0, 1), released("b"))


@CASES.breaks("G10", "released, and nobody holds it")
def released_twice() -> Evidence:
    return locked(acquired("a", 60.0, 1), released("a"), released("a"))


@CASES.breaks("G10", "expired, and nobody holds it")
def expired_twice() -> Evidence:
    return locked(acquired("a", 60.0, 1), ("expired", {"ts": 61.0}), ("expired", {"ts": 62.0}))


@CASES.breaks("G10", "expired at 30.0, and 'a' holds it until 60.0")
def expired_too_early() -> Evidence:
    return locked(acquired("a", 60.0, 1), ("expired", {"ts": 30.0}))


@CASES.breaks("G10", "acquired cannot be read: TypeError: True is no fencing token")
def a_token_that_is_none() -> Evidence:
    return locked(acquired("a", 60.0, True))


@CASES.breaks("G10", "acquired cannot be read: TypeError: 'soon' is no time")
def a_time_that_is_none() -> Evidence:
    return locked(acquired("a", "soon", 1))  # type: ignore[arg-type]


@CASES.breaks("G10", "released cannot be read: TypeError: None is no owner")
def an_owner_that_is_none() -> Evidence:
    return locked(acquired("a", 60.0, 1), released(None))  # type: ignore[arg-type]


@CASES.breaks("G10", "acquired cannot be read: KeyError: 'expires_at'")
def a_lock_of_nobody() -> Evidence:
    return locked(("acquired", {}))


@CASES.holds("G10")
def one_after_the_other() -> Evidence:
    return locked(acquired("a", 60.0, 1), released("a"), acquired("b", 63.0, 2), released("b"))


@CASES.holds("G10")
def acquired_at_the_moment_it_runs_out() -> Evidence:
    return locked(acquired("a", 60.0, 1), acquired("b", 70.0, 2, ts=60.0))


@CASES.holds("G10")
def acquired_after_it_ran_out_by_the_clock_of_the_runtime() -> Evidence:
    """The client says that it is 1970; the runtime's clock is what counts."""
    return locked(acquired("a", 60.0, 1), acquired("b", 70.0, 2), ttl=10.0)


@CASES.holds("G10")
def acquired_again_by_its_holder() -> Evidence:
    return locked(acquired("a", 60.0, 1), acquired("a", 90.0, 1), acquired("a", 120.0, 2))


@CASES.holds("G10")
def declared_expired_in_its_time() -> Evidence:
    return locked(acquired("a", 60.0, 1), ("expired", {"ts": 60.0}), acquired("b", 99.0, 2, ts=50.0))


@CASES.holds("G10")
def declared_expired_on_the_word_of_a_client_that_has_no_clock() -> Evidence:
    return locked(acquired("a", 60.0, 1, ts=50.0), ("expired", {"ts": 3.0}), acquired("b", 99.0, 2, ts=61.0))


@CASES.holds("G10")
def two_resources() -> Evidence:
    return locked(
        acquired("a", 60.0, 1), acquired("b", 60.0, 1, resource_id="s"), refreshed("a", 70.0, fencing_token=1)
    )


@CASES.holds("G10")
def the_same_resource_in_two_tenants() -> Evidence:
    ours = locked(acquired("a", 60.0, 1))
    theirs = locked(acquired("b", 60.0, 1), scope=attrs.evolve(LOCKS, tenant="acme"))
    rows = Rows(
        [*ours.rows.outputs, *(attrs.evolve(row, msg_id="other") for row in theirs.rows.outputs)],
        [*ours.rows.keys, *theirs.rows.keys],
    )
    return attrs.evolve(ours, rows=rows, sent=[*ours.sent, *theirs.sent])


def test_other_agents_may_release_what_they_like() -> None:
    """Names alone make no lock manager."""
    orders = Scope("default", "demo", "orders")
    evidence = locked(("released", {"owner_id": "x"}), ("expired", {}), ("acquired", {}), scope=orders)
    found = judgement(evidence, "G10")
    assert found.holds
    assert found.examined == 0
    own = locked(acquired("a", 60.0, 1), acquired("b", 62.0, 2), scope=orders)
    assert not judgement(own, "G10").holds, "a lock manager of another name"
    nameless = locked(("acquired", {"resource_id": None}), ("denied", {}))
    assert judgement(nameless, "G10").examined == 0


@pytest.mark.parametrize("case", CASES.params(CASES.broken))
def test_what_is_wrong_is_found(case: Broken) -> None:
    case.check()


@pytest.mark.parametrize("case", CASES.params(CASES.sound))
def test_what_is_right_passes(case: Sound) -> None:
    case.check()
