"""A Markdown text as sections with prose, tables and lists, every word of it with its place.

Markdown is read by markdown-it (CommonMark and tables). It tells the lines of blocks; columns are found again in the
source, because that is where a person looks.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Final

import attrs
from markdown_it import MarkdownIt
from markdown_it.token import Token

from meshforge_trio.factory.model import Position
from meshforge_trio.factory.problems import Problems

__all__ = ["Phrase", "Section", "Table", "Word", "read_outline"]

_PUNCTUATION: Final = ",:="
#: Of what stands in a line only words and `code` mean something; a reference would vanish without a word.
_UNUSED_RULES: Final = ["link", "image", "emphasis", "autolink", "html_inline", "entity", "reference"]
_NOT_READ: Final = {
    "ordered_list_open": ("a numbered list", "use a list with '-'"),
    "fence": ("a code block", "write it as `code` in a list item, or in words"),
    "code_block": ("an indented block", "begin the line at the margin"),
    "blockquote_open": ("a quotation", "write it as a paragraph"),
    "hr": ("a rule", "remove it"),
}
#: How lines begin that were meant as something else than prose.
_NO_PROSE: Final = {
    "#": ("heading", "write a space behind the '#'"),
    "|": ("table", "give the line below its head as many '---' as the head has cells"),
    "-": ("list item", "write a space behind the '-'"),
}


@attrs.frozen
class Word:
    """A word, a punctuation mark or a piece of `code`, and where it begins in its phrase's source."""

    text: str
    offset: int
    where: Position
    code: bool = False


@attrs.frozen
class Phrase:
    """A heading, a paragraph, a list item or a cell: its source and its words."""

    source: str
    words: tuple[Word, ...]
    lines: tuple[Position, ...] = attrs.field(repr=False)
    _starts: tuple[int, ...] = attrs.field(init=False, repr=False, eq=False)

    @_starts.default
    def _find_starts(self) -> tuple[int, ...]:
        breaks = (i + 1 for i, letter in enumerate(self.source) if letter == "\n")
        return (0, *breaks)

    def position(self, offset: int) -> Position:
        """Where a character of the source is in the file."""
        number = bisect_right(self._starts, offset) - 1
        start = self.lines[number]
        return Position(start.line, start.column + offset - self._starts[number])

    @property
    def where(self) -> Position:
        """Where it begins."""
        return self.lines[0]


@attrs.frozen
class Table:
    """A table: the cells of its head, and of each row."""

    head: tuple[Phrase, ...]
    rows: tuple[tuple[Phrase, ...], ...]


@attrs.define
class Section:
    """A heading and what stands below it, down to the next heading; `sections` are those a level deeper.

    It is `broken` if something in it could not be read, and `cut` where another heading was meant to begin.
    """

    level: int
    title: Phrase
    prose: list[Phrase] = attrs.field(factory=list)
    tables: list[Table] = attrs.field(factory=list)
    items: list[Phrase] = attrs.field(factory=list)
    sections: list[Section] = attrs.field(factory=list)
    broken: bool = False
    cut: bool = False

    @property
    def text(self) -> str:
        """The prose: paragraphs with an empty line between them."""
        return "\n\n".join(phrase.source for phrase in self.prose)


def read_outline(text: str, problems: Problems) -> list[Section]:
    """The top sections of a text whose lines end with a newline alone."""
    tokens = MarkdownIt("commonmark", {"html": False}).enable("table").disable(_UNUSED_RULES).parse(text)
    return _Reader(text.split("\n"), problems).sections(tokens)


