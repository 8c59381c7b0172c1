"""Payload codecs on a real nats-server, with real processes: what rests where, rotation, and what erasing does."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import trio

from chaos.lab import Lab
from chaos.plan import parse_plan
from chaos.scenario import load_scenario
from chaos.verdict import Status
from meshforge_trio.answers import CommandDead, CommandRefused, Conflict, raise_if_failed
from meshforge_trio.client import MeshClient
from meshforge_trio.codec import is_sealed
from meshforge_trio.entities import SNAPSHOT_EVERY
from meshforge_trio.envelope import decode_event, encode
from meshforge_trio.errors import Erased, Misconfigured
from meshforge_trio.policy import ExitCode

from .sealed_world import SECRET, Sealed, sealed_shop

TEXT = {"text": SECRET}
ROOT = Path(__file__).parents[2]
AGENTS = ("clerk", "safe", "sys_lock_manager")


async def everything(mesh: MeshClient) -> None:
    """Decisions, a snapshot, refusals, a conflict, a mismatch, a dead letter, a lock, a command that stays in its
    stream."""
    await mesh.send("nobody", "keep", TEXT)
    async with mesh.lock("door", owner_id=SECRET) as held:
        assert held.fencing_token == 1
    made = [mesh.command("safe", "keep", TEXT, entity_id="a") for _ in range(SNAPSHOT_EVERY)]
    await mesh.send_many(made)
    found = await mesh.call("safe", "get", entity_id="a")
    assert (found.name, found.payload["text"]) == ("found", SECRET)
    with pytest.raises(CommandRefused, match=f"not {SECRET}"):
        raise_if_failed(await mesh.call("safe", "refuse", TEXT, entity_id="a", idempotency_key="r"))
    with pytest.raises(Conflict):
        raise_if_failed(await mesh.call("safe", "keep", TEXT, entity_id="a", expected_version=0))
    other = await mesh.call("safe", "keep", {"text": f"{SECRET} again"}, entity_id="a", idempotency_key="r")
    assert (other.name, other.payload["code"]) == ("refused", "idempotency_mismatch")
    with pytest.raises(CommandDead, match=f"cannot hold {SECRET}"):
        raise_if_failed(await mesh.call("safe", "explode", TEXT, entity_id="b", idempotency_key="dead"))


@pytest.mark.parametrize("sealed", [True, False], ids=["with-codec", "without"])
async def test_what_rests_can_be_read_only_without_a_codec(tmp_path: Path, sealed: bool) -> None:
    """Store, write-ahead log, streams, logs, backups, exports."""
    with sealed_shop(tmp_path, ring=sealed) as world:
        with world.served() as worker:
            async with world.client(codecs=sealed) as mesh:
                await everything(mesh)
            running = world.holding(SECRET)
            shown = world.shop.does("dlq", "show", "dead", "--workspace", "acme/w")
            assert f"RuntimeError: cannot hold {SECRET}" in shown.out
            assert f'"text": "{SECRET}"' in shown.out
            assert world.shop.does("dlq", "export", "letters.jsonl").code == ExitCode.OK
            assert world.shop.does("backup", "copy.db").code == ExitCode.OK
            worker.process.send_signal(signal.SIGTERM)
            assert worker.ended() == ExitCode.OK
        world.server.stop()
        listed = world.shop.does("events", "--agent", "safe", "--workspace", "acme/w", "--json")
        assert [d["envelope"]["payload"]["text"] for d in listed.documents] == [SECRET] * SNAPSHOT_EVERY
        state = world.shop.answers("state", "safe", "a", "--app", "shop:app", "--workspace", "acme/w")
        assert state["state"] == TEXT
        replayed = world.shop.does("replay", "--app", "shop:app", "--json")
        assert replayed.code == ExitCode.OK, replayed
        (safe,) = [d for d in replayed.documents if d["scope"] == "acme/w/safe"]
        assert (safe["events"], safe["snapshots"], safe["recorded"]) == (SNAPSHOT_EVERY, 1, safe["state_hash"])
        found = world.holding(SECRET)
    if sealed:
        assert (running, found) == ([], [])
        return
    assert {"store/shop.db-wal", "store/shop.db"} & set(running)
    assert {"store/shop.db", "copy.db", "letters.jsonl"} <= set(found)
    for stream in ("COMMANDS", "EVENTS", "FAILED"):
        assert any(f"MESHFORGE_{stream}/" in path for path in found), stream
    assert any(path.startswith("log-") for path in found)


async def test_keys_rotate_under_a_worker_and_its_clients(tmp_path: Path) -> None:
    with sealed_shop(tmp_path) as world, world.served():
        async with world.client() as mesh, world.client(codecs=False) as stranger:
            first = await mesh.call("safe", "keep", TEXT, entity_id="a", idempotency_key="k")
            rotated = world.shop.answers("keys", "rotate", "acme")
            old, new = (key["id"] for key in rotated["keys"])
            before = await world.streamed("acme")
            # Sealed anew by its client, it is the same command; the answer is the first one's bytes.
            again = await mesh.call("safe", "keep", TEXT, entity_id="a", idempotency_key="k")
            assert again == first
            assert await world.streamed("acme") == before
            second = await mesh.call("safe", "keep", {"text": "else"}, entity_id="a")
            assert second.payload == {"text": "else", "entity_version": 2}
            kept = [decode_event(body) for body in await world.streamed("acme") if b'"kept"' in body]
            assert [event.payload["$sealed"]["key"] for event in kept] == [old, new]
            async with mesh.events("safe", "kept", from_start=True) as feed:
                assert [(await anext(feed)).payload["text"] for _ in range(2)] == [SECRET, "else"]
            async with stranger.events("safe", "kept", from_start=True) as feed:
                unread = await anext(feed)
            assert is_sealed(unread.payload)
            assert unread == kept[0]
            # Without the keys one may send, and is answered in words one cannot read.
            answer = await stranger.call("safe", "keep", TEXT, entity_id="c")
            assert is_sealed(answer.payload)
            with pytest.raises(Misconfigured, match="is sealed: give the client its tenant's codec"):
                await stranger.revise("safe", "keep", "c", lambda found: TEXT)


async def test_erasing_a_tenant(tmp_path: Path) -> None:
    with sealed_shop(tmp_path) as world:
        with world.served() as worker:
            async with world.client() as mesh, world.client("zeta") as other:
                first = await mesh.call("safe", "keep", TEXT, entity_id="a", idempotency_key="k")
                await other.call("safe", "keep", TEXT, entity_id="a", idempotency_key="k")
                async with mesh.lock("door") as held:
                    assert held.fencing_token == 1
                before = await world.streamed("acme")
                _destroy(world)
                # Nothing arrives, and what the engines had in memory is dropped all the same.
                ended = worker.said("the session of the engine ended", 3)
                assert {line["scope"] for line in ended} == {f"acme/w/{agent}" for agent in AGENTS}
                with pytest.raises(Erased, match="the keys of tenant 'acme' were destroyed on"):
                    await mesh.call("safe", "get", entity_id="a")
                async with world.client(codecs=False) as stranger:
                    found = await stranger.call("safe", "get", entity_id="a")
                    assert (found.name, found.payload["code"]) == ("refused", "erased")
                    refused = await stranger.call("safe", "keep", TEXT, entity_id="a", idempotency_key="new")
                    assert refused.payload["code"] == "erased"
                    again = await stranger.call("safe", "keep", TEXT, entity_id="a", idempotency_key="k")
                    assert again.id == first.id
                    assert is_sealed(again.payload)
                    assert await world.streamed("acme") == [*before, encode(refused)]
                still = await other.call("safe", "get", entity_id="a")
                assert still.payload["text"] == SECRET
            assert world.shop.does("verify", "--json").code == ExitCode.OK
            worker.process.send_signal(signal.SIGTERM)
            assert worker.ended() == ExitCode.OK
            assert "the engine crashed" not in {line["event"] for line in worker.lines()}
        # The next worker finds nothing but tombstones.
        with world.served():
            async with world.client(codecs=False) as stranger:
                found = await stranger.call("safe", "keep", TEXT, entity_id="a", idempotency_key="k")
                assert found.id == first.id
        _tools_say_erased(world)


def _destroy(world: Sealed) -> None:
    refused = world.shop.does("keys", "destroy", "acme")
    assert refused.code == ExitCode.USAGE
    assert "say --yes" in refused.err
    done = world.shop.does("keys", "destroy", "acme", "--yes")
    assert done.code == ExitCode.OK, done
    assert "acme/w/safe: 2 outputs of 1 entities, 0 snapshots and 0 dead letters become unreadable" in done.err
    assert "were destroyed on" in done.out


def _tools_say_erased(world: Sealed) -> None:
    shop = world.shop
    assert shop.does("verify").code == ExitCode.OK
    for tool in ("replay", "hash"):
        told = shop.does(tool, "--app", "shop:app", "--json")
        assert told.code == ExitCode.FAILED
        assert "acme/w/safe" in told.err
        assert "was destroyed on" in told.err
        assert {d["scope"] for d in told.documents} >= {"zeta/w/clerk", "zeta/w/safe"}
        assert "acme/w/safe" not in {d["scope"] for d in told.documents}
    state = shop.does("state", "safe", "a", "--app", "shop:app", "--workspace", "acme/w")
    assert (state.code, "was destroyed on" in state.err) == (ExitCode.FAILED, True)
    listed = shop.does("events", "--agent", "safe", "--workspace", "acme/w", "--json")
    assert is_sealed(listed.documents[0]["envelope"]["payload"])
    again = shop.does("keys", "destroy", "acme", "--yes")
    assert (again.code, "nothing was done" in again.err) == (ExitCode.OK, True)
    rotated = shop.does("keys", "rotate", "acme")
    assert (rotated.code, "gets no new keys" in rotated.err) == (ExitCode.MISCONFIGURED, True)
    graves = shop.answers("keys", "list")["destroyed"]
    assert len(graves) == 1


async def test_a_lost_store_takes_over_sealed_events_with_the_ring_alone(tmp_path: Path) -> None:
    with sealed_shop(tmp_path) as world:
        with world.served() as worker:
            async with world.client() as mesh:
                await mesh.call("safe", "keep", TEXT, entity_id="a")
                await mesh.call("safe", "keep", {"text": "else"}, entity_id="a")
            worker.process.send_signal(signal.SIGTERM)
            assert worker.ended() == ExitCode.OK
        ask = ("state", "safe", "a", "--app", "shop:app", "--workspace", "acme/w")
        before = world.shop.answers(*ask)
        world.shop.store.unlink()
        take = ("reconcile", "--accept-stream", "--agent", "safe", "--workspace", "acme/w")
        refused = world.shop.does(*take, env={"MESHFORGE_CODEC_KEYS": ""})
        assert refused.code == ExitCode.MISCONFIGURED
        assert "is sealed, so nothing can be taken over" in refused.err
        assert world.shop.does(*take).code == ExitCode.OK
        assert world.shop.answers(*ask) == before
        assert before["state"] == {"text": "else"}


async def test_a_worker_without_the_ring_refuses_to_mix_payloads(tmp_path: Path) -> None:
    with sealed_shop(tmp_path) as world:
        with world.served():
            async with world.client() as mesh:
                await mesh.call("safe", "keep", TEXT, entity_id="a")
        settings = world.shop.home / "meshforge.toml"
        settings.write_text(settings.read_text().replace("codec_keys", "# codec_keys"))
        refused = world.shop.does("run", "shop:app")
        assert refused.code == ExitCode.MISCONFIGURED
        assert "tenant 'acme' has no codec here: name its key ring in `codec_keys`" in refused.err


async def test_a_ring_that_is_gone_for_a_while_stops_its_tenant_alone(tmp_path: Path) -> None:
    with sealed_shop(tmp_path) as world, world.served() as worker:
        async with world.client(codecs=False) as mesh, world.client("zeta") as other:
            await mesh.call("safe", "keep", TEXT, entity_id="a")
            away = world.ring.rename(world.ring.with_suffix(".away"))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(mesh.call, "safe", "keep", TEXT)
                worker.said("the session of the engine ended")
                await other.call("safe", "keep", TEXT, entity_id="a")
                away.rename(world.ring)


@pytest.mark.parametrize("point", ["before_store", "after_store", "in_publish", "before_ack"])
async def test_killed_with_a_codec_on_everything_takes_effect_once(lab: Lab, point: str) -> None:
    scenario = load_scenario(ROOT / "scenarios" / "sealed.py")
    outcome = await lab.run(scenario.case(parse_plan(f"worker#1:{point}@1=kill"), batch=64))
    assert outcome.status is Status.PASS, str(outcome)
    looked = [each.judgement for each in outcome.verdict.judgements if each.judgement.id == "sealed"]
    assert sum(judgement.examined for judgement in looked) > 0
