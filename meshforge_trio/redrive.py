"""What becomes of dead letters: commands of the runtime itself, decided like any other.

    sys_redrive   frees the key of a dead letter and sends its command again, under a new id and the same key
    sys_discard   says that nothing more will be done about it
    sys_deliver   brings a redriven event of another agent to this one alone

Each is stored under its own key with who asked and why, so asking twice has one effect, and a crash anywhere in
between none that is not known.
"""

from __future__ import annotations

from typing import Final

import attrs
import orjson

from meshforge_trio.codec import ScopeSealer
from meshforge_trio.drafts import Cause, Drafter, told
from meshforge_trio.envelope import (
    CommandEnvelope,
    EventEnvelope,
    JsonObject,
    SecurityContext,
    decode_command,
    decode_event,
    encode,
)
from meshforge_trio.errors import Poison, Refused
from meshforge_trio.intake import Incoming
from meshforge_trio.plan import Verdict
from meshforge_trio.store.port import DeadLetter, Output, Reading
from meshforge_trio.subjects import DELIVER, REDRIVE, command_subject, parse_subject

__all__ = ["Fates", "asked", "unreadable"]

_TEXT_MAX: Final = 2000


def asked(message: CommandEnvelope | EventEnvelope | None) -> str | None:
    """The key of the dead letter that a system command is about; `None` where it names none."""
    key = message.payload.get("key") if isinstance(message, CommandEnvelope) else None
    return key if isinstance(key, str) else None


def unreadable(letter: DeadLetter) -> str | None:
    """Why sending this dead letter again could only fail the same way; `None` if it may work."""
    if letter.key.startswith("raw:"):
        return "it cannot be read or has no key: mend its sender, then discard it"
    if letter.key.startswith("query:"):
        return "it is a query: whoever wants the answer asks again"
    return None


class Fates:
    """Decides the system commands of one batch."""

    def __init__(self, drafter: Drafter, reading: Reading) -> None:
        self._drafter = drafter
        self._reading = reading
        self._settled: set[str] = set()

    def decide(self, incoming: Incoming, cause: Cause) -> Verdict:
        """The fate of the dead letter that the command names.

        Raises:
            Refused: it names none, or one that does not wait.
            Poison: the redriven command is too large for the broker.
        """
        message = incoming.message
        assert isinstance(message, CommandEnvelope)
        letter, actor, reason = self._read(message)
        told_of: JsonObject = {"key": letter.key, "generation": letter.generation, "actor": actor, "reason": reason}
        outputs: list[Output] = []
        if message.action == REDRIVE:
            why_not = unreadable(letter)
            if why_not is not None:
                raise Refused(f"{letter.key!r} cannot be redriven: {why_not}", code="not_redrivable", field="key")
            again = self._again(letter, cause)
            told_of["command_id"] = again.event_id
            outputs.append(self._drafter.event(cause, "redriven", told_of, entity_id=None, kind="record"))
            outputs.append(again)
        else:
            outputs.append(self._drafter.event(cause, "discarded", told_of, entity_id=None, kind="record"))
        self._settled.add(letter.key)
        fate = (letter.key, letter.generation)
        redriven = message.action == REDRIVE
        return Verdict(
            incoming,
            "decided",
            outputs,
            generation=cause.generation,
            redriven=fate if redriven else None,
            discarded=None if redriven else fate,
        )

    def _read(self, command: CommandEnvelope) -> tuple[DeadLetter, str, str]:
        payload = command.payload
        key = _text(payload, "key")
        actor, reason = _text(payload, "actor"), _text(payload, "reason")
        letter = self._reading.dead.get(key)
        generation = payload.get("generation")
        if letter is None or letter.state != "waiting" or key in self._settled:
            raise Refused(f"no dead letter of {key!r} waits: it was redriven or discarded", code="not_waiting")
        if letter.generation != generation:
            raise Refused(
                f"the dead letter of {key!r} is of generation {letter.generation}, not {generation!r:.50}",
                code="not_waiting",
                field="generation",
            )
        return letter, told(actor), told(reason)

    def _again(self, letter: DeadLetter, cause: Cause) -> Output:
        """The command of a dead letter under a new id; an event comes to this agent as a command that carries it."""
        msg_id = self._drafter.msg_id(cause, "command")
        sealer = self._drafter.sealer
        original = letter.body if sealer is None else self._opened(letter, sealer)
        if parse_subject(letter.subject).kind == "evt":
            event = decode_event(original)
            command = CommandEnvelope(
                id=msg_id,
                tenant=self._drafter.scope.tenant,
                workspace=self._drafter.scope.workspace,
                agent=self._drafter.scope.agent,
                action=DELIVER,
                idempotency_key=f"deliver~{msg_id}",
                payload={"event": orjson.loads(original)},
                security_context=SecurityContext(self._drafter.scope.agent, "agent"),
                trace_id=event.trace_id,
            )
        else:
            command = attrs.evolve(decode_command(original), id=msg_id)
        command = attrs.evolve(
            command,
            trace_id=command.trace_id or letter.trace_id or cause.trace_id,
            span_id=msg_id[:16],
            causation_id=None if cause.message is None else cause.message.id,
        )
        body = encode(command if sealer is None else sealer.sealed(command))
        self._drafter.check_size(body, f"the redriven command {letter.key!r}")
        subject = command_subject(self._drafter.scope, command.action)
        return Output(0, "command", cause.key, msg_id, command.action, subject, msg_id, body, command.entity_id)

    def _opened(self, letter: DeadLetter, sealer: ScopeSealer) -> bytes:
        try:
            return sealer.opened_body(letter.key, letter.body)
        except Poison as error:
            why_not = f"{letter.key!r} cannot be redriven: {error.reason}"
            raise Refused(why_not, code="not_redrivable", field="key") from error


def _text(payload: JsonObject, field: str) -> str:
    value = payload.get(field)
    if not isinstance(value, str) or not 1 <= len(value) <= _TEXT_MAX:
        raise Refused(
            f"payload field {field!r} must be a text of 1 to {_TEXT_MAX} characters", code="bad_payload", field=field
        )
    return value
