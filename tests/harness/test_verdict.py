"""Verdicts: a real run, spoilt in one respect at a time. What shows less than it should never passes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
import trio

from chaos.case import Case
from chaos.checkers import Checker, Finding
from chaos.evidence import Evidence, Sent
from chaos.lab import open_lab
from chaos.plan import parse_plan
from chaos.verdict import EXIT_CODES, Receipt, RunError, Status, Verdict, judge_run, load_run
from chaos.workload import SCOPE, command

PLAN = "worker#1:after_store@1=kill"
Record = dict[str, Any]


def adds(first: int, last: int, phase: str = "main") -> list[Sent]:
    return [
        Sent(command(SCOPE, "add", n, {"amount": n}, entity_id="a"), expect=("decided",), phase=phase)
        for n in range(first, last + 1)
    ]


async def _run(reports: Path) -> Path:
    async with open_lab(reports=reports) as lab:
        case = Case("chaos.agents:counter_only", [*adds(1, 3), *adds(4, 4, "after")], parse_plan(PLAN))
        outcome = await lab.run(case, keep=True)
    assert outcome.status is Status.PASS, str(outcome)
    assert outcome.home is not None
    return outcome.home


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run in which one worker was killed; its images are those of the corpse and the end."""
    return trio.run(_run, tmp_path_factory.mktemp("reports"))


@pytest.fixture
def home(real: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(real, tmp_path / "run"))


def told(home: Path, **change: Any) -> None:
    """Change what `run.json` says; `...` takes a field out."""
    fields = {**orjson.loads((home / "run.json").read_bytes()), **change}
    (home / "run.json").write_bytes(orjson.dumps({name: value for name, value in fields.items() if value is not ...}))


def history(home: Path, change: Callable[[Record], Record | None]) -> None:
    """Change each record of the history, or leave it out."""
    lines = (home / "history.jsonl").read_bytes().splitlines()
    changed = [change(orjson.loads(line)) for line in lines]
    text = b"".join(orjson.dumps(record) + b"\n" for record in changed if record is not None)
    (home / "history.jsonl").write_bytes(text)


def exits(**statuses: int) -> Callable[[Record], Record]:
    """Have workers end otherwise: `worker1=-15`."""

    def change(record: Record) -> Record:
        name = record["actor"].replace("#", "")
        return {**record, "status": statuses[name]} if record["kind"] == "exit" and name in statuses else record

    return change


def without(kind: str, **fields: Any) -> Callable[[Record], Record | None]:
    """Leave out the records of a kind with these fields."""
    wanted = {"kind": kind, **fields}
    return lambda record: None if wanted.items() <= record.items() else record


def reasons(home: Path, **more: Any) -> Sequence[str]:
    """Why the run in `home` is inconclusive."""
    verdict = judge_run(home, **more)
    assert verdict.status is Status.INCONCLUSIVE, str(verdict)
    assert not verdict.broken
    return verdict.reasons


def passes(home: Path, **more: Any) -> Verdict:
    verdict = judge_run(home, **more)
    assert verdict.status is Status.PASS, str(verdict)
    assert verdict.reasons == []
    return verdict


# -- as it is ------------------------------------------------------------------------------------------------------


def test_a_good_run_passes_however_often_it_is_judged(home: Path) -> None:
    for _ in range(2):
        verdict = passes(home)
        assert (verdict.fired, verdict.unhit) == ([PLAN], [])
        run = load_run(home)
        spawned = next(record for record in run.history if record.kind == "spawn")
        assert verdict.receipts == [Receipt(PLAN, spawned["pid"], -9)]
        assert [(image.final, len(image.sent)) for image in run.images] == [(False, 3), (True, 4)]
        assert {(each.image, each.final) for each in verdict.judgements} == {(1, False), (2, True)}
    assert "verdict: pass" in str(verdict)
    assert f"fired: {PLAN}" in str(verdict)


def test_it_is_told_as_json(home: Path) -> None:
    verdict = passes(home)
    value = orjson.loads(orjson.dumps(verdict.to_json()))
    assert (value["status"], value["reasons"], value["minimal"]) == ("pass", [], None)
    assert value["receipts"][0]["status"] == -9
    assert len(value["judgements"]) == len(verdict.judgements)
    assert value["judgements"][0].keys() >= {"image", "final", "id", "sentence", "examined", "findings"}


