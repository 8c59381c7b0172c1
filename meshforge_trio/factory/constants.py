"""Values written in a PRD: what a field starts as, what an example sends and expects."""

from __future__ import annotations

from typing import Any

from meshforge_trio.factory.evaluation import evaluated
from meshforge_trio.factory.expressions import Names, checked
from meshforge_trio.factory.model import Kind
from meshforge_trio.factory.outline import Phrase, Word
from meshforge_trio.factory.problems import Problems

__all__ = ["read_constant"]


def read_constant(phrase: Phrase, word: Word, kind: Kind, problems: Problems) -> Any:
    """The value of a word of a phrase as that kind; None if there is a problem with it, or if it is nothing.

    Ids, choices and moments may be written without quotes.
    """
    inner = kind.item if kind.name == "optional" and kind.item is not None else kind
    bare = word.text[:1] != '"' and (
        inner.name in ("id", "one of") or (inner.name == "time" and word.text[:1].isdigit() and "-" in word.text)
    )
    if bare and word.text != "nothing":
        text, shift = f'"{word.text}"', 1
    else:
        text, shift = word.text, 0
    found = checked(
        text, lambda at: phrase.position(word.offset + max(at - shift, 0)), Names("a value"), problems, kind
    )
    return None if found is None else evaluated(found, {})
