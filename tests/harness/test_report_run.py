"""A run's directory: what is read of it, what is told instead of what is missing, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from chaos.report.run import Finding, ReportError, load_run

from .report_world import failing_run, passing_run


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return passing_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def home(sample: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    copy = tmp_path / "run"
    for path in sample.rglob("*"):
        to = copy / path.relative_to(sample)
        if path.is_file():
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes(path.read_bytes())
    return copy


def rewrite(path: Path, **fields: Any) -> None:
    path.write_bytes(orjson.dumps({**orjson.loads(path.read_bytes()), **fields}))


def test_everything_is_read(home: Path) -> None:
    run = load_run(home)
    assert run.scenario == "order flow"
    assert run.rules == ["worker#1:after_store@2=kill", "nats:worker#2.before_ack@1=pause(0.4)"]
    assert [(c.key, c.at, c.entity, list(c.expect)) for c in run.sent][:1] == [
        ("k1", "default/demo/counter", "a", ["decided"])
    ]
    assert [(image.number, image.final, image.trouble) for image in run.images] == [(1, False, ""), (2, True, "")]
    assert run.verdict.status == "pass"
    assert run.verdict.receipts == {"worker#1:after_store@2=kill": (100, -9)}
    assert run.history[0].kind == "header"
    assert run.settings["engine"] == {"batch": 1}
    assert "plan" not in run.settings


def test_logs_lose_their_colours_and_their_beginnings(home: Path) -> None:
    (home / "worker-2.log").write_text("".join(f"line {n}\n" for n in range(1000)))
    (home / "worker-10.log").write_bytes(b"\xff\n")
    (home / "worker-x.log").write_text("of nobody\n")
    logs = load_run(home).logs
    assert list(logs) == ["worker#1", "worker#2", "worker#10"]
    assert logs["worker#1"] == "INFO worker"
    assert logs["worker#2"].splitlines()[::200] == ["...", "line 999"]
    assert logs["worker#10"] == "\ufffd"


def test_lines_of_several_processes_are_put_in_order(home: Path) -> None:
    lines = (home / "history.jsonl").read_bytes().splitlines(keepends=True)
    (home / "history.jsonl").write_bytes(b"".join([lines[0], *reversed(lines[1:])]))
    history = load_run(home).history
    assert history[0].kind == "header"
    assert [record.t for record in history] == sorted(record.t for record in history)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("run.json", None, "not the directory of a run"),
        ("run.json", b"{", "is no JSON"),
        ("run.json", b"[]", "holds no object"),
        ("run.json", b'{"version": 2}', "version 2, this reads up to 1"),
        ("run.json", b'{"version": "1"}', "version '1', this reads up to 1"),
        ("run.json", b"{}", "version None"),
        ("history.jsonl", None, "No such file"),
        ("history.jsonl", b"", "does not begin with a header"),
        ("history.jsonl", b'{"t": 1, "actor"', "truncated in line 1"),
    ],
)
def test_what_is_no_run_is_refused_in_one_line(home: Path, name: str, content: bytes | None, said: str) -> None:
    (home / name).unlink()
    if content is not None:
        (home / name).write_bytes(content)
    with pytest.raises(ReportError, match=said) as refused:
        load_run(home)
    assert "\n" not in str(refused.value)
    assert name in str(refused.value)


def test_a_run_that_was_not_judged_is_inconclusive(home: Path) -> None:
    (home / "verdict.json").unlink()
    verdict = load_run(home).verdict
    assert (verdict.status, list(verdict.reasons)) == (
        "inconclusive",
        ["verdict.json is missing: the run was not judged"],
    )
    (home / "verdict.json").write_bytes(b"{")
    assert "is no JSON" in load_run(home).verdict.reasons[0]
    (home / "verdict.json").write_bytes(b"{}")
    assert load_run(home).verdict.status == "inconclusive"


def test_a_damaged_image_is_told_and_not_in_the_way(home: Path) -> None:
    (home / "image-1" / "image.json").write_bytes(b"{")
    (home / "image-no").mkdir()
    first, second = load_run(home).images
    assert first.evidence is None
    assert "is no image of a run" in first.trouble
    assert second.evidence is not None


def test_a_run_without_images_and_logs_is_read(home: Path) -> None:
    for path in sorted(home.rglob("*"), reverse=True):
        if path.parent.name.startswith("image-") or path.suffix == ".log":
            path.unlink()
        elif path.name.startswith("image-"):
            path.rmdir()
    run = load_run(home)
    assert (list(run.images), dict(run.logs)) == ([], {})


def test_findings_are_read_in_both_forms(tmp_path: Path) -> None:
    run = load_run(failing_run(tmp_path / "run"))
    (g1,) = [j for j in run.verdict.broken if j.id == "G1"]
    assert [finding.what for finding in g1.findings][1] == "told as text alone"
    assert g1.findings[1] == Finding("told as text alone")
    (g4,) = [j for j in run.verdict.broken if j.id == "G4"]
    assert g4.findings[0].keys == ("k2",)
    (ledger,) = [j for j in run.verdict.judgements if j.id == "ledger"]
    assert ledger.failure.startswith("KeyError")


def test_odd_values_are_left_aside(home: Path) -> None:
    rewrite(home / "run.json", sent=[7, {"command": None}], environment=[], engine=None, plan=None, replay=3)
    odd = {"id": 1, "examined": "many", "image": None, "findings": [{"what": 2, "keys": [5]}, 6], "final": 1}
    receipts = [{"rule": "r", "pid": "x", "status": None}, 3]
    rewrite(home / "verdict.json", judgements=[odd, "x"], fired=None, receipts=receipts, reasons=[1], minimal=4)
    run = load_run(home)
    assert (run.rules, run.replay, dict(run.environment)) == ([], "3", {})
    assert "engine" not in run.settings
    assert run.sent[0].name == ("//", "id:")
    (judgement,) = run.verdict.judgements
    assert (judgement.id, judgement.examined, judgement.image, judgement.final) == ("1", 0, 0, False)
    assert list(judgement.findings) == [Finding("2", ("5",)), Finding("6")]
    assert (list(run.verdict.fired), run.verdict.receipts, run.verdict.minimal) == ([], {"r": (0, 0)}, "4")


@pytest.mark.parametrize("at", ["other/place/counter", {"tenant": "other", "workspace": "place", "agent": "counter"}])
def test_a_trespass_is_known_by_where_it_was_sent(home: Path, at: object) -> None:
    sent = orjson.loads((home / "run.json").read_bytes())["sent"]
    rewrite(home / "run.json", sent=[{**sent[0], "at": at}])
    (command,) = load_run(home).sent
    assert command.name == ("other/place/counter", "k1")
