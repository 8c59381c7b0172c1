"""Judges every crash image of a tape: each distinct one is opened, each distinct state of the store looked at once.

A state that is whole can still be too old: at each moment it is held against all that was promised by then. So an
image that was fine when it became possible may be a loss later, as long as no sync has made it impossible.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

import apsw
import attrs

from chaos.checkers import CHECKERS
from chaos.checkers.clues import read_envelope
from chaos.evidence import Evidence, Sent
from chaos.power.images import Disk, Recipe
from chaos.power.mount import Mount, Seen
from chaos.power.promises import Facts, Promise, Promises, facts_of
from chaos.power.result import JUDGED, Broken, PowerResult
from chaos.power.session import sent_of
from chaos.power.tape import Note, Step, Sync, Tape, Write
from chaos.rows import RowsError, read_store
from meshforge_trio.errors import MeshForgeError
from meshforge_trio.launch import load_app
from meshforge_trio.store.schema import connect
from meshforge_trio.subjects import consumer_name

__all__ = ["judge_tape"]

_CHECKERS: Final = [checker for checker in CHECKERS if checker.id in JUDGED and checker.id != "G1"]
#: Details of broken promises that are kept; the images are all counted.
_KEPT_MAX: Final = 200
#: Of distinct images; a run with fewer has hardly written.
_DISTINCT_MIN: Final = 5_000
#: How often `told` is called.
_TELL_S: Final = 0.2

Told = Callable[[int, int, int], None]


@attrs.define(eq=False)
class _State:
    """What SQLite makes of some images. `faults` are what is wrong with it, now or by what was promised since.

    One that cannot be read has no `facts`: what it has lost need not be counted.
    """

    facts: Facts | None
    faults: list[tuple[str, str]]
    held: int = 0
    told: int = 0


def judge_tape(tape: Tape, scratch: Path, *, until: str = "", told: Told = lambda *_: None) -> PowerResult:
    """Judge all images of `tape`, or go on until the guarantee `until` has fallen.

    `scratch` is an empty directory, best in memory. `told` is called with (steps done, steps, distinct images) now and
    then.

    Raises:
        Misconfigured: the app of the tape cannot be loaded.
    """
    judge = _Judge(tape, scratch)
    began = last = time.monotonic()
    cpu_began = time.process_time()
    whole = True
    try:
        for at, step in enumerate(tape.steps):
            judge.take(at, step)
            if time.monotonic() - last >= _TELL_S:
                last = time.monotonic()
                told(at, len(tape.steps), judge.distinct)
            if until and judge.fell(until):
                whole = False
                break
    finally:
        judge.mount.close()
    judge.result.seconds, judge.result.cpu_seconds = time.monotonic() - began, time.process_time() - cpu_began
    judge.finish(whole=whole)
    return judge.result


class _Judge:
    """The way through one tape."""

    def __init__(self, tape: Tape, scratch: Path) -> None:
        run = tape.told
        self._sent: Sequence[Sent] = sent_of(run)
        scopes = [scope for scope, _ in load_app(run["app"]).scopes(run["workspaces"])]
        self._reads = Promises(self._sent, {consumer_name(scope): scope for scope in scopes})
        self._disk = Disk()
        self._scratch = scratch
        self.mount = Mount(scratch)
        self.result = PowerResult(steps=len(tape.steps))
        self._promises: list[Promise] = []
        self._states: dict[bytes, _State] = {}
        self._images: dict[bytes, _State] = {}
        #: What may be on the disk right now: images by state.
        self._possible: dict[_State, dict[bytes, Recipe]] = {}
        self._bad: set[bytes] = set()
        self._broken: dict[tuple[str, str], Broken] = {}
        self._points: Counter[str] = Counter()
        self._point = "the beginning"
        self._session = 0
        self._examined: Counter[str] = Counter()
        self._kinds: Counter[str] = Counter()
        self._told: Counter[str] = Counter()
        self._acked: set[str] = set()
        self._base = -1

    @property
    def distinct(self) -> int:
        """How many images have been opened."""
        return len(self._images)

    def take(self, at: int, step: Step) -> None:
        """Do step `at`, and judge every image that it makes possible or every promise that it makes."""
        if isinstance(step, Note):
            self._note(at, step)
            return
        if isinstance(step, Sync):
            self.result.syncs += 1
            pages = any(isinstance(op, Write) and op.file == "" for _, op in self._disk.pending)
            self.result.checkpoints += step.file == "" and pages and bool(self._disk.files["-wal"])
        anew = self._disk.take(at, step)
        if self._base != self._disk.base:
            self._base = self._disk.base
            self.mount.rebase(self._disk.files)
        if anew:
            self._possible.clear()
        for recipe in self._disk.recipes(at, anew=anew):
            self._image(at, recipe)

    def fell(self, guarantee: str) -> bool:
        """Whether an image broke it."""
        return any(broken == guarantee for broken, _ in self._broken)

    def _image(self, at: int, recipe: Recipe) -> None:
        self.result.images += 1
        name = self.mount.take(self._disk.operations(recipe))
        state = self._images.get(name)
        if state is None:
            seen = self.mount.look()
            state = self._states.get(seen.name)
            if state is None:
                state = self._states[seen.name] = _State(*self._looked_at(seen))
            self._images[name] = state
            self._kinds[recipe.kind] += 1
            self._examined["G5"] += 1
        self._catch_up(state)
        self._possible.setdefault(state, {}).setdefault(name, recipe)
        self._tell(at, state, {name: recipe})

    def _note(self, at: int, note: Note) -> None:
        if note.kind == "point":
            self._points[note["point"]] += 1
            self._point = f"{note['point']} for the {_nth(self._points[note['point']])} time"
        elif note.kind == "session":
            self._session = note["number"]
        elif note.kind == "acked":
            self._acked.add(str(read_envelope(note["body"]).get("id")))
        promise = self._reads.of(note)
        if promise is None:
            return
        self._told[note.kind] += 1
        self._promises.append(promise)
        for state, images in self._possible.items():
            self._catch_up(state)
            self._tell(at, state, images)

    def _catch_up(self, state: _State) -> None:
        """Hold a state against what was promised since it was last looked at."""
        if state.facts is None:
            return
        for promise in self._promises[state.held :]:
            self._examined.update(promise.guarantees)
            state.faults += promise.broken(state.facts)
        state.held = len(self._promises)

    def _tell(self, at: int, state: _State, images: Mapping[bytes, Recipe]) -> None:
        """Count images of a state with faults, and take down what of these is new by the first of the images."""
        if not state.faults:
            return
        self._bad |= images.keys()
        where = f"power lost after step {at}, session {self._session}, after {self._point}"
        for fault in state.faults[state.told :]:
            if len(self._broken) < _KEPT_MAX:
                self._broken.setdefault(fault, Broken(*fault, at, str(next(iter(images.values()))), where))
        state.told = len(state.faults)

    def _looked_at(self, seen: Seen) -> tuple[Facts | None, list[tuple[str, str]]]:
        """What a state holds, and what of it is not whole."""
        if seen.failure:
            return None, [("G5", f"the database does not open: {seen.failure}")]
        path = self._scratch / "state.db"
        for suffix in ("", "-wal", "-shm", "-journal"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        path.write_bytes(seen.content)
        faults = [("G5", fault) for fault in _integrity(path)]
        # As whoever starts after the power loss does; it may find a schema that is half migrated, and finish that.
        faults = faults or [("G5", f"the runtime refuses to open it: {reason}") for reason in _refused(path)]
        if faults:
            return None, faults
        try:
            rows = read_store(path)
        except RowsError as error:
            return None, [("G5", f"the store cannot be read: {str(error).replace(str(path), 'it')}")]
        evidence = Evidence(rows, sent=self._sent, final=False)
        for checker in _CHECKERS:
            judgement = checker.judge(evidence)
            self._examined[checker.id] += judgement.examined
            faults += [(checker.id, finding.what) for finding in judgement.findings]
            if judgement.failure:
                self.result.reasons.append(f"the checker of {checker.id} failed: {judgement.failure}")
        return facts_of(rows), faults

    def finish(self, *, whole: bool) -> None:
        """Put what was counted into the result; `whole` says that it was gone through to its end."""
        result = self.result
        result.distinct, result.states, result.bad = len(self._images), len(self._states), len(self._bad)
        result.promises, result.settled = len(self._promises), self._disk.settled
        result.broken = sorted(self._broken.values(), key=lambda broken: (broken.moment, broken.guarantee))
        result.examined, result.kinds = dict(sorted(self._examined.items())), dict(sorted(self._kinds.items()))
        if whole:
            result.reasons += self._too_little()

    def _too_little(self) -> Iterator[str]:
        """Why all of it shows less than it should."""
        result = self.result
        if result.distinct < _DISTINCT_MIN:
            yield f"{result.distinct} distinct images are few, {_DISTINCT_MIN} is the least"
        if not result.checkpoints:
            yield "the log was never emptied into the database"
        if result.settled:
            yield f"{result.settled} operations were taken to be durable without a sync, there being so many"
        if not self._told.keys() >= {"acked", "published", "echoed"}:
            yield f"the run told the outside of nothing but {', '.join(self._told) or 'nothing'}"
        undecided = [each.command.id for each in self._sent if each.command.id not in self._acked]
        if undecided:
            yield f"never ACKed: {', '.join(undecided)}"


def _nth(number: int) -> str:
    return {1: "1st", 2: "2nd", 3: "3rd"}.get(number, f"{number}th")


def _integrity(path: Path) -> Iterator[str]:
    """What SQLite finds damaged."""
    try:
        with closing(apsw.Connection(str(path))) as connection:
            found = [finding for (finding,) in connection.execute("PRAGMA integrity_check(3)")]
    except apsw.Error as error:
        yield f"the database is damaged: {type(error).__name__}: {error}"
        return
    yield from (f"the database is damaged: {finding}" for finding in found if finding != "ok")


def _refused(path: Path) -> Iterator[str]:
    """Why the runtime would not start over a database."""
    try:
        connect(path, synchronous="FULL", vfs=None).close()
    except (MeshForgeError, apsw.Error, OSError) as error:
        yield str(error).replace(str(path), "it")
