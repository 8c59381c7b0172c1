"""The bytes of outputs: events, records, commands to others, dead letters.

Ids follow from the command alone, so deciding it again gives the same bytes (rule R10): an event's id is
`<command id>_<name>`, a Msg-Id the hash of scope, key, kind, generation and number.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping

import attrs

from meshforge_trio.agent import Send
from meshforge_trio.broker.port import Message
from meshforge_trio.codec import ScopeSealer
from meshforge_trio.envelope import (
    CommandEnvelope,
    EventEnvelope,
    JsonObject,
    SecurityContext,
    canonical,
    encode_fields,
    principal_fields,
    traceparent,
)
from meshforge_trio.errors import Poison
from meshforge_trio.intake import Incoming, unkeyed_hash
from meshforge_trio.security import Violation, as_agent
from meshforge_trio.store.port import Attempt, Kind, Output
from meshforge_trio.subjects import (
    RESERVED_EVENTS,
    Scope,
    check_token,
    command_subject,
    event_subject,
    failed_subject,
    violation_subject,
)

__all__ = ["Cause", "Drafter", "as_message", "check_event_name", "headers_of", "told"]

#: How much of an error's text is stored and published.
_ERROR_LENGTH_MAX = 2000
_ENTITY_LENGTH_MAX = 256
_PRINCIPALS_MAX = 1024
#: Ids longer than this are replaced by their hash, so that a chain of agents cannot outgrow the limit.
_STEM_LENGTH_MAX = 160
_TRACEPARENT = re.compile(rb"traceparent:\s*[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}\s*", re.IGNORECASE)


@attrs.define(eq=False)
class Cause:
    """What every output of one decision takes from its command."""

    key: str
    stem: str
    ts: float
    trace_id: str
    message: CommandEnvelope | EventEnvelope | None
    generation: int = 0
    salt: str = ""
    number: int = 0
    names: dict[str, int] = attrs.field(factory=dict)
    common: JsonObject | None = None


class Drafter:
    """Writes the outputs of one scope. `body_max` is what fits into the broker's messages, in bytes.

    With a `sealer` their payloads are sealed, and so is what dead letters hold.
    """

    def __init__(self, scope: Scope, body_max: int, sealer: ScopeSealer | None = None) -> None:
        self.scope = scope
        self.sealer = sealer
        self._body_max = body_max
        seed = "\0".join((scope.tenant, scope.workspace, scope.agent)).encode()
        self._seed = hashlib.sha256(seed + b"\0")
        self._subjects: dict[str, str] = {}
        self._principals: dict[str | None, JsonObject] = {}
        self._fixed = {"tenant": scope.tenant, "workspace": scope.workspace, "agent": scope.agent}

    def cause(self, incoming: Incoming, now: float, generation: int) -> Cause:
        """Start the outputs of one decision."""
        message = incoming.message
        if message is None:
            return Cause(incoming.key, incoming.key, now, _trace_of(incoming), None, generation)
        stem = message.id
        if len(stem) > _STEM_LENGTH_MAX:
            stem = hashlib.sha256(stem.encode()).hexdigest()
        ts = message.ts if message.ts is not None else now
        trace = message.trace_id if message.trace_id is not None else _trace_of(incoming)
        return Cause(incoming.key, stem, ts, trace, message, generation)

    def msg_id(self, cause: Cause, kind: Kind) -> str:
        """Unique in the stream for ever, and guessable by nobody who does not know the key."""
        total = self._seed.copy()
        total.update(f"{cause.key}\0{kind}\0{cause.generation}\0{cause.number}\0{cause.salt}".encode())
        cause.number += 1
        return total.hexdigest()[:32]

    def event(
        self,
        cause: Cause,
        name: str,
        payload: JsonObject,
        *,
        entity_id: str | None,
        kind: Kind = "event",
        subject: str | None = None,
        version: int | None = None,
        chain: bytes | None = None,
        bare: bool = False,
    ) -> Output:
        """An event or record. With `version`, its chain hash is SHA-256(`chain`, body). `bare` is not sealed: words of
        the runtime alone.

        Raises:
            Poison: the payload is not a JSON object, or too large for the broker.
        """
        _check_payload(payload, name)
        msg_id = self.msg_id(cause, kind)
        count = cause.names[name] = cause.names.get(name, 0) + 1
        event_id = f"{cause.stem}_{name}" if count == 1 else f"{cause.stem}_{name}_{count}"
        fields: JsonObject = {"id": event_id, **self._fixed, "name": name, "idempotency_key": cause.key}
        if entity_id is not None:
            fields["entity_id"] = entity_id
        fields["payload"] = payload if self.sealer is None or bare else self.sealer.payload(fields, payload)
        fields.update(self._common(cause, msg_id))
        body = self._checked(encode_fields(fields), f"event {name!r}")
        if subject is None:
            subject = self._subjects.get(name)
            if subject is None:
                subject = self._subjects[name] = event_subject(self.scope, check_token(name, "event name"))
        link = hashlib.sha256(chain + body).digest() if chain is not None else None
        return Output(0, kind, cause.key, event_id, name, subject, msg_id, body, entity_id, version, link)

    def command(self, cause: Cause, send: Send) -> Output:
        """A command to another agent in the same tenant and workspace.

        Raises:
            Poison: its receiver would not take it: agent or action are no tokens, entity or version of another type,
                the payload is not a JSON object or too large.
        """
        _check_send(send)
        msg_id = self.msg_id(cause, "command")
        target = Scope.checked(self.scope.tenant, self.scope.workspace, send.agent)
        # The first part keeps time-ordered keys together in the receiver's index; the hash makes it unique. What
        # an event's key names must not look like a prefix of the runtime.
        stem = cause.key.split(":", 1)[-1].replace(":", "_") if cause.key.startswith("evt:") else cause.key
        fields: JsonObject = {
            "id": msg_id,
            "tenant": target.tenant,
            "workspace": target.workspace,
            "agent": target.agent,
            "action": check_token(send.action, "action"),
            "idempotency_key": f"{stem[:24]}~{msg_id[:24]}",
        }
        if send.entity_id is not None:
            fields["entity_id"] = send.entity_id
        if send.expected_version is not None:
            fields["expected_version"] = send.expected_version
        fields["payload"] = send.payload if self.sealer is None else self.sealer.payload(fields, send.payload)
        fields.update(self._common(cause, msg_id))
        body = self._checked(encode_fields(fields), f"command {send.agent}.{send.action}")
        subject = command_subject(target, send.action)
        return Output(0, "command", cause.key, msg_id, send.action, subject, msg_id, body, send.entity_id)

    def violation(self, cause: Cause, incoming: Incoming, violation: Violation) -> Output:
        """The record of a violation, in the scope where the message arrived. It never echoes the payload."""
        payload: JsonObject = {
            "code": violation.code,
            "principal_id": violation.principal_id,
            "subject": incoming.delivery.subject,
            "reason": told(violation.reason),
        }
        subject = violation_subject(self.scope.tenant, self.scope.workspace)
        erased = self.sealer is not None and self.sealer.erased is not None
        return self.event(cause, "violation", payload, entity_id=None, kind="record", subject=subject, bare=erased)

    def _common(self, cause: Cause, msg_id: str) -> JsonObject:
        """What every output takes from its cause, in the order of the envelope's fields."""
        message = cause.message
        if cause.common is None:
            cause.common = {
                "security_context": self._principal(None if message is None else message.security_context),
                "trace_id": cause.trace_id,
                "span_id": "",
                "ts": cause.ts,
            }
            if message is not None:
                cause.common["causation_id"] = message.id
                cause.common["correlation_id"] = message.correlation_id or message.id
            cause.common["schema_version"] = 1
        cause.common["span_id"] = msg_id[:16]
        return cause.common

    def _principal(self, cause: SecurityContext | None) -> JsonObject:
        """This agent as a principal, on behalf of whoever began the chain; principals repeat."""
        origin = None if cause is None else cause.on_behalf_of or cause.principal_id
        found = self._principals.get(origin)
        if found is None:
            if len(self._principals) >= _PRINCIPALS_MAX:
                self._principals.clear()
            found = self._principals[origin] = principal_fields(as_agent(self.scope.agent, cause))
        return found

    def may_stand_for(self, first: bytes, incoming: Incoming) -> bool:
        """Whether a key that stood for `first` may be repeated by this message, whose hash differs."""
        if self.sealer is None or incoming.message is None:
            return False
        # Of a sealed payload nothing can be said; and what was decided before there was a codec has a bare hash.
        return incoming.hash == b"" or first == unkeyed_hash(incoming.message)

    def hidden(self, key: str, text: str) -> str:
        """What is told of a command under `key`, as it may rest: sealed, if there is a codec."""
        return text if self.sealer is None else self.sealer.text(key, text)

    def shown(self, attempt: Attempt) -> str:
        """The last error of a command, in words again."""
        return attempt.error if self.sealer is None else self.sealer.opened_text(attempt.key, attempt.error)

    def original(self, incoming: Incoming) -> bytes:
        """The body of a message that is set aside, as it may rest."""
        body = incoming.delivery.body
        if self.sealer is None:
            return body
        return self.sealer.body(incoming.key, body, readable=incoming.message is not None)

    def dead_letter(self, cause: Cause, incoming: Incoming, story: Mapping[str, object]) -> Output:
        """The original message, as it may rest, with the story of its failure, as JSON.

        Too large for the broker, it goes without the original's bytes, which the store keeps.
        """
        msg_id = self.msg_id(cause, "dead")
        delivery, body = incoming.delivery, self.original(incoming)
        letter: JsonObject = {
            "subject": delivery.subject,
            "key": cause.key,
            **story,
            "trace_id": cause.trace_id,
            "headers": delivery.headers.decode("latin-1"),
            **_readable(body),
        }
        told = canonical(letter)
        if len(told) > self._body_max:
            for field in ("payload", "payload_base64"):
                letter.pop(field, None)
            letter["payload_sha256"] = hashlib.sha256(body).hexdigest()
            letter["payload_bytes"] = len(body)
            letter["headers"] = ""
            told = canonical(letter)
        subject = failed_subject(delivery.subject)
        return Output(0, "dead", cause.key, msg_id, "dead_letter", subject, msg_id, told, incoming.entity_id)

    def check_size(self, body: bytes, what: str) -> None:
        """Raise `Poison` where the broker would not take it."""
        self._checked(body, what)

    def _checked(self, body: bytes, what: str) -> bytes:
        if len(body) > self._body_max:
            raise Poison(
                f"{what} has {len(body)} bytes; the broker takes {self._body_max}", code="oversized", field="payload"
            )
        return body


