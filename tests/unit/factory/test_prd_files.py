"""Files that are no PRD, and files that people really have."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from meshforge_trio.factory.prd import BYTES_MAX, load_prd, read_prd
from meshforge_trio.factory.problems import PrdError

DEMO = (Path(__file__).parents[3] / "examples/multi_agent_demo_prd.md").read_text()


@pytest.mark.parametrize(
    ("body", "what", "line"),
    [
        (b"", "the file is empty", 1),
        (b" \n\t\n", "the file is empty", 1),
        ("# Shop".encode("utf-16"), "the file is UTF-16", 1),
        (b"\x7fELF\0\0", "the file is binary", 1),
        (b"# Shop\n\n\xff", "is no UTF-8", 3),
        (b"#" * (BYTES_MAX + 1), "larger than", 1),
    ],
    ids=["empty", "blank", "utf-16", "binary", "latin-1", "large"],
)
def test_what_is_no_text(tmp_path: Path, body: bytes, what: str, line: int) -> None:
    (tmp_path / "my.md").write_bytes(body)
    with pytest.raises(PrdError) as caught:
        load_prd(tmp_path / "my.md")
    (problem,) = caught.value.problems
    assert what in problem.what
    assert problem.line == line
    assert str(caught.value).startswith(f"my.md:{line}:1: ")


@pytest.mark.parametrize("spelling", ["\r\n", "\r"])
def test_lines_may_end_as_they_like(spelling: str) -> None:
    assert read_prd(DEMO.replace("\n", spelling)) == read_prd(DEMO)
    with pytest.raises(PrdError) as caught:
        read_prd(DEMO.replace("- internal\n", "- internl\n", 1).replace("\n", spelling))
    (problem,) = caught.value.problems
    line = DEMO[: DEMO.index("- internal\n")].count("\n") + 1
    assert (problem.line, problem.column) == (line, 3)


def test_a_byte_order_mark_is_no_part_of_the_title(tmp_path: Path) -> None:
    (tmp_path / "my.md").write_bytes(b"\xef\xbb\xbf" + DEMO.encode())
    assert load_prd(tmp_path / "my.md") == read_prd(DEMO)


def test_a_character_that_is_none_is_shown() -> None:
    with pytest.raises(PrdError) as caught:
        read_prd(DEMO.replace("A small shop", "A \x1b[31msmall shop"))
    assert [(problem.line, problem.column) for problem in caught.value.problems] == [(6, 3)]


def test_problems_are_told_together_in_the_order_of_the_text() -> None:
    spoiled = DEMO.replace("- sets `stock`", "- sets `stok`").replace("| sku      | id ", "| sku      | ident ", 1)
    with pytest.raises(PrdError) as caught:
        read_prd(spoiled.replace("has `stock` = `10`", "hat `stock` = `10`"), "shop.md")
    lines = [problem.line for problem in caught.value.problems]
    assert len(lines) == 3
    assert lines == sorted(lines)
    assert str(caught.value).splitlines()[0].startswith("shop.md:18:14: unknown type 'ident'; ")


def _within(text: str, error: PrdError) -> None:
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    for problem in error.problems:
        assert 1 <= problem.line <= len(lines)
        assert 1 <= problem.column <= len(lines[problem.line - 1]) + 1


@settings(max_examples=200, deadline=None)
@example("#\0")
@given(st.text(max_size=200))
def test_any_text_is_refused_with_places_in_it(text: str) -> None:
    with pytest.raises(PrdError) as caught:
        read_prd(f"# Shop\n\n{text}")
    _within(f"# Shop\n\n{text}", caught.value)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, len(DEMO)), st.integers(0, 60), st.text(st.sampled_from("#|-`:, ={}\n()[]\"'\\*x1é"), max_size=12)
)
def test_any_damage_is_read_or_refused_with_places_in_it(at: int, length: int, text: str) -> None:
    damaged = DEMO[:at] + text + DEMO[at + length :]
    try:
        read_prd(damaged)
    except PrdError as error:
        _within(damaged, error)
