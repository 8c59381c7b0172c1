"""Checkers against runs that nobody thought of: sound ones are let pass, and one change in them is found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any, Final

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chaos.checkers import judge
from chaos.evidence import Evidence, Sent
from chaos.workload import GARBAGE, command, trespass
from meshforge_trio.subjects import Scope, command_subject

from .crafted import add, drop, edit, end, rows_of, streams
from .paper import AUDIT, COUNTER, OTHER, STAGES
from .redriving import RedrivingPaper, discard, redrive

SCOPES: Final = (COUNTER, OTHER, AUDIT)
CLIENTS: Final = (COUNTER, OTHER)
ENTITIES: Final = ("a", "b", None)


def wrong(evidence: Evidence) -> list[str]:
    """What the checkers say against it."""
    return [str(judgement) for judgement in judge(evidence) if not judgement.holds]


# -- sound runs ------------------------------------------------------------------------------------------------------

KINDS: Final = (
    *("add", "add", "take", "roll", "tell", "explode", "charge", "get", "again", "other", "trespass", "garbage"),
    *("redrive", "discard"),
)

sendings = st.tuples(
    st.sampled_from(KINDS),
    st.sampled_from(CLIENTS),
    st.sampled_from(ENTITIES),
    st.sampled_from([None, None, 0, 1, 2]),
    st.sampled_from(["ok", "ok", "ok", "unknown", "lost"]),
)
turns = st.tuples(st.sampled_from(SCOPES), st.sampled_from([1, 2, 64]), st.sampled_from([None, None, *STAGES]))
steps = st.lists(
    st.one_of(
        sendings.map(lambda each: ("send", *each)),
        turns.map(lambda each: ("turn", *each)),
        st.integers(0, 3).map(lambda count: ("recover", count)),
        st.just(("stop",)),
    ),
    max_size=25,
)


class Course:
    """A run that takes these steps, judged at each death and at its end."""

    def __init__(self, unwanted: Sequence[str] = ()) -> None:
        self.paper = RedrivingPaper()
        self._unwanted = unwanted
        self._number = 0

    def take(self, step: Sequence[Any]) -> None:
        workers = self.paper.worker
        match step:
            case ("send", kind, scope, entity, version, outcome):
                if kind not in self._unwanted:
                    self.send(kind, scope, entity, version, outcome)
            case ("turn", scope, size, dies):
                self.paper.turn(scope, size, dies)
            case ("recover", count):
                self.paper.recover(count)
            case ("copy",):
                self.paper.copy()
            case ("rollback",):
                self.paper.roll_back()
            case _:
                self.paper.kill("received", "stop")
        if self.paper.worker > workers:
            assert not wrong(self.paper.corpse), "\n".join(wrong(self.paper.corpse))

    def send(self, kind: str, scope: Scope, entity: str | None, version: int | None, outcome: str) -> None:
        self._number += 1
        n = self._number
        more: dict[str, Any] = {"entity_id": entity}
        if kind == "garbage":
            self.paper.send_raw(command_subject(scope, "add"), GARBAGE + str(n).encode())
            return
        if kind == "trespass":
            sent = trespass(scope, OTHER if scope is COUNTER else COUNTER, n)
        elif kind == "get":
            sent = Sent(command(scope, "get", n, entity_id=entity, idempotency_key=None), query=True)
        elif kind in ("redrive", "discard"):
            waiting = self.paper.desks[scope].dead
            if not waiting:
                return
            letter = waiting[n % len(waiting)]
            sent = (redrive if kind == "redrive" else discard)(scope, n, letter.key, letter.generation, ())
        elif kind in ("again", "other"):
            earlier = [each for each in self.paper.sent if not each.query and each.at is None and "raw" not in each.key]
            if not earlier:
                return
            first = earlier[n % len(earlier)]
            payload = first.command.payload if kind == "again" else {"amount": 99 + n}
            repeated = attrs.evolve(first.command, id=f"c{n}", payload=payload)
            sent = Sent(repeated, repeatable=first.repeatable)
        else:
            if version is not None and entity is not None:
                more["expected_version"] = version
            amount = {"amount": n} if kind in ("add", "take", "charge") else {}
            sent = Sent(command(scope, kind, n, amount, **more), repeatable=kind != "roll")
        self.paper.send(attrs.evolve(sent, outcome="ok" if outcome == "ok" else "unknown"))
        if outcome == "lost":
            del self.paper.commands[self.paper.seqs]


@given(course=steps)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_sound_runs_pass(course: Sequence[Sequence[Any]]) -> None:
    run = Course()
    for step in course:
        run.take(step)
    evidence = run.paper.drain()
    assert not wrong(evidence), "\n".join(wrong(evidence))


# Of one entity, so that much is set aside, redriven, and set aside again.
fates = st.lists(
    st.one_of(
        st.sampled_from(["add", "charge", "charge", "explode", "redrive", "redrive", "discard", "again"]).map(
            lambda kind: ("send", kind, COUNTER, "a", None, "ok")
        ),
        st.sampled_from([None, None, None, *STAGES]).map(lambda dies: ("turn", COUNTER, 64, dies)),
    ),
    min_size=8,
    max_size=40,
)


@given(course=fates)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_sound_runs_pass_when_dead_letters_are_redriven(course: Sequence[Sequence[Any]]) -> None:
    run = Course()
    for step in course:
        run.take(step)
    evidence = run.paper.drain()
    assert not wrong(evidence), "\n".join(wrong(evidence))
    found = _in_other_rows(evidence, lambda *_, **__: None)
    missed = [name for name in found if name.startswith("generation") and not wrong(found[name]())]
    assert not missed


rollbacks = st.one_of(st.just(("copy",)), st.just(("rollback",)))


@given(course=st.lists(st.one_of(steps.map(lambda taken: taken[0] if taken else ("copy",)), rollbacks), max_size=30))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_sound_runs_pass_when_the_broker_goes_back(course: Sequence[Sequence[Any]]) -> None:
    """But for commands of agents and redrives: what the broker forgets of these is not sent again."""
    run = Course(unwanted=("tell", "redrive"))
    for step in course:
        run.take(step)
    evidence = run.paper.drain()
    assert not wrong(evidence), "\n".join(wrong(evidence))


# -- one change ------------------------------------------------------------------------------------------------------


def flipped(body: bytes, at: int) -> bytes:
    """With one bit of one byte changed."""
    at %= len(body)
    return body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]


def _in_rows(evidence: Evidence) -> dict[str, Callable[[], Evidence]]:
    """Every change of one value in the store that must be found."""
    made: dict[str, Callable[[], Evidence]] = {}

    def change(table: str, row: Any, title: str, **fields: Any) -> None:
        made[f"{table} {title}"] = lambda: edit(evidence, table, row, **fields)

    for row in evidence.rows.outputs:
        name = f"{row.scope} {row.n}"
        made[f"drop output {name}"] = lambda row=row: drop(evidence, "outputs", row)  # type: ignore[misc]
        for field, value in {
            "n": row.n + 1000,
            "key": "nobodys",
            "event_id": "e",
            "name": "renamed",
            "subject": f"{row.subject}x",
            "msg_id": "0" * 32,
            "entity_id": "nowhere",
            "version": (row.version or 0) + 1,
            "chain": flipped(row.chain or b"\0", row.n),
            "prev": (row.prev or 0) + 1,
        }.items():
            # The body of a letter names neither.
            if row.kind != "dead" or field not in ("event_id", "entity_id"):
                change("outputs", row, f"{name} {field}", **{field: value})
        if row.kind != "command":
            change("outputs", row, f"{name} body", body=flipped(row.body, row.n * 31))
    for record in evidence.rows.keys:
        name = f"{record.scope} {record.key}"
        made[f"drop key {name}"] = lambda record=record: drop(evidence, "keys", record)  # type: ignore[misc]
        made[f"key twice {name}"] = lambda record=record: add(evidence, "keys", record)  # type: ignore[misc]
        change("keys", record, f"{name} key", key="nobodys")
        change("keys", record, f"{name} first_n", first_n=record.first_n + 1)
        change("keys", record, f"{name} last_n", last_n=record.last_n + 1)
        other = "conflict" if record.outcome != "conflict" else "decided"
        change("keys", record, f"{name} outcome", outcome=other)
        if not record.key.startswith(("evt:", "raw:")):
            change("keys", record, f"{name} payload_hash", payload_hash=flipped(record.payload_hash, record.first_n))
    for record in evidence.rows.mismatches:
        name = f"{record.scope} {record.key}"
        made[f"drop mismatch {name}"] = lambda record=record: drop(evidence, "mismatches", record)  # type: ignore[misc]
        change("mismatches", record, f"{name} payload_hash", payload_hash=b"\0" * 32)
    return made | _in_other_rows(evidence, change)


def _in_other_rows(evidence: Evidence, change: Callable[..., None]) -> dict[str, Callable[[], Evidence]]:
    made: dict[str, Callable[[], Evidence]] = {}
    for place, head in evidence.rows.heads.items():
        for what, changed in {
            "version": attrs.evolve(head, version=head.version + 1),
            "chain": attrs.evolve(head, chain=flipped(head.chain, 3)),
            "last_n": attrs.evolve(head, last_n=head.last_n + 1),
        }.items():
            heads = {**evidence.rows.heads, place: changed}
            made[f"heads {place} {what}"] = lambda heads=heads: _with_rows(evidence, heads=heads)  # type: ignore[misc]
        rest = {at: row for at, row in evidence.rows.heads.items() if at != place}
        made[f"drop head {place}"] = lambda rest=rest: _with_rows(evidence, heads=rest)  # type: ignore[misc]
    for mark in evidence.rows.marks:
        if mark.event_seq:
            change("marks", mark, f"{mark.scope} {mark.n} event_id", event_id="0" * 32)
            change("marks", mark, f"{mark.scope} {mark.n} event_seq", event_seq=mark.event_seq + 1)
        change("marks", mark, f"{mark.scope} {mark.n} n", n=mark.n + 1000)
    for letter in evidence.rows.dead:
        state = "discarded" if letter.state != "discarded" else "redriven"
        edits = {"body": b"", "code": "x", "attempts": 9, "generation": 7, "subject": "x", "state": state}
        for field, value in edits.items():
            change("dead", letter, f"{letter.scope} {letter.key} {letter.generation} {field}", **{field: value})
    for at, generation in evidence.rows.generations.items():
        raised = {**evidence.rows.generations, at: generation + 1}
        made[f"generation {at}"] = lambda raised=raised: _with_rows(evidence, generations=raised)  # type: ignore[misc]
    for scope, (n, value) in evidence.rows.state_hashes.items():
        hashes = {**evidence.rows.state_hashes, scope: (n, value[::-1])}
        made[f"state hash {scope}"] = lambda hashes=hashes: _with_rows(evidence, state_hashes=hashes)  # type: ignore[misc]
    return made


def _with_rows(evidence: Evidence, **tables: Any) -> Evidence:
    return attrs.evolve(evidence, rows=attrs.evolve(evidence.rows, **tables))


def _in_streams(evidence: Evidence) -> dict[str, Callable[[], Evidence]]:
    """Every change of one message that must be found."""
    made: dict[str, Callable[[], Evidence]] = {}
    for name in ("events", "failed"):
        messages = getattr(evidence, name)
        for i, message in enumerate(messages):
            rest = [*messages[:i], *messages[i + 1 :]]
            changed = {
                "drop": rest,
                "twice": [*messages, attrs.evolve(message, seq=len(messages) + 1)],
                "body": [*rest, attrs.evolve(message, body=flipped(message.body, i * 17))],
                "subject": [*rest, attrs.evolve(message, subject="evt.x.y.z.n")],
                "msg_id": [*rest, attrs.evolve(message, msg_id="0" * 32)],
            }
            for what, content in changed.items():
                made[f"{what} {name} {i}"] = lambda name=name, c=content: streams(evidence, name, lambda _: c)  # type: ignore[misc]
    made |= _swapped(evidence)
    return made


def _swapped(evidence: Evidence) -> dict[str, Callable[[], Evidence]]:
    """Two messages of one entity in the other's place."""
    made: dict[str, Callable[[], Evidence]] = {}
    for entity in ("a", "b", "c"):
        ids = [row.msg_id for row in rows_of(evidence, "outputs", scope=COUNTER, entity_id=entity)]
        found = [message for message in evidence.events if message.msg_id in ids]
        for one, two in pairwise(found):
            seqs = {one.msg_id: two.seq, two.msg_id: one.seq}
            made[f"swap {entity} {one.seq} {two.seq}"] = lambda seqs=seqs: streams(  # type: ignore[misc]
                evidence, "events", lambda all_: [attrs.evolve(m, seq=seqs.get(m.msg_id, m.seq)) for m in all_]
            )
    return made


@cache
def changes() -> dict[str, Callable[[], Evidence]]:
    """Over the run that takes every path."""
    return {**_in_rows(end()), **_in_streams(end())}


def test_there_is_much_to_change() -> None:
    assert len(changes()) > 1000


@pytest.mark.parametrize("part", range(8))
def test_one_change_is_found(part: int) -> None:
    """Any one value in store or streams, and no checker is thrown by it."""
    missed = []
    for name in sorted(changes())[part::8]:
        judgements = judge(changes()[name]())
        failures = [judgement.failure for judgement in judgements if judgement.failure]
        assert not failures, (name, failures)
        if all(judgement.holds for judgement in judgements):
            missed.append(name)
    assert not missed


@given(data=st.data())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_one_change_in_any_run_is_found(data: st.DataObject) -> None:
    run = Course()
    run.send("add", COUNTER, "a", None, "ok")
    for step in data.draw(st.one_of(steps, fates)):
        run.take(step)
    evidence = run.paper.drain()
    found = {**_in_rows(evidence), **_in_streams(evidence)}
    name = data.draw(st.sampled_from(sorted(found)))
    assert wrong(found[name]()), name