def check_event_name(name: str) -> None:
    """Raise `Poison` where an agent may not publish an event of that name."""
    if name in RESERVED_EVENTS:
        raise Poison(f"event name {name!r} belongs to the runtime", code="reserved_event")


def told(error: object) -> str:
    """The text of an error as it is stored and published: bounded, and nothing in it that JSON cannot carry."""
    return str(error)[:_ERROR_LENGTH_MAX].encode(errors="backslashreplace").decode()


def _check_payload(payload: object, what: str) -> None:
    if not isinstance(payload, dict):
        raise Poison(
            f"the payload of {what!r:.100} is {payload!r:.100}, not an object", code="nonsense", field="payload"
        )


def _check_send(send: Send) -> None:
    _check_payload(send.payload, f"{send.agent}.{send.action}")
    entity: object = send.entity_id
    version: object = send.expected_version
    if entity is not None and not (isinstance(entity, str) and 1 <= len(entity) <= _ENTITY_LENGTH_MAX):
        raise Poison(f"entity_id {entity!r:.100} must be 1 to 256 characters", code="bad_entity_id", field="entity_id")
    if version is not None and (type(version) is not int or not 0 <= version < 2**63 or entity is None):
        raise Poison(
            f"expected_version {version!r:.100} must be a version of an entity",
            code="bad_expected_version",
            field="expected_version",
        )


def _readable(body: bytes) -> JsonObject:
    try:
        return {"payload": body.decode()}
    except UnicodeDecodeError:
        return {"payload_base64": base64.b64encode(body).decode()}


def _trace_of(incoming: Incoming) -> str:
    """The trace of a message whose envelope names none: its `traceparent` header, else one made from its key."""
    for line in incoming.delivery.headers.split(b"\r\n"):
        found = _TRACEPARENT.fullmatch(line)
        if found is not None:
            return found.group(1).decode().lower()
    return hashlib.sha256(incoming.key.encode()).hexdigest()[:32]


def headers_of(output: Output) -> dict[str, str]:
    """Headers beside Msg-Id, read from the stored body: the trace of an event or command."""
    if output.kind == "dead":
        return {}
    # The body is ours: fields are unescaped ASCII and in a fixed order, so a search spares a parse.
    at = output.body.rfind(b'"trace_id":"')
    trace = output.body[at + 12 : at + 44].decode()
    return {"traceparent": traceparent(trace, output.msg_id[:16])}


def as_message(output: Output) -> Message:
    """An output as it is published, the first time and every time."""
    return Message(output.subject, output.body, output.msg_id, headers_of(output))
