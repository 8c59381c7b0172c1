"""Rules of the protocol that a kill alone does not test: pauses, second workers, holds, echoes, scopes.

Each test names the rule (docs/architecture.md) without which it fails.
"""

from __future__ import annotations

import signal

import attrs
import pytest
import trio

from chaos.case import run_case
from chaos.evidence import Sent
from chaos.observer import open_observer
from chaos.plan import Plan, parse_plan
from chaos.workload import command, every_path
from chaos.world import ProcessWorld, Zygote
from meshforge_trio.server import PrivateServer
from meshforge_trio.subjects import Scope

from .rules_world import ALONE, APP, SCOPE, adds, assert_holds, evidence_of, logged, stopped


# Where its thread is in no transaction: a stopped process would keep the lock of the database, and nobody could go on.
@pytest.mark.parametrize("point", ["received", "before_store", "after_store", "before_publish"])
async def test_a_paused_engine_is_fenced(zygote: Zygote, nats_server: PrivateServer, point: str) -> None:
    """R1: while it is stopped another takes over; when it goes on, its commit and its publishes are refused."""
    plan = parse_plan(f"worker#1:{point}@3=stop")
    sent = adds(1, 12)
    async with (
        ProcessWorld(
            ALONE, server=nats_server, zygote=zygote, plan=plan, engine={"batch": 1}, lease_ttl_s=0.5
        ) as world,
        open_observer(nats_server.url) as observer,
    ):
        with trio.fail_after(60):
            await observer.send(sent)
            paused = await world.spawn()
            await stopped(world)
            successor = await world.spawn()
            await world.serving(successor)
            await observer.drained()
            paused.send_signal(signal.SIGCONT)
            # It learns that it is no longer the engine, and stands by: alive, but serving nothing.
            await logged(world, 1, "ended")
            assert await world.drain(paused) == 0
            assert await world.drain(successor) == 0
            assert_holds(await evidence_of(world, sent, observer))


async def test_a_duplicate_is_echoed_and_not_stored(zygote: Zygote) -> None:
    """R4: whoever sends again hears the same bytes; the stream keeps one copy."""
    sent = [
        *adds(1, 1),
        *(
            Sent(command(SCOPE, "add", n, {"amount": 1, "tag": "k1"}, entity_id="a", idempotency_key="k1"))
            for n in range(2, 6)
        ),
    ]
    result = await run_case(APP, sent, Plan(), zygote)
    assert not result.broken, str(result)
    heard = [body for _, body in result.evidence.received if b'"id":"c1_added"' in body]
    assert len(heard) == 5
    assert len(set(heard)) == 1
    assert result.evidence.calls == {"k1": 1}


async def test_a_duplicate_beyond_the_window_leaves_one_copy(zygote: Zygote, nats_server: PrivateServer) -> None:
    """R4: when the stream has forgotten the Msg-Id, only the echo's header keeps a second copy out."""
    window = 0.3
    again = Sent(command(SCOPE, "add", 2, {"amount": 1, "tag": "k1"}, entity_id="a", idempotency_key="k1"))
    async with (
        ProcessWorld(APP, server=nats_server, zygote=zygote, engine={"duplicate_window_s": window}) as world,
        open_observer(nats_server.url, duplicate_window_s=window) as observer,
    ):
        with trio.fail_after(60):
            worker = await world.spawn()
            await observer.send(adds(1, 1))
            await world.serving(worker)
            await observer.drained()
            await trio.sleep(window * 3)
            await observer.send([again])
            await observer.drained()
            assert await world.drain(worker) == 0
            evidence = await evidence_of(world, [*adds(1, 1), again], observer)
            assert_holds(evidence)
            heard = [body for _, body in observer.received if b'"id":"c1_added"' in body]
            assert len(heard) == 2
            assert heard[0] == heard[1]


async def test_a_query_is_answered_and_leaves_no_trace(zygote: Zygote) -> None:
    """R9: answered after the commit of what came before it, from the state it left; nothing is stored."""
    ask = [Sent(command(SCOPE, "get", n, entity_id="a", idempotency_key=None), query=True) for n in (2, 3)]
    result = await run_case(APP, [*adds(1, 1), *ask], Plan(), zygote)
    assert not result.broken, str(result)
    answers = [body for _, body in result.evidence.received if b'"name":"found"' in body]
    assert len(answers) == 2
    assert all(b'"total":1' in body for body in answers)
    assert not [m for m in result.evidence.events if m.subject.endswith(".found")]
    assert {row.key for row in result.evidence.rows.keys if row.scope == SCOPE} == {"k1"}


