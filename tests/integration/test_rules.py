"""Rules of the protocol that a kill alone does not test: pauses, second workers, holds, echoes, scopes.

Each test names the rule (docs/architecture.md) without which it fails.
"""

from __future__ import annotations

import pytest

from chaos.evidence import Sent
from chaos.lab import Lab
from chaos.rows import OutputRow
from chaos.workload import SCOPE, Workload, command, every_path
from meshforge_trio.subjects import Scope

from .rules_world import ALONE, APP, adds, calls, case, evidence_of, log_of, sent

BOTH = "chaos.agents:counter_and_audit"


# Where its thread is in no transaction: a stopped process would keep the lock of the database, and nobody could go on.
@pytest.mark.parametrize("point", ["received", "before_store", "after_store", "before_publish"])
async def test_a_paused_engine_is_fenced(lab: Lab, point: str) -> None:
    """R1: while it is stopped another takes over; when it goes on, its commit and its publishes are refused."""
    commands = [*adds(1, 12), *adds(13, 13, phase="after")]
    outcome = await lab.run(
        case(ALONE, commands, f"worker#1:{point}@3=stop", engine={"batch": 1}, lease_ttl_s=0.5), keep=True
    )
    evidence_of(outcome)
    # It learns that it is no longer the engine, and stands by: alive, but serving nothing.
    said = log_of(outcome, 1)
    assert "the session of the engine ended" in said
    assert "is over: the newest is 2" in said or "the lease of this process ran out" in said
    assert "drained" in said


async def test_a_duplicate_is_echoed_and_not_stored(lab: Lab) -> None:
    """R4: whoever sends again hears the same bytes; the stream keeps one copy."""
    again = [sent("add", n, payload={"amount": 1}, idempotency_key="k1") for n in range(2, 6)]
    evidence = evidence_of(await lab.run(case(APP, [*adds(1, 1), *again])))
    heard = [body for _, body in evidence.received if b'"id":"c1_added"' in body]
    assert len(heard) == 5
    assert len(set(heard)) == 1
    assert calls(evidence) == {"k1": 1}


async def test_a_duplicate_beyond_the_window_leaves_one_copy(lab: Lab) -> None:
    """R4: when the stream has forgotten the Msg-Id, only the echo's header keeps a second copy out."""
    again = sent("add", 2, payload={"amount": 1}, idempotency_key="k1", phase="after")
    plan = "worker#1:after_ack@1=stop(0.9)"
    outcome = await lab.run(case(APP, [*adds(1, 1), again], plan, engine={"duplicate_window_s": 0.3}))
    heard = [body for _, body in evidence_of(outcome).received if b'"id":"c1_added"' in body]
    assert len(heard) == 2
    assert heard[0] == heard[1]


async def test_a_query_is_answered_and_leaves_no_trace(lab: Lab) -> None:
    """R9: answered after the commit of what came before it, from the state it left; nothing is stored."""
    ask = [Sent(command(SCOPE, "get", n, entity_id="a", idempotency_key=None), query=True) for n in (2, 3)]
    evidence = evidence_of(await lab.run(case(APP, [*adds(1, 1), *ask])))
    answers = [body for _, body in evidence.received if b'"name":"found"' in body]
    assert len(answers) == 2
    assert all(b'"total":1' in body for body in answers)
    assert not [m for m in evidence.events if m.subject.endswith(".found")]
    assert {row.key for row in evidence.rows.keys if row.scope == SCOPE} == {"k1"}


async def test_a_handler_that_never_returns_is_blamed_alone(lab: Lab) -> None:
    """R7: it cannot be cancelled, so the process ends itself; in the end the command is dead, not its neighbours."""
    commands = [*adds(1, 3), sent("spin", 4, "b", "dead"), *adds(5, 6, "c")]
    outcome = await lab.run(case(APP, commands, mortal=True, retry={"handler_limit_s": 0.5}), keep=True)
    evidence = evidence_of(outcome)
    ends = [record["status"] for record in evidence.history if record.kind == "exit"]
    assert ends == [1, 1, 1, 0]
    assert all("Timeout" in log_of(outcome, number) for number in (1, 2, 3))
    assert calls(evidence)["k4"] == 3
    assert len(evidence.failed) == 1