class _Reader:
    def __init__(self, lines: Sequence[str], problems: Problems) -> None:
        self._lines = lines
        self._problems = problems

    def sections(self, tokens: Sequence[Token]) -> list[Section]:
        """Nest what follows each heading below it."""
        top: list[Section] = []
        open_sections: list[Section] = []
        if tokens and tokens[0].type != "heading_open":
            self._problems.add(
                self._start_of(tokens[0]), "there is text before the title", "begin with a line like '# My shop'"
            )
        at = 0
        while at < len(tokens):
            token = tokens[at]
            end = _end_of(tokens, at)
            if token.type == "heading_open":
                level = int(token.tag[1:])
                section = Section(level, self._phrase(tokens[at + 1]))
                while open_sections and open_sections[-1].level >= level:
                    open_sections.pop()
                (open_sections[-1].sections if open_sections else top).append(section)
                open_sections.append(section)
            elif open_sections and not open_sections[-1].cut:
                self._block(open_sections[-1], tokens[at:end])
            at = end
        return top

    def _block(self, section: Section, tokens: Sequence[Token]) -> None:
        kind = tokens[0].type
        if kind == "paragraph_open":
            phrase = self._phrase(tokens[1])
            section.prose.append(phrase)
            self._check_prose(section, phrase)
        elif kind == "bullet_list_open":
            section.items.extend(self._items(tokens))
        elif kind == "table_open":
            section.tables.append(self._table(tokens))
        else:
            section.broken = True
            what, suggestion = _NOT_READ.get(kind, ("this", "write a paragraph, a table or a list with '-'"))
            self._problems.add(self._start_of(tokens[0]), f"{what} is not understood here", suggestion)

    def _check_prose(self, section: Section, phrase: Phrase) -> None:
        """Complain about a line that Markdown takes for prose and whoever wrote it did not."""
        for line, place in zip(phrase.source.split("\n"), phrase.lines, strict=True):
            for mark, (what, suggestion) in _NO_PROSE.items():
                if line.startswith(mark):
                    section.broken = True
                    section.cut = mark == "#"
                    self._problems.add(place, f"a line that begins with {mark!r} and is no {what}", suggestion)
                    return

    def _items(self, tokens: Sequence[Token]) -> Iterator[Phrase]:
        """The items of a flat list; what else is in them is a problem."""
        at = 1
        while at < len(tokens) - 1:
            end = _end_of(tokens, at)
            inner = tokens[at + 1 : end - 1]
            if not inner or inner[0].type != "paragraph_open":
                self._problems.add(self._start_of(tokens[at]), "a list item without words", "remove it")
            else:
                phrase = self._phrase(inner[1])
                if len(inner) > 3:
                    self._problems.add(
                        self._start_of(inner[3]), "a list item holds one sentence", "write another item at the margin"
                    )
                yield phrase
            at = end

    def _table(self, tokens: Sequence[Token]) -> Table:
        rows: list[tuple[Phrase, ...]] = []
        for at, token in enumerate(tokens):
            if token.type == "tr_open":
                cells = [item for item in tokens[at : _end_of(tokens, at)] if item.type == "inline"]
                assert token.map is not None
                rows.append(self._cells(token.map[0], cells))
        return Table(rows[0], tuple(rows[1:]))

    def _cells(self, line: int, cells: Sequence[Token]) -> tuple[Phrase, ...]:
        columns = list(_cell_columns(self._lines[line].rstrip()))
        if len(columns) > len(cells):
            self._problems.add(
                Position(line + 1, columns[len(cells)] + 1),
                f"a row of {len(columns)} cells below a head of {len(cells)}",
                r"write '\|' for a stroke within a cell",
            )
        found = []
        for i, cell in enumerate(cells):
            column = columns[i] if i < len(columns) else len(self._lines[line])
            place = Position(line + 1, column + 1)
            found.append(Phrase(cell.content, tuple(_words(cell, (place,))), (place,)))
        return tuple(found)

    def _phrase(self, inline: Token) -> Phrase:
        assert inline.map is not None
        places = []
        for i, text in enumerate(inline.content.split("\n")):
            number = inline.map[0] + i
            # What is indented deeper than its block keeps the rest of its indentation.
            indented = len(text) - len(text.lstrip())
            places.append(Position(number + 1, self._lines[number].find(text.strip()) - indented + 1))
        return Phrase(inline.content, tuple(_words(inline, tuple(places))), tuple(places))

    def _start_of(self, token: Token) -> Position:
        line = token.map[0] if token.map is not None else 0
        source = self._lines[line]
        return Position(line + 1, len(source) - len(source.lstrip()) + 1)


def _end_of(tokens: Sequence[Token], at: int) -> int:
    """The index behind the token that closes the one at `at`."""
    depth = 0
    for i in range(at, len(tokens)):
        depth += tokens[i].nesting
        if depth == 0:
            return i + 1
    return len(tokens)


def _cell_columns(row: str) -> Iterator[int]:
    """Where the text of each cell of a row begins."""
    at = len(row) - len(row.lstrip())
    if row[at : at + 1] == "|":
        at += 1
    while at < len(row):
        begin = at
        while begin < len(row) and row[begin].isspace():
            begin += 1
        yield begin
        while at < len(row) and row[at] != "|":
            at += 2 if row[at] == "\\" else 1
        at += 1


def _words(inline: Token, places: tuple[Position, ...]) -> Iterator[Word]:
    """The words of a phrase; where markdown-it changed the source (escapes), the next one is found again."""
    at = 0
    phrase = Phrase(inline.content, (), places)
    for child in inline.children or ():
        if child.type == "code_inline":
            opening = inline.content.find(child.markup, at)
            inside = opening + len(child.markup)
            at = inline.content.find(child.markup, inside) + len(child.markup)
            offset = inside
            while inline.content[offset].isspace():
                offset += 1
            yield Word(child.content.strip(), offset, phrase.position(offset), code=True)
        elif child.content:
            found = inline.content.find(child.content, at)
            start = at if found < 0 else found
            yield from _plain_words(child.content, start, phrase)
            at = start + len(child.content)


def _plain_words(text: str, start: int, phrase: Phrase) -> Iterator[Word]:
    begun: int | None = None
    for i, letter in enumerate(f"{text} "):
        if letter.isspace() or letter in _PUNCTUATION:
            if begun is not None:
                yield Word(text[begun:i], start + begun, phrase.position(start + begun))
                begun = None
            if letter in _PUNCTUATION:
                yield Word(letter, start + i, phrase.position(start + i))
        elif begun is None:
            begun = i