def test_every_status_has_its_exit_code() -> None:
    assert {status.value: EXIT_CODES[status] for status in Status} == {"pass": 0, "violation": 1, "inconclusive": 2}


# -- what shows less than it should --------------------------------------------------------------------------------


def test_a_rule_that_never_fired(home: Path) -> None:
    other = "worker#2:after_mark@999=kill"
    told(home, plan=f"{PLAN}; {other}")
    assert reasons(home) == [f"never fired: {other}"]
    told(home, must_fire=False)
    verdict = passes(home)
    assert verdict.unhit == [other]
    history(home, without("fault"))
    assert reasons(home) == ["worker#1 ended with -9, which no rule asked for"]


@pytest.mark.parametrize("status", [0, -15, 1, -11])
def test_a_kill_that_was_recorded_and_did_not_kill(home: Path, status: int) -> None:
    history(home, exits(worker1=status))
    assert reasons(home) == [f"{PLAN} fired, and the process ended with {status} instead of signal 9"]


def test_a_kill_of_a_process_whose_end_nobody_saw(home: Path) -> None:
    history(home, without("exit", actor="worker#1"))
    assert reasons(home) == [
        f"{PLAN} fired, and the process ended with 0 instead of signal 9",
        "nobody saw how worker#1 ended",
    ]


@pytest.mark.parametrize("status", [1, 70, -9, -11])
def test_a_worker_that_ended_unasked(home: Path, status: int) -> None:
    history(home, exits(worker2=status))
    assert reasons(home) == [f"worker#2 ended with {status}, which no rule asked for"]
    told(home, mortal=True)
    if status in (1, -9):
        # Agents that kill their process, or a handler that never returns.
        passes(home)
    else:
        assert reasons(home) == [f"worker#2 ended with {status}, which no rule asked for"]


def test_a_worker_whose_watchdog_ends_it_after_a_stop(home: Path) -> None:
    stop = "worker#2:after_recovery@1=stop(9)"

    def stopped(record: Record) -> Record:
        return (
            {"t": record["t"], "actor": "worker#2", "kind": "fault", "rule": stop}
            if (record["kind"] == "point" and record["actor"] == "worker#2" and record["point"] == "after_recovery")
            else exits(worker2=1)(record)
        )

    told(home, plan=f"{PLAN}; {stop}")
    history(home, stopped)
    passes(home)
    history(home, exits(worker2=70))
    assert reasons(home) == ["worker#2 ended with 70, which no rule asked for"]


def test_a_claim_with_nothing_to_examine(home: Path) -> None:
    told(home, claims=["G1", "G10"])
    assert reasons(home) == ["nothing to examine for G10"]
    told(home, claims=["G1", "conserved"])
    assert reasons(home) == ["nothing to examine for conserved"]
    looks = Checker("conserved", "Nothing is lost.", lambda evidence: [len(evidence.rows.outputs)])
    passes(home, invariants=[looks])
    looks_away = Checker("conserved", "Nothing is lost.", lambda evidence: [0])
    assert reasons(home, invariants=[looks_away]) == ["nothing to examine for conserved"]
    told(home, claims=[])
    passes(home, invariants=[looks_away])


def test_a_checker_that_fails(home: Path) -> None:
    def stumble(evidence: Evidence) -> Iterator[int]:
        yield 1
        raise KeyError("lost")

    verdict = judge_run(home, invariants=[Checker("mine", "Mine.", stumble, on_corpse=False)])
    assert verdict.status is Status.INCONCLUSIVE
    (reason,) = verdict.reasons
    assert reason.startswith("the checker of mine failed on image 2: KeyError: 'lost'")


def test_a_phase_in_which_nothing_was_accepted(home: Path) -> None:
    run = load_run(home)
    after = next(sent.command.id for sent in run.sent if sent.phase == "after")
    history(home, without("ok", id=after))
    assert reasons(home) == ["no command of phase 'after' was accepted"]
    history(home, lambda record: {**record, "kind": "failed", "reason": "no"} if record["kind"] == "ok" else record)
    assert "no command of phase 'main' was accepted" in judge_run(home).reasons


