"""The page as a file: complete in itself, with nothing that a run carries in it as markup."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import orjson
import pytest

from chaos.report import ReportError, render_html
from chaos.report.concerns import concerns
from chaos.report.run import Run, Verdict, load_run
from chaos.report.timeline import RECORDS_MAX, timeline
from chaos.report.turns import turns

from .report_world import HOSTILE, big_run, failing_run, happened, passing_run


class Reader(HTMLParser):
    """Elements with their attributes, and the text of each script and style."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, Mapping[str, str | None]]] = []
        self.raw: dict[str, list[str]] = {"script": [], "style": [], "title": []}
        self._in = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in self.raw:
            self._in = tag
            self.raw[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        self._in = ""

    def handle_data(self, data: str) -> None:
        if self._in:
            self.raw[self._in][-1] += data

    def of(self, name: str) -> list[Mapping[str, str | None]]:
        """The attributes of every element with a class."""
        return [values for _, values in self.elements if name in (values.get("class") or "").split()]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    home = tmp_path_factory.mktemp("runs")
    return {"pass": passing_run(home / "pass"), "fail": failing_run(home / "fail")}


@pytest.fixture(scope="module")
def failed(runs: Mapping[str, Path]) -> str:
    return render_html(runs["fail"])


def hash_of(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def drawn(home: Path, **more: Any) -> Mapping[str, Any]:
    run = load_run(home)
    every = turns(run.history)
    return timeline(run, every, concerns(run.history, run.sent, every), **more)


def test_what_is_hostile_stays_text(failed: str) -> None:
    assert HOSTILE not in failed
    reader = Reader(failed)
    assert [tag for tag, _ in reader.elements].count("script") == 2
    assert reader.raw["title"][0].startswith("Violation: order </script>")
    embedded, script = reader.raw["script"]
    assert "<" not in embedded
    assert "owned" not in script
    run = orjson.loads(embedded)
    assert HOSTILE[:256] in [command["key"] for command in run["commands"]]
    assert "x" * 300 in [command["key"] for command in run["commands"]]
    names = [orjson.loads(str(values["data-name"])) for values in reader.of("key")]
    assert ["", HOSTILE] in names
    assert ["default/demo/counter", "k2"] in names
    assert "\x1b" not in failed
    assert "\u202e" not in failed


def test_nothing_is_fetched_and_no_other_script_may_run(failed: str) -> None:
    reader = Reader(failed)
    for tag, values in reader.elements:
        assert "src" not in values, tag
        assert "style" not in values, tag
        assert not [name for name in values if name.startswith("on")], tag
        if "href" in values:
            assert values["href"] == "data:,"
    style = reader.raw["style"][0]
    assert "url(" not in style.replace("url(#", "")
    assert "@import" not in style
    (policy,) = [v["content"] for _, v in reader.elements if v.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    assert f"script-src {hash_of(reader.raw['script'][1])};" in policy
    assert f"style-src {hash_of(style)};" in policy
    assert "unsafe" not in policy


def test_guarantees_have_badges_in_order(failed: str) -> None:
    badges = {str(v["data-id"]): str(v["class"]).removeprefix("badge ") for v in Reader(failed).of("badge")}
    assert list(badges) == [*(f"G{n}" for n in range(1, 14)), "ledger"]
    assert {id_: state for id_, state in badges.items() if state != "absent"} == {
        "G1": "broken",
        "G4": "broken",
        "G10": "empty",
        "ledger": "unsure",
    }


def test_a_passing_run_says_so(runs: Mapping[str, Path]) -> None:
    page = render_html(runs["pass"])
    reader = Reader(page)
    assert ("body", {"class": "pass"}) in reader.elements
    assert "Every guarantee that was judged holds." in page
    assert len(reader.of("fired")) == 2
    assert "fired, pid 100 killed by SIGKILL" in page
    assert not reader.of("fallen")
    assert [str(v["class"]) for v in reader.of("badge")].count("badge held") == 9


def test_a_status_of_another_version_is_inconclusive(runs: Mapping[str, Path], tmp_path: Path) -> None:
    (tmp_path / "history.jsonl").write_bytes((runs["pass"] / "history.jsonl").read_bytes())
    (tmp_path / "run.json").write_bytes(b'{"version": 1, "sent": []}')
    (tmp_path / "verdict.json").write_bytes(b'{"status": "splendid", "reasons": ["because"]}')
    page = render_html(tmp_path)
    assert ("body", {"class": "inconclusive"}) in Reader(page).elements
    assert "<li>because</li>" in page
    assert "No image was taken." in page
    with pytest.raises(ReportError):
        render_html(tmp_path / "nowhere")


def test_more_commands_than_rows_are_cut(runs: Mapping[str, Path], tmp_path: Path) -> None:
    home = big_run(tmp_path / "big", 120)
    page = render_html(home)
    assert "No image was taken." in page
    for image in ("image-1", "image-2"):
        (home / image).mkdir()
        for path in (runs["pass"] / image).iterdir():
            (home / image / path.name).write_bytes(path.read_bytes())
    (home / "image-2" / "image.json").unlink()
    page = render_html(home)
    assert "and 20 more commands" in page
    assert "Image 2 cannot be read" in page
    assert page.count('<span class="quiet">unreadable</span>') == 100


def test_lanes_tell_who_was_there_from_when_to_when(runs: Mapping[str, Path]) -> None:
    told = drawn(runs["pass"])
    lanes = {lane["name"]: lane for lane in told["lanes"]}
    assert list(lanes) == ["client", "broker", "worker#1", "worker#2", "store"]
    assert (lanes["worker#1"]["ending"], lanes["worker#1"]["clean"]) == ("killed by SIGKILL", False)
    assert (lanes["worker#2"]["ending"], lanes["worker#2"]["clean"]) == ("exit code 0", True)
    assert 800 < lanes["worker#1"]["begin"] < lanes["worker#1"]["end"] < lanes["worker#2"]["begin"]
    (span,) = lanes["broker"]["spans"]
    assert (span["what"], round(span["to"] - span["from"], 1)) == ("pause", 400.1)
    assert lanes["broker"]["tracks"] == 3
    faults = [record for record in told["records"] if record["kind"] == "fault"]
    assert [told["lanes"][fault["lane"]]["name"] for fault in faults] == ["worker#1", "broker"]
    assert all(fault["bad"] for fault in faults)
    assert [turn["cut"] for turn in told["turns"]] == [False, True, False]
    assert told["turns"][1]["to"] == pytest.approx(lanes["worker#1"]["end"])


def told_of(*records: tuple[str, str, Mapping[str, Any]]) -> Mapping[str, Any]:
    run = Run("s", "a", "", "", (), happened(*records), Verdict("pass"), (), {}, {}, {})
    every = turns(run.history)
    return timeline(run, every, concerns(run.history, (), every))


def spans(told: Mapping[str, Any], name: str) -> list[tuple[str, float, float]]:
    (lane,) = [lane for lane in told["lanes"] if lane["name"] == name]
    return [(span["what"], span["from"], span["to"]) for span in lane["spans"]]


def test_what_is_down_stopped_or_full_is_shaded_until_it_is_healed() -> None:
    told = told_of(
        ("worker#1", "spawn", {"pid": 1}),
        ("worker#1", "fault", {"rule": "worker#1:received@1=stop(1)"}),
        ("worker#1", "fault", {"rule": "worker#1:before_store@1=full(1)"}),
        ("nats", "down", {"why": "killed"}),
        ("nats", "down", {"why": "still"}),
        ("worker#1", "healed", {"rule": "worker#1:before_store@1=full(1)"}),
        ("nats", "up", {}),
        ("proxy", "fault", {"rule": "proxy:puback@1=blackhole"}),
        ("proxy", "fault", {"rule": "proxy:puback@1=swallow"}),
        ("worker#1", "exit", {"status": 0}),
        ("nats", "down", {"why": "for good"}),
        ("harness", "drained", {}),
    )
    assert spans(told, "worker#1") == [("stop", 2.0, 10.0)]
    assert spans(told, "store") == [("full", 3.0, 6.0)]
    assert spans(told, "broker") == [("down", 4.0, 7.0), ("blackhole", 8.0, 12.0), ("down", 11.0, 12.0)]


def test_what_befalls_a_store_and_what_befalls_a_server_lie_apart() -> None:
    told = told_of(
        ("worker#1", "spawn", {"pid": 1}),
        ("worker#1", "fault", {"rule": "worker#1:before_store@1=lock(1)"}),
        ("worker#1", "healed", {"rule": "worker#1:before_store@1=lock(1)"}),
        ("worker#1", "fault", {"rule": "nats:before_store@1=full(1)"}),
        ("nats", "healed", {"rule": "nats:before_store@1=full(1)"}),
        ("worker#1", "fault", {"rule": "worker#1:before_mark@1=unlink"}),
        ("worker#1", "exit", {"status": 4}),
        ("worker#1", "healed", {"rule": "worker#1:before_mark@1=unlink"}),
        ("harness", "drained", {}),
    )
    assert spans(told, "worker#1") == []
    assert spans(told, "store") == [("lock", 2.0, 3.0), ("unlink", 6.0, 8.0)]
    assert spans(told, "broker") == [("full", 4.0, 5.0)]


def test_turns_that_overlap_lie_on_tracks_of_their_own() -> None:
    points = ["received"] * 6 + ["before_store"] * 6
    told = told_of(*[("worker#1", "point", {"point": point, "nth": 1}) for point in points])
    assert [turn["track"] for turn in told["turns"]] == [1, 2, 3, 4, 4, 4]
    (lane,) = [lane for lane in told["lanes"] if lane["name"] == "worker#1"]
    assert lane["tracks"] == 5
    assert [turn["cut"] for turn in told["turns"]] == [False] * 6


def test_a_turn_ends_with_its_session_when_the_broker_is_lost() -> None:
    told = told_of(
        ("worker#1", "point", {"point": "received", "nth": 1}),
        ("nats", "fault", {"rule": "nats:received@1=restart"}),
        ("worker#1", "point", {"point": "after_lease", "nth": 2}),
        ("worker#1", "point", {"point": "received", "nth": 2}),
        ("worker#1", "point", {"point": "after_lease", "nth": 3}),
    )
    assert [(turn["from"], turn["to"], turn["cut"]) for turn in told["turns"]] == [(1.0, 3.0, True), (4.0, 4.0, False)]


def test_records_of_nobody_known_have_a_place_all_the_same() -> None:
    told = told_of(
        ("client#2", "send", {"id": "c", "key": "k", "subject": "cmd.t.w.a.x", "phase": "main"}),
        ("stranger", "exit", {"status": 3}),
        ("nats", "exit", {"status": 0}),
        ("nats", "point", {"point": "received", "nth": 1}),
        ("harness", "image", {"number": 1, "final": True}),
        ("harness", "fault", {"rule": "moon:full@1=rise"}),
        ("client#2", "failed", {"id": "c", "reason": "x" * 3000}),
    )
    names = [lane["name"] for lane in told["lanes"]]
    assert names == ["client#2", "broker", "stranger", "store"]
    where = [names[record["lane"]] for record in told["records"]]
    assert where == ["client#2", "stranger", "broker", "broker", "store", "broker", "client#2"]
    assert told["turns"] == []
    assert told["records"][-1]["fields"]["reason"].endswith("x... (3000 characters)")


def test_of_too_many_records_those_far_from_faults_are_left_out(tmp_path: Path) -> None:
    home = big_run(tmp_path / "big", 520)
    told = drawn(home, kept=[5000])
    kinds = [record["kind"] for record in told["records"]]
    assert len(kinds) == RECORDS_MAX < told["total"]
    assert kinds.count("send") == 520
    assert kinds.count("fault") == kinds.count("exit") == kinds.count("spawn") == 1
    times = [record["t"] for record in told["records"]]
    assert times == sorted(times)
    (place,) = told["slice"]
    history = load_run(home).history
    assert told["records"][place]["t"] == pytest.approx((history[5000].t - history[0].t) / 1e6)
    page = render_html(home)
    assert f"{told['total'] - RECORDS_MAX} of {told['total']} records are not drawn" in page
    assert 'id="undrawn"' not in render_html(big_run(tmp_path / "small", 9))
