"""The store takes over what the stream holds and it does not know: it was restored from an older backup, or is new.

Events, records and dead letters come back with their decisions: key, outcome, versions and chains. What left no trace
in the streams cannot: payload hashes (a re-send with any payload gets the first outcome), commands that were sent to
other agents (nobody sends them again), attempts and what waited for them.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import attrs
import orjson

from meshforge_trio.broker.port import StoredMessage
from meshforge_trio.codec import ScopeSealer, is_sealed
from meshforge_trio.drafts import Cause, Drafter
from meshforge_trio.envelope import EventEnvelope, decode_event
from meshforge_trio.errors import Misconfigured, Poison
from meshforge_trio.points import no_probe
from meshforge_trio.store.port import Commit, DeadLetter, Head, KeyRecord, Kind, Outcome, Output, ScopeStore
from meshforge_trio.subjects import Scope

__all__ = ["belongs", "takeover"]

_DECISIONS_PER_COMMIT: Final = 256
#: How many outputs of one decision, and redrives of one key, are tried to tell what a Msg-Id was made of.
_NUMBERS: Final = 1000
_GENERATIONS: Final = 8
_MISMATCH: Final = "idempotency_mismatch"


class Sided(Protocol):
    """The unknown messages of one stream."""

    @property
    def unknown(self) -> Sequence[StoredMessage]: ...


class Compared(Protocol):
    """What is taken over, and into what: see `reconcile.Comparison`."""

    @property
    def scope(self) -> Scope: ...
    @property
    def outputs(self) -> int: ...
    @property
    def events(self) -> Sided: ...
    @property
    def failed(self) -> Sided: ...


@attrs.define
class _Decision:
    """The outputs of one decision that the stream holds."""

    key: str
    generation: int
    first_seq: int
    outputs: list[Output] = attrs.field(factory=list)
    payloads: list[Mapping[str, Any]] = attrs.field(factory=list)
    letter: DeadLetter | None = None
    mismatch: bytes | None = None


def belongs(message: StoredMessage, scope: Scope) -> bool:
    """Whether a message that the store does not know is the scope's: of a subject that several agents use.

    Every event under the agent's own subject is, whoever published it there.
    """
    if message.subject.startswith("failed."):
        letter = _as_object(message.body)
        key, generation = letter.get("key"), letter.get("generation")
        if not isinstance(key, str) or type(generation) is not int:
            return False
        return Drafter(scope, 0).msg_id(_cause(key, generation, 0), "dead") == message.msg_id
    if message.subject.endswith(".security.violation"):
        return _as_object(message.body).get("agent") == scope.agent
    return True


async def takeover(
    rows: ScopeStore,
    found: Compared,
    epoch: int,
    progress: Callable[[str, int, int], None],
    sealer: ScopeSealer | None = None,
) -> int:
    """Write the decisions whose outputs are unknown into the store; return how many outputs that were.

    `sealer` opens their payloads, which say of which version of its entity an event is.

    Raises:
        Misconfigured: a message was not published by this project's runtime for this agent, a decision does not
            continue its entity, or its key has another outcome in the store. Nothing was written.
        Fenced, StoreFull, StoreBroken: see `ScopeStore.commit`. What was committed before stays taken over.
    """
    decisions = _decisions(found, sealer)
    commits = _planned(found, decisions, await _Standing.read(rows, decisions), epoch)
    total = sum(len(commit.outputs) for commit in commits)
    done = 0
    for commit in commits:
        await rows.commit(commit, no_probe)
        done += len(commit.outputs)
        progress("taken over", done, total)
    return total


def _planned(found: Compared, decisions: Sequence[_Decision], standing: _Standing, epoch: int) -> Sequence[Commit]:
    """The decisions in pieces, in an order in which each continues its entities and follows the redrive of its key.

    That is the order of the stream, but for what was lost and published again further up.
    """
    commits = [Commit(epoch)]
    n = found.outputs
    while decisions:
        left: list[_Decision] = []
        for decision in decisions:
            if standing.obstacle(decision) is not None:
                left.append(decision)
                continue
            commit = commits[-1]
            n = standing.add(decision, commit, n)
            # A key that was redriven may be decided anew, in another transaction.
            if commit.redriven or len(commit.keys) + len(commit.mismatches) >= _DECISIONS_PER_COMMIT:
                commits.append(Commit(epoch))
        if len(left) == len(decisions):
            raise Misconfigured(f"{found.scope}: {standing.obstacle(left[0])}. Nothing was taken over")
        decisions = left
    return [commit for commit in commits if commit.outputs]


@attrs.define
class _Standing:
    """Where keys and entities stand while decisions are taken over."""

    keys: dict[str, KeyRecord]
    letters: set[tuple[str, int]]
    heads: dict[str, tuple[int, bytes]]
    attempts: set[str]

    @staticmethod
    async def read(rows: ScopeStore, decisions: Sequence[_Decision]) -> _Standing:
        """What the store knows of the keys and entities of some decisions."""
        keys = sorted({decision.key for decision in decisions})
        entities = sorted({o.entity_id for d in decisions for o in d.outputs if o.entity_id is not None})
        reading = await rows.read([(key, b"") for key in keys], entities)
        return _Standing(
            {key: record for key, (record, _) in reading.keys.items()},
            {(key, letter.generation) for key, letter in reading.dead.items() if letter.state == "waiting"},
            {entity: (head.version, head.chain) for entity, head in reading.heads.items()},
            {attempt.key for attempt in await rows.attempts()},
        )

    def obstacle(self, decision: _Decision) -> str | None:
        """Why a decision cannot be written now; `None` if it can."""
        where = f"the decision under key {decision.key!r} (sequence {decision.first_seq})"
        if decision.mismatch is None and decision.key in self.keys:
            return f"{where} is another than the store's under that key"
        versions: dict[str, int] = {}
        for output in decision.outputs:
            if output.version is None or output.entity_id is None:
                continue
            before = versions.get(output.entity_id, self.heads.get(output.entity_id, (0, b""))[0])
            if output.version != before + 1:
                return (
                    f"{where} is version {output.version} of entity {output.entity_id!r}, and the store has "
                    f"{before}: what is between has left the stream (expired or purged), or the store went its own way"
                )
            versions[output.entity_id] = output.version
        return None

    def add(self, decision: _Decision, commit: Commit, n: int) -> int:
        """Put a decision into a commit, its outputs numbered from `n` + 1; return the last number."""
        first = n + 1
        heads = {head.entity_id: head for head in commit.heads}
        for output in decision.outputs:
            n += 1
            output.n = n
            if output.version is not None and output.entity_id is not None:
                before = self.heads.get(output.entity_id, (0, b""))[1]
                output.chain = hashlib.sha256(before + output.body).digest()
                self.heads[output.entity_id] = (output.version, output.chain)
                heads[output.entity_id] = Head(output.entity_id, output.version, output.chain)
        commit.heads = list(heads.values())
        commit.outputs += decision.outputs
        if decision.mismatch is not None:
            commit.mismatches.append(KeyRecord(decision.key, decision.mismatch, "refused", first, n))
            return n
        outcome = _outcome(decision)
        record = KeyRecord(decision.key, _hash_of(decision.key), outcome, first, n, decision.generation)
        commit.keys.append(record)
        self.keys[decision.key] = record
        if decision.letter is not None:
            commit.dead.append(decision.letter.numbered(first))
            self.letters.add((decision.key, decision.generation))
        if decision.key in self.attempts:
            commit.ended.append(decision.key)
        self._settle(decision, commit)
        return n

    def _settle(self, decision: _Decision, commit: Commit) -> None:
        """What a redrive or discard did to the dead letter that it names."""
        for output, payload in zip(decision.outputs, decision.payloads, strict=True):
            if output.kind != "record" or output.name not in ("redriven", "discarded"):
                continue
            fate = (str(payload.get("key")), int(payload.get("generation", 0)))
            if fate in self.letters:
                self.letters.discard(fate)
                (commit.redriven if output.name == "redriven" else commit.discarded).append(fate)
                if output.name == "redriven":
                    self.keys.pop(fate[0], None)


def _decisions(found: Compared, sealer: ScopeSealer | None) -> list[_Decision]:
    """The unknown messages by decision, in the order in which the stream holds the first of each.

    Raises:
        Misconfigured: one was not published by this project's runtime for this agent.
    """
    drafter = Drafter(found.scope, 0, sealer)
    decisions: dict[tuple[str, int, str], _Decision] = {}
    placed: dict[tuple[str, int, str], list[tuple[int, Output, Mapping[str, Any]]]] = {}
    for message in found.events.unknown:
        output, payload, number, generation, mismatch = _read_event(drafter, message, found.scope)
        name = (output.key, generation, output.msg_id if mismatch is not None else "")
        decision = decisions.setdefault(name, _Decision(output.key, generation, message.seq, mismatch=mismatch))
        decision.first_seq = min(decision.first_seq, message.seq)
        placed.setdefault(name, []).append((number, output, payload))
    for message in found.failed.unknown:
        letter, output = _read_letter(message)
        name = (letter.key, letter.generation, "")
        if name not in decisions:
            raise Misconfigured(
                f"{found.scope}: the dead letter of {letter.key!r} at sequence {message.seq} has no `dead_lettered` "
                "event in the stream: it expired, or was purged; nothing was taken over"
            )
        entity = next((o.entity_id for _, o, _ in placed[name] if o.entity_id is not None), None)
        output.entity_id = entity
        decisions[name].letter = attrs.evolve(letter, entity_id=entity)
        placed[name].append((0, output, {}))
    for name, decision in decisions.items():
        placed[name].sort(key=lambda each: each[0])
        decision.outputs = [output for _, output, _ in placed[name]]
        decision.payloads = [payload for _, _, payload in placed[name]]
    return sorted(decisions.values(), key=lambda decision: decision.first_seq)


def _read_event(
    drafter: Drafter, message: StoredMessage, scope: Scope
) -> tuple[Output, Mapping[str, Any], int, int, bytes | None]:
    """An event or record as the store held it: output, payload, its number within the decision, generation, and
    for the refusal of a mismatch what is known of the other payload's hash."""
    try:
        event = decode_event(message.body)
    except Poison as error:
        raise _foreign(scope, message, error.reason) from error
    event = _opened(event, drafter.sealer, scope)
    key, mismatch = event.idempotency_key, None
    origin = _origin(drafter, key, message.msg_id) if key is not None else None
    kind: Kind
    if key is not None and origin is not None:
        kind, generation, number = origin
    elif key is not None and event.payload.get("code") == _MISMATCH and event.id.endswith("_refused"):
        kind, generation, number = "record", 0, 0
        mismatch = event.id.removesuffix("_refused")[-16:].encode()
    else:
        raise _foreign(scope, message, "its Msg-Id is none that this agent's runtime gives")
    version = event.payload.get("entity_version") if kind == "event" and event.entity_id is not None else None
    output = Output(
        0, kind, key, event.id, event.name, message.subject, message.msg_id, message.body, event.entity_id, version
    )
    return output, event.payload, number, generation, mismatch


