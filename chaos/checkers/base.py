"""What a checker is: a guarantee's id and sentence, and a function from evidence to findings.

A checker that raises has not judged: its judgement says so, and is no pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import attrs

from chaos.evidence import Evidence

__all__ = ["Checker", "Finding", "Judgement", "listed"]

_SHOWN: Final = 10


@attrs.frozen
class Finding:
    """One thing that is not as guaranteed. `scope`, as text, and `keys` name the commands concerned, if any are."""

    what: str
    keys: Sequence[str] = ()
    scope: str = ""


@attrs.frozen
class Judgement:
    """What one checker says of one image. `examined` counts what it looked at; zero is no reason for trust.

    `failure` is why it could not finish judging: such a judgement proves nothing beyond its findings.
    """

    id: str
    sentence: str
    examined: int
    findings: Sequence[Finding] = ()
    failure: str = ""

    @property
    def holds(self) -> bool:
        """Whether it judged to the end and found nothing."""
        return not self.findings and not self.failure

    def __str__(self) -> str:
        lines = []
        if self.findings:
            lines.append(f"{self.id} broken: {self.sentence}")
            lines += [f"    {finding.what}" for finding in self.findings[:_SHOWN]]
            if len(self.findings) > _SHOWN:
                lines.append(f"    ... and {len(self.findings) - _SHOWN} more")
        if self.failure:
            lines.append(f"{self.id} could not be judged: {self.failure}")
        return "\n".join(lines) or f"{self.id} holds ({self.examined} examined)"

    def to_json(self) -> Mapping[str, Any]:
        """As JSON values; `from_json` reads them back."""
        return {
            "id": self.id,
            "sentence": self.sentence,
            "examined": self.examined,
            "findings": [{"what": f.what, "keys": list(f.keys), "scope": f.scope} for f in self.findings],
            "failure": self.failure,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Judgement:
        """Read what `to_json` made; fields it does not know are left aside.

        Raises:
            ValueError: it is something else.
        """
        try:
            findings = tuple(Finding(f["what"], tuple(f["keys"]), f["scope"]) for f in value["findings"])
            made = cls(value["id"], value["sentence"], value["examined"], findings, value["failure"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"no judgement: {type(error).__name__}: {error}") from error
        texts = [made.id, made.sentence, made.failure]
        texts += [text for f in findings for text in (f.what, f.scope, *f.keys)]
        if type(made.examined) is not int or not all(isinstance(text, str) for text in texts):
            raise ValueError("no judgement: a field is of another type")
        return made


@attrs.frozen
class Checker:
    """Judges one guarantee. `look` yields a `Finding` per fault and an int per number of things examined.

    `id` is that of a guarantee, or any text for an invariant of a scenario's own. Without `on_corpse` it is asked
    about the end only.
    """

    id: str
    sentence: str
    look: Callable[[Evidence], Iterable[Finding | int]]
    on_corpse: bool = True

    def judge(self, evidence: Evidence) -> Judgement:
        """Look at everything. Never raises: what goes wrong in `look` is the judgement's `failure`."""
        examined = 0
        findings: list[Finding] = []
        failure = ""
        try:
            for item in self.look(evidence):
                if isinstance(item, Finding):
                    findings.append(item)
                else:
                    examined += _count(item)
        except Exception as error:
            failure = f"{type(error).__name__}: {error}{_place(error)}"
        return Judgement(self.id, self.sentence, examined, tuple(findings), failure)


def _count(item: object) -> int:
    if type(item) is not int or item < 0:
        raise TypeError(f"a checker yields findings and counts, not {item!r:.100}")
    return item


def _place(error: Exception) -> str:
    """Where it was raised."""
    trace = error.__traceback__
    assert trace is not None
    while trace.tb_next is not None:
        trace = trace.tb_next
    return f" ({Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno})"


def listed(names: Sequence[str], most: int = 3) -> str:
    """Names for a sentence: all of them, or the first of many and how many more there are."""
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[: most - 1])} and {len(names) - most + 1} more"
