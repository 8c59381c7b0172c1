"""What every checker has in common: its sentence, its judgement, and that it has been tried."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import attrs
import orjson
import pytest

from chaos.checkers import CHECKERS, Checker, Finding, Judgement, judge
from chaos.checkers.clues import Clues, event_key, scope_of
from chaos.checkers.struck import Fault, Strikes
from chaos.evidence import Evidence, Sent
from chaos.history import Record
from chaos.rows import MarkRow, Rows
from chaos.workload import command, trespass
from meshforge_trio.broker.port import StoredMessage, StreamFacts
from meshforge_trio.subjects import EVENTS

from .crafted import add_to, corpse, end
from .paper import COUNTER, OTHER, Paper

INVARIANTS = Path(__file__).parents[2] / "docs/RUNTIME_INVARIANTS.md"
#: The modules with the cases of each guarantee.
MODULES = [import_module(f".test_checkers_g{number:02}", __package__) for number in range(1, 14)]
BALANCED = Finding("the sum is 3, not 4", ["k1"], "default/demo/counter")


def ledger(evidence: Evidence) -> Iterator[Finding | int]:
    """An invariant of a scenario's own."""
    yield len(evidence.rows.outputs)
    yield BALANCED


# -- every guarantee -------------------------------------------------------------------------------------------------


def test_every_guarantee_has_a_checker_with_its_sentence() -> None:
    table = dict(re.findall(r"^\| (G\d+) \| (.+?) \|", INVARIANTS.read_text(), re.MULTILINE))
    assert {checker.id: checker.sentence for checker in CHECKERS} == table
    assert list(table) == [f"G{number}" for number in range(1, 14)]


def test_every_checker_has_been_tried() -> None:
    """It has found what is wrong, and let pass what is right, in two ways at least."""
    broken = Counter(case.guarantee for module in MODULES for case in module.CASES.broken)
    sound = Counter(case.guarantee for module in MODULES for case in module.CASES.sound)
    for checker in CHECKERS:
        assert broken[checker.id] >= 2, f"{checker.id} has found too little"
        assert sound[checker.id] >= 2, f"{checker.id} has let pass too little"


def test_what_is_judged_on_a_corpse() -> None:
    ids = [checker.id for checker in CHECKERS]
    assert [each.id for each in judge(end())] == ids
    assert [each.id for each in judge(corpse())] == [id_ for id_ in ids if id_ not in ("G8", "G12")]


def test_nothing_is_examined_where_there_is_nothing() -> None:
    judgements = judge(Evidence(Rows(), final=False))
    assert [each.examined for each in judgements] == [0] * len(judgements)
    assert all(each.holds for each in judgements)


def test_how_much_is_examined() -> None:
    """Counted by hand."""
    paper = Paper((COUNTER,))
    explode = Sent(command(COUNTER, "explode", 3, entity_id="b"), expect=("dead",))
    paper.send(add_to("a", 1), add_to("a", 2), explode)
    paper.send(add_to("a", 4, idempotency_key="k1"), add_to("b", 5, idempotency_key="k1", expected_version=7))
    paper.send(add_to("a", 6, expected_version=0), add_to("a", 7, expected_version=2))
    paper.send(trespass(COUNTER, OTHER, 8))
    judgements = judge(paper.drain())
    assert {each.id: each.examined for each in judgements} == {
        "G1": 8,  # commands
        "G2": 6 + 1 + 6,  # records, refusals of other payloads, keys with effects
        "G3": 7 + 1 + 8 + 7,  # events, letters, heard, decisions
        "G4": 8 + 7 + 1 + 3 + 8,  # ids, copies of each in both streams, marks, outputs
        "G5": 7 + 1 + 1 + 1,  # decisions, letters, keys with letters, fates
        "G6": 1 + 1 + 1,  # conflicts, entities, expected versions
        "G7": 3 + 2 + 3,  # events, rebuilt hashes, calls that came to a decision
        "G8": 8 + 6,  # heard, answers
        "G9": 8 + 7 + 8 + 1,  # outputs, events, heard, trespasses
        "G10": 0,
        "G11": 1 + 1 + 2 + 4 + 1,  # letters sent, dead records, expectations, keys called, letters stored
        "G12": 8 + 8,  # commands, outputs
        "G13": 2 + 2,  # entities asked, entities published
    }


