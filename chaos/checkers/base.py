"""What a checker is: a guarantee's id and sentence, and a function from evidence to findings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import attrs

from chaos.evidence import Evidence

__all__ = ["Checker", "Finding", "Judgement"]


@attrs.frozen
class Finding:
    """One thing that is not as guaranteed."""

    what: str


@attrs.frozen
class Judgement:
    """What one checker says. `examined` counts what it looked at; zero is no reason for trust."""

    id: str
    sentence: str
    examined: int
    findings: Sequence[str]

    def __str__(self) -> str:
        if not self.findings:
            return f"{self.id} holds ({self.examined} examined)"
        shown = "\n".join(f"    {finding}" for finding in self.findings[:10])
        more = f"\n    ... and {len(self.findings) - 10} more" if len(self.findings) > 10 else ""
        return f"{self.id} broken: {self.sentence}\n{shown}{more}"


@attrs.frozen
class Checker:
    """Judges one guarantee. `look` yields a `Finding` per fault and an int per number of things examined."""

    id: str
    sentence: str
    look: Callable[[Evidence], Iterator[Finding | int]]
    on_corpse: bool = True

    def judge(self, evidence: Evidence) -> Judgement:
        """Look at everything."""
        examined = 0
        findings: list[str] = []
        for item in self.look(evidence):
            if isinstance(item, Finding):
                findings.append(item.what)
            else:
                examined += item
        return Judgement(self.id, self.sentence, examined, findings)