def test_one_command_of_a_phase_is_enough(home: Path) -> None:
    for sent in load_run(home).sent[1:3]:
        history(home, without("ok", id=sent.command.id))
    passes(home)


def test_a_run_without_an_end(home: Path) -> None:
    history(home, without("image", number=2))
    assert reasons(home) == ["there is no image of the end"]
    history(home, without("image", number=1))
    verdict = judge_run(home)
    assert (verdict.status, verdict.judgements) == (Status.INCONCLUSIVE, [])


def test_a_run_in_which_nothing_was_sent(home: Path) -> None:
    """There is nothing to find fault with, and nothing to trust."""
    for image in home.glob("image-*"):
        for part in image.glob("store.db*"):
            part.unlink()
        (image / "rebuilt.json").unlink(missing_ok=True)
        for name in ("commands", "events", "failed"):
            (image / f"{name}.jsonl").write_bytes(b"")
        facts = orjson.loads((image / "image.json").read_bytes())
        none = {"copied": dict.fromkeys(facts["copied"], 0), "store": {}}
        (image / "image.json").write_bytes(orjson.dumps({**facts, **none}))
    told(home, sent=[], claims=[])
    history(home, lambda record: None if record["kind"] in ("send", "ok", "heard", "call", "decided") else record)
    assert reasons(home) == ["nothing was sent"]


def test_nothing_was_ever_decided(home: Path) -> None:
    """What was accepted still waits: no guarantee is broken, and nothing is shown."""
    corpse = home / "image-1"
    for part in corpse.glob("store.db*"):
        part.unlink()
    (corpse / "events.jsonl").write_bytes(b"")
    image = orjson.loads((corpse / "image.json").read_bytes())
    image["copied"]["MESHFORGE_EVENTS"], image["store"] = 0, {}
    (corpse / "image.json").write_bytes(orjson.dumps(image))
    history(home, lambda r: None if r["kind"] == "image" and r["number"] == 2 else r)
    history(home, lambda r: None if r["kind"] in ("call", "decided", "heard") else r)
    assert "nothing was ever decided" in reasons(home)
    run = orjson.loads((home / "run.json").read_bytes())
    told(home, sent=[{**each, "query": True} for each in run["sent"]])
    assert "nothing was ever decided" not in reasons(home), "queries leave nothing"


# -- what is wrong -------------------------------------------------------------------------------------------------


def test_a_violation_is_one_whatever_else_happened(home: Path) -> None:
    """And its reasons are told as well."""
    broken = Checker("ledger", "The sum is conserved.", lambda evidence: [1, Finding("3 are missing")], on_corpse=False)
    verdict = judge_run(home, invariants=[broken])
    assert (verdict.status, verdict.broken_ids, verdict.reasons) == (Status.VIOLATION, ["ledger"], [])
    told(home, plan=f"{PLAN}; worker#2:after_mark@999=kill")
    verdict = judge_run(home, invariants=[broken, broken], reasons=["the world ended"])
    assert (verdict.status, verdict.broken_ids) == (Status.VIOLATION, ["ledger"])
    assert verdict.reasons == ["the world ended", "never fired: worker#2:after_mark@999=kill"]
    assert "end: ledger broken: The sum is conserved." in str(verdict)
    assert "reason: the world ended" in str(verdict)


def test_a_corpse_is_judged_too(home: Path) -> None:
    def look(evidence: Evidence) -> list[int | Finding]:
        return [1] if evidence.final else [1, Finding("it stinks")]

    verdict = judge_run(home, invariants=[Checker("nose", "Nothing smells.", look)])
    assert verdict.status is Status.VIOLATION
    assert "corpse 1: nose broken" in str(verdict)


def test_a_message_that_was_lost_is_a_violation(home: Path) -> None:
    """With the real checkers, on the real image."""
    events = home / "image-2" / "events.jsonl"
    events.write_bytes(b"".join(events.read_bytes().splitlines(keepends=True)[1:]))
    image = orjson.loads((home / "image-2" / "image.json").read_bytes())
    image["copied"]["MESHFORGE_EVENTS"] -= 1
    (home / "image-2" / "image.json").write_bytes(orjson.dumps(image))
    verdict = judge_run(home)
    assert verdict.status is Status.VIOLATION
    assert "G4" in verdict.broken_ids


