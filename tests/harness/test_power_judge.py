"""The judge of crash images: a real recording passes, and each change to it that loses something is found."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import apsw
import attrs
import pytest
import trio

from chaos.power.check import record_power
from chaos.power.ground import power_case
from chaos.power.images import Disk, parse_recipe, rebuild
from chaos.power.judge import judge_tape
from chaos.power.result import JUDGED, Broken, PowerResult
from chaos.power.session import TAPE
from chaos.power.tape import Note, Step, Sync, Tape, Write, load_tape
from chaos.power.vfs import RecordingDisk
from chaos.rows import read_store
from chaos.scratch import scratch_directory
from chaos.verdict import Status


@pytest.fixture(scope="module")
def tape(tmp_path_factory: pytest.TempPathFactory) -> Tape:
    """A recording of the real runtime."""
    home = tmp_path_factory.mktemp("recording")
    assert not trio.run(record_power, power_case(), home)
    return load_tape(home / TAPE)


@pytest.fixture
def judged() -> Iterator[Callable[..., PowerResult]]:
    """Judges steps of a tape."""
    with tempfile.TemporaryDirectory(dir=scratch_directory()) as directory:

        def judge(tape: Tape, steps: Sequence[Step], until: str = "") -> PowerResult:
            return judge_tape(Tape(tape.told, steps), Path(directory), until=until)

        yield judge


def at_of(tape: Tape, wanted: Callable[[Step], bool], after: int = -1) -> int:
    """Where the next step is that is wanted."""
    return next(at for at, step in enumerate(tape.steps) if at > after and wanted(step))


def is_note(kind: str) -> Callable[[Step], bool]:
    return lambda step: isinstance(step, Note) and step.kind == kind


def is_sync(file: str) -> Callable[[Step], bool]:
    return lambda step: isinstance(step, Sync) and step.file == file


def until_first(tape: Tape, kind: str, more: int = 0) -> int:
    """Just behind the first note of a kind, and the `more` after it."""
    at = -1
    for _ in range(more + 1):
        at = at_of(tape, is_note(kind), at)
    return at + 1


# -- the true recording --------------------------------------------------------------------------------------------


def test_a_real_run_keeps_every_promise_in_every_image(tape: Tape, judged: Callable[..., PowerResult]) -> None:
    result = judged(tape, tape.steps)
    assert (result.status, result.broken, result.reasons) == (Status.PASS, [], [])
    assert (result.bad, result.settled) == (0, 0)
    assert result.images > result.distinct > 5_000
    assert result.states > 30
    assert result.checkpoints > 3
    assert result.promises > 100
    assert result.kinds.keys() == {"prefix", "without", "only", "first", "last", "some"}
    assert {id_ for id_ in JUDGED if result.examined[id_] > 0} == set(JUDGED)


def test_the_recording_meets_what_there_is_to_meet(tape: Tape) -> None:
    """Three sessions, a log that is emptied amid commits, deaths, holds, marks, refusals, a query, two agents."""
    notes = [step for step in tape.steps if isinstance(step, Note)]
    assert [note["number"] for note in notes if note.kind == "session"] == [1, 2, 3]
    points = {note["point"] for note in notes if note.kind == "point"}
    assert points >= {
        "after_store",
        "in_publish",
        "after_ack",
        "after_hold",
        "after_dead_letter",
        "after_mark",
        "in_attempt",
    }
    told = {note["subject"].rpartition(".")[2] for note in notes if note.kind in ("published", "echoed")}
    assert told >= {"added", "conflict", "refused", "dead_lettered", "found", "note", "noted", "seen", "explode"}
    first = at_of(tape, is_sync(""), until_first(tape, "acked"))
    assert first < at_of(tape, lambda step: isinstance(step, Note) and step.fields.get("number") == 2)


# -- recordings that lose something --------------------------------------------------------------------------------


def test_an_ack_before_the_commit_is_found(tape: Tape, judged: Callable[..., PowerResult], tmp_path: Path) -> None:
    """And the image of it can be made again, and is without the decision indeed."""
    at = at_of(tape, is_note("acked"))
    early = at_of(tape, lambda step: isinstance(step, Note) and step.fields.get("point") == "before_store")
    steps = [*tape.steps[:early], tape.steps[at], *tape.steps[early:at], *tape.steps[at + 1 : at + 30]]
    result = judged(tape, steps, until="G1")
    assert result.fell == ["G1"]
    (broken,) = result.broken
    assert broken.what == "cmd.default.demo.counter.add c1 (key 'k1') was ACKed, and is not decided"
    assert broken.moment == early
    assert broken.where == f"power lost after step {early}, session 1, after received for the 1st time"
    rebuild(Tape({}, steps), parse_recipe(broken.recipe), tmp_path / "rebuilt")
    assert not read_store(tmp_path / "rebuilt/store.db").keys


def test_a_publish_before_the_commit_is_found(tape: Tape, judged: Callable[..., PowerResult]) -> None:
    at = at_of(tape, is_note("published"))
    early = at_of(tape, lambda step: isinstance(step, Note) and step.fields.get("point") == "before_store")
    steps = [*tape.steps[:early], tape.steps[at], *tape.steps[early:at], *tape.steps[at + 1 : at + 3]]
    result = judged(tape, steps)
    assert result.fell == ["G2", "G3"]
    assert 0 < result.bad < result.distinct


def test_a_commit_that_is_not_synced_is_found(tape: Tape, judged: Callable[..., PowerResult]) -> None:
    """Without the one sync of the first turn's commit."""
    published = at_of(tape, is_note("published"))
    sync = max(at for at, step in enumerate(tape.steps[:published]) if is_sync("-wal")(step))
    result = judged(tape, [*tape.steps[:sync], *tape.steps[sync + 1 : published + 2]])
    assert {"G2", "G3"} <= set(result.fell)
    assert result.bad > 10


