"""What a record concerns, and which records of a history matter."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from chaos.evidence import Evidence
from chaos.history import Record
from chaos.report.concerns import NOTHING, Concern, concerns
from chaos.report.run import Command, Finding
from chaos.report.slice import LEAST, MOST, causal_slice, focus
from chaos.report.turns import turns
from chaos.rows import OutputRow, Rows
from meshforge_trio.broker.port import StoredMessage
from meshforge_trio.subjects import Scope

from .report_world import happened

Told = tuple[str, str, Mapping[str, Any]]

A = "t/w/a"


def send(id_: str, key: str, scope: str = A) -> Told:
    return "client", "send", {"id": id_, "key": key, "subject": f"cmd.{scope.replace('/', '.')}.add", "phase": "main"}


def ok(id_: str, seq: int) -> Told:
    return "client", "ok", {"id": id_, "seq": seq}


def call(key: str, id_: str, scope: str = A, worker: str = "worker#1") -> Told:
    fields = {"scope": scope, "key": key, "id": id_, "action": "add", "entity": "e", "version": 0, "before": ""}
    return worker, "call", fields


def point(name: str, worker: str = "worker#1") -> Told:
    return worker, "point", {"point": name, "nth": 1}


def event(id_: str, key: str, cause: str, agent: str = "a") -> Mapping[str, Any]:
    return {
        "id": id_,
        "tenant": "t",
        "workspace": "w",
        "agent": agent,
        "name": "added",
        "idempotency_key": key,
        "causation_id": cause,
    }


def heard(envelope: Mapping[str, Any], msg_id: str = "") -> Told:
    body = orjson.dumps(envelope).decode()
    return "client", "heard", {"subject": "evt.t.w.a.added", "msg_id": msg_id, "body": body}


def frame(**fields: Any) -> Told:
    return "proxy", "frame", {"frame": "publish", "conn": 1, "bytes": 9, **fields}


def judged(*told: Told, images: Sequence[Evidence] = ()) -> Sequence[Concern]:
    """What each record concerns, the header left out."""
    history = happened(*told)
    return concerns(history, (), turns(history), images)[1:]


def own(*names: tuple[str, str]) -> Concern:
    return Concern(own=frozenset(names))


def derived(*names: tuple[str, str]) -> Concern:
    return Concern(derived=frozenset(names))


K1, K2 = (A, "k1"), (A, "k2")


def test_sends_and_answers_concern_their_command() -> None:
    found = judged(
        send("c1", "k1"),
        send("c2", "k2"),
        ok("c2", 2),
        ("client", "unknown", {"id": "c1", "reason": "timeout"}),
        ok("c9", 9),
    )
    assert found == [own(K1), own(K2), own(K2), own(K1), NOTHING]


def test_one_id_in_two_scopes_is_answered_in_the_order_of_sending() -> None:
    found = judged(send("c1", "k1"), send("c1", "k1", "other/w/a"), ok("c1", 1), ok("c1", 2), ok("c1", 3))
    assert found == [own(K1), own(("other/w/a", "k1")), own(K1), own(("other/w/a", "k1")), NOTHING]


def test_a_command_without_a_key_is_known_by_its_id() -> None:
    assert judged(send("q1", ""), ok("q1", 1), call("", "q1")) == [own((A, "id:q1"))] * 3


def test_a_subject_that_leads_nowhere_is_its_own_scope() -> None:
    odd = ("client", "send", {"id": "c1", "key": "k", "subject": "nonsense", "phase": "main"})
    assert judged(odd) == [own(("nonsense", "k"))]


def test_what_follows_through_other_agents_goes_back_to_the_command() -> None:
    found = judged(
        send("c1", "k1"),
        call("k1", "c1"),
        heard(event("c1_added", "k1", "c1")),
        call("evt:a:c1_added:k1", "c1_added", "t/w/audit"),
        ("worker#1", "decided", {"scope": "t/w/audit", "key": "evt:a:c1_added:k1", "digest": ""}),
        heard(event("c1_added_seen", "evt:a:c1_added:k1", "c1_added", "audit")),
        call("raw:abc", "c1"),
        call("unheard of", "x1"),
    )
    assert found == [own(K1), own(K1), own(K1), *[derived(K1)] * 3, own(K1), NOTHING]


def test_an_event_of_a_resent_command_is_of_its_key() -> None:
    found = judged(send("c1", "k1"), send("c1-again", "k1"), heard(event("c1-again_added", "k1", "c1-again")))
    assert found == [own(K1)] * 3


def test_an_answer_under_another_key_is_known_by_its_cause() -> None:
    # A query is answered under a name of the runtime's.
    found = judged(send("q1", ""), heard(event("q1_found", "query:q1", "q1")))
    assert found == [own((A, "id:q1"))] * 2


def test_causes_in_a_circle_come_to_an_end() -> None:
    found = judged(heard(event("e1", "x", "e2")), heard(event("e2", "y", "e1")))
    assert [concern.all for concern in found] == [frozenset()] * 2


def test_a_body_that_is_no_text_is_known_by_its_msg_id() -> None:
    row = OutputRow(
        Scope("t", "w", "a"),
        *(1, "event", "k1", "c1_added", "added", "evt.t.w.a.added", "m1"),
        orjson.dumps(event("c1_added", "k1", "c1")),
        *("e", 1, b""),
    )
    body = {"body_base64": base64.b64encode(b"\xff").decode()}
    told = (
        send("c1", "k1"),
        ("client", "heard", {"subject": "evt.t.w.a.added", "msg_id": "m1", **body}),
        ("client", "heard", {"subject": "evt.t.w.a.added", "msg_id": "m9", **body}),
        ("client", "heard", {"subject": "evt.t.w.a.added", "msg_id": "m9", "body": "[1]"}),
        ("client", "heard", {"subject": "evt.t.w.a.added", "msg_id": "m9", "body": "{"}),
    )
    assert judged(*told, images=[Evidence(Rows([row]))]) == [own(K1), own(K1), NOTHING, NOTHING, NOTHING]


def test_frames_are_known_by_id_by_msg_id_or_by_sequence() -> None:
    message = StoredMessage(7, "evt.t.w.a.added", "m1", orjson.dumps(event("c1_added", "k1", "c1")))
    nonsense = StoredMessage(8, "evt.t.w.a.added", "m2", b"{")
    ack = "$JS.ACK.MESHFORGE_{}.consumer.1.{}.1.1.0"
    told = (
        send("c1", "k1"),
        ok("c1", 3),
        frame(subject="cmd.t.w.a.add", id="c1"),
        frame(subject="evt.t.w.a.added", id="c1_added", msg_id="m3", seq=9),
        frame(subject="_INBOX.x", msg_id="m3"),
        frame(subject=ack.format("COMMANDS", 3), seq=3),
        frame(subject=ack.format("EVENTS", 7), seq=7),
        frame(subject=ack.format("EVENTS", 9), seq=9),
        frame(subject=ack.format("EVENTS", 8), seq=8),
        frame(subject="$JS.API.CONSUMER.MSG.NEXT.x"),
        frame(),
    )
    evidence = Evidence(Rows(), events=[message, nonsense])
    assert judged(*told, images=[evidence]) == [*[own(K1)] * 8, NOTHING, NOTHING, NOTHING]


def test_a_turn_concerns_all_that_it_decides() -> None:
    history = happened(
        send("c1", "k1"),
        send("c2", "k2"),
        heard(event("c0_added", "k0", "c1")),
        point("received"),
        call("k1", "c1"),
        call("evt:x", "c0_added"),
        point("before_store"),
        ("worker#1", "fault", {"rule": "worker#1:before_store@1=kill"}),
        point("in_recovery"),
    )
    found = concerns(history, (), turns(history))
    assert found[4] == found[7] == found[8] == own(K1)
    assert found[6] == derived(K1)
    assert found[9] == NOTHING


def test_findings_lead_to_the_commands_with_their_keys() -> None:
    told = [
        send("c1", "k1"),
        send("c1", "k1", "t/w/b"),
        send("c2", "k2"),
        heard(event("e1", "k2", "c2")),
        call("evt:e1", "e1"),
    ]
    history = happened(*told)
    found = concerns(history, (), turns(history))
    sent = [Command("c3", "k3", A, "add", None, "main", query=False, expect=())]

    def about(*findings: Finding) -> frozenset[tuple[str, str]]:
        return focus(findings, history, found, sent)

    assert about(Finding("x", ("k1",))) == {K1, ("t/w/b", "k1")}
    assert about(Finding("x", ("k1",), "t/w/b")) == {("t/w/b", "k1")}
    assert about(Finding("x", ("k3",))) == {(A, "k3")}
    assert about(Finding("x", ("evt:e1",), A)) == {K2}
    assert about(Finding("x", ("k1",), A), Finding("y", ("k2",))) == {K1, K2}
    assert about(Finding("x", scope="t/w/b")) == {("t/w/b", "k1")}
    everything = {K1, K2, ("t/w/b", "k1"), (A, "k3")}
    assert about() == about(Finding("x", ("unheard of",))) == about(Finding("x", scope="no/such/scope")) == everything


def one_command(number: int) -> list[Told]:
    key, id_ = f"k{number}", f"c{number}"
    return [
        point("received"),
        call(key, id_),
        ("worker#1", "decided", {"scope": A, "key": key, "digest": ""}),
        *map(point, ("before_store", "in_store", "after_store", "before_publish")),
        *[point("in_publish")] * 3,
        *map(point, ("after_publish", "before_ack", "after_ack")),
        heard(event(f"{id_}_added", key, id_)),
    ]


def sliced(history: Sequence[Record], names: frozenset[tuple[str, str]], **more: int) -> tuple[list[Record], int]:
    found = causal_slice(history, concerns(history, (), turns(history)), names, **more)
    assert list(found.indices) == sorted(set(found.indices))
    return [history[i] for i in found.indices], found.left_out


def test_the_slice_of_a_command_is_what_was_done_for_it() -> None:
    told = [send(f"c{n}", f"k{n}") for n in range(1, 9)]
    told += [step for n in range(1, 9) for step in one_command(n)]
    told.insert(70, ("worker#1", "fault", {"rule": "worker#1:before_ack@5=kill"}))
    told += [("worker#1", "exit", {"status": -9}), ("harness", "image", {"number": 1, "final": False})]
    records, left_out = sliced(happened(*told), frozenset([(A, "k3")]))
    kinds = [record.kind for record in records]
    assert left_out == 0
    assert LEAST <= len(records) <= MOST
    assert [kinds.count(kind) for kind in ("send", "call", "decided", "heard", "fault", "exit")] == [1] * 6
    assert "header" not in kinds
    points = [record["point"] for record in records if record.kind == "point"]
    assert points == [
        *("received", "before_store", "in_store", "after_store", "before_publish"),
        *("in_publish", "in_publish", "in_publish", "after_publish", "before_ack", "after_ack"),
    ]


def test_without_room_repeated_publishes_go_first() -> None:
    told = [send("c1", "k1"), *one_command(1)]
    records, left_out = sliced(happened(*told), frozenset([K1]), most=13)
    assert left_out == 2
    assert [r["point"] for r in records if r.kind == "point"].count("in_publish") == 1


def test_of_many_commands_what_lies_around_the_faults_matters() -> None:
    told = [send(f"c{n}", f"k{n}") for n in range(100)]
    told += [step for n in range(100) for step in one_command(n)]
    fault = ("worker#1", "fault", {"rule": "worker#1:after_store@50=kill"})
    told.insert(800, fault)
    history = happened(*told)
    names = frozenset((A, f"k{n}") for n in range(100))
    records, left_out = sliced(history, names)
    assert len(records) == MOST
    assert left_out > 500
    at = [record.kind for record in history].index("fault")
    assert all(abs(record.t // 1_000_000 - at) < 40 for record in records)


def test_a_short_slice_is_filled_up_from_around() -> None:
    told = [point("after_lease")] * 40
    told[20] = send("c1", "k1")
    records, left_out = sliced(happened(*told), frozenset([K1]))
    assert (len(records), left_out) == (LEAST, 0)
    assert {record.t // 1_000_000 for record in records} <= set(range(11, 32))


def test_a_history_shorter_than_a_slice_is_told_whole() -> None:
    records, _ = sliced(happened(send("c1", "k1")), frozenset([K1]))
    assert [record.kind for record in records] == ["send"]
    assert sliced(happened(), frozenset()) == ([], 0)
