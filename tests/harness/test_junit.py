"""JUnit XML: well-formed whatever the texts hold, of the form that readers know, under names that stay."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import attrs
import pytest

from chaos.case import Case
from chaos.gate import Gate, run_gate
from chaos.junit import junit_xml
from chaos.lab import Outcome
from chaos.mutants.patch import Patch
from chaos.sweep import Fixed
from meshforge_trio.points import Point

from .drill import PaperLab, bug, happens, small_scenario, twice
from .test_gate import SMALL, TARGET, Notes

#: What the schema that CI servers use allows: children, and the attributes an element cannot do without.
_CHILDREN = {
    "testsuites": {"testsuite"},
    "testsuite": {"properties", "testcase"},
    "testcase": {"properties", "failure", "error"},
    "properties": {"property"},
    "property": set(),
    "failure": set(),
    "error": set(),
}
_ATTRIBUTES = {
    "testsuites": {"name", "tests", "failures", "errors", "time"},
    "testsuite": {"name", "tests", "failures", "errors", "skipped", "time"},
    "testcase": {"classname", "name", "time"},
    "property": {"name", "value"},
    "failure": {"message", "type"},
    "error": {"message", "type"},
}
HOSTILE = "]]></failure>\x00\x1b[31m<&\"'\ud800\U0001f600\n"


async def gate_of(lab: PaperLab, **changes: Any) -> Gate:
    target = attrs.evolve(TARGET, scripts=[small_scenario("script", Fixed(["nats:received@1=kill"]))], **changes)
    return await run_gate(target, SMALL, lab, Notes())


def parsed(gate: Gate) -> ElementTree.Element:
    """The document, which has the form of the schema."""
    root = ElementTree.fromstring(junit_xml(gate))
    assert root.tag == "testsuites"
    for element in root.iter():
        assert {child.tag for child in element} <= _CHILDREN[element.tag], element.tag
        assert _ATTRIBUTES.get(element.tag, set()) <= element.attrib.keys()
    for suite in [root, *root.iter("testsuite")]:
        cases = list(suite.iter("testcase"))
        assert int(suite.attrib["tests"]) == len(cases)
        assert int(suite.attrib["failures"]) == sum(case.find("failure") is not None for case in cases)
        assert int(suite.attrib["errors"]) == sum(case.find("error") is not None for case in cases)
        assert float(suite.attrib["time"]) >= 0
    return root


def names(root: ElementTree.Element) -> list[str]:
    return [f"{case.attrib['classname']}.{case.attrib['name']}" for case in root.iter("testcase")]


async def test_a_gate_that_passes() -> None:
    root = parsed(await gate_of(PaperLab()))
    assert (root.attrib["failures"], root.attrib["errors"]) == ("0", "0")
    assert names(root) == [
        "chaos.sweep.kill at every hit (crash-matrix)",
        "chaos.sweep.kill the successor (crash-matrix)",
        "chaos.sweep.pairs of kills (crash-matrix)",
        "chaos.sweep.every other action (crash-matrix)",
        "chaos.scenario.script",
        "chaos.mutant.forgets",
        "chaos.mutant.doubles",
        "chaos.gate.every action at every place",
        "chaos.gate.enough kills",
        "chaos.gate.bugs were planted",
    ]


async def test_names_stay_whatever_comes_of_it() -> None:
    broken = await gate_of(PaperLab(lambda case, patch: twice(case, fell=["G7"])))
    assert names(parsed(broken)) == names(parsed(await gate_of(PaperLab())))


async def test_a_case_carries_seed_plan_and_coverage() -> None:
    root = parsed(await gate_of(PaperLab()))
    for case in root.iter("testcase"):
        found = {each.attrib["name"]: each.attrib["value"] for each in case.iter("property")}
        if case.attrib["classname"] in ("chaos.sweep", "chaos.scenario", "chaos.mutant"):
            assert {"seed", "coverage"} <= found.keys()
            assert found.keys() & {"plan", "searches"}
    sweep = root.findall(".//testcase")[0]
    assert "kill at every hit of 22 points, batch 1 and 64" in [each.attrib["value"] for each in sweep.iter("property")]


async def test_a_violation_is_a_failure_with_its_plan_and_replay() -> None:
    def answer(case: Case, patch: Patch | None) -> Outcome:
        return twice(case, fell=["G2"] if patch or str(case.plan) == "nats:received@1=kill" else [])

    root = parsed(await gate_of(PaperLab(answer), mutants=[bug("doubles", "G2")]))
    (script,) = [case for case in root.iter("testcase") if case.attrib["name"] == "script"]
    (failure,) = script.findall("failure")
    assert failure.attrib == {"message": "1 violation", "type": "violation"}
    assert "replay: meshforge-chaos run script --batch 64 --plan nats:received@1=kill" in str(failure.text)
    assert "nats:received@1=kill" in [each.attrib["value"] for each in script.iter("property")]


async def test_what_is_inconclusive_is_an_error() -> None:
    def answer(case: Case, patch: Patch | None) -> Outcome:
        stuck = ["no server"] if str(case.plan) == "nats:received@1=kill" else []
        return twice(case, reasons=stuck) if patch is None else happens(case, fell=["G1"])

    root = parsed(await gate_of(PaperLab(answer), mutants=[bug("doubles", "G2"), bug("forgets", "G1")], kills_min=9999))
    errors = [case.attrib["name"] for case in root.iter("testcase") if case.find("error") is not None]
    failures = [case.attrib["name"] for case in root.iter("testcase") if case.find("failure") is not None]
    assert errors == ["script", "enough kills"]
    assert failures == ["doubles"]


async def test_missing_cells_are_an_error_that_lists_them() -> None:
    def answer(case: Case, patch: Patch | None) -> Outcome:
        unhit = [str(rule) for rule in case.plan.rules if rule.nth > 2 or rule.place == Point.AFTER_HOLD]
        return twice(case, unhit=unhit) if patch is None else happens(case, fell=[case.name.rpartition("-")[2]])

    root = parsed(await gate_of(PaperLab(answer)))
    (error,) = root.findall(".//testcase/error")
    assert error.attrib["message"] == "73 of 75 reached"
    assert error.text == "worker kill at after_hold\nworker stop at after_hold"


@pytest.mark.parametrize("where", ["finding", "reason", "name"])
async def test_texts_that_xml_cannot_carry(where: str) -> None:
    def answer(case: Case, patch: Patch | None) -> Outcome:
        if patch is not None or str(case.plan) != "nats:received@1=kill" or where == "name":
            return twice(case, fell=["G1"] if patch else [])
        return twice(case, fell=[HOSTILE] if where == "finding" else (), reasons=[HOSTILE])

    script = small_scenario(HOSTILE if where == "name" else "script", Fixed(["nats:received@1=kill"]))
    target = attrs.evolve(TARGET, scripts=[script], mutants=[bug("forgets", "G1")])
    root = parsed(await run_gate(target, SMALL, PaperLab(answer), Notes()))
    text = " ".join([*root.itertext(), *(value for element in root.iter() for value in element.attrib.values())])
    assert "\U0001f600" in text
    assert "]]></failure>\ufffd\ufffd[31m<&\"'\ufffd" in text