def test_a_log_that_is_written_over_before_the_database_is_synced_is_found(
    tape: Tape, judged: Callable[..., PowerResult]
) -> None:
    """Without the sync that ends the first time the log is emptied in the middle of the run."""
    acked = at_of(tape, is_note("acked"))
    sync = at_of(tape, is_sync(""), acked)
    result = judged(tape, [*tape.steps[:sync], *tape.steps[sync + 1 : sync + 60]], until="G5")
    assert "G5" in result.fell
    assert any("damaged" in broken.what or "does not open" in broken.what for broken in result.broken)


def test_half_a_decision_is_found(tape: Tape, judged: Callable[..., PowerResult], tmp_path: Path) -> None:
    """Somebody deletes a key record, in a transaction of its own, at the end."""
    end = Tape(tape.told, tape.steps)
    files = tmp_path / "end"
    disk_at_end = Disk()
    for at, step in enumerate(end.steps):
        disk_at_end.take(at, step)
    files.mkdir()
    (files / "store.db").write_bytes(disk_at_end.files[""])
    recorder = RecordingDisk(files / "store.db", end)
    with closing(apsw.Connection(str(files / "store.db"), vfs=recorder.name)) as connection:
        connection.execute("DELETE FROM keys WHERE key = 'k2'")
    recorder.unregister()
    # The log was deleted at the end, and its name may be back; that is how it has been judged all along.
    tail = [Note("session", {"number": 4}), *end.steps[len(tape.steps) :]]
    begun = [Write("", 0, bytes(disk_at_end.files[""])), Sync("")]
    result = judged(tape, [*begun, *tail])
    assert "G5" in result.fell
    assert any("has no key record" in broken.what for broken in result.broken)


def test_a_file_that_is_no_database_is_found(tape: Tape, judged: Callable[..., PowerResult]) -> None:
    result = judged(tape, [Write("", 0, b"nonsense" * 512), Sync("")])
    assert [broken.what for broken in result.broken] == [
        "the database does not open: NotADBError: file is not a database"
    ]
    assert result.fell == ["G5"]


