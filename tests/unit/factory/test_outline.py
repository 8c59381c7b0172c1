"""Markdown as sections: what is where, to the column."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from meshforge_trio.factory.outline import Phrase, Section, Word, read_outline
from meshforge_trio.factory.problems import Problem, Problems

ROOT = Path(__file__).parents[3]
PRDS = sorted([*(ROOT / "tests/prds").glob("*.md"), *(ROOT / "examples").glob("*_prd.md")])


def read(text: str) -> tuple[Section, list[Problem]]:
    problems = Problems()
    (section,) = read_outline(text, problems)
    return section, list(problems)


def phrases(section: Section) -> Iterator[Phrase]:
    yield from (section.title, *section.prose, *section.items)
    for table in section.tables:
        for row in (table.head, *table.rows):
            yield from row
    for below in section.sections:
        yield from phrases(below)


def places(word: Word) -> tuple[str, int, int]:
    return word.text, word.where.line, word.where.column


@pytest.mark.parametrize("path", PRDS, ids=lambda path: path.stem)
def test_every_word_is_found_where_it_says(path: Path) -> None:
    text = path.read_text()
    lines = text.split("\n")
    section, problems = read(text)
    assert not problems
    words = [word for phrase in phrases(section) for word in phrase.words]
    assert len(words) > 300
    for word in words:
        assert lines[word.where.line - 1][word.where.column - 1 :].startswith(word.text)


def test_a_sentence_may_go_on_in_the_next_line() -> None:
    section, _ = read("# A\n\n- emit `made`\n  with `a` =\n      `b`, `c`\n")
    (item,) = section.items
    assert [places(word) for word in item.words] == [
        ("emit", 3, 3),
        ("made", 3, 9),
        ("with", 4, 3),
        ("a", 4, 9),
        ("=", 4, 12),
        ("b", 5, 8),
        (",", 5, 10),
        ("c", 5, 13),
    ]
    assert [word.text for word in item.words if word.code] == ["made", "a", "b", "c"]


def test_a_stroke_within_a_cell() -> None:
    section, problems = read("# A\n\n| a | b |\n|---|---|\n| x \\| y | `z` |\n")
    first, second = section.tables[0].rows[0]
    assert not problems
    assert first.source == "x | y"
    assert [places(word) for word in second.words] == [("z", 5, 13)]


def test_code_in_two_backquotes_and_escapes() -> None:
    section, _ = read("# A\n\n- say \\# ``a`b`` and `c`\n")
    words = {word.text: word for word in section.items[0].words}
    assert places(words["a`b"]) == ("a`b", 3, 12)
    assert places(words["c"]) == ("c", 3, 23)


def test_what_is_below_what() -> None:
    section, _ = read("# A\n\nOne.\n\nTwo.\n\n## B\n\n### C\n\n## D\n")
    assert section.text == "One.\n\nTwo."
    assert [below.title.source for below in section.sections] == ["B", "D"]
    assert [below.title.source for below in section.sections[0].sections] == ["C"]


@pytest.mark.parametrize(
    ("block", "what"),
    [
        ("1. one", "a numbered list"),
        ("```\ncode\n```", "a code block"),
        ("    code", "an indented block"),
        ("> said", "a quotation"),
        ("***", "a rule"),
        ("- one\n  - two", "one sentence"),
        ("- one\n\n  two", "one sentence"),
        ("-", "without words"),
        ("|a|b|\n|---|\n", "is no table"),
        ("#heading", "is no heading"),
        ("-item", "is no list item"),
    ],
)
def test_what_is_not_read_is_told(block: str, what: str) -> None:
    _, problems = read(f"# A\n\n{block}\n")
    (problem,) = problems
    assert what in problem.what
    assert problem.suggestion
    assert problem.line >= 3