def _opened(event: EventEnvelope, sealer: ScopeSealer | None, scope: Scope) -> EventEnvelope:
    if not is_sealed(event.payload):
        return event
    try:
        if sealer is not None:
            return sealer.opened(event)
        why = "no key ring is named in `codec_keys`"
    except Poison as error:
        why = error.reason
    raise Misconfigured(f"{scope}: event {event.id} is sealed, so nothing can be taken over: {why}")


def _origin(drafter: Drafter, key: str, msg_id: str) -> tuple[Kind, int, int] | None:
    """What a Msg-Id was made of: kind, generation and number within its decision."""
    kinds: tuple[Kind, ...] = ("event", "record")
    for number in range(_NUMBERS):
        for generation in range(_GENERATIONS):
            for kind in kinds:
                if drafter.msg_id(_cause(key, generation, number), kind) == msg_id:
                    return kind, generation, number
    return None


def _cause(key: str, generation: int, number: int) -> Cause:
    return Cause(key, "", 0.0, "", None, generation, number=number)


def _foreign(scope: Scope, message: StoredMessage, why: str) -> Misconfigured:
    return Misconfigured(
        f"{scope}: {message.subject} at sequence {message.seq} (Msg-Id {message.msg_id or 'none'}) cannot be taken "
        f"over: {why}; somebody else publishes for this agent. Nothing was taken over. Remove it with `nats stream "
        f"rmm` if it is worth nothing, or let the store be right (--accept-store)"
    )