# -- judgements ------------------------------------------------------------------------------------------------------


def test_invariants_of_a_scenario_are_judged_like_guarantees() -> None:
    extra = [Checker("ledger", "No money is made.", ledger), Checker("late", "At the end.", ledger, on_corpse=False)]
    assert [each.id for each in judge(end(), extra)][-2:] == ["ledger", "late"]
    found = judge(corpse(), extra)[-1]
    assert (found.id, found.examined, list(found.findings)) == ("ledger", len(corpse().rows.outputs), [BALANCED])
    assert str(found) == "ledger broken: No money is made.\n    the sum is 3, not 4"


def test_a_checker_that_raises_has_not_judged() -> None:
    def look(evidence: Evidence) -> Iterator[Finding | int]:
        yield 2
        yield BALANCED
        raise KeyError("payload")

    found = Checker("ledger", "No money is made.", look).judge(end())
    assert not found.holds
    assert (found.examined, list(found.findings)) == (2, [BALANCED])
    assert re.fullmatch(r"KeyError: 'payload' \(test_checkers_base\.py:\d+\)", found.failure)
    assert str(found).endswith(f"ledger could not be judged: {found.failure}")


@pytest.mark.parametrize("item", [None, True, -1, 0.5, "wrong"])
def test_a_checker_yields_findings_and_counts(item: Any) -> None:
    found = Checker("x", "y", lambda evidence: [1, item]).judge(end())
    assert found.examined == 1
    assert found.failure.startswith(f"TypeError: a checker yields findings and counts, not {item!r} (base.py:")


def test_a_checker_that_gives_nothing_has_not_judged() -> None:
    found = Checker("x", "y", lambda evidence: None).judge(end())  # type: ignore[arg-type, return-value]
    assert not found.holds
    assert found.failure.startswith("TypeError")
    assert str(found).startswith("x could not be judged: TypeError")


def test_a_judgement_as_text() -> None:
    assert str(Judgement("G1", "Not forgotten.", 7)) == "G1 holds (7 examined)"
    many = Judgement("G1", "Not forgotten.", 7, [Finding(f"finding {n}") for n in range(12)])
    lines = str(many).splitlines()
    assert lines[0] == "G1 broken: Not forgotten."
    assert lines[-2:] == ["    finding 9", "    ... and 2 more"]


def test_a_judgement_as_json() -> None:
    judgement = Judgement("ledger", "No money is made.", 3, (attrs.evolve(BALANCED, keys=("k1",)),), "KeyError: 'x'")
    told = orjson.loads(orjson.dumps(judgement.to_json()))
    assert told == {
        "id": "ledger",
        "sentence": "No money is made.",
        "examined": 3,
        "findings": [{"what": "the sum is 3, not 4", "keys": ["k1"], "scope": "default/demo/counter"}],
        "failure": "KeyError: 'x'",
    }
    assert Judgement.from_json({**told, "image": 1}) == judgement


@pytest.mark.parametrize(
    "changes",
    [
        {"id": None},
        {"examined": True},
        {"examined": "3"},
        {"failure": 1},
        {"findings": None},
        {"findings": ["what"]},
        {"findings": [{"what": "w", "keys": [1], "scope": ""}]},
        {"findings": [{"what": "w", "keys": []}]},
    ],
)
def test_what_is_no_judgement_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^no judgement: "):
        Judgement.from_json({**Judgement("G1", "s", 1).to_json(), **changes})


# -- what struck -----------------------------------------------------------------------------------------------------


def strikes(*records: tuple[str, str, dict[str, Any]]) -> Strikes:
    return Strikes([Record(t, *record) for t, record in enumerate(records, 1)])


