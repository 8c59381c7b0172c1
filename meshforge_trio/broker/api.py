"""The JSON API of JetStream over one reply inbox, and the settings of streams and consumers it creates and checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import attrs
import orjson
import structlog
import trio

from meshforge_trio.broker.bridge import Connection, pub, status_of
from meshforge_trio.broker.fitness import unfit_consumer, unfit_stream
from meshforge_trio.broker.port import ConsumerSpec, StreamFacts, StreamSpec
from meshforge_trio.errors import Misconfigured, SessionLost

__all__ = [
    "JetStreamApi",
    "Reply",
    "consumer_config",
    "differences",
    "headers_of",
    "stream_config",
    "with_filter_list",
]

_TIMEOUT_S: Final = 5.0
_NS: Final = 1_000_000_000

# err_codes of the server: github.com/nats-io/nats-server/blob/main/server/errors.json
_CONSUMER_EXISTS: Final = 10148
_CONSUMER_NOT_FOUND: Final = 10014
_STREAM_EXISTS: Final = 10058
_STREAM_NOT_FOUND: Final = 10059

_log = structlog.get_logger("meshforge.broker")

#: Headers (`None` if there are none) and body.
Reply = tuple[bytes | None, bytes]


@attrs.define(eq=False)
class _Exchange:
    ends: Callable[[Reply], bool]
    replies: list[Reply] = attrs.field(factory=list)
    finished: bool = False
    changed: trio.Event = attrs.field(factory=trio.Event)


def headers_of(block: bytes | None) -> dict[str, str]:
    """A header block as a mapping; of a repeated name the last value."""
    headers: dict[str, str] = {}
    for line in (block or b"").decode(errors="replace").split("\r\n")[1:]:
        name, colon, value = line.partition(":")
        if colon:
            headers[name] = value.strip(" \t\n\r\v\f")
    return headers


class JetStreamApi:
    """Requests to `$JS.API` on one connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._inbox = connection.new_inbox()
        self._number_at = len(self._inbox) + 1
        self._exchanges: dict[int, _Exchange] = {}
        self._last = 0
        connection.subscribe(f"{self._inbox}.*", self._on_reply)

    def _on_reply(self, subject: bytes, reply: bytes, headers: bytes | None, body: bytes) -> None:
        exchange = self._exchanges.get(int(subject[self._number_at :]))
        if exchange is not None:  # else its caller has given up
            answer = (headers, body)
            exchange.replies.append(answer)
            if exchange.ends(answer):
                exchange.finished = True
                exchange.changed.set()

    async def exchange(
        self, subject: str, body: bytes, ends: Callable[[Reply], bool], timeout_s: float = _TIMEOUT_S
    ) -> list[Reply]:
        """Send, and collect replies until `ends` says that one is the last.

        Raises:
            SessionLost: the last one did not come in time, or the connection ended.
        """
        self._last += 1
        number = self._last
        exchange = self._exchanges[number] = _Exchange(ends)
        forget = self._connection.on_lost(exchange.changed.set)
        try:
            self._connection.write(pub(subject, f"{self._inbox}.{number}", body))
            with trio.move_on_after(timeout_s):
                await exchange.changed.wait()
        finally:
            forget()
            del self._exchanges[number]
        if not exchange.finished:
            self._connection.check()
            raise SessionLost(f"{subject} was not answered within {timeout_s:g} s")
        return exchange.replies

    async def request(self, verb: str, body: object = None) -> dict[str, Any]:
        """`$JS.API.<verb>` with a JSON body; the reply may hold an `error`.

        Raises:
            SessionLost: no answer, or nobody there to answer.
            Misconfigured: JetStream is off for this account.
        """
        payload = b"" if body is None else orjson.dumps(body)
        ((headers, answer),) = await self.exchange(f"$JS.API.{verb}", payload, lambda _: True)
        if status_of(headers):
            raise SessionLost(f"$JS.API.{verb}: JetStream does not answer ({status_of(headers)})")
        reply: dict[str, Any] = orjson.loads(answer)
        if "not enabled" in reply.get("error", {}).get("description", ""):
            raise Misconfigured(f"JetStream: {reply['error']['description']}")
        return reply

    async def stream_info(self, name: str, *, deleted: bool = False) -> dict[str, Any] | None:
        """Configuration and state, or `None` if there is no such stream; with `deleted` also which sequences were."""
        ask = {"deleted_details": True} if deleted else None
        return _found(await self.request(f"STREAM.INFO.{name}", ask), f"stream {name}", _STREAM_NOT_FOUND)

    async def stream_subjects(self, name: str, subject: str) -> list[str]:
        """Every subject matching `subject` under which the stream holds a message, in pages of the server's choice."""
        found: list[str] = []
        while True:
            ask = {"subjects_filter": subject, "offset": len(found)}
            reply = await self.request(f"STREAM.INFO.{name}", ask)
            info = _found(reply, f"stream {name}", _STREAM_NOT_FOUND)
            page = [] if info is None else list(info["state"].get("subjects") or ())
            found += page
            if info is None or not page or len(found) >= info.get("total", 0):
                return found

    async def declare_stream(self, spec: StreamSpec) -> StreamFacts:
        """Create the stream or check it; a difference is reported, never mended.

        Raises:
            Misconfigured: it exists with other settings, or the server refuses these.
        """
        wanted = stream_config(spec)
        info = await self.stream_info(spec.name)
        if info is None:
            created = await self.request(f"STREAM.CREATE.{spec.name}", wanted)
            # Another process may have been faster; what it made is checked like any other.
            info = _found(created, f"stream {spec.name}", _STREAM_EXISTS) or await self.stream_info(spec.name)
        if info is None:
            raise SessionLost(f"stream {spec.name} disappeared while it was declared")
        wrong = [*differences(info["config"], wanted), *unfit_stream(info["config"])]
        if wrong:
            raise Misconfigured(
                f"stream {spec.name} exists with other settings, nothing was changed: {'; '.join(wrong)}. "
                f"Mend them with `nats stream edit {spec.name}`"
            )
        return stream_facts(info)

    async def declare_consumer(self, spec: ConsumerSpec) -> dict[str, Any]:
        """Create the durable or check it; only its filters are ever changed. Returns its info.

        Raises:
            Misconfigured: it exists with other settings, or the server refuses these.
        """
        what = f"consumer {spec.name} of {spec.stream}"
        path = f"{spec.stream}.{spec.name}"
        wanted = consumer_config(spec)
        info = _found(await self.request(f"CONSUMER.INFO.{path}"), what, _CONSUMER_NOT_FOUND)
        if info is None:
            request = {"stream_name": spec.stream, "config": wanted, "action": "create"}
            created = await self.request(f"CONSUMER.CREATE.{path}", request)
            info = _found(created, what, _CONSUMER_EXISTS)
        if info is None:
            info = _found(await self.request(f"CONSUMER.INFO.{path}"), what)
        assert info is not None
        has = with_filter_list(info["config"])
        filters = {"filter_subjects": wanted["filter_subjects"]}
        wrong = differences(has, {**wanted, "filter_subjects": has["filter_subjects"]})
        if wrong := [*wrong, *unfit_consumer(has)]:
            raise Misconfigured(f"{what} exists with other settings, nothing was changed: {'; '.join(wrong)}")
        if moved := differences(has, filters):
            _log.warning("consumer_filters_changed", consumer=spec.name, stream=spec.stream, change=moved)
            request = {"stream_name": spec.stream, "config": {**has, **filters}, "action": "update"}
            info = _found(await self.request(f"CONSUMER.CREATE.{path}", request), what)
            assert info is not None
        return info

    async def reset_consumer(self, stream: str, name: str) -> None:
        """Have everything above the ACK floor delivered anew, in stream order, with `consumer_seq` from 1.

        Waiting pulls of other clients survive a reset (2.15.1): what they take then shows as a gap.
        """
        _found(await self.request(f"CONSUMER.RESET.{stream}.{name}"), f"reset of {name} of {stream}")