async def test_a_failing_command_holds_its_entity_and_nobody_else(lab: Lab) -> None:
    """R8: what comes behind it waits, untouched, in order; other entities are served meanwhile."""
    commands = [sent("explode", 1, "hot", "dead"), *adds(2, 9, "hot"), *adds(10, 19, "cold")]
    # One command a turn, so that those behind it are decided on later.
    outcome = await lab.run(case(APP, commands, retry={"delays_s": (0.5,)}, engine={"batch": 1}))
    evidence = evidence_of(outcome)
    assert {calls(evidence)[f"k{n}"] for n in range(2, 20)} == {1}
    events = [row for row in evidence.rows.outputs if row.kind == "event" and row.scope == SCOPE]
    keys = [row.key for row in sorted(events, key=lambda row: row.n)]
    assert keys[:10] == [f"k{n}" for n in range(10, 20)]
    assert keys[10:] == [f"k{n}" for n in range(2, 10)]


async def test_skip_lets_later_commands_pass(lab: Lab) -> None:
    """R8, the other policy: with `hold_entity` off only the failing command waits."""
    commands = [sent("explode", 1, "a", "dead"), *adds(2, 4)]
    outcome = await lab.run(case(APP, commands, retry={"delays_s": (0.5,), "hold_entity": False}))
    # That order is given up is what it is for.
    assert outcome.verdict.broken_ids == ["G13"], str(outcome)
    assert not outcome.verdict.reasons
    assert outcome.evidence is not None
    first = {row.key: row.first_n for row in outcome.evidence.rows.keys if row.scope == SCOPE}
    assert max(first[f"k{n}"] for n in (2, 3, 4)) < first["k1"]


async def test_too_many_waiting_give_the_failing_one_up(lab: Lab) -> None:
    """R8: what is held never fills `max_ack_pending`; beyond a quarter of it the failing command is dead at once."""
    commands = [sent("explode", 1, "hot", "dead"), *adds(2, 40, "hot"), *adds(41, 60, "cold")]
    # It would wait a minute; everything drains long before.
    outcome = await lab.run(case(APP, commands, retry={"delays_s": (60.0,)}, engine={"max_ack_pending": 64}, limit=0))
    (letter,) = evidence_of(outcome).failed
    assert b"hold_full" in letter.body or b"too many" in letter.body


async def test_what_is_sent_away_in_a_turn_is_known_to_the_next(lab: Lab) -> None:
    """G13: the next turn decides while this one still publishes the dead letter of the command they all waited for."""
    commands = [sent("explode", 1, "hot", "dead"), *adds(2, 60, "hot")]
    engine = {"max_ack_pending": 64, "batch": 20, "publish_burst": 1}
    outcome = await lab.run(case(APP, commands, retry={"delays_s": (60.0,)}, engine=engine, limit=0))
    (letter,) = evidence_of(outcome).failed
    assert b"hold_full" in letter.body or b"too many" in letter.body


async def test_scopes_with_identical_ids_do_not_meet(lab: Lab) -> None:
    """R10, G9: two tenants send the same ids, keys and entities; each gets its own events."""
    other = Scope("other", "demo", "counter")
    commands = [*every_path(SCOPE), *every_path(other)]
    workspaces = ("default/demo", "other/demo")
    outcome = await lab.run(case(APP, commands, "worker#1:after_store@3=kill", workspaces=workspaces, limit=0))
    rows = evidence_of(outcome).rows.outputs

    def told(row: OutputRow) -> tuple[object, ...]:
        return row.n, row.kind, row.key, row.entity_id, row.version

    ours, theirs = ([told(row) for row in rows if row.scope == scope] for scope in (SCOPE, other))
    assert len(ours) == len(theirs) > 0


