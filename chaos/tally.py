"""The tally of many runs: what was tried, what was reached, who died of it, and what held.

A cell is an actor's action at a place: `worker kill at after_store`. It is reached when a rule of a plan did it in a
run that can be trusted; of a kill there must be the receipt, a process that ended by signal 9.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import attrs

from chaos.lab import Outcome
from chaos.plan import ALLOWED, Rule
from chaos.verdict import Receipt, Status

__all__ = ["Cell", "Held", "Proof", "Reach", "Tally", "cells", "rank", "reasons_for", "shown_hits", "told_outcome"]

#: Outcomes that are kept with their verdict, of each kind: enough to see what is wrong.
_KEPT_MAX: Final = 200
_KILLED: Final = -int(signal.SIGKILL)


@attrs.frozen(order=True)
class Cell:
    """An actor's action at a place: a point of the protocol, or a kind of frame."""

    actor: str
    place: str
    action: str

    def __str__(self) -> str:
        return f"{self.actor} {self.action} at {self.place}"


def cells(*actors: str) -> Sequence[Cell]:
    """Every action of these actors, at each place where it may stand; in the order of the protocol."""
    return [
        Cell(actor, place, action)
        for actor in actors or ALLOWED
        for action, kind in ALLOWED[actor].items()
        for place in kind.places
    ]


@attrs.frozen
class Proof:
    """The receipt of one kill, and the run it belongs to."""

    scenario: str
    batch: int
    plan: str
    receipt: Receipt

    def to_json(self) -> Mapping[str, Any]:
        """With the number of the signal, which is what killed it."""
        return {
            "scenario": self.scenario,
            "batch": self.batch,
            "plan": self.plan,
            "rule": self.receipt.rule,
            "pid": self.receipt.pid,
            "signal": -self.receipt.status,
        }


@attrs.define
class Reach:
    """How often a cell was reached, at which hits, with the receipts if it is a kill."""

    times: int = 0
    hits: set[int] = attrs.field(factory=set)
    proofs: list[Proof] = attrs.field(factory=list)


@attrs.define
class Held:
    """One guarantee over many runs. `runs` counts those in which its checker found something to examine.

    `unjudged` counts the judgements in which the checker itself failed.
    """

    sentence: str
    runs: int = 0
    examined: int = 0
    broken: int = 0
    unjudged: int = 0


