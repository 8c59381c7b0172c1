"""The report as text: what it says, in which order, and that it fits and hides nothing."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chaos.evidence import Evidence
from chaos.history import KINDS, Record
from chaos.report import ReportError, render_html, render_text
from chaos.report.aftermath import Sight, caption, three
from chaos.report.run import Image, load_run
from chaos.report.text import WIDTH
from chaos.report.words import action_of, actor_of, clipped, columns, ending, padded, plain, told, wrapped
from chaos.rows import KeyRow, Letter, OutputRow, Rows
from meshforge_trio.broker.port import StoredMessage
from meshforge_trio.subjects import Scope

from .report_world import HOSTILE, failing_run, passing_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    home = tmp_path_factory.mktemp("runs")
    return {"pass": passing_run(home / "pass"), "fail": failing_run(home / "fail")}


@pytest.fixture(scope="module")
def text(runs: Mapping[str, Path]) -> str:
    return render_text(runs["fail"])


def changed(home: Path, to: Path, name: str, **fields: Any) -> Path:
    """A copy of a run with some fields of a document changed."""
    for path in home.rglob("*"):
        if path.is_file():
            copy = to / path.relative_to(home)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    document = {**orjson.loads((home / name).read_bytes()), **fields}
    (to / name).write_bytes(orjson.dumps(document))
    return to


def section(text: str, begin: str) -> str:
    """What follows a line that begins so, up to the next empty line after its content."""
    found = text.split(f"\n{begin}", 1)[1]
    return found.split("\n\n", 1)[0]


def test_a_passing_run_takes_a_few_lines(runs: Mapping[str, Path]) -> None:
    lines = render_text(runs["pass"]).splitlines()
    assert lines[0] == "PASS  order flow  (3 sent, 2 workers, 1 killed, 1.25 s)"
    assert lines[1] == "plan         worker#1:after_store@2=kill; nats:worker#2.before_ack@1=pause(0.4)"
    assert lines[2].startswith("examined     G1 10  G2 10")
    assert lines[3].startswith("replay       meshforge-chaos replay 'worker#1:")
    assert len(lines) == 4


def test_the_parts_come_in_order(text: str) -> None:
    begins = [
        "VIOLATION  order </script>",
        "  never fired: worker#2:in_recovery@9=kill",
        "G1 broken: Not forgotten",
        "G4 broken: Delivered",
        "ledger could not be judged: KeyError",
        "plan         worker#1:after_store@2=kill; worker#2:in_recovery@9=kill",
        "minimal      worker#1:after_store@2=kill",
        "replay       meshforge-chaos replay",
        "What happened (3 keys;",
        "Rows of key",
        "fired        worker#1:after_store@2=kill",
        "did not fire worker#2:in_recovery@9=kill",
        "versions     python 3.11.7, nats_server 2.15.1",
    ]
    lines = text.splitlines()
    at = [next(n for n, line in enumerate(lines) if line.startswith(begin)) for begin in begins]
    assert at == sorted(at)
    assert "\n\n\n" not in text


def test_a_finding_is_told_with_its_scope_key_and_where_it_was_seen(text: str) -> None:
    assert section(text, "G4 broken:").splitlines()[1:] == [
        "  scope        default/demo/counter",
        "  key          k2",
        "  expected     as guaranteed; outcome decided",
        "  got          output 2 (c2_added) is not in MESHFORGE_EVENTS",
        "  seen on      the end",
    ]


def test_events_have_a_line_each_in_fixed_columns(text: str) -> None:
    lines = text.split("What happened", 1)[1].split("Rows of key", 1)[0].splitlines()[2:]
    events = [line for line in lines if line and not line.startswith("  6 more")]
    assert 10 <= len(events) <= 30
    assert all(line[12:14] == "  " and line[24:26] == "  " and line[8] == "." for line in events)
    times = [float(line[1:12]) for line in events]
    assert times == sorted(times)
    assert [line for line in events if line.startswith("x")] == [
        "x    823.400  worker#1    FAULT worker#1:after_store@2=kill",
        "x    826.500  worker#1    ends: killed by SIGKILL",
    ]
    assert any(line.endswith("calls counter.add on a v1 for key k2") for line in events)


def test_rows_stand_side_by_side(text: str) -> None:
    lines = section(text, "Rows of key k2 in default/demo/counter").splitlines()[1:]
    starts = [lines[0].index(head) for head in ("before the crash", "after the crash", "after recovery")]
    cells = {
        line[:15].strip(): [line[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)]
        for line in lines[1:]
    }
    assert cells == {
        "command": ["-", "waits in the stream at 2", "-"],
        "key record": ["-", "decided: output 2", "decided: output 2"],
        "outputs": ["-", "2 event added v2, NOT in stream", "2 event added v2, NOT in stream"],
        "mark": ["-", "published up to 1", "published up to 1"],
    }


def test_a_run_that_shows_nothing_is_told_with_its_reasons(runs: Mapping[str, Path], tmp_path: Path) -> None:
    why = ["worker#1:x@1=kill never fired", f"and {HOSTILE}"]
    home = changed(runs["pass"], tmp_path, "verdict.json", status="inconclusive", reasons=why, receipts=[])
    lines = render_text(home).splitlines()
    assert lines[0].startswith("INCONCLUSIVE  order flow")
    assert lines[1] == f"  {why[0]}"
    assert not any(line.startswith("Rows") for line in lines)
    assert any(line.startswith("What happened (3 keys") for line in lines)


def test_the_log_in_a_reason_keeps_its_lines(runs: Mapping[str, Path], tmp_path: Path) -> None:
    why = ["worker#1 ended with 70 before it got to work: KeyError: 'k'\nits log:\nFile \x1b[1mapp.py\nKeyError: 'k'"]
    home = changed(runs["pass"], tmp_path, "verdict.json", status="inconclusive", reasons=why, receipts=[])
    lines = render_text(home).splitlines()
    first = "  worker#1 ended with 70 before it got to work: KeyError: 'k'"
    assert lines[1:5] == [first, "    its log:", "    File \\u001b[1mapp.py", "    KeyError: 'k'"]


def test_images_in_a_row_are_told_as_one(runs: Mapping[str, Path], tmp_path: Path) -> None:
    found = {"what": "lost", "keys": ["k1"], "scope": ""}
    judged = [
        {"image": n, "final": n == 9, "id": "G2", "sentence": "Once.", "examined": 1, "findings": [found]}
        for n in (1, 2, 3, 5, 7, 8, 9)
    ]
    many = changed(runs["fail"], tmp_path / "many", "verdict.json", judgements=judged)
    assert "seen on      the corpses (images 1 to 3, 5, 7, 8), the end\n" in render_text(many)
    assert "seen on the corpses (images 1 to 3, 5, 7, 8) and at the end<" in render_html(many)


def test_many_findings_and_many_keys_are_cut(runs: Mapping[str, Path], tmp_path: Path) -> None:
    findings = [{"what": f"finding {n}", "keys": ["k1", "k2", HOSTILE[:256], "x" * 300], "scope": ""} for n in range(9)]
    judged = {"image": 1, "final": False, "id": "G2", "sentence": "Once.", "examined": 9, "findings": findings}
    # The same thing may be found twice, too.
    again = {**judged, "image": 2, "final": True, "findings": findings * 2}
    many = changed(runs["fail"], tmp_path / "many", "verdict.json", judgements=[judged, again])
    text = render_text(many)
    assert text.count("  got ") == 5
    assert "  ... and 4 more\n" in text
    assert text.count("seen on      the corpse (image 1), the end\n") == 5
    run = orjson.loads((runs["fail"] / "run.json").read_bytes())
    sent = [{**run["sent"][0], "key": f"more-{n}"} for n in range(3)]
    everybody = [{"what": "x", "keys": ["k1", "k2", "more-0", "more-1", "more-2"], "scope": ""}]
    home = changed(many, tmp_path / "keys", "run.json", sent=[*run["sent"], *sent])
    home = changed(home, tmp_path / "again", "verdict.json", judgements=[{**judged, "findings": everybody}])
    assert "  ... and the rows of 1 more\n" in render_text(home)


def test_an_image_that_cannot_be_read_is_told(runs: Mapping[str, Path], tmp_path: Path) -> None:
    home = changed(runs["fail"], tmp_path, "verdict.json")
    (home / "image-1" / "store.db").write_bytes(b"no database")
    text = render_text(home)
    assert "image 1 cannot be read:" in text
    assert "before the crash (no image)" in text
    (home / "image-2" / "store.db").write_bytes(b"no database")
    assert "Rows of key" not in render_text(home)


def test_where_nobody_died_there_is_one_column(runs: Mapping[str, Path], tmp_path: Path) -> None:
    home = changed(runs["fail"], tmp_path, "verdict.json")
    for path in (home / "image-1").iterdir():
        path.unlink()
    (home / "image-1").rmdir()
    text = render_text(home)
    assert "  after recovery (the end)" in text
    assert "the crash" not in text


def test_a_run_without_anything_left_is_told(runs: Mapping[str, Path], tmp_path: Path) -> None:
    run = orjson.loads((runs["fail"] / "run.json").read_bytes())
    (tmp_path / "run.json").write_bytes(orjson.dumps({**run, "sent": [], "plan": "", "replay": "", "environment": {}}))
    (tmp_path / "history.jsonl").write_bytes(
        b'{"t":1,"actor":"harness","kind":"header","version":1,"scenario":"","plan":"","app":""}\n'
    )
    text = render_text(tmp_path)
    assert "verdict.json is missing" in text
    assert "plan         (no faults)\nreplay       -\n" in text
    assert text.endswith("fired        nothing\ndid not fire -\nversions     -\n")


def test_what_is_no_run_raises(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="not the directory of a run"):
        render_text(tmp_path)


def test_nothing_is_wider_than_a_log_or_hidden_in_it(text: str) -> None:
    assert all(columns(line) <= WIDTH for line in text.splitlines())
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "\\u001b[31m" in text


def test_the_replay_command_is_broken_between_words_alone(runs: Mapping[str, Path], tmp_path: Path) -> None:
    long = f"meshforge-chaos replay --app some.module:app '{'worker#1:after_store@2=kill; ' * 6}' --batch 4 --times 10"
    home = changed(runs["pass"], tmp_path / "long", "run.json", replay=long)
    told_replay = render_text(home).split("replay       ", 1)[1]
    assert told_replay.count(" \\\n") == 2
    assert shlex.split(told_replay.replace("\\\n", " ")) == shlex.split(long)
    short = " ".join(f"--option-{n} 'a b'" for n in range(30))
    lines = render_text(changed(runs["pass"], tmp_path / "short", "run.json", replay=short)).splitlines()
    assert sum(line.endswith(" \\") for line in lines) > 3
    assert all(len(line) <= WIDTH for line in lines)


@given(st.text(max_size=80), st.integers(12, 60), st.integers(0, 9))
def test_clipped_text_fits_and_is_plain(line: str, most: int, tail: int) -> None:
    short = clipped(line, most, tail)
    assert columns(short) <= most
    assert plain(short) == short
    if columns(plain(line)) <= most:
        assert short == plain(line)


@given(st.text(max_size=300), st.integers(40, 100))
def test_wrapped_text_fits_and_loses_nothing(text: str, width: int) -> None:
    lines = wrapped(text, width, "  ")
    assert all(columns(line) <= width and line.startswith("  ") for line in lines)
    assert "".join("".join(lines).split()) == "".join(plain(text).split())


def test_words_of_plans() -> None:
    assert plain("aé😀👨‍👩‍👧") == "aé😀👨‍👩‍👧"
    assert plain("a\x00\u2066\u2028") == "a\\u0000\\u2066\\u2028"
    assert padded("日本", 6) == "日本  "
    assert (actor_of("worker#1:x@1=kill"), action_of("nats:x@1=pause(0.4)")) == ("worker#1", "pause")
    assert [ending(status) for status in (0, -9, -250, None)] == [
        *("exit code 0", "killed by SIGKILL", "killed by signal 250", "exit code None")
    ]


@pytest.mark.parametrize(
    ("kind", "fields", "said"),
    [
        ("spawn", {"pid": 5}, "starts, pid 5"),
        ("healed", {"rule": "r"}, "healed r"),
        ("down", {"why": "killed"}, "server goes down: killed"),
        ("up", {}, "server is up"),
        ("up", {"why": "again"}, "server is up: again"),
        ("send", {"id": "c", "key": "", "subject": "s", "phase": "after"}, "sends c (no key) to s, phase after"),
        ("unknown", {"id": "c", "reason": "late"}, "outcome of c unknown: late"),
        ("failed", {"id": "c", "reason": "no"}, "c failed: no"),
        ("listening", {}, "listens to events from here on"),
        ("deaf", {"reason": "gone"}, "hears no more events: gone"),
        ("heard", {"subject": "s", "msg_id": "m", "body_base64": ""}, "hears something on s, Msg-Id m"),
        ("heard", {"subject": "s", "msg_id": "m", "body": "[]"}, "hears something on s, Msg-Id m"),
        (
            "heard",
            {"subject": "s", "msg_id": "m", "body": '{"agent":"a","name":"n","payload":3}'},
            "hears a.n (key None)",
        ),
        (
            "frame",
            {"frame": "publish", "conn": 1, "bytes": 5, "id": "c", "seq": 3},
            "frame publish c sequence 3  (5 bytes)",
        ),
        ("drained", {}, "everything sent is decided"),
        ("image", {"number": 1, "final": True}, "image 1 taken, at the end"),
        ("header", {"scenario": "s"}, "run of s"),
    ],
)
def test_words_of_records(kind: str, fields: Mapping[str, Any], said: str) -> None:
    assert told(Record(0, "a", kind, fields)) == said


@given(
    st.sampled_from(sorted(KINDS)),
    st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3), max_leaves=5),
)
def test_any_record_has_words(kind: str, value: Any) -> None:
    said = told(Record(0, "a", kind, {**dict.fromkeys(KINDS[kind], value), "scope": value, "body": value}))
    assert plain(said) == said


def image(number: int, *, final: bool = False) -> Image:
    return Image(number, final)


def test_the_three_images_around_a_crash(runs: Mapping[str, Path]) -> None:
    run = load_run(runs["pass"])
    corpses, end = [image(n) for n in (1, 2, 3)], image(4, final=True)

    def around(images: list[Image], *concerned: int) -> list[int | None]:
        whole = attrs.evolve(run, images=images)
        return [None if found is None else found.number for found in three(whole, set(concerned))]

    assert around([*corpses, end], 2, 4) == [1, 2, 4]
    assert around([*corpses, end], 1) == [None, 1, 4]
    assert around([*corpses, end], 4) == [2, 3, 4]
    assert around(corpses, 3) == [2, 3, None]
    assert around([end]) == [None, None, 4]
    assert around([]) == [None, None, None]
    assert [caption(found) for found in (corpses[0], end)] == ["image 1, corpse", "the end"]


def test_what_an_image_shows_of_a_command(runs: Mapping[str, Path]) -> None:
    first, end = load_run(runs["pass"]).images
    assert first.evidence is not None
    assert end.evidence is not None
    seen = Sight(first.evidence).of(("default/demo/counter", "k2"))
    assert [(fact.text, fact.missing) for facts in seen.values() for fact in facts] == [
        ("waits in the stream at 2", False),
        ("decided: output 2", False),
        ("2 event added v2, NOT in stream", True),
        ("published up to 1", False),
    ]
    seen = Sight(end.evidence).of(("default/demo/counter", "k2"))
    assert [fact.text for fact in seen["outputs"]] == ["2 event added v2, in stream at 2"]
    assert not any(Sight(end.evidence).of(("other/demo/counter", "k2")).values())


def test_rows_of_every_kind_are_told() -> None:
    scope = Scope("t", "w", "a")

    def output(n: int, kind: str) -> OutputRow:
        return OutputRow(scope, n, kind, "k", f"e{n}", "name", "subject", f"m{n}", b"{}", None, None, None)

    rows = Rows(
        [output(1, "record"), output(2, "command"), output(3, "command"), output(4, "dead")],
        [KeyRow(scope, "k", b"", "dead", 1, 4, 2)],
        [KeyRow(scope, "k", b"x", "refused", 5, 4)],
        attempts={(scope, "k"): 2},
        dead=[Letter(scope, "k", 2, "cmd.t.w.a.x", b"", "attempts_exhausted", 3)],
    )
    commands = [
        StoredMessage(1, "no subject of ours", "x", b"{}"),
        StoredMessage(2, "cmd.t.w.b.y", "m3", b'{"idempotency_key": "k", "id": "c"}'),
        StoredMessage(3, "cmd.t.w.a.x", "x", b'{"id": "q1"}'),
        StoredMessage(4, "cmd.t.w.a.x", "x", b'{"idempotency_key": "k"}'),
    ]
    sight = Sight(Evidence(rows, commands=commands, events=[StoredMessage(n, "s", "m1", b"") for n in (7, 8)]))
    assert {label: [fact.text for fact in facts] for label, facts in sight.of(("t/w/a", "k")).items()} == {
        "command": ["waits in the stream at 4"],
        "key record": ["dead: outputs 1 to 4, generation 2", "refused: nothing"],
        "outputs": [
            "1 record name, in stream at 7 and 8",
            "2 command name, not in stream (may be done)",
            "3 command name, in stream at 2",
            "4 dead name, NOT in stream",
        ],
        "attempts": ["2"],
        "dead letter": ["attempts_exhausted after 3 attempts"],
        "mark": [],
    }
    assert [fact.text for fact in sight.of(("t/w/a", "id:q1"))["command"]] == ["waits in the stream at 3"]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_history_of_odd_fields_is_reported_all_the_same(data: st.DataObject, tmp_path: Path) -> None:
    texts = st.sampled_from(["c1", "k1", "received", HOSTILE, ""])
    value: st.SearchStrategy[Any] = st.one_of(st.none(), st.integers(-5, 5), texts, st.lists(st.just("c1"), max_size=1))
    lines: list[dict[str, Any]] = [
        {"t": 0, "actor": "harness", "kind": "header", "version": 1, "scenario": "", "plan": "", "app": ""}
    ]
    for t in range(data.draw(st.integers(0, 12))):
        kind = data.draw(st.sampled_from(sorted(KINDS.keys() - {"header"})))
        names = sorted(KINDS[kind] | {"scope", "msg_id", "seq", "id", "body", "subject"})
        actor = data.draw(st.sampled_from(["worker#1", "client", "nats", "proxy", "harness", "store", "broker", ""]))
        lines.append({**{name: data.draw(value) for name in names}, "t": t, "actor": actor, "kind": kind})
    (tmp_path / "history.jsonl").write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    (tmp_path / "run.json").write_bytes(b'{"version": 1}')
    assert "INCONCLUSIVE" in render_text(tmp_path)
    assert "Inconclusive" in render_html(tmp_path)