@pytest.mark.parametrize(
    ("rule", "fault"),
    [
        ("worker#12:after_store@2=kill", Fault(1, "worker", "worker#12", "kill")),
        ("worker#1:after_store@2=stop(0.5)", Fault(1, "worker", "worker#1", "stop")),
        ("nats:in_publish@1=restart", Fault(1, "nats", "nats", "restart")),
        ("nats:worker#2.in_recovery@1=kill(1)", Fault(1, "nats", "nats", "kill")),
        ("proxy:puback@3=cut_before", Fault(1, "proxy", "proxy", "cut_before")),
        ("of another grammar", Fault(1, "unknown", "unknown", "unknown")),
    ],
)
def test_rules_are_read(rule: str, fault: Fault) -> None:
    assert strikes(("worker#1", "fault", {"rule": rule})).faults == [fault]


def test_rollbacks() -> None:
    copy = ("worker#1", "fault", {"rule": "nats:after_store@1=copy"})
    back = ("worker#1", "fault", {"rule": "nats:after_store@2=rollback"})
    up: tuple[str, str, dict[str, Any]] = ("nats", "up", {})
    assert strikes(copy, up).rollbacks == []
    assert strikes(copy, copy, back, up, up).rollbacks == [(2, 4)]
    assert strikes(up, copy, back, up).rollbacks == [(2, 4)], "it was up before, too"
    assert strikes(back, up).rollbacks == [(0, 2)], "without a copy everything may be gone"
    assert strikes(copy, back).rollbacks[0][1] > 1 << 62, "it is not up again yet"


def test_a_broker_that_loses_what_it_had() -> None:
    def told(rule: str) -> tuple[bool, int]:
        found = strikes(("worker#1", "fault", {"rule": rule}))
        return found.forgetful, found.rotten

    assert told("nats:after_store@2=rollback") == (True, 0)
    assert told("nats:after_store@2=truncate") == (True, 0)
    assert told("nats:worker#2.after_lease@2=flip") == (True, 0)
    assert told("nats:after_store@2=rot") == (True, 1)
    for rule in ("nats:after_store@2=kill", "nats:after_store@2=full(1)", "worker#1:after_lease@1=replace"):
        assert told(rule) == (False, 0)


def test_when_a_client_hears_everything() -> None:
    listening: tuple[str, str, dict[str, Any]] = ("client", "listening", {})
    deaf: tuple[str, str, dict[str, Any]] = ("client", "deaf", {"reason": ""})
    heard: tuple[str, str, dict[str, Any]] = ("client", "heard", {})
    cut = ("proxy", "fault", {"rule": "proxy:ack@1=cut_after"})
    kill = ("worker#1", "fault", {"rule": "worker#1:after_ack@1=kill"})
    healed = ("nats", "healed", {"rule": "nats:after_ack@1=pause(1)"})
    assert strikes().hearing_since is None
    assert strikes(heard, kill).hearing_since == 0
    assert strikes(listening, heard).hearing_since == 1
    assert strikes(listening, cut, heard).hearing_since == 2
    assert strikes(listening, cut, healed).hearing_since == 3
    assert strikes(listening, deaf, heard).hearing_since is None
    assert strikes(listening, deaf, listening).hearing_since == 3


def test_calls_that_nobody_could_count() -> None:
    def counted(*rules: str) -> int:
        return strikes(*[("worker#1", "fault", {"rule": rule}) for rule in rules]).uncounted_calls

    assert counted("worker#1:before_store@1=kill", "client:received@1=resend", "nats:received@2=copy") == 0
    assert counted("worker#1:before_store@1=eio_write", "worker#1:before_mark@1=unlink") == 0
    assert counted("worker#1:before_hold@1=full(1)", "worker#1:received@1=stop", "worker#1:after_lease@1=lock(1)") == 3
    assert counted("nats:received@3=kill", "proxy:ack@1=swallow") == 2


