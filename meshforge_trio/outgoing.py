"""Commands on their way out: what a caller may say of one, and what goes on the wire, checked as the runtime will."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, TypedDict

from meshforge_trio.broker.port import Message
from meshforge_trio.codec import Sealer
from meshforge_trio.envelope import CommandEnvelope, decode_command, encode, traceparent
from meshforge_trio.errors import Poison
from meshforge_trio.intake import OWN_PREFIXES
from meshforge_trio.signing import Signer
from meshforge_trio.subjects import Scope, command_subject

__all__ = ["CommandFields", "as_message", "named", "windows"]

_WINDOW: Final = 1024
_WINDOW_BYTES: Final = 4 << 20


class CommandFields(TypedDict, total=False):
    """What a command may have beside agent, action and payload."""

    id: str
    idempotency_key: str
    entity_id: str | None
    expected_version: int | None
    resource_id: str | None
    fencing_token: int | None
    trace_id: str | None
    correlation_id: str | None


def named(command: CommandEnvelope) -> str:
    """A command as errors tell of it."""
    return f"command {command.id} ({command.agent} {command.action}, key {command.idempotency_key})"


def as_message(command: CommandEnvelope, signer: Signer | None = None, sealer: Sealer | None = None) -> Message:
    """The command as it is published, checked by reading it as the runtime will.

    Raises:
        Poison: the runtime would not take it.
        Erased: the keys to seal it with were destroyed.
        Misconfigured: they cannot be read.
    """
    scope = Scope.checked(command.tenant, command.workspace, command.agent)
    key = command.idempotency_key
    if key is not None and key.startswith(OWN_PREFIXES):
        raise Poison(
            f"idempotency_key may not begin with {' or '.join(OWN_PREFIXES)}: the runtime uses these",
            code="bad_idempotency_key",
            field="idempotency_key",
        )
    body = encode(command)
    decode_command(body)
    if sealer is not None:
        sealer.follow()
        body = encode(sealer.sealed(command))
    subject = command_subject(scope, command.action)
    headers = {} if signer is None else dict(signer.headers(subject, body))
    if command.trace_id is not None and command.span_id is not None:
        headers["traceparent"] = traceparent(command.trace_id, command.span_id)
    return Message(subject, body, command.id, headers)


def windows(
    commands: Sequence[CommandEnvelope], signer: Signer | None = None, sealer: Sealer | None = None
) -> Iterator[Sequence[Message]]:
    """The messages of `commands`, in pieces that are bounded in number and bytes."""
    window: list[Message] = []
    size = 0
    for command in commands:
        message = as_message(command, signer, sealer)
        if window and (len(window) == _WINDOW or size + len(message.body) > _WINDOW_BYTES):
            yield window
            window, size = [], 0
        window.append(message)
        size += len(message.body)
    if window:
        yield window