def _read_letter(message: StoredMessage) -> tuple[DeadLetter, Output]:
    """A dead letter as the store held it."""
    told = _as_object(message.body)
    encoded = told.get("payload_base64")
    body = base64.b64decode(encoded) if isinstance(encoded, str) else str(told.get("payload", "")).encode()
    calls = [(float(call["at"]), str(call["error"])) for call in told.get("calls") or ()]
    key = str(told["key"])
    letter = DeadLetter(
        key=key,
        generation=int(told["generation"]),
        n=0,
        subject=str(told["subject"]),
        headers=str(told.get("headers", "")).encode("latin-1"),
        body=body,
        code=str(told.get("code", "")),
        reason=str(told.get("reason", "")),
        attempts=int(told.get("attempts", 0)),
        first_at=float(told.get("first_at", 0.0)),
        last_at=float(told.get("last_at", 0.0)),
        trace_id=str(told.get("trace_id", "")),
        calls=calls,
    )
    output = Output(0, "dead", key, message.msg_id, "dead_letter", message.subject, message.msg_id, message.body, None)
    return letter, output


def _outcome(decision: _Decision) -> Outcome:
    """What the names of a decision's outputs say about it."""
    records = [(o.name, p) for o, p in zip(decision.outputs, decision.payloads, strict=True) if o.kind == "record"]
    names = {name for name, _ in records}
    if decision.letter is not None or "dead_lettered" in names:
        return "dead"
    if "violation" in names:
        return "violation"
    if len(records) == len(decision.outputs) == 1:
        name, payload = records[0]
        if name == "conflict":
            return "conflict"
        if name == "refused" or payload.keys() - {"entity_version"} == {"code", "reason", "field"}:
            return "refused"
    return "decided"


def _hash_of(key: str) -> bytes:
    """What a key stands for, where the key says it; else nothing, and any payload is taken for the first."""
    return bytes.fromhex(key[4:]) if key.startswith("raw:") else b""


def _as_object(body: bytes) -> Mapping[str, Any]:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}
