"""The crossing between Trio and nats-py, which runs on asyncio through trio-asyncio.

nats-py dials, authenticates, keeps the connection alive and parses what is not a message. The rest is ours:

* What arrives goes from the parser straight to a plain function: no message object, no queue, no task.
* What leaves is built here as bytes and written in one piece per batch. Nothing crosses per message.
* nats-py never reconnects. A connection is one session: any doubt about it ends it, for good, with a reason.

This is the one module that touches private names of nats-py; `_check_client` says so when they are gone.
`open_loop()` is entered by the caller, outermost, and the loop's exception handler belongs to this module.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.metadata
import os
import secrets
import ssl
import weakref
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import attrs
import nats.errors
import structlog
import trio
import trio_asyncio
from nats.aio.client import Client
from nats.aio.transport import TcpTransport
from nats.protocol.parser import Parser

from meshforge_trio.broker.frames import MessageParser, Receiver, checked_subject, hpub, pub, status_of
from meshforge_trio.errors import Misconfigured, SessionLost
from meshforge_trio.masking import address, masked

__all__ = ["Connection", "ConnectOptions", "Receiver", "connect", "hpub", "open_loop", "pub", "status_of"]

_CONNECT_S: Final = 5.0
_CLOSE_S: Final = 2.0
_PING_S: Final = 5
# Two probes unanswered: one may go unanswered merely because this process was busy or suspended.
_PROBES_MISSED_MAX: Final = 2
# Far above what nats-py numbers its own subscriptions with.
_FIRST_SID: Final = 1_000_000
_SUITABLE_SCHEMES: Final = frozenset({"nats", "tls"})

# trio-asyncio carries no types.
_AsyncCall = Callable[[], Awaitable[None]]
_as_trio: Callable[[_AsyncCall], _AsyncCall] = trio_asyncio.aio_as_trio  # type: ignore[attr-defined]
open_loop: Callable[[], AbstractAsyncContextManager[asyncio.AbstractEventLoop]] = trio_asyncio.open_loop  # type: ignore[attr-defined]
_current_loop: ContextVar[asyncio.AbstractEventLoop | None] = trio_asyncio.current_loop  # type: ignore[attr-defined, assignment]

_log = structlog.get_logger("meshforge.broker")
_live: weakref.WeakSet[Connection] = weakref.WeakSet()


@attrs.frozen(kw_only=True)
class ConnectOptions:
    """How to dial. `inbox_prefix` is what the broker's permissions let this user subscribe to.

    Every `probe_s` seconds a message to ourselves is sent; the second that stays away ends the session.
    """

    urls: tuple[str, ...]
    name: str = "meshforge"
    user: str | None = None
    password: str | None = attrs.field(default=None, repr=False)
    token: str | None = attrs.field(default=None, repr=False)
    nkey_seed: str | None = attrs.field(default=None, repr=False)
    creds_file: Path | None = None
    tls: ssl.SSLContext | None = attrs.field(default=None, repr=False)
    inbox_prefix: str = "_INBOX"
    probe_s: float = 2.0


class _Parsing(Client):
    """nats-py's client with another parser in it, which hands messages to `receivers` by the subscription's number."""

    def __init__(self) -> None:
        super().__init__()
        self.receivers: dict[int, Receiver] = {}
        self._ps = MessageParser(self, self.receivers)


def _check_client() -> None:
    """Whether nats-py still has the private names this module leans on."""
    client, transport = Client(), TcpTransport()  # type: ignore[no-untyped-call]
    missing = [name for name in ("_transport", "_server_info", "_reading_task", "_ps") if not hasattr(client, name)]
    missing += [name for name in ("_io_writer",) if not hasattr(transport, name)]
    missing += [name for name in ("parse", "reset") if not hasattr(Parser, name)]
    if missing:
        version = importlib.metadata.version("nats-py")
        raise Misconfigured(
            f"nats-py {version} changed inside ({', '.join(missing)}): pip install 'nats-py>=2.16,<2.17'"
        )


def _check_credentials(options: ConnectOptions) -> None:
    """Whether seed and creds file can be used at all; nats-py finds out in the middle of dialling."""
    if options.creds_file is not None and not os.access(options.creds_file, os.R_OK):
        raise Misconfigured(f"creds file {options.creds_file} cannot be read")
    if options.nkey_seed is None and options.creds_file is None:
        return
    try:
        nkeys = importlib.import_module("nkeys")
    except ImportError as error:
        raise Misconfigured("nkey and creds log-in need another package: pip install 'nats-py[nkeys]'") from error
    if options.nkey_seed is not None:
        try:
            nkeys.from_seed(bytearray(options.nkey_seed.strip().encode()))
        except nkeys.NkeysError as error:
            raise Misconfigured(f"the nkey seed cannot be used: {error}") from error


def _on_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """An exception nobody awaited: the default would end the whole loop; here it ends the sessions on it."""
    error = repr(context.get("exception") or context.get("message"))
    _log.error("bridge_error", error=error)
    for connection in [connection for connection in _live if connection.loop is loop]:
        connection.lose(f"error inside the bridge: {error}")


class Connection:
    """One connection to a nats-server, from dial to loss. Made by `connect`."""

    def __init__(self, client: _Parsing, loop: asyncio.AbstractEventLoop, options: ConnectOptions) -> None:
        self.loop = loop
        self.lost: str | None = None
        self._client = client
        self._inbox_prefix = options.inbox_prefix
        self._probe_s = options.probe_s
        self._lost_event = trio.Event()
        self._wakers: set[Callable[[], None]] = set()
        self._next_sid = _FIRST_SID
        self._probes_sent = self._probes_answered = 0
        self._watched_probe = self._watched_missed = 0
        self._probe_answered = trio.Event()
        self._probe_inbox = self.new_inbox()
        self._probe_timer: asyncio.TimerHandle | None = None

    @property
    def info(self) -> Mapping[str, Any]:
        """What the server said in INFO when the connection was made."""
        return self._client._server_info

    def new_inbox(self) -> str:
        """A subject nobody else can guess."""
        return f"{self._inbox_prefix}.{secrets.token_hex(11)}"

    def subscribe(self, subject: str, receiver: Receiver) -> int:
        """Hand every message on `subject` to `receiver`; returns the number for `unsubscribe`.

        Raises:
            SessionLost: the connection has ended.
        """
        sid, self._next_sid = self._next_sid, self._next_sid + 1
        self._client.receivers[sid] = receiver
        self.write(f"SUB {checked_subject(subject)}  {sid}\r\n".encode())
        return sid

    def unsubscribe(self, sid: int) -> None:
        """Give a subscription up. Nothing more reaches its receiver."""
        if self._client.receivers.pop(sid, None) is not None and self.lost is None:
            self.write(f"UNSUB {sid}\r\n".encode())

    def write(self, frames: bytes) -> None:
        """Hand whole frames to the socket, in the order of the calls. Never waits.

        Called from Trio tasks and from receivers alike: the loop is a Trio task of the same thread, and an asyncio
        transport's `write` only needs that loop to exist.

        Raises:
            SessionLost: the connection has ended.
        """
        self.check()
        transport = self._client._transport
        assert transport is not None
        transport.write(frames)

    def check(self) -> None:
        """Raise `SessionLost` if the connection has ended."""
        if self.lost is not None:
            raise SessionLost(self.lost)

    def lose(self, reason: str) -> None:
        """End the session: every waiting call wakes and raises. The first reason stays."""
        if self.lost is not None:
            return
        self.lost = reason
        _log.info("session_ended", reason=reason)
        if self._probe_timer is not None:
            self._probe_timer.cancel()
        self._lost_event.set()
        self._probe_answered.set()
        for wake in list(self._wakers):
            wake()

    def on_lost(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Have `wake` called when the session ends; the returned function takes that back."""
        self._wakers.add(wake)
        return lambda: self._wakers.discard(wake)

    async def wait_lost(self) -> str:
        """Return when the session has ended, with the reason."""
        await self._lost_event.wait()
        return self.lost or ""

    async def round_trip(self, timeout_s: float) -> None:
        """Wait for a message to ourselves: whatever the server had sent before has been received then.

        Raises:
            SessionLost: it did not come back in time, or the connection ended.
        """
        number = self._send_probe()
        with trio.move_on_after(timeout_s) as scope:
            while self._probes_answered < number and self.lost is None:
                await self._probe_answered.wait()
        if scope.cancelled_caught:
            self.lose(f"the server did not answer within {timeout_s:g} s")
        self.check()

    async def aclose(self) -> None:
        """End the session; what was written is given a moment to leave."""
        self.lose("closed")
        client = self._client
        client.receivers.clear()
        if client._transport is None:
            return  # the dial was given up before it reached the client
        writer = getattr(client._transport, "_io_writer", None)
        with trio.CancelScope(shield=True, deadline=trio.current_time() + _CLOSE_S):
            await _as_trio(client.close)()
        if writer is not None:
            # A peer that stopped reading would hold the socket open until all is sent; else this does nothing.
            writer.transport.abort()

    def _start(self) -> None:
        """Watch what nats-py does not tell: its read loop may end without a word, and a server may hang."""
        task = self._client._reading_task
        assert task is not None
        task.add_done_callback(lambda _: self.lose("the read loop ended"))
        self.subscribe(self._probe_inbox, self._on_probe)
        self._watch()

    def _send_probe(self) -> int:
        self._probes_sent += 1
        self.write(pub(self._probe_inbox, "", b"%d" % self._probes_sent))
        return self._probes_sent

    def _on_probe(self, subject: bytes, reply: bytes, headers: bytes | None, body: bytes) -> None:
        self._probes_answered = int(body)
        self._probe_answered.set()
        self._probe_answered = trio.Event()

    def _watch(self) -> None:
        """Runs on the loop's own timer, so it needs no task that could outlive the connection."""
        if self.lost:
            return
        self._watched_missed = 0 if self._probes_answered >= self._watched_probe else self._watched_missed + 1
        if self._watched_missed >= _PROBES_MISSED_MAX:
            self.lose(f"the server has not answered for {_PROBES_MISSED_MAX * self._probe_s:g} s")
            return
        self._watched_probe = self._send_probe()
        self._probe_timer = self.loop.call_later(self._probe_s, self._watch)


