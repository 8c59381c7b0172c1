"""Dead letters as an operator meets them: which are meant, what redriving them would come to, and asking for it.

Reading is done beside a running worker, from the store. What changes anything is a command of the system to the agent
whose dead letter it is: decided, stored and answered like every other, so asking twice has one effect.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, Literal

import attrs

from meshforge_trio.answers import OutcomeUnknown
from meshforge_trio.asides import DIED
from meshforge_trio.client import MeshClient
from meshforge_trio.codec import ScopeSealer
from meshforge_trio.envelope import EventEnvelope, decode_command
from meshforge_trio.errors import Poison
from meshforge_trio.redrive import unreadable
from meshforge_trio.store.port import Attempt, DeadLetter, DeadState, KeyRecord, Reading
from meshforge_trio.subjects import DISCARD, REDRIVE, Scope, parse_subject

__all__ = [
    "ENDS",
    "Answer",
    "Fate",
    "Forecast",
    "Forecaster",
    "Item",
    "Prediction",
    "Wanted",
    "as_document",
    "as_summary",
    "ask",
    "encoded",
    "entity_of",
    "fate_key",
    "shown",
]

#: A key of an envelope is no longer than this.
_KEY_LENGTH_MAX: Final = 256

Fate = Literal["redrive", "discard"]
_ACTIONS: Final[Mapping[Fate, str]] = {"redrive": REDRIVE, "discard": DISCARD}
#: What a dead letter is once its fate was decided.
ENDS: Final[Mapping[Fate, DeadState]] = {"redrive": "redriven", "discard": "discarded"}
#: Refusals of a dead letter that does not wait (any more), or whose fate was asked for before in other words.
_SETTLED_CODES: Final = frozenset({"not_waiting", "idempotency_mismatch"})


# -- which ones ------------------------------------------------------------------------------------------------


@attrs.frozen
class Wanted:
    """Which dead letters of a scope are meant; what is not given does not restrict. Ages in seconds.

    `error` is a code, or a part of the reason in any case; `state` is `None` for all.
    """

    keys: frozenset[str] = attrs.field(default=frozenset(), converter=frozenset)
    generation: int | None = None
    entity_id: str | None = None
    error: str | None = None
    older_than_s: float | None = None
    newer_than_s: float | None = None
    state: DeadState | None = None

    def takes(self, letter: DeadLetter, now: float) -> bool:
        """Whether `letter` is one of them at wall-clock second `now`."""
        age = now - letter.last_at
        return (
            (not self.keys or letter.key in self.keys)
            and (self.generation is None or letter.generation == self.generation)
            and (self.entity_id is None or entity_of(letter) == self.entity_id)
            and (self.error is None or self._names(letter, self.error))
            and (self.older_than_s is None or age >= self.older_than_s)
            and (self.newer_than_s is None or age < self.newer_than_s)
            and (self.state is None or letter.state == self.state)
        )

    @staticmethod
    def _names(letter: DeadLetter, error: str) -> bool:
        return letter.code == error or error.casefold() in letter.reason.casefold()


def shown(letter: DeadLetter, sealer: ScopeSealer | None) -> DeadLetter:
    """The dead letter with what is sealed in it opened, where that is possible."""
    if sealer is None:
        return letter
    body = letter.body
    with suppress(Poison):
        body = sealer.opened_body(letter.key, letter.body)
    calls = [(at, sealer.opened_text(letter.key, error)) for at, error in letter.calls]
    return attrs.evolve(letter, reason=sealer.opened_text(letter.key, letter.reason), calls=calls, body=body)


def entity_of(letter: DeadLetter) -> str | None:
    """The entity that a dead letter is about; `None` where it names none.

    Those of older stores, and commands without a usable key, have it in the original only.
    """
    if letter.entity_id is not None:
        return letter.entity_id
    try:
        command = decode_command(letter.body) if parse_subject(letter.subject).kind == "cmd" else None
    except Poison:
        return None
    return None if command is None else command.entity_id


@attrs.frozen
class Item:
    """A dead letter by its name: what has to be kept of it while others are being settled."""

    scope: Scope
    key: str
    generation: int

    @staticmethod
    def of(scope: Scope, letter: DeadLetter) -> Item:
        """The name of `letter`."""
        return Item(scope, letter.key, letter.generation)

    def state_in(self, reading: Reading) -> DeadState:
        """What has become of it, by a reading of its key: a redrive frees the key for whatever is decided next."""
        letter = reading.dead.get(self.key)
        if letter is None or letter.generation > self.generation:
            return "redriven"
        return letter.state

    def as_document(self) -> dict[str, Any]:
        """For `--json`."""
        return {"scope": str(self.scope), "key": self.key, "generation": self.generation}


# -- what it would come to -------------------------------------------------------------------------------------

Prediction = Literal["would_run", "would_conflict", "held", "already_applied", "not_redrivable"]


@attrs.frozen
class Forecast:
    """What redriving a dead letter would come to as the store stands, and why."""

    prediction: Prediction
    why: str


class Forecaster:
    """Foretells the dead letters of one scope, in the order in which they would be redriven.

    It calls no handler: a command that would run may still be refused by its agent, or fail again.
    """

    def __init__(self, attempts: Sequence[Attempt], *, hold_entity: bool) -> None:
        """`attempts` are the failing commands of the scope; `hold_entity` whether they keep their entity waiting."""
        failing = [row for row in attempts if row.entity_id is not None] if hold_entity else []
        self._holders = {row.entity_id: row for row in failing}
        self._ahead: Counter[str] = Counter()

    def forecast(self, letter: DeadLetter, reading: Reading) -> Forecast:
        """What becomes of `letter`. `reading` has the record of its key and the head of its entity."""
        record = reading.keys[letter.key][0] if letter.key in reading.keys else None
        if letter.state != "waiting":
            return _settled(letter, record)
        if record is not None and record.outcome != "dead":
            return Forecast("already_applied", f"its key is {record.outcome}")
        why_not = unreadable(letter) or _undecodable(letter)
        if why_not is not None:
            return Forecast("not_redrivable", why_not)
        entity = entity_of(letter)
        if entity is None:
            return Forecast("would_run", "it has no entity")
        holder = self._holders.get(entity)
        if holder is not None and holder.key != letter.key:
            return Forecast("held", f"{entity!r} waits behind {holder.key!r}, which fails: {holder.error or DIED}")
        head = reading.heads.get(entity)
        made = self._versioned(letter, entity, 0 if head is None else head.version)
        if made.prediction == "would_run":
            self._ahead[entity] += 1
        return made

    def _versioned(self, letter: DeadLetter, entity: str, version: int) -> Forecast:
        expected = None
        if parse_subject(letter.subject).kind == "cmd":
            expected = decode_command(letter.body).expected_version
        ahead = self._ahead[entity]
        behind = f", behind {ahead} of this run" if ahead else ""
        if expected is None:
            return Forecast("would_run", f"{entity!r} is at version {version}{behind}")
        if expected < version or (expected > version and not ahead):
            return Forecast("would_conflict", f"it expects version {expected}, {entity!r} is at {version}")
        if expected == version and ahead:
            return Forecast("would_conflict", f"it expects version {expected}, which those before it move on")
        return Forecast("would_run", f"it expects version {expected}, {entity!r} is at {version}{behind}")


def _settled(letter: DeadLetter, record: KeyRecord | None) -> Forecast:
    if letter.state == "discarded":
        return Forecast("not_redrivable", "it was discarded")
    if record is None:
        return Forecast("already_applied", "it was redriven and is not decided yet")
    if record.outcome == "dead":
        return Forecast("already_applied", f"it was redriven and died again, as generation {record.generation}")
    return Forecast("already_applied", f"it was redriven, and its key is {record.outcome}")


def _undecodable(letter: DeadLetter) -> str | None:
    try:
        if parse_subject(letter.subject).kind == "cmd":
            decode_command(letter.body)
    except Poison as fault:
        return f"it cannot be read: {fault.reason}"
    return None


# -- asking ----------------------------------------------------------------------------------------------------


@attrs.frozen
class Answer:
    """What came of asking: `done` now, `already` before, `refused`, or `unknown` as no answer came in time."""

    outcome: Literal["done", "already", "refused", "unknown"]
    text: str = ""


def fate_key(fate: Fate, key: str, generation: int) -> str:
    """The idempotency key of asking for a fate: the same whoever asks, how often and why."""
    named = f"{fate}:{key}:{generation}"
    if len(named) > _KEY_LENGTH_MAX:
        named = f"{fate}:sha256:{hashlib.sha256(key.encode()).hexdigest()}:{generation}"
    return named


async def ask(
    client: MeshClient,
    item: Item,
    fate: Fate,
    state_of: Callable[[Item], DeadState],
    *,
    actor: str,
    reason: str,
    timeout_s: float,
    await_answer: bool = True,
) -> Answer:
    """Send the command of a fate and say what the agent answered.

    `state_of` looks at the store, for an answer that is missing or negative. With `await_answer` false the answer is
    not waited for, only that the stream has the command.

    Raises:
        Poison: actor or reason cannot be sent.
        Misconfigured: there is no command stream.
    """
    payload = {"key": item.key, "generation": item.generation, "actor": actor, "reason": reason}
    key = fate_key(fate, item.key, item.generation)
    agent, action = item.scope.agent, _ACTIONS[fate]
    try:
        if await_answer:
            event = await client.call(agent, action, payload, timeout_s=timeout_s, idempotency_key=key)
            return _understood(event, ENDS[fate], item, key, state_of)
        await client.send(agent, action, payload, timeout_s=timeout_s, idempotency_key=key)
    except OutcomeUnknown:
        told = f"no answer within {timeout_s:g} s; what the stream has takes effect once {item.scope} is served"
    else:
        told = f"the stream has it; it takes effect once {item.scope} is served"
    if state_of(item) == ENDS[fate]:
        return Answer("done", "the answer was lost, the store has it")
    return Answer("unknown", told)


def _understood(
    event: EventEnvelope, end: DeadState, item: Item, key: str, state_of: Callable[[Item], DeadState]
) -> Answer:
    if event.name == end:
        return Answer("done")
    code, reason = str(event.payload.get("code", event.name)), str(event.payload.get("reason", ""))
    state = state_of(item) if code in _SETTLED_CODES else "waiting"
    if state == end:
        return Answer("already", f"it was {end} before")
    if state != "waiting":
        return Answer("refused", f"it was {state} meanwhile")
    if event.name == "dead_lettered":
        return Answer("refused", f"{code}: {reason}. Once that is mended, redrive {key!r}")
    return Answer("refused", f"{code}: {reason}")


# -- telling ---------------------------------------------------------------------------------------------------


def encoded(field: str, content: bytes) -> dict[str, str]:
    """Bytes for a JSON document: as text if they are UTF-8, else as base64; `<field>_encoding` says which."""
    try:
        return {field: content.decode(), f"{field}_encoding": "utf-8"}
    except UnicodeDecodeError:
        return {field: b64encode(content).decode(), f"{field}_encoding": "base64"}


def as_summary(scope: Scope, letter: DeadLetter) -> dict[str, Any]:
    """A dead letter without its original, as a JSON document. Times in seconds since 1970."""
    return {
        "scope": str(scope),
        "key": letter.key,
        "generation": letter.generation,
        "state": letter.state,
        "code": letter.code,
        "reason": letter.reason,
        "attempts": letter.attempts,
        "first_at": letter.first_at,
        "last_at": letter.last_at,
        "entity_id": letter.entity_id,
        "trace_id": letter.trace_id,
        "subject": letter.subject,
    }


def as_document(scope: Scope, letter: DeadLetter) -> dict[str, Any]:
    """A dead letter whole: the summary, each call of its handler, the original's header block and payload."""
    return {
        **as_summary(scope, letter),
        "calls": [{"at": at, "error": error or DIED} for at, error in letter.calls],
        **encoded("headers", letter.headers),
        **encoded("payload", letter.body),
    }
