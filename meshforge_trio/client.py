"""The client of a mesh: sends commands, awaits their answers, follows events.

    async with open_client(url, tenant="acme", workspace="shop", principal=SecurityContext("kim", "user")) as mesh:
        answer = await mesh.call("order", "create", {"items": 3}, entity_id="o-1")

What it may do over and over rests on two names. A try that got no PubAck is repeated under the same *id*, which the
stream drops if it has it. A call that got no answer is sent again under a new id with the same *key*, for which the
runtime repeats the first answer. A deadline that passes therefore means `OutcomeUnknown`, never "failed".
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Container, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final, Unpack

import attrs
import trio

from meshforge_trio.answers import (
    Answers,
    CommandDead,
    CommandFailed,
    CommandRefused,
    Conflict,
    OutcomeUnknown,
    SecurityViolation,
    Sent,
    Waiter,
    raise_if_failed,
)
from meshforge_trio.broker.bridge import ConnectOptions, connect
from meshforge_trio.broker.port import Message, PubAck
from meshforge_trio.codec import Codecs, Sealer
from meshforge_trio.envelope import CommandEnvelope, EventEnvelope, JsonObject, SecurityContext
from meshforge_trio.errors import Misconfigured, SessionLost
from meshforge_trio.feed import EventFeed
from meshforge_trio.ids import uuid7
from meshforge_trio.lock_client import HeldLock, LockDenied, LockLost, hold
from meshforge_trio.outgoing import CommandFields, as_message, named, windows
from meshforge_trio.policy import backoff
from meshforge_trio.revise import revise
from meshforge_trio.signing import Signer
from meshforge_trio.subjects import (
    COMMANDS,
    EVENTS,
    Scope,
    check_token,
    event_filter,
    event_subject,
    violation_subject,
)
from meshforge_trio.uplink import Uplink, Wire, running_loop

__all__ = [
    "CommandDead",
    "CommandFailed",
    "CommandFields",
    "CommandRefused",
    "Conflict",
    "HeldLock",
    "LockDenied",
    "LockLost",
    "MeshClient",
    "OutcomeUnknown",
    "SecurityViolation",
    "Sent",
    "open_client",
]

_BACKOFF_MAX_S: Final = 2.0
_RESEND_MAX_S: Final = 30.0


@asynccontextmanager
async def open_client(
    server: str | ConnectOptions,
    *,
    tenant: str,
    workspace: str,
    principal: SecurityContext,
    signer: Signer | None = None,
    codecs: Codecs | None = None,
) -> AsyncIterator[MeshClient]:
    """A client of one workspace, with a connection of its own; `server` is a URL or how to dial in full.

    `signer` signs its commands, where they have to be. With a codec of the tenant in `codecs` (`keyring.KeyRings`, say)
    it seals what it sends and opens what it gets; without one it gets sealed payloads as they are.

    Runs the loop of the bridge unless one is running. Nothing it started outlives the block; an exception leaves the
    block as it was raised, in no group.

    Raises:
        SessionLost: the server cannot be reached. (Once it was, the client dials again by itself.)
        Misconfigured: an unsuitable URL or refused credentials; keys that cannot be read.
        Poison: tenant or workspace is no subject token.
    """
    options = ConnectOptions(urls=(server,), name="meshforge-client") if isinstance(server, str) else server
    check_token(tenant, "tenant")
    check_token(workspace, "workspace")
    sealer = Sealer.of(codecs, tenant)
    raised: Exception | None = None
    async with running_loop(), trio.open_nursery() as nursery:
        try:
            uplink = Uplink(options)
            nursery.start_soon(uplink.keep, await connect(options))
            yield MeshClient(uplink, tenant, workspace, principal, signer, sealer)
        except Exception as error:
            # Raised below, where no nursery of ours can wrap it. A cancellation is no `Exception` and passes.
            raised = error
        finally:
            nursery.cancel_scope.cancel()
    if raised is not None:
        raise raised


class MeshClient:
    """One tenant's workspace as one principal sees it. Made by `open_client`; any number of tasks may share it."""

    def __init__(
        self,
        uplink: Uplink,
        tenant: str,
        workspace: str,
        principal: SecurityContext,
        signer: Signer | None = None,
        sealer: Sealer | None = None,
    ) -> None:
        self._uplink = uplink
        self._tenant = tenant
        self._workspace = workspace
        self._principal = principal
        self._signer = signer
        self._sealer = sealer
        self._answers = Answers(sealer)

    @property
    def waiting(self) -> int:
        """Commands whose answers are being waited for, each re-send counted."""
        return len(self._answers)

    def command(
        self, agent: str, action: str, payload: JsonObject | None = None, **fields: Unpack[CommandFields]
    ) -> CommandEnvelope:
        """A command from this principal; id and key are new UUIDs of version 7 unless given."""
        chosen: CommandFields = {"id": uuid7(), "idempotency_key": uuid7(), **fields}
        return CommandEnvelope(
            tenant=self._tenant,
            workspace=self._workspace,
            agent=agent,
            action=action,
            payload={} if payload is None else payload,
            security_context=self._principal,
            span_id=secrets.token_hex(8) if fields.get("trace_id") is not None else None,
            **chosen,
        )

    # -- send --------------------------------------------------------------------------------------------------

    async def send(
        self,
        agent: str,
        action: str,
        payload: JsonObject | None = None,
        *,
        timeout_s: float = 10.0,
        **fields: Unpack[CommandFields],
    ) -> Sent:
        """Have the command stream store a command. Returns when it has; what the agent says to it is not awaited.

        Raises:
            Poison: the command is malformed or too large; it names the field, and nothing was sent.
            OutcomeUnknown: no PubAck within `timeout_s`, over however many connections.
            Misconfigured: there is no command stream.
        """
        command = self.command(agent, action, payload, **fields)
        (sent,) = await self.send_many([command], timeout_s=timeout_s)
        return sent

    async def send_many(self, commands: Sequence[CommandEnvelope], *, timeout_s: float = 60.0) -> Sequence[Sent]:
        """Have the command stream store a batch, in order; at most a window of it is under way.

        The envelopes go out as they are: `command` makes one with this client's scope and principal.

        Raises:
            Poison: a command is malformed or too large; windows before its own are stored.
            OutcomeUnknown: not all PubAcks came within `timeout_s`; its `confirmed` are those that did, and it is
                about the first command without one.
            Misconfigured: there is no command stream.
        """
        done: list[Sent] = []
        with trio.move_on_after(timeout_s):
            for window in windows(commands, self._signer, self._sealer):
                acks = await self._store(window)
                for command, ack in zip(commands[len(done) : len(done) + len(acks)], acks, strict=True):
                    done.append(Sent(command.id, command.idempotency_key, ack.seq, ack.duplicate))
        if len(done) == len(commands):
            return done
        first = commands[len(done)]
        what = f"{len(commands) - len(done)} of {len(commands)} commands from {first.id}" if done else named(first)
        raise self._unknown(f"no PubAck for {what} within {timeout_s:g} s", first, done)

    async def _store(self, messages: Sequence[Message]) -> Sequence[PubAck]:
        """Try until all are stored, always under the same ids, so that the stream takes each once."""
        waits = backoff(_BACKOFF_MAX_S)
        while True:
            wire = await self._uplink.wire()
            try:
                return await wire.bus.publish(messages)
            except SessionLost as lost:
                await self._after_failure(wire, lost)
            await trio.sleep(next(waits))

    async def _after_failure(self, wire: Wire, lost: SessionLost) -> None:
        """Return if another try may do.

        Raises:
            Misconfigured: there is no command stream.
        """
        self._uplink.last_failure = str(lost)
        if wire.connection.lost is not None:
            return
        try:
            await wire.broker.stream_facts(COMMANDS)
        except SessionLost as silence:
            self._uplink.last_failure = str(silence)
        except Misconfigured as error:
            raise Misconfigured(
                f"{error} on this server, so no command can be stored: start the runtime (`meshforge run`), which "
                "creates it, or check the URL and the account"
            ) from error

    def _unknown(self, what: str, command: CommandEnvelope, confirmed: Sequence[Sent] = ()) -> OutcomeUnknown:
        last = f" Last trouble: {self._uplink.last_failure}." if self._uplink.last_failure else ""
        return OutcomeUnknown(
            f"{what}; its outcome is unknown, it may still take effect.{last} Sending it again with the "
            f"same idempotency_key {command.idempotency_key!r} is safe",
            command,
            confirmed,
        )

    # -- call --------------------------------------------------------------------------------------------------

    async def call(
        self,
        agent: str,
        action: str,
        payload: JsonObject | None = None,
        *,
        timeout_s: float = 30.0,
        resend_s: float = 2.0,
        raise_for_refusal: bool = False,
        answers: Container[str] | None = None,
        **fields: Unpack[CommandFields],
    ) -> EventEnvelope:
        """Send a command or query and return the first event that answers it, of the names `answers` if given.

        A lost connection, and `resend_s` without an answer (then twice that, ...), send it again under a new id with
        the same key. `raise_for_refusal` raises a negative answer as a `CommandFailed` instead of returning it.

        Raises:
            Poison, Misconfigured: as `send`.
            OutcomeUnknown: no answer within `timeout_s`.
            Conflict, CommandRefused, CommandDead, SecurityViolation: with `raise_for_refusal`.
        """
        command = self.command(agent, action, payload, **fields)
        message = as_message(command, self._signer, self._sealer)
        with self._answers.expect(command, answers) as waiter:
            with trio.move_on_after(timeout_s):
                await self._ask(waiter, message, resend_s)
            answer = waiter.answer
        if answer is None:
            raise self._unknown(f"no answer to {named(command)} within {timeout_s:g} s", command)
        if raise_for_refusal:
            raise_if_failed(answer)
        return answer

    async def _ask(self, waiter: Waiter, message: Message, pause_s: float) -> None:
        """Send until answered, each time under a new id: a second delivery of one id would not be echoed."""
        waits = backoff(_BACKOFF_MAX_S)
        while True:
            wire = await self._uplink.wire()
            try:
                with trio.move_on_after(pause_s):
                    await self._listen(wire, waiter.command.agent)
                    await wire.bus.publish([message])
                    await self._answered(wire, waiter)
            except SessionLost as lost:
                await self._after_failure(wire, lost)
                await trio.sleep(next(waits))
            else:
                pause_s = min(pause_s * 2, _RESEND_MAX_S)
            if waiter.answer is not None:
                return
            again = attrs.evolve(waiter.command, id=uuid7())
            self._answers.also(waiter, again.id)
            message = as_message(again, self._signer, self._sealer)

    async def _listen(self, wire: Wire, agent: str) -> None:
        """Have the answers of `agent` come here, before anything is asked."""
        await wire.listen(violation_subject(self._tenant, self._workspace), self._answers.receive)
        await wire.listen(event_filter(Scope(self._tenant, self._workspace, agent)), self._answers.receive)

    async def _answered(self, wire: Wire, waiter: Waiter) -> None:
        """Wait for the answer, or for the end of the wire."""
        forget = wire.connection.on_lost(waiter.changed.set)
        try:
            wire.connection.check()
            await waiter.changed.wait()
        finally:
            forget()
        if waiter.answer is None:
            waiter.changed = trio.Event()
            wire.connection.check()

    async def revise(
        self,
        agent: str,
        action: str,
        entity_id: str,
        change: Callable[[EventEnvelope], JsonObject | None],
        *,
        read: str = "get",
        tries: int = 10,
        timeout_s: float = 30.0,
    ) -> EventEnvelope | None:
        """Change an entity as it stands: read it, decide what to send, send it unless somebody else was faster.

        `change` gets the answer to the query `read`, which tells the `entity_version`, and returns the payload of
        `action`, or `None` to leave it; it is asked again after each conflict, `tries` times at most. Returns the
        answer.

        Raises:
            Conflict: somebody else was faster `tries` times.
            CommandRefused, CommandDead, SecurityViolation: the answer says so.
            OutcomeUnknown: no answer within `timeout_s`; the command may still take effect.
        """
        return await revise(self, agent, action, entity_id, change, read=read, tries=tries, timeout_s=timeout_s)

    # -- locks -------------------------------------------------------------------------------------------------

    def lock(
        self, resource_id: str, *, ttl_s: float = 30.0, owner_id: str | None = None, wait_s: float = 0.0
    ) -> AbstractAsyncContextManager[HeldLock]:
        """Hold the lock of a resource within a block: see `lock_client.hold`."""
        return hold(
            self,
            resource_id,
            ttl_s=ttl_s,
            owner_id=owner_id or f"{self._principal.principal_id}~{uuid7()}",
            wait_s=wait_s,
        )

    # -- events ------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def events(
        self,
        agent: str | None = None,
        name: str | None = None,
        *,
        from_start: bool = False,
        after_seq: int | None = None,
        timeout_s: float = 10.0,
    ) -> AsyncIterator[EventFeed]:
        """Events of the workspace in stream order, each once: those after this moment, after `after_seq`, or all.

        Without `agent` all agents' and violations; without `name` all names. `timeout_s` is for finding the place to
        begin; the iterator itself waits as long as it takes.

            async with mesh.events("order") as feed:
                async for event in feed: ...

        Raises:
            SessionLost: the stream could not be asked in time.
            Misconfigured: there is no event stream.
        """
        scope = Scope(self._tenant, self._workspace, "*" if agent is None else check_token(agent, "agent"))
        subject = event_subject(scope, ">" if name is None else check_token(name, "name"))
        if after_seq is None:
            after_seq = 0 if from_start else await self._last_event_seq(timeout_s)
        feed = EventFeed(self._uplink, self._tenant, self._workspace, subject, after_seq, self._sealer)
        try:
            yield feed
        finally:
            feed.close()

    async def _last_event_seq(self, timeout_s: float) -> int:
        waits = backoff(_BACKOFF_MAX_S)
        with trio.move_on_after(timeout_s):
            while True:
                wire = await self._uplink.wire()
                try:
                    return (await wire.broker.stream_facts(EVENTS)).last_seq
                except SessionLost as lost:
                    self._uplink.last_failure = str(lost)
                await trio.sleep(next(waits))
        raise SessionLost(f"{EVENTS} did not answer within {timeout_s:g} s: {self._uplink.last_failure}")