async def connect(options: ConnectOptions) -> Connection:
    """Dial. The loop of `open_loop()` must be running around the caller.

    Raises:
        SessionLost: no server could be reached.
        Misconfigured: no loop, an unsuitable URL, refused credentials, or a nats-py this module does not know.
    """
    loop = _current_loop.get()
    if loop is None:
        raise Misconfigured("enter `bridge.open_loop()` around the whole program first")
    for url in options.urls:
        if urlsplit(url).scheme not in _SUITABLE_SCHEMES:
            raise Misconfigured(f"{address(url)!r} is no nats:// or tls:// address")
    _check_client()
    _check_credentials(options)
    loop.set_exception_handler(_on_loop_error)
    client = _Parsing()
    connection = Connection(client, loop, options)
    _live.add(connection)
    try:
        await _dial(client, connection, options)
        connection._start()
        await connection.round_trip(_CONNECT_S)
    except BaseException:
        await connection.aclose()
        raise
    return connection


async def _dial(client: _Parsing, connection: Connection, options: ConnectOptions) -> None:
    told: list[str] = []

    async def on_error(error: Exception) -> None:
        told.append(f"{type(error).__name__}: {error}")
        _log.info("broker_error", error=told[-1])

    async def on_end() -> None:
        connection.lose(told[-1] if told else "the connection ended")

    async def dial() -> None:
        await client.connect(
            servers=list(options.urls),
            error_cb=on_error,
            disconnected_cb=on_end,
            closed_cb=on_end,
            name=options.name,
            allow_reconnect=False,
            # Two tries per address; 0 would mean for ever.
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            connect_timeout=int(_CONNECT_S),
            ping_interval=_PING_S,
            max_outstanding_pings=2,
            tls=options.tls,
            user=options.user,
            password=options.password,
            token=options.token,
            nkeys_seed_str=options.nkey_seed,
            user_credentials=None if options.creds_file is None else str(options.creds_file),
        )

    where = ", ".join(map(address, options.urls))
    try:
        with trio.fail_after(_CONNECT_S * (len(options.urls) + 1)):
            await _as_trio(dial)()
    except trio.TooSlowError as error:
        raise SessionLost(f"{where}: no connection in time") from error
    except (OSError, TimeoutError, nats.errors.Error) as error:
        reason = masked(told[-1] if told else repr(error))
        if "authorization" in reason.lower():
            raise Misconfigured(f"{where} refuses these credentials: {reason}") from error
        raise SessionLost(f"{where}: {reason}") from error
