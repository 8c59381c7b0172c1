"""Workloads: the commands of a run, with what is known about them beforehand. Ids carry their origin."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Final

from chaos.evidence import Sent
from meshforge_trio.envelope import CommandEnvelope, JsonObject, SecurityContext, encode
from meshforge_trio.subjects import Scope, command_subject

__all__ = ["GARBAGE", "command", "every_path", "garbage_key"]

_USER: Final = SecurityContext("tester", "user")
#: A body that is no envelope: what JetStream stores when a PubAck is misdirected into the command stream.
GARBAGE: Final = b'{"stream":"MESHFORGE_COMMANDS","seq":2}'


def command(scope: Scope, action: str, number: int, payload: JsonObject | None = None, **more: Any) -> CommandEnvelope:
    """A command with id `c<number>` and, unless said otherwise, key `k<number>`."""
    fields: dict[str, Any] = {"idempotency_key": f"k{number}", "ts": float(number), **more}
    return CommandEnvelope(
        id=f"c{number}",
        tenant=scope.tenant,
        workspace=scope.workspace,
        agent=scope.agent,
        action=action,
        payload=payload if payload is not None else {},
        security_context=_USER,
        **fields,
    )


def every_path(scope: Scope) -> Sequence[Sent]:
    """A dozen commands to `chaos.agents` that between them meet every point of the protocol."""

    def amount(n: int, number: int) -> JsonObject:
        return {"amount": n, "tag": f"k{number}"}

    return [
        Sent(command(scope, "add", 1, amount(5, 1), entity_id="a"), expect=("decided",)),
        Sent(command(scope, "add", 2, amount(7, 2), entity_id="b"), expect=("decided",)),
        Sent(command(scope, "add", 3, amount(1, 3), entity_id="a", expected_version=1), expect=("decided",)),
        Sent(command(scope, "add", 4, amount(1, 4), entity_id="a", expected_version=1), expect=("conflict",)),
        # The first one again, as a client that never saw its answer sends it: a new id, the same key.
        Sent(command(scope, "add", 5, amount(5, 1), entity_id="a", idempotency_key="k1"), expect=("decided",)),
        Sent(command(scope, "take", 6, amount(100, 6), entity_id="b"), expect=("refused",)),
        Sent(command(scope, "explode", 7, amount(0, 7), entity_id="c"), expect=("dead",)),
        # Waits behind the exploding one, and must come through untouched.
        Sent(command(scope, "add", 8, amount(2, 8), entity_id="c"), expect=("decided",)),
        Sent(command(scope, "roll", 9, amount(0, 9), entity_id="a"), expect=("decided",)),
        Sent(command(scope, "tell", 10, amount(0, 10), entity_id="b"), expect=("decided",)),
        Sent(command(scope, "get", 11, entity_id="a", idempotency_key=None), query=True),
        # The same key for something else.
        Sent(command(scope, "add", 12, amount(9, 12), entity_id="b", idempotency_key="k2")),
    ]


def garbage_key(subject: str, body: bytes, headers: bytes) -> str:
    """The name the store knows an unreadable message by."""
    total = hashlib.sha256()
    for part in (subject.encode(), headers, body):
        total.update(len(part).to_bytes(8, "big") + part)
    return f"raw:{total.hexdigest()}"


def wire(sent: Sent) -> tuple[str, bytes]:
    """Subject and body of a command."""
    scope = Scope(sent.command.tenant, sent.command.workspace, sent.command.agent)
    return command_subject(scope, sent.command.action), encode(sent.command)
