"""Sample runs for the reports: directories as the harness leaves them, staged without any process.

The histories are written by `History` under a clock of ours, the stores by the event store itself, the images by
`save_image` from streams in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import orjson
import trio

from chaos.evidence import Sent, save_image
from chaos.history import History, Record
from chaos.workload import SCOPE, command
from meshforge_trio.broker.port import StoredMessage, StreamFacts
from meshforge_trio.envelope import EventEnvelope, encode, payload_hash
from meshforge_trio.points import Point, no_probe
from meshforge_trio.store.port import Commit, Head, KeyRecord, Mark, Output
from meshforge_trio.store.sqlite import SQLiteEventStore, inline
from meshforge_trio.subjects import COMMANDS, EVENTS, FAILED, event_subject

__all__ = ["HOSTILE", "SENTENCES", "Stage", "big_run", "failing_run", "happened", "judgement", "passing_run", "staged"]

#: What keys, names and payloads may hold: an end of script, quotes, marks of templates, emoji, text that turns round.
HOSTILE: Final = (
    "</script><script>document.documentElement.dataset.error='owned'</script>\"'`{{7*7}}&amp;\u202e\x1b[31m😀"
)
SENTENCES: Final[Mapping[str, str]] = {
    "G1": "Not forgotten: a command the stream accepted ends decided.",
    "G2": "Effect once: at most one committed decision per key.",
    "G4": "Delivered: every committed output reaches its stream, once.",
    "G10": "One holder: a resource has at most one unexpired lease.",
}
_TURN_BEFORE: Final = ("before_store", "in_store", "after_store")
_TURN_AFTER: Final = ("before_publish", "in_publish", "after_publish", "before_ack", "after_ack")


def happened(*told: tuple[str, str, Mapping[str, Any]]) -> list[Record]:
    """A history of (actor, kind, fields), a millisecond apart, behind a header."""
    header = ("harness", "header", {"version": 1, "scenario": "s", "plan": "", "app": "a"})
    return [Record(n * 1_000_000, actor, kind, fields) for n, (actor, kind, fields) in enumerate([header, *told])]


class Streams:
    """The streams in memory, as `save_image` reads them."""

    def __init__(self) -> None:
        self._messages: dict[str, list[StoredMessage]] = {COMMANDS: [], EVENTS: [], FAILED: []}
        self._last = dict.fromkeys(self._messages, 0)

    def put(self, stream: str, subject: str, msg_id: str, body: bytes) -> int:
        """Store a message; its sequence."""
        self._last[stream] += 1
        self._messages[stream].append(StoredMessage(self._last[stream], subject, msg_id, body))
        return self._last[stream]

    def ack(self, seq: int) -> None:
        """Take a command out."""
        self._messages[COMMANDS] = [m for m in self._messages[COMMANDS] if m.seq != seq]

    async def stream_facts(self, stream: str) -> StreamFacts:
        """See `Broker.stream_facts`."""
        held = self._messages[stream]
        first = held[0].seq if held else self._last[stream] + 1
        return StreamFacts(stream, first, self._last[stream], len(held), 120.0, -1)

    async def read_back(self, stream: str, subject: str, from_seq: int, limit: int) -> Sequence[StoredMessage]:
        """See `Broker.read_back`."""
        return [m for m in self._messages[stream] if m.seq >= from_seq][:limit]


class Stage:
    """A run in the making. Every record is 0.1 ms after the one before; `wait` lets more time pass."""

    def __init__(self, home: Path, store: SQLiteEventStore, scenario: str, plan: str) -> None:
        self.home = home
        self.scenario = scenario
        self.plan = plan
        self.streams = Streams()
        self.sent: list[Sent] = []
        self._store = store
        self._scoped = store.scope(SCOPE)
        self._epoch = 0
        self._n = 0
        self._heads: dict[str, Head] = {}
        self._seqs: dict[str, int] = {}
        self._hits: dict[tuple[str, str], int] = {}
        self._images = 0
        self._ns = 5_000_000_000
        self._history = History.open(home / "history.jsonl", "harness")
        self.tell("harness", "header", version=1, scenario=scenario, plan=plan, app="chaos.agents:app")

    def close(self) -> None:
        """Close the history."""
        self._history.close()

    def wait(self, ms: float) -> None:
        """Let time pass."""
        self._ns += int(ms * 1e6)

    def tell(self, actor: str, kind: str, **fields: Any) -> None:
        """Write a record."""
        self._ns += 100_000
        with patch("chaos.history.now_ns", lambda: self._ns):
            self._history.write(kind, actor=actor, **fields)

    def points(self, worker: str, *points: str) -> None:
        """Write that a worker reaches points."""
        for point in points:
            assert point in set(Point)
            self._hits[worker, point] = nth = self._hits.get((worker, point), 0) + 1
            self.tell(worker, "point", point=point, nth=nth)

    def send(self, number: int, **more: Any) -> Sent:
        """Send a command and hear that it is stored."""
        sent = Sent(command(SCOPE, "add", number, {"amount": number}, **more), expect=("decided",))
        self.tell("client", "send", id=sent.command.id, key=sent.key, subject=sent.subject, phase="main")
        seq = self.streams.put(COMMANDS, sent.subject, f"{sent.scope}/{sent.command.id}", sent.body)
        self._seqs[sent.command.id] = seq
        self.tell("client", "ok", id=sent.command.id, seq=seq)
        self.sent.append(sent)
        return sent

    async def start(self, worker: str, pid: int) -> None:
        """A worker starts and recovers."""
        lease = await self._scoped.take_lease("server")
        assert lease is not None
        self._epoch, self._n = lease.epoch, lease.next_n - 1
        self.tell(worker, "spawn", pid=pid)
        self.wait(20)
        self.points(worker, "after_lease", "after_reset", "before_recovery")

    async def decide(self, worker: str, sent: Sent, mark: Mark | None = None) -> Output:
        """Half a turn: a command is decided and committed."""
        entity = sent.command.entity_id or "a"
        head = self._heads.get(entity, Head(entity, 0, b""))
        self.points(worker, "received")
        call = {"scope": str(SCOPE), "key": sent.key, "id": sent.command.id, "action": "add", "entity": entity}
        self.tell(worker, "call", **call, version=head.version, before="00ff00ff00ff00ff")
        self.tell(worker, "decided", scope=str(SCOPE), key=sent.key, digest="ab12cd34ef56ab12")
        self._n += 1
        output = event_of(sent, self._n, entity, head)
        assert output.chain is not None
        self._heads[entity] = Head(entity, head.version + 1, output.chain)
        record = KeyRecord(sent.key, payload_hash(sent.command), "decided", self._n, self._n)
        commit = Commit(self._epoch, [output], [record], heads=[self._heads[entity]], mark=mark)
        await self._scoped.commit(commit, no_probe)
        self.points(worker, *_TURN_BEFORE)
        return output

    def publish(self, worker: str, sent: Sent, output: Output) -> Mark:
        """The other half: its event is published and heard, the command ACKed."""
        self.points(worker, *_TURN_AFTER[:2])
        seq = self.streams.put(EVENTS, output.subject, output.msg_id, output.body)
        body = output.body.decode()
        self.tell("client", "heard", subject=output.subject, msg_id=output.msg_id, body=body)
        self.points(worker, *_TURN_AFTER[2:])
        self.streams.ack(self._seqs[sent.command.id])
        return Mark(output.n, seq, output.msg_id, 0, "", 1.0)

    async def image(self, *, final: bool) -> None:
        """Copy everything."""
        self._images += 1
        to = self.home / f"image-{self._images}"
        await save_image(self.streams, self._store.path, to, final=final)  # type: ignore[arg-type]
        self.tell("harness", "image", number=self._images, final=final)

    def judged(self, status: str, judgements: Sequence[Mapping[str, Any]], **more: Any) -> None:
        """Write `run.json` and `verdict.json`."""
        run = {
            "version": 1,
            "scenario": self.scenario,
            "app": "chaos.agents:app",
            "plan": self.plan,
            "engine": {"batch": 1},
            "retry": {"limit": 3},
            "workspaces": ["default/demo"],
            "limit": 3,
            "sent": [_told(sent) for sent in self.sent],
            "replay": f"meshforge-chaos replay '{self.plan}'",
            "environment": {"python": "3.11.7", "nats_server": "2.15.1"},
        }
        verdict = {"status": status, "reasons": [], "judgements": judgements, "fired": [], "unhit": [], **more}
        (self.home / "run.json").write_bytes(orjson.dumps(run))
        (self.home / "verdict.json").write_bytes(orjson.dumps(verdict))


def event_of(sent: Sent, n: int, entity: str, head: Head) -> Output:
    """The event of a decision."""
    event = EventEnvelope(
        id=f"{sent.command.id}_added",
        tenant=SCOPE.tenant,
        workspace=SCOPE.workspace,
        agent=SCOPE.agent,
        name="added",
        idempotency_key=sent.key,
        entity_id=entity,
        payload={**sent.command.payload, "entity_version": head.version + 1},
        causation_id=sent.command.id,
    )
    body = encode(event)
    return Output(
        n,
        "event",
        sent.key,
        event.id,
        "added",
        event_subject(SCOPE, "added"),
        hashlib.sha256(event.id.encode()).hexdigest()[:32],
        body,
        entity,
        head.version + 1,
        hashlib.sha256(head.chain + body).digest(),
    )


def _told(sent: Sent) -> Mapping[str, Any]:
    return {
        "command": orjson.loads(sent.body),
        "query": sent.query,
        "expect": list(sent.expect),
        "phase": sent.phase,
        "repeatable": sent.repeatable,
        "at": None,
        "key": sent.key,
        "digest": sent.digest.hex(),
    }


def judgement(
    id_: str, image: int, *, final: bool = False, examined: int = 5, findings: Sequence[Any] = (), failure: str = ""
) -> Mapping[str, Any]:
    """One entry of `verdict.json`."""
    return {
        "image": image,
        "final": final,
        "id": id_,
        "sentence": SENTENCES.get(id_, f"{id_}: a sentence."),
        "examined": examined,
        "findings": list(findings),
        "failure": failure,
    }


@contextmanager
def staged(home: Path, scenario: str, plan: str) -> Iterator[Stage]:
    """A stage whose store is open; for synchronous tests."""
    home.mkdir(parents=True)

    async def open_store() -> SQLiteEventStore:
        return await SQLiteEventStore.open(home / "store.db", synchronous="OFF", offload=inline, ttl_s=600.0)

    store = trio.run(open_store)
    stage = Stage(home, store, scenario, plan)
    try:
        yield stage
    finally:
        stage.close()
        trio.run(store.close)


def passing_run(home: Path) -> Path:
    """One kill, one pause of the server, frames recorded; everything in order."""
    plan = "worker#1:after_store@2=kill; nats:worker#2.before_ack@1=pause(0.4)"
    with staged(home, "order flow", plan) as stage:
        trio.run(_play, stage, True)
        ids = [f"G{n}" for n in range(1, 10)]
        judgements = [judgement(id_, image, final=image == 2) for image in (1, 2) for id_ in ids]
        receipts = [{"rule": "worker#1:after_store@2=kill", "pid": 100, "status": -9}]
        stage.judged("pass", judgements, fired=plan.split("; "), receipts=receipts)
    (home / "worker-1.log").write_text("\x1b[32mINFO\x1b[0m worker\n")
    (home / "worker-2.log").write_text("INFO serving\nINFO drained\n")
    return home


def failing_run(home: Path) -> Path:
    """The successor publishes nothing of what its predecessor left: an event is missing at the end.

    Keys, payloads, findings, the plan's unhit rule, the scenario's name and a log hold what is hostile.
    """
    rule = "worker#1:after_store@2=kill"
    with staged(home, f"order {HOSTILE}", f"{rule}; worker#2:in_recovery@9=kill") as stage:
        trio.run(_play, stage, False)
        finding = {"what": "output 2 (c2_added) is not in MESHFORGE_EVENTS", "keys": ["k2"], "scope": str(SCOPE)}
        odd = {"what": f"got {HOSTILE}", "keys": [HOSTILE, "x" * 300], "scope": ""}
        judgements = [
            judgement("G1", 1),
            judgement("G4", 1, examined=3),
            judgement("G1", 2, final=True, findings=[odd, "told as text alone"]),
            judgement("G4", 2, final=True, findings=[finding]),
            judgement("G10", 2, final=True, examined=0),
            judgement("ledger", 2, final=True, failure=f"KeyError: {HOSTILE}"),
        ]
        unhit = ["worker#2:in_recovery@9=kill"]
        reasons = [f"never fired: {unhit[0]}"]
        stage.judged("violation", judgements, fired=[rule], unhit=unhit, reasons=reasons, minimal=rule)
    (home / "worker-1.log").write_text(f"</pre>{HOSTILE}\n")
    return home


async def _play(stage: Stage, sound: bool) -> None:
    stage.tell("nats", "up")
    stage.tell("client", "listening")
    first, second = stage.send(1, entity_id="a"), stage.send(2, entity_id="a")
    third = stage.send(3, entity_id="b", **({} if sound else {"idempotency_key": HOSTILE[:256]}))
    if not sound:
        stage.send(4, idempotency_key="x" * 300)
    stage.wait(800)
    await stage.start("worker#1", 100)
    stage.points("worker#1", "after_recovery")
    mark = stage.publish("worker#1", first, await stage.decide("worker#1", first))
    left = await stage.decide("worker#1", second, mark)
    stage.tell("worker#1", "fault", rule="worker#1:after_store@2=kill")
    stage.wait(3)
    stage.tell("worker#1", "exit", status=-9)
    await stage.image(final=False)
    await stage.start("worker#2", 101)
    if sound:
        stage.points("worker#2", "in_recovery")
        stage.streams.put(EVENTS, left.subject, left.msg_id, left.body)
        stage.tell("client", "heard", subject=left.subject, msg_id=left.msg_id, body=left.body.decode())
    stage.streams.ack(2)
    stage.points("worker#2", "after_recovery")
    if sound:
        stage.tell("proxy", "frame", frame="delivery", conn=1, bytes=90, subject=third.subject, id="c3", seq=3)
    output = await stage.decide("worker#2", third)
    if sound:
        frame = {"subject": output.subject, "msg_id": output.msg_id, "id": output.event_id}
        stage.tell("proxy", "frame", frame="publish", conn=1, bytes=120, **frame)
        stage.tell("worker#2", "fault", rule="nats:worker#2.before_ack@1=pause(0.4)")
        stage.wait(400)
        stage.tell("nats", "healed", rule="nats:worker#2.before_ack@1=pause(0.4)")
    stage.publish("worker#2", third, output)
    stage.tell("harness", "drained")
    stage.tell("worker#2", "exit", status=0)
    await stage.image(final=True)


def big_run(home: Path, commands: int) -> Path:
    """A long history, ten records to a command, without images."""
    with staged(home, "big", "worker#1:after_store@7=kill") as stage:
        stage.tell("worker#1", "spawn", pid=7)
        for number in range(1, commands + 1):
            sent = stage.send(number, entity_id=f"e{number % 7}")
            stage.wait(5 + number % 40 if number % 9 == 0 else 0)
            stage.points("worker#1", "received")
            call = {"scope": str(SCOPE), "key": sent.key, "id": sent.command.id, "action": "add", "entity": "e"}
            stage.tell("worker#1", "call", **call, version=0, before="0")
            stage.tell("worker#1", "decided", scope=str(SCOPE), key=sent.key, digest="0")
            stage.points("worker#1", *_TURN_BEFORE, "before_publish", "in_publish")
            if number == 7:
                stage.tell("worker#1", "fault", rule="worker#1:after_store@7=kill")
        stage.tell("worker#1", "exit", status=-9)
        stage.judged("inconclusive", [], reasons=["there is no image of the end"])
    return home