def test_hashes_of_other_processes_are_compared(home: Path) -> None:
    rebuilt = home / "image-2" / "rebuilt.json"
    value = orjson.loads(rebuilt.read_bytes())
    assert {len(hashes) for hashes in value.values()} == {2}
    rebuilt.write_bytes(orjson.dumps({scope: ["0" * 64, *hashes] for scope, hashes in value.items()}))
    assert judge_run(home).broken_ids == ["G7"]
    rebuilt.unlink()
    passes(home)


# -- what cannot be judged -----------------------------------------------------------------------------------------


def refused(home: Path) -> str:
    """Why it cannot be judged; with a reason of the world's own it is inconclusive, and never an error."""
    with pytest.raises(RunError) as caught:
        judge_run(home)
    assert str(home) in str(caught.value)
    verdict = judge_run(home, reasons=["the server was gone"])
    assert verdict == Verdict(Status.INCONCLUSIVE, ["the server was gone", str(caught.value)])
    return str(caught.value)


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "nowhere")


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"5", b"\xff", b'{"version":1}'])
def test_a_run_json_that_is_none(home: Path, text: bytes) -> None:
    (home / "run.json").write_bytes(text)
    refused(home)


def test_a_run_json_that_is_truncated(home: Path) -> None:
    whole = (home / "run.json").read_bytes()
    (home / "run.json").write_bytes(whole[: len(whole) // 2])
    assert "JSONDecodeError" in refused(home)


@pytest.mark.parametrize("version", [2, "1", None, True, 1.0])
def test_a_run_of_another_version(home: Path, version: object) -> None:
    told(home, version=version)
    assert f"run.json is of version {version!r}, this reads up to 1" in refused(home)


@pytest.mark.parametrize("field", ["version", "plan", "sent", "limit", "must_fire", "mortal", "claims"])
def test_a_run_json_without_a_field(home: Path, field: str) -> None:
    told(home, **{field: ...})
    assert field in refused(home)


@pytest.mark.parametrize(
    "change", [{"plan": "worker#1:nowhere@1=kill"}, {"plan": 5}, {"sent": 5}, {"sent": [5]}, {"sent": [{}]}]
)
def test_a_run_json_with_a_field_that_is_none(home: Path, change: Record) -> None:
    told(home, **change)
    refused(home)


@pytest.mark.parametrize(
    "change",
    [{"command": {}}, {"command": None}, {"digest": "zz"}, {"digest": 5}, {"at": 5}, {"at": "a/b"}, {"expect": 5}],
)
def test_a_command_that_is_none(home: Path, change: Record) -> None:
    (first, *rest) = orjson.loads((home / "run.json").read_bytes())["sent"]
    told(home, sent=[{**first, **change}, *rest])
    refused(home)


def test_a_history_that_is_damaged(home: Path) -> None:
    path = home / "history.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    assert "truncated in line" in refused(home)
    path.write_bytes(whole.replace(b'"version":1', b'"version":2', 1))
    assert "written in version 2" in refused(home)
    path.write_bytes(b"\x00" * 100 + b"\n")
    assert "line 1 is no JSON" in refused(home)
    path.unlink()
    assert "No such file" in refused(home)


@pytest.mark.parametrize("name", ["image.json", "events.jsonl", "store.db", "rebuilt.json"])
def test_an_image_that_is_damaged(home: Path, name: str) -> None:
    (home / "image-2" / name).write_bytes(b"[" * 2000)
    refused(home)


def test_an_image_that_is_missing(home: Path) -> None:
    shutil.rmtree(home / "image-1")
    assert "image-1 is no image of a run" in refused(home)


def test_hashes_that_are_none(home: Path) -> None:
    values: Sequence[object] = ([], {"a": []}, 5)
    for value in values:
        (home / "image-2" / "rebuilt.json").write_bytes(orjson.dumps(value))
        refused(home)
