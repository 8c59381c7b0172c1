"""Evidence: what a run left behind, and all that a checker may look at.

An image is taken of the store and the streams after each death, before anything can recover (the corpse), and at the
end. It is written to the run's directory and read back from there, so that judging now and judging later are the same.

    run/run.json          what was run
    run/history.jsonl     what everybody did
    run/image-1/          image.json, store.db, store.db-wal, commands.jsonl, events.jsonl, failed.jsonl
    run/worker-1.log
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import attrs
import orjson

from chaos.history import Record
from chaos.rows import OutputRow, Rows, RowsError, copy_store, read_store
from chaos.sealing import meaning_of, opened
from meshforge_trio.broker.port import Broker, StoredMessage, StreamFacts
from meshforge_trio.envelope import CommandEnvelope, encode
from meshforge_trio.subjects import COMMANDS, EVENTS, FAILED, Scope, command_subject

__all__ = ["Evidence", "ImageError", "Sent", "envelope_of", "load_image", "save_image"]

_PAGE: Final = 256
_FILES: Final = {COMMANDS: "commands.jsonl", EVENTS: "events.jsonl", FAILED: "failed.jsonl"}


class ImageError(ValueError):
    """An image that cannot be judged."""


@attrs.frozen
class Sent:
    """A command that a client sends, with what is known about it beforehand.

    `outcome` is `ok` (the PubAck came), `unknown` or `failed`. `query` says that it only reads; `expect` names the
    outcomes its key may have, if the workload knows. `phase` is `main`, or `after`: sent when the last fault has
    healed. `repeatable` says that deciding it, and what follows from
    it, again on the same state gives the same events. `at` is where it is sent,
    if that is not where its envelope says: a trespass. `key` and `digest` are what the store should know it by.
    """

    command: CommandEnvelope
    outcome: str = "ok"
    query: bool = False
    expect: Sequence[str] = ()
    phase: str = "main"
    repeatable: bool = True
    at: Scope | None = None
    key: str = attrs.field()
    digest: bytes = attrs.field()

    @key.default
    def _key(self) -> str:
        return self.command.idempotency_key or ""

    @digest.default
    def _digest(self) -> bytes:
        return meaning_of(self.command)

    @property
    def scope(self) -> Scope:
        """Whom it is sent to."""
        return self.at or Scope(self.command.tenant, self.command.workspace, self.command.agent)

    @property
    def subject(self) -> str:
        """Where it is sent."""
        return command_subject(self.scope, self.command.action)

    @property
    def body(self) -> bytes:
        """What is sent."""
        return encode(self.command)


@attrs.frozen
class Evidence:
    """Everything a checker may look at.

    `final` is false for a corpse: before recovery has run. `sent` is what had been sent by then, `history` what had
    happened. `limit` is how often a handler may be called (0: not to be judged). `rebuilt` are state hashes by scope,
    computed from the store by other processes, each under another hash seed, time zone and clock. `logs` are what the
    workers said, of the end only: a corpse knows no moment of theirs.
    """

    rows: Rows
    commands: Sequence[StoredMessage] = ()
    events: Sequence[StoredMessage] = ()
    failed: Sequence[StoredMessage] = ()
    facts: Mapping[str, StreamFacts] = attrs.field(factory=dict)
    sent: Sequence[Sent] = ()
    final: bool = True
    history: Sequence[Record] = ()
    limit: int = 0
    rebuilt: Mapping[Scope, Sequence[str]] = attrs.field(factory=dict)
    logs: Sequence[str] = ()

    @property
    def calls(self) -> Mapping[tuple[str, str], int]:
        """How often each key's handler was called, by (scope as text, key)."""
        return Counter((r["scope"], r["key"]) for r in self.history if r.kind == "call")

    @property
    def received(self) -> Sequence[tuple[str, bytes]]:
        """(Msg-Id, body) of every event that a core subscriber was sent, in order of arrival."""
        return [(r["msg_id"], _body(r.fields)) for r in self.history if r.kind == "heard"]

    @property
    def kills(self) -> int:
        """How many workers died of SIGKILL."""
        return sum(r.kind == "exit" and r["status"] == -9 for r in self.history)


