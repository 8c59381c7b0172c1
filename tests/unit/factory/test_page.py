"""The page about the format says what the reader of PRDs does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from meshforge_trio.factory.expressions import _FUNCTIONS, _OPERATORS
from meshforge_trio.factory.kinds import _PLAIN, read_kind
from meshforge_trio.factory.outline import read_outline
from meshforge_trio.factory.prd import read_prd
from meshforge_trio.factory.problems import Problems
from meshforge_trio.factory.resolution import SENTENCES

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/prd.md").read_text()
DEMO = (ROOT / "examples/multi_agent_demo_prd.md").read_text()
BLOCKS = re.findall(r"^```markdown\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_demo_is_read() -> None:
    assert read_prd(DEMO).slug == "order-inventory-and-shipping"


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_every_example_of_the_page_is_a_piece_of_the_demo(number: int) -> None:
    assert BLOCKS[number] in DEMO


def test_every_heading_of_a_prd_is_shown() -> None:
    shown = {line.split(":")[0] for block in BLOCKS for line in block.split("\n") if line.startswith("#")}
    demo = {line.split(":")[0] for line in DEMO.split("\n") if line.startswith("##")}
    assert demo - shown == {"## Invariants", "## Acceptance"}
    assert all(f"`{heading}`" in PAGE for heading in demo - shown)


def test_every_type_is_told_with_its_python() -> None:
    told = re.findall(r"^\| `{1,2}(.+?)`{1,2} \| [^|]+ \| `(.+)` \|$", PAGE.split("## Types")[1], re.MULTILINE)
    for text, python in told:
        cell = read_outline(f"# A\n\n{text}", Problems())[0].prose[0]
        assert read_kind(cell).python == python.replace(r"\|", "|")
    assert {text.split()[0] for text, _ in told} == {*_PLAIN, "one", "list", "optional"}


def test_every_function_and_operator_is_told() -> None:
    section = PAGE.split("## Expressions")[1].split("\n## ")[0]
    assert {name for name in _FUNCTIONS if f"`{name}(" in section} == set(_FUNCTIONS)
    arithmetic = {operator for operator in _OPERATORS.values() if operator in "+-*//%" and operator != "/"}
    assert set(re.search(r"`(\+[^`]*)`", section)[1].split()) == arithmetic  # type: ignore[index]


def test_every_sentence_of_a_command_is_told() -> None:
    table = PAGE.split("| sentence | meaning |")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| `{1,2}- (\w+)", table, re.MULTILINE)) == set(SENTENCES)
