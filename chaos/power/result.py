"""What came of all crash images of a recorded run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from chaos.checkers import CHECKERS, Finding, Judgement
from chaos.verdict import ImageJudgement, Status, Verdict

__all__ = ["JUDGED", "Broken", "PowerResult"]

#: What crash images are judged by: the rest needs the streams, or the end of a run.
JUDGED = ("G1", "G2", "G3", "G5", "G6", "G7")

_SENTENCES = {checker.id: checker.sentence for checker in CHECKERS}


@attrs.define
class Broken:
    """A promise that an image does not keep, or something in it that is not whole.

    `recipe` is the first such image; `moment` is the step of the tape after which the power must go for it, `where` the
    same in words.
    """

    guarantee: str
    what: str
    moment: int
    recipe: str
    where: str

    def __str__(self) -> str:
        return f"{self.what} (image {self.recipe}, {self.where})"


@attrs.define
class PowerResult:
    """All images of one tape.

    `images` were named, `distinct` differ in their bytes and were each opened, `states` differ in what SQLite makes of
    them. `bad` counts the distinct ones that break something. `examined` is by guarantee. `settled` are operations that
    no sync made durable and that were taken to be, for there being so many. `reasons` say why it shows less than it
    should. `seconds` is how long the images took, `cpu_seconds` how much of a processor.
    """

    steps: int = 0
    syncs: int = 0
    checkpoints: int = 0
    promises: int = 0
    images: int = 0
    distinct: int = 0
    states: int = 0
    bad: int = 0
    settled: int = 0
    broken: list[Broken] = attrs.field(factory=list)
    examined: dict[str, int] = attrs.field(factory=dict)
    kinds: dict[str, int] = attrs.field(factory=dict)
    reasons: list[str] = attrs.field(factory=list)
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    @property
    def status(self) -> Status:
        """Violation with a bad image; inconclusive where too little was seen."""
        if self.broken:
            return Status.VIOLATION
        return Status.INCONCLUSIVE if self.reasons else Status.PASS

    @property
    def fell(self) -> Sequence[str]:
        """The guarantees that fell, each once."""
        return sorted({broken.guarantee for broken in self.broken})

    @property
    def rate(self) -> float:
        """Distinct images a second of a processor, whatever else it had to do."""
        return self.distinct / self.cpu_seconds if self.cpu_seconds else 0.0

    @property
    def verdict(self) -> Verdict:
        """The same as the verdict on a run, with one judgement a guarantee."""
        judgements = [
            ImageJudgement(
                0,
                False,
                Judgement(
                    id_,
                    _SENTENCES[id_],
                    self.examined.get(id_, 0),
                    tuple(Finding(str(broken)) for broken in self.broken if broken.guarantee == id_),
                ),
            )
            for id_ in JUDGED
        ]
        return Verdict(self.status, list(self.reasons), judgements)

    def summary(self) -> str:
        """One line."""
        return (
            f"power loss: {self.images} crash images, {self.distinct} distinct, {self.states} states, {self.bad} bad; "
            f"{self.promises} promises; {self.seconds:.1f} s, {self.rate:.0f} images per second of processor"
        )

    def to_json(self) -> Mapping[str, Any]:
        """As JSON values; `from_json` reads them back."""
        return {**attrs.asdict(self), "status": self.status.value, "rate": round(self.rate, 1)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> PowerResult:
        """Read what `to_json` made.

        Raises:
            ValueError: it is something else.
        """
        names = [field.name for field in attrs.fields(cls)]
        try:
            fields = {name: value[name] for name in names}
            return cls(**{**fields, "broken": [Broken(**each) for each in fields["broken"]]})
        except (KeyError, TypeError) as error:
            raise ValueError(f"no result of crash images: {type(error).__name__}: {error}") from error