async def test_a_handler_that_never_returns_is_blamed_alone(zygote: Zygote, nats_server: PrivateServer) -> None:
    """R7: it cannot be cancelled, so the process ends itself; in the end the command is dead, not its neighbours."""
    sent = [
        *adds(1, 3),
        Sent(command(SCOPE, "spin", 4, {"tag": "k4"}, entity_id="b"), expect=("dead",)),
        *adds(5, 6, "c"),
    ]
    async with (
        ProcessWorld(APP, server=nats_server, zygote=zygote, retry={"handler_limit_s": 0.5}) as world,
        open_observer(nats_server.url) as observer,
    ):
        with trio.fail_after(60):
            await observer.send(sent)
            while True:
                worker = await world.spawn()
                await observer.drained_or(worker.ended)
                if worker.status is None:
                    break
                assert worker.status == 1, world.tail(worker)
                assert "Timeout" in world.tail(worker)
            assert await world.drain(worker) == 0
            evidence = await evidence_of(world, sent, observer)
            assert_holds(evidence)
            assert evidence.calls["k4"] == 3
            assert len(evidence.failed) == 1


async def test_a_failing_command_holds_its_entity_and_nobody_else(zygote: Zygote) -> None:
    """R8: what comes behind it waits, untouched, in order; other entities are served meanwhile."""
    sent = [
        Sent(command(SCOPE, "explode", 1, {"tag": "k1"}, entity_id="hot"), expect=("dead",)),
        *adds(2, 9, "hot"),
        *adds(10, 19, "cold"),
    ]
    # One command a turn, so that those behind it are decided on later.
    result = await run_case(APP, sent, Plan(), zygote, retry={"delays_s": (0.5,)}, engine={"batch": 1})
    assert not result.broken, str(result)
    assert {result.evidence.calls[f"k{n}"] for n in range(2, 20)} == {1}
    order = [row.key for row in sorted(result.evidence.rows.outputs, key=lambda row: row.n) if row.kind == "event"]
    keys = [key for key in order if not key.startswith("evt:")]
    assert keys[:10] == [f"k{n}" for n in range(10, 20)]
    assert keys[10:] == [f"k{n}" for n in range(2, 10)]


async def test_skip_lets_later_commands_pass(zygote: Zygote) -> None:
    """R8, the other policy: with `hold_entity` off only the failing command waits."""
    sent = [Sent(command(SCOPE, "explode", 1, {"tag": "k1"}, entity_id="a"), expect=("dead",)), *adds(2, 4)]
    result = await run_case(APP, sent, Plan(), zygote, retry={"delays_s": (0.5,), "hold_entity": False})
    broken = [judgement for judgement in result.broken if judgement.id != "G13"]
    assert not broken, str(result)
    first = {row.key: row.first_n for row in result.evidence.rows.keys if row.scope == SCOPE}
    assert max(first[f"k{n}"] for n in (2, 3, 4)) < first["k1"]


async def test_too_many_waiting_give_the_failing_one_up(zygote: Zygote) -> None:
    """R8: what is held never fills `max_ack_pending`; beyond a quarter of it the failing command is dead at once."""
    sent = [
        Sent(command(SCOPE, "explode", 1, {"tag": "k1"}, entity_id="hot"), expect=("dead",)),
        *adds(2, 40, "hot"),
        *adds(41, 60, "cold"),
    ]
    # It would wait a minute; everything drains long before.
    result = await run_case(
        APP, sent, Plan(), zygote, retry={"delays_s": (60.0,)}, engine={"max_ack_pending": 64}, limit=0
    )
    assert not result.broken, str(result)
    (letter,) = result.evidence.failed
    assert b"hold_full" in letter.body or b"too many" in letter.body


async def test_scopes_with_identical_ids_do_not_meet(zygote: Zygote) -> None:
    """R10, G9: two tenants send the same ids, keys and entities; each gets its own events."""
    other = Scope("other", "demo", "counter")
    sent = [*every_path(SCOPE), *every_path(other)]
    unique = [attrs.evolve(each, command=attrs.evolve(each.command, id=f"{each.command.id}")) for each in sent]
    plan = parse_plan("worker#1:after_store@3=kill")
    result = await run_case(APP, unique, plan, zygote, workspaces=("default/demo", "other/demo"), limit=0)
    assert not result.broken, str(result)
    ours = [
        (row.n, row.kind, row.key, row.entity_id, row.version)
        for row in result.evidence.rows.outputs
        if row.scope == SCOPE
    ]
    theirs = [
        (row.n, row.kind, row.key, row.entity_id, row.version)
        for row in result.evidence.rows.outputs
        if row.scope == other
    ]
    assert len(ours) == len(theirs) > 0
