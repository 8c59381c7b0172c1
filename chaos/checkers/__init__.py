"""Checkers: one file per guarantee, each judging evidence and saying how much of it it looked at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from chaos.checkers import (
    g01_not_forgotten,
    g02_effect_once,
    g03_no_phantom,
    g04_delivered,
    g05_atomic,
    g06_gapless,
    g07_replay,
    g08_same_answer,
    g09_isolated,
    g10_one_holder,
    g11_set_aside_once,
    g12_drains,
    g13_in_order,
)
from chaos.checkers.base import Checker, Finding, Judgement, listed
from chaos.evidence import Evidence

__all__ = ["CHECKERS", "Checker", "Finding", "Judgement", "judge", "listed"]

CHECKERS: Sequence[Checker] = (
    g01_not_forgotten.CHECKER,
    g02_effect_once.CHECKER,
    g03_no_phantom.CHECKER,
    g04_delivered.CHECKER,
    g05_atomic.CHECKER,
    g06_gapless.CHECKER,
    g07_replay.CHECKER,
    g08_same_answer.CHECKER,
    g09_isolated.CHECKER,
    g10_one_holder.CHECKER,
    g11_set_aside_once.CHECKER,
    g12_drains.CHECKER,
    g13_in_order.CHECKER,
)


def judge(evidence: Evidence, extra: Iterable[Checker] = ()) -> Sequence[Judgement]:
    """What every checker says, those of the guarantees first; `extra` are a scenario's own. Never raises.

    Of a corpse only those are asked that judge one: liveness and answers are judged at the end.
    """
    return [checker.judge(evidence) for checker in (*CHECKERS, *extra) if evidence.final or checker.on_corpse]