@pytest.mark.parametrize("action", ["explode", "quit", "die", "spin"])
async def test_one_in_a_full_batch_is_blamed_alone(lab: Lab, action: str) -> None:
    """R7: five calls at most with the default limit, whatever the server restarts; 63 neighbours are decided."""
    commands = [*adds(1, 30, "before"), sent(action, 31, "hot", "dead"), *adds(32, 64, "behind")]
    plan = "nats:received@2=restart" if action == "explode" else "nats:worker#3.received@1=restart"
    mortal = action != "explode"
    outcome = await lab.run(
        case(ALONE, commands, plan, mortal=mortal, limit=5, retry={"limit": 5, "handler_limit_s": 0.3}), keep=True
    )
    evidence = evidence_of(outcome)
    (letter,) = evidence.rows.dead
    assert (letter.key, letter.attempts, len(evidence.failed)) == ("k31", 4, 1)
    # A call whose turn the restart cut off before its commit was made and is not counted.
    assert calls(evidence)["k31"] in ((5,) if mortal else (4, 5))
    assert {error for _, error in letter.calls} == {"" if mortal else "RuntimeError: boom"}
    assert b"its process died" in evidence.failed[0].body or not mortal
    logs = "".join(log_of(outcome, number) for number in range(1, len(evidence.logs) + 1))
    assert logs.count("[critical ] dead letter") == 1


async def test_a_redriven_event_comes_to_its_receiver_alone(lab: Lab) -> None:
    """R5: set aside by an agent that cannot use it yet, mended, and delivered again; killed when that is committed."""
    commands = Workload()
    commands.send("counter", "draw", {"amount": 0}, entity="a", expect=["decided"])
    commands.send("audit", "note", {"text": "open"}, entity="a", expect=["decided"], phase="after")
    commands.redrive("audit", "evt:counter:c1_drawn:k1", phase="after")
    evidence = evidence_of(await lab.run(case(BOTH, commands, "worker#1:after_store@4=kill")))
    (letter,) = evidence.rows.dead
    assert (letter.key, letter.state) == ("evt:counter:c1_drawn:k1", "redriven")
    (record,) = [row for row in evidence.rows.keys if row.key == letter.key]
    assert (record.outcome, record.generation) == ("decided", 1)
    assert [row.name for row in evidence.rows.outputs if row.key == letter.key and row.kind == "event"] == ["seen"]


@pytest.mark.parametrize("plan", ["", "worker#1:in_store@9=kill", "worker#1:in_publish@5=kill"])
async def test_redriven_until_it_works(lab: Lab, plan: str) -> None:
    """R5: each generation has a dead letter and an order of its own; one that comes too late changes nothing."""
    commands = Workload()
    commands.send("counter", "charge", {"amount": 9}, entity="a", expect=["dead", "decided"])
    commands.redrive("counter", "k1")
    commands.redrive("counter", "k1", expect=["refused"])
    commands.send("counter", "add", {"amount": 9}, entity="a", expect=["decided"])
    commands.redrive("counter", "k1", 1)
    commands.redrive("counter", "k1", 1, expect=["refused"])
    commands.send("counter", "add", {"amount": 1}, entity="a", expect=["decided"], phase="after")
    evidence = evidence_of(await lab.run(case(ALONE, commands, plan, paced=True)))
    assert [(letter.generation, letter.state) for letter in evidence.rows.dead] == [(0, "redriven"), (1, "redriven")]
    (record,) = [row for row in evidence.rows.keys if row.key == "k1"]
    assert (record.outcome, record.generation) == ("decided", 2)
    assert len({message.msg_id for message in evidence.failed}) == 2


async def test_who_kills_its_worker_comes_after_its_neighbours(lab: Lab) -> None:
    """R7, R8: a call that nobody came back from is a failure as any other: it is not made again at once."""
    commands = [*adds(1, 30, "before"), sent("die", 31, "hot", "dead"), *adds(32, 64, "behind")]
    outcome = await lab.run(case(ALONE, commands, mortal=True, retry={"delays_s": (1.0,)}))
    evidence = evidence_of(outcome)
    third = [record.t for record in evidence.history if record.kind == "call" and record["key"] == "k31"][2]
    decided = {record["key"]: record.t for record in evidence.history if record.kind == "decided"}
    assert len(decided) == 63
    assert max(decided.values()) < third
