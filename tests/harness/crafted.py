"""Crafted evidence: two sound runs, edits that break one thing in them, and the collection of what must be found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import attrs
import orjson
import pytest

from chaos.checkers import Judgement, judge
from chaos.evidence import Evidence, Sent, envelope_of
from chaos.history import Record
from chaos.rows import KeyRow, OutputRow
from chaos.workload import command, every_path, trespass
from meshforge_trio.broker.port import StoredMessage
from meshforge_trio.subjects import Scope

from .paper import COUNTER, FRAGILE, OTHER, Paper

__all__ = [
    "Cases",
    "add",
    "add_to",
    "body_with",
    "corpse",
    "drop",
    "edit",
    "end",
    "failed_query",
    "judgement",
    "key_of",
    "noting",
    "output_of",
    "rows_of",
    "streams",
    "without",
    "without_sent",
]

Make = Callable[[], Evidence]


# -- sound runs ------------------------------------------------------------------------------------------------------


@cache
def end() -> Evidence:
    """The end of a run that takes every path, in two tenants with equal ids, with two kills and a trespass."""
    paper = Paper()
    paper.send(*every_path(COUNTER), *every_path(OTHER), trespass(COUNTER, OTHER, 77))
    paper.recover()
    paper.turn(COUNTER, 3, "committed")
    paper.recover()
    paper.turn(OTHER, 4, "echoed")
    return paper.drain()


@cache
def corpse() -> Evidence:
    """A worker killed after a commit: what an earlier turn published is marked, the rest is not published."""
    paper = Paper()
    paper.send(*every_path(COUNTER), *every_path(OTHER), trespass(COUNTER, OTHER, 77))
    paper.recover()
    paper.turn(COUNTER, 3)
    paper.turn(COUNTER, 4, "committed")
    return paper.corpse


def add_to(entity: str | None, number: int, **more: Any) -> Sent:
    """Command `c<number>`, which adds 1 to an entity."""
    return Sent(command(COUNTER, "add", number, {"amount": 1}, entity_id=entity, **more))


def failed_query() -> Evidence:
    """The end of a run in which a query failed until it was set aside."""
    paper = Paper((FRAGILE,))
    paper.send(Sent(command(FRAGILE, "peek", 1, entity_id="a", idempotency_key=None), query=True))
    return paper.drain()


# -- edits -----------------------------------------------------------------------------------------------------------


def rows_of(evidence: Evidence, table: str, **fields: Any) -> list[Any]:
    """The rows of a table with these values."""
    rows = getattr(evidence.rows, table)
    return [row for row in rows if all(getattr(row, name) == value for name, value in fields.items())]


def output_of(evidence: Evidence, key: str, name: str = "", scope: Scope = COUNTER) -> OutputRow:
    """The first output of a key, or the first of a name."""
    found: list[OutputRow] = rows_of(evidence, "outputs", key=key, scope=scope)
    return next(row for row in found if not name or row.name == name)


def key_of(evidence: Evidence, key: str, scope: Scope = COUNTER) -> KeyRow:
    """The record of a key."""
    record: KeyRow
    (record,) = rows_of(evidence, "keys", key=key, scope=scope)
    return record


def edit(evidence: Evidence, table: str, row: Any, **changes: Any) -> Evidence:
    """With one row changed."""
    rows = getattr(evidence.rows, table)
    return _with(evidence, table, [attrs.evolve(each, **changes) if each is row else each for each in rows])


def drop(evidence: Evidence, table: str, *rows: Any) -> Evidence:
    """Without these rows."""
    return _with(evidence, table, [r for r in getattr(evidence.rows, table) if not any(r is row for row in rows)])


def add(evidence: Evidence, table: str, *rows: Any) -> Evidence:
    """With these rows beside."""
    return _with(evidence, table, [*getattr(evidence.rows, table), *rows])


def _with(evidence: Evidence, table: str, rows: Any) -> Evidence:
    return attrs.evolve(evidence, rows=attrs.evolve(evidence.rows, **{table: rows}))


def streams(evidence: Evidence, name: str, change: Callable[[list[StoredMessage]], list[StoredMessage]]) -> Evidence:
    """With another content of `commands`, `events` or `failed`."""
    changed: dict[str, Any] = {name: change(list(getattr(evidence, name)))}
    return attrs.evolve(evidence, **changed)


def noting(evidence: Evidence, *records: tuple[str, str, dict[str, Any]], at: int = -1) -> Evidence:
    """With (actor, kind, fields) in the history, at its end, or, at a moment, before all that is later."""
    t = at if at >= 0 else evidence.history[-1].t + 1
    more = [Record(t, *record) for record in records]
    history = sorted([*evidence.history, *more], key=lambda record: record.t)
    return attrs.evolve(evidence, history=history)


def without(evidence: Evidence, unwanted: Callable[[Record], bool]) -> Evidence:
    """With fewer records in the history."""
    return attrs.evolve(evidence, history=[record for record in evidence.history if not unwanted(record)])


def without_sent(evidence: Evidence, unwanted: Callable[[Sent], bool]) -> Evidence:
    """As if nobody had sent these, as far as client and history know."""
    gone = [sent for sent in evidence.sent if unwanted(sent)]
    names = {(sent.command.id, sent.subject) for sent in gone}
    kept = attrs.evolve(evidence, sent=[sent for sent in evidence.sent if not unwanted(sent)])
    return without(kept, lambda r: r.kind == "send" and (r["id"], r["subject"]) in names)


def body_with(message: StoredMessage | OutputRow, **fields: Any) -> bytes:
    """A body with other fields; those of `payload` are set one by one."""
    told = dict(envelope_of(message))
    if "payload" in fields:
        fields["payload"] = {**told["payload"], **fields["payload"]}
    return orjson.dumps({**told, **fields})


# -- what must be found ----------------------------------------------------------------------------------------------


def judgement(evidence: Evidence, guarantee: str) -> Judgement:
    """What the checker of a guarantee says."""
    (found,) = [each for each in judge(evidence) if each.id == guarantee]
    return found


@attrs.frozen
class Broken:
    """Evidence in which a guarantee does not hold, and a part of what its checker must say."""

    guarantee: str
    text: str
    make: Make

    def check(self) -> None:
        """The checker says so, quoting its sentence, and no checker is thrown by it."""
        judgements = judge(self.make())
        failures = [each.failure for each in judgements if each.failure]
        assert not failures, failures
        (found,) = [each for each in judgements if each.id == self.guarantee]
        assert any(self.text in finding.what for finding in found.findings), str(found)
        assert found.sentence in str(found)
        assert Judgement.from_json(orjson.loads(orjson.dumps(found.to_json()))) == attrs.evolve(
            found, findings=tuple(attrs.evolve(f, keys=tuple(f.keys)) for f in found.findings)
        )


@attrs.frozen
class Sound:
    """Evidence that looks as if a guarantee did not hold, and in which all of them do."""

    guarantee: str
    make: Make

    def check(self) -> None:
        """No checker says anything."""
        judgements = judge(self.make())
        wrong = [str(each) for each in judgements if not each.holds]
        assert not wrong, "\n".join(wrong)
        # Answers and draining are not judged on a corpse.
        examined = [each.examined for each in judgements if each.id == self.guarantee]
        assert all(examined), self.guarantee


class Cases:
    """The cases of one module."""

    def __init__(self) -> None:
        self.broken: list[Broken] = []
        self.sound: list[Sound] = []

    def breaks(self, guarantee: str, text: str) -> Callable[[Make], Make]:
        """The function makes evidence in which `guarantee` does not hold; its checker says `text`."""

        def register(make: Make) -> Make:
            self.broken.append(Broken(guarantee, text, make))
            return make

        return register

    def holds(self, guarantee: str) -> Callable[[Make], Make]:
        """The function makes evidence in which everything holds, though by little `guarantee` does not."""

        def register(make: Make) -> Make:
            self.sound.append(Sound(guarantee, make))
            return make

        return register

    def params(self, cases: Sequence[Broken] | Sequence[Sound]) -> Sequence[Any]:
        """For `pytest.mark.parametrize`, named by guarantee and function."""
        return [pytest.param(case, id=f"{case.guarantee}-{case.make.__name__}") for case in cases]
