"""A runtime on paper: the real decisions, over a store, streams and a history that are lists.

It does what the protocol does, in that order, one step at a time, and dies where it is told to. So the evidence it
leaves has the true shapes, and whatever a test then changes in it is the only thing that is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

from chaos.evidence import Evidence, Sent, dumped_body
from chaos.worker import RecordedAgent
from chaos.workload import command, garbage_key
from meshforge_trio.agent import AgentAdapter
from meshforge_trio.broker.port import Delivery, Message, PubAck, StoredMessage, StreamFacts
from meshforge_trio.decide import Decider
from meshforge_trio.drafts import Drafter, as_message
from meshforge_trio.entities import Entities
from meshforge_trio.intake import Incoming, read_delivery
from meshforge_trio.plan import Plan
from meshforge_trio.policy import RetryPolicy
from meshforge_trio.session import moved
from meshforge_trio.store.port import Attempt, Commit, Mark, Output
from meshforge_trio.subjects import COMMANDS, EVENTS, FAILED, Scope, parse_subject

from .desk import AGENTS, Desk, Notebook, all_rows

__all__ = ["AUDIT", "COUNTER", "FRAGILE", "OTHER", "STAGES", "Paper", "Stage"]

COUNTER: Final = Scope("default", "demo", "counter")
AUDIT: Final = Scope("default", "demo", "audit")
#: Another tenant with the same agent.
OTHER: Final = Scope("acme", "demo", "counter")
OTHER_AUDIT: Final = Scope("acme", "demo", "audit")
#: An agent that fails at a question and says nothing to an event.
FRAGILE: Final = Scope("default", "demo", "fragile")

#: Where a turn may be killed: `counted` is between the counting of an attempt and the call, `published` after the
#: first output.
Stage = Literal["counted", "received", "decided", "committed", "published", "echoed", "acked"]
STAGES: Final[tuple[Stage, ...]] = ("counted", "received", "decided", "committed", "published", "echoed", "acked")


class Paper:
    """A run: clients that send, one worker after another, scopes that it serves in turn."""

    def __init__(
        self,
        scopes: Sequence[Scope] = (COUNTER, AUDIT, OTHER, OTHER_AUDIT),
        limit: int = 3,
        body_max: int = 100_000,
    ) -> None:
        self.limit = limit
        self.body_max = body_max
        self.policy = RetryPolicy(limit=limit, delays_s=(0.5,))
        self.history = Notebook()
        self.desks = {scope: Desk(scope, self._recorded(scope), self.policy) for scope in scopes}
        self.sent: list[Sent] = []
        self.commands: dict[int, StoredMessage] = {}
        self.streams: dict[str, list[StoredMessage]] = {EVENTS: [], FAILED: []}
        self.seqs = 0
        self.once: set[str] = set()
        self.now = 1000.0
        self.worker = 1
        self.serving = False
        self._copy: Any = None
        self.history.write("header", version=1, scenario="paper", plan="", app="paper")
        self.history.write("listening", actor="client")
        self._spawn()

    def _recorded(self, scope: Scope) -> AgentAdapter[Any]:
        return RecordedAgent(AGENTS[scope.agent], self.history)

    def _spawn(self) -> None:
        self.history.actor = f"worker#{self.worker}"
        self.history.write("spawn", pid=self.worker)

    def join(self, scope: Scope) -> None:
        """A scope begins: its first mark says where the streams stand before it ever published."""
        desk = self.desks[scope] = Desk(scope, self._recorded(scope), self.policy)
        stand = [(m[-1].seq, m[-1].msg_id) if m else (0, "") for m in (self.streams[EVENTS], self.streams[FAILED])]
        desk.marks = [Mark(0, *stand[0], *stand[1], 0.0)]
        desk.begin()

    # -- the client --------------------------------------------------------------------------------------------

    def send(self, *sent: Sent) -> None:
        """Store commands in the stream; those of unknown outcome are stored, and the client does not hear of it."""
        for each in sent:
            self.sent.append(each)
            id_ = each.command.id
            self.history.write("send", actor="client", id=id_, key=each.key, subject=each.subject, phase=each.phase)
            seq = self._store_command(each.subject, each.body, f"{each.scope}/{id_}")
            if each.outcome == "ok":
                self.history.write("ok", actor="client", id=id_, seq=seq)
            else:
                self.history.write("unknown", actor="client", id=id_, reason="no answer")

    def send_raw(self, subject: str, body: bytes) -> None:
        """Something that is no envelope; the store knows it by its bytes."""
        headers = headers_of("raw")
        key = garbage_key(subject, body, headers)
        scope = parse_subject(subject).scope
        self.sent.append(Sent(command(scope, "add", len(self.sent), id=f"raw{len(self.sent)}"), key=key))
        id_ = self.sent[-1].command.id
        self.history.write("send", actor="client", id=id_, key=key, subject=subject, phase="main")
        self.history.write("ok", actor="client", id=id_, seq=self._store_command(subject, body, "raw"))

    def redrive(self, scope: Scope, key: str) -> None:
        """What an operator does: forget that it is dead."""
        desk = self.desks[scope]
        desk.generations[key] = desk.keys.pop(key).generation + 1

    def _store_command(self, subject: str, body: bytes, msg_id: str) -> int:
        self.seqs += 1
        self.commands[self.seqs] = StoredMessage(self.seqs, subject, msg_id, body)
        return self.seqs

    # -- the worker --------------------------------------------------------------------------------------------

    def pending(self, desk: Desk) -> Sequence[Delivery]:
        """What a pull would bring: commands of the scope, and events it listens to."""
        found = [m for m in self.commands.values() if parse_subject(m.subject).scope == desk.scope]
        arrived = [_delivery(COMMANDS, m) for m in found]
        heard = {(subscription.agent, subscription.name) for subscription in desk.agent.subscriptions}
        for message in self.streams[EVENTS]:
            address = parse_subject(message.subject) if ".security." not in message.subject else None
            if address is None or message.seq in desk.heard_events:
                continue
            near = (address.scope.tenant, address.scope.workspace) == (desk.scope.tenant, desk.scope.workspace)
            if near and (address.scope.agent, address.verb) in heard:
                arrived.append(_delivery(EVENTS, message))
        return arrived

    def turn(self, scope: Scope, size: int = 64, dies: Stage | None = None) -> bool:
        """Decide, commit, publish, answer and ACK what has arrived, as far as the worker lives; whether there was any.

        A command that may have died in a handler runs alone.
        """
        if not self.serving:
            self.recover()
        desk = self.desks[scope]
        self.now += 1.0
        batch: list[Incoming] = []
        for delivery in self.pending(desk)[:size]:
            incoming = read_delivery(delivery, desk.scope, desk.agent)
            incoming.suspect = self._suspect(desk, incoming)
            alone = incoming.suspect and not self._must_not_run(desk, incoming)
            if alone and batch:
                break
            batch.append(incoming)
            if alone:
                incoming.alone = True
                break
        if not batch:
            return False
        desk.in_hand |= {(one.delivery.stream, one.delivery.stream_seq) for one in batch}
        if batch[0].alone:
            self._count(desk, batch[0])
            if dies == "counted":
                self.kill("in_attempt")
                return True
        return self._decide(desk, batch, dies)

    def _suspect(self, desk: Desk, one: Incoming) -> bool:
        maybe = (one.delivery.stream, one.delivery.stream_seq) in desk.in_hand or one.key in desk.attempts
        return maybe and one.fault is None and one.key not in desk.keys

    def _must_not_run(self, desk: Desk, one: Incoming) -> bool:
        row = desk.waiting.attempt(one.key)
        exhausted = row is not None and self.policy.exhausted(row.attempts)
        return exhausted or desk.waiting.delay_s(one, self.now) is not None

    def _count(self, desk: Desk, one: Incoming) -> None:
        before = desk.waiting.attempt(one.key)
        made = 1 if before is None else before.attempts + 1
        row = Attempt(one.key, None if one.query else one.entity_id, made, 0.0, self.now, self.now, "")
        self.history.write("point", point="before_attempt", nth=1)
        desk.commit(Commit(1, attempts=[row]))
        desk.waiting.fail(row, None)
        self.history.write("point", point="in_attempt", nth=1)

    def _decide(self, desk: Desk, batch: Sequence[Incoming], dies: Stage | None) -> bool:
        if dies == "received":
            self.kill("received")
            return True
        entities = Entities(desk.cache, desk.agent, desk.heads)
        drafter = Drafter(desk.scope, self.body_max)
        decider = Decider(desk.agent, drafter, self.policy, entities, desk.waiting, desk.reading(), self.now)
        plan = _run(decider.decide(batch, 1, len(desk.outputs) + 1))
        if dies == "decided":
            self.kill("before_store")
            return True
        if plan.writes:
            desk.commit(plan.commit)
        entities.keep()
        for key in plan.commit.ended:
            desk.waiting.end(key)
        for verdict in plan.verdicts:
            if verdict.attempt is not None:
                desk.waiting.fail(verdict.attempt, verdict.incoming)
        if dies == "committed":
            self.kill("after_store")
            return True
        return self._send_out(desk, plan, dies)

    def _send_out(self, desk: Desk, plan: Plan, dies: Stage | None) -> bool:
        outputs = plan.commit.outputs
        if dies == "published" and outputs:
            self._publish(desk, outputs[0])
            self.kill("in_publish")
            return True
        acks = [self._publish(desk, output) for output in outputs]
        if outputs:
            desk.mark = moved(desk.mark, outputs, acks, self.now)
        for message in (*plan.echoes, *plan.answers):
            self._hear(message)
        if dies == "echoed":
            self.kill("before_ack")
            return True
        for verdict in plan.verdicts:
            delivery = verdict.incoming.delivery
            desk.in_hand.discard((delivery.stream, delivery.stream_seq))
            if verdict.wait_s is not None:
                desk.waiting.park(verdict.incoming)
            elif delivery.stream == COMMANDS:
                desk.waiting.unpark(verdict.incoming)
                del self.commands[delivery.stream_seq]
            else:
                desk.waiting.unpark(verdict.incoming)
                desk.heard_events.add(delivery.stream_seq)
        if dies is not None:
            self.kill("after_ack")
        return True

    def _publish(self, desk: Desk, output: Output) -> PubAck:
        """Store it, once within the window, and have it heard."""
        if output.kind == "command":
            if output.msg_id not in self.once:
                self.once.add(output.msg_id)
                self._store_command(output.subject, output.body, output.msg_id)
            return PubAck(COMMANDS, 0)
        stream = FAILED if output.kind == "dead" else EVENTS
        messages = self.streams[stream]
        messages.append(StoredMessage(len(messages) + 1, output.subject, output.msg_id, output.body))
        if stream == EVENTS:
            self._hear(as_message(output))
        return PubAck(stream, len(messages))

    def _hear(self, message: Message) -> None:
        told = dumped_body(message.body)
        self.history.write("heard", actor="client", subject=message.subject, msg_id=message.msg_id, **told)

    def kill(self, point: str, action: Literal["kill", "stop"] = "kill") -> None:
        """The worker dies at a point, or is stopped for good; a successor is there, and has not recovered."""
        self.history.write("point", point=point, nth=1)
        self.history.write("fault", rule=f"worker#{self.worker}:{point}@1={action}")
        if action == "kill":
            self.history.write("exit", status=-9)
        self.corpse = self.image(final=False)
        self.worker += 1
        self._spawn()
        self._new_session()

    def _new_session(self) -> None:
        self.serving = False
        for desk in self.desks.values():
            desk.begin(self._confirmed(desk))

    def _confirmed(self, desk: Desk) -> Mark | None:
        """The newest mark that both streams confirm; one written over an empty stream only while it is the newest."""
        ids = {stream: {m.seq: m.msg_id for m in messages} for stream, messages in self.streams.items()}
        for mark in reversed(desk.marks):
            told = ((EVENTS, mark.event_seq, mark.event_id), (FAILED, mark.failed_seq, mark.failed_id))
            held = all(seq == 0 or ids[stream].get(seq) == msg_id for stream, seq, msg_id in told)
            if held and (mark.event_seq or mark.n == desk.marks[-1].n):
                return mark
        return None

    def copy(self) -> None:
        """Take a copy of all that the broker has."""
        self.history.write("fault", rule="nats:received@1=copy")
        heard = {scope: set(desk.heard_events) for scope, desk in self.desks.items()}
        streams = {stream: list(messages) for stream, messages in self.streams.items()}
        self._copy = (dict(self.commands), streams, self.seqs, set(self.once), heard)

    def roll_back(self) -> bool:
        """Put the copy back under the living worker; false, and nothing done, if the runtime would refuse it."""
        now = (self.commands, self.streams, self.seqs, self.once)
        if self._copy is None:
            return False
        commands, streams, self.seqs, once, heard = self._copy
        self.commands, self.once = dict(commands), set(once)
        self.streams = {stream: list(messages) for stream, messages in streams.items()}
        if any(self._confirmed(desk) is None for desk in self.desks.values()):
            self.commands, self.streams, self.seqs, self.once = now
            return False
        self.history.write("fault", rule="nats:received@2=rollback")
        self.history.write("down", actor="nats", why="rollback")
        self.history.write("up", actor="nats")
        for scope, desk in self.desks.items():
            desk.heard_events = set(heard[scope])
        self._new_session()
        return True

    def recover(self, dies_after: int = -1) -> None:
        """What the store has and the streams lack is published, in order; maybe killed after so many."""
        self.serving = True
        for desk in self.desks.values():
            there = {message.msg_id: message for stream in self.streams.values() for message in stream}
            after = desk.outputs[desk.mark.n :]
            acks = []
            for output in after:
                message = there.get(output.msg_id)
                if message is None:
                    if dies_after == 0:
                        self.kill("in_recovery")
                        return
                    dies_after -= 1
                stream = FAILED if output.kind == "dead" else EVENTS
                acks.append(PubAck(stream, message.seq) if message else self._publish(desk, output))
            if after:
                desk.mark = moved(desk.mark, after, acks, self.now)
                desk.marks.append(desk.mark)

    def drain(self) -> Evidence:
        """Serve every scope until nothing is left, end cleanly, and take the image of the end."""
        self.recover()
        while sum(self.turn(scope) for scope in self.desks):
            self.now += 1.0
        for desk in self.desks.values():
            desk.commit(Commit(1))
            desk.record_state()
        self.history.write("exit", status=0)
        self.history.write("drained", actor="harness")
        return self.image(final=True)

    # -- evidence ----------------------------------------------------------------------------------------------

    def image(self, *, final: bool) -> Evidence:
        """All that can be seen of it now."""
        facts = {
            stream: StreamFacts(stream, 1, len(messages), len(messages), 120.0, -1)
            for stream, messages in self.streams.items()
        }
        hashes = {scope: desk.state_hash for scope, desk in self.desks.items() if desk.state_hash}
        return Evidence(
            rows=all_rows(list(self.desks.values())),
            commands=list(self.commands.values()),
            events=list(self.streams[EVENTS]),
            failed=list(self.streams[FAILED]),
            facts=facts,
            sent=list(self.sent),
            final=final,
            history=list(self.history.records),
            limit=self.limit,
            rebuilt={scope: [value, value] for scope, (_, value) in hashes.items()} if final else {},
        )


def headers_of(msg_id: str) -> bytes:
    """The header block of a command."""
    return f"NATS/1.0\r\nNats-Msg-Id: {msg_id}\r\n\r\n".encode()


def _delivery(stream: str, message: StoredMessage) -> Delivery:
    return Delivery(message.subject, headers_of(message.msg_id), message.body, "", stream, message.seq, message.seq, 1)


def _run(coroutine: Any) -> Any:
    """A coroutine that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waits")
