"""What an image shows of single commands: their rows in the store beside what the streams hold."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final

import attrs

from chaos.evidence import Evidence, envelope_of
from chaos.report.run import Image, Judgement, Name, Run
from chaos.report.words import clipped
from chaos.rows import KeyRow, MarkRow
from meshforge_trio.broker.port import StoredMessage
from meshforge_trio.errors import Poison
from meshforge_trio.subjects import parse_subject

__all__ = ["LABELS", "Fact", "Sight", "caption", "corpses_of", "three"]

LABELS: Final = ("command", "key record", "outputs", "attempts", "dead letter", "mark")


@attrs.frozen
class Fact:
    """One line about a command in an image. `missing` marks a committed output that is not in its stream."""

    text: str
    missing: bool = False


class Sight:
    """One image, looked up by command."""

    def __init__(self, evidence: Evidence) -> None:
        rows = evidence.rows
        self._outputs = defaultdict(list)
        for output in rows.outputs:
            self._outputs[str(output.scope), output.key].append(output)
        self._keys: dict[Name, list[KeyRow]] = defaultdict(list)
        for record in [*rows.keys, *rows.mismatches]:
            self._keys[str(record.scope), record.key].append(record)
        self._marks: dict[str, MarkRow] = {str(mark.scope): mark for mark in rows.marks}
        self._attempts = {(str(scope), key): count for (scope, key), count in rows.attempts.items()}
        self._letters = defaultdict(list)
        for letter in rows.dead:
            self._letters[str(letter.scope), letter.key].append(letter)
        self._streams = {
            kind: _by_msg_id(messages)
            for kind, messages in (
                ("event", evidence.events),
                ("record", evidence.events),
                ("dead", evidence.failed),
                ("command", evidence.commands),
            )
        }
        self._waiting: dict[Name, list[int]] = defaultdict(list)
        for message in evidence.commands:
            for name in _names_of(message):
                self._waiting[name].append(message.seq)

    def of(self, name: Name) -> Mapping[str, Sequence[Fact]]:
        """What it shows of one command, by `LABELS`; a label with nothing to tell has no facts."""
        return {
            "command": [Fact(f"waits in the stream at {seq}") for seq in self._waiting.get(name, ())],
            "key record": [Fact(_record(record)) for record in self._keys.get(name, ())],
            "outputs": list(self._told_outputs(name)),
            "attempts": [Fact(str(self._attempts[name]))] if name in self._attempts else [],
            "dead letter": [
                Fact(f"{clipped(letter.code, 24)} after {letter.attempts} attempts")
                for letter in self._letters.get(name, ())
            ],
            "mark": list(self._told_mark(name)),
        }

    def _told_outputs(self, name: Name) -> Iterator[Fact]:
        for output in self._outputs.get(name, ()):
            version = "" if output.version is None else f" v{output.version}"
            what = f"{output.n} {output.kind} {clipped(output.name, 20)}{version}"
            seqs = self._streams[output.kind].get(output.msg_id, ())
            if seqs:
                yield Fact(f"{what}, in stream at {' and '.join(str(seq) for seq in seqs)}")
            elif output.kind == "command":
                # It leaves its stream when it is ACKed, so its absence says nothing.
                yield Fact(f"{what}, not in stream (may be done)")
            else:
                yield Fact(f"{what}, NOT in stream", missing=True)

    def _told_mark(self, name: Name) -> Iterator[Fact]:
        mark = self._marks.get(name[0])
        if mark is not None and (name in self._outputs or name in self._keys):
            yield Fact(f"published up to {mark.n}")


def _by_msg_id(messages: Sequence[StoredMessage]) -> Mapping[str, Sequence[int]]:
    found: dict[str, list[int]] = defaultdict(list)
    for message in messages:
        found[message.msg_id].append(message.seq)
    return found


def _names_of(message: StoredMessage) -> Iterator[Name]:
    envelope = envelope_of(message)
    try:
        scope = str(parse_subject(message.subject).scope)
    except Poison:
        return
    key = envelope.get("idempotency_key")
    yield scope, key if isinstance(key, str) else f"id:{envelope.get('id')}"


def _record(record: KeyRow) -> str:
    outputs = "nothing"
    if record.last_n == record.first_n:
        outputs = f"output {record.first_n}"
    elif record.last_n > record.first_n:
        outputs = f"outputs {record.first_n} to {record.last_n}"
    generation = f", generation {record.generation}" if record.generation else ""
    return f"{record.outcome}: {outputs}{generation}"


def caption(image: Image) -> str:
    """What an image is called."""
    return "the end" if image.final else f"image {image.number}, corpse"


def corpses_of(judgements: Sequence[Judgement]) -> str:
    """The corpses that some judgements are of, those in a row as from which to which; empty without."""
    runs: list[list[int]] = []
    for number in sorted({judgement.image for judgement in judgements if not judgement.final}):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    numbers = ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)
    if sum(map(len, runs)) > 1:
        return f"the corpses (images {numbers})"
    return f"the corpse (image {numbers})" if runs else ""


def three(run: Run, concerned: Collection[int]) -> Sequence[Image | None]:
    """The images before a crash, after it, and after recovery; `None` where there is none.

    The crash is that of the first corpse in `concerned`, the numbers of the images with findings; when only the end
    has any, or nothing has, it is the last one.
    """
    corpses = [image for image in run.images if not image.final]
    ends = [image for image in run.images if image.final]
    end = ends[-1] if ends else None
    if not corpses:
        return None, None, end
    at = next((i for i, image in enumerate(corpses) if image.number in concerned), len(corpses) - 1)
    return corpses[at - 1] if at else None, corpses[at], end