@attrs.define
class Tally:
    """What many outcomes come to. `passed` are the points that any worker went by, killed or not.

    `again` counts the runs that are not among `runs`, since they missed a rule and were made again.
    """

    runs: Counter[Status] = attrs.field(factory=Counter)
    again: int = 0
    kills: int = 0
    reached: dict[Cell, Reach] = attrs.field(factory=dict)
    passed: Counter[str] = attrs.field(factory=Counter)
    guarantees: dict[str, Held] = attrs.field(factory=dict)
    violations: list[Outcome] = attrs.field(factory=list)
    inconclusive: list[Outcome] = attrs.field(factory=list)

    @property
    def total(self) -> int:
        """How many runs there were."""
        return self.runs.total()

    @property
    def status(self) -> Status:
        """The worst of the runs; without any, nothing is shown."""
        if self.runs[Status.VIOLATION]:
            return Status.VIOLATION
        return Status.INCONCLUSIVE if self.runs[Status.INCONCLUSIVE] or not self.total else Status.PASS

    def note(self, outcome: Outcome) -> None:
        """Add one outcome. Its evidence is looked at and let go."""
        self.runs[outcome.status] += 1
        self.again += outcome.tries - 1
        self.kills += sum(receipt.status == _KILLED for receipt in outcome.verdict.receipts)
        if outcome.evidence is not None:
            self.passed.update({record["point"] for record in outcome.evidence.history if record.kind == "point"})
        self._note_guarantees(outcome)
        if outcome.status is not Status.INCONCLUSIVE:
            self._note_cells(outcome)
        if outcome.status is not Status.PASS:
            kept = self.violations if outcome.status is Status.VIOLATION else self.inconclusive
            if len(kept) < _KEPT_MAX:
                kept.append(attrs.evolve(outcome, evidence=None))

    def _note_guarantees(self, outcome: Outcome) -> None:
        seen: dict[str, bool] = {}
        for each in outcome.verdict.judgements:
            judgement = each.judgement
            held = self.guarantees.setdefault(judgement.id, Held(judgement.sentence))
            held.examined += judgement.examined
            held.unjudged += bool(judgement.failure)
            seen[judgement.id] = seen.get(judgement.id, False) or judgement.examined > 0
        for id_, examined in seen.items():
            self.guarantees[id_].runs += examined
        for id_ in outcome.verdict.broken_ids:
            self.guarantees[id_].broken += 1

    def _note_cells(self, outcome: Outcome) -> None:
        verdict = outcome.verdict
        receipts = {receipt.rule: receipt for receipt in verdict.receipts if receipt.status == _KILLED}
        for rule in outcome.case.plan.rules:
            text = str(rule)
            killing = (rule.actor, rule.action) == ("worker", "kill")
            if text not in verdict.fired or (killing and text not in receipts):
                continue
            reach = self.reached.setdefault(_cell(rule), Reach())
            reach.times += 1
            reach.hits.add(rule.nth)
            if killing:
                batch = int(outcome.case.engine.get("batch", 0))
                reach.proofs.append(Proof(outcome.case.name, batch, str(outcome.case.plan), receipts[text]))

    def missing(self, wanted: Sequence[Cell]) -> Sequence[Cell]:
        """Those of `wanted` that were not reached."""
        return [cell for cell in wanted if cell not in self.reached]

    def to_json(self) -> Mapping[str, Any]:
        """Counts, guarantees, and what did not pass; the coverage is `coverage_json`."""
        return {
            "status": self.status.value,
            "runs": {status.value: self.runs[status] for status in Status},
            "again": self.again,
            "kills": self.kills,
            "guarantees": {id_: attrs.asdict(self.guarantees[id_]) for id_ in sorted(self.guarantees, key=rank)},
            "violations": [told_outcome(outcome) for outcome in self.violations],
            "inconclusive": [told_outcome(outcome) for outcome in self.inconclusive],
        }

    def coverage_json(self, wanted: Sequence[Cell], reasons: Mapping[Cell, str]) -> Sequence[Mapping[str, Any]]:
        """One entry per cell, with every receipt; what was not reached has its reason."""
        return list(self._coverage(wanted, reasons))

    def _coverage(self, wanted: Sequence[Cell], reasons: Mapping[Cell, str]) -> Iterator[Mapping[str, Any]]:
        for cell in wanted:
            reach = self.reached.get(cell, Reach())
            yield {
                **attrs.asdict(cell),
                "times": reach.times,
                "hits": sorted(reach.hits),
                "receipts": [proof.to_json() for proof in reach.proofs],
                "reason": None if reach.times else reasons.get(cell, "never reached"),
            }


def _cell(rule: Rule) -> Cell:
    return Cell(rule.actor, rule.place, rule.action)


def reasons_for(tally: Tally, missing: Sequence[Cell]) -> Mapping[Cell, str]:
    """Why cells were not reached, as far as the histories tell."""
    return {
        cell: "reached, but not in a run that can be trusted"
        if tally.passed[cell.place]
        else "no run of this workload passes the point"
        for cell in missing
        if cell.actor == "worker"
    }


def rank(guarantee: str) -> tuple[int, str]:
    """Sorts G2 before G10, and what a scenario calls its own invariants behind them."""
    number = guarantee[1:]
    return (int(number), "") if guarantee[:1] == "G" and number.isdecimal() else (1_000, guarantee)


def shown_hits(hits: set[int]) -> str:
    """`1-4, 7`."""
    spans: list[list[int]] = []
    for hit in sorted(hits):
        if spans and spans[-1][1] == hit - 1:
            spans[-1][1] = hit
        else:
            spans.append([hit, hit])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


def told_outcome(outcome: Outcome) -> Mapping[str, Any]:
    """One run as the results for machines have it."""
    return {
        "status": outcome.status.value,
        "scenario": outcome.case.name,
        "plan": str(outcome.case.plan),
        "batch": outcome.case.engine.get("batch"),
        "broken": list(outcome.verdict.broken_ids),
        "findings": [str(judgement) for judgement in outcome.verdict.broken],
        "reasons": list(outcome.verdict.reasons),
        "fired": list(outcome.verdict.fired),
        "unhit": list(outcome.verdict.unhit),
        "receipts": [attrs.asdict(receipt) for receipt in outcome.verdict.receipts],
        "replay": outcome.case.replay,
        "directory": None if outcome.home is None else str(outcome.home),
        "seconds": round(outcome.seconds, 3),
    }
