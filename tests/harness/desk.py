"""One scope on paper: the rows of its store as lists, and what an engine has in memory of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import attrs

from chaos.agents import audit, counter
from chaos.history import History, Record
from chaos.rows import HeadRow, KeyRow, Letter, MarkRow, OutputRow, Rows
from meshforge_trio.agent import Agent, AgentAdapter, Context, Reply
from meshforge_trio.entities import Cache, replayed
from meshforge_trio.envelope import JsonObject, canonical
from meshforge_trio.policy import RetryPolicy
from meshforge_trio.store.port import (
    Attempt,
    Commit,
    DeadLetter,
    Head,
    KeyRecord,
    Mark,
    Output,
    Reading,
    state_of_heads,
)
from meshforge_trio.subjects import Scope
from meshforge_trio.waiting import Waiting

__all__ = ["AGENTS", "Desk", "Notebook", "all_rows"]

#: What the harness's own agents do not do: fail at a question, and say nothing to an event.
fragile: Agent[int] = Agent("fragile", state=int, initial=int)


@fragile.query("peek")
def peek(state: int, payload: JsonObject, ctx: Context) -> Reply:
    raise RuntimeError("boom")


@fragile.on("counter", "added")
def ignored(state: int, payload: JsonObject, ctx: Context) -> list[object]:
    return []


AGENTS: Final[dict[str, AgentAdapter[Any]]] = {"counter": counter, "audit": audit, "fragile": fragile}


class Notebook(History):
    """A history that is a list, with a clock of its own."""

    def __init__(self) -> None:
        super().__init__(-1, "harness")
        self.records: list[Record] = []

    def write(self, kind: str, *, actor: str | None = None, **fields: Any) -> None:
        self.records.append(Record(1000 * (len(self.records) + 1), actor or self.actor, kind, fields))


@attrs.define(eq=False)
class Desk:
    """One scope: what its store holds, and what the engine of the moment has in memory."""

    scope: Scope
    agent: AgentAdapter[Any]
    policy: RetryPolicy
    outputs: list[Output] = attrs.field(factory=list)
    prevs: list[int | None] = attrs.field(factory=list)
    keys: dict[str, KeyRecord] = attrs.field(factory=dict)
    mismatches: dict[tuple[str, bytes], KeyRecord] = attrs.field(factory=dict)
    heads: dict[str, Head] = attrs.field(factory=dict)
    last_n: dict[str, int] = attrs.field(factory=dict)
    attempts: dict[str, Attempt] = attrs.field(factory=dict)
    dead: list[DeadLetter] = attrs.field(factory=list)
    marks: list[Mark] = attrs.field(factory=lambda: [Mark(0, 0, "", 0, "", 0.0)])
    generations: dict[str, int] = attrs.field(factory=dict)
    state_hash: tuple[int, str] | None = None
    heard_events: set[int] = attrs.field(factory=set)
    mark: Mark = attrs.field(init=False)
    waiting: Waiting = attrs.field(init=False)
    cache: Cache = attrs.field(init=False)
    in_hand: set[tuple[str, int]] = attrs.field(factory=set)

    def __attrs_post_init__(self) -> None:
        self.begin()

    def begin(self, mark: Mark | None = None) -> None:
        """A new session: nothing in memory but what the store says, and the mark that the streams confirm."""
        self.mark = self.marks[-1] if mark is None else mark
        self.waiting = Waiting(self.attempts.values(), self.policy, 1000)
        self.cache = Cache(100)

    def reading(self) -> Reading:
        return Reading(
            {key: (record, self._of(record)) for key, record in self.keys.items()},
            {pair: self._of(record) for pair, record in self.mismatches.items()},
            self.heads,
            self.generations,
        )

    def _of(self, record: KeyRecord) -> Sequence[Output]:
        return self.outputs[record.first_n - 1 : record.last_n]

    def commit(self, commit: Commit) -> None:
        """As one transaction would."""
        if self.mark != self.marks[-1]:
            self.marks.append(self.mark)
        for output in commit.outputs:
            versioned = output.version is not None and output.entity_id is not None
            self.prevs.append(self.last_n.get(str(output.entity_id), 0) if versioned else None)
            if versioned:
                self.last_n[str(output.entity_id)] = output.n
        self.outputs += commit.outputs
        self.keys |= {record.key: record for record in commit.keys}
        self.mismatches |= {(record.key, record.payload_hash): record for record in commit.mismatches}
        for head in commit.heads:
            chain = [o.body for o in self.outputs if o.entity_id == head.entity_id and o.version is not None]
            self.heads[head.entity_id] = attrs.evolve(head, tail=chain)
        self.attempts |= {attempt.key: attempt for attempt in commit.attempts}
        for key in commit.ended:
            self.attempts.pop(key, None)
        self.dead += commit.dead

    def record_state(self) -> str:
        """What an engine writes down at its clean end."""
        states = [
            (e, h.version, h.chain, canonical(self.agent.dump(replayed(self.agent, self.agent.initial(), h.tail))))
            for e, h in self.heads.items()
        ]
        self.state_hash = (len(self.outputs), state_of_heads(states))
        return self.state_hash[1]


def all_rows(desks: Sequence[Desk]) -> Rows:
    """What a reader of the store finds."""
    return Rows(
        [_output(d.scope, o, prev) for d in desks for o, prev in zip(d.outputs, d.prevs, strict=True)],
        [_key(d.scope, record) for d in desks for record in d.keys.values()],
        [_key(d.scope, record) for d in desks for record in d.mismatches.values()],
        {(d.scope, e): HeadRow(h.version, h.chain, d.last_n[e]) for d in desks for e, h in d.heads.items()},
        [MarkRow(d.scope, m.n, m.event_seq, m.event_id, m.failed_seq, m.failed_id) for d in desks for m in d.marks],
        {(d.scope, key): attempt.attempts for d in desks for key, attempt in d.attempts.items()},
        [_letter(d.scope, letter) for d in desks for letter in d.dead],
        {d.scope: d.state_hash for d in desks if d.state_hash},
    )


def _output(scope: Scope, o: Output, prev: int | None) -> OutputRow:
    return OutputRow(
        scope,
        o.n,
        o.kind,
        o.key,
        o.event_id,
        o.name,
        o.subject,
        o.msg_id,
        o.body,
        o.entity_id,
        o.version,
        o.chain,
        prev,
    )


def _key(scope: Scope, record: KeyRecord) -> KeyRow:
    return KeyRow(
        scope, record.key, record.payload_hash, record.outcome, record.first_n, record.last_n, record.generation
    )


def _letter(scope: Scope, d: DeadLetter) -> Letter:
    return Letter(scope, d.key, d.generation, d.subject, d.body, d.code, d.attempts)
