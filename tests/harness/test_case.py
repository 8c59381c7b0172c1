"""The course of a run: what is sent when, who dies of what, which images are taken, and what is written down."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from chaos.case import RUN_VERSION, Case
from chaos.evidence import Sent
from chaos.history import Record, read_history
from chaos.lab import Lab, Outcome
from chaos.plan import parse_plan
from chaos.verdict import Status, load_run
from chaos.workload import SCOPE, command, every_path

APP = "chaos.agents:counter_only"


def adds(first: int, last: int, phase: str = "main") -> list[Sent]:
    return [
        Sent(command(SCOPE, "add", n, {"amount": n}, entity_id="a"), expect=("decided",), phase=phase)
        for n in range(first, last + 1)
    ]


def case(plan: str = "", **more: Any) -> Case:
    given = {"app": APP, "sent": [*adds(1, 4), *adds(5, 6, "after")], **more}
    return Case(plan=parse_plan(plan, mortal=more.get("mortal", False)), **given)


async def run(lab: Lab, plan: str = "", **more: Any) -> tuple[Outcome, Sequence[Record]]:
    """A run that passes, and its history."""
    outcome = await lab.run(case(plan, **more), keep=True)
    assert outcome.status is Status.PASS, str(outcome)
    assert outcome.home is not None
    return outcome, read_history(outcome.home / "history.jsonl")


def of_kind(history: Sequence[Record], *kinds: str) -> list[Record]:
    return [record for record in history if record.kind in kinds]


def only(history: Sequence[Record], kind: str, **fields: object) -> Record:
    """The one record of a kind with these fields."""
    (found,) = [r for r in history if r.kind == kind and fields.items() <= {"actor": r.actor, **r.fields}.items()]
    return found


def run_json(home: Path) -> dict[str, Any]:
    value: dict[str, Any] = orjson.loads((home / "run.json").read_bytes())
    return value


# -- the course ----------------------------------------------------------------------------------------------------


async def test_a_run_without_faults(lab: Lab) -> None:
    outcome, history = await run(lab, sent=every_path(), app="chaos.agents:app")
    course = [r.kind for r in of_kind(history, "header", "listening", "spawn", "exit", "drained", "image")]
    assert course == ["header", "listening", "spawn", "exit", "drained", "image"]
    assert only(history, "image").fields == {"number": 1, "final": True}
    sends = of_kind(history, "send")
    assert [record["id"] for record in sends] == [sent.command.id for sent in every_path()]
    assert [record["phase"] for record in sends] == ["main"] * 12 + ["after"] * 2
    # What comes after the faults is sent when all the rest is decided.
    assert max(r.t for r in of_kind(history, "decided") if r["key"] == "k8") < sends[-2].t
    assert {record["id"] for record in of_kind(history, "ok")} == {record["id"] for record in sends}
    assert outcome.evidence is not None
    assert outcome.evidence.calls[str(SCOPE), "k7"] == 2


async def test_run_json_tells_all_that_was_run(lab: Lab) -> None:
    more = {"engine": {"batch": 2}, "retry": {"delays_s": (0.1,)}, "lease_ttl_s": 2.0, "name": "told"}
    outcome, _ = await run(lab, "worker#1:after_ack@1=kill", claims=["G1"], source="s.py", replay="again", **more)
    assert outcome.home is not None
    told = run_json(outcome.home)
    assert (told["version"], told["scenario"], told["app"], told["plan"]) == (
        RUN_VERSION,
        "told",
        APP,
        "worker#1:after_ack@1=kill",
    )
    assert (told["engine"], told["retry"], told["lease_ttl_s"]) == ({"batch": 2}, {"delays_s": [0.1]}, 2.0)
    assert (told["limit"], told["claims"], told["workspaces"]) == (3, ["G1"], ["default/demo"])
    assert (told["paced"], told["mortal"], told["must_fire"], told["record_frames"]) == (False, False, True, False)
    assert (told["source"], told["replay"], told["deadline_s"]) == ("s.py", "again", 30.0)
    assert told["environment"].keys() >= {"python", "nats_server", "platform"}
    assert [each["phase"] for each in told["sent"]] == ["main"] * 4 + ["after"] * 2
    # What is read back is what was sent.
    assert [(s.command, s.key, s.digest, s.phase, s.expect) for s in load_run(outcome.home).sent] == [
        (s.command, s.key, s.digest, s.phase, s.expect) for s in outcome.case.sent
    ]


async def test_one_after_another_when_paced(lab: Lab) -> None:
    _, history = await run(lab, paced=True)
    sends = of_kind(history, "send")
    for number, after in enumerate(sends[1:5], 1):
        assert only(history, "decided", key=f"k{number}").t < after.t


async def test_a_server_serves_many_runs(lab: Lab) -> None:
    """Nothing of one is left for the next: the same ids and keys are new again."""
    for _ in range(3):
        outcome, _ = await run(lab)
        assert outcome.evidence is not None
        assert [message.seq for message in outcome.evidence.events] == list(range(1, 7))


# -- deaths --------------------------------------------------------------------------------------------------------


async def test_an_image_is_taken_of_each_corpse_before_anybody_can_recover_it(lab: Lab) -> None:
    plan = "worker#1:before_publish@1=kill; worker#2:before_recovery@1=kill"
    outcome, history = await run(lab, plan)
    kinds = [(r.kind, r.actor) for r in of_kind(history, "spawn", "exit", "image")]
    assert kinds == [
        ("spawn", "worker#1"),
        ("exit", "worker#1"),
        ("image", "harness"),
        ("spawn", "worker#2"),
        ("exit", "worker#2"),
        ("image", "harness"),
        ("spawn", "worker#3"),
        ("exit", "worker#3"),
        ("image", "harness"),
    ]
    assert outcome.home is not None
    first, second, end = load_run(outcome.home).images
    assert (first.final, second.final, end.final) == (False, False, True)
    # Committed and not published; the second had no time to mend that.
    for corpse in (first, second):
        assert len(corpse.rows.outputs) == 4
        assert corpse.events == []
    assert len(end.events) == 6
    assert [receipt.status for receipt in outcome.verdict.receipts] == [-9, -9]
    assert outcome.verdict.fired == plan.split("; ")


async def test_a_downtime_is_kept(lab: Lab) -> None:
    _, history = await run(lab, "worker#1:after_store@1=kill(0.7)")
    waited_ns = only(history, "spawn", actor="worker#2").t - only(history, "exit", actor="worker#1").t
    assert waited_ns >= 0.7e9


async def test_an_agent_that_kills_its_process(lab: Lab) -> None:
    sent = [*adds(1, 1), Sent(command(SCOPE, "die", 2, entity_id="b"), expect=("dead",)), *adds(3, 3, "after")]
    outcome, history = await run(lab, sent=sent, mortal=True, limit=2)
    assert [r["status"] for r in of_kind(history, "exit")] == [-9, -9, 0]
    assert outcome.verdict.receipts == [], "no rule killed it"


async def test_a_kill_no_rule_asked_for_is_no_pass(lab: Lab) -> None:
    sent = [*adds(1, 1), Sent(command(SCOPE, "die", 2, entity_id="b"), expect=("dead",))]
    outcome = await lab.run(case(sent=sent, limit=2))
    assert outcome.status is Status.INCONCLUSIVE
    assert outcome.verdict.reasons == [
        "worker#1, worker#2 ended with -9 in the handler of counter.die, which no rule asked for",
    ]


async def test_what_the_last_worker_loses_as_it_drains_is_mended_by_another(lab: Lab) -> None:
    """Its last mark is written when everything is decided and sent: the server forgets, and it has no time to look."""
    before = "worker#1:after_publish@1=kill; nats:worker#2.received@1=copy"
    engine = {"idle_mark_s": 60.0, "ack_wait_s": 1.0}
    outcome, history = await run(lab, f"{before}; nats:worker#2.before_mark@2=rollback", engine=engine)
    assert [(r.actor, r["status"]) for r in of_kind(history, "exit")] == [
        ("worker#1", -9),
        ("worker#2", 0),
        ("worker#3", 0),
    ]
    assert len(outcome.verdict.fired) == 3


async def test_a_rule_that_nothing_reaches(lab: Lab) -> None:
    unhit = "worker#1:after_hold@1=kill"
    outcome = await lab.run(case(unhit))
    assert outcome.verdict.reasons == [f"never fired: {unhit}"]
    assert (await lab.run(case(unhit, must_fire=False))).status is Status.PASS


async def test_a_rule_that_missed_its_turn_has_another_chance(lab: Lab) -> None:
    """How many commands a turn meets is up to the network. Whatever else speaks against a run is told at once."""
    unhit = "worker#1:after_hold@1=kill"
    assert (await lab.run(case(unhit), tries=2)).tries == 2
    outcome = await lab.run(case(), tries=2)
    assert (outcome.status, outcome.tries) == (Status.PASS, 1)
    dies = [*adds(1, 1), Sent(command(SCOPE, "die", 2, entity_id="b"), expect=("dead",))]
    outcome = await lab.run(case(unhit, sent=dies, limit=2), tries=2)
    assert (outcome.status, outcome.tries) == (Status.INCONCLUSIVE, 1), str(outcome)
    with pytest.raises(ValueError, match="at least 1"):
        await lab.run(case(), tries=0)


# -- ends ----------------------------------------------------------------------------------------------------------


async def test_what_is_not_decided_in_time_is_for_the_checkers(lab: Lab) -> None:
    """The worker is killed, the image is taken, and what waits is named."""
    sent = [*adds(1, 2), Sent(command(SCOPE, "explode", 3, entity_id="b"), expect=("dead",))]
    outcome = await lab.run(case(sent=sent, retry={"delays_s": (60.0,)}, deadline_s=1.0))
    assert (outcome.status, outcome.verdict.broken_ids) == (Status.VIOLATION, ["G12"]), str(outcome)
    assert "key 'k3' still waits for another attempt" in str(outcome)
    assert outcome.verdict.reasons == ["worker#1 ended with -9, which no rule asked for"]
    (image,) = {each.image for each in outcome.verdict.judgements}
    assert image == 1


async def test_after_a_dozen_workers_it_is_enough(lab: Lab) -> None:
    sent = [*adds(1, 1), Sent(command(SCOPE, "die", 2, entity_id="b"), expect=("dead",))]
    outcome = await lab.run(case(sent=sent, limit=30, mortal=True), keep=True)
    assert outcome.home is not None
    history = read_history(outcome.home / "history.jsonl")
    assert [r["status"] for r in of_kind(history, "exit")] == [-9] * 12
    assert [r["final"] for r in of_kind(history, "image")] == [False] * 12 + [True]
    assert outcome.verdict.broken_ids == ["G12"], str(outcome)


async def test_a_worker_that_fails_while_it_drains_has_a_successor(lab: Lab) -> None:
    """Killed by the mark it writes at the end: it drains again."""
    outcome, history = await run(lab, "worker#1:after_mark@2=kill", engine={"idle_mark_s": 30.0})
    assert [r["status"] for r in of_kind(history, "exit")] == [-9, 0]
    assert outcome.verdict.receipts[0].status == -9


# -- faults that are no deaths -------------------------------------------------------------------------------------


async def test_a_stopped_worker_is_replaced_and_released(lab: Lab) -> None:
    rule = "worker#1:before_store@2=stop"
    _, history = await run(lab, rule, engine={"batch": 1}, lease_ttl_s=0.4)
    fault, healed = only(history, "fault"), only(history, "healed")
    assert (fault.actor, fault["rule"], healed.actor, healed["rule"]) == ("worker#1", rule, "worker#1", rule)
    successor = only(history, "spawn", actor="worker#2")
    assert fault.t < successor.t < healed.t
    assert [r for r in history if r.actor == "worker#1" and successor.t < r.t < healed.t] == [], "it stands still"
    # It goes on when all is decided; then more is sent, and everybody drains.
    after = [r for r in of_kind(history, "send") if r["phase"] == "after"]
    assert all(r.t > healed.t for r in after)
    assert [(r.actor, r["status"]) for r in of_kind(history, "exit")] == [("worker#1", 0), ("worker#2", 0)]
    assert [r["final"] for r in of_kind(history, "image")] == [True], "nobody died"


async def test_a_short_stop_has_no_successor(lab: Lab) -> None:
    rule = "worker#1:after_store@1=stop(0.4)"
    _, history = await run(lab, rule)
    assert only(history, "healed")["rule"] == rule
    assert only(history, "healed").t - only(history, "fault").t >= 0.4e9
    assert [r.actor for r in of_kind(history, "spawn")] == ["worker#1"]
    assert all(r.t > only(history, "healed").t for r in of_kind(history, "send") if r["phase"] == "after")


async def test_a_full_disk_heals(lab: Lab) -> None:
    rule = "worker#1:before_store@1=full(0.3)"
    _, history = await run(lab, rule)
    fault, healed = only(history, "fault", rule=rule), only(history, "healed", rule=rule)
    assert (fault.actor, healed.actor) == ("worker#1", "worker#1")
    assert healed.t - fault.t >= 0.3e9


async def test_everything_is_sent_again(lab: Lab) -> None:
    outcome, history = await run(lab, "client:after_ack@1=resend", claims=["G1", "G2", "G8", "G12"])
    assert outcome.home is not None
    told = run_json(outcome.home)["sent"]
    assert [each["again"] for each in told] == [False] * 4 + [True] * 4 + [False] * 2
    again = [each["command"] for each in told if each["again"]]
    assert {each["idempotency_key"] for each in again} == {f"k{n}" for n in range(1, 5)}
    assert len({each["id"] for each in again} | {f"c{n}" for n in range(1, 5)}) == 8
    assert only(history, "healed").actor == "client"
    assert outcome.evidence is not None
    assert set(outcome.evidence.calls.values()) == {1}, "and nothing is decided twice"


@pytest.mark.parametrize(("plan", "recorded"), [("proxy:puback@2=cut_before", False), ("", True)])
async def test_frames_are_counted_and_may_be_recorded(lab: Lab, plan: str, recorded: bool) -> None:
    outcome, history = await run(lab, plan, record_frames=recorded)
    assert outcome.verdict.fired == ([plan] if plan else [])
    frames = {r["frame"] for r in of_kind(history, "frame")}
    assert frames >= {"publish", "puback", "pull", "delivery", "ack"} if recorded else frames == set()
    if plan:
        assert only(history, "fault").actor == "proxy"
