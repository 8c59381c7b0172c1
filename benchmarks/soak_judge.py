"""The judgement on one round of the soak, in a process of its own: python -m benchmarks.soak_judge DIRECTORY

Reads a round's directory and prints what every checker says of every image, as JSON. One image is in memory at a time.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs
import click
import orjson

from chaos.checkers import judge
from chaos.evidence import Sent, load_image
from chaos.history import Record, read_history
from chaos.verdict import sent_from_json

__all__ = ["RoundVerdict", "judge_round", "verdict_from_json"]


@attrs.frozen
class RoundVerdict:
    """What the checkers say of a round: `broken` in words, with the image; how much each of them examined."""

    images: int
    broken: Sequence[str]
    failures: Sequence[str]
    examined: Mapping[str, int]
    decided: Mapping[str, int]
    fired: Sequence[str]

    @property
    def broken_ids(self) -> Sequence[str]:
        """The guarantees that fell, each once."""
        return list(dict.fromkeys(text.split(" ", 2)[1] for text in self.broken))


def judge_round(home: Path) -> RoundVerdict:
    """Judge the round in the directory `home`.

    Raises:
        RunError, HistoryError, ImageError: something is missing or damaged.
    """
    history = read_history(home / "history.jsonl")
    told = orjson.loads((home / "run.json").read_bytes())
    outcomes = {record["id"]: record.kind for record in history if record.kind in ("ok", "unknown", "failed")}
    sent = [sent_from_json(each, outcomes) for each in told["sent"]]
    places = [i for i, record in enumerate(history) if record.kind == "image"]
    broken: list[str] = []
    failures: list[str] = []
    examined: dict[str, int] = {}
    for place in places:
        number = history[place]["number"]
        before = history[: place + 1]
        image = load_image(
            home / f"image-{number}", sent=_sent_before(sent, before), history=before, limit=told["limit"]
        )
        for judgement in judge(image):
            name = "end" if image.final else f"corpse-{number}"
            broken += [f"{name}: {judgement}"] if judgement.findings else []
            failures += [f"{name}: {judgement.id}: {judgement.failure}"] if judgement.failure else []
            examined[judgement.id] = examined.get(judgement.id, 0) + judgement.examined
    return RoundVerdict(
        len(places),
        broken,
        failures,
        examined,
        _decided(history),
        [record["rule"] for record in history if record.kind == "fault"],
    )


def _sent_before(sent: Sequence[Sent], history: Sequence[Record]) -> Sequence[Sent]:
    names = {(record["id"], record["subject"]) for record in history if record.kind == "send"}
    return [each for each in sent if (each.command.id, each.subject) in names]


def _decided(history: Sequence[Record]) -> Mapping[str, int]:
    """How many decisions each worker made."""
    found: dict[str, int] = {}
    for record in history:
        if record.kind == "decided":
            found[record.actor] = found.get(record.actor, 0) + 1
    return found


def verdict_from_json(text: bytes) -> RoundVerdict:
    """Read what this module prints."""
    return RoundVerdict(**orjson.loads(text))


@click.command(help=__doc__)
@click.argument("home", type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(home: Path) -> None:
    sys.stdout.write(orjson.dumps(attrs.asdict(judge_round(home))).decode() + "\n")


if __name__ == "__main__":
    main()
