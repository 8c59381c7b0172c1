"""Reading a sentence of a PRD word by word, with one clear complaint where it stops making sense."""

from __future__ import annotations

from collections.abc import Iterator

from meshforge_trio.factory.model import Position
from meshforge_trio.factory.outline import Phrase, Word
from meshforge_trio.factory.problems import Unreadable, did_you_mean

__all__ = ["Cursor"]


class Cursor:
    """A place in a phrase. `usage` is an example of what may stand there, for whoever wrote something else."""

    def __init__(self, phrase: Phrase, usage: str = "") -> None:
        self.phrase = phrase
        self.usage = usage
        self._at = 0

    @property
    def next(self) -> Word | None:
        """The word that comes next."""
        return self.phrase.words[self._at] if self._at < len(self.phrase.words) else None

    @property
    def where(self) -> Position:
        """Where it is; at the end, behind the last word."""
        if self.next is not None:
            return self.next.where
        return self.phrase.position(len(self.phrase.source))

    def said(self, *words: str) -> bool:
        """Go past `words` if they come next, as plain words."""
        coming = self.phrase.words[self._at : self._at + len(words)]
        same = len(coming) == len(words) and all(
            not found.code and found.text.casefold() == word for found, word in zip(coming, words, strict=True)
        )
        if same:
            self._at += len(words)
        return same

    def one_of(self, *words: str) -> str:
        """Go past one of `words`, each of which may be several with spaces between, and return it.

        Raises:
            Unreadable: none of them comes next.
        """
        for word in sorted(words, key=len, reverse=True):
            if self.said(*word.split()):
                return word
        raise self.wrong(" or ".join(repr(word) for word in words), words)

    def code(self, what: str) -> Word:
        """Go past a piece of `code`.

        Raises:
            Unreadable: none comes next; `what` is what it should be.
        """
        word = self.next
        if word is None or not word.code:
            raise self.wrong(f"{what} in backquotes")
        self._at += 1
        return word

    def plain(self, what: str) -> Word:
        """Go past a word that is no `code`.

        Raises:
            Unreadable: none comes next; `what` is what it should be.
        """
        word = self.next
        if word is None or word.code or word.text in (",", ":", "="):
            raise self.wrong(what)
        self._at += 1
        return word

    def pairs(self) -> Iterator[tuple[Word, Word | None]]:
        """Names with or without a value: `a`, `b` = `c`.

        Raises:
            Unreadable: something else comes.
        """
        while True:
            name = self.code("a field")
            yield name, self.code("a value") if self.said("=") else None
            if not (self.said(",", "and") or self.said(",") or self.said("and")):
                return

    def rest(self) -> tuple[str, int]:
        """What the source still holds, and at which offset it begins."""
        word = self.next
        self._at = len(self.phrase.words)
        if word is None:
            return "", len(self.phrase.source)
        # The backquotes of a piece of code stand before it.
        offset = word.offset
        while word.code and self.phrase.source[offset - 1] in "` ":
            offset -= 1
        return self.phrase.source[offset:].strip(), offset

    def end(self) -> None:
        """Make sure that nothing comes.

        Raises:
            Unreadable: something does.
        """
        if self.next is not None:
            raise self.wrong("nothing more")

    def wrong(self, expected: str, words: tuple[str, ...] = ()) -> Unreadable:
        """The complaint about what comes next, to be raised."""
        found = "the end" if self.next is None else repr(self.next.text)
        meant = did_you_mean(self.next.text, words) if self.next is not None else ""
        usage = f"write: {self.usage}" if self.usage else ""
        return Unreadable(
            self.where, f"expected {expected}, found {found}", " ".join(part for part in (meant, usage) if part)
        )
