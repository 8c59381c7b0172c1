"""Evidence: what a run left behind, read without help of the code under test.

The database is read from a copy of the file and its write-ahead log, taken after the process was reaped: opening the
live one would run recovery and heal what is to be judged. The streams are read through the broker.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import apsw
import attrs
import orjson

from meshforge_trio.broker.port import Broker, StoredMessage, StreamFacts
from meshforge_trio.envelope import CommandEnvelope, payload_hash
from meshforge_trio.subjects import COMMANDS, EVENTS, FAILED, Scope, command_subject

__all__ = ["Evidence", "Rows", "Sent", "collect", "read_store"]

_KINDS = ("event", "record", "command", "dead")
_OUTCOMES = ("decided", "conflict", "refused", "violation", "dead")


@attrs.frozen
class Sent:
    """A command that a client sent. `outcome` is `ok` (the PubAck came), `unknown` or `failed`.

    `query` says that it only reads; `expect` names outcomes its key may have, if the workload knows. `key` and `digest`
    are what the store should know it by.
    """

    command: CommandEnvelope
    outcome: str = "ok"
    query: bool = False
    expect: Sequence[str] = ()
    key: str = attrs.field()
    digest: bytes = attrs.field()

    @key.default
    def _key(self) -> str:
        return self.command.idempotency_key or ""

    @digest.default
    def _digest(self) -> bytes:
        return payload_hash(self.command)

    @property
    def scope(self) -> Scope:
        """Whom it was sent to."""
        return Scope(self.command.tenant, self.command.workspace, self.command.agent)

    @property
    def subject(self) -> str:
        """Where it was sent."""
        return command_subject(self.scope, self.command.action)


@attrs.frozen
class OutputRow:
    """A row of `outputs`."""

    scope: Scope
    n: int
    kind: str
    key: str
    event_id: str
    name: str
    subject: str
    msg_id: str
    body: bytes
    entity_id: str | None
    version: int | None
    chain: bytes | None


@attrs.frozen
class KeyRow:
    """A row of `keys` or `mismatches`."""

    scope: Scope
    key: str
    payload_hash: bytes
    outcome: str
    first_n: int
    last_n: int
    generation: int


@attrs.frozen
class MarkRow:
    """A row of `marks`."""

    scope: Scope
    n: int
    event_seq: int
    event_id: str
    failed_seq: int
    failed_id: str


@attrs.frozen
class Rows:
    """The store. `heads` maps (scope, entity) to (version, chain); `attempts` (scope, key) to the count.

    `state_hashes` are those recorded when a term ended cleanly.
    """

    outputs: Sequence[OutputRow] = ()
    keys: Sequence[KeyRow] = ()
    mismatches: Sequence[KeyRow] = ()
    heads: Mapping[tuple[Scope, str], tuple[int, bytes]] = attrs.field(factory=dict)
    marks: Sequence[MarkRow] = ()
    attempts: Mapping[tuple[Scope, str], int] = attrs.field(factory=dict)
    dead: Sequence[tuple[Scope, str, bytes]] = ()
    state_hashes: Mapping[Scope, str] = attrs.field(factory=dict)


@attrs.frozen
class Evidence:
    """Everything a checker may look at.

    `final` is false for a corpse: before recovery has run. `received` are bodies by Msg-Id that core subscribers saw,
    in order of arrival. `calls` counts the calls of a handler by key, written by the workload's agents; `kills` is how
    many workers were killed.
    """

    rows: Rows
    commands: Sequence[StoredMessage]
    events: Sequence[StoredMessage]
    failed: Sequence[StoredMessage]
    facts: Mapping[str, StreamFacts]
    sent: Sequence[Sent]
    final: bool
    limit: int = 0
    kills: int = 0
    calls: Mapping[str, int] = attrs.field(factory=dict)
    received: Sequence[tuple[str, bytes]] = ()
    state_hashes: Mapping[str, tuple[str, str]] = attrs.field(factory=dict)


def read_store(path: Path) -> Rows:
    """Read a database from a copy of its files. A file that does not exist yet holds nothing."""
    if not path.exists():
        return Rows()
    with tempfile.TemporaryDirectory(prefix="meshforge-corpse-") as home:
        copy = Path(home) / path.name
        for suffix in ("", "-wal"):
            part = path.with_name(path.name + suffix)
            if part.exists():
                shutil.copyfile(part, copy.with_name(copy.name + suffix))
        connection = apsw.Connection(str(copy))
        try:
            return _rows(connection)
        finally:
            connection.close()


def _rows(connection: apsw.Connection) -> Rows:
    def query(sql: str) -> list[tuple[Any, ...]]:
        return list(connection.execute(sql))

    if not query("SELECT 1 FROM sqlite_schema WHERE name = 'outputs'"):
        return Rows()
    scopes = {i: Scope(t, w, a) for i, t, w, a in query("SELECT id, tenant, workspace, agent FROM scopes")}
    n_bits = (1 << 40) - 1
    outputs = [
        OutputRow(scopes[i >> 40], i & n_bits, _KINDS[kind], *rest)
        for i, kind, *rest in query(
            "SELECT id, kind, key, event_id, name, subject, msg_id, body, entity_id, version, chain "
            "FROM outputs ORDER BY id"
        )
    ]
    keys = [
        KeyRow(scopes[s], key, digest, _OUTCOMES[outcome], first, last, generation)
        for s, key, digest, outcome, first, last, generation in query(
            "SELECT scope, key, payload_hash, outcome, first_n, last_n, generation FROM keys"
        )
    ]
    mismatches = [
        KeyRow(scopes[s], key, digest, "refused", first, last, 0)
        for s, key, digest, first, last in query("SELECT scope, key, payload_hash, first_n, last_n FROM mismatches")
    ]
    return Rows(
        outputs,
        keys,
        mismatches,
        {(scopes[s], e): (v, c) for s, e, v, c in query("SELECT scope, entity_id, version, chain FROM heads")},
        [
            MarkRow(scopes[i >> 40], *rest)
            for i, *rest in query("SELECT id, n, event_seq, event_id, failed_seq, failed_id FROM marks ORDER BY id")
        ],
        {(scopes[s], key): count for s, key, count in query("SELECT scope, key, attempts FROM attempts")},
        [(scopes[s], key, body) for s, key, body in query("SELECT scope, key, body FROM dead_letters")],
        {scopes[s]: value for s, value in query("SELECT scope, state_hash FROM state_hashes")},
    )


async def collect(broker: Broker, path: Path, sent: Sequence[Sent], *, final: bool, **more: Any) -> Evidence:
    """Read the store and the streams."""
    rows = read_store(path)
    messages: dict[str, Sequence[StoredMessage]] = {}
    facts: dict[str, StreamFacts] = {}
    for stream in (COMMANDS, EVENTS, FAILED):
        facts[stream] = await broker.stream_facts(stream)
        messages[stream] = await _all(broker, stream, facts[stream])
    return Evidence(rows, messages[COMMANDS], messages[EVENTS], messages[FAILED], facts, sent, final=final, **more)


async def _all(broker: Broker, stream: str, facts: StreamFacts) -> Sequence[StoredMessage]:
    found: list[StoredMessage] = []
    at = facts.first_seq
    while page := await broker.read_back(stream, ">", at, 256):
        found.extend(page)
        at = page[-1].seq + 1
    return found


def envelope_of(message: StoredMessage | OutputRow) -> Mapping[str, Any]:
    """The body as JSON; empty for one that is none."""
    try:
        value = orjson.loads(message.body)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}
