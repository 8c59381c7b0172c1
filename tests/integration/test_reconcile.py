"""`meshforge reconcile` on real stores and servers: what the runtime refuses, shown, mended, and served again (R3)."""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import apsw
import attrs
import orjson
import pytest
import trio

from chaos.evidence import Sent
from chaos.faults.blocks import flip_bit
from chaos.rows import Rows
from chaos.workload import SCOPE, every_path, fate
from chaos.world import Worker
from chaos.zygote import Zygote
from meshforge_trio.broker.port import Message
from meshforge_trio.server import PrivateServer
from meshforge_trio.subjects import DISCARD, EVENTS, REDRIVE

from .damage_world import ask, by_agent, marked, rows_of, stopped, versions
from .rules_world import ALONE, Stage, adds, open_world, put_in_place_of, sent

BOTH = "chaos.agents:counter_and_audit"
COUNTER = ("--workspace", "default/demo", "--agent", "counter")


@attrs.frozen
class Told:
    """What the command said."""

    code: int
    documents: Sequence[Any]
    err: str

    @property
    def document(self) -> Any:
        (document,) = self.documents
        return document


async def reconcile(stage: Stage, server: PrivateServer, *flags: str, json: bool = True) -> Told:
    """Run the command to its end."""
    place = ["--url", server.url, "--store", str(stage.world.store)]
    command = [sys.executable, "-m", "meshforge_trio", "reconcile", *place, *flags, *(["--json"] if json else [])]
    done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
    documents = [orjson.loads(line) for line in done.stdout.splitlines()] if json else [done.stdout.decode()]
    return Told(done.returncode, documents, done.stderr.decode())


async def refused(stage: Stage, *texts: str) -> None:
    """A worker that is started now ends with exit code 3, says why, and names the command."""
    worker = await stage.world.spawn()
    assert await stage.world.ended(worker) == 3, worker.tail()
    for text in (*texts, "meshforge reconcile --workspace default/demo --agent counter --dry-run"):
        assert text in worker.tail(), worker.tail()


async def drained(stage: Stage, worker: Worker) -> None:
    assert await stage.world.drain(worker) == 0, worker.tail()


