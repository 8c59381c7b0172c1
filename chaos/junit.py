"""The result of a gate as JUnit XML: one test case per sweep, scenario and planted bug, with names that stay.

A violation is a failure, what is inconclusive an error. Texts are cut of what XML cannot carry.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final
from xml.etree import ElementTree

import attrs

from chaos.gate import Gate, Stage, judged
from chaos.mutants.detect import Detection
from chaos.verdict import Status

__all__ = ["junit_xml"]

_TEXT_MAX: Final = 20_000
_OUTCOMES_MAX: Final = 5
#: What XML 1.0 has no way to write.
_UNWRITABLE: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_SUITES: Final = ("regression", "sweep", "scenario", "mutant", "power", "gate")


@attrs.frozen
class _TestCase:
    suite: str
    name: str
    seconds: float
    status: Status
    properties: Mapping[str, str]
    summary: str = ""
    text: str = ""


def junit_xml(gate: Gate) -> bytes:
    """The whole result."""
    found = [*map(_of_stage, gate.stages), *map(_of_mutant, gate.detections), *_of_power(gate), *_of_gate(gate)]
    root = ElementTree.Element("testsuites", _counts("meshforge-chaos", found))
    for suite in _SUITES:
        own = [each for each in found if each.suite == suite]
        if own:
            element = ElementTree.SubElement(root, "testsuite", _counts(f"chaos.{suite}", own))
            _write_properties(element, {"profile": gate.profile.name})
            for each in own:
                _write(element, each)
    ElementTree.indent(root)
    written: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return written + b"\n"


def _of_power(gate: Gate) -> Iterator[_TestCase]:
    """The crash images of each recording."""
    for seed, result in gate.power.items():
        properties = {"seed": str(seed), "images": str(result.distinct), "fell": ", ".join(result.fell)}
        text = "\n".join(map(str, result.broken[:_OUTCOMES_MAX])) or "\n".join(result.reasons)
        name = f"power loss, seed {seed}"
        yield _TestCase("power", name, result.seconds, result.status, properties, result.summary(), text)


def _counts(name: str, found: Sequence[_TestCase]) -> dict[str, str]:
    return {
        "name": name,
        "tests": str(len(found)),
        "failures": str(sum(each.status is Status.VIOLATION for each in found)),
        "errors": str(sum(each.status is Status.INCONCLUSIVE for each in found)),
        "skipped": "0",
        "time": f"{sum(each.seconds for each in found):.3f}",
    }


def _write(suite: ElementTree.Element, each: _TestCase) -> None:
    element = ElementTree.SubElement(
        suite,
        "testcase",
        {"classname": f"chaos.{each.suite}", "name": _clean(each.name), "time": f"{each.seconds:.3f}"},
    )
    _write_properties(element, each.properties)
    if each.status is not Status.PASS:
        tag = "failure" if each.status is Status.VIOLATION else "error"
        told = ElementTree.SubElement(element, tag, {"message": _clean(each.summary), "type": each.status.value})
        told.text = _clean(each.text or each.summary)


def _write_properties(parent: ElementTree.Element, properties: Mapping[str, str]) -> None:
    element = ElementTree.SubElement(parent, "properties")
    for name, value in properties.items():
        ElementTree.SubElement(element, "property", {"name": name, "value": _clean(value)})


def _clean(text: str) -> str:
    return _UNWRITABLE.sub("\N{REPLACEMENT CHARACTER}", text)[:_TEXT_MAX]


def _of_stage(stage: Stage) -> _TestCase:
    tally = stage.tally
    bad = tally.violations or tally.inconclusive
    properties = {
        "seed": str(stage.seed),
        "searches": "; ".join(map(str, stage.searches)),
        "runs": str(tally.total),
        "kills": str(tally.kills),
        "coverage": f"{len(tally.reached)} actions at places",
        **({"plan": str(bad[0].case.plan)} if bad else {}),
    }
    runs = ", ".join(f"{tally.runs[status]} {status}" for status in Status if tally.runs[status])
    text = "\n\n".join(str(outcome) for outcome in bad[:_OUTCOMES_MAX])
    return _TestCase(stage.kind, stage.name, stage.seconds, tally.status, properties, runs or "nothing was run", text)


def _of_mutant(detection: Detection) -> _TestCase:
    outcome = detection.outcome
    properties = {
        "seed": "0",
        "plan": str(outcome.case.plan),
        "coverage": detection.mutant.rule or "the order of the steps",
        "guarantee": detection.mutant.guarantee,
        "fell": ", ".join(detection.fell),
    }
    text = f"{detection}\n\n{outcome}"
    return _TestCase(
        "mutant", detection.mutant.name, outcome.seconds, judged(detection), properties, str(detection), text
    )


def _of_gate(gate: Gate) -> Iterator[_TestCase]:
    """What is asked of all of it together."""
    reached = len(gate.wanted) - len(gate.missing)
    coverage = f"{reached} of {len(gate.wanted)}"
    shows = Status.INCONCLUSIVE if gate.missing else Status.PASS
    left = "\n".join(map(str, gate.missing))
    yield _TestCase(
        "gate", "every action at every place", 0.0, shows, {"coverage": coverage}, f"{coverage} reached", left
    )
    enough = Status.PASS if gate.tally.kills >= gate.kills_min else Status.INCONCLUSIVE
    kills = f"{gate.tally.kills} kills, {gate.kills_min} is the least"
    yield _TestCase("gate", "enough kills", 0.0, enough, {"kills": str(gate.tally.kills)}, kills)
    planted = Status.PASS if gate.detections else Status.INCONCLUSIVE
    yield _TestCase("gate", "bugs were planted", 0.0, planted, {"mutants": str(len(gate.detections))}, "none was")
