"""The certificate of a gate: what was tried, on which code, what was seen, and what it does not cover."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import apsw
import attrs

import chaos
import meshforge_trio
from chaos.gate import Gate, Stage, judged
from chaos.mutants.detect import Detection
from chaos.shrink import Violation
from chaos.tally import reasons_for, shown_hits
from chaos.verdict import Status
from meshforge_trio.server import server_version

__all__ = ["VERSION", "certificate", "certificate_text", "code_hash"]

#: Of the JSON form.
VERSION: Final = 1
#: What these runs stand for, and what they do not.
_WITHOUT_POWER_LOSS: Final = (
    "process crash (SIGKILL at a named point), pause (SIGSTOP), full disk, I/O error, locked, deleted and replaced "
    "store, crash, restart, pause, rollback, damaged files and full disk of the broker, loss of frames and connections"
)
CRASH_CLASS: Final = f"{_WITHOUT_POWER_LOSS}; not power loss: what the kernel had taken survived"
_WITH_POWER_LOSS: Final = f"{_WITHOUT_POWER_LOSS}; power loss of the store's machine, by its crash images"
#: Of a profile that does nothing else.
_KILLS_ALONE: Final = "process crash (SIGKILL at a named point); of other faults what the scripts try; not power loss"
#: Promises that an image broke and that are told, of each seed.
_BROKEN_MAX: Final = 3
_GIT_S: Final = 10.0


def certificate(gate: Gate) -> Mapping[str, Any]:
    """Everything that a gate has seen, as JSON values."""
    return {
        "version": VERSION,
        "verdict": gate.status.value,
        "reasons": list(gate.reasons),
        "profile": gate.profile.name,
        "crash_class": _crash_class(gate),
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(gate.seconds, 1),
        "seeds": list(gate.profile.seeds),
        "runs": {status.value: gate.tally.runs[status] for status in Status},
        "again": gate.tally.again,
        "kills": gate.tally.kills,
        "kills_min": gate.kills_min,
        "coverage": {
            "wanted": len(gate.wanted),
            "reached": len(gate.wanted) - len(gate.tally.missing(gate.wanted)),
            "excused": [{**attrs.asdict(cell), "reason": reason} for cell, reason in gate.excused.items()],
            "cells": gate.tally.coverage_json(gate.wanted, {**reasons_for(gate.tally, gate.missing), **gate.excused}),
        },
        "guarantees": gate.tally.to_json()["guarantees"],
        "stages": [_stage(stage) for stage in gate.stages],
        "mutants": [_mutant(detection) for detection in gate.detections],
        "power": [{"seed": seed, **result.to_json()} for seed, result in gate.power.items()],
        "violations": [_violation(violation) for violation in gate.violations],
        "code": {
            "meshforge_trio": code_hash(Path(meshforge_trio.__file__).parent),
            "chaos": code_hash(Path(chaos.__file__).parent),
            "catalogue": code_hash(Path(chaos.__file__).parent / "mutants"),
            "commit": _commit(),
        },
        "versions": _versions(),
    }


def _crash_class(gate: Gate) -> str:
    if gate.profile.actions == ("kill",):
        return _KILLS_ALONE
    return _WITH_POWER_LOSS if gate.power else CRASH_CLASS


def _stage(stage: Stage) -> Mapping[str, Any]:
    return {
        "kind": stage.kind,
        "name": stage.name,
        "seed": stage.seed,
        "searches": [str(search) for search in stage.searches],
        "seconds": round(stage.seconds, 1),
        "status": stage.tally.status.value,
        "runs": {status.value: stage.tally.runs[status] for status in Status},
        "kills": stage.tally.kills,
    }


def _mutant(detection: Detection) -> Mapping[str, Any]:
    return {
        "name": detection.mutant.name,
        "rule": detection.mutant.rule,
        "guarantee": detection.mutant.guarantee,
        "status": judged(detection).value,
        "caught": detection.proven,
        "fell": list(detection.fell),
        "plan": str(detection.outcome.case.plan),
        "tries": detection.tries,
    }


def _violation(violation: Violation) -> Mapping[str, Any]:
    home = violation.shown.home
    return {
        "guarantee": violation.guarantee,
        "scenario": violation.first.case.name,
        "found": str(violation.first.case.plan),
        "minimal": str(violation.shrunk.case.plan),
        "commands": len(violation.shrunk.case.sent),
        "reproduced": [violation.same, violation.times],
        "replay": violation.replay,
        "directory": None if home is None else str(home),
    }


def code_hash(package: Path) -> str:
    """SHA-256 over the sources of a package: the path of each file within it, its length and its bytes, in order."""
    total = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        content = path.read_bytes()
        total.update(f"{path.relative_to(package).as_posix()}\0{len(content)}\0".encode())
        total.update(content)
    return total.hexdigest()


def _commit() -> str | None:
    """The commit that is checked out here, with a + if files differ from it; nothing where there is none."""
    try:
        commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain")
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.strip() + ("+" if changes.strip() else "")


def _git(*arguments: str) -> str:
    command = ["git", "--no-optional-locks", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=_GIT_S, check=True).stdout


def _versions() -> Mapping[str, str]:
    return {
        "python": platform.python_version(),
        "meshforge_trio": version("meshforge-trio"),
        "nats_server": server_version(),
        "sqlite": apsw.sqlite_lib_version(),
        "platform": f"{sys.platform} {platform.machine()}, {os.cpu_count()} cores",
    }


# -- for people ----------------------------------------------------------------------------------------------------


def certificate_text(told: Mapping[str, Any]) -> str:
    """What `certificate` made, for people. The receipts are counted here, and listed in the JSON form."""
    return "\n".join([*_head(told), "", *_coverage(told), "", *_guarantees(told), "", *_mutants(told)]) + "\n"


def _head(told: Mapping[str, Any]) -> Iterator[str]:
    coverage, code, runs = told["coverage"], told["code"], told["runs"]
    caught = sum(mutant["caught"] for mutant in told["mutants"])
    yield f"CERTIFICATE: {told['verdict'].upper()}"
    yield from (f"  {reason}" for reason in told["reasons"])
    for violation in told["violations"]:
        same, times = violation["reproduced"]
        yield f"  {violation['guarantee']} broken: {violation['minimal'] or 'no fault'} (reproduced {same} of {times})"
        yield f"    replay: {violation['replay']}"
    yield ""
    yield f"profile       {told['profile']}, seeds {', '.join(map(str, told['seeds']))}, {told['made']}"
    yield f"runs          {sum(runs.values())}: {_counted(runs)}; {told['seconds']:.0f} s"
    if told["again"]:
        yield f"              {told['again']} more missed the turn that their rule was for, and were made again"
    yield f"kills         {told['kills']}, at least {told['kills_min']}; each has its receipt: an end by signal 9"
    yield f"coverage      {coverage['reached']} of {coverage['wanted']} actions at places"
    yield f"planted bugs  {caught} of {len(told['mutants'])} caught"
    yield from _power(told["power"])
    yield f"crash class   {told['crash_class']}"
    yield f"code          meshforge_trio {code['meshforge_trio']}"
    yield f"              chaos          {code['chaos']}"
    yield f"              catalogue      {code['catalogue']}"
    yield f"              commit         {code['commit'] or 'none'}"
    yield f"versions      {', '.join(f'{name} {found}' for name, found in told['versions'].items())}"


def _power(told: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """How many crash images there were, and what broke first in them."""
    if told:
        distinct, bad, promises = (sum(result[field] for result in told) for field in ("distinct", "bad", "promises"))
        yield f"power loss    {distinct} crash images, {bad} bad; {promises} promises to keep"
    for result in told:
        for broken in result["broken"][:_BROKEN_MAX]:
            yield f"              {broken['guarantee']} broken, seed {result['seed']}: {broken['what']}"


def _counted(runs: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {status}" for status, count in runs.items())


def _coverage(told: Mapping[str, Any]) -> Iterator[str]:
    yield "action at place                      runs  receipts  hits"
    for cell in told["coverage"]["cells"]:
        name = f"{cell['actor']} {cell['action']} at {cell['place']}"
        receipts = len(cell["receipts"]) if (cell["actor"], cell["action"]) == ("worker", "kill") else "-"
        hits = shown_hits(set(cell["hits"])) or f"not reached: {cell['reason']}"
        yield f"{name:<36} {cell['times']:>4}  {receipts:>8}  {hits}"


def _guarantees(told: Mapping[str, Any]) -> Iterator[str]:
    yield "guarantee                            runs  examined"
    for id_, held in told["guarantees"].items():
        word = (
            f"broken in {held['broken']}" if held["broken"] else "holds" if held["examined"] else "nothing to examine"
        )
        yield f"{id_:<14.14} {word:<21} {held['runs']:>4}  {held['examined']:>8}"


def _mutants(told: Mapping[str, Any]) -> Iterator[str]:
    yield "planted bug                          breaks     fell"
    for mutant in told["mutants"]:
        fell = (
            ", ".join(mutant["fell"])
            if mutant["caught"]
            else f"{mutant['status'].upper()}: {', '.join(mutant['fell'])}"
        )
        yield f"{mutant['name']:<36.36} {mutant['rule'] or '-':<4} {mutant['guarantee']:<4}  {fell}"
