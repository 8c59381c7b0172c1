"""Verdicts on workers that must end by themselves: a real run, spoilt in one respect at a time."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import orjson
import pytest
import trio

from chaos.case import Case
from chaos.evidence import Sent
from chaos.lab import open_lab
from chaos.plan import parse_plan
from chaos.verdict import Status, Verdict, judge_run, load_run
from chaos.workload import SCOPE, command

RULE = "worker#1:before_store@2=eio_write"


async def _run(reports: Path) -> Path:
    sent = [
        Sent(command(SCOPE, "add", n, {"amount": n}), expect=("decided",), phase="after" if n == 4 else "main")
        for n in range(1, 5)
    ]
    async with open_lab(reports=reports) as lab:
        outcome = await lab.run(
            Case("chaos.agents:counter_only", sent, parse_plan(RULE), engine={"batch": 1}), keep=True
        )
    assert outcome.status is Status.PASS, str(outcome)
    assert outcome.home is not None
    return outcome.home


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run in which a worker ended because its disk failed."""
    return trio.run(_run, tmp_path_factory.mktemp("reports"))


@pytest.fixture
def home(real: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(real, tmp_path / "run"))


def change(home: Path, actor: str, kind: str, **fields: Any) -> None:
    """Change records of an actor."""
    _rewrite(
        home,
        lambda record: {**record, **fields} if (record["actor"], record["kind"]) == (actor, kind) else record,
    )


def _rewrite(home: Path, changed: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    path = home / "history.jsonl"
    lines = [changed(orjson.loads(line)) for line in path.read_bytes().splitlines()]
    path.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))


def plan(home: Path, text: str) -> None:
    told = orjson.loads((home / "run.json").read_bytes())
    (home / "run.json").write_bytes(orjson.dumps({**told, "plan": text}))


def test_it_passes_with_its_exit_code_alone(home: Path) -> None:
    verdict = judge_run(home)
    assert verdict.status is Status.PASS, str(verdict)
    assert verdict.fired == [RULE]
    assert verdict.receipts == [], "nobody was killed"


@pytest.mark.parametrize("status", [0, 1, 3, -9, -11])
def test_a_worker_that_ends_otherwise_shows_nothing(home: Path, status: int) -> None:
    change(home, "worker#1", "exit", status=status)
    verdict = judge_run(home)
    assert verdict.status is Status.INCONCLUSIVE
    first, *more = verdict.reasons
    assert first == f"{RULE} fired, and the process ended with {status} instead of exit code 4"
    assert more == ([f"worker#1 ended with {status}, which no rule asked for"] if status else [])


def test_its_exit_code_is_for_whom_the_rule_names(home: Path) -> None:
    change(home, "worker#2", "exit", status=4)
    assert judge_run(home).reasons == ["worker#2 ended with 4, which no rule asked for"]


def test_a_worker_that_is_killed_meanwhile_need_not_end_by_itself(home: Path) -> None:
    kill = "worker#1:after_ack@1=kill"
    plan(home, f"{kill}; {RULE}")
    points = {"actor": "worker#1", "kind": "point", "point": "after_ack", "nth": 1}
    fault = {"actor": "worker#1", "kind": "fault", "rule": kill}
    _rewrite(home, lambda record: {"t": record["t"], **fault} if points.items() <= record.items() else record)
    change(home, "worker#1", "exit", status=-9)
    verdict = judge_run(home)
    assert verdict.status is Status.PASS, str(verdict)
    assert [receipt.rule for receipt in verdict.receipts] == [kill]


def test_a_store_that_is_locked_ends_nobody(home: Path) -> None:
    lock = "worker#1:before_store@2=lock(1)"
    plan(home, lock)
    change(home, "worker#1", "fault", rule=lock)
    assert judge_run(home).reasons == ["worker#1 ended with 4, which no rule asked for"]


def test_ends_of_a_kind_are_told_together(home: Path) -> None:
    path = home / "history.jsonl"
    spawned = next(record for record in load_run(home).history if record.kind == "spawn")
    more = [
        {"t": spawned.t, "actor": f"worker#{n}", "kind": kind, **fields}
        for n in range(3, 9)
        for kind, fields in (("spawn", {"pid": 1}), ("exit", {"status": 3 if n < 7 else 1}))
    ]
    path.write_bytes(path.read_bytes() + b"".join(orjson.dumps(line) + b"\n" for line in more))
    assert judge_run(home).reasons == [
        "worker#3, worker#4 and 2 more ended with 3, which no rule asked for",
        "worker#7, worker#8 ended with 1, which no rule asked for",
    ]


def test_the_handler_that_a_worker_did_not_come_back_from_is_named(home: Path) -> None:
    called = next(record for record in load_run(home).history if record.kind == "call")
    call = {"t": called.t, "actor": "worker#2", "kind": "call", **called.fields}
    path = home / "history.jsonl"
    change(home, "worker#2", "exit", status=1)
    lines = path.read_bytes().splitlines(keepends=True)
    end = next(i for i, line in enumerate(lines) if b'"exit"' in line and b"worker#2" in line)
    lines.insert(end, orjson.dumps(call) + b"\n")
    path.write_bytes(b"".join(lines))
    assert judge_run(home).reasons == ["worker#2 ended with 1 in the handler of counter.add, which no rule asked for"]


@pytest.mark.parametrize("expect", [(), ("dead",)])
def test_commands_that_are_all_set_aside_show_nothing_unless_it_was_expected(expect: tuple[str, ...]) -> None:
    sent = [Sent(command(SCOPE, "explode", n, entity_id="a"), expect=expect) for n in (1, 2)]
    found: list[Verdict] = []

    async def main() -> None:
        async with open_lab() as lab:
            found.append((await lab.run(Case("chaos.agents:counter_only", sent))).verdict)

    trio.run(main)
    if expect:
        assert found[0].reasons == []
        assert found[0].status is Status.PASS
    else:
        assert found[0].status is Status.INCONCLUSIVE
        nothing, why = found[0].reasons
        assert nothing == "no command was decided, of its keys are 2 dead"
        assert why.startswith(
            "set aside, which nothing expects: key 'k1', key 'k2'; the first because the handler failed"
        )


def test_one_command_that_is_set_aside_among_others_has_to_be_expected(home: Path) -> None:
    path = home / "image-2/store.db"
    with closing(apsw.Connection(str(path))) as store:
        columns = "scope, key, generation, n, subject, body, headers, code, reason, attempts, first_at, last_at"
        store.execute(
            f"INSERT INTO dead_letters ({columns}, entity_id, trace_id, state, calls)"
            " SELECT scope, key, 0, 99, 's', x'', x'', 'c', 'it always raises', 3, 0.0, 0.0, NULL, '', 0, '[]'"
            " FROM keys WHERE key = 'k1'"
        )
    told = orjson.loads((home / "run.json").read_bytes())
    wanted = "set aside, which nothing expects: key 'k1'; the first because it always raises"
    for expect, reasons in ((["decided"], False), (["dead"], False), ([], True)):
        sent = [{**told["sent"][0], "expect": expect}, *told["sent"][1:]]
        (home / "run.json").write_bytes(orjson.dumps({**told, "sent": sent}))
        assert (wanted in judge_run(home).reasons) is reasons