def _found(reply: dict[str, Any], what: str, absent: int = 0) -> dict[str, Any] | None:
    """The reply, or `None` if its error is `absent`.

    Raises:
        SessionLost: the server cannot answer now (a 5xx code).
        Misconfigured: it says no.
    """
    error = reply.get("error")
    if error is None:
        return reply
    code = error.get("err_code", 0)
    if absent and code == absent:
        return None
    text = f"{what}: {error.get('description', 'refused')} ({code})"
    raise SessionLost(text) if error.get("code", 0) >= 500 else Misconfigured(text)


def stream_config(spec: StreamSpec) -> dict[str, Any]:
    """The settings this project insists on; whatever is not named here the operator may choose."""
    return {
        "name": spec.name,
        "subjects": list(spec.subjects),
        "retention": "workqueue" if spec.work_queue else "limits",
        "storage": "file",
        "num_replicas": spec.replicas,
        "duplicate_window": round(spec.duplicate_window_s * _NS),
        "max_bytes": spec.max_bytes,
        "max_age": round(spec.max_age_s * _NS),
        "max_msg_size": spec.max_msg_size,
        # A full stream must refuse: dropping the oldest would lose commands nobody has seen.
        "discard": "new" if spec.max_bytes > 0 else "old",
        "allow_direct": True,
    }


def consumer_config(spec: ConsumerSpec) -> dict[str, Any]:
    """The settings a durable of this project must have, but for its filters, which may change."""
    return {
        "name": spec.name,
        "durable_name": spec.name,
        "filter_subjects": list(spec.filters),
        "deliver_policy": "all",
        "ack_policy": "explicit",
        "replay_policy": "instant",
        "ack_wait": round(spec.ack_wait_s * _NS),
        # A message that reaches the server's limit is stranded in the stream, so attempts are counted elsewhere.
        "max_deliver": -1,
        "max_ack_pending": spec.max_ack_pending,
    }


def with_filter_list(config: dict[str, Any]) -> dict[str, Any]:
    """A consumer's settings with its filters in `filter_subjects`, however many there are."""
    one = config.get("filter_subject")
    rest = {key: value for key, value in config.items() if key != "filter_subject"}
    return {"filter_subjects": [one] if one else [], **rest}


def differences(has: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """`<setting> is X, should be Y` for each wanted setting that is otherwise; lists compare as sets."""
    return [
        f"{key} is {has.get(key)!r}, should be {value!r}"
        for key, value in wanted.items()
        if (sorted(has.get(key) or []) != sorted(value) if isinstance(value, list) else has.get(key) != value)
    ]


def stream_facts(info: dict[str, Any]) -> StreamFacts:
    """The facts of the port out of a STREAM.INFO reply."""
    config, state = info["config"], info["state"]
    return StreamFacts(
        name=config["name"],
        first_seq=state["first_seq"],
        last_seq=state["last_seq"],
        messages=state["messages"],
        duplicate_window_s=config["duplicate_window"] / _NS,
        max_msg_size=config.get("max_msg_size", -1),
        last_seq_found=state["last_seq"],
        num_deleted=state.get("num_deleted", 0),
        deleted=tuple(state["deleted"]) if "deleted" in state else None if state.get("num_deleted") else (),
        lost_bytes=(state.get("lost") or {}).get("bytes", 0),
    )