def test_what_befell_whom() -> None:
    call = {"scope": "t/w/a", "id": "c1", "action": "add", "entity": "e", "version": 0, "before": ""}
    found = strikes(
        ("worker#1", "call", {**call, "key": "k1"}),
        ("worker#1", "call", {**call, "key": "k2"}),
        ("worker#2", "call", {**call, "key": "k9"}),
        ("worker#1", "call", {**call, "scope": "t/w/b", "key": "k3"}),
        ("worker#1", "fault", {"rule": "worker#1:received@1=stop"}),
        ("worker#1", "point", {"point": "before_attempt"}),
        ("worker#1", "fault", {"rule": "worker#1:before_attempt@1=kill"}),
        ("worker#1", "exit", {"status": -9}),
        ("worker#2", "fault", {"rule": "nats:worker#2.received@1=pause(1)"}),
        ("worker#2", "fault", {"rule": "worker#2:before_store@1=full(1)"}),
        ("worker#2", "exit", {"status": 0}),
    ).incidents
    assert [(each.t, each.worker) for each in found] == [(5, "worker#1"), (8, "worker#1"), (10, "worker#2")]
    stopped, killed, full = found
    assert stopped.concerns("t/w/a", "k2")
    assert stopped.concerns("t/w/b", "k3")
    assert not stopped.concerns("t/w/a", "k1"), "its call had ended"
    assert not stopped.concerns("t/w/a", "k9"), "another worker called it"
    assert killed.concerns("t/w/a", "k7"), "counted, and not yet called"
    assert full.concerns("t/w/a", "k7"), "what could not be stored"


def test_what_befalls_a_store() -> None:
    """A worker that ends of it ends once; what a locked store kept from being written may be anybody's attempt."""
    found = strikes(
        ("worker#1", "fault", {"rule": "worker#1:before_store@1=eio_sync"}),
        ("worker#1", "exit", {"status": 4}),
        ("worker#2", "fault", {"rule": "worker#2:after_lease@1=replace"}),
        ("worker#2", "exit", {"status": 4}),
        ("worker#3", "fault", {"rule": "worker#3:before_store@1=lock(1)"}),
        ("worker#3", "exit", {"status": 0}),
    ).incidents
    assert [(each.t, each.worker, each.any_call) for each in found] == [
        (2, "worker#1", False),
        (4, "worker#2", False),
        (5, "worker#3", True),
    ]


# -- what is read out of evidence ------------------------------------------------------------------------------------


def test_the_newest_mark_that_the_streams_confirm() -> None:
    def through(*marks: tuple[int, int, str], held: Sequence[str] = (), first: int = 1) -> int:
        rows = Rows(marks=[MarkRow(COUNTER, n, seq, id_, 0, "") for n, seq, id_ in marks])
        messages = [StoredMessage(seq, "evt", id_, b"") for seq, id_ in enumerate(held, first)]
        facts = {EVENTS: StreamFacts(EVENTS, first, first + len(held) - 1, len(held), 120.0, -1)}
        return Clues(Evidence(rows, events=messages, facts=facts)).published_through(COUNTER)

    assert through() == 0
    assert through((0, 0, ""), (3, 1, "a"), (5, 2, "b"), held="ab") == 5
    assert through((0, 0, ""), (3, 1, "a"), (5, 2, "b"), held="a") == 3
    assert through((0, 0, ""), (3, 1, "a"), (5, 2, "b"), held="xy") == 0
    assert through((3, 1, "a"), (5, 2, "b"), held="x", first=2) == 3, "what was below has expired"
    assert through((2, 0, "")) == 2, "commands only, which no stream of events can confirm"
    assert through((2, 0, ""), (5, 1, "a")) == 0, "any stream would confirm it"


def test_long_keys_of_events_are_hashed() -> None:
    short = event_key("a", "e", "k" * (256 - len("evt:a:e:")))
    assert len(short) == 256
    assert short.startswith("evt:a:e:k")
    assert len(event_key("a", "e", "k" * 249)) == 68


def test_what_cannot_be_read_is_passed_over() -> None:
    """A subject that is none, a command that is none: not the reader's to judge."""
    row = next(row for row in end().rows.outputs if row.kind == "command")
    rows = attrs.evolve(end().rows, outputs=[attrs.evolve(row, body=b"{")])
    send = Record(1, "client", "send", {"id": "c", "key": "k", "subject": "nowhere", "phase": "main"})
    clues = Clues(Evidence(rows, history=[send]))
    assert clues.asked == {}
    assert clues.payload(rows.outputs[0]) == {}
    assert scope_of("nowhere") is None