def ended_cleanly(stage: Stage) -> bool:
    """Whether the last term is known to have ended with nothing in hand."""
    connection = apsw.Connection(str(stage.world.store), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        ((clean,),) = connection.execute("SELECT clean FROM leases")
    finally:
        connection.close()
    return bool(clean)


async def test_a_stream_made_anew_is_filled_from_the_store(
    zygote: Zygote, nats_server: PrivateServer, tmp_path: Path
) -> None:
    async with open_world(tmp_path, nats_server, zygote, ALONE) as stage:
        worker = await stage.served()
        await stage.decided(adds(1, 20))
        await drained(stage, worker)
        nats_server.kill()
        shutil.rmtree(nats_server.store_dir)
        nats_server.restart()
        await refused(stage, "MESHFORGE_EVENTS was deleted and made anew")

        shown = await reconcile(stage, nats_server, *COUNTER, "--dry-run")
        assert (shown.code, shown.document["need"]) == (1, "decision")
        assert shown.document["streams"][EVENTS]["missing"] == list(range(1, 21))
        undecided = await reconcile(stage, nats_server, json=False)
        assert undecided.code == 3
        assert "--accept-store" in undecided.err
        assert "--accept-stream" in undecided.err
        assert await versions(stage) == []

        filled = await reconcile(stage, nats_server, "--accept-store")
        assert (filled.code, filled.document["done"]["published"]) == (0, 20)
        assert await versions(stage) == list(range(1, 21))
        again = await reconcile(stage, nats_server)
        assert (again.code, again.document["need"], again.document["done"]) == (0, "nothing", None)
        worker = await stage.served()
        await stage.decided(adds(21, 22))
        await drained(stage, worker)
        assert await versions(stage) == list(range(1, 23))


async def test_commands_to_others_are_sent_again_and_take_effect_once(
    zygote: Zygote, nats_server: PrivateServer, tmp_path: Path
) -> None:
    """All three streams are gone. No stream tells whether a command arrived: its receiver knows it by its key."""
    async with open_world(tmp_path, nats_server, zygote, BOTH) as stage:
        worker = await stage.served()
        await stage.decided([*adds(1, 3), sent("tell", 4), *adds(5, 6)])
        await drained(stage, worker)
        before = rows_of(stage, "before")
        held = await by_agent(stage)
        nats_server.kill()
        shutil.rmtree(nats_server.store_dir)
        nats_server.restart()
        filled = await reconcile(stage, nats_server, "--accept-store")
        assert filled.code == 0
        done = {each["scope"]: each["done"] for each in filled.documents}
        assert done["default/demo/counter"]["commands"] == 1
        worker = await stage.served()
        await stage.observer.drained()
        await drained(stage, worker)
        assert await by_agent(stage) == held
        after = rows_of(stage, "after")
        assert [o.msg_id for o in before.outputs] == [o.msg_id for o in after.outputs]


async def test_the_stream_is_right_about_what_an_older_store_forgot(
    zygote: Zygote, nats_server: PrivateServer, tmp_path: Path
) -> None:
    """Chains, versions, keys and outcomes come back as they were; a re-send gets the first answer and no second one."""
    backup = tmp_path / "backup"
    async with open_world(tmp_path, nats_server, zygote, ALONE) as stage:
        worker = await stage.served()
        await stage.decided(adds(1, 5))
        await drained(stage, worker)
        shutil.copytree(stage.world.store.parent, backup)
        worker = await stage.served()
        await stage.decided([*adds(6, 9), sent("take", 10, payload={"amount": 1000}), *adds(11, 300, "b")])
        await drained(stage, worker)
        before = rows_of(stage, "before")
        put_in_place_of(stage.world.store.parent, backup)
        await refused(stage, "the store is older than the stream")

        shown = await reconcile(stage, nats_server, "--dry-run")
        assert (shown.code, shown.document["need"]) == (1, "decision")
        assert len(shown.document["streams"][EVENTS]["unknown"]) == 295
        taken = await reconcile(stage, nats_server, "--accept-stream")
        assert (taken.code, taken.document["done"]["taken_over"]) == (0, 295), taken.err
        assert_same(before, rows_of(stage, "after"))

        worker = await stage.served()
        held = await versions(stage)
        again = [attrs.evolve(s, command=attrs.evolve(s.command, id=f"{s.command.id}-again")) for s in adds(6, 9)]
        await stage.decided(again)
        assert await versions(stage) == held
        await stage.decided(adds(301, 301))
        assert await versions(stage) == [*held, 10]
        await drained(stage, worker)


def assert_same(before: Rows, after: Rows) -> None:
    """Both stores hold the same, but for what no stream tells: hashes of payloads, commands to others, numbers."""
    outputs = [
        {o.msg_id: attrs.evolve(o, n=0, prev=None) for o in rows.outputs if o.kind != "command"}
        for rows in (before, after)
    ]
    assert outputs[0] == outputs[1]
    for kind in ("keys", "mismatches"):
        told = [sorted((k.key, k.outcome, k.generation) for k in getattr(rows, kind)) for rows in (before, after)]
        assert told[0] == told[1]
    heads = [{name: (h.version, h.chain) for name, h in rows.heads.items()} for rows in (before, after)]
    assert heads[0] == heads[1]
    assert before.dead == after.dead
    assert before.generations == after.generations


async def test_an_empty_store_is_rebuilt_from_the_streams(
    zygote: Zygote, nats_server: PrivateServer, tmp_path: Path
) -> None:
    """Of every kind of outcome: conflict, refusal, mismatch, dead letter, one that was redriven and one discarded."""
    async with open_world(tmp_path, nats_server, zygote, ALONE) as stage:
        worker = await stage.served()
        await stage.decided([s for s in every_path() if s.command.action != "tell"])
        await stage.decided([sent("charge", 41, "d", payload={"amount": 5})])
        await stage.decided(adds(42, 42, "d"))
        await stage.decided([sent("explode", 43, "e")])
        fates = {REDRIVE: sent("charge", 41, "d").key, DISCARD: sent("explode", 43, "e").key}
        await stage.decided([Sent(fate(SCOPE, action, 60 + i, key)) for i, (action, key) in enumerate(fates.items())])
        await drained(stage, worker)
        before = rows_of(stage, "before")
        assert {letter.state for letter in before.dead} == {"waiting", "redriven", "discarded"}
        shutil.rmtree(stage.world.store.parent)
        await refused(stage, "the store is empty")
        shutil.rmtree(stage.world.store.parent)

        unmade = await reconcile(stage, nats_server)
        assert (unmade.code, unmade.document["need"]) == (3, "decision")
        assert not stage.world.store.exists()
        taken = await reconcile(stage, nats_server, "--accept-stream")
        assert taken.code == 0, taken.err
        assert_same(before, rows_of(stage, "after"))
        worker = await stage.served()
        await stage.decided(adds(50, 50))
        await drained(stage, worker)


async def test_what_has_left_the_stream_cannot_be_taken_over(
    zygote: Zygote, nats_server: PrivateServer, tmp_path: Path
) -> None:
    """An entity without its first versions is not an entity: refused, and the store stays as it was."""
    async with open_world(tmp_path, nats_server, zygote, ALONE) as stage:
        worker = await stage.served()
        await stage.decided([*adds(1, 4, "a"), *adds(5, 6, "b")])
        await drained(stage, worker)
        await ask(nats_server, f"STREAM.PURGE.{EVENTS}", {"seq": 3})
        shutil.rmtree(stage.world.store.parent)
        taken = await reconcile(stage, nats_server, "--accept-stream")
        assert taken.code == 3
        assert "is version 3 of entity 'a', and the store has 0" in taken.err
        assert not rows_of(stage, "after").outputs


async def test_the_whole_of_both_is_compared(zygote: Zygote, nats_server: PrivateServer, tmp_path: Path) -> None:
    """What was lost is published without more ado, what was deleted only when the store is said to be right."""
    async with open_world(tmp_path, nats_server, zygote, ALONE) as stage:
        worker = await stage.served()
        await stage.decided(adds(1, 10))
        await marked(stage, worker)
        await ask(nats_server, f"STREAM.MSG.DELETE.{EVENTS}", {"seq": 8})
        worker.send_signal(signal.SIGKILL)
        await stage.world.ended(worker)
        await stopped(nats_server)
        flip_bit(nats_server.store_dir, EVENTS, seq=3)
        nats_server.start()
        shown = await reconcile(stage, nats_server, "--dry-run")
        side = shown.document["streams"][EVENTS]
        assert (shown.code, side["purged"], side["missing"], side["held"]) == (1, [8], [3], 8)
        filled = await reconcile(stage, nats_server)
        assert (filled.code, filled.document["done"]["published"]) == (0, 1)
        assert await versions(stage) == [1, 2, 4, 5, 6, 7, 9, 10, 3]
        # Who was killed with what in hand is still for the next engine to know.
        assert not ended_cleanly(stage)
        remembered = await reconcile(stage, nats_server, "--accept-store")
        assert await versions(stage) == [1, 2, 4, 5, 6, 7, 9, 10, 3, 8]
        assert remembered.code == 0
        worker = await stage.served()
        await drained(stage, worker)
        assert ended_cleanly(stage)
        assert await versions(stage) == [1, 2, 4, 5, 6, 7, 9, 10, 3, 8]


async def test_ids_of_deleted_messages_that_the_server_remembers(
    zygote: Zygote, nats_server: PrivateServer, tmp_path: Path
) -> None:
    """A living server takes them for duplicates: said, exit code 1, nothing marked; restarted, it takes them."""
    async with open_world(tmp_path, nats_server, zygote, ALONE) as stage:
        worker = await stage.served()
        await stage.decided(adds(1, 4))
        await drained(stage, worker)
        await ask(nats_server, f"STREAM.MSG.DELETE.{EVENTS}", {"seq": 2})
        first = await reconcile(stage, nats_server, "--accept-store")
        assert (first.code, first.document["done"]["remembered"], first.document["done"]["mark"]) == (1, 1, None)
        nats_server.restart()
        second = await reconcile(stage, nats_server, "--accept-store")
        assert (second.code, second.document["done"]["published"]) == (0, 1)
        assert await versions(stage) == [1, 3, 4, 2]


async def test_beside_a_worker_it_only_looks(zygote: Zygote, nats_server: PrivateServer, tmp_path: Path) -> None:
    """Exit code 1, and the process is named; `--dry-run` needs no lease and leaves the file as it is."""
    async with open_world(tmp_path, nats_server, zygote, ALONE) as stage:
        worker = await stage.served()
        await stage.decided(adds(1, 3))
        await marked(stage, worker)
        busy = await reconcile(stage, nats_server)
        assert busy.code == 1
        assert f"process {worker.pid}" in busy.err
        looked = await reconcile(stage, nats_server, "--dry-run")
        assert (looked.code, looked.document["need"]) == (0, "nothing")
        await stage.decided(adds(4, 4))
        await drained(stage, worker)


_KILLS_ITSELF = """
import os, signal, sys, trio
from meshforge_trio import reconcile
from meshforge_trio.cli import main
real = reconcile.Reconciler.__init__

def dying(self, store, broker, scope, clock, progress, *more):
    def told(what, done, total):
        if done:
            os.kill(os.getpid(), signal.SIGKILL)
    real(self, store, broker, scope, clock, told, *more)

reconcile.Reconciler.__init__ = dying
sys.argv[0] = "meshforge"
main()
"""


@pytest.mark.parametrize("right", ["--accept-store", "--accept-stream"])
async def test_killed_half_way_it_can_be_run_again(
    zygote: Zygote, nats_server: PrivateServer, tmp_path: Path, right: str
) -> None:
    """After each burst of publishes or commit of decisions the process dies of SIGKILL; the next run goes on."""
    async with open_world(tmp_path, nats_server, zygote, ALONE) as stage:
        worker = await stage.served()
        await stage.decided(adds(1, 600))
        await drained(stage, worker)
        before = rows_of(stage, "before")
        if right == "--accept-store":
            nats_server.kill()
            shutil.rmtree(nats_server.store_dir)
            nats_server.restart()
        else:
            shutil.rmtree(stage.world.store.parent)
        place = ["reconcile", "--url", nats_server.url, "--store", str(stage.world.store), right]
        deaths = 0
        while True:
            died = await trio.run_process([sys.executable, "-c", _KILLS_ITSELF, *place], check=False)
            if died.returncode != -signal.SIGKILL:
                break
            deaths += 1
        assert died.returncode == 0
        assert deaths >= 2
        assert await versions(stage) == list(range(1, 601))
        assert_same(before, rows_of(stage, "after"))
        worker = await stage.served()
        await drained(stage, worker)


async def test_what_nobody_of_ours_published_is_not_taken_over(
    zygote: Zygote, nats_server: PrivateServer, tmp_path: Path
) -> None:
    """A forged event under the agent's subject: listed, refused, and left where it is when the store is right."""
    async with open_world(tmp_path, nats_server, zygote, ALONE) as stage:
        worker = await stage.served()
        await stage.decided(adds(1, 3))
        await drained(stage, worker)
        broker = await stage.observer.broker()
        await broker.publish([Message("evt.default.demo.counter.added", b'{"id": "x"}', "forged")], 5.0)
        await refused(stage, "forged")
        foreign = await reconcile(stage, nats_server, "--accept-stream")
        assert foreign.code == 3
        assert "somebody else publishes for this agent" in foreign.err
        kept = await reconcile(stage, nats_server, "--accept-store")
        assert kept.code == 0
        assert kept.document["streams"][EVENTS]["unknown"][0]["msg_id"] == "forged"
        worker = await stage.served()
        await stage.decided(adds(4, 4))
        await drained(stage, worker)
        assert await versions(stage) == [1, 2, 3, 0, 4]