def test_a_page_of_another_time_is_found(tape: Tape, judged: Callable[..., PowerResult]) -> None:
    """In the database of the end, a page that belongs to nothing that anybody reads at once."""
    disk = Disk()
    for at, step in enumerate(tape.steps):
        disk.take(at, step)
    whole = bytes(disk.files[""])
    with closing(apsw.Connection(":memory:")) as connection:
        connection.deserialize("main", whole[:18] + b"\x01\x01" + whole[20:])
        size = connection.pragma("page_size")
        ((root,),) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name LIKE 'sqlite_autoindex_scopes%'")
    result = judged(tape, [Write("", 0, whole), Write("", (root - 1) * size, bytes(size)), Sync("")])
    assert "G5" in result.fell
    assert any(broken.what.startswith("the database is damaged: ") for broken in result.broken)


def test_an_answer_ahead_of_the_commit_is_found(tape: Tape, judged: Callable[..., PowerResult]) -> None:
    found = at_of(tape, lambda step: isinstance(step, Note) and "found" in str(step.fields.get("subject")))
    early = until_first(tape, "published")
    result = judged(tape, [*tape.steps[:early], tape.steps[found], tape.steps[early]])
    assert result.fell == ["G3"]
    assert "a query was answered at version" in result.broken[0].what


# -- what shows too little -----------------------------------------------------------------------------------------


def test_a_recording_that_shows_little_is_no_pass(tape: Tape, judged: Callable[..., PowerResult]) -> None:
    result = judged(tape, tape.steps[: until_first(tape, "published")])
    assert result.status is Status.INCONCLUSIVE
    text = "; ".join(result.reasons)
    for reason in (
        "distinct images are few",
        "the log was never emptied",
        "told the outside of nothing but published",
        "never ACKed: ",
    ):
        assert reason in text


def test_writes_that_were_never_synced_are_told(tape: Tape, judged: Callable[..., PowerResult]) -> None:
    result = judged(tape, [Write("-wal", 0, b"x")] * 70)
    assert any("were taken to be durable without a sync" in reason for reason in result.reasons)


def test_it_stops_at_the_guarantee_it_was_to_find(tape: Tape, judged: Callable[..., PowerResult]) -> None:
    at = at_of(tape, is_note("acked"))
    # First of all, so that each state is found when the promise has been made already.
    result = judged(tape, [tape.steps[at], *tape.steps], until="G1")
    assert result.fell == ["G1"]
    assert result.distinct < 100
    assert not result.reasons


# -- the result ----------------------------------------------------------------------------------------------------

RESULT = PowerResult(
    steps=9,
    distinct=2,
    bad=1,
    seconds=2.0,
    cpu_seconds=0.5,
    broken=[Broken("G1", "a was ACKed, and is not decided", 5, "5:none", "power lost after step 5")],
    examined={"G1": 3, "G5": 2},
)


def test_a_result_is_read_as_it_was_written() -> None:
    assert PowerResult.from_json(json.loads(json.dumps(RESULT.to_json()))) == RESULT
    with pytest.raises(ValueError, match="no result of crash images"):
        PowerResult.from_json({"steps": 1})


def test_a_result_is_a_verdict() -> None:
    verdict = RESULT.verdict
    assert (verdict.status, verdict.broken_ids) == (Status.VIOLATION, ["G1"])
    assert {each.judgement.id: each.judgement.examined for each in verdict.judgements} == {
        **dict.fromkeys(JUDGED, 0),
        "G1": 3,
        "G5": 2,
    }
    assert "a was ACKed, and is not decided (image 5:none, power lost after step 5)" in str(verdict)
    assert "2 distinct, 0 states, 1 bad" in RESULT.summary()
    assert "2.0 s, 4 images per second of processor" in RESULT.summary()


def test_reasons_make_no_pass_and_no_violation() -> None:
    assert attrs.evolve(RESULT, broken=[]).status is Status.PASS
    assert attrs.evolve(RESULT, broken=[], reasons=["few"]).status is Status.INCONCLUSIVE
