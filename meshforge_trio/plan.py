"""A decided batch: one transaction, and what is sent once it is committed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import attrs

from meshforge_trio.broker.port import Message, Settlement
from meshforge_trio.drafts import as_message
from meshforge_trio.entities import Entities
from meshforge_trio.intake import Incoming
from meshforge_trio.store.port import Attempt, Commit, DeadLetter, KeyRecord, Outcome, Output
from meshforge_trio.waiting import Waiting

__all__ = ["Plan", "Verdict", "assemble"]

#: What can become of a delivery beside an outcome that is stored under its key.
Unstored = Literal["answered", "duplicate", "failed", "held"]


@attrs.define(eq=False)
class Verdict:
    """What became of one delivery. `wait_s` set means NAK with that delay; otherwise it is ACKed.

    `echo` is what a duplicate hears again: stored outputs, or the verdict of the first in the same batch.
    """

    incoming: Incoming
    outcome: Outcome | Unstored
    outputs: Sequence[Output] = ()
    echo: Sequence[Output] | Verdict = ()
    mismatch: bool = False
    generation: int = 0
    attempt: Attempt | None = None
    dead: DeadLetter | None = None
    redriven: tuple[str, int] | None = None
    discarded: tuple[str, int] | None = None
    wait_s: float | None = None


@attrs.define(eq=False)
class Plan:
    """What to commit, and what to send and settle afterwards. `began` is the moment of `Clock.elapsed` it is from."""

    commit: Commit
    verdicts: Sequence[Verdict]
    began: float = 0.0
    echoes: list[Message] = attrs.field(factory=list)
    answers: list[Message] = attrs.field(factory=list)
    settlements: list[Settlement] = attrs.field(factory=list)

    @property
    def writes(self) -> bool:
        """Whether there is anything to commit."""
        commit = self.commit
        return bool(commit.keys or commit.mismatches or commit.attempts or commit.ended)


def assemble(verdicts: Sequence[Verdict], commit: Commit, next_n: int, entities: Entities, waiting: Waiting) -> Plan:
    """Number the outputs in stream order from `next_n` and sort everything into its place."""
    plan = Plan(commit, verdicts)
    n = next_n
    for verdict in verdicts:
        incoming, outcome = verdict.incoming, verdict.outcome
        plan.settlements.append(Settlement(incoming.delivery, verdict.wait_s))
        if outcome == "held":
            continue
        if outcome == "failed":
            assert verdict.attempt is not None
            commit.attempts.append(verdict.attempt)
            continue
        # A duplicate, too: it may have come to be run alone before its first sending was decided.
        if waiting.attempt(incoming.key) is not None:
            commit.ended.append(incoming.key)
        if outcome == "duplicate":
            echo = verdict.echo.outputs if isinstance(verdict.echo, Verdict) else verdict.echo
            plan.echoes.extend(as_message(output) for output in echo if output.kind in ("event", "record"))
            continue
        if outcome == "answered":
            plan.answers.extend(as_message(output) for output in verdict.outputs)
            continue
        last = n + len(verdict.outputs) - 1
        for i, output in enumerate(verdict.outputs):
            output.n = n + i
        record = KeyRecord(incoming.key, incoming.hash, outcome, n, last, verdict.generation)
        (commit.mismatches if verdict.mismatch else commit.keys).append(record)
        if verdict.dead is not None:
            commit.dead.append(verdict.dead.numbered(n))
        if verdict.redriven is not None:
            commit.redriven.append(verdict.redriven)
        if verdict.discarded is not None:
            commit.discarded.append(verdict.discarded)
        commit.outputs.extend(verdict.outputs)
        n = last + 1
    entities.write_to(commit)
    return plan