async def save_image(broker: Broker, store: Path, to: Path, *, final: bool) -> None:
    """Copy the store and the streams into the directory `to`, which is made."""
    files = copy_store(store, _made(to))
    facts: dict[str, Any] = {}
    copied: dict[str, int] = {}
    for stream, name in _FILES.items():
        found = await broker.stream_facts(stream)
        facts[stream] = attrs.asdict(found)
        lines = [_dumped(m) for m in await _all(broker, found)]
        copied[stream] = len(lines)
        (to / name).write_bytes(b"".join(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE) for line in lines))
    (to / "image.json").write_bytes(orjson.dumps({"final": final, "facts": facts, "copied": copied, "store": files}))


def _made(directory: Path) -> Path:
    directory.mkdir(parents=True)
    return directory


async def _all(broker: Broker, facts: StreamFacts) -> Sequence[StoredMessage]:
    found: list[StoredMessage] = []
    at = facts.first_seq
    while page := await broker.read_back(facts.name, ">", at, _PAGE):
        found.extend(page)
        at = page[-1].seq + 1
    return found


def load_image(image: Path, **more: Any) -> Evidence:
    """Read an image back; `more` are the fields of `Evidence` that it does not hold.

    Raises:
        ImageError: a file is missing, truncated or of another kind.
    """
    try:
        told = orjson.loads((image / "image.json").read_bytes())
        facts = {name: StreamFacts(**fields) for name, fields in told["facts"].items()}
        streams = {stream: _messages(image / name, told["copied"][stream]) for stream, name in _FILES.items()}
        _check_store(image / "store.db", told["store"])
        return Evidence(
            read_store(image / "store.db"),
            commands=streams[COMMANDS],
            events=streams[EVENTS],
            failed=streams[FAILED],
            facts=facts,
            final=bool(told["final"]),
            logs=_logs(image.parent) if told["final"] else (),
            **more,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RowsError) as error:
        raise ImageError(f"{image} is no image of a run, or a damaged one: {type(error).__name__}: {error}") from error


def _check_store(copy: Path, sizes: Mapping[str, int]) -> None:
    """Without it everything would look forgotten. Its log is gone, and it may have grown, once it was read."""
    size = copy.stat().st_size if copy.exists() else 0
    if size < sizes.get(copy.name, 0):
        raise ValueError(f"{copy.name} holds {size} bytes of {sizes[copy.name]}")


def _logs(home: Path) -> Sequence[str]:
    """What each worker of a run said."""
    return [path.read_text(errors="replace") for path in sorted(home.glob("worker-*.log"))]


def _messages(path: Path, count: int) -> Sequence[StoredMessage]:
    found = []
    for line in path.read_bytes().splitlines():
        fields = orjson.loads(line)
        found.append(StoredMessage(fields["seq"], fields["subject"], fields["msg_id"], _body(fields)))
    if len(found) != count:
        raise ValueError(f"{path.name} holds {len(found)} messages of {count}")
    return found


def _dumped(message: StoredMessage) -> Mapping[str, Any]:
    return {"seq": message.seq, "subject": message.subject, "msg_id": message.msg_id, **dumped_body(message.body)}


def dumped_body(body: bytes) -> Mapping[str, str]:
    """A body as JSON carries it: `body` if it is text, else `body_base64`."""
    try:
        return {"body": body.decode()}
    except UnicodeDecodeError:
        return {"body_base64": base64.b64encode(body).decode()}


def _body(fields: Mapping[str, Any]) -> bytes:
    if "body" in fields:
        return str(fields["body"]).encode()
    return base64.b64decode(fields["body_base64"], validate=True)


def envelope_of(message: StoredMessage | OutputRow) -> Mapping[str, Any]:
    """The body as JSON, its payload opened; empty for one that is none."""
    try:
        value = orjson.loads(message.body)
    except orjson.JSONDecodeError:
        return {}
    return opened(value) if isinstance(value, dict) else {}
