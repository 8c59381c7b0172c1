"""What is rendered is read again as the same."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from prds_strategy import prds

from meshforge_trio.factory.model import Field, Kind, Prd
from meshforge_trio.factory.prd import load_prd, read_prd
from meshforge_trio.factory.render import render

ROOT = Path(__file__).parents[3]
PRDS = sorted([*(ROOT / "tests/prds").glob("*.md"), *(ROOT / "examples").glob("*_prd.md")])


def test_there_are_ten_prds_beside_the_demo() -> None:
    assert len(PRDS) == 11


@pytest.mark.parametrize("path", PRDS, ids=lambda path: path.stem)
def test_a_prd_is_read_rendered_and_read_as_the_same(path: Path) -> None:
    prd = load_prd(path)
    assert len(prd.invariants) >= 3
    assert len(prd.examples) >= 2
    assert read_prd(render(prd)) == prd


def test_an_optional_text_may_start_as_an_empty_one() -> None:
    prd = load_prd(ROOT / "tests/prds/appointments.md")
    note = Field("note", Kind("optional", item=Kind("text")), start="")
    slot = attrs.evolve(prd.agents[0], state=(*prd.agents[0].state, note))
    prd = attrs.evolve(prd, agents=(slot, *prd.agents[1:]))
    assert read_prd(render(prd)).agents[0].state[-1] == note


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(prds())
def test_any_model_is_read_as_it_was_rendered(prd: Prd) -> None:
    text = render(prd)
    assert read_prd(text) == prd
    assert render(read_prd(text)) == text
